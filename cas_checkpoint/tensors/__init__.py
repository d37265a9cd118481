"""Containers of tensors → where the tensors lie, from the container's own bytes; nothing is ever unpickled."""

from __future__ import annotations

from typing import Final

from cas_checkpoint.tensors import npy, safetensors, torchfiles, zips
from cas_checkpoint.tensors.found import Unreadable
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
    try:
        if head.startswith(npy.MAGIC):
            return npy.find(read, size)
        if head.startswith(zips.MAGIC):
            return _find_in_zip(read, size)
        if safetensors.fits(head):
            return safetensors.find(read, size)
    except Unreadable:
        return None
    return None


def _find_in_zip(read: ReadAt, size: int) -> Layout | None:
    archive = zips.read_archive(read, size)
    if archive.start:
        raise Unreadable
    if torchfiles.to_prefix(archive) is not None:
        return torchfiles.find_in_archive(read, size, archive)
    return npy.find_in_archive(read, size, archive)
