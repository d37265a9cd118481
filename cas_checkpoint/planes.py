"""Loops over elements, as numpy does them: planes, differences, and values packed into bits (SPEC.md, section 6).

Arrays of elements are of unsigned integers of 1, 2, 4 or 8 bytes, little-endian. Results go to memory of the caller's:
fresh pages cost more than all the arithmetic. `kernels` has the same functions, compiled where that is possible; both
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cas_checkpoint.lazynumpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Elements = NDArray[np.unsignedinteger[Any]]

__all__ = ["KEYS", "differences", "join", "key_counts", "low_size", "measure", "pack", "split", "sums", "unpack"]

KEYS = 256
"""A key of an element is below that."""

_SORTED_AT_ONCE = 2**14  # elements; the order of more would be in memory that the system takes back each time
_BLOCK_SIZE = 2**18  # bytes; with what is made of it, it stays in a processor's cache
_LOW_PARTS = (4, 2, 1)  # bits
_SMALL = 8


def _blocks(values: Elements) -> Iterator[slice]:
    """Yield the parts of an array to work on one after another."""
    count = _BLOCK_SIZE // values.itemsize
    return (slice(start, start + count) for start in range(0, len(values), count))


# --- planes -------------------------------------------------------------------------------------


def _rotated(values: Elements) -> Elements:
    """Rotate each element left by one bit: the sign becomes the lowest bit, and the exponent the highest ones."""
    found: Elements = np.right_shift(values, 8 * values.itemsize - 1)
    np.bitwise_or(found, np.left_shift(values, 1), out=found)
    return found


def _rotate_back(values: Elements) -> None:
    """Rotate each element right by one bit."""
    sign = np.left_shift(values, 8 * values.itemsize - 1)
    np.right_shift(values, 1, out=values)
    np.bitwise_or(values, sign, out=values)


def split(values: Elements, planes: Bytes, is_float: bool, /) -> None:
    """Put the lowest bytes of all elements together, then the next ones, and so on.

    Args:
        values: n elements of w bytes.
        planes: n w bytes, where they are put to.
        is_float: rotate each element left by one bit before.
    """
    count = len(values)
    for at in _blocks(values):
        part = _rotated(values[at]) if is_float else values[at]
        shifted = np.empty_like(part)
        for number in range(part.itemsize):
            np.right_shift(part, 8 * number, out=shifted)
            planes[number * count : (number + 1) * count][at] = shifted


def join(planes: Sequence[Bytes], out: Elements, is_float: bool, /) -> None:
    """Undo `split`: put the elements of w planes of n bytes each, the lowest first, into `out`."""
    for at in _blocks(out):
        part = out[at]
        part[...] = planes[-1][at]
        for plane in reversed(planes[:-1]):
            np.left_shift(part, 8, out=part)
            np.bitwise_or(part, plane[at], out=part)
        if is_float:
            _rotate_back(part)


# --- differences --------------------------------------------------------------------------------


def _signed(values: Elements) -> NDArray[Any]:
    return values.view(f"<i{values.itemsize}")


def _ordered(values: Elements) -> Elements:
    """Map the bits of floats to integers of the same order; its own inverse but for the highest bit."""
    bits = 8 * values.itemsize - 1
    found: Elements = np.right_shift(_signed(values), bits).view(values.dtype)
    np.bitwise_or(found, values.dtype.type(1 << bits), out=found)
    np.bitwise_xor(found, values, out=found)
    return found


def _unordered(values: Elements) -> None:
    """Undo `_ordered`, in its own memory."""
    bits = 8 * values.itemsize - 1
    mask = np.right_shift(_signed(values), bits).view(values.dtype)
    np.invert(mask, out=mask)
    np.bitwise_or(mask, values.dtype.type(1 << bits), out=mask)
    np.bitwise_xor(values, mask, out=values)


def _keys(base: Elements, is_float: bool) -> Bytes:
    """Return for each element its highest byte, of wide floats without the sign."""
    bits = 8 * base.itemsize - 8
    return np.right_shift(base, bits - 1 if is_float and bits else bits).astype(np.uint8) if bits else base


def key_counts(base: Elements, counts: NDArray[np.int64], is_float: bool, /) -> None:
    """Count how often each key occurs, into `counts`, which has `KEYS` places.

    The key of an element is its highest byte; of floats of more than a byte, that of the element rotated left by a bit.
    """
    counts[...] = 0
    for at in _blocks(base):
        counts += np.bincount(_keys(base[at], is_float), minlength=KEYS)


def differences(
    values: Elements,
    base: Elements,
    groups: Bytes,
    starts: NDArray[np.int64],
    out: Elements,
    is_float: bool,
    /,
) -> None:
    """Put into `out` how far each element is from that of the base: zigzag, so small in both directions.

    Args:
        values: n elements.
        base: likewise.
        groups: for each key the number of its group.
        starts: for each group, where in `out` its first difference belongs; the others follow it in their order.
        out: n elements.
        is_float: whether the elements are floats.
    """
    for at, runs in _runs(base, groups, starts, is_float):
        one, other = values[at], base[at]
        found = np.subtract(*((_ordered(one), _ordered(other)) if is_float else (one, other)))
        signs = np.right_shift(_signed(found), 8 * found.itemsize - 1).view(found.dtype)
        np.left_shift(found, 1, out=found)
        np.bitwise_xor(found, signs, out=found)
        if runs is None:
            out[at] = found
            continue
        found = found[runs[0]]
        for low, high, place in runs[1]:
            out[place : place + high - low] = found[low:high]


def sums(
    found: Elements,
    base: Elements,
    groups: Bytes,
    starts: NDArray[np.int64],
    out: Elements,
    is_float: bool,
    /,
) -> None:
    """Undo `differences`: put the elements into `out` whose differences are `found`."""
    for at, runs in _runs(base, groups, starts, is_float):
        part, other = out[at], base[at]
        if runs is None:
            part[...] = found[at]
        else:
            gathered = np.empty(len(part), part.dtype)
            for low, high, place in runs[1]:
                gathered[low:high] = found[place : place + high - low]
            part[runs[0]] = gathered
        signs = np.bitwise_and(part, part.dtype.type(1))
        np.negative(_signed(signs), out=_signed(signs))
        np.right_shift(part, 1, out=part)
        np.bitwise_xor(part, signs, out=part)
        np.add(part, _ordered(other) if is_float else other, out=part)
        if is_float:
            _unordered(part)


def _runs(
    base: Elements,
    groups: Bytes,
    starts: NDArray[np.int64],
    is_float: bool,
) -> Iterator[tuple[slice, tuple[NDArray[np.intp], list[tuple[int, int, int]]] | None]]:
    """Divide elements into blocks, and these by their groups.

    Yields:
        Where a block lies; and, unless there is one group only, the order of its elements by their groups, and, for
        each group in it, where in that order those of the group begin and end, and where they belong.
    """
    if len(starts) == 1:
        yield from ((at, None) for at in _blocks(base))
        return
    places = starts.copy()
    for start in range(0, len(base), _SORTED_AT_ONCE):
        at = slice(start, start + _SORTED_AT_ONCE)
        numbers = groups[_keys(base[at], is_float)]
        counts = np.bincount(numbers, minlength=len(starts))
        ends, seen = np.cumsum(counts), np.flatnonzero(counts)
        columns = (ends - counts)[seen], ends[seen], places[seen]
        order = np.argsort(numbers, kind="stable")
        yield at, (order, list(zip(*(column.tolist() for column in columns), strict=True)))
        places += counts


# --- values packed into bits ----------------------------------------------------------------------


def measure(values: Elements, step: int, /) -> tuple[int, int]:
    """Look at every value after so many.

    Returns:
        The sum of their lengths, each in bits from its highest one on, of a float64 that is nearest to it; and the sum
        of what is small of them, of each at most 8.
    """
    sample = values[::step]
    return int(np.frexp(sample.astype(np.float64))[1].sum()), int(np.minimum(sample, _SMALL).sum(dtype=np.int64))


def low_size(count: int, low_bits: int) -> int:
    """Return the bytes that so many low bits of so many values are packed into."""
    return low_bits // 8 * count + sum(-(-count * bits // 8) for bits in _LOW_PARTS if low_bits & bits)


def pack(values: Elements, low_bits: int, top_bits: int, low: Bytes, top: Bytes, large: Elements, /) -> int:
    """Divide values into their lowest bits, small tops, and what the tops of large values exceed these by.

    Args:
        values: n elements.
        low_bits: how many lowest bits go to `low`.
        top_bits: 1, 2, 4 or 8: the bits of a top, which is the rest of a value, but at most as many ones.
        low: the low bits: planes of whole bytes; then of the bits that are left 4, 2 and 1, each if that many are,
            packed one after another.
        top: the tops, packed.
        large: for each top of ones only, the rest of the value less that top; has room for n.

    Returns:
        How many such tops there are.
    """
    count, place, shift = len(values), 0, 0
    while low_bits - shift >= 8:  # noqa: PLR2004 -- a byte
        low[place : place + count] = np.right_shift(values, shift).astype(np.uint8)
        place, shift = place + count, shift + 8
    for bits in _LOW_PARTS:
        if low_bits & bits:
            part = _together(np.right_shift(values, shift).astype(np.uint8) & np.uint8((1 << bits) - 1), bits)
            low[place : place + len(part)] = part
            place, shift = place + len(part), shift + bits
    rest, most = np.right_shift(values, low_bits), (1 << top_bits) - 1
    top[...] = _together(np.minimum(rest, most).astype(np.uint8), top_bits)
    found = rest[rest >= most] - values.dtype.type(most)
    large[: len(found)] = found
    return len(found)


def unpack(low: Bytes, top: Bytes, large: Elements, low_bits: int, top_bits: int, out: Elements, /) -> int:
    """Undo `pack`, into `out`; where there are too few large values, 0 stands for them.

    Returns:
        How many tops there are that a large value belongs to.
    """
    count, most = len(out), (1 << top_bits) - 1
    tops = _apart(top, top_bits, count)
    out[...] = tops
    marked = np.flatnonzero(tops == most)
    taken = min(len(marked), len(large))
    out[marked[:taken]] += large[:taken]
    np.left_shift(out, low_bits, out=out)
    place = shift = 0
    while low_bits - shift >= 8:  # noqa: PLR2004 -- a byte
        out |= low[place : place + count].astype(out.dtype) << shift
        place, shift = place + count, shift + 8
    for bits in _LOW_PARTS:
        if low_bits & bits:
            size = -(-count * bits // 8)
            out |= _apart(low[place : place + size], bits, count).astype(out.dtype) << shift
            place, shift = place + size, shift + bits
    return len(marked)


def _together(values: Bytes, bits: int) -> Bytes:
    """Put values of so many bits into bytes, the first into the lowest bits."""
    if bits == 8:  # noqa: PLR2004 -- a byte
        return values
    if bits == 1:
        return np.packbits(values, bitorder="little")
    padded = np.zeros(len(values) + -len(values) % 4, np.uint8)
    padded[: len(values)] = values
    pairs = padded.view("<u2")
    pairs |= pairs >> (8 - bits)
    if bits == 4:  # noqa: PLR2004 -- half a byte
        return pairs.astype(np.uint8)[: -(-len(values) // 2)]
    fours = pairs.view("<u4")
    return (fours & 15 | (fours >> 12 & 0xF0)).astype(np.uint8)


def _apart(packed: Bytes, bits: int, count: int) -> Bytes:
    """Return `count` values of so many bits that were put together."""
    if bits == 8:  # noqa: PLR2004 -- a byte
        return packed
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    if bits == 4:  # noqa: PLR2004 -- half a byte
        pairs = packed.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        return pairs.view(np.uint8)[:count]
    fours = packed.astype("<u4")
    fours |= fours << 12
    fours |= fours << 6
    fours &= 0x03030303
    return fours.view(np.uint8)[:count]
