"""What `torch.save` writes, by hand: tensors, views, odd calls, and damage."""

import io
import zipfile

import pytest

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors.found import Unreadable
from cas_checkpoint.tensors.layout import Region, Tensor
from cas_checkpoint.tensors.torchfiles import find_in_archive
from cas_checkpoint.tensors.zips import Archive

FLOAT = ELEMENTS["float32"]


def make(value, *, order=b"little", storages=None, prefix="archive", compression=zipfile.ZIP_STORED):
    """Return an archive of the opcodes of a value; its storage 0 has 24 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        zipped.writestr(f"{prefix}/data.pkl", b"\x80\x02" + value + b".")
        if order is not None:
            zipped.writestr(f"{prefix}/byteorder", order)
        for key, content in ({"0": b"x" * 24} if storages is None else storages).items():
            zipped.writestr(f"{prefix}/data/{key}", content)
    return file.getvalue()


def storage_at(data, content=b"x" * 24):
    return data.index(content)


@pytest.mark.parametrize("order", [b"little", None])
def test_a_tensor(look, symbols, order):
    data = make(symbols.dictionary(w=symbols.tensor((2, 3), (3, 1))), order=order)
    start = storage_at(data)
    region = Region(start, 24, FLOAT, 12, "w")
    assert look(data) == ("torch", (region,), (Tensor("w", "float32", (2, 3), (3, 1), start),))


def test_names_are_the_ways_to_the_tensors(look, symbols):
    tensor = symbols.tensor()
    value = symbols.dictionary(
        model=symbols.dictionary(a=tensor),
        states=symbols.tuple(tensor, b"K\1", b"](" + tensor + b"Ne"),
        object=symbols.made("some.Thing", b=tensor, n=b"N"),
        called=symbols.call("some.call", tensor, symbols.tuple()),
    )
    value += b"(" + b"K\5" + tensor + b"\x88" + tensor + b"K\1K\2\x86" + tensor + b"NNu"
    names = [tensor.name for tensor in look(make(value)).tensors]
    assert names == [
        *("model.a", "states.0", "states.2.0", "object.b", "called.0"),
        *("5", "True", "6"),  # a key without a name counts by its place
    ]


def test_an_object_with_slots(look, symbols):
    tensor = symbols.tensor()
    state = symbols.tuple(symbols.dictionary(a=tensor), symbols.dictionary(b=tensor))
    value = symbols.named("some.Thing") + b")\x81" + state + b"b"
    assert [tensor.name for tensor in look(make(value)).tensors] == ["a", "b"]


def test_tensors_of_one_storage_share_a_region(look, symbols):
    tensor = symbols.tensor
    value = symbols.dictionary(a=tensor((3,), (2,), 1), b=tensor((2, 3), (3, 1)), c=tensor((3, 2), (1, 3)))
    data = make(value)
    start = storage_at(data)
    layout = look(data)
    assert layout.regions == (Region(start, 24, FLOAT, 4, "a"),)
    assert [tensor[1:] for tensor in layout.tensors] == [
        ("float32", (3,), (2,), start + 4),
        ("float32", (2, 3), (3, 1), start),
        ("float32", (3, 2), (1, 3), start),
    ]


@pytest.mark.parametrize(
    ("shape", "strides", "row_size"),
    [
        ((2, 3), (3, 1), 12),
        ((3, 2), (1, 3), 4),
        ((5,), (1,), 4),
        ((6,), (1,), 4),
        ((1, 6), (6, 1), 24),
        ((2, 2), (2, 1), 4),
    ],
)
def test_rows_are_those_of_a_tensor_that_fills_its_storage(look, symbols, shape, strides, row_size):
    layout = look(make(symbols.dictionary(a=symbols.tensor(shape, strides))))
    assert layout.regions[0].row_size == row_size


def test_a_collection_that_is_reached_twice_counts_once(look, symbols):
    value = symbols.dictionary(a=symbols.dictionary(w=symbols.tensor()) + b"q\7", b=b"h\7")
    assert [tensor.name for tensor in look(make(value)).tensors] == ["a.w"]
    cyclic = b"]q\1(h\1" + symbols.tensor() + b"e"
    assert [tensor.name for tensor in look(make(cyclic)).tensors] == ["1"]


def test_a_tensor_that_is_reached_twice_has_two_names(look, symbols):
    value = symbols.dictionary(a=symbols.tensor() + b"q\7", b=b"h\7")
    layout = look(make(value))
    assert [tensor.name for tensor in layout.tensors] == ["a", "b"]
    assert [region.name for region in layout.regions] == ["a"]


def test_what_lies_too_deep_is_not_found(look, symbols):
    assert look(make(b"(" * 90 + symbols.tensor() + b"t" * 90)) is not None
    assert look(make(b"(" * 110 + symbols.tensor() + b"t" * 110)) is None


def wrapped(symbols, depth, tensor):
    for _ in range(depth):
        tensor = symbols.call("torch._utils._rebuild_parameter", tensor, b"\x88", b"N")
    return tensor


def test_parameters_and_tensors_of_some_class(look, symbols):
    numbers = (
        symbols.number(0),
        symbols.call("torch.Size", symbols.tuple(symbols.number(6))),
        symbols.tuple(symbols.number(1)),
    )
    arguments = symbols.tuple(symbols.storage(), *numbers, b"\x89", b"N")
    typed = symbols.call(
        "torch._tensor._rebuild_from_type_v2",
        *(symbols.named("torch._utils._rebuild_tensor_v2"), symbols.named("some.Tensor"), arguments, b"}"),
    )
    value = symbols.dictionary(a=wrapped(symbols, 1, symbols.tensor()), b=typed, c=wrapped(symbols, 3, typed))
    value += b"(" + symbols.text("d") + symbols.tensor(call="_rebuild_tensor") + b"u"
    assert [tensor[:3] for tensor in look(make(value)).tensors] == [(name, "float32", (6,)) for name in "abcd"]


def test_wrappers_without_end_are_not_followed(look, symbols):
    assert look(make(wrapped(symbols, 7, symbols.tensor()))).tensors[0].name == "#0"
    layout = look(make(wrapped(symbols, 9, symbols.tensor())))
    assert layout.tensors[0].name == "0.0"  # it is found, as an argument of a call


@pytest.mark.parametrize(("kind", "dtype"), [("torch.float8_e5m2", "float8_e5m2"), ("torch.half", "float16")])
def test_a_tensor_that_tells_its_type(look, symbols, kind, dtype):
    storage = symbols.storage("storage.UntypedStorage")
    value = symbols.tensor((6,), (1,), 2, storage, "_rebuild_tensor_v3", symbols.named(kind))
    data = make(value)
    start = storage_at(data)
    width = ELEMENTS[dtype].width
    assert look(data) == (
        "torch",
        (Region(start, 24, ELEMENTS[dtype], width, "#0"),),
        (Tensor("#0", dtype, (6,), (1,), start + 2 * width),),
    )


@pytest.mark.parametrize("kind", ["torch.float4_e2m1fn_x2", "torch.bits8"])
def test_a_type_without_a_name_here_has_a_region_only(look, symbols, kind):
    storage = symbols.storage("storage.UntypedStorage")
    value = symbols.tensor((6,), (1,), 0, storage, "_rebuild_tensor_v3", symbols.named(kind))
    data = make(value)
    assert look(data) == ("torch", (Region(storage_at(data), 24, Elements(1, is_float=False), 1, "#0"),), ())


def test_a_quantized_storage_has_a_region_only(look, symbols):
    layout = look(make(symbols.dictionary(q=symbols.tensor(storage=symbols.storage("QInt8Storage")))))
    assert layout.tensors == ()
    assert layout.regions[0].elements == (1, False)


def test_empty_tensors(look, symbols):
    data = make(symbols.dictionary(a=symbols.tensor((0, 3), (3, 1))), storages={"0": b""})
    layout = look(data)
    assert layout.regions == ()
    assert [tensor[:4] for tensor in layout.tensors] == [("a", "float32", (0, 3), (3, 1))]


def refused(symbols):
    tensor = symbols.tensor
    good = tensor()
    numbers = (symbols.number(0), symbols.tuple(symbols.number(6)), symbols.tuple(symbols.number(1)))
    yield "no tensor", make(symbols.dictionary(a=b"K\1"))
    yield "big-endian", make(good, order=b"big")
    yield "a damaged pickle", make(good[:-1])
    yield "no storage", make(good, storages={})
    yield "another storage", make(good, storages={"1": bytes(24)})
    yield "a compressed pickle", make(good, compression=zipfile.ZIP_DEFLATED)
    yield "beyond its storage", make(tensor((7,), (1,)))
    yield "an offset beyond its storage", make(tensor((6,), (1,), 1))
    yield "strides beyond its storage", make(tensor((2, 3), (4, 1)))
    yield "too few strides", make(tensor((2, 3), (1,)))
    yield "a negative offset", make(tensor((1,), (1,), -1))
    yield "a negative length", make(tensor((-1,), (1,)))
    yield "a negative stride", make(tensor((2,), (-1,)))
    yield "a shape that is none", make(symbols.call("torch._utils._rebuild_tensor_v2", symbols.storage(), b"K\0NN"))
    yield "deep", make(good, prefix="a/b")
    for name, storage in {
        "a storage that is none": b"N",
        "another persistent value": symbols.tuple(symbols.text("other"), b"N", symbols.text("0")) + b"Q",
        "a storage without a key": symbols.tuple(symbols.text("storage"), symbols.named("torch.FloatStorage")) + b"Q",
    }.items():
        yield name, make(symbols.call("torch._utils._rebuild_tensor_v2", storage, *numbers))
        yield name, make(symbols.call("torch._utils._rebuild_tensor_v3", storage, *numbers))
    yield "no arguments", make(symbols.named("torch._utils._rebuild_tensor_v2") + b"NR")
    yield "a parameter of nothing", make(symbols.call("torch._utils._rebuild_parameter"))
    yield "a tensor of some class of nothing", make(symbols.call("torch._tensor._rebuild_from_type_v2", b"N", b"N"))


def test_other_saves_are_refused(look, symbols):
    for name, data in refused(symbols):
        assert look(data) is None, name


def test_another_archive_is_refused():
    with pytest.raises(Unreadable):
        find_in_archive(lambda _offset, _size: b"", 0, Archive(0, 0, {}))


def test_a_large_state_takes_little_time(look, symbols):
    """Pickles of many tensors, keys of many characters, and lists of many values."""
    tensor = symbols.tensor() + b"q\1"
    many = symbols.dictionary(a=tensor) + b"(" + b"".join(symbols.text(f"n{at}") + b"h\1" for at in range(5000)) + b"u"
    assert len(look(make(many)).tensors) == 5001
    value = b"(" + symbols.text("x" * 2**20) + b"q\2" + tensor + b"h\2" + b"h\1d"
    names = [tensor.name for tensor in look(make(value)).tensors]
    assert names == ["x" * 512, "x" * 512 + "~2"]
