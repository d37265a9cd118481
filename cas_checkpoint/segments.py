"""A run of a stream's bytes in memory, with what was found out about it: where chunks end by content, and their ids.

Both take long, and depend on the bytes alone. So worker threads may find out ahead what is likely to be asked; what
was guessed wrong is only found out in vain.
"""

from __future__ import annotations

from typing import NamedTuple

from cas_checkpoint.chunking import Cutter
from cas_checkpoint.elements import Elements
from cas_checkpoint.ids import ChunkId, chunk_id

__all__ = ["Cut", "Hint", "Segment"]


class Hint(NamedTuple):
    """What helps to code a chunk.

    Attributes:
        elements: what it consists of.
        base: a chunk that holds an earlier version of it; None if there is none.
        start: where in that one the earlier version begins, bytes.
    """

    elements: Elements
    base: ChunkId | None
    start: int = 0


class Cut(NamedTuple):
    """The end of a chunk in its segment; the chunk's id and what it consists of, where these are known already."""

    end: int
    chunk: ChunkId | None
    hint: Hint | None = None


class Segment:
    """Bytes of one stream that are held together. For one thread at a time.

    Attributes:
        view: the bytes.
        max_size: no chunk that is cut by content is longer.
    """

    __slots__ = ("_cutter", "_ends", "_ids", "max_size", "view")

    def __init__(self, view: memoryview, cutter: Cutter) -> None:
        """Begin without knowing anything; `cutter` says how to cut."""
        self.view = view
        self.max_size = cutter.parameters.max_size
        self._cutter = cutter
        self._ends: dict[int, int | None] = {}
        self._ids: dict[tuple[int, int], ChunkId] = {}

    @property
    def known(self) -> int:
        """How much was found out."""
        return len(self._ends) + len(self._ids)

    def chunk(self, start: int, end: int) -> ChunkId:
        """Return the id of the chunk from `start` to `end`."""
        found = self._ids.get((start, end))
        if found is None:
            found = self._ids[start, end] = chunk_id(self.view[start:end])
        return found

    def first(self, start: int) -> int | None:
        """Return where a chunk that begins at `start` ends by content; None if that depends on bytes still to come."""
        if start in self._ends:
            return self._ends[start]
        end = self._cutter.first(self.view[start : start + self.max_size + 1]) if start < len(self.view) else None
        found = self._ends[start] = None if end is None else start + end
        return found

    def apart(self, start: int, stop: int, *, final: bool) -> list[int]:
        """Return the ends of all chunks from `start` on of a stream that lies by itself in the segment, up to `stop`.

        As for `cuts`, the last one is left out if its end depends on bytes to come.
        """
        return [start + end for end in self._cutter.cuts(self.view[start:stop], final=final)]

    def cuts(self, start: int, *, final: bool) -> list[int]:
        """Return the ends of all chunks from `start` on; the last one is left out if its end depends on bytes to come.

        If then nothing is left, there are no more than `max_size` bytes from `start` on.
        """
        ends: list[int] = []
        if not self._ends:
            ends = [start + end for end in self._cutter.cuts(self.view[start:], final=False)]
            self._ends.update(zip((start, *ends), (*ends, None), strict=True))
            start = ends[-1] if ends else start
        while (end := self.first(start)) is not None:
            ends.append(end)
            start = end
        if final and start < len(self.view):
            ends.append(len(self.view))
        return ends
