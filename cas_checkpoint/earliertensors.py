"""Where the parent snapshot holds an earlier version of the tensors of files, however they were divided among files.

Whatever is wrong with it, a save goes on without it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from typing import NamedTuple

from cas_checkpoint.comparing import Comparison, file_kind
from cas_checkpoint.errors import CasCheckpointError
from cas_checkpoint.manifests import ChunkRef, Entry
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.tensorcuts import Earlier, FindEarlier
from cas_checkpoint.tensorfiles import TensorFile
from cas_checkpoint.tensors import Layout, Region

__all__ = ["EarlierTensors"]

_MAX_FILES = 1024  # in which parts of tensors are looked for
_MAX_FAR_FILES = 64  # the same in a store far away, of which each takes a few requests
_NAMELESS = {"npy"}  # containers that do not say what their tensor is called


class EarlierTensors:
    """Finds what the parent snapshot holds of the tensors of files. Used by one thread, file by file in their order.

    A tensor is looked for in the earlier version of its file. If it has a name, and is not there or in another size, as
    its parts were divided among more or fewer files since, it is looked for in those of the same kind in the same
    directory: whatever has its name there is taken for its parts, in the order of the files, in the parent and now.
    """

    def __init__(self, comparison: Comparison) -> None:
        """Begin without having read anything."""
        self._comparison = comparison
        self._divided: dict[tuple[bytes, bytes], _DividedTensors] = {}

    def finder(self, entry: Entry, earlier: Entry | None, layout: Layout) -> FindEarlier:
        """Return what finds earlier versions of the regions of a file.

        Args:
            entry: the file; all files of one kind must come here in their order.
            earlier: what is perhaps an earlier version of it.
            layout: where its tensors lie.
        """
        reader, kind = self._comparison.reader(), file_kind(entry.path)
        if kind not in self._divided:
            self._divided[kind] = _DividedTensors(reader, lambda: self._comparison.neighbours(entry.path))
        divided = self._divided[kind]
        places = {region.name: divided.place_next(region) for region in layout.regions}
        held = {} if earlier is None else _held_regions(reader, earlier)

        def find(region: Region) -> Sequence[Earlier]:
            same = held.get(region.name)
            if same is not None and same.size == region.size:
                return same.chunks
            return () if layout.container in _NAMELESS else divided.find(region, places[region.name])

        return find


class _Held(NamedTuple):
    """A region that the parent holds; no chunks if they do not begin and end with it."""

    size: int
    chunks: Sequence[Earlier]


class _DividedTensors:
    """Tensors of which each of several files has a part, or the whole of some."""

    def __init__(self, reader: SnapshotReader, files: Callable[[], Sequence[Entry]]) -> None:
        """Take what reads the parent, and what returns its files."""
        self._reader, self._files = reader, files
        self._parts: dict[str, _Parts] | None = None
        self._placed: dict[str, int] = {}

    def place_next(self, region: Region) -> int:
        """Return how much of a tensor was in the files that came here before, bytes."""
        place = self._placed.get(region.name, 0)
        self._placed[region.name] = place + region.size
        return place

    def find(self, region: Region, place: int) -> Sequence[Earlier]:
        """Return the chunks of a region that begins at that place of its tensor."""
        if self._parts is None:
            self._parts = self._read()
        parts = self._parts.get(region.name)
        return () if parts is None else parts.between(place, place + region.size)

    def _read(self) -> dict[str, _Parts]:
        parts: dict[str, _Parts] = {}
        for entry in self._files()[: _MAX_FILES if self._reader.near else _MAX_FAR_FILES]:
            for name, held in _held_regions(self._reader, entry).items():
                parts.setdefault(name, _Parts()).add(held)
        return parts


class _Parts:
    """The chunks of a tensor, in the order of its parts."""

    def __init__(self) -> None:
        self._size = 0
        self._chunks: list[Earlier] = []
        self._ends: list[int] = []

    def add(self, held: _Held) -> None:
        """Add the next part."""
        for one in held.chunks:
            self._chunks.append(one._replace(place=self._size + one.place))
            self._ends.append(self._size + one.place + one.size)
        self._size += held.size

    def between(self, start: int, end: int) -> list[Earlier]:
        """Return the chunks that have anything of a range, with their places counted from its start."""
        found = islice(self._chunks, bisect_right(self._ends, start), None)
        return [one._replace(place=one.place - start) for one in takewhile(lambda one: one.place < end, found)]


def _held_regions(reader: SnapshotReader, entry: Entry) -> dict[str, _Held]:
    """Return the regions of a file of the parent; none if it is no container of tensors, or cannot be read."""
    with suppress(CasCheckpointError):
        opened = TensorFile.open(reader, entry) if entry.extents is None else None
        if opened is not None:
            chunks = opened.file.starts()
            return {region.name: _Held(region.size, _chunks_of(region, chunks)) for region in opened.layout.regions}
    return {}


def _chunks_of(region: Region, chunks: Mapping[int, ChunkRef]) -> list[Earlier]:
    """Return the chunks of a region, none if they do not begin and end with it."""
    found: list[Earlier] = []
    place = 0
    while place < region.size:
        ref = chunks.get(region.offset + place)
        if ref is None:
            return []
        found.append(Earlier(place, ref.size, ref.chunk))
        place += ref.size
    return found if place == region.size else []
