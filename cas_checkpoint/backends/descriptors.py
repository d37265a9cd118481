"""Open files of a local disk: written, synced and read in full, whatever a single call of the system does.

What the files are called, and which errors a user sees, stands in `local`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from cas_checkpoint.backends.base import Buffer

__all__ = ["fill", "read_up_to", "sync", "write_all"]

_MAX_VECTORS: Final = 1000  # in one call; IOV_MAX is 1024 on Linux and macOS
_MAX_CALL: Final = 2**30  # bytes in one call; macOS refuses 2 GiB and more
_EARLY_CALL: Final = 2 * 2**20  # bytes in one call if the disk is to begin early
_FULL_SYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)


def sync(descriptor: int) -> None:
    """Wait until a file or directory is on the disk, not only in the disk's own cache."""
    if _FULL_SYNC is not None:  # macOS, where fsync stops at that cache
        with suppress(OSError):  # not on every file system
            fcntl.fcntl(descriptor, _FULL_SYNC)
            return
    os.fsync(descriptor)


def write_all(descriptor: int, parts: Sequence[Buffer], *, early: bool) -> None:
    """Write all parts to a new file, few calls for many of them, going on where a call stopped short.

    If `early`, the disk begins before the last part is written, so that a sync that follows has less to wait for.
    """
    waiting = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    most = min(_EARLY_CALL, _MAX_CALL) if early else _MAX_CALL
    offset = 0
    while waiting:
        written = os.writev(descriptor, _one_call(waiting, most))
        if not written:  # no disk does that; without this line it would mean to try for ever
            raise OSError(errno.EIO, "nothing was written")
        _remove(waiting, written)
        if early and waiting:
            _begin_sync(descriptor, offset, written)
        offset += written


def _remove(waiting: list[memoryview], written: int) -> None:
    """Remove what was written from what waits."""
    done = 0
    while done < len(waiting) and written >= len(waiting[done]):
        written -= len(waiting[done])
        done += 1
    del waiting[:done]
    if written:
        waiting[0] = waiting[0][written:]


def _begin_sync(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin to write what has just been written; Linux does so when told that nobody will read it soon."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is advice
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def _one_call(waiting: list[memoryview], most: int) -> list[memoryview]:
    """Return as much of what waits as is to be written at once, `most` bytes of it."""
    vectors: list[memoryview] = []
    for view in islice(waiting, _MAX_VECTORS):
        vectors.append(view[:most])
        most -= len(vectors[-1])
        if not most:
            break
    return vectors


def fill(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Read into `buffer` from `offset`; return how many bytes, fewer than it has only if the file ends before."""
    done = 0
    while done < len(buffer) and (size := os.preadv(descriptor, [buffer[done : done + _MAX_CALL]], offset + done)):
        done += size
    return done


def read_up_to(descriptor: int, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`, fewer only if the file ends before."""
    data = os.pread(descriptor, min(size, _MAX_CALL), offset)
    if len(data) == size or not data:
        return data
    pieces = [data]
    read = len(data)
    while read < size and (data := os.pread(descriptor, min(size - read, _MAX_CALL), offset + read)):
        pieces.append(data)
        read += len(data)
    return b"".join(pieces)
