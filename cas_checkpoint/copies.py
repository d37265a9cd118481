"""Where chunks are to be had that are not in the pack that should hold them: moved, or in other packs by chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import pack_key
from cas_checkpoint.errors import DamagedObject, ObjectNotFound
from cas_checkpoint.fetching import ChunkRow, Failure, Request, requests
from cas_checkpoint.footers import all_index_footers, read_footer
from cas_checkpoint.ids import Buffer, ChunkId, PackId
from cas_checkpoint.index import ids_array
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.merging import PASSED_OVER, list_indexes
from cas_checkpoint.moves import MoveKey
from cas_checkpoint.packs import Footer
from cas_checkpoint.rows import id_words
from cas_checkpoint.transactions import list_moves, read_moves

__all__ = ["Moved", "Rescue", "follow_moves", "indexed_everywhere", "rows_of"]

_REQUESTS = 8  # at once


# --- moves --------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """Where the chunks of packs went that are gone.

    Attributes:
        footers: of the packs that hold them now.
        lost: packs that are gone although no move tells where their chunks went.
        faults: what was found damaged on the way, with its key.
    """

    footers: list[Footer]
    lost: list[PackId]
    faults: list[tuple[str, DamagedObject]]


def follow_moves(backend: Backend, packs: Iterable[PackId]) -> Moved:
    """Find out where the chunks of packs went that were found to be gone, by however many moves.

    A move is there before its pack is deleted: so it is enough to list the moves after a pack was missed.
    """
    found = Moved([], [], [])
    gone = list(dict.fromkeys(packs))
    seen = set(gone)
    with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-moves") as pool:
        while gone:
            fresh = _targets(backend, gone, found, pool) - seen
            seen |= fresh
            gone = []
            for pack, result in zip(fresh, pool.map(lambda pack: _footer(backend, pack), fresh), strict=True):
                if result is None:
                    gone.append(pack)
                elif isinstance(result, Footer):
                    found.footers.append(result)
                else:
                    found.faults.append((pack_key(pack), result))
    return found


def _targets(backend: Backend, gone: Collection[PackId], found: Moved, pool: ThreadPoolExecutor) -> set[PackId]:
    """Return the packs to which the moves of these say that their chunks went."""
    keys: dict[PackId, list[MoveKey]] = {pack: [] for pack in gone}
    for key in list_moves(backend):
        if key.pack in keys:
            keys[key.pack].append(key)
    found.lost.extend(pack for pack in gone if not keys[pack])
    wanted = [key for group in keys.values() for key in group]
    targets: set[PackId] = set()
    for key, result in zip(wanted, pool.map(lambda key: _move(backend, key), wanted), strict=True):
        if isinstance(result, frozenset):
            targets |= result
        else:
            found.faults.append((str(key), result))
    return targets


def _move(backend: Backend, key: MoveKey) -> frozenset[PackId] | DamagedObject:
    try:
        return read_moves(backend, [key]).get(key.pack, frozenset())
    except DamagedObject as error:
        return error


def _footer(backend: Backend, pack: PackId) -> Footer | DamagedObject | None:
    try:
        return read_footer(backend, pack)
    except ObjectNotFound:
        return None
    except DamagedObject as error:
        return error


# --- copies by chance ---------------------------------------------------------------------------


def indexed_everywhere(backend: Backend) -> Iterator[Footer]:
    """Yield what all index objects of the store tell, one after another: a pack may come several times, or be gone."""
    for name in list_indexes(backend):
        try:
            yield from all_index_footers(backend, name)
        except PASSED_OVER:
            continue


def rows_of(footer: Footer, wanted: Collection[ChunkId], *, whole: bool = False) -> list[tuple[int, ChunkId]]:
    """Return which of the wanted chunks a pack holds (if `whole`, not as deltas), with their rows in its footer."""
    words = id_words(ids_array(b"".join(wanted)))[0]
    is_wanted = np.isin(id_words(footer.ids)[0], words)
    if whole:
        is_wanted[footer.delta_rows] = False
    rows = np.flatnonzero(is_wanted).tolist()
    found = ((row, ChunkId(bytes(footer.ids[row]))) for row in rows)
    return [(row, chunk) for row, chunk in found if chunk in wanted]


_Fetch: TypeAlias = Callable[[Request, list[Failure]], Iterator[tuple[ChunkRow, Buffer]]]


class Rescue:
    """Tries other packs for chunks that could not be read where they should be.

    Attributes:
        wanted: for each of the chunks what went wrong, once for each time that it was asked for.
        gone: packs that were found to be gone, and whose moves were not followed yet.
    """

    def __init__(self, fetch: _Fetch, pack: PackId, failures: Iterable[Failure], *, whole: bool = False) -> None:
        """Take what could not be read from `pack`.

        Args:
            fetch: fetches the chunks of a request, and notes what it could not.
            pack: the pack.
            failures: what could not be read from it.
            whole: let no copies count that are deltas.
        """
        self._fetch, self._whole = fetch, whole
        self._tried = {pack}
        self.wanted: dict[ChunkId, list[Failure]] = {}
        self.gone: list[PackId] = []
        for failure in failures:
            self.wanted.setdefault(failure.row.chunk, []).append(failure)
            if isinstance(failure.error, ObjectNotFound) and not self.gone:
                self.gone.append(pack)

    def fetch_from(self, footer: Footer) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Yield those of the chunks that this pack holds and that are right; they are wanted no more."""
        if footer.pack in self._tried:
            return
        rows = sorted(self._rows(footer), key=lambda row: row[1].offset)
        if not rows:
            return
        self._tried.add(footer.pack)
        failures: list[Failure] = []
        for request in requests(rows):
            yield from self._fetch(request, failures)
        failed = {failure.row.number for failure in failures}
        for chunk in {row.chunk for _, row in rows}:
            self.wanted[chunk] = [failure for failure in self.wanted[chunk] if failure.row.number in failed]
            if not self.wanted[chunk]:
                del self.wanted[chunk]
        if any(isinstance(failure.error, ObjectNotFound) for failure in failures):
            self.gone.append(footer.pack)

    def _rows(self, footer: Footer) -> Iterator[tuple[PackId, ChunkRow]]:
        """Yield the rows to fetch; each chunk as often as it was asked for, and rather whole than as a delta."""
        seen: set[ChunkId] = set()
        rows = rows_of(footer, self.wanted.keys(), whole=self._whole)
        bases = footer.base_ids() if rows else {}
        for row, chunk in sorted(rows, key=lambda found: found[0] in bases):
            size = int(footer.plain_sizes[row])
            if chunk in seen or size != self.wanted[chunk][0].row.plain_size:
                continue
            seen.add(chunk)
            place = int(footer.offsets[row]), int(footer.stored_sizes[row]), size, int(footer.checks[row])
            for failure in self.wanted[chunk]:
                yield footer.pack, ChunkRow(chunk, *place, failure.row.number, bases.get(row))

    def failures(self) -> Iterator[Failure]:
        """Yield what could not be read anywhere."""
        for failures in self.wanted.values():
            yield from failures
