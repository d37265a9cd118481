"""Where to cut a file that was saved before: first where it was cut then.

A chunk that is still there is found by hashing alone, which costs less than looking for cuts. Where a chunk is not as
it was, cuts are looked for, one by one, until a chunk of then begins again. Correctness never depends on a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cas_checkpoint.ids import ChunkId
from cas_checkpoint.manifests import ChunkRef
from cas_checkpoint.segments import Cut, Segment

__all__ = ["Candidate", "Forecast"]

_MAX_MISSES: Final = 64  # in a row; whoever changes more than that is cut in bulk, which is faster
_HORIZON: Final = 4096  # chunks ahead among which one that was found again is looked for


class Candidate(NamedTuple):
    """What may be an earlier version of a file: its first chunk, and how to get all."""

    first: ChunkRef
    refs: Callable[[], Sequence[ChunkRef]]


class Forecast:
    """The chunks of a file's earlier version, held against the file as it is read.

    Attributes:
        over: whether there is nothing more to be expected.
    """

    def __init__(self, candidates: Sequence[Candidate], *, refs: Sequence[ChunkRef] = (), number: int = 0) -> None:
        """Expect the chunks of the first candidate that begins as the file does; of a single one in any case.

        Without candidates, expect those of `refs` from `number` on.
        """
        self._candidates = candidates
        self._refs = refs
        self._next, self._misses = number, 0
        self._ahead: dict[ChunkId, int] = {}  # of the chunks from `_ahead_from` on, the number of the first that is it
        self._ahead_from = number
        self.over = not candidates and number >= len(refs)

    def cuts(self, segment: Segment, start: int, *, final: bool) -> list[Cut]:
        """Return the chunks of a segment from `start` on, as far as they can be told.

        If the segment is not the end of its stream (`final` is false), what is left may be the beginning of a chunk.
        """
        size = len(segment.view)
        if self._candidates:
            if not final and size - start <= segment.max_size:  # perhaps not even one chunk
                return []
            self._choose(segment, start)
        found: list[Cut] = []
        while not self.over and start < size:
            cut = self._cut(segment, start, final=final)
            if cut is None:
                break
            start = cut.end
            found.append(cut)
        return found

    def skipped(self, size: int) -> tuple[int, Forecast]:
        """Guess what will be expected `size` bytes further on: what was there, if nothing is inserted or removed.

        Returns:
            How many bytes beyond that a chunk begins, and the forecast from there on.
        """
        left, number = size, self._next
        while left > 0 and number < len(self._refs):
            left -= self._refs[number].size
            number += 1
        return max(0, -left), Forecast((), refs=self._refs, number=number)

    def _choose(self, segment: Segment, start: int) -> None:
        candidates, self._candidates = self._candidates, ()
        fitting = (one for one in candidates if segment.chunk(start, start + one.first.size) == one.first.chunk)
        chosen = candidates[0] if len(candidates) == 1 else next(fitting, None)
        self._refs = () if chosen is None else chosen.refs()
        self.over = not self._refs

    def _cut(self, segment: Segment, start: int, *, final: bool) -> Cut | None:
        """Return the first chunk: the next one of then if it is here, else one by content; None if it may go on."""
        ref = self._refs[self._next]
        size, same_end = len(segment.view), start + ref.size
        if same_end <= size and segment.chunk(start, same_end) == ref.chunk:
            self._go_on(self._next + 1)
            return Cut(same_end, ref.chunk)
        if not final and size - start <= segment.max_size:
            return None
        end = segment.first(start) or size
        chunk = segment.chunk(start, end)
        cut, number = Cut(end, chunk), self._found(chunk)
        if number is not None:
            self._go_on(number + 1)
            return cut
        self._next += end == same_end  # changed in its place
        self._misses += 1
        self.over = self._misses > _MAX_MISSES or self._next >= len(self._refs)
        return cut

    def _found(self, chunk: ChunkId) -> int | None:
        """Return the number of a chunk of then that is yet to come; None if it is not, or is too far away."""
        if not self._ahead or self._next > self._ahead_from + _HORIZON // 2:
            self._look_ahead()
        number = self._ahead.get(chunk)
        if number is not None and number < self._next:  # it is passed, but there may be another
            self._look_ahead()
            number = self._ahead.get(chunk)
        return number

    def _look_ahead(self) -> None:
        window = self._refs[self._next : self._next + _HORIZON]
        numbers = range(self._next, self._next + len(window))
        self._ahead = dict(zip((ref.chunk for ref in reversed(window)), reversed(numbers), strict=True))
        self._ahead_from = self._next

    def _go_on(self, number: int) -> None:
        self._next, self._misses = number, 0
        self.over = number >= len(self._refs)
