"""Plain checkpoints: folders of files that no store made, restored as they lie.

A task that switches to this package in the middle of its retries finds such a folder at its source.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from cas_checkpoint.backends import LocalBackend, open_backend
from cas_checkpoint.backends.folder import FolderItem, PlainFolder
from cas_checkpoint.errors import SourceChanged, SourceError, SourceUnreadable, StorageError
from cas_checkpoint.extents import Extents
from cas_checkpoint.manifests import Entry, EntryType, check_path
from cas_checkpoint.monitor import Notice
from cas_checkpoint.sources import SourceItem, Walker
from cas_checkpoint.targets import Target

__all__ = ["PlainFiles", "open_plain", "write_items"]

_COPIERS: Final = 8  # files copied at once
_COPY_SIZE: Final = 2**20
_MODE: Final = 0o644  # of files from where there are no modes

_Keep = Callable[[str], bool]
"""Tells by its name whether something in the folder belongs to the checkpoint."""


class PlainFiles(Protocol):
    """A folder of files, on whatever file system. One that does not exist is empty."""

    def top(self) -> dict[str, bool]:
        """Return the names in the folder itself, and whether each is a file."""

    def items(self, notice: Callable[[Notice], None]) -> Iterator[SourceItem]:
        """Yield all that there is, as a walk of a source does; `notice` is told of what is no part of a checkpoint."""

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file in the folder itself."""


def open_plain(url: str, keep: _Keep, *, storage_options: Mapping[str, object] | None = None) -> PlainFiles:
    """Return the folder at `url`; nothing is read yet.

    Args:
        url: a local path, or any URL that fsspec knows.
        keep: tells by its name whether something in the folder itself is part of it.
        storage_options: passed on to fsspec.
    """
    backend = open_backend(url, storage_options=storage_options)
    if isinstance(backend, LocalBackend):
        return _LocalFiles(Path(backend.root), keep)
    return _RemoteFiles(PlainFolder(url, storage_options=storage_options), keep)


# --- where they lie -----------------------------------------------------------------------------


class _LocalFiles:
    """A folder on a local disk: with modes, times, links and empty directories."""

    def __init__(self, root: Path, keep: _Keep) -> None:
        self._root, self._keep = root, keep

    def top(self) -> dict[str, bool]:
        try:
            if stat.S_ISREG(self._root.stat().st_mode):
                return {self._root.name: True}
            return {path.name: path.is_file() for path in self._root.iterdir() if self._keep(path.name)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise self._refused(error) from error

    def items(self, notice: Callable[[Notice], None]) -> Iterator[SourceItem]:
        for item in Walker(os.fspath(self._root), now_ns=time.time_ns(), problem=_raise, notice=notice):
            if self._keep(os.fsdecode(item.entry.path.partition(b"/")[0])):
                yield item

    def read_bytes(self, name: str) -> bytes:
        try:
            return (self._root / name if self._root.is_dir() else self._root).read_bytes()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"cannot read {self._root}: {error.strerror} ({error.filename!r})")


class _RemoteFiles:
    """A folder on an fsspec file system: files only, with no more than their names and content."""

    def __init__(self, folder: PlainFolder, keep: _Keep) -> None:
        self._folder, self._keep = folder, keep

    def top(self) -> dict[str, bool]:
        return {item.name: item.is_file for item in self._folder.top() if self._keep(item.name)}

    def items(self, notice: Callable[[Notice], None]) -> Iterator[SourceItem]:
        del notice  # there is nothing but files
        now_ns = time.time_ns()
        for item in self._folder.files():
            if self._keep(item.name.partition("/")[0]):
                path = check_path(item.name.encode("utf-8", "surrogateescape"))
                entry = Entry(path, EntryType.FILE, _MODE, now_ns, item.size)
                yield SourceItem(entry, partial(self._open, item))

    def _open(self, item: FolderItem) -> _RemoteReader:
        return _RemoteReader(item, self._folder.open(item.name))

    def read_bytes(self, name: str) -> bytes:
        with self._folder.open(name) as file:
            try:
                return file.read()
            except Exception as error:  # each file system of fsspec has exceptions of its own
                raise StorageError(f"cannot read {name!r} in {self._folder.url}: {error}") from error


class _RemoteReader:
    """Reads one file of a `PlainFolder`, as a `SourceReader`."""

    extents: Extents | None = None

    def __init__(self, item: FolderItem, file: BinaryIO) -> None:
        self._item, self._file = item, file
        self._size = 0

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # each file system of fsspec has exceptions of its own
            raise SourceUnreadable(f"{self._item.name}: cannot be read ({type(error).__name__}: {error})") from error
        buffer[: len(data)] = data
        self._size += len(data)
        return len(data)

    def read_at(self, offset: int, size: int) -> bytes:  # noqa: ARG002 -- its tensors are of no interest
        return b""

    def finish(self) -> int:
        if self._size != self._item.size:
            raise SourceChanged(f"{self._item.name}: {self._size} bytes instead of {self._item.size}; restore again")
        return self._size

    def close(self) -> None:
        self._file.close()


def _raise(error: SourceError) -> None:
    raise error


# --- restoring them -----------------------------------------------------------------------------


def write_items(items: Iterable[SourceItem], directory: Path, notice: Callable[[Notice], None]) -> None:
    """Write what `items` are into a directory, which is created if it is not there; what else is there stays.

    Each file appears under its name when it is whole, and nothing is written outside of the directory.

    Raises:
        SourceError: something cannot be read, or changed while it was.
        RestoreError: the directory cannot be written.
    """
    directories, files, links = [], [], []
    with Target(directory, notice=notice) as target, ThreadPoolExecutor(_COPIERS, "cas-checkpoint-copy") as pool:
        for item in items:
            if item.entry.type is EntryType.DIRECTORY:
                target.make_directory(item.entry.path)
                directories.append(item.entry)
            elif item.entry.type is EntryType.FILE:
                files.append(item)
            else:
                links.append(item.entry)
        for _ in pool.map(partial(_write_file, target), files):
            pass
        for entry in links:
            if entry.type is EntryType.SYMLINK:
                target.make_symlink(entry)
            else:
                target.make_hardlink(entry)
        target.finish_directories(directories)


def _write_file(target: Target, item: SourceItem) -> None:
    if item.open is None:
        return
    reader = item.open()
    try:
        staged = target.stage(item.entry)
        with memoryview(bytearray(_COPY_SIZE)) as buffer:
            for start, size in reader.extents if reader.extents is not None else ((0, sys.maxsize),):
                offset, end = start, start + size
                while count := reader.readinto(buffer[: min(_COPY_SIZE, end - offset)]):
                    staged.write(offset, buffer[:count])
                    offset += count
        entry = item.entry._replace(size=reader.finish(), extents=reader.extents)
    finally:
        reader.close()
    target.place(staged, entry)
