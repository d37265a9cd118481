"""The plain bytes of what chunks may be stored as deltas of: chunks of the parent snapshot.

Whatever is wrong with these, a save goes on without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import starmap

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

    def get(self, wanted: Mapping[ChunkId, int]) -> dict[ChunkId, Buffer]:
        """Return the bytes of chunks of these sizes, as far as they do not cost too much."""
        if self._cache is not None:
            kept = {chunk: self._cache.get(chunk, size) for chunk, size in wanted.items()}
            return {chunk: plain for chunk, plain in kept.items() if plain is not None}
        try:
            reader = self._reader()
        except CasCheckpointError:
            return {}
        return _read(reader, list(starmap(ChunkRef, wanted.items()))) if reader.near else {}

    def keep(self, chunk: ChunkId, plain: Buffer) -> None:
        """Remember a chunk that may be a base for the next save."""
        if self._cache is not None:
            self._cache.put(chunk, plain)

    def finish(self) -> None:
        """Keep no more than there is room for."""
        if self._cache is not None:
            self._cache.trim()


def _read(reader: SnapshotReader, refs: Sequence[ChunkRef]) -> dict[ChunkId, Buffer]:
    """Read chunks, as far as they can be read."""
    try:
        return dict(zip([ref.chunk for ref in refs], reader.chunks(refs), strict=True))
    except CasCheckpointError:
        if len(refs) == 1:
            return {}
        half = len(refs) // 2
        return _read(reader, refs[:half]) | _read(reader, refs[half:])
