"""Where the tensors of a safetensors file lie: https://github.com/huggingface/safetensors, section "Format"."""

from __future__ import annotations

import json
from math import prod
from typing import Final

from cas_checkpoint.tensors.found import MAX_TENSORS, Found, Unreadable, item_size, take, to_shape
from cas_checkpoint.tensors.layout import Layout, ReadAt

__all__ = ["find"]

_SIZE_SIZE: Final = 8
_MAX_PARTS: Final = 16 * MAX_TENSORS  # values in the header, so that they take no more than some 100 MB
_DTYPES: Final = {
    "BOOL": "bool",
    **{f"I{8 * width}": f"int{8 * width}" for width in (1, 2, 4, 8)},
    **{f"U{8 * width}": f"uint{8 * width}" for width in (1, 2, 4, 8)},
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


def find(read: ReadAt, size: int) -> Layout | None:
    """Return where the tensors of a file of `size` bytes lie.

    Raises:
        Unreadable: it is no such file, or damaged.
    """
    header_size = int.from_bytes(take(read, 0, _SIZE_SIZE), "little")
    start = _SIZE_SIZE + header_size
    found = Found("safetensors", size)
    for name, entry in _entries(take(read, _SIZE_SIZE, header_size)):
        if name != "__metadata__":
            _add(found, name, entry, start)
    return found.layout()


def _entries(header: bytes) -> list[tuple[str, object]]:
    if sum(header.count(mark) for mark in (b",", b"[", b"{")) > _MAX_PARTS:
        raise Unreadable
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        raise Unreadable from None
    if not isinstance(entries, dict):
        raise Unreadable
    return list(entries.items())


def _add(found: Found, name: str, entry: object, start: int) -> None:
    if not isinstance(entry, dict):
        raise Unreadable
    shape = to_shape(entry.get("shape"))
    begin, end = _pair(to_shape(entry.get("data_offsets")))
    dtype = entry.get("dtype")
    if not isinstance(dtype, str):
        raise Unreadable
    if dtype not in _DTYPES:  # of numbers smaller than a byte, or yet to come
        found.add_region(found.name(name), start + begin, end - begin)
    elif prod(shape) * item_size(_DTYPES[dtype]) == end - begin:
        found.add_dense(name, _DTYPES[dtype], shape, start + begin)
    else:
        raise Unreadable


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    match numbers:
        case (begin, end) if begin <= end:
            return begin, end
        case _:
            raise Unreadable
