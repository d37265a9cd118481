"""safetensors files, written byte by byte the same in every run: names, types, shapes, and then the bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bf16", "Tensor", "bf16", "from_bf16", "safetensors", "tensors"]

Array = NDArray[Any]
_TYPES = {"f4": "F32", "f8": "F64", "f2": "F16", "i8": "I64", "i4": "I32", "u1": "U8"}
_ALIGNMENT = 8


class Bf16(NamedTuple):
    """Numbers of type bf16: numpy has no such type, so they are kept as their bits."""

    bits: NDArray[np.uint16]


Tensor = Array | Bf16


def bf16(numbers: NDArray[np.float32]) -> Bf16:
    """Round finite fp32 numbers to bf16: to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, "<f4").view("<u4")
    carry = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    return Bf16(((bits + carry) >> np.uint32(16)).astype("<u2"))


def from_bf16(numbers: Bf16) -> NDArray[np.float32]:
    """Return bf16 numbers as fp32; exact."""
    return (numbers.bits.astype("<u4") << np.uint32(16)).view("<f4")


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file that holds tensors in the order given."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        array = tensor.bits if isinstance(tensor, Bf16) else tensor
        kind = "BF16" if isinstance(tensor, Bf16) else _TYPES[array.dtype.str[1:]]
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def tensors(file: bytes) -> dict[str, memoryview]:
    """Return the bytes of each tensor in a safetensors file."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    view = memoryview(file)[start:]
    return {name: view[slice(*entry["data_offsets"])] for name, entry in header.items()}
