"""Containers of tensors → where the tensors lie, from the container's own bytes; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from cas_checkpoint.tensors.found import GGUF_MAGIC, HDF5_MAGIC, NPY_MAGIC, ZIP_MAGIC, Unreadable, bounded
from cas_checkpoint.tensors.layout import Layout, ReadAt, Region, Tensor

__all__ = ["Layout", "ReadAt", "Region", "Tensor", "find_tensors"]

_HEAD_SIZE: Final = 16
_READERS: Final[Mapping[bytes, str]] = MappingProxyType(
    {ZIP_MAGIC: "archives", NPY_MAGIC: "npy", GGUF_MAGIC: "gguf", HDF5_MAGIC: "hdf5"}
)
"""The modules that read containers, by what these begin with; imported when there is one."""
_SAFETENSORS_START: Final = slice(4, 9), b"\0\0\0\0{"  # a size below 2 to the 32, and JSON


def find_tensors(read: ReadAt, size: int) -> Layout | None:
    """Return where the tensors of a container lie; None if it is of no known kind, damaged, or not worth the trouble.

    Nothing but what `read` raises is raised.

    Args:
        read: reads the container.
        size: its size in bytes.
    """
    head = read(0, min(size, _HEAD_SIZE))
    name = next((name for magic, name in _READERS.items() if head.startswith(magic)), None)
    place, start = _SAFETENSORS_START
    if head[place] == start:
        name = "safetensors"
    if len(head) < _HEAD_SIZE or name is None:
        return None
    find: Callable[[ReadAt, int], Layout | None] = import_module(f"{__name__}.{name}").find
    try:
        return find(bounded(read), size)
    except Unreadable:
        return None
