"""Where the tensors of a GGUF file lie, versions 2 and 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import struct
from math import prod
from typing import Final, NamedTuple

from cas_checkpoint.tensors.found import (
    GGUF_MAGIC,
    MAX_HEADER_SIZE,
    MAX_TENSORS,
    Found,
    Unreadable,
    item_size,
    take,
    to_shape,
)
from cas_checkpoint.tensors.layout import Layout, ReadAt

__all__ = ["find"]

_VERSIONS: Final = frozenset({2, 3})
_BLOCK_SIZE: Final = 2**16  # bytes that are read at a time
_ALIGNMENT_KEY: Final = b"general.alignment"
_ALIGNMENT: Final = 32
_MAX_ALIGNMENT: Final = 2**16
_MAX_AXES: Final = 8
_MAX_DEPTH: Final = 4

_UINT32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9
_WIDTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of values of each type the bytes."""

_DTYPES: Final = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
"""Types of tensors that are not quantized."""


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    """From the beginning of the data, bytes."""


class _Cursor:
    """Goes through the header of a file of `size` bytes.

    Its methods raise Unreadable if the file ends, or the header is larger than a header may be.
    """

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._size = size
        self._block = b""
        self._begin = 0
        self.at = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        begin = self.at
        self.skip(count)
        if self.at > self._begin + len(self._block):
            self._block = take(self._read, begin, min(max(count, _BLOCK_SIZE), self._size - begin))
            self._begin = begin
        return self._block[begin - self._begin : self.at - self._begin]

    def skip(self, count: int) -> None:
        """Leave out the next `count` bytes."""
        self.at += count
        if self.at > min(self._size, MAX_HEADER_SIZE):
            raise Unreadable

    def uint32(self) -> int:
        """Return the next number of 4 bytes."""
        return int.from_bytes(self.take(4), "little")

    def uint64(self) -> int:
        """Return the next number of 8 bytes."""
        return int.from_bytes(self.take(8), "little")


def find(read: ReadAt, size: int) -> Layout | None:
    """Return where the tensors of a file of `size` bytes lie; those of quantized ones have no elements.

    Raises:
        Unreadable: it is no such file, or damaged.
    """
    cursor = _Cursor(read, size)
    magic, version, count, pairs = struct.unpack("<4sIQQ", cursor.take(24))
    if magic != GGUF_MAGIC or version not in _VERSIONS or count > MAX_TENSORS:
        raise Unreadable
    alignment = _ALIGNMENT
    for _ in range(pairs):
        key = cursor.take(cursor.uint64())
        kind = cursor.uint32()
        if key == _ALIGNMENT_KEY and kind == _UINT32:
            alignment = cursor.uint32()
        else:
            _skip_value(cursor, kind, _MAX_DEPTH)
    if not 0 < alignment <= _MAX_ALIGNMENT:
        raise Unreadable
    entries = [_entry(cursor) for _ in range(count)]
    start = -(-cursor.at // alignment) * alignment
    found = Found("gguf", size)
    _add(found, entries, start, size)
    return found.layout()


def _skip_value(cursor: _Cursor, kind: int, depth: int) -> None:
    if kind in _WIDTHS:
        cursor.skip(_WIDTHS[kind])
    elif kind == _STRING:
        cursor.skip(cursor.uint64())
    elif kind == _ARRAY and depth:
        kind, count = cursor.uint32(), cursor.uint64()
        if kind in _WIDTHS:
            cursor.skip(_WIDTHS[kind] * count)
        else:
            for _ in range(count):
                _skip_value(cursor, kind, depth - 1)
    else:
        raise Unreadable


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.take(cursor.uint64()).decode("utf-8", "replace")
    axes = cursor.uint32()
    if axes > _MAX_AXES:
        raise Unreadable
    shape = to_shape([cursor.uint64() for _ in range(axes)][::-1])  # the axis whose elements are side by side is first
    return _Entry(name, shape, cursor.uint32(), cursor.uint64())


def _add(found: Found, entries: list[_Entry], start: int, size: int) -> None:
    ends: dict[int, int] = {}  # what is quantized goes as far as the next tensor, for all that is known here
    end = size - start
    for entry in sorted(entries, key=lambda entry: -entry.offset):
        ends.setdefault(entry.offset, end)
        end = entry.offset
    for entry in entries:
        if entry.type in _DTYPES:
            dtype = _DTYPES[entry.type]
            if entry.offset + prod(entry.shape) * item_size(dtype) > ends[entry.offset]:
                raise Unreadable
            found.add_dense(entry.name, dtype, entry.shape, start + entry.offset)
        else:
            found.add_region(found.name(entry.name), start + entry.offset, ends[entry.offset] - entry.offset)
