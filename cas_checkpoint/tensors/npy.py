"""Where the arrays of numpy's files lie: `.npy` (versions 1 to 3), and `.npz`, a zip archive of them."""

from __future__ import annotations

import re
from math import prod
from typing import Final

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors.found import NPY_MAGIC, Found, Unreadable, dense_strides, item_size, take, to_shape
from cas_checkpoint.tensors.layout import Layout, ReadAt, Tensor
from cas_checkpoint.tensors.zips import Archive, data_offset

__all__ = ["find", "find_in_archive"]

_SUFFIX: Final = ".npy"
_PREFIX_SIZE: Final = 12  # with the size of the header in its last 2 (version 1) or 4 bytes
_MAX_HEADER_SIZE: Final = 2**16
_MAX_VERSION: Final = 3
_HEADER: Final = re.compile(
    r"\{'descr': '([<|])([a-zA-Z])(\d{1,2})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\),? ?\} *\n?"
)
_KINDS: Final = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_WIDTHS: Final = (1, 2, 4, 8)


def find(read: ReadAt, size: int) -> Layout | None:
    """Return where the array of a `.npy` file of `size` bytes lies.

    Raises:
        Unreadable: it is no such file, or damaged, or not of numbers in little-endian order.
    """
    found = Found("npy", size)
    _add(found, "array", read, 0, size)
    return found.layout()


def find_in_archive(read: ReadAt, size: int, archive: Archive) -> Layout | None:
    """Return where the arrays of a `.npz` file lie; what is compressed, or no array of numbers, is left out."""
    found = Found("npz", size)
    for member in archive.members.values():
        if member.name.endswith(_SUFFIX) and member.stored:
            begin = data_offset(read, archive, member)
            try:
                _add(found, member.name.removesuffix(_SUFFIX), read, begin, begin + member.size)
            except Unreadable:
                continue
    return found.layout()


def _add(found: Found, name: str, read: ReadAt, begin: int, end: int) -> None:
    prefix = take(read, begin, _PREFIX_SIZE)
    version = prefix[6]
    if not prefix.startswith(NPY_MAGIC) or not 1 <= version <= _MAX_VERSION:
        raise Unreadable
    start = begin + (10 if version == 1 else 12)
    header_size = int.from_bytes(prefix[8 : 10 if version == 1 else 12], "little")
    if header_size > _MAX_HEADER_SIZE or start + header_size > end:
        raise Unreadable
    header = _HEADER.fullmatch(take(read, start, header_size).decode("latin-1"))
    if header is None:
        raise Unreadable
    order, kind, width, fortran, lengths = header.groups()
    shape = to_shape([int(length) for length in lengths.replace(" ", "").split(",") if length])
    _add_array(found, name, (order, kind, int(width)), shape, (start + header_size, end), fortran=fortran == "True")


def _add_array(
    found: Found,
    name: str,
    descr: tuple[str, str, int],
    shape: tuple[int, ...],
    span: tuple[int, int],
    *,
    fortran: bool,
) -> None:
    _, kind, width = descr
    offset, end = span
    lying = shape[::-1] if fortran else shape  # its axes in the order in which they lie in memory
    if offset + prod(shape) * width != end:
        raise Unreadable
    if kind == "V" and width in _WIDTHS:  # how numpy stores a bfloat16, for one
        elements, row_size = Elements(width, is_float=False), width * prod(lying[1:])
        found.add_region(found.name(name), offset, end - offset, elements, row_size)
        return
    dtype = _KINDS.get(kind, "") + ("" if kind == "b" else str(8 * width))
    if dtype not in ELEMENTS or item_size(dtype) != width:
        raise Unreadable
    strides = dense_strides(lying)
    name = found.name(name)
    found.add_tensor(Tensor(name, dtype, shape, strides[::-1] if fortran else strides, offset), end=end)
    found.add_region(name, offset, end - offset, ELEMENTS[dtype], width * prod(lying[1:]))
