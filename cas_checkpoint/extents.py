"""The runs of data of a sparse file.

What lies between them are holes: they are not read, not stored, and made again when the file is restored.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from cas_checkpoint.manifests import MAX_EXTENTS

__all__ = ["MIN_HOLE_SIZE", "Extents", "find_extents"]

Extents: TypeAlias = tuple[tuple[int, int], ...]
"""(offset, size) of each run, in order, in bytes."""

MIN_HOLE_SIZE: Final = 64 * 2**10
"""A shorter hole is read as the zeros that it stands for."""

_BLOCK_SIZE: Final = 512  # the unit of st_blocks, whatever the file system's own


def find_extents(fd: int, listed: os.stat_result) -> Extents | None:
    """Return the runs of data of an open file, None if it has no holes worth the name or its system cannot tell.

    There are at most `MAX_EXTENTS`. The file's position is its beginning afterwards.
    """
    size = listed.st_size
    if listed.st_blocks * _BLOCK_SIZE >= size:
        return None
    try:
        extents = _coalesce(_data_runs(fd, size), size)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return None
    return None if extents == ((0, size),) else extents


def _data_runs(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of data, in order."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start >= end:
            return
        yield start, end


def _coalesce(runs: Iterable[tuple[int, int]], size: int) -> Extents:
    """Join runs that are parted by short holes; the longer ones too where there would be too many runs."""
    min_hole_size = MIN_HOLE_SIZE
    joined: list[tuple[int, int]] = []
    for run in runs:
        _append(joined, run, min_hole_size)
        while len(joined) > MAX_EXTENTS:
            min_hole_size *= 2
            before, joined = joined, []
            for earlier in before:
                _append(joined, earlier, min_hole_size)
    if joined and size - joined[-1][1] < min_hole_size:
        joined[-1] = joined[-1][0], size
    return tuple((start, end - start) for start, end in joined)


def _append(joined: list[tuple[int, int]], run: tuple[int, int], min_hole_size: int) -> None:
    start, end = run
    begin, last_end = joined[-1] if joined else (0, 0)
    if start - last_end >= min_hole_size:
        joined.append(run)
    elif joined:
        joined[-1] = begin, end
    else:
        joined.append((0, end))
