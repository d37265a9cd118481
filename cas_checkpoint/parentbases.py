"""The plain bytes of what chunks may be stored as deltas of: chunks of the parent snapshot.

Whatever is wrong with these, a save goes on without them.
"""

from __future__ import annotations

from collections.abc import Callable

from cas_checkpoint.basecache import BaseCache
from cas_checkpoint.errors import CasCheckpointError
from cas_checkpoint.ids import Buffer, ChunkId
from cas_checkpoint.manifests import ChunkRef
from cas_checkpoint.reading import SnapshotReader

__all__ = ["ParentBases"]


class ParentBases:
    """Gives the plain bytes of bases. Safe to use from several threads."""

    def __init__(self, reader: Callable[[], SnapshotReader], cache: BaseCache | None) -> None:
        """Begin with nothing.

        Args:
            reader: gives the reader of the parent snapshot.
            cache: where to look for chunks in place of the store, if that is far away.
        """
        self._reader, self._cache = reader, cache

    def get(self, chunk: ChunkId, size: int) -> Buffer | None:
        """Return the bytes of a chunk, None if it costs too much to get them."""
        if self._cache is not None:
            return self._cache.get(chunk, size)
        try:
            reader = self._reader()
            return next(reader.chunks([ChunkRef(chunk, size)])) if reader.near else None
        except CasCheckpointError:
            return None

    def keep(self, chunk: ChunkId, plain: Buffer) -> None:
        """Remember a chunk that may be a base for the next save."""
        if self._cache is not None:
            self._cache.put(chunk, plain)

    def finish(self) -> None:
        """Keep no more than there is room for."""
        if self._cache is not None:
            self._cache.trim()
