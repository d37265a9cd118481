"""Which kind of container a zip file is: its end decides."""

from __future__ import annotations

from cas_checkpoint.tensors import dcp, npy, torchfiles, zips
from cas_checkpoint.tensors.layout import Layout, ReadAt

__all__ = ["find"]


def find(read: ReadAt, size: int) -> Layout | None:
    """Return where the tensors of a zip file of `size` bytes lie, None if it has none that can be read.

    Raises:
        Unreadable: it is damaged, or of another kind.
    """
    archive = zips.read_archive(read, size)
    if archive.start:
        return dcp.find_in_archives(read, size, archive)
    if torchfiles.pickle_size(archive):
        return torchfiles.find_in_archive(read, size, archive)
    return npy.find_in_archive(read, size, archive)
