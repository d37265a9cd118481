"""The files cache: what the files of a source were like when a snapshot was made of them.

A file that still has the size, the times and the inode of then is taken to have the content of then, and is not read.
The change time is the one that counts: programs cannot set it. A file that was changed shortly before it was saved may
be changed again without a new time, as a file system's clock has ticks; its row says so, and it is read the next time.
What a program writes through a memory map may get its time only when the system writes it back (`msync`, or closing).

The cache lies on the local disk, one file for each source of a series. It may be lost at any time.
"""

from __future__ import annotations

import os
import secrets
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from cas_checkpoint.commits import CommitKey
from cas_checkpoint.ids import CHUNK_ID_SIZE, TransactionId, digest
from cas_checkpoint.manifests import EntrySplitter, peek_path

__all__ = ["FilesCache", "FilesCacheWriter", "Row", "Stamp", "cache_directory", "stamp_of"]

Stamp: TypeAlias = tuple[int, int, int, int]
"""Size in bytes, times of the last modification and the last change in nanoseconds, inode."""

_NEVER: Final = (-1, 0, 0, 0)
_RACY: Final = 2 * 10**9  # nanoseconds: the coarsest tick of a file system, that of FAT
_MAGIC: Final = b"cas-checkpoint files cache 1\n"
_FRAME: Final = struct.Struct("<Q16sQQ")  # sequence, transaction, rows, bytes of entries
_KEPT_FILES: Final = 64  # for each store
_LOW_BITS: Final = 2**63 - 1
_ROW_SIZE: Final = 32  # bytes of a stamp


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what a file is recognized by."""
    return status.st_size, _bounded(status.st_mtime_ns), _bounded(status.st_ctime_ns), status.st_ino & _LOW_BITS


def _bounded(time_ns: int) -> int:
    """Return a time as 64 bits hold it: some file systems know years before 1677 and after 2262."""
    return max(-_LOW_BITS, min(time_ns, _LOW_BITS))


def cache_directory() -> Path | None:
    """Return where caches lie: CAS_CHECKPOINT_CACHE, else the user's directory for caches; None without a home."""
    named = os.environ.get("CAS_CHECKPOINT_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cas-checkpoint")
    except RuntimeError:  # a user without a home
        return None


class Row(NamedTuple):
    """An entry of a snapshot, and what its file was like.

    Attributes:
        path: the entry's path.
        encoded: the entry as it stands in the stream of entries, without its size.
        stamp: None if that is not known.
    """

    path: bytes
    encoded: bytes
    stamp: Stamp | None = None


class FilesCache:
    """The rows of one snapshot, in the order of its entries.

    Attributes:
        key: the snapshot's commit.
        size: their number.
    """

    def __init__(self, key: CommitKey, stamps: array[int], entries: bytes) -> None:
        """Take what was read, or is to be written."""
        self.key, self.size = key, len(stamps) // len(_NEVER)
        self._stamps, self._entries = stamps, entries

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        stamps = self._stamps
        columns = zip(stamps[0::4], stamps[1::4], stamps[2::4], stamps[3::4], strict=True)
        for encoded, stamp in zip(EntrySplitter().feed(self._entries), columns, strict=True):
            yield Row(peek_path(encoded), encoded, stamp)

    @classmethod
    def load(cls, path: Path, series: str) -> FilesCache | None:
        """Read a cache; None if there is none, or it is not as it was written."""
        try:
            data = memoryview(path.read_bytes())
        except OSError:
            return None
        start = len(_MAGIC) + _FRAME.size
        content, checksum = data[:-CHUNK_ID_SIZE], data[-CHUNK_ID_SIZE:]
        begins_right = len(content) >= start and bytes(content[: len(_MAGIC)]) == _MAGIC
        if not begins_right or digest((content,)) != checksum:
            return None
        sequence, transaction, rows, entries_size = _FRAME.unpack_from(content, len(_MAGIC))
        end = start + rows * _ROW_SIZE
        if len(content) != end + entries_size:
            return None
        stamps = array("q")
        stamps.frombytes(content[start:end])
        entries = bytes(content[end:])
        return cls(CommitKey(series, sequence, TransactionId(transaction)), stamps, entries)

    def store(self, path: Path) -> None:
        """Write the cache; if that cannot be done there will be none, which is no error."""
        frame = _FRAME.pack(self.key.sequence, self.key.transaction, self.size, len(self._entries))
        parts = [_MAGIC, frame, self._stamps.tobytes(), self._entries]
        temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("xb") as file:
                file.writelines([*parts, digest(parts)])
            temporary.replace(path)
            _prune(path.parent)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def renamed(self, key: CommitKey) -> FilesCache:
        """Return the same rows for another snapshot, which holds the same."""
        return FilesCache(key, self._stamps, self._entries)


def _prune(directory: Path) -> None:
    """Remove the caches that were not written for the longest time, if there are many."""
    found = sorted((path.stat().st_mtime_ns, path) for path in directory.iterdir())
    for _, path in found[:-_KEPT_FILES]:
        path.unlink(missing_ok=True)


class FilesCacheWriter:
    """Gathers the rows of a snapshot while it is made."""

    def __init__(self, now_ns: int) -> None:
        """Begin without rows; `now_ns` is the time before the first file was looked at."""
        self._stamps = array("q")
        self._entries = bytearray()
        self._newest = now_ns - _RACY

    def add(self, encoded: bytes, stamp: Stamp | None) -> None:
        """Add an entry, with its size in front, and the stamp of its file, if it has one."""
        certain = stamp is not None and max(stamp[1], stamp[2]) < self._newest
        self._stamps.extend(stamp if stamp is not None and certain else _NEVER)
        self._entries += encoded

    def finish(self, key: CommitKey) -> FilesCache:
        """Return the cache of the snapshot with that commit."""
        return FilesCache(key, self._stamps, bytes(self._entries))
