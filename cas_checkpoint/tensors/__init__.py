"""Containers of tensors → where the tensors lie, from the container's own bytes; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from cas_checkpoint.tensors import dcp, gguf, hdf5, npy, safetensors, torchfiles, zips
from cas_checkpoint.tensors.found import Unreadable, bounded
from cas_checkpoint.tensors.layout import Layout, ReadAt, Region, Tensor

__all__ = ["Layout", "ReadAt", "Region", "Tensor", "find_tensors"]

_HEAD_SIZE: Final = 16


def find_tensors(read: ReadAt, size: int) -> Layout | None:
    """Return where the tensors of a container lie; None if it is of no known kind, damaged, or not worth the trouble.

    Nothing but what `read` raises is raised.

    Args:
        read: reads the container.
        size: its size in bytes.
    """
    head = read(0, min(size, _HEAD_SIZE))
    if len(head) < _HEAD_SIZE:
        return None
    find = next((find for magic, find in _READERS.items() if head.startswith(magic)), None)
    if find is None and safetensors.fits(head):
        find = safetensors.find
    if find is None:
        return None
    try:
        return find(bounded(read), size)
    except Unreadable:
        return None


def _find_in_zip(read: ReadAt, size: int) -> Layout | None:
    archive = zips.read_archive(read, size)
    if archive.start:
        return dcp.find_in_archives(read, size, archive)
    if torchfiles.pickle_size(archive):
        return torchfiles.find_in_archive(read, size, archive)
    return npy.find_in_archive(read, size, archive)


_READERS: Final[Mapping[bytes, Callable[[ReadAt, int], Layout | None]]] = MappingProxyType(
    {
        zips.MAGIC: _find_in_zip,
        npy.MAGIC: npy.find,
        gguf.MAGIC: gguf.find,
        hdf5.MAGIC: hdf5.find,
    }
)
"""By what a container begins with."""
