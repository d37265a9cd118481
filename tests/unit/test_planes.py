"""Loops over elements against slow and obvious ones: those of numpy, and the compiled ones, which do the same."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import kernels, planes

WIDTHS = (1, 2, 4, 8)
TOP_BITS = (1, 2, 4, 8)
SIZES = (0, 1, 2, 3, 7, 8, 9, 1000, 1023, 1024, 1025, 2**14 + 1, 40_000)


def compiled():
    """Return the compiled functions, None if they are not there although that is allowed."""
    try:
        return importlib.import_module("cas_checkpoint._kernels")
    except ImportError:
        if os.environ.get("CAS_CHECKPOINT_KERNELS") == "required":
            raise
        return None


KERNELS = compiled()


@pytest.fixture(params=["numpy", "compiled"])
def loops(request):
    if request.param == "numpy":
        return planes
    if KERNELS is None:
        pytest.skip("the compiled functions were not built here")
    return KERNELS


widths = pytest.mark.parametrize("width", WIDTHS)
floats = pytest.mark.parametrize("is_float", [False, True], ids=["integers", "floats"])
sizes = pytest.mark.parametrize("size", SIZES)


def test_the_compiled_functions_are_used_where_they_are_built():
    assert kernels.sums is (planes if KERNELS is None else KERNELS).sums


def test_without_them_those_of_numpy_are_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "cas_checkpoint._kernels", None)
    spec = importlib.util.spec_from_file_location("kernels_without_compiled_ones", kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [getattr(module, name) for name in module.__all__] == [getattr(planes, name) for name in module.__all__]


def random_elements(width, count, seed=0, bits=None):
    chooser = random.Random(f"{width} {count} {seed}")
    values = [chooser.randrange(1 << (8 * width if bits is None else bits)) for _ in range(count)]
    return np.array(values, f"<u{width}")


def room(width, count):
    return np.full(count, 0xAA, f"<u{width}")


# --- planes ---


@widths
@floats
@sizes
def test_planes_are_the_bytes_of_each_place_and_are_joined_again(loops, width, is_float, size):
    values = random_elements(width, size)
    found, bits = room(1, size * width), 8 * width
    loops.split(values, found, is_float)
    turned = [(int(v) << 1 | int(v) >> bits - 1) % 2**bits for v in values] if is_float else [int(v) for v in values]
    assert found.tobytes() == b"".join(bytes(v >> 8 * place & 255 for v in turned) for place in range(width))
    again = room(width, size)
    loops.join([found[place * size : (place + 1) * size] for place in range(width)], again, is_float)
    assert again.tobytes() == values.tobytes()


# --- keys ---


@widths
@floats
@sizes
def test_keys_are_the_highest_bytes_of_wide_floats_without_the_sign(loops, width, is_float, size):
    base = random_elements(width, size)
    counts = np.full(256, 7, np.int64)
    loops.key_counts(base, counts, is_float)
    assert counts.tolist() == np.bincount(keys_of(base, is_float), minlength=256).tolist()


def keys_of(base, is_float):
    width = base.itemsize
    shift = 8 * width - (9 if is_float and width > 1 else 8)
    return np.array([int(y) >> shift & 255 for y in base], np.intp)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [("<f4", 1.0, 0x7F), ("<f4", -1.0, 0x7F), ("<f4", 2.0, 0x80), ("<f2", 1.0, 0x78), ("<f8", -1.0, 0x7F)],
)
def test_the_key_of_a_float_is_its_exponent(loops, dtype, value, expected):
    base = np.array([value], dtype)
    counts = np.zeros(256, np.int64)
    loops.key_counts(base.view(f"<u{base.itemsize}"), counts, True)
    assert np.flatnonzero(counts).tolist() == [expected]


# --- differences ---


def ordered(value, bits):
    return value ^ (2**bits - 1) if value >> bits - 1 else value | 1 << bits - 1


def zigzag(value, base, bits, is_float):
    """As SPEC.md says it."""
    one, other = (ordered(value, bits), ordered(base, bits)) if is_float else (value, base)
    difference = (one - other) % 2**bits
    return 2 * difference if difference < 2 ** (bits - 1) else 2 * (2**bits - difference) - 1


def groups_of(base, is_float, count):
    """Divide the keys into so many groups; return the number for each key, and where each group begins."""
    numbers = np.minimum(np.arange(256) * count // 256, count - 1).astype(np.uint8)
    sizes = np.bincount(numbers[keys_of(base, is_float)], minlength=count)
    return numbers, (np.cumsum(sizes) - sizes).astype(np.int64)


@widths
@floats
@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 256])
@pytest.mark.parametrize("size", [0, 1, 5, 16, 1025, 2**14 + 5])
def test_differences_are_sorted_by_groups_and_added_again(loops, width, is_float, count, size):
    values, base = random_elements(width, size), random_elements(width, size, "base")
    values[::3] = base[::3]
    numbers, starts = groups_of(base, is_float, count)
    before = [array.tobytes() for array in (values, base, numbers, starts)]
    found, again = room(width, size), room(width, size)
    loops.differences(values, base, numbers, starts, found, is_float)
    order = np.argsort(numbers[keys_of(base, is_float)], kind="stable")
    columns = zip(values[order].tolist(), base[order].tolist(), strict=True)
    assert found.tolist() == [zigzag(value, other, 8 * width, is_float) for value, other in columns]
    loops.sums(found, base, numbers, starts, again, is_float)
    assert again.tobytes() == values.tobytes()
    assert before == [array.tobytes() for array in (values, base, numbers, starts)]


@widths
@pytest.mark.parametrize("shares", [[1, 0, 0, 0], [0, 0, 0, 1], [0.98, 0.01, 0.005, 0.005], [0, 0.5, 0, 0.5]])
def test_groups_may_be_large_or_small_or_empty(loops, width, shares):
    generator = np.random.default_rng(len(shares))
    keys = generator.choice(4, 5000, p=shares) * 64 + generator.integers(0, 64, 5000)
    base = (keys << 8 * (width - 1)).astype(f"<u{width}") if width < 8 else keys.astype("<u8") << np.uint64(56)
    base |= generator.integers(0, 2 ** min(8 * (width - 1), 63), 5000, dtype=np.int64).astype(base.dtype)
    values = base + generator.integers(0, 9, 5000).astype(base.dtype)
    numbers = (np.arange(256) // 64).astype(np.uint8)
    sizes = np.bincount(numbers[keys_of(base, False)], minlength=4)
    starts = (np.cumsum(sizes) - sizes).astype(np.int64)
    found, again = room(width, 5000), room(width, 5000)
    loops.differences(values, base, numbers, starts, found, False)
    order = np.argsort(numbers[keys_of(base, False)], kind="stable")
    assert found.tolist() == [2 * step for step in (values - base)[order].tolist()]
    loops.sums(found, base, numbers, starts, again, False)
    assert again.tobytes() == values.tobytes()


@widths
@pytest.mark.parametrize("number", [0, 1, 2])
def test_groups_may_have_no_keys(loops, width, number):
    values, base = random_elements(width, 2000, 1), random_elements(width, 2000, 2)
    base[::5] = 0
    numbers, starts = np.full(256, number, np.uint8), np.array([0, 0, 0] if number == 2 else [0, 0, 2000], np.int64)
    found, again = room(width, 2000), room(width, 2000)
    loops.differences(values, base, numbers, starts, found, False)
    columns = zip(values.tolist(), base.tolist(), strict=True)
    assert found.tolist() == [zigzag(value, other, 8 * width, False) for value, other in columns]
    loops.sums(found, base, numbers, starts, again, False)
    assert again.tobytes() == values.tobytes()


@widths
def test_groups_need_not_be_of_keys_next_to_one_another(loops, width):
    values, base = random_elements(width, 5000, 1), random_elements(width, 5000, 2)
    numbers = (np.arange(256) % 3).astype(np.uint8)
    sizes = np.bincount(numbers[keys_of(base, True)], minlength=3)
    starts = (np.cumsum(sizes) - sizes).astype(np.int64)
    found, again = room(width, 5000), room(width, 5000)
    loops.differences(values, base, numbers, starts, found, True)
    order = np.argsort(numbers[keys_of(base, True)], kind="stable")
    columns = zip(values[order].tolist(), base[order].tolist(), strict=True)
    assert found.tolist() == [zigzag(value, other, 8 * width, True) for value, other in columns]
    loops.sums(found, base, numbers, starts, again, True)
    assert again.tobytes() == values.tobytes()


@pytest.mark.skipif(KERNELS is None, reason="the compiled functions were not built here")
@widths
@pytest.mark.parametrize("count", [2, 16, 40])
def test_elements_that_do_not_fit_in_their_group_are_refused(width, count):
    """Whatever the starts of groups are, nothing is read or written but the arrays."""
    values, base = random_elements(width, 3000, 1), random_elements(width, 3000, 2)
    numbers, starts = groups_of(base, False, count)
    for wrong in (starts + 1, starts[::-1].copy(), np.full(count, 2990), np.full(count, 3000)):
        guarded = np.full(3000 * width + 64, 7, np.uint8)
        out = guarded[32:-32].view(f"<u{width}")
        with suppress(ValueError):
            KERNELS.differences(values, base, numbers, wrong, out, False)
        assert set(guarded[:32].tolist() + guarded[-32:].tolist()) == {7}
        with suppress(ValueError):
            KERNELS.sums(values, base, numbers, wrong, out, False)
        assert set(guarded[:32].tolist() + guarded[-32:].tolist()) == {7}
    for name in ("differences", "sums"):
        with pytest.raises(ValueError, match="do not fit"):
            getattr(KERNELS, name)(values, base, numbers, np.full(count, 2990), room(width, 3000), False)


@floats
@pytest.mark.parametrize("width", [1, 2])
def test_every_pair_of_neighbours_has_a_small_difference(loops, width, is_float):
    base = np.arange(2 ** (8 * width), dtype=np.uint64).astype(f"<u{width}")
    found = room(width, len(base))
    one = np.zeros(256, np.uint8), np.zeros(1, np.int64)
    loops.differences(base, base, *one, found, is_float)
    assert not found.any()
    loops.differences(np.roll(base, -1), base, *one, found, is_float)
    half = len(base) // 2
    rising = np.r_[0 : half - 1, half : len(base) - 1]  # the sign changes between the halves
    assert {int(z) for z in found[rising[: half - 1]]} == {2}
    assert {int(z) for z in found[rising[half - 1 :]]} == ({1} if is_float else {2})


def unaligned(values):
    """Return the same values, where their addresses are no multiples of their size."""
    memory = np.zeros(values.nbytes + 1, np.uint8)
    found = memory[1:].view(values.dtype)
    found[...] = values
    return found


@widths
def test_elements_may_lie_anywhere(loops, width):
    values, base = (unaligned(random_elements(width, 5000, seed)) for seed in ("values", "base"))
    numbers, starts = groups_of(base, True, 5)
    found, again, turned = (unaligned(room(width, 5000)) for _ in range(3))
    loops.differences(values, base, numbers, unaligned(starts), found, True)
    loops.sums(found, base, numbers, unaligned(starts), again, True)
    assert again.tobytes() == values.tobytes()
    parts = room(1, 5000 * width)
    loops.split(values, parts, True)
    loops.join(list(parts.reshape(width, -1)), turned, True)
    assert turned.tobytes() == values.tobytes()
    check_packed(loops, values, 8 * width - 3, 2)
    assert loops.measure(values, 3) == loops.measure(values.copy(), 3)


# --- values packed into bits ---


def bits_of(values, bits):
    number = sum(int(value) << bits * at for at, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


def packed(values, low_bits, top_bits):
    """Return low bits, tops, and what large ones exceed these by, as SPEC.md says it."""
    low, at, most = b"", 0, 2**top_bits - 1
    for bits in [8] * (low_bits // 8) + [bits for bits in (4, 2, 1) if low_bits & bits]:
        low += bits_of([value >> at & 2**bits - 1 for value in values], bits)
        at += bits
    tops = [value >> low_bits for value in values]
    return low, bits_of([min(top, most) for top in tops], top_bits), [top - most for top in tops if top >= most]


def check_packed(loops, values, low_bits, top_bits):
    width, count = values.itemsize, len(values)
    low, tops, large = packed(values.tolist(), low_bits, top_bits)
    found = room(1, len(low)), room(1, len(tops)), room(width, count)
    assert loops.pack(values, low_bits, top_bits, *found) == len(large)
    assert [array.tobytes() for array in found[:2]] == [low, tops]
    assert found[2][: len(large)].tolist() == large
    again = room(width, count)
    few = found[2][: len(large)]
    assert loops.unpack(found[0], found[1], few, low_bits, top_bits, again) == len(large)
    assert again.tobytes() == values.tobytes()
    assert loops.unpack(found[0], found[1], few[:-1], low_bits, top_bits, again) == len(large)
    wrong = np.flatnonzero(again != values)
    assert len(wrong) <= 1
    assert loops.unpack(found[0], found[1], room(width, count + 1), low_bits, top_bits, again) == len(large)


@widths
@pytest.mark.parametrize("top_bits", TOP_BITS)
@pytest.mark.parametrize("size", [0, 1, 3, 8, 21, 1100])
def test_values_are_packed_into_low_bits_tops_and_what_exceeds_them(loops, width, top_bits, size):
    chooser = random.Random(size)
    for low_bits in {0, *(bits for bits in (1, 2, 3, 4, 5, 6, 7, 8, 13, 23, 24, 37, 55, 56) if bits <= 8 * width - 1)}:
        small = min(8 * width, low_bits + max(1, top_bits - 1))
        values = random_elements(width, size, low_bits, bits=small)
        for at in range(0, size, 9):
            values[at] = chooser.randrange(2 ** (8 * width))
        check_packed(loops, values, low_bits, top_bits)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_values_are_packed_alike_by_all(data):
    width = data.draw(st.sampled_from(WIDTHS))
    numbers = st.integers(0, 20) | st.integers(0, 2 ** (8 * width) - 1)
    values = np.array(data.draw(st.lists(numbers, max_size=60)), f"<u{width}")
    low_bits, top_bits = data.draw(st.integers(0, 8 * width - 1)), data.draw(st.sampled_from(TOP_BITS))
    for loops in (planes, KERNELS):
        if loops is not None:
            check_packed(loops, values, low_bits, top_bits)


@widths
@pytest.mark.parametrize("top_bits", TOP_BITS)
def test_any_number_of_low_bits_is_packed(loops, width, top_bits):
    values = random_elements(width, 37)
    values[::2] >>= np.array(8 * width - 2, values.dtype)
    for low_bits in range(8 * width):
        check_packed(loops, values, low_bits, top_bits)


@widths
@pytest.mark.parametrize("top_bits", TOP_BITS)
def test_more_values_than_a_block_holds_are_packed(loops, width, top_bits):
    values = random_elements(width, 2**14 + 5, bits=min(8 * width, 12))
    for low_bits in {0, 8 * width - 8, min(11, 8 * width - 1)}:
        check_packed(loops, values, low_bits, top_bits)


@widths
@pytest.mark.parametrize("top_bits", TOP_BITS)
def test_where_large_values_are_too_few_zero_stands_for_them_and_too_many_are_not_looked_at(loops, width, top_bits):
    most, out = 2**top_bits - 1, room(width, 9)
    tops = np.frombuffer(bits_of([most, 0, most, 0, most, 0, 0, 0, 0], top_bits), np.uint8)
    for given_count in range(6):
        large = np.zeros(given_count, f"<u{width}")
        assert loops.unpack(room(1, 0), tops, large, 0, top_bits, out) == 3
        assert out.tolist() == [most, 0, most, 0, most, 0, 0, 0, 0]
    assert loops.unpack(room(1, 0), tops[:0], room(width, 2), 0, top_bits, out[:0]) == 0


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_elements_are_split_and_joined_subtracted_and_added(data):
    width, is_float = data.draw(st.sampled_from(WIDTHS)), data.draw(st.booleans())
    numbers = st.integers(0, 2 ** (8 * width) - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), max_size=60))
    values, base = (np.array([pair[at] for pair in pairs], f"<u{width}") for at in (0, 1))
    groups, starts = groups_of(base, is_float, data.draw(st.integers(1, 256)))
    order = np.argsort(groups[keys_of(base, is_float)], kind="stable")
    expected = [zigzag(*pairs[at], 8 * width, is_float) for at in order]
    for loops in (planes, KERNELS):
        if loops is None:
            continue
        parts, joined, found, again = room(1, values.nbytes), *(room(width, len(values)) for _ in range(3))
        loops.split(values, parts, is_float)
        loops.join(list(parts.reshape(width, len(values))), joined, is_float)
        assert joined.tolist() == values.tolist()
        loops.differences(values, base, groups, starts, found, is_float)
        assert found.tolist() == expected
        loops.sums(found, base, groups, starts, again, is_float)
        assert again.tolist() == values.tolist()


@widths
@pytest.mark.parametrize("step", [1, 2, 7, 5000])
@pytest.mark.parametrize("size", [0, 1, 6, 7, 3000])
def test_values_are_measured(loops, width, step, size):
    values = random_elements(width, size)
    values[::3] >>= np.array(8 * width - 3, values.dtype)
    if size > 1:
        values[-2:] = 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1
    lengths = [math.frexp(float(value))[1] for value in values[::step].tolist()]
    assert loops.measure(values, step) == (sum(lengths), sum(min(8, value) for value in values[::step].tolist()))


# --- the compiled ones and what does not fit ---

GROUPS, STARTS = np.zeros(256, np.uint8), np.zeros(1, np.int64)
TWO = (np.arange(256) // 128).astype(np.uint8)


def four(count=4):
    return np.arange(count, dtype="<u4") << 24


WRONG = {
    "split: planes too short": ("split", four(), room(1, 15), True),
    "split: planes of wide items": ("split", four(), room(2, 8), True),
    "split: not writable": ("split", four(), bytes(16), True),
    "split: items of 3 bytes": ("split", np.zeros(4, "S3"), room(1, 12), True),
    "split: two dimensions": ("split", four().reshape(2, 2), room(1, 16), True),
    "split: not contiguous": ("split", four()[::2], room(1, 8), True),
    "split: no buffer": ("split", 5, room(1, 16), True),
    "split: too few arguments": ("split", four()),
    "join: a plane too few": ("join", [room(1, 4)] * 3, four(), True),
    "join: a plane too many": ("join", [room(1, 4)] * 5, four(), True),
    "join: a plane too short": ("join", [room(1, 4)] * 3 + [room(1, 3)], four(), True),
    "join: a plane of wide items": ("join", [room(1, 4)] * 3 + [room(2, 4)], four(), True),
    "join: no sequence": ("join", 5, four(), True),
    "join: out not writable": ("join", [room(1, 4)], b"abcd", True),
    "key_counts: too few": ("key_counts", four(), np.zeros(255, np.int64), True),
    "key_counts: of 4 bytes": ("key_counts", four(), np.zeros(256, np.int32), True),
    "differences: base too short": ("differences", four(), four(3), GROUPS, STARTS, four(), True),
    "differences: base of another width": ("differences", four(), room(2, 4), GROUPS, STARTS, four(), True),
    "differences: out too short": ("differences", four(), four(), GROUPS, STARTS, four(3), True),
    "differences: too few groups": ("differences", four(), four(), GROUPS[1:], STARTS, four(), True),
    "differences: no starts": ("differences", four(), four(), GROUPS, STARTS[:0], four(), True),
    "differences: 257 starts": ("differences", four(), four(), GROUPS, np.zeros(257, np.int64), four(), True),
    "differences: a group without a start": ("differences", four(), four(), TWO, STARTS, four(), True),
    "differences: one group that does not begin": ("differences", four(), four(), GROUPS, STARTS + 1, four(), True),
    "differences: beyond the end": ("differences", four(), four(), TWO, np.array([1, 4]), four(), False),
    "differences: far beyond": ("differences", four(), four(), TWO, np.array([2**40, 0]), four(), False),
    "differences: before the beginning": ("differences", four(), four(), TWO, np.array([-1, 0]), four(), False),
    "sums: found too short": ("sums", four(3), four(), GROUPS, STARTS, four(), True),
    "sums: beyond the end": ("sums", four(), four(), TWO, np.array([1, 4]), four(), False),
    "measure: no step": ("measure", four(), 0),
    "measure: a step back": ("measure", four(), -1),
    "measure: items of 3 bytes": ("measure", np.zeros(4, "S3"), 1),
    "pack: all bits low": ("pack", four(), 32, 8, room(1, 16), room(1, 4), four()),
    "pack: fewer than no low bits": ("pack", four(), -1, 8, room(1, 0), room(1, 4), four()),
    "pack: tops of 3 bits": ("pack", four(), 0, 3, room(1, 0), room(1, 2), four()),
    "pack: low bits too short": ("pack", four(), 8, 8, room(1, 3), room(1, 4), four()),
    "pack: tops too long": ("pack", four(), 0, 4, room(1, 0), room(1, 3), four()),
    "pack: no room for large ones": ("pack", four(), 0, 4, room(1, 0), room(1, 2), four(3)),
    "pack: large ones of another width": ("pack", four(), 0, 4, room(1, 0), room(1, 2), room(2, 4)),
    "unpack: tops too short": ("unpack", room(1, 0), room(1, 1), four(), 0, 4, four()),
    "unpack: low bits too long": ("unpack", room(1, 1), room(1, 2), four(), 0, 4, four()),
    "unpack: large ones of another width": ("unpack", room(1, 0), room(1, 2), room(8, 1), 0, 4, four()),
}


@pytest.mark.skipif(KERNELS is None, reason="the compiled functions were not built here")
@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_the_compiled_ones_refuse_what_does_not_fit(case):
    name, *arguments = case
    with pytest.raises((ValueError, TypeError, BufferError)):
        getattr(KERNELS, name)(*arguments)
