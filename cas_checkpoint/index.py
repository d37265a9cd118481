"""Chunk id → where its blob lies: the index objects of a store, and the index in memory (SPEC.md, "Index").

An index object is a directory and copies of packs' footers. It is a cache: whatever it says can be read
from the packs themselves, and it may vanish at any time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import CHUNK_ID_SIZE, RANDOM_ID_SIZE, Buffer, PackId, TransactionId, digest
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.packs import Footer, footer_size, parse_footer
from cas_checkpoint.records import CHECKSUM_SIZE, HEAD_SIZE, Kind, check_head, make_head
from cas_checkpoint.rows import Bases, ChunkRows, Run, blob_places, id_words, merge_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ChunkIndex",
    "IndexDirectory",
    "Locations",
    "Section",
    "directory_size",
    "encode_index",
    "ids_array",
    "parse_directory",
    "parse_index",
]

_FRAME = struct.Struct("<QII")  # base, packs, reserved
_ROW = struct.Struct(f"<{RANDOM_ID_SIZE}sQII")  # pack, offset, size, reserved
_FRAME_END = HEAD_SIZE + RANDOM_ID_SIZE + _FRAME.size
_MAX_SORTED = 2**20  # chunks; of more, several runs are made
_MAX_MERGED = 2**19  # chunks; no longer run is made by merging, so that this never takes much memory


class Section(NamedTuple):
    """Where an index object holds the copy of one pack's footer. Offset and size are bytes."""

    pack: PackId
    offset: int
    size: int


class IndexDirectory(NamedTuple):
    """The first part of an index object.

    Attributes:
        base: the date of what the object knows: the base that was read before its packs were looked at.
        sections: one for each pack.
    """

    base: int
    sections: tuple[Section, ...]


def directory_size(packs: int) -> int:
    """Return the size in bytes of the directory, with all before it, of an index object of that many packs."""
    return _FRAME_END + packs * _ROW.size + CHECKSUM_SIZE


def encode_index(name: TransactionId, base: int, footers: Sequence[Footer]) -> bytes:
    """Return the index object of that name which holds these footers."""
    rows = []
    offset = directory_size(len(footers))
    for footer in footers:
        rows.append(_ROW.pack(footer.pack, offset, len(footer.encoded), 0))
        offset += len(footer.encoded)
    head = make_head(Kind.INDEX) + name + _FRAME.pack(base, len(footers), 0) + b"".join(rows)
    return b"".join((head, digest((head,)), *(footer.encoded for footer in footers)))


def parse_directory(data: Buffer, *, name: TransactionId, object_size: int) -> IndexDirectory | int:
    """Read the directory from the first bytes of an index object of `object_size` bytes.

    Returns:
        The directory; or, if `data` is too short to hold it, the number of first bytes that will do.

    Raises:
        DamagedObject: it is not the index object of that name, or was altered.
        UnsupportedStore: it is of a newer format version.
    """
    view = memoryview(data)
    end = _directory_end(view, name, object_size)
    return end if len(view) < end else _read_directory(view[:end], object_size)


def _directory_end(view: memoryview, name: TransactionId, object_size: int) -> int:
    check_head(view, Kind.INDEX)
    if object_size < directory_size(0) or len(view) < min(object_size, _FRAME_END):
        raise DamagedObject(f"an index of only {object_size} bytes")
    if bytes(view[HEAD_SIZE : HEAD_SIZE + RANDOM_ID_SIZE]) != bytes(name):
        raise DamagedObject("is the index of another name")
    _, count, _ = _FRAME.unpack_from(view, HEAD_SIZE + RANDOM_ID_SIZE)
    end = directory_size(count)
    if end > object_size:
        raise DamagedObject(f"an index of {object_size} bytes cannot list {count} packs")
    return end


def _read_directory(encoded: memoryview, object_size: int) -> IndexDirectory:
    content, checksum = encoded[:-CHECKSUM_SIZE], encoded[-CHECKSUM_SIZE:]
    if digest((content,)) != checksum:
        raise DamagedObject("its directory does not fit its checksum")
    base, _, _ = _FRAME.unpack_from(content, HEAD_SIZE + RANDOM_ID_SIZE)
    return IndexDirectory(base, tuple(_sections(content[_FRAME_END:], len(encoded), object_size)))


def _sections(rows: memoryview, start: int, object_size: int) -> Iterator[Section]:
    expected = start
    for pack, offset, size, _ in _ROW.iter_unpack(rows):
        if offset != expected or size < footer_size(0):
            raise DamagedObject("the sections in its directory do not follow one another")
        expected += size
        yield Section(PackId(pack), offset, size)
    if expected != object_size:
        raise DamagedObject(f"has {object_size} bytes instead of {expected}")


def parse_index(data: Buffer, *, name: TransactionId) -> tuple[int, list[Footer]]:
    """Read a whole index object: the date of what it knows, and all its footers."""
    view = memoryview(data)
    directory = _read_directory(view[: _directory_end(view, name, len(view))], len(view))
    footers = [
        parse_footer(view[section.offset : section.offset + section.size], pack=section.pack)
        for section in directory.sections
    ]
    return directory.base, footers


class Locations(NamedTuple):
    """Where blobs lie; arrays of one shape (n,).

    Attributes:
        found: bool; where it is false the other columns mean nothing.
        packs: uint32, numbers into `ChunkIndex.packs`.
        offsets: uint32, bytes from the start of the pack.
        stored_sizes: uint32, bytes of the blob.
        plain_sizes: uint32, bytes of the chunk.
        checks: uint32, check of the blob.
    """

    found: NDArray[np.bool_]
    packs: NDArray[np.uint32]
    offsets: NDArray[np.uint32]
    stored_sizes: NDArray[np.uint32]
    plain_sizes: NDArray[np.uint32]
    checks: NDArray[np.uint32]


def _merged(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Merge the last runs while the newest is more than half as long as the one before it."""
    while len(runs) > 1 and runs[-2].rows < runs[-1].rows * 2 <= 2 * (_MAX_MERGED - runs[-2].rows):
        runs = (*runs[:-2], merge_runs(*runs[-2:]))
    return runs


def _joined(tables: tuple[Bases, ...]) -> tuple[Bases, ...]:
    """Join the last tables while the newest is more than half as long as the one before it."""
    while len(tables) > 1 and len(tables[-2].places) < 2 * len(tables[-1].places):
        places, ids = (np.concatenate(pair) for pair in zip(*tables[-2:], strict=True))
        tables = (*tables[:-2], Bases(places, ids))
    return tables


class ChunkIndex:
    """The index in memory: sorted arrays, looked up in batches. One thread may add while others look up.

    Chunks are added pack by pack or many packs at once; short runs of like size are merged, so that a look-up
    searches few of them.
    """

    def __init__(self) -> None:
        """Make an empty index."""
        self.packs: list[PackId] = []
        self._numbers: dict[PackId, int] = {}
        self._runs: tuple[Run, ...] = ()  # replaced as a whole, never changed: readers need no lock
        self._deltas: tuple[Run, ...] = ()  # likewise: chunks that are stored as deltas
        self._bases: tuple[Bases, ...] = ()  # likewise: of these; each one's places lie above those of the one before

    def __len__(self) -> int:
        """Return the number of chunks; one held by two packs counts twice."""
        return sum(run.rows for run in (*self._runs, *self._deltas))

    @property
    def deltas(self) -> int:
        """The number of those that are stored as deltas."""
        return sum(run.rows for run in self._deltas)

    def __contains__(self, pack: object) -> bool:
        """Tell whether the chunks of that pack are in here."""
        return pack in self._numbers

    def add(self, footers: Iterable[Footer]) -> None:
        """Add the chunks of packs that are not in here yet; a million are sorted at once, and no more footers held."""
        part: list[Footer] = []
        chunks = 0
        for footer in footers:
            if footer.pack not in self._numbers:
                part.append(footer)
                chunks += len(footer.ids)
                if chunks >= _MAX_SORTED:
                    self._add(part, chunks)
                    part, chunks = [], 0
        self._add(part, chunks)

    def _add(self, footers: Iterable[Footer], chunks: int) -> None:
        rows = ChunkRows(chunks)
        rows.add(footers)
        self.adopt(rows)

    def adopt(self, rows: ChunkRows) -> None:
        """Add what was gathered of packs that are not in here yet; the memory of `rows` becomes that of the index."""
        first = len(self.packs)
        self.packs.extend(rows.packs)
        self._numbers.update((pack, first + number) for number, pack in enumerate(rows.packs))
        if len(rows):
            table = rows.sorted(first)
            if table.deltas.rows:  # the bases come first: what is found must have them
                self._bases = _joined((*self._bases, table.bases))
                self._deltas = _merged((*self._deltas, table.deltas))
            if table.whole.rows:
                self._runs = _merged((*self._runs, table.whole))

    def locate(self, ids: NDArray[np.uint8], *, whole: bool = False) -> Locations:
        """Look up chunk ids, uint8 of shape (n, 32).

        Of several places one where the chunk is stored whole is told, of several such ones that which was added first.

        Args:
            ids: the chunk ids.
            whole: let no places count where a chunk is stored as a delta.
        """
        words = id_words(ids)
        count = words.shape[1]
        found = np.zeros(count, np.bool_)
        columns = np.zeros((5, count), np.uint32)
        missing = np.arange(count)
        for run in self._runs if whole else (*self._runs, *self._deltas):
            if not len(missing):
                break
            hits, rows = run.find(words[:, missing])
            if len(hits):
                found[missing[hits]] = True
                columns[:, missing[hits]] = run.columns[:, rows]
                missing = np.delete(missing, hits)
        return Locations(found, *columns)

    def bases(self, found: Locations) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Tell which of the chunks that were located are stored as deltas, and of what.

        Returns:
            Their numbers among those located, in increasing order, shape (m,); the ids of their bases, shape (m, 32).
        """
        there = np.flatnonzero(found.found) if self._bases else np.empty(0, np.int64)
        numbers, ids = self._bases_at(blob_places(found.packs[there], found.offsets[there]))
        return there[numbers], ids

    def _bases_at(self, places: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Tell at which of these places deltas lie, and of what."""
        numbers, ids = [np.empty(0, np.int64)], [np.empty((0, CHUNK_ID_SIZE), np.uint8)]
        for bases in self._bases:
            rows = np.minimum(np.searchsorted(bases.places, places), len(bases.places) - 1)
            hits = np.flatnonzero(bases.places[rows] == places)
            numbers.append(hits)
            ids.append(bases.ids[rows[hits]])
        every = np.concatenate(numbers)
        order = np.argsort(every)
        return every[order], np.concatenate(ids)[order]

    def every_base(self, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the ids of all chunks that any pack holds one of these as a delta of, shape (m, 32).

        The same id may come several times, and so do those for chunks whose ids begin with the same eight bytes.
        """
        words = np.unique(id_words(ids)[0]) if self._deltas else np.empty(0, np.uint64)
        places = [np.empty(0, np.uint64)]
        for run in self._deltas:
            starts, ends = (np.searchsorted(run.words[0], words, side) for side in ("left", "right"))
            counts = ends - starts
            rows = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
            places.append(blob_places(run.columns[0, rows], run.columns[1, rows]))
        return self._bases_at(np.concatenate(places))[1]

    def contains(self, ids: Sequence[bytes]) -> NDArray[np.bool_]:
        """Tell for each chunk id whether it is in here."""
        return self.locate(ids_array(b"".join(ids))).found


def ids_array(joined: Buffer) -> NDArray[np.uint8]:
    """Return concatenated chunk ids as an array of shape (n, 32)."""
    return np.frombuffer(joined, np.uint8).reshape(-1, CHUNK_ID_SIZE)
