"""Files that are being restored, before they are whole: under temporary names, where nobody looks.

Several threads may write to one file, or to many; only so many are open at once. What a file is called when it is
whole is decided in `targets`.
"""

from __future__ import annotations

import os
import resource
import threading
from contextlib import suppress
from itertools import count
from typing import Final

from cas_checkpoint.directories import restore_error
from cas_checkpoint.ids import Buffer
from cas_checkpoint.manifests import Entry

__all__ = ["StagedFile", "Staging", "copy_file", "open_limits", "write_at"]

_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
_OPEN_FILES: Final = 256
_OPEN_DIRECTORIES: Final = 64
_COPY_SIZE: Final = 2**20


class StagedFile:
    """A file that is being restored. It may be written by several threads at once."""

    def __init__(self, staging: Staging, name: bytes, place: str) -> None:
        """See `Staging.create`."""
        self.name = name
        self._staging, self._place = staging, place

    def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`, in bytes; where the system refuses, raise `RestoreError`."""
        try:
            fd = self.acquire()
            try:
                write_at(fd, offset, data)
            finally:
                self.release()
        except OSError as error:
            raise restore_error(self._place, error) from error

    def acquire(self) -> int:
        """Return the file's descriptor, which stays open until it is released as often as it was acquired."""
        return self._staging.acquire(self.name)

    def release(self) -> None:
        """Allow the file to be closed when others need to be open."""
        self._staging.release(self.name)

    def close(self) -> None:
        """Close the file: it is written, and now has its real name."""
        self._staging.close_file(self.name)

    def discard(self) -> None:
        """Remove the file."""
        self._staging.remove(self.name)


class Staging:
    """A directory in the root of a target that holds what is not whole yet; made when it is needed."""

    def __init__(self, root: int, name: bytes, *, limit: int) -> None:
        """Prepare a directory `name` below the open directory `root`, of whose files at most `limit` are open at once.

        More are open only if more are in use at one moment, each by its thread.
        """
        self.name = name
        self._root, self._limit = root, limit
        self._directory = -1
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._open: dict[bytes, tuple[int, int]] = {}  # name → descriptor and users, least recently acquired first

    @property
    def directory(self) -> int:
        """The directory's descriptor; raises `OSError` where it cannot be made."""
        if self._directory < 0:
            with self._lock:
                if self._directory < 0:
                    os.mkdir(self.name, _DIRECTORY_MODE, dir_fd=self._root)
                    self._directory = os.open(self.name, _DIRECTORY_FLAGS, dir_fd=self._root)
        return self._directory

    def new_name(self) -> bytes:
        """Return a name that nothing in the directory has, nor, most probably, anything elsewhere."""
        return b"%b-%x" % (self.name, next(self._numbers))

    def open_new(self) -> tuple[bytes, int]:
        """Create an empty file that is the caller's alone; return its name and its descriptor. May raise `OSError`."""
        name = self.new_name()
        return name, os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=self.directory)

    def create(self, size: int, place: str) -> StagedFile:
        """Create a file of `size` bytes, all hole; `place` is what errors call it. May raise `OSError`."""
        name, fd = self.open_new()
        with self._lock:
            self._make_room()
            self._open[name] = fd, 0
        try:
            if size:
                os.truncate(fd, size)
        except BaseException:
            self.remove(name)
            raise
        return StagedFile(self, name, place)

    def acquire(self, name: bytes) -> int:
        """Return the descriptor of a file, opening it if need be."""
        with self._lock:
            fd, users = self._open.pop(name, (-1, 0))
            if fd < 0:
                self._make_room()
                fd = os.open(name, _FLAGS, dir_fd=self._directory)
            self._open[name] = fd, users + 1
            return fd

    def release(self, name: bytes) -> None:
        """End one use of a file."""
        with self._lock:
            if name in self._open:  # else it was closed meanwhile
                fd, users = self._open[name]
                self._open[name] = fd, users - 1

    def close_file(self, name: bytes) -> None:
        """Close a file."""
        with self._lock:
            fd, _ = self._open.pop(name, (-1, 0))
            if fd >= 0:
                os.close(fd)

    def remove(self, name: bytes) -> None:
        """Remove a file; it may be gone already."""
        self.close_file(name)
        with suppress(OSError):
            os.unlink(name, dir_fd=self._directory)

    def clear(self) -> None:
        """Remove the directory and what is left in it."""
        for name in list(self._open):
            self.close_file(name)
        directory, self._directory = self._directory, -1
        if directory < 0:
            return
        try:
            with suppress(OSError):  # what cannot be removed must not hide why a restore failed
                for left in os.listdir(directory):
                    os.unlink(left, dir_fd=directory)
                os.rmdir(self.name, dir_fd=self._root)
        finally:
            os.close(directory)

    def _make_room(self) -> None:
        """Close the file that was not used for longest, if as many as allowed are open."""
        if len(self._open) < self._limit:
            return
        for name, (fd, users) in self._open.items():
            if not users:
                del self._open[name]
                os.close(fd)
                return


def write_at(fd: int, offset: int, data: Buffer) -> None:
    """Write all of `data` at `offset`, in bytes. May raise `OSError`."""
    written = os.pwrite(fd, data, offset)
    if written < (size := memoryview(data).nbytes):
        with memoryview(data).cast("B") as view:
            while written < size:
                written += os.pwrite(fd, view[written:], offset + written)


def copy_file(source: int, fd: int, entry: Entry) -> None:
    """Copy the data of an open file that is as `entry` says, holes staying holes, to a new one."""
    os.truncate(fd, entry.size)
    for start, size in entry.extents if entry.extents is not None else ((0, entry.size),):
        _copy_run(source, fd, start, start + size)


def _copy_run(source: int, fd: int, start: int, end: int) -> None:
    while start < end:
        piece = memoryview(os.pread(source, min(_COPY_SIZE, end - start), start))
        if not piece:
            return
        while piece:
            size = os.pwrite(fd, piece, start)
            piece, start = piece[size:], start + size


def open_limits() -> tuple[int, int]:
    """Return how many files and directories may be open: a part of what the process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _OPEN_FILES, _OPEN_DIRECTORIES
    return max(1, min(_OPEN_FILES, limit // 4)), max(1, min(_OPEN_DIRECTORIES, limit // 8))
