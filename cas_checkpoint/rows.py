"""Footers of many packs → one table of chunks, sorted to be searched: what the index in memory is made of.

Footers are copied column by column, and what can be done for all of them at once is done at once: a pack costs a few
microseconds, a chunk 60 bytes, and what comes on top while a table is made is less than the table itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.codecs import BLOB_OVERHEAD, MAX_CHUNK_SIZE
from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import CHUNK_ID_SIZE, RANDOM_ID_SIZE, Buffer, PackId, digest
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.packs import (
    FOOTER_FRAME,
    FOOTER_TABLE_START,
    MAX_PACK_SIZE,
    PACK_TAIL_SIZE,
    PREFIX_SIZE,
    Footer,
    check_delta_rows,
    check_footer_size,
    footer_size,
    read_deltas,
)
from cas_checkpoint.records import CHECKSUM_SIZE, HEAD_SIZE, Kind, check_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROW_SIZE", "Bases", "ChunkRows", "Run", "Table", "blob_places", "id_words", "merge_runs"]

ROW_SIZE = 60
"""Bytes of memory that a chunk takes at most: 52, and 4 to 8 for hints. One that is a delta takes another 40."""

_FOOTER_ROW = footer_size(1) - footer_size(0)
_FOOTER_DELTA = footer_size(0, 1) - footer_size(0)
_ROWS_AT_ONCE = 2**13


class Run(NamedTuple):
    """Chunks sorted by the first word of their ids; of equal ones the first added comes first.

    Attributes:
        words: the ids as four words each, shape (4, n).
        columns: pack's number, offset, stored size, plain size, check; shape (5, n).
        hints: for each beginning of a first word 1 if there is one; at least 4 n and a power of two of them.
    """

    words: NDArray[np.uint64]
    columns: NDArray[np.uint32]
    hints: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        """The number of chunks."""
        return int(self.words.shape[1])

    def find(self, wanted: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Look for ids, given as words of shape (4, m); return the numbers of those that are here, and their rows.

        What is not here is mostly told by one byte of the hints, instead of some twenty words far apart.
        """
        open_ = np.flatnonzero(self.hints[_beginnings(wanted[0], self.hints.size)])
        rows = np.searchsorted(self.words[0], wanted[0, open_]) if len(open_) else open_
        found, places = [open_[:0]], [rows[:0]]
        while len(open_):
            inside = rows < self.rows
            open_, rows = open_[inside], rows[inside]
            same = self.words[0, rows] == wanted[0, open_]
            open_, rows = open_[same], rows[same]
            equal = (self.words[1:, rows] == wanted[1:, open_]).all(axis=0)
            found.append(open_[equal])
            places.append(rows[equal])
            open_, rows = open_[~equal], rows[~equal] + 1  # another chunk whose id begins with the same eight bytes
        return np.concatenate(found), np.concatenate(places)


class Bases(NamedTuple):
    """What chunks that are stored as deltas are deltas of, by the places of their blobs.

    Attributes:
        places: pack's number in the high half, offset in the low half; in increasing order, shape (m,).
        ids: the bases' ids, shape (m, 32).
    """

    places: NDArray[np.uint64]
    ids: NDArray[np.uint8]


class Table(NamedTuple):
    """The chunks of some packs, to be searched: those that are stored whole, and the others."""

    whole: Run
    deltas: Run
    bases: Bases


def blob_places(packs: NDArray[np.uint32], offsets: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return one number for each blob: its pack's number in the high half, its offset in the low half."""
    return packs.astype(np.uint64) << np.uint64(32) | offsets


def _beginnings(first_words: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return the highest bits of words: numbers below `count`, a power of two."""
    return first_words >> np.uint64(65 - count.bit_length())


def id_words(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return chunk ids of shape (n, 32) as words of shape (4, n)."""
    return np.ascontiguousarray(np.ascontiguousarray(ids).view("<u8").reshape(-1, 4).T, np.uint64)


class _Deltas(NamedTuple):
    """What the footer of a pack says about deltas.

    Attributes:
        pack: the pack's number.
        start: the number of its first chunk.
        rows: the numbers of those in the footer that are stored as deltas, shape (m,).
        bases: the ids of their bases, shape (m, 32).
    """

    pack: int
    start: int
    rows: NDArray[np.uint32]
    bases: NDArray[np.uint8]


class ChunkRows:
    """The chunks of many packs, gathered to be added to an index at once. Memory is taken as it fills.

    Attributes:
        packs: the packs, in the order in which they came.
        full: whether a pack was left out for want of room.
    """

    def __init__(self, capacity: int, *, limit: int | None = None, pack_cost: int = 0) -> None:
        """Make room.

        Args:
            capacity: for so many chunks.
            limit: chunks that may come, where each pack counts as `pack_cost` chunks besides, and each delta as two.
            pack_cost: see there.
        """
        self.packs: dict[PackId, None] = {}
        self.full = False
        self._capacity, self._pack_cost = capacity, pack_cost
        self._limit = 2 * capacity if limit is None else limit
        self._ends: list[int] = []  # for each pack the row after its last
        self._deltas: list[_Deltas] = []
        self._delta_count = 0
        self._words = np.empty((4, capacity), np.uint64)
        self._columns = np.empty((5, capacity), np.uint32)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self._ends[-1] if self._ends else 0

    def add(self, footers: Iterable[Footer]) -> None:
        """Add the chunks of packs that are not in here yet, as far as there is room."""
        self._gather((footer.pack, footer.encoded) for footer in footers)

    def add_copies(self, copies: Iterable[tuple[PackId, Buffer]]) -> None:
        """The same for copies of footers, each to be checked that it is of that pack.

        Raises:
            DamagedObject: one is not, or was altered; then none of them was added.
            UnsupportedStore: the same for one of a newer format version.
        """
        self._gather(_checked(copies))

    def _gather(self, pairs: Iterable[tuple[PackId, Buffer]]) -> None:
        """Copy the columns of footers; what they do not hold is computed for all together."""
        before, deltas_before, deltas_count = len(self._ends), len(self._deltas), self._delta_count
        blobs_sizes: list[int] = []
        try:
            for part in _parts(self._fitting(pairs, blobs_sizes)):
                self._fill(part)
            if blobs_sizes:
                self._complete(before, blobs_sizes, self._deltas[deltas_before:])
        except BaseException:
            for pack in list(self.packs)[before:]:
                del self.packs[pack]
            del self._ends[before:], self._deltas[deltas_before:]
            self._delta_count = deltas_count
            raise

    def _fitting(self, pairs: Iterable[tuple[PackId, Buffer]], blobs_sizes: list[int]) -> Iterator[tuple[Buffer, int]]:
        """Take note of packs that are new and for which there is room; yield their footers and numbers of chunks."""
        rows = len(self)
        for pack, encoded in pairs:
            if pack in self.packs:
                continue
            count, deltas, blobs_size = FOOTER_FRAME.unpack_from(encoded, PREFIX_SIZE)
            rows += count
            counted = rows + self._delta_count + deltas + (len(self.packs) + 1) * self._pack_cost
            if rows > self._capacity or counted > self._limit:
                self.full = True
                break
            self.packs[pack] = None
            self._ends.append(rows)
            blobs_sizes.append(blobs_size)
            if deltas:
                delta_rows, bases = read_deltas(encoded, count, deltas)
                self._deltas.append(_Deltas(len(self._ends) - 1, rows - count, delta_rows.copy(), bases.copy()))
                self._delta_count += deltas
            yield encoded, count

    def _fill(self, part: Sequence[tuple[Buffer, int]]) -> None:
        """Copy the columns of some footers, which are the last ones noted."""
        end = len(self)
        start = end - sum(count for _, count in part)
        ids = np.frombuffer(_joined(part, 0, CHUNK_ID_SIZE), "<u8")
        self._words[:, start:end] = ids.reshape(-1, 4).T
        for column, at in enumerate(range(CHUNK_ID_SIZE, _FOOTER_ROW, 4), 2):
            self._columns[column, start:end] = np.frombuffer(_joined(part, at, 4), "<u4")

    def _complete(self, before: int, blobs_sizes: Sequence[int], deltas: Sequence[_Deltas]) -> None:
        """Check the sizes in the footers added after the first `before`, and compute where their blobs lie."""
        start = self._ends[before - 1] if before else 0
        ends = np.array(self._ends[before:], np.int64)
        counts = np.diff(ends, prepend=start)
        _, offsets, stored, plain, _ = self._columns[:, start : int(ends[-1])]
        sums = np.zeros(len(stored) + 1, np.uint64)
        np.cumsum(stored, out=sums[1:], dtype=np.uint64)
        firsts = sums[ends - start - counts]
        totals = sums[ends - start] - firsts
        if (totals != np.array(blobs_sizes, np.uint64)).any():
            raise DamagedObject("the sizes in a pack's footer do not add up")
        around = counts * _FOOTER_ROW + (PREFIX_SIZE + footer_size(0) + PACK_TAIL_SIZE)
        for pack, _, delta_rows, _ in deltas:
            around[pack - before] += len(delta_rows) * _FOOTER_DELTA
        if (totals + around.astype(np.uint64) > MAX_PACK_SIZE).any():
            raise DamagedObject("the footer of a pack that would be larger than a pack can be")
        if (plain > MAX_CHUNK_SIZE).any() or (stored > plain + np.uint32(BLOB_OVERHEAD)).any():
            raise DamagedObject("a pack's footer lists a chunk of an impossible size")
        for pack, _, delta_rows, _ in deltas:
            check_delta_rows(delta_rows, int(counts[pack - before]))
        offsets[:] = sums[:-1] - np.repeat(firsts - np.uint64(PREFIX_SIZE), counts)

    def sorted(self, first: int) -> Table:
        """Return the chunks, their packs numbered from `first`, in the memory of this table, which is done with."""
        count = len(self)
        counts = np.diff([0, *self._ends])
        self._columns[0, :count] = np.repeat(np.arange(first, first + len(counts), dtype=np.uint32), counts)
        words, columns = self._words[:, :count], self._columns[:, :count]
        deltas = np.concatenate([np.empty(0, np.int64), *(start + rows for _, start, rows, _ in self._deltas)])
        delta_words, delta_columns = words[:, deltas], columns[:, deltas]
        ids = np.concatenate([np.empty((0, CHUNK_ID_SIZE), np.uint8), *(bases for _, _, _, bases in self._deltas)])
        bases = Bases(blob_places(delta_columns[0], delta_columns[1]), ids)
        if len(deltas):
            kept = np.ones(count, np.bool_)
            kept[deltas] = False
            count -= len(deltas)
            for row in (*words, *columns):
                row[:count] = row[kept]
        return Table(_sorted(words[:, :count], columns[:, :count]), _sorted(delta_words, delta_columns), bases)


def _parts(footers: Iterable[tuple[Buffer, int]]) -> Iterator[list[tuple[Buffer, int]]]:
    """Put footers together, so many that numpy's cost for each call is little and what is joined of them is small."""
    part: list[tuple[Buffer, int]] = []
    rows = 0
    for encoded, count in footers:
        part.append((encoded, count))
        rows += count
        if rows > _ROWS_AT_ONCE:
            yield part
            part, rows = [], 0
    if part:
        yield part


def _joined(part: Iterable[tuple[Buffer, int]], before: int, width: int) -> bytes:
    """Return one column of some footers: that which has columns of so many bytes a chunk before it."""
    starts = ((memoryview(encoded), FOOTER_TABLE_START + before * count, count) for encoded, count in part)
    return b"".join([view[start : start + width * count] for view, start, count in starts])


def _checked(copies: Iterable[tuple[PackId, Buffer]]) -> Iterator[tuple[PackId, Buffer]]:
    """Check footers as `packs.parse_footer` does, all but their sizes."""
    right = b""
    for pack, encoded in copies:
        if right != encoded[:HEAD_SIZE]:
            check_head(encoded, Kind.PACK)
            right = bytes(encoded[:HEAD_SIZE])
        if len(encoded) < footer_size(0):
            raise DamagedObject(f"a pack's footer of only {len(encoded)} bytes")
        if digest((encoded[:-CHECKSUM_SIZE],)) != encoded[-CHECKSUM_SIZE:]:
            raise DamagedObject("a pack's footer does not fit its checksum")
        found = bytes(encoded[HEAD_SIZE : HEAD_SIZE + RANDOM_ID_SIZE])
        if found != pack:
            raise DamagedObject(f"holds the footer of pack {found.hex()}")
        count, deltas, _ = FOOTER_FRAME.unpack_from(encoded, PREFIX_SIZE)
        check_footer_size(len(encoded), count, deltas)
        yield pack, encoded


def merge_runs(older: Run, newer: Run) -> Run:
    """Return the chunks of both."""
    words = np.concatenate([older.words, newer.words], axis=1)
    return _sorted(words, np.concatenate([older.columns, newer.columns], axis=1))


def _sorted(words: NDArray[np.uint64], columns: NDArray[np.uint32]) -> Run:
    """Sort rows in their own memory. First by the highest 16 bits: these numpy sorts by counting, in linear time."""
    count = words.shape[1]
    rough = np.argsort((words[0] >> np.uint64(48)).astype(np.uint16), kind="stable")
    order = rough[np.argsort(words[0][rough], kind="stable")]
    del rough
    scratch = np.empty(count, np.uint64)
    for row in (*words, *columns):
        moved = scratch.view(row.dtype)[:count]
        np.take(row, order, out=moved, mode="clip")  # in this mode numpy needs no buffer of its own
        row[:] = moved
    hints = np.zeros(2 ** (4 * count - 1).bit_length(), np.uint8)
    hints[_beginnings(words[0], hints.size)] = 1
    return Run(words, columns, hints)
