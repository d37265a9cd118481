"""Where the contiguous datasets of an HDF5 file lie, as h5py and Keras write it: "HDF5 File Format Specification 3.0".

Read are superblocks of versions 0 to 3 at the file's beginning, with 8-byte addresses; groups with a symbol table or
with links in their object headers; datasets of little-endian numbers in one piece. All else is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from typing import Final, NamedTuple

from cas_checkpoint.tensors.found import (
    MAX_NAME_SIZE,
    MAX_TENSORS,
    Found,
    Unreadable,
    item_size,
    take,
    to_shape,
)
from cas_checkpoint.tensors.layout import Layout, ReadAt

__all__ = ["find"]

_SIZE: Final = 8  # bytes of an address
_UNDEFINED: Final = 2**64 - 1
_MAX_DEPTH: Final = 64
_MAX_BLOCKS: Final = 256  # of one object header
_MAX_MESSAGES: Final = 2**16  # of one object header

_DATASPACE, _DATATYPE, _LINK, _LAYOUT, _CONTINUATION, _SYMBOL_TABLE = 0x01, 0x03, 0x06, 0x08, 0x10, 0x11
_SHARED: Final = 0x02
_CONTIGUOUS: Final = 1
_FIXED, _FLOAT = 0, 1
_FLOATS: Final = {
    (16, 10, 5, 0, 10, 15): "float16",
    (16, 7, 8, 0, 7, 127): "bfloat16",
    (32, 23, 8, 0, 23, 127): "float32",
    (64, 52, 11, 0, 52, 1023): "float64",
}
"""By bits, and by place and bits of exponent and mantissa, and the bias."""


class _Message(NamedTuple):
    kind: int
    data: bytes


def find(read: ReadAt, size: int) -> Layout | None:
    """Return where the datasets of a file of `size` bytes lie.

    Raises:
        Unreadable: it is no such file, or damaged.
    """
    found = Found("hdf5", size)
    todo = [("", _root(read, size), 0)]
    seen = {todo[0][1]}
    while todo:
        name, address, depth = todo.pop()
        messages = _messages(read, address)
        _add_dataset(found, name, messages)
        if depth == _MAX_DEPTH:
            continue
        members = []
        for key, member in _links(read, messages):
            if member not in seen:
                seen.add(member)
                members.append((f"{name}/{key}"[:MAX_NAME_SIZE] if name else key, member, depth + 1))
        if len(seen) > MAX_TENSORS:
            raise Unreadable
        todo.extend(reversed(members))
    return found.layout()


def _number(data: bytes, at: int, size: int = _SIZE) -> int:
    """Return a number in the bytes of a header.

    Raises:
        Unreadable: they end before.
    """
    if at + size > len(data):
        raise Unreadable
    return int.from_bytes(data[at : at + size], "little")


def _root(read: ReadAt, size: int) -> int:
    """Return the address of the root group, from the superblock."""
    block = take(read, 0, 48)
    version = block[8]
    if version <= 1:
        sizes, base, end, root = block[13:15], 24 + 4 * version, 40 + 4 * version, 64 + 4 * version
    else:
        sizes, base, end, root = block[9:11], 12, 28, 36
    if version > 3 or sizes != bytes((_SIZE, _SIZE)):  # noqa: PLR2004 -- the last version that there is
        raise Unreadable
    block = take(read, 0, root + _SIZE)
    if _number(block, base) or _number(block, end) > size:
        raise Unreadable
    return _number(block, root)


# --- object headers -----------------------------------------------------------------------------


def _messages(read: ReadAt, address: int) -> list[_Message]:
    """Return the messages of an object header that are not shared."""
    head = take(read, address, 16)
    if head[:5] == b"OHDR\x02":
        return _new_messages(read, address, head[5])
    if head[0] != 1:
        raise Unreadable
    return list(_all_messages(read, (address + 16, _number(head, 8, 4)), "<HHB3x", b""))


def _new_messages(read: ReadAt, address: int, flags: int) -> list[_Message]:
    begin = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(take(read, begin, width), "little")
    return list(_all_messages(read, (begin + width, size), "<BHB2x" if flags & 4 else "<BHB", b"OCHK"))


def _all_messages(read: ReadAt, first: tuple[int, int], form: str, magic: bytes) -> Iterator[_Message]:
    """Yield the messages of a block, and of those where it is continued."""
    head = struct.Struct(form)
    blocks = [first]
    count = 0
    for number, (address, size) in enumerate(blocks):
        block = take(read, address, size)
        at = 0
        if number and magic:
            if not block.startswith(magic):
                raise Unreadable
            at, block = len(magic), block[:-4]  # a checksum
        while at + head.size <= len(block):
            kind, length, flags = head.unpack_from(block, at)
            at += head.size
            data = block[at : at + length]
            at += length
            count += 1
            if count > _MAX_MESSAGES or len(blocks) > _MAX_BLOCKS:
                raise Unreadable
            if kind == _CONTINUATION:
                blocks.append((_number(data, 0), _number(data, _SIZE)))
            elif not flags & _SHARED:
                yield _Message(kind, data)


# --- groups -------------------------------------------------------------------------------------


def _links(read: ReadAt, messages: list[_Message]) -> Iterator[tuple[str, int]]:
    """Yield names and addresses of the objects in a group; none of a dataset."""
    for kind, data in messages:
        if kind == _LINK:
            yield from _link(data)
        elif kind == _SYMBOL_TABLE:
            yield from _symbols(read, _number(data, 0), _number(data, _SIZE))


def _link(data: bytes) -> list[tuple[str, int]]:
    """Return the name and the address of a hard link; nothing of another."""
    flags = _number(data, 1, 1)
    at = 2
    if flags & 0x08:
        if _number(data, at, 1):
            return []
        at += 1
    at += (8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = _number(data, at, width)
    at += width
    return [(data[at : at + min(size, MAX_NAME_SIZE)].decode("utf-8", "replace"), _number(data, at + size))]


def _symbols(read: ReadAt, tree: int, heap: int) -> Iterator[tuple[str, int]]:
    """Yield what a symbol table holds, in the order of names."""
    head = take(read, heap, 32)
    if head[:4] != b"HEAP":
        raise Unreadable
    names = take(read, _number(head, 24), _number(head, 8))
    todo = [tree]
    seen = {tree}
    while todo:
        address = todo.pop()
        head = take(read, address, 8)
        count = _number(head, 6, 2)
        if head[:4] == b"SNOD":
            entries = take(read, address + 8, 40 * count)
            for at in range(0, len(entries), 40):
                if _number(entries, at + 16, 4) < 2:  # noqa: PLR2004 -- 2 is a symbolic link
                    begin = _number(entries, at)
                    end = names.find(b"\0", begin, begin + MAX_NAME_SIZE)
                    yield names[begin : max(begin, end)].decode("utf-8", "replace"), _number(entries, at + 8)
        elif head[:5] == b"TREE\0":
            node = take(read, address + 24, 16 * count)
            children = [_number(node, at) for at in range(8, len(node), 16)]
            for child in reversed(children):
                if child not in seen:
                    seen.add(child)
                    todo.append(child)
        else:
            raise Unreadable


# --- datasets -----------------------------------------------------------------------------------


def _add_dataset(found: Found, name: str, messages: list[_Message]) -> None:
    parts = {message.kind: message.data for message in messages}
    if not parts.keys() >= {_DATASPACE, _DATATYPE, _LAYOUT}:
        return
    layout = parts[_LAYOUT]
    dtype = _dtype(parts[_DATATYPE])
    shape = _shape(parts[_DATASPACE])
    if dtype is None or shape is None or layout[:1] not in {b"\3", b"\4"} or _number(layout, 1, 1) != _CONTIGUOUS:
        return
    address, size = _number(layout, 2), _number(layout, 2 + _SIZE)
    if address == _UNDEFINED or size != prod(shape) * item_size(dtype):  # nothing was written to it yet
        return
    found.add_dense(name, dtype, shape, address)


def _shape(data: bytes) -> tuple[int, ...] | None:
    """Return the shape of a dataspace; None if it is of another kind."""
    version, axes = _number(data, 0, 1), _number(data, 1, 1)
    if version == 1:
        at = 8
    elif version == 2 and _number(data, 3, 1) <= 1:  # noqa: PLR2004 -- a scalar, or simple
        at = 4
    else:
        return None
    return to_shape([_number(data, at + _SIZE * axis) for axis in range(axes)])


def _dtype(data: bytes) -> str | None:
    """Return the name of a type of little-endian numbers; None if it is of another kind."""
    kind, bits, size = _number(data, 0, 1) & 0x0F, _number(data, 1, 3), _number(data, 4, 4)
    if kind == _FIXED and not bits & 1:
        whole = (_number(data, 8, 2), _number(data, 10, 2)) == (0, 8 * size)
        return f"{'' if bits & 8 else 'u'}int{8 * size}" if whole and size in {1, 2, 4, 8} else None
    if kind == _FLOAT and not bits & 0x41 and not _number(data, 8, 2):
        exponent, mantissa = (_number(data, 12, 1), _number(data, 13, 1)), (_number(data, 14, 1), _number(data, 15, 1))
        return _FLOATS.get((_number(data, 10, 2), *exponent, *mantissa, _number(data, 16, 4)))
    return None
