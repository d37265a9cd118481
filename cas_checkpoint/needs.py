"""Which chunks of given packs are needed: those that entries consist of, and those that these are deltas of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from cas_checkpoint.index import ids_array
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import ChunkRef
from cas_checkpoint.packs import Footer
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.rows import id_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ChunkNeeds"]

_REFS_AT_ONCE = 2**14


class ChunkNeeds:
    """Tells for each chunk of some packs whether it is needed.

    A chunk counts as needed in every pack that holds it, and so does one whose id begins with the same eight bytes: to
    keep too much is harmless.
    """

    def __init__(self, footers: Sequence[Footer]) -> None:
        """Take the packs' footers; nothing is needed yet. Memory: about 24 bytes a chunk."""
        self._footers = footers
        words = [id_words(footer.ids)[0] for footer in footers]
        every = np.concatenate(words) if words else np.empty(0, np.uint64)
        self._order = np.argsort(every, kind="stable")
        self._sorted = every[self._order]
        self._changes = np.zeros(len(every) + 1, np.int32)  # of the number of needs, along the sorted words

    def add(self, reader: SnapshotReader) -> None:
        """Note all chunks that a snapshot needs; errors as for `SnapshotReader.entries` and `SnapshotReader.bases`."""
        refs = _all_refs(reader)
        while batch := list(islice(refs, _REFS_AT_ONCE)):
            chunks = [ref.chunk for ref in batch]
            ids = np.concatenate([ids_array(b"".join(chunks)), reader.bases(chunks)])
            words = np.unique(id_words(ids)[0])
            starts = np.searchsorted(self._sorted, words, "left")
            ends = np.searchsorted(self._sorted, words, "right")
            found = ends > starts
            self._changes[starts[found]] += 1
            self._changes[ends[found]] -= 1

    def rows(self) -> Iterator[NDArray[np.bool_]]:
        """Yield for each footer, in their order, which of its rows are needed."""
        flags = np.empty(len(self._order), bool)
        flags[self._order] = np.cumsum(self._changes[:-1]) > 0
        start = 0
        for footer in self._footers:
            end = start + len(footer.ids)
            yield flags[start:end]
            start = end


def _all_refs(reader: SnapshotReader) -> Iterator[ChunkRef]:
    """Yield every chunk that a snapshot needs: of files, of its entries, and of lists of chunks."""
    contents = (entry.content for entry in reader.entries() if entry.content is not None)
    for content in chain([reader.manifest().entries], contents):
        yield from reader.refs(content, lists=True)
