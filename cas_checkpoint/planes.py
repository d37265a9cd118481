"""Elements ↔ planes: the lowest bytes of all elements together, then the next ones, and so on (SPEC.md, section 6).

Arrays of elements are of unsigned integers; planes are uint8, one for each byte of an element, the lowest first.
Shifts and casts of whole arrays: numpy does these many times faster than it copies every second or fourth byte.
It is done in blocks, and results go to memory of the caller's: fresh pages cost more than all the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cas_checkpoint.lazynumpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Elements = NDArray[np.unsignedinteger[Any]]

__all__ = [
    "as_elements",
    "blocks",
    "differences",
    "exponents",
    "grouped",
    "join",
    "packed",
    "rotated",
    "rotated_back",
    "split",
    "sums",
    "ungrouped",
    "unpacked",
]

_SORTED_AT_ONCE = 2**14  # elements; the order of more would be in memory that the system takes back each time
_PAIRED = 4  # bits of a value, of which a byte holds two
_BLOCK_SIZE = 2**18  # bytes; with what is made of it, it stays in a processor's cache


def as_elements(data: memoryview, width: int) -> Elements:
    """Return the elements of so many bytes each that `data` begins with, without the bytes left over at its end."""
    return np.frombuffer(data, f"<u{width}", len(data) // width)


def blocks(values: Elements) -> Iterator[slice]:
    """Yield the parts of an array to work on one after another."""
    count = _BLOCK_SIZE // values.itemsize
    return (slice(start, start + count) for start in range(0, len(values), count))


def rotated(values: Elements) -> Elements:
    """Rotate each element left by one bit: the sign becomes the lowest bit, and the exponent the highest ones."""
    found: Elements = np.right_shift(values, 8 * values.itemsize - 1)
    np.bitwise_or(found, np.left_shift(values, 1), out=found)
    return found


def rotated_back(values: Elements) -> Elements:
    """Rotate each element right by one bit, in its own memory."""
    for at in blocks(values):
        part = values[at]
        sign = np.left_shift(part, 8 * part.itemsize - 1)
        np.right_shift(part, 1, out=part)
        np.bitwise_or(part, sign, out=part)
    return values


def split(values: Elements, out: Sequence[NDArray[np.uint8]] | None = None) -> Sequence[NDArray[np.uint8]]:
    """Return the planes of the elements, in `out` if that is given."""
    planes = out or [np.empty(len(values), np.uint8) for _ in range(values.itemsize)]
    for at in blocks(values):
        part = values[at]
        planes[0][at] = part
        shifted = np.empty_like(part)
        for number in range(1, part.itemsize):
            np.right_shift(part, 8 * number, out=shifted)
            planes[number][at] = shifted
    return planes


def join(planes: Sequence[NDArray[np.uint8]], out: Elements | None = None) -> Elements:
    """Return the elements of these planes, in memory of their own: that of `out` if it is given."""
    values: Elements = np.empty(len(planes[0]), f"<u{len(planes)}") if out is None else out
    for at in blocks(values):
        part = values[at]
        part[...] = planes[-1][at]
        for plane in reversed(planes[:-1]):
            np.left_shift(part, 8, out=part)
            np.bitwise_or(part, plane[at], out=part)
    return values


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


def _unordered(values: Elements) -> Elements:
    """Undo `_ordered`, in its own memory."""
    bits = 8 * values.itemsize - 1
    mask = np.right_shift(_signed(values), bits).view(values.dtype)
    np.invert(mask, out=mask)
    np.bitwise_or(mask, values.dtype.type(1 << bits), out=mask)
    np.bitwise_xor(values, mask, out=values)
    return values


def differences(values: Elements, base: Elements, *, is_float: bool, out: Elements | None = None) -> Elements:
    """Return how far each element is from that of the base, small in both directions: zigzag, modulo 2 to the width.

    They are in `out` if that is given.
    """
    found: Elements = np.empty_like(values) if out is None else out
    for at in blocks(values):
        part, one, other = found[at], values[at], base[at]
        np.subtract(*((_ordered(one), _ordered(other)) if is_float else (one, other)), out=part)
        signs = np.right_shift(_signed(part), 8 * part.itemsize - 1).view(part.dtype)
        np.left_shift(part, 1, out=part)
        np.bitwise_xor(part, signs, out=part)
    return found


def sums(found: Elements, base: Elements, *, is_float: bool) -> Elements:
    """Undo `differences`, in the memory of `found`."""
    for at in blocks(found):
        part = found[at]
        signs = np.bitwise_and(part, part.dtype.type(1))
        np.negative(_signed(signs), out=_signed(signs))
        np.right_shift(part, 1, out=part)
        np.bitwise_xor(part, signs, out=part)
        np.add(part, _ordered(base[at]) if is_float else base[at], out=part)
        if is_float:
            _unordered(part)
    return found


def exponents(base: Elements, *, is_float: bool) -> NDArray[np.uint8]:
    """Return what the differences are ordered by: for each element of the base the highest byte, without the sign."""
    bits = 8 * base.itemsize - 8
    return np.right_shift(base, bits - 1 if is_float and bits else bits).astype(np.uint8) if base.itemsize > 1 else base


def grouped(values: Elements, keys: NDArray[np.uint8], out: Elements) -> Elements:
    """Sort values by their keys into `out`; those with the same key stay in their order."""
    for start, order, places in _groups(keys):
        part = values[start : start + len(order)][order]
        for low, high, place in places:
            out[place : place + high - low] = part[low:high]
    return out


def ungrouped(values: Elements, keys: NDArray[np.uint8], out: Elements) -> Elements:
    """Undo `grouped`, into `out`."""
    for start, order, places in _groups(keys):
        part = np.empty(len(order), values.dtype)
        for low, high, place in places:
            part[low:high] = values[place : place + high - low]
        out[start : start + len(order)][order] = part
    return out


def _groups(keys: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp], list[tuple[int, int, int]]]]:
    """Sort keys, in blocks that a processor's cache can hold.

    Yields:
        Where a block begins; the order of its keys; and, for each key in it, where in the sorted block those with this
        key begin and end, and where among all they belong.
    """
    blocks = [keys[start : start + _SORTED_AT_ONCE] for start in range(0, len(keys), _SORTED_AT_ONCE)]
    counts = np.array([np.bincount(block, minlength=256) for block in blocks]).reshape(-1, 256)
    totals = counts.sum(axis=0)
    places = np.cumsum(totals) - totals + np.cumsum(counts, axis=0) - counts
    ends = np.cumsum(counts, axis=1)
    for number, block in enumerate(blocks):
        seen = np.flatnonzero(counts[number])
        columns = (ends[number] - counts[number])[seen], ends[number][seen], places[number][seen]
        order = np.argsort(block, kind="stable")
        yield number * _SORTED_AT_ONCE, order, list(zip(*(column.tolist() for column in columns), strict=True))


# --- small values -------------------------------------------------------------------------------


def packed(plane: NDArray[np.uint8], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Put values into 2 or 4 bits each, the first into the lowest; return these, and those that are too large.

    A value that does not fit has all bits set in its place.
    """
    largest = (1 << bits) - 1
    fitting = np.zeros(len(plane) + -len(plane) % (8 // bits), np.uint8)
    np.minimum(plane, largest, out=fitting[: len(plane)])
    large = plane[plane >= largest]
    if bits == _PAIRED:
        pairs = fitting.view("<u2")
        return (pairs | (pairs >> 4)).astype(np.uint8), large
    fours = fitting.view("<u4")
    return (fours | (fours >> 6) | (fours >> 12) | (fours >> 18)).astype(np.uint8), large


def unpacked(values: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return `count` values that were packed, those that were too large as the largest that fits."""
    if bits == _PAIRED:
        pairs = values.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        return pairs.view(np.uint8)[:count]
    fours = values.astype("<u4")
    fours |= fours << 12
    fours |= fours << 6
    fours &= 0x03030303
    return fours.view(np.uint8)[:count]
