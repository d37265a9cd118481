"""The headers of numpy's files, and archives of them."""

import io
import zipfile

import numpy as np
import pytest

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors.layout import Region, Tensor


def make(header, size=24, version=1, magic=b"\x93NUMPY"):
    header = header.encode()
    return magic + bytes((version, 0)) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + bytes(size)


def text(descr="<f4", order="False", shape="(2, 3)"):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}   \n"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_array(look, version):
    data = make(text(), version=version)
    start = len(data) - 24
    region = Region(start, 24, ELEMENTS["float32"], 12, "array")
    assert look(data) == ("npy", (region,), (Tensor("array", "float32", (2, 3), (3, 1), start),))


def test_an_array_in_fortran_order(look):
    data = make(text(order="True"))
    start = len(data) - 24
    region = Region(start, 24, ELEMENTS["float32"], 8, "array")
    assert look(data) == ("npy", (region,), (Tensor("array", "float32", (2, 3), (1, 2), start),))


@pytest.mark.parametrize(
    ("descr", "dtype"), [("|b1", "bool"), ("|i1", "int8"), ("<u2", "uint16"), ("<f8", "float64"), ("<c8", "complex64")]
)
def test_types(look, descr, dtype):
    count = 24 // int(descr[2:])
    layout = look(make(text(descr, shape=f"({count},)")))
    assert layout.tensors[0][1:3] == (dtype, (count,))
    assert layout.regions[0].elements == ELEMENTS[dtype]


def test_bytes_of_no_type_have_a_region(look):
    layout = look(make(text("|V2", shape="(4, 3)")))
    assert layout.tensors == ()
    assert layout.regions[0][1:] == (24, Elements(2, is_float=False), 6, "array")


@pytest.mark.parametrize(
    "data",
    [
        make(text(">f4")),
        make(text("|O")),
        make(text("<U6", shape="()")),
        make(text("|V3")),
        make(text("<f3", shape="(2, 4)")),
        make(text("<x4")),
        make(text("<b4")),
        make(text("<f16", shape="(1,)"), size=16),
        make(text(), size=23),
        make(text(), size=25),
        make(text(shape="(9223372036854775808, 0)"), size=0),
        make(text(shape="(2, -3)")),
        make(text(shape="[2, 3]")),
        make("{}"),
        make(text() + " " * 2**17, version=2),
        make(text(), version=0),
        make(text(), version=4),
        make(text())[:40],
    ],
)
def test_other_arrays_are_refused(look, data):
    assert look(data) is None


def archive(*members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return file.getvalue()


def test_an_archive_of_arrays(look):
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    data = archive(
        ("a.npy", make(text())), ("note.txt", b"x"), ("bad.npy", b"x" * 50), ("b.npy", make(text("<f8", shape="3,")))
    )
    layout = look(data)
    assert layout.container == "npz"
    assert [tensor.name for tensor in layout.tensors] == ["a"]
    file = io.BytesIO()
    np.savez(file, a=array, compressed=array)
    layout = look(file.getvalue())
    for tensor in layout.tensors:
        assert file.getvalue()[tensor.offset : tensor.offset + 24] == array.tobytes()


def test_compressed_arrays_are_left_out(look):
    assert look(archive(("a.npy", make(text())), compression=zipfile.ZIP_DEFLATED)) is None


def test_an_archive_without_arrays(look):
    assert look(archive(("note.txt", b"some text"))) is None
