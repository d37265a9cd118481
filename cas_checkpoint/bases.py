"""What the deltas of a store are deltas of: read from whichever pack holds it whole, and checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.codecs import Decoder
from cas_checkpoint.copying import check_blob, read_blobs
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, ObjectNotFound, UnsupportedStore
from cas_checkpoint.ids import ChunkId, PackId
from cas_checkpoint.index import ids_array
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.packs import Footer
from cas_checkpoint.rows import id_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Fault", "KnownBases"]

_Copy = tuple[int, int]  # the number of a footer, and a row in it


class Fault(NamedTuple):
    """A chunk that is not right in a pack, and what is wrong with it."""

    pack: PackId
    chunk: ChunkId
    error: CasCheckpointError


class KnownBases:
    """Where the chunks lie that any deltas of some packs are deltas of. Safe to use from several threads.

    Memory: about 16 bytes for each copy of such a chunk.
    """

    def __init__(self, backend: Backend, footers: Iterable[Footer]) -> None:
        """Take the footers of all packs that there are."""
        self._backend, self._footers = backend, list(footers)
        bases = [id_words(footer.bases)[0] for footer in self._footers if len(footer.bases)]
        wanted = np.unique(np.concatenate(bases)) if bases else np.empty(0, np.uint64)
        words: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        places: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
        for number, footer in enumerate(self._footers if len(wanted) else ()):
            found = id_words(footer.ids)[0]
            is_base = wanted[np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)] == found
            is_base[footer.delta_rows] = False
            rows = np.flatnonzero(is_base)
            words.append(found[rows])
            places.append(np.stack([np.full(len(rows), number), rows], axis=1))
        every = np.concatenate(words)
        order = np.argsort(every, kind="stable")
        self._words, self._places = every[order], np.concatenate(places)[order].astype(np.uint32)

    def _copies(self, chunks: Collection[ChunkId]) -> dict[ChunkId, list[_Copy]]:
        """Return where chunks are stored whole."""
        words = id_words(ids_array(b"".join(chunks)))[0]
        starts, ends = (np.searchsorted(self._words, words, side).tolist() for side in ("left", "right"))
        copies: dict[ChunkId, list[_Copy]] = {}
        for chunk, start, end in zip(chunks, starts, ends, strict=True):
            places = [(number, row) for number, row in self._places[start:end].tolist()]
            copies[chunk] = [place for place in places if bytes(self._footers[place[0]].ids[place[1]]) == chunk]
        return copies

    def read(self, chunks: Collection[ChunkId]) -> tuple[dict[ChunkId, bytes], list[Fault]]:
        """Read chunks that others are deltas of, as far as any pack holds them whole and right.

        Returns:
            Their plain bytes, and which copies were found damaged.

        Raises:
            StorageError: a pack cannot be read.
        """
        copies = self._copies(chunks)
        decoder = Decoder()
        found: dict[ChunkId, bytes] = {}
        faults: list[Fault] = []
        while copies := {chunk: left for chunk, left in copies.items() if left and chunk not in found}:
            rows: dict[int, list[int]] = {}
            for left in copies.values():
                number, row = left.pop(0)
                rows.setdefault(number, []).append(row)
            for number, wanted in rows.items():
                self._read(self._footers[number], wanted, decoder, found, faults)
        return found, faults

    def _read(
        self,
        footer: Footer,
        rows: Collection[int],
        decoder: Decoder,
        found: dict[ChunkId, bytes],
        faults: list[Fault],
    ) -> None:
        """Read the chunks in these rows of a pack."""
        try:
            for row, blob in read_blobs(self._backend, footer, sorted(rows)):
                chunk = ChunkId(bytes(footer.ids[row]))
                try:
                    if isinstance(blob, DamagedObject):
                        raise blob
                    found[chunk] = bytes(check_blob(decoder, footer, row, blob) or b"")
                except DamagedObject as error:
                    faults.append(Fault(footer.pack, chunk, error))
                except UnsupportedStore:
                    continue
        except ObjectNotFound:
            return
