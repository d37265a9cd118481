"""What a reader finds: names, regions and tensors that are sound."""

import pytest

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors import found as module
from cas_checkpoint.tensors.found import Found, Unreadable, bounded, dense_strides, item_size, take, to_shape
from cas_checkpoint.tensors.layout import Region, Tensor

OPAQUE = Elements(1, is_float=False)


def read(offset, size):
    return bytes(range(100))[offset : offset + size]


def test_take_returns_just_so_many_bytes():
    assert take(read, 98, 2) == b"\x62\x63"
    for offset, size in ((98, 3), (-1, 1), (0, -1), (0, 2**24 + 1)):
        with pytest.raises(Unreadable):
            take(read, offset, size)


@pytest.mark.parametrize(("limit", "value"), [("_MAX_READS", 3), ("_MAX_READ_SIZE", 30)])
def test_a_container_may_not_ask_for_too_much(monkeypatch, limit, value):
    monkeypatch.setattr(module, limit, value)
    checked = bounded(read)
    for at in range(3):
        assert checked(at, 10) == read(at, 10)
    with pytest.raises(Unreadable):
        checked(0, 10)


def test_item_sizes():
    assert [item_size(name) for name in ("uint8", "bfloat16", "complex64", "complex128")] == [1, 2, 8, 16]


@pytest.mark.parametrize("lengths", [None, "12", 3, [1, -1], [True], [1.0], [2**63], [1] * 65])
def test_what_is_no_shape(lengths):
    with pytest.raises(Unreadable):
        to_shape(lengths)


def test_shapes():
    assert to_shape([3, 0, 2**63 - 1]) == (3, 0, 2**63 - 1)
    assert to_shape(()) == ()


def test_dense_strides():
    assert dense_strides((2, 3, 4)) == (12, 4, 1)
    assert dense_strides((2, 0, 4)) == (4, 4, 1)
    assert dense_strides(()) == ()


def test_names_are_unique():
    found = Found("npz", 100)
    names = [found.name(name) for name in ("a", "a", "a~2", "a", "a~2", "b", "a" * 600, "a" * 600, "\ud800")]
    assert names == ["a", "a~2", "a~2~2", "a~3", "a~2~3", "b", "a" * 512, "a" * 512 + "~2", "?"]


def test_too_many_names(monkeypatch):
    monkeypatch.setattr(module, "MAX_TENSORS", 2)
    found = Found("npz", 100)
    found.name("a")
    found.name("b")
    with pytest.raises(Unreadable):
        found.name("c")


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "end"),
    [
        ((5,), (1,), 81, None),
        ((5,), (1,), 31, 50),
        ((2, 2), (1000, 1), 0, None),
        ((0,), (1,), 101, None),
        ((), (), 97, None),
        ((2**40, 2**40), (0, 0), 0, None),
    ],
)
def test_a_tensor_that_lies_outside_or_is_too_large(shape, strides, offset, end):
    with pytest.raises(Unreadable):
        Found("torch", 100).add_tensor(Tensor("a", "float32", shape, strides, offset), end=end)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "end"),
    [((5,), (1,), 80, None), ((5,), (1,), 30, 50), ((0, 3), (9, 9), 100, None), ((1000,), (0,), 96, None)],
)
def test_a_tensor_that_lies_inside(shape, strides, offset, end):
    found = Found("torch", 100)
    tensor = Tensor("a", "float32", shape, strides, offset)
    found.add_tensor(tensor, end=end)
    assert found.layout() == ("torch", (), (tensor,))


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (99, 2), (5, -1)])
def test_a_region_that_lies_outside(offset, size):
    with pytest.raises(Unreadable):
        Found("npy", 100).add_region("a", offset, size)


@pytest.mark.parametrize(
    ("size", "row_size", "expected"),
    [
        (24, 8, (ELEMENTS["float32"], 8)),
        (24, None, (ELEMENTS["float32"], 4)),
        (24, 0, (ELEMENTS["float32"], 4)),
        (24, 16, (ELEMENTS["float32"], 4)),
        (24, 6, (ELEMENTS["float32"], 4)),
        (22, 11, (OPAQUE, 11)),
        (22, 4, (OPAQUE, 1)),
    ],
)
def test_rows_and_elements_fill_a_region(size, row_size, expected):
    found = Found("npy", 100)
    found.add_region("a", 10, size, ELEMENTS["float32"], row_size)
    assert found.layout().regions == (Region(10, size, *expected, "a"),)


def test_regions_are_sorted_and_of_those_that_overlap_the_first_stays():
    found = Found("npy", 100)
    for name, offset, size in (("d", 60, 40), ("a", 0, 20), ("b", 10, 30), ("c", 20, 40), ("empty", 30, 0)):
        found.add_region(name, offset, size)
    assert [region.name for region in found.layout().regions] == ["a", "c", "d"]


def test_nothing_found():
    assert Found("npy", 100).layout() is None
