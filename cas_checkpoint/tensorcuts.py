"""Where to cut a file whose tensors are known: where they begin, and large ones into halves, quarters and so on.

So a tensor has the same chunks wherever it lies, and so have its halves and quarters along the first axis when it is
divided among more files. One that an earlier snapshot had in other chunks, as files were put together since, keeps
those. What lies between tensors is cut by content, anew after each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.ids import ChunkId
from cas_checkpoint.segments import Cut, Hint, Segment
from cas_checkpoint.tensors import Region

__all__ = ["Earlier", "FindEarlier", "TensorCuts"]


class Earlier(NamedTuple):
    """A chunk of an earlier version of a region.

    Attributes:
        place: where it begins, from the beginning of the region, bytes; below 0 if it begins before that.
        size: its bytes.
        chunk: its id.
    """

    place: int
    size: int
    chunk: ChunkId


FindEarlier: TypeAlias = Callable[[Region], Sequence[Earlier]]
"""Returns chunks that hold an earlier version of a region, in their order, as far as there are any."""

_ENDLESS = 2**63
_MORE_PARTS = 8  # a region may have kept so many times the parts that its size asks for


class _Piece(NamedTuple):
    """A run of the stream: a chunk of a tensor, or bytes that are cut by content. `end` counts from the beginning."""

    end: int
    hint: Hint | None


class TensorCuts:
    """The chunks of one file, told by its regions; see `streams.Plan`."""

    over = False

    def __init__(self, regions: Sequence[Region], chunker: ChunkerParameters, find: FindEarlier) -> None:
        """Begin at the beginning of the file.

        Args:
            regions: in the order of their offsets, not overlapping.
            chunker: its `max_size` is that of a chunk; regions smaller than its `min_size` are taken for other bytes.
            find: finds earlier versions.
        """
        self._pieces = _pieces(regions, chunker, find)
        self._position = 0
        self._piece = next(self._pieces)

    def skipped(self, size: int) -> None:
        """Guess nothing: no cut of a tensor needs a look at its bytes."""

    def cuts(self, segment: Segment, start: int, *, final: bool) -> list[Cut]:
        """See `streams.Plan`."""
        found: list[Cut] = []
        size = len(segment.view)
        while start < size:
            ends = self._ends(segment, start, final=final)
            if not ends:
                break
            found += [Cut(end, None, self._piece.hint) for end in ends]
            self._position += ends[-1] - start
            start = ends[-1]
            if self._position == self._piece.end:
                self._piece = next(self._pieces)
        return found

    def _ends(self, segment: Segment, start: int, *, final: bool) -> list[int]:
        """Return the ends of the first chunks from `start` on, none if they may go on."""
        stop, size = start + self._piece.end - self._position, len(segment.view)
        if self._piece.hint is None:
            return segment.apart(start, min(stop, size), final=final or stop <= size)
        if stop <= size:
            return [stop]
        return segment.apart(start, size, final=True) if final else []  # shorter than it was when it was looked at


def _pieces(regions: Sequence[Region], chunker: ChunkerParameters, find: FindEarlier) -> Iterator[_Piece]:
    position = 0
    for region in regions:
        if region.size < chunker.min_size:
            continue
        if region.offset > position:
            yield _Piece(region.offset, None)
        earlier = find(region)
        places = [one.place for one in earlier]
        for place, size in _parts(region, chunker.max_size, earlier):
            number = bisect_right(places, place) - 1
            base, start = None, 0
            if number >= 0 and place + size <= places[number] + earlier[number].size:
                base, start = earlier[number].chunk, place - places[number]
            yield _Piece(region.offset + place + size, Hint(region.elements, base, start))
        position = region.offset + region.size
    yield _Piece(_ENDLESS, None)


def _parts(region: Region, max_size: int, earlier: Sequence[Earlier]) -> list[tuple[int, int]]:
    """Return place and size of the parts of a region: as they were, else a power of two of equal ones."""
    size = _part_size(region, max_size)
    parts = [(place, min(size, region.size - place)) for place in range(0, region.size, size)]
    before = [(place, size) for place, size, _ in earlier]
    ends = [place + size for place, size in before]
    if [place for place, _ in before] != [0, *ends[:-1]] or ends[-1] != region.size:
        return parts
    is_odd = any(size > max_size or size % region.elements.width for _, size in before)
    return parts if is_odd or len(before) > _MORE_PARTS * len(parts) else before


def _part_size(region: Region, max_size: int) -> int:
    """Return the size of the parts of a region; whole rows, if these are not larger than parts may be."""
    unit, count = region.row_size, 1
    while (size := _share(region.size, unit, count)) > max_size:
        if count * unit >= region.size:
            unit = region.elements.width
        else:
            count *= 2
    return size


def _share(size: int, unit: int, count: int) -> int:
    """Return the size of one of `count` parts of so many bytes, in whole units."""
    return -(-(size // unit) // count) * unit
