"""Elements and their planes, against what plain Python makes of them, byte by byte."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.planes import (
    as_elements,
    differences,
    exponents,
    grouped,
    join,
    packed,
    rotated,
    rotated_back,
    split,
    sums,
    ungrouped,
    unpacked,
)

WIDTHS = [1, 2, 4, 8]
widths = pytest.mark.parametrize("width", WIDTHS)
kinds = pytest.mark.parametrize("is_float", [False, True], ids=["integers", "floats"])


def elements(data, width):
    """The elements as Python's integers."""
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data) // width * width, width)]


def of_width(values, width):
    return np.array(values, f"<u{width}")


def place_of(value, width):
    """Where a float stands among all floats, told from its bits: below zero, more bits are less."""
    top = 1 << (8 * width - 1)
    return top | value if value < top else 2 * top - 1 - value


def zigzag(difference, width):
    """0, -1, 1, -2 and so on become 0, 1, 2, 3; the difference is modulo 2 to the width."""
    top = 1 << (8 * width - 1)
    signed = (difference + top) % (2 * top) - top
    return 2 * signed if signed >= 0 else -2 * signed - 1


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def numbers(width):
    top = 256**width
    edges = [0, 1, 2, top // 2 - 1, top // 2, top // 2 + 1, top - 2, top - 1]
    return st.lists(st.integers(0, top - 1) | st.sampled_from(edges), max_size=20)


@widths
@pytest.mark.parametrize("size", [*range(18), 100, 257])
def test_elements_are_little_endian_and_leave_over_what_is_no_element(width, size):
    data = noise(size)
    assert as_elements(memoryview(data), width).tolist() == elements(data, width)


@widths
@settings(deadline=None)
@given(data=st.data())
def test_planes_are_the_bytes_of_each_place_and_are_joined_again(width, data):
    values = of_width(data.draw(numbers(width)), width)
    planes = split(values)
    plain = values.tobytes()
    assert [plane.tobytes() for plane in planes] == [plain[place::width] for place in range(width)]
    assert {plane.dtype for plane in planes} == {np.dtype(np.uint8)}
    joined = join(planes)
    assert joined.dtype == values.dtype
    assert joined.tolist() == values.tolist()


@widths
def test_joined_elements_are_no_view_of_a_plane(width):
    planes = split(of_width([7] * 5, width))
    join(planes)[:] = 0
    assert planes[0].tolist() == [7] * 5


@widths
@settings(deadline=None)
@given(data=st.data())
def test_rotation_puts_the_highest_bit_lowest_and_is_undone(width, data):
    values = data.draw(numbers(width))
    found = rotated(of_width(values, width))
    assert found.tolist() == [value * 2 % 256**width + (value >> (8 * width - 1)) for value in values]
    assert rotated_back(found).tolist() == values


@kinds
@widths
@settings(deadline=None)
@given(data=st.data())
def test_differences_are_small_near_the_base_in_both_directions_and_are_undone(width, is_float, data):
    pairs = data.draw(numbers(width)), data.draw(numbers(width))
    count = min(map(len, pairs))
    values, base = (part[:count] for part in pairs)
    found = differences(of_width(values, width), of_width(base, width), is_float=is_float)
    places = [[place_of(value, width) if is_float else value for value in part] for part in (values, base)]
    assert found.tolist() == [zigzag(one - other, width) for one, other in zip(*places, strict=True)]
    assert sums(found.copy(), of_width(base, width), is_float=is_float).tolist() == values


@widths
def test_neither_values_nor_base_are_changed(width):
    values, base = (as_elements(memoryview(noise(64, seed)), width) for seed in (1, 2))
    kept = values.tobytes(), base.tobytes()
    for is_float in (False, True):
        found = differences(values, base, is_float=is_float)
        sums(found, base, is_float=is_float)
        exponents(base, is_float=is_float)
        rotated(values)
        split(values)
    assert (values.tobytes(), base.tobytes()) == kept


def test_steps_between_floats_are_steps_of_their_differences():
    steps = np.array([-1.0, np.nextafter(np.float32(-1), 0), -0.0, 0.0, 1e-45, 1.0], np.float32).view("<u4")
    found = differences(steps[1:], steps[:-1], is_float=True).tolist()
    assert found[0] == found[2] == 2  # the next one up, also across zero
    assert found[3] == 2
    assert differences(steps[:-1], steps[1:], is_float=True).tolist() == [step - 1 for step in found]


@pytest.mark.parametrize(
    ("dtype", "is_float", "value", "expected"),
    [
        ("<f8", True, -1.0, 0x7F),
        ("<f4", True, -1.0, 0x7F),  # the exponent of a float32, without the sign
        ("<f4", True, 2.0, 0x80),
        ("<f2", True, -1.0, 0x78),
        ("<u8", False, 0xFE << 56, 0xFE),
        ("<u4", False, 0x80000000, 0x80),
        ("<u2", False, 0x1234, 0x12),
        ("<u1", False, 0x91, 0x91),
        ("<u1", True, 0x91, 0x91),
    ],
)
def test_differences_are_ordered_by_the_highest_byte_of_the_base_without_a_sign(dtype, is_float, value, expected):
    base = np.array([value], dtype)
    assert exponents(base.view(f"<u{base.itemsize}"), is_float=is_float).tolist() == [expected]


@kinds
@widths
def test_what_orders_is_the_highest_byte_of_the_rotated_base(width, is_float):
    base = as_elements(memoryview(noise(200)), width)
    turned = rotated(base) if is_float and width > 1 else base
    assert exponents(base, is_float=is_float).tolist() == split(turned)[-1].tolist()


@widths
@pytest.mark.parametrize("count", [0, 1, 2, 300, 2**16 - 1, 2**16, 2**16 + 1, 150_000])
@pytest.mark.parametrize("different", [1, 3, 256])
def test_grouped_values_are_sorted_by_their_keys_and_go_back(width, count, different):
    values = as_elements(memoryview(noise(count * width)), width)
    keys = (np.frombuffer(noise(count, seed=1), np.uint8).astype(int) % different).astype(np.uint8)
    found = grouped(values, keys, np.empty_like(values))
    assert found.tolist() == values[np.argsort(keys, kind="stable")].tolist()
    assert ungrouped(found, keys, np.empty_like(values)).tolist() == values.tolist()


@pytest.mark.parametrize("bits", [2, 4])
@settings(deadline=None)
@given(data=st.data())
def test_small_values_are_packed_from_the_lowest_bits_and_large_ones_are_kept_apart(bits, data):
    largest = 2**bits - 1
    values = data.draw(st.lists(st.integers(0, largest + 1) | st.integers(0, 255), max_size=50))
    small, large = packed(np.array(values, np.uint8), bits)
    assert large.tolist() == [value for value in values if value >= largest]
    number = sum(min(value, largest) << (bits * place) for place, value in enumerate(values))
    assert small.tobytes() == number.to_bytes(-(-len(values) * bits // 8), "little")
    assert unpacked(small, bits, len(values)).tolist() == [min(value, largest) for value in values]
