"""Chunks kept on this machine, so that a save to a store far away can make deltas of them without fetching them.

A cache: anything in it may vanish, and nothing in it is believed before it is checked. Never fails.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from cas_checkpoint.ids import Buffer, ChunkId, chunk_id

__all__ = ["BaseCache"]


class BaseCache:
    """A directory with a file for each chunk. Safe to use from several threads and processes."""

    def __init__(self, directory: Path, *, limit: int) -> None:
        """Use `directory`, which need not be there, for at most `limit` bytes after each `trim`."""
        self._directory, self._limit = directory, limit

    def get(self, chunk: ChunkId, size: int) -> bytes | None:
        """Return the bytes of a chunk of that size, None if they are not there."""
        path = self._path(chunk)
        try:
            if path.stat().st_size != size:
                return None
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if chunk_id(data) == chunk else None

    def put(self, chunk: ChunkId, plain: Buffer) -> None:
        """Remember a chunk."""
        path = self._path(chunk)
        temporary = path.with_name(f".tmp-{token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(plain)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def trim(self) -> None:
        """Remove those that were not used for longest, until the rest is no more than the limit."""
        with suppress(OSError):
            found = sorted(((entry.stat(), entry.path) for entry in self._entries()), key=lambda one: -one[0].st_mtime)
            size = 0
            for info, path in found:
                size += info.st_size
                if size > self._limit:
                    os.unlink(path)

    def _entries(self) -> list[os.DirEntry[str]]:
        return [entry for part in os.scandir(self._directory) for entry in os.scandir(part.path)]

    def _path(self, chunk: ChunkId) -> Path:
        name = chunk.hex()
        return self._directory / name[:2] / name
