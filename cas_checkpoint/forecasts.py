"""Where to cut a file that was saved before: first where it was cut then.

A chunk that is still there is found by hashing alone, which costs less than looking for cuts. Where a chunk is not as
it was, cuts are looked for, one by one, until a chunk of then begins again. Correctness never depends on a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from cas_checkpoint.chunking import Cutter
from cas_checkpoint.ids import ChunkId, chunk_id
from cas_checkpoint.manifests import ChunkRef

__all__ = ["Candidate", "Cut", "Forecast"]

_MAX_MISSES: Final = 64  # in a row; whoever changes more than that is cut in bulk, which is faster
_HORIZON: Final = 4096  # chunks ahead among which one that was found again is looked for


class Cut(NamedTuple):
    """The end of a chunk, in bytes from where the cutting began, and the chunk's id where that is known already."""

    end: int
    chunk: ChunkId | None


class Candidate(NamedTuple):
    """What may be an earlier version of a file: its first chunk, and how to get all."""

    first: ChunkRef
    refs: Callable[[], Sequence[ChunkRef]]


class Forecast:
    """The chunks of a file's earlier version, held against the file as it is read.

    Attributes:
        over: whether there is nothing more to be expected.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Expect the chunks of the first candidate that begins as the file does; of a single one in any case."""
        self.over = not candidates
        self._candidates = candidates
        self._refs: Sequence[ChunkRef] = ()
        self._next = self._misses = 0
        self._ahead: dict[bytes, int] = {}

    def cuts(self, data: memoryview, cutter: Cutter, *, final: bool) -> list[Cut]:
        """Return the chunks with which `data` begins, as far as they can be told.

        If `data` is not the end of its stream (`final` is false), what is left may be the beginning of a chunk.
        """
        if self._candidates:
            if not final and len(data) <= cutter.parameters.max_size:  # perhaps not even one chunk
                return []
            self._choose(data)
        found: list[Cut] = []
        start = 0
        while not self.over and start < len(data):
            rest = data[start:]
            cut = self._expected(rest)
            if cut is None:
                if not final and len(rest) <= cutter.parameters.max_size:
                    break
                cut = self._searched(rest, cutter, final=final)
            start += cut.end
            found.append(cut._replace(end=start))
        return found

    def _choose(self, data: memoryview) -> None:
        candidates, self._candidates = self._candidates, ()
        fitting = (one for one in candidates if chunk_id(data[: one.first.size]) == one.first.chunk)
        chosen = candidates[0] if len(candidates) == 1 else next(fitting, None)
        self._refs = () if chosen is None else chosen.refs()
        self.over = not self._refs

    def _expected(self, rest: memoryview) -> Cut | None:
        """Return the next chunk of then, if it is here."""
        ref = self._refs[self._next]
        if ref.size > len(rest) or chunk_id(rest[: ref.size]) != ref.chunk:
            return None
        self._go_on(self._next + 1)
        return Cut(ref.size, ref.chunk)

    def _searched(self, rest: memoryview, cutter: Cutter, *, final: bool) -> Cut:
        """Return the first chunk by content, and go on with what followed it then, if it was there."""
        max_size = cutter.parameters.max_size
        end = cutter.first(rest[: max_size + 1]) or (len(rest) if final else max_size)
        chunk = chunk_id(rest[:end])
        if not self._ahead:
            ahead = islice(self._refs, self._next, self._next + _HORIZON)
            for number, ref in enumerate(ahead, self._next):
                self._ahead.setdefault(ref.chunk, number)
        found = self._ahead.get(chunk, -1)
        if found >= self._next:
            self._go_on(found + 1)
        else:
            self._misses += 1
            self.over = self._misses > _MAX_MISSES
        return Cut(end, chunk)

    def _go_on(self, number: int) -> None:
        self._next, self._misses, self._ahead = number, 0, {}
        self.over = number >= len(self._refs)
