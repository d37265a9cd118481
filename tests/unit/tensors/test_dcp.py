"""Pieces of a distributed checkpoint, one archive after another, and the metadata that names them."""

import io
import zipfile

import pytest

from cas_checkpoint.tensors import dcp
from cas_checkpoint.tensors.dcp import Piece, read_metadata

METADATA = "torch.distributed.checkpoint.metadata"


def archive(value, content=b"x" * 24):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("archive/data.pkl", b"\x80\x02" + value + b".")
        zipped.writestr("archive/data/0", content)
    return file.getvalue()


def other():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("other", b"other")
    return file.getvalue()


def test_names_tell_the_place_of_an_archive(look, symbols):
    nested = symbols.dictionary(a=symbols.tensor(), b=symbols.tensor())
    data = (
        archive(symbols.tensor())
        + archive(b"K\3")
        + other()
        + archive(symbols.tensor((2, 3), (3, 1)))
        + archive(nested)
    )
    layout = look(data)
    assert layout.container == "dcp"
    assert [(tensor.name, tensor.shape) for tensor in layout.tensors] == [
        ("#0", (6,)),
        ("#3", (2, 3)),
        ("#4.a", (6,)),
        ("#4.b", (6,)),
    ]
    assert [(region.name, region.row_size) for region in layout.regions] == [("#0", 4), ("#3", 12), ("#4.a", 4)]
    assert all(data[region.offset : region.offset + 24] == b"x" * 24 for region in layout.regions)


def test_what_is_not_archives_throughout_is_refused(look, symbols):
    good = archive(symbols.tensor())
    assert look(good + b"between" + good) is None
    assert look(good + good[:-4] + b"xxxx") is None
    assert look(good + archive(b"N.")) is not None
    assert look(good + archive(b"R")) is None


def test_too_many_archives_are_refused(look, symbols, monkeypatch):
    monkeypatch.setattr(dcp, "_MAX_ARCHIVES", 3)
    good = archive(symbols.tensor())
    assert look(good * 3) is not None
    assert look(good * 4) is None


def test_large_pickles_are_left_out(look, symbols, monkeypatch):
    large = symbols.dictionary(a=symbols.tensor(), b=symbols.text("x" * 2**16))
    good = archive(symbols.tensor())
    data = good + archive(large) + good
    assert [tensor.name for tensor in look(data).tensors] == ["#0", "#2"]
    monkeypatch.setattr(dcp, "_MAX_PICKLES_SIZE", len(symbols.tensor()) + 50)
    assert look(data) is None


@pytest.fixture
def metadata(symbols):
    """Make a `.metadata` file of one tensor in two pieces, and of one object; parts of it can be others."""

    def size(*lengths):
        return symbols.call("torch.Size", symbols.tuple(*map(symbols.number, lengths)))

    def chunk(offsets, sizes):
        return symbols.made(f"{METADATA}.ChunkStorageMetadata", offsets=offsets, sizes=sizes)

    def make(*, root=f"{METADATA}.Metadata", second=(2, 0), index=None, where=None, name=None, chunks=None):
        if chunks is None:
            chunks = b"](" + chunk(size(0, 0), size(2, 3)) + chunk(size(*second), size(1, 3)) + b"e"
        tensor = symbols.made(f"{METADATA}.TensorStorageMetadata", size=size(3, 3), chunks=chunks)
        shapes = b"}(" + (name or symbols.text("w")) + tensor
        shapes += symbols.text("epoch") + symbols.made(f"{METADATA}.BytesStorageMetadata") + b"u"
        pieces = b"}("
        for at, offset in enumerate((size(0, 0), index or size(2, 0))):
            pieces += symbols.made(
                f"{METADATA}.MetadataIndex", fqn=symbols.text("w"), offset=offset, index=symbols.number(at)
            )
            place = {
                "relative_path": symbols.text(f"__{at}_0.distcp"),
                "offset": symbols.number(7),
                "length": symbols.number(9),
            }
            pieces += symbols.made("torch.distributed.checkpoint.filesystem._StorageInfo", **{**place, **(where or {})})
        pieces += symbols.made(f"{METADATA}.MetadataIndex", fqn=symbols.text("epoch"), offset=b"N") + b"N" + b"u"
        return b"\x80\x02" + symbols.made(root, state_dict_metadata=shapes, storage_data=pieces) + b"."

    return make


FIRST = Piece("w", (0, 0), (2, 3), "__0_0.distcp", 7, 9)


def test_metadata(metadata):
    assert read_metadata(metadata()) == [FIRST, Piece("w", (2, 0), (1, 3), "__1_0.distcp", 7, 9)]


def test_pieces_without_a_shape_are_left_out(metadata, symbols):
    assert read_metadata(metadata(second=(1, 0))) == [FIRST]
    assert read_metadata(metadata(index=b"N")) == [FIRST]
    assert read_metadata(metadata(where={"relative_path": b"N"})) == []
    assert read_metadata(metadata(name=symbols.number(5))) == []
    assert read_metadata(metadata(chunks=b"N")) == []


def test_other_metadata_is_refused(metadata, symbols):
    for data in (
        b"",
        b"N.",
        metadata()[:-1],
        metadata(root="some.Metadata"),
        metadata(where={"offset": b"N"}),
        metadata(where={"length": symbols.number(-1)}),
        metadata(index=symbols.call("torch.Size", b"N")),
        metadata(chunks=b"](Ne"),
    ):
        assert read_metadata(data) is None


def test_metadata_without_anything(symbols):
    assert read_metadata(symbols.made(f"{METADATA}.Metadata") + b".") == []
    assert read_metadata(symbols.made(f"{METADATA}.Metadata", storage_data=b"N") + b".") == []
