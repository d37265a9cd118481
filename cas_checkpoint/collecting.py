"""Garbage collection, beside any number of writers, forgetters and other collectors (SPEC.md, "Order of writes").

No lock and no clock is needed for its safety. A collection announces what it means to delete in a mark, and only then
looks again at what is needed; a save writes its manifest, and only then looks at the marks: one of them sees the other.
A collection may stop anywhere; the next one does what was left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cas_checkpoint.backends import Backend, ObjectInfo
from cas_checkpoint.commits import CommitKey, pack_key
from cas_checkpoint.copying import PackCopier
from cas_checkpoint.errors import CasCheckpointError, DamagedStore, InvalidArgument, ObjectNotFound, UnsupportedStore
from cas_checkpoint.footers import read_footer
from cas_checkpoint.headers import FEATURES, Header, check_features
from cas_checkpoint.ids import SAVE_ID_SIZE, PackId, is_hex_id
from cas_checkpoint.index import ChunkIndex, ids_array
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.merging import put_index, refresh_indexes
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.moves import MoveKey, closure
from cas_checkpoint.needs import ChunkNeeds
from cas_checkpoint.packs import Footer
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.roots import Roots
from cas_checkpoint.transactions import (
    abort,
    close_mark,
    condemned_packs,
    list_marks,
    list_packs,
    publish_mark,
    put_move,
    read_mark,
    remove_marks,
)

__all__ = ["CollectReport", "Garbage", "collect"]

_DAY = 86_400.0
_KEPT_MARKS = 64
_MAX_ROWS = 2**21  # chunks of suspected packs looked at together
_REQUESTS = 8  # at once
_WORTH_LOOKING = 256 * 2**20  # so many bytes forgotten make it worth to look how much can be freed
_WORTH_COLLECTING = 0.1  # share of the bytes of all packs
_AUTOMATIC_GRACE = 3600.0


class CollectReport(NamedTuple):
    """What a collection did, or would do. Sizes are bytes.

    Attributes:
        packs_deleted: packs that were deleted.
        packs_repacked: those of them of which some chunks were needed, and copied.
        transactions_aborted: saves without a commit that were given up.
        bytes_deleted: size of all objects that were deleted.
        bytes_written: size of the objects that were written to that end; what became free is the difference.
        bytes_waiting: size of unneeded packs that were left because they are younger than the grace period.
        packs_spared: packs that somebody came to need meanwhile, or that could not be repacked.
        dry_run: whether nothing was done in fact.
    """

    packs_deleted: int = 0
    packs_repacked: int = 0
    transactions_aborted: int = 0
    bytes_deleted: int = 0
    bytes_written: int = 0
    bytes_waiting: int = 0
    packs_spared: int = 0
    dry_run: bool = False

    @property
    def bytes_freed(self) -> int:
        """By how much the store became smaller; it may have grown a little."""
        return self.bytes_deleted - self.bytes_written

    def plus(self, later: CollectReport) -> CollectReport:
        """Return what this one and a later one did together."""
        sums = {name: getattr(self, name) + getattr(later, name) for name in self._fields}
        return CollectReport(**sums | {"bytes_waiting": later.bytes_waiting, "dry_run": self.dry_run})


def collect(
    backend: Backend,
    header: Header,
    *,
    grace: float,
    repack: float | None,
    dry_run: bool,
    now: float,
    monitor: Monitor,
    at_least: float = 0.0,
) -> CollectReport:
    """Delete what no snapshot needs; see `Store.collect`.

    Args:
        backend: the store's backend.
        header: the store's header.
        grace: seconds; what a save wrote that has shown a sign of life since is left alone.
        repack: share of a pack that must be dead for its rest to be copied, None for no such copies.
        dry_run: only tell what would be done.
        now: the time, seconds since 1970.
        monitor: told of progress and warnings.
        at_least: do nothing unless that share of the bytes of all packs is dead.
    """
    check_features(header, "collect")
    if not all(set(FEATURES) <= set(names) for _, names in header.features):
        raise UnsupportedStore(
            "this store may be written by older versions of this program, which do not look out for collections; "
            "save into a new store to be able to collect"
        )
    if not header.put_if_absent and grace < _DAY:
        raise InvalidArgument(
            "this store is in a place where no object can be created exclusively, so age must protect saves under way: "
            "run one collection at a time, with a grace period of at least a day"
        )
    collection = _Collection(backend, header, grace=grace, now=now, monitor=monitor)
    report = collection.run(repack=repack, dry_run=dry_run, at_least=at_least)
    if dry_run or not report.transactions_aborted:
        return report
    collection = _Collection(backend, header, grace=grace, now=now, monitor=monitor, give_up=False)
    return report.plus(collection.run(repack=repack, dry_run=dry_run, at_least=0.0))  # of what only those needed


class _Source(NamedTuple):
    """A pack that is to be replaced by copies of what is needed of it.

    Attributes:
        size: its size in bytes.
        footer: its footer.
        needed: numbers of the rows to keep.
    """

    size: int
    footer: Footer
    needed: Sequence[int]


class _Collection:
    """One collection, step by step."""

    def __init__(
        self, backend: Backend, header: Header, *, grace: float, now: float, monitor: Monitor, give_up: bool = True
    ) -> None:
        self._backend, self._header, self._monitor = backend, header, monitor
        self._grace, self._now, self._give_up = grace, now, give_up
        self._base = 0
        self._roots = Roots(backend, header.store)
        self._packs: dict[PackId, ObjectInfo] = {}
        self._deleted = self._written = 0

    def run(self, *, repack: float | None, dry_run: bool, at_least: float) -> CollectReport:
        """Do it."""
        self._look()
        needed = self._roots.needed()
        dead, waiting = self._dead(needed)
        report = CollectReport(bytes_waiting=self._size(waiting), dry_run=dry_run)
        if self._size(dead) < at_least * self._size(self._packs):
            return report
        sources = self._sources(needed, repack)
        if dry_run:
            return self._forecast(report, dead, sources)
        looked_at = {pack: self._roots.needing([pack]).keys() for pack in sources}
        targets = self._move(sources)
        seen = self._roots.move_keys
        deleted, moved, aborted = self._sweep(dead, targets, looked_at)
        self._tidy(seen)
        return report._replace(
            packs_deleted=len(deleted),
            packs_repacked=len(moved),
            packs_spared=len(dead) + len(sources) - len(deleted),
            transactions_aborted=aborted,
            bytes_deleted=self._deleted,
            bytes_written=self._written,
        )

    def _size(self, packs: Iterable[PackId]) -> int:
        return sum(self._packs[pack].size for pack in packs)

    def _forecast(
        self, report: CollectReport, dead: frozenset[PackId], sources: dict[PackId, _Source]
    ) -> CollectReport:
        return report._replace(
            packs_deleted=len(dead) + len(sources),
            packs_repacked=len(sources),
            transactions_aborted=len(self._abandoned()),
            bytes_deleted=self._size((*dead, *sources)),
            bytes_written=sum(_kept_size(source) for source in sources.values()),
        )

    # --- what is dead ---

    def _look(self) -> None:
        """Read the base, then list the packs, then the manifests, commits and moves."""
        self._base = list_marks(self._backend).base
        for info in self._backend.list("packs/"):
            name = info.key.removeprefix("packs/")
            if is_hex_id(name):
                self._packs[PackId(bytes.fromhex(name))] = info
        self._roots.read()

    def _dead(self, needed: frozenset[PackId]) -> tuple[frozenset[PackId], frozenset[PackId]]:
        """Return the packs that nobody needs: those to delete, and those of saves that may be under way."""
        unneeded = self._packs.keys() - needed
        alive = {pack[:SAVE_ID_SIZE] for pack in unneeded if self._is_young(self._packs[pack])}
        waiting = frozenset(pack for pack in unneeded if pack[:SAVE_ID_SIZE] in alive)
        return frozenset(unneeded - waiting), waiting

    def _is_young(self, info: ObjectInfo) -> bool:
        if not self._grace:
            return False
        return info.modified is None or self._now - info.modified < self._grace

    def _abandoned(self) -> list[CommitKey]:
        """Return the transactions without a commit, but for those that may still get one soon."""
        found = self._roots.found.values() if self._give_up else ()
        infos = [(pack[:SAVE_ID_SIZE], info) for pack, info in self._packs.items()]
        infos += [(root.commit.key.transaction[:SAVE_ID_SIZE], root.info) for root in found]
        young = {save for save, info in infos if self._is_young(info)}  # of parts, any may be the last
        keys = dict.fromkeys(root.commit.key for root in found if not root.is_committed)
        return [key for key in keys if key.transaction[:SAVE_ID_SIZE] not in young]

    # --- repacking ---

    def _sources(self, needed: frozenset[PackId], repack: float | None) -> dict[PackId, _Source]:
        """Return the packs that are to be repacked.

        Besides those of which enough is dead, these are packs that a collection which did not end has condemned or
        moved: they would stand in nobody's way, but each save would have to deal with them.
        """
        forced = (self._foreign() | self._roots.moves.keys()) & needed & self._packs.keys()
        suspects = list(forced)
        if repack is not None:
            suspects += [pack for pack in needed & self._packs.keys() if pack not in self._roots.whole | forced]
        sources: dict[PackId, _Source] = {}
        for footers in self._footers(suspects):
            for pack, source in self._needed_rows(footers).items():
                is_whole = len(source.needed) == len(source.footer.ids)
                dead_size = 0 if is_whole else source.size - _kept_size(source)
                if pack in forced or (repack is not None and dead_size >= max(1, repack * source.size)):
                    sources[pack] = source
        return sources

    def _foreign(self) -> frozenset[PackId]:
        """Return what open marks of other collections condemn."""
        marks = (read_mark(self._backend, number) for number in list_marks(self._backend).open)
        return frozenset().union(*(mark.packs for mark in marks if mark is not None))

    def _footers(self, packs: Sequence[PackId]) -> Iterable[list[Footer]]:
        """Yield the footers of packs, as many at once as may be held; of a damaged pack there is none."""
        gathered: list[Footer] = []
        rows = 0
        with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-collect") as pool:
            for footer in pool.map(self._footer, packs):
                if footer is None:
                    continue
                gathered.append(footer)
                rows += len(footer.ids)
                if rows >= _MAX_ROWS:
                    yield gathered
                    gathered, rows = [], 0
        if gathered:
            yield gathered

    def _footer(self, pack: PackId) -> Footer | None:
        try:
            return read_footer(self._backend, pack)
        except ObjectNotFound:
            return None
        except (DamagedStore, UnsupportedStore) as error:
            self._warn(pack_key(pack), error)
            return None

    def _needed_rows(self, footers: Sequence[Footer]) -> dict[PackId, _Source]:
        """Return for packs which of their rows are needed; none of those that may be needed in ways unknown."""
        needs = ChunkNeeds(footers)
        unknown: set[PackId] = set()
        seen: set[object] = set()
        for key, root in self._roots.needing(footer.pack for footer in footers).items():
            same = root.entries, np.sort(root.packs).tobytes()  # in other packs there may be deltas of other chunks
            if same in seen:  # another snapshot of the very same
                continue
            try:
                needs.add(SnapshotReader(self._backend, root.commit, manifest=key))
                seen.add(same)
            except CasCheckpointError as error:
                if self._is_there(key):
                    unknown |= self._roots.closure(root)
                    if root.is_committed:
                        self._warn(key, error)
        return {
            footer.pack: _Source(footer.pack_size, footer, np.flatnonzero(rows).tolist())
            for footer, rows in zip(footers, needs.rows(), strict=True)
            if footer.pack not in unknown
        }

    def _is_there(self, key: str) -> bool:
        try:
            self._backend.size(key)
        except ObjectNotFound:
            return False
        return True

    def _warn(self, key: str, error: Exception) -> None:
        self._monitor.warning(Notice("", f"{key} is left as it is: {error}"))

    def _move(self, sources: dict[PackId, _Source]) -> dict[PackId, frozenset[PackId]]:
        """Copy what is needed of the sources and record where it went; return the targets of each."""
        copier = PackCopier(self._backend)
        copied: dict[PackId, frozenset[PackId]] = {}
        for pack, source in sources.items():
            try:
                result = copier.copy(source.footer, self._not_moved_yet(source))
            except ObjectNotFound:  # somebody else was faster
                continue
            except CasCheckpointError as error:
                self._warn(pack_key(pack), error)
                continue
            if result.damaged:
                self._warn(pack_key(pack), DamagedStore("it is damaged; run 'repair'"))
                continue
            copied[pack] = result.targets | self._older_targets(pack)
        footers = copier.finish()
        if footers:
            self._written += put_index(self._backend, self._base, footers)[1]
            self._written += sum(footer.pack_size for footer in footers)
        for pack, targets in copied.items():  # each names all that is relied on: older moves may be removed by others
            self._written += put_move(self._backend, pack, targets)
        return copied

    def _older_targets(self, pack: PackId) -> frozenset[PackId]:
        """Return the packs to which a source was moved before, as far as they were there when the packs were listed."""
        return (closure([pack], self._roots.moves) - {pack}) & self._packs.keys()

    def _not_moved_yet(self, source: _Source) -> list[int]:
        """Return the needed rows that no pack holds to which the source was moved already."""
        there = self._older_targets(source.footer.pack)
        footers = [footer for pack in there if (footer := self._footer(pack)) is not None]
        if not footers or not source.needed:
            return list(source.needed)
        index = ChunkIndex()
        index.add(footers)
        found = index.locate(ids_array(source.footer.ids[source.needed].tobytes()), whole=True).found
        bases = source.footer.base_ids()
        deltas = {(bytes(footer.ids[row]), base) for footer in footers for row, base in footer.base_ids().items()}
        return [
            row
            for row, is_whole in zip(source.needed, found.tolist(), strict=True)
            if not is_whole and (bytes(source.footer.ids[row]), bases.get(row)) not in deltas
        ]

    # --- deleting ---

    def _sweep(
        self,
        dead: frozenset[PackId],
        targets: Mapping[PackId, frozenset[PackId]],
        looked_at: Mapping[PackId, Collection[str]],
    ) -> tuple[set[PackId], set[PackId], int]:
        """Announce, look again, delete; return the deleted packs, the moved ones of them, and what was aborted.

        A source goes only if whoever needs it now needed it when it was found out which of its chunks are needed: since
        then a move by another collection may have made a manifest need it.
        """
        number = publish_mark(self._backend, dead | targets.keys()) if dead or targets else None
        aborted = self._abort(self._abandoned())
        lost = self._lost_targets(targets, number)
        self._roots.read()
        moved = {pack for pack, new in targets.items() if not new & lost}
        moved = {pack for pack in moved if self._roots.needing([pack]).keys() <= {*looked_at[pack]}}
        unneeded = dead - self._roots.needed()
        self._delete((pack_key(pack), self._packs[pack].size) for pack in (*unneeded, *moved))
        if number is not None:
            close_mark(self._backend, number)
        self._delete(self._roots.aborted.items())
        return {*unneeded, *moved}, moved, aborted

    def _abort(self, keys: Iterable[CommitKey]) -> int:
        count = 0
        for key in keys:
            if abort(self._backend, key, self._header.store):
                self._roots.abort(key.transaction)
                count += 1
        return count

    def _lost_targets(self, targets: Mapping[PackId, frozenset[PackId]], number: int | None) -> frozenset[PackId]:
        """Return those of the targets that another collection means to delete, or has deleted."""
        every = frozenset().union(*targets.values())
        return condemned_packs(self._backend, self._base, every, own=number)

    def _delete(self, objects: Iterable[tuple[str, int]]) -> None:
        with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-collect") as pool:
            for _ in pool.map(self._delete_one, objects):
                pass

    def _delete_one(self, item: tuple[str, int]) -> None:
        key, size = item
        self._backend.delete(key)
        self._deleted += size

    # --- tidying up ---

    def _tidy(self, seen: frozenset[MoveKey]) -> None:
        """Clean the index, remove moves that nobody needs, and close or remove marks.

        Of the moves only those are removed that were there at the first look: a later one may serve a manifest that was
        not there yet at the second.
        """
        deleted, written = refresh_indexes(self._backend)
        self._deleted += deleted + self._backend.sweep(self._grace)
        self._written += written
        marks = list_marks(self._backend)  # before the packs: what a later one condemns may be newer than these
        packs = list_packs(self._backend)
        needed = self._roots.needed()
        for key in seen & self._roots.move_keys:
            if key.pack not in packs and key.pack not in needed:
                self._backend.delete(str(key))
        for number in marks.open:
            mark = read_mark(self._backend, number)
            if mark is not None and not mark.packs & packs:
                close_mark(self._backend, number)
        remove_marks(self._backend, [number for number in marks.closed[:-_KEPT_MARKS] if number != marks.latest])


def _kept_size(source: _Source) -> int:
    return int(source.footer.stored_sizes[source.needed].sum(dtype=np.uint64)) if source.needed else 0


class Garbage:
    """Collects in the background when enough may have gathered. Made anew in a forked process."""

    def __init__(self, backend: Backend, header: Header) -> None:
        """Take note of the store."""
        self._backend, self._header = backend, header
        self._size = _WORTH_LOOKING  # nobody knows what earlier processes left
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, size: int, monitor: Monitor) -> None:
        """Note that snapshots were forgotten which had brought so many bytes into the store; nothing is waited for."""
        with self._lock:
            self._size += size
            is_running = self._thread is not None and self._thread.is_alive()
            if size == 0 or self._size < _WORTH_LOOKING or is_running or not self._header.put_if_absent:
                return
            self._size = 0
            self._thread = threading.Thread(target=self._collect, args=(monitor,), name="cas-checkpoint-collect")
            self._thread.start()

    def wait(self) -> None:
        """Wait for a collection that is under way."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _collect(self, monitor: Monitor) -> None:
        try:
            collect(
                self._backend,
                self._header,
                grace=_AUTOMATIC_GRACE,
                repack=0.5,
                dry_run=False,
                now=time.time(),
                monitor=monitor,
                at_least=_WORTH_COLLECTING,
            )
        except CasCheckpointError as error:
            monitor.warning(Notice("", f"what was forgotten could not be collected: {error}"))
        except RuntimeError:  # the process ends: no thread can be started; the next collection does what is left
            return
