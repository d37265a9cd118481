"""Repair: what is damaged is taken out of the store and put aside, what is whole takes its place (SPEC.md, section 16).

A damaged pack is treated as a collection treats one of which little is needed: what is intact of it is copied, a move
is recorded, a mark published, and only then the pack leaves. A repair may stop anywhere, and be run again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import index_key, manifest_key, pack_key
from cas_checkpoint.copies import rows_of
from cas_checkpoint.copying import PackCopier
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, ObjectNotFound, StorageError, UnsupportedStore
from cas_checkpoint.flips import unflipped
from cas_checkpoint.footers import read_footer
from cas_checkpoint.headers import HEADER_KEY, MAX_HEADER_SIZE, Header, check_features
from cas_checkpoint.ids import ChunkId, PackId, TransactionId
from cas_checkpoint.manifests import MAX_MANIFEST_SIZE
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.merging import put_index, refresh_indexes
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.moves import MAX_MOVE_SIZE, closure, parse_move_key
from cas_checkpoint.packs import MAX_PACK_SIZE, PACK_TAIL_SIZE, Footer, parse_footer, read_tail
from cas_checkpoint.reading import MAX_REQUEST
from cas_checkpoint.records import MAX_RECORD_SIZE
from cas_checkpoint.sampling import Sample
from cas_checkpoint.transactions import (
    close_mark,
    condemned_packs,
    list_commits,
    list_marks,
    list_packs,
    publish_mark,
    put_move,
    random_id,
)
from cas_checkpoint.verifying import (
    QUARANTINE_PREFIX,
    AffectedPath,
    Problem,
    Stray,
    Verification,
    VerifyReport,
)

__all__ = ["RepairReport", "repair", "repair_header"]

_RECORDS = (HEADER_KEY, "commits/", "manifests/", "marks/", "moves/", "parts/")
_MAX_FOOTER_SIZE = 2**20
_MAX_INDEX_SIZE = 32 * 2**20  # of one object


class RepairReport(NamedTuple):
    """What a repair did, or would do.

    Attributes:
        problems: everything that was found to be wrong.
        left: those of them that could not be repaired; what they cost is listed in `lost`, as far as it is known.
        lost: the files that cannot be restored, unless their content is saved again before the next repair.
        healed: the files that could not be restored from their snapshots' own packs, and now can.
        corrected: the objects in which one flipped bit was found and undone.
        quarantined: the objects that were taken out of the store, by their former keys.
        chunks_copied: chunks that were copied from damaged packs, or to where snapshots find them.
        packs_indexed: needed packs that no index object listed.
        dry_run: whether nothing was done in fact.
    """

    problems: tuple[Problem, ...] = ()
    left: tuple[Problem, ...] = ()
    lost: tuple[AffectedPath, ...] = ()
    healed: tuple[AffectedPath, ...] = ()
    corrected: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    chunks_copied: int = 0
    packs_indexed: int = 0
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.left and not self.lost


def repair(
    backend: Backend,
    header: Header,
    *,
    report: VerifyReport | None,
    dry_run: bool,
    workers: int,
    monitor: Monitor,
) -> RepairReport:
    """Repair a store; see `Store.repair`."""
    check_features(header, "collect")
    base = list_marks(backend).base
    suspects = None if report is None else frozenset(_packs(problem.key for problem in report.problems))

    def look(only: Collection[PackId] | None) -> Verification:
        found = Verification(backend, header, sample=Sample(1.0, 0), only=only, workers=workers, monitor=monitor)
        found.run()
        return found

    found = look(suspects)
    problems = tuple(found.problems)
    corrected = _correct(backend, base, found, dry_run=dry_run)
    if corrected and not dry_run:
        found = look(found.damaged)  # what else is damaged is known
    outcome = _Repair(backend, base, found, corrected).run(dry_run=dry_run)
    return outcome._replace(problems=problems, corrected=corrected)


def repair_header(backend: Backend) -> bool:
    """Undo a flipped bit in the header of a store, which cannot be opened before; tell whether there was one."""
    whole = unflipped(backend.get(HEADER_KEY, max_size=MAX_HEADER_SIZE))
    if whole is None:
        return False
    backend.put(HEADER_KEY, [whole])
    return True


def _correct(backend: Backend, base: int, found: Verification, *, dry_run: bool) -> tuple[str, ...]:
    """Undo single flipped bits in records, and in footers of which there is no copy; return the keys of the objects.

    A record is put as it was; of a footer the index gets a copy, by which its pack can be dealt with like any other.
    """
    corrected = []
    footers = []
    for key in dict.fromkeys(problem.key for problem in found.problems):
        try:
            if key.startswith(_RECORDS):
                whole = unflipped(backend.get(key, max_size=MAX_RECORD_SIZE))
                if whole is not None and not dry_run:
                    backend.put(key, [whole])
            else:
                lost = [pack for pack in _packs([key]) if pack in found.damaged and found.footer(pack) is None]
                whole = unflipped(_damaged_footer(backend, lost[0])) if lost else None
                if whole is not None:
                    footers.append(parse_footer(whole, pack=lost[0]))
        except (ObjectNotFound, DamagedObject, UnsupportedStore):
            continue
        if whole is not None:
            corrected.append(key)
    if footers and not dry_run:
        put_index(backend, base, footers)
    return tuple(corrected)


def _damaged_footer(backend: Backend, pack: PackId) -> bytes:
    key = pack_key(pack)
    size = backend.size(key)
    length = read_tail(backend.get_range(key, max(0, size - PACK_TAIL_SIZE), PACK_TAIL_SIZE), pack_size=size)
    return backend.get_range(key, size - PACK_TAIL_SIZE - length, min(length, _MAX_FOOTER_SIZE))


def _packs(keys: Iterable[str]) -> Iterator[PackId]:
    for key in keys:
        kind, _, name = key.partition("/")
        if kind == "packs":
            yield PackId(bytes.fromhex(name))


class _Repair:
    """One repair, step by step."""

    def __init__(self, backend: Backend, base: int, found: Verification, corrected: Iterable[str]) -> None:
        """Take what a verification of all data found after the base was read, and the keys of what was corrected."""
        self._backend, self._base, self._found = backend, base, found
        self._copier = PackCopier(backend)
        self._copied = 0
        self._done = {key for key in corrected if not key.startswith("packs/")}  # what is not wrong any more
        self._left: list[Problem] = []
        self._unhealed: set[PackId] = set()  # packs that others could not take the place of
        self._aside: list[str] = []

    def run(self, *, dry_run: bool) -> RepairReport:
        """Do it."""
        found = self._found
        sources = {stray: self._source(stray) for stray in found.strays}
        wanted = self._wanted(sources)
        if dry_run:
            return self._forecast(sources)
        self._restore_marks()
        damaged = [pack for pack in sorted(found.damaged) if not self._is_misread(pack)]
        targets = self._copy_intact(damaged)
        for pack, packs in self._find(wanted).items():
            targets[pack] = targets.get(pack, frozenset()) | packs
        self._finish_copies()
        spared = self._move(targets, [pack for pack in damaged if pack in targets])
        self._remove_moves(spared)
        self._remove_manifests()
        indexed = self._rebuild_index(
            is_complete=found.damaged.isdisjoint(_packs(problem.key for problem in self._left))
        )
        healed = [stray for stray, pack in sources.items() if pack in targets.keys() - spared - self._unhealed]
        return RepairReport(
            left=self._leftovers(healed),
            lost=tuple(found.lost),
            healed=tuple(AffectedPath(stray.snapshot, stray.path) for stray in healed),
            quarantined=tuple(self._aside),
            chunks_copied=self._copied,
            packs_indexed=indexed,
        )

    def _forecast(self, sources: dict[Stray, PackId | None]) -> RepairReport:
        found = self._found
        aside = [pack_key(pack) for pack in sorted(found.damaged)] + [str(key) for key in found.bad_moves]
        aside += found.bad_manifests
        self._done.update(aside, (mark_key(number, closed=closed) for number, closed in found.bad_marks))
        self._done.update(index_key(name) for name in found.bad_indexes)
        self._done.update(pack_key(pack) for pack in sources.values() if pack is not None)
        self._done.update(pack_key(move.pack) for key in tuple(self._done) if (move := parse_move_key(key)))
        healed = [stray for stray, pack in sources.items() if pack is not None]
        return RepairReport(
            left=self._leftovers(healed),
            lost=tuple(found.lost),
            healed=tuple(AffectedPath(stray.snapshot, stray.path) for stray in healed),
            quarantined=tuple(aside),
            chunks_copied=sum(len(footer.ids) for pack in found.damaged if (footer := found.footer(pack)) is not None),
            packs_indexed=len(self._unindexed()),
            dry_run=True,
        )

    def _leftovers(self, healed: Iterable[Stray]) -> tuple[Problem, ...]:
        """Return the problems that remain, but for those that only tell which files are lost or were healed."""
        files = self._found.told_files - {
            str(self._found.committed[stray.snapshot].key) for stray in set(self._found.strays) - set(healed)
        }
        left = {problem.key for problem in self._left}
        old = [problem for problem in self._found.problems if problem.key not in self._done | files | left]
        return (*old, *self._left)

    def _leave(self, key: str, message: str) -> None:
        self._left.append(Problem(key, message))

    # --- marks ---

    def _restore_marks(self) -> None:
        """Write damaged marks anew. What a closed one said matters to nobody.

        An open one is taken to condemn all packs: so no save relies on what is perhaps being deleted, and the next
        collection clears up.
        """
        closed = set(list_marks(self._backend).closed)
        for number, is_closing in self._found.bad_marks:
            packs = frozenset[PackId]() if is_closing or number in closed else list_packs(self._backend)
            key = mark_key(number, closed=is_closing)
            self._backend.put(key, [Mark(TransactionId(random_id()), packs).encode()])
            self._done.add(key)

    # --- what takes the place of what ---

    def _source(self, stray: Stray) -> PackId | None:
        """Return the pack of a snapshot from which its strays are to be moved: one that is gone, or will be."""
        found = self._found
        packs = sorted(closure(found.committed[stray.snapshot].packs, found.moves))
        spoilt = {key.pack for key in found.bad_moves}
        groups = (found.missing - found.moves.keys(), found.damaged, found.missing, spoilt)
        return next((pack for group in groups for pack in packs if pack in group), None)

    def _wanted(self, sources: dict[Stray, PackId | None]) -> dict[PackId, set[ChunkId]]:
        """Return for packs the chunks that are to be found in others instead."""
        found = self._found
        wanted: dict[PackId, set[ChunkId]] = {}
        for stray, pack in sources.items():
            if pack is not None:
                wanted.setdefault(pack, set()).update(stray.chunks)
        for pack in {key.pack for key in found.bad_moves}:  # if it is there, somebody may be about to delete it
            footer = found.footer(pack)
            if footer is not None:
                wanted.setdefault(pack, set()).update(ChunkId(bytes(chunk)) for chunk in footer.ids)
        found.find_holders(chunk for chunks in wanted.values() for chunk in chunks)
        return wanted

    def _find(self, wanted: dict[PackId, set[ChunkId]]) -> dict[PackId, frozenset[PackId]]:
        """Return for packs which others hold the wanted chunks; what is about to be deleted is copied."""
        homes = {pack: self._homes(pack, chunks) for pack, chunks in wanted.items()}
        condemned = condemned_packs(self._backend, self._base, {home for found in homes.values() for home in found})
        targets: dict[PackId, frozenset[PackId]] = {}
        for pack, found in homes.items():
            try:
                each = [self._copies(home, chunks) if home in condemned else {home} for home, chunks in found.items()]
            except CasCheckpointError as error:
                self._leave(pack_key(pack), f"what could take its place is not to be had: {error}")
                self._unhealed.add(pack)
                continue
            if each:
                targets[pack] = frozenset().union(*each)
        return targets

    def _homes(self, pack: PackId, chunks: Iterable[ChunkId]) -> dict[PackId, set[ChunkId]]:
        """Choose for chunks in which pack each is to be found: as few as possible, and such as will stay."""
        found = self._found
        needed = found.needed()
        homes: dict[PackId, set[ChunkId]] = {}
        waiting = sorted(chunks, reverse=True)
        while waiting:
            chunk = waiting.pop()
            holders = found.holders(chunk)
            holders.pop(pack, None)
            if not holders:
                continue

            def preference(home: PackId, bases: Mapping[PackId, ChunkId | None] = holders) -> tuple[object, ...]:
                is_delta = bases[home] is not None
                return home in found.damaged, is_delta, home not in homes, home not in needed, home

            best = min(holders, key=preference)
            homes.setdefault(best, set()).add(chunk)
            base = holders[best]
            if base is not None:  # where the snapshot would not find it perhaps
                waiting.append(base)
        return homes

    def _copies(self, home: PackId, chunks: set[ChunkId]) -> frozenset[PackId]:
        footer = self._found.footer(home) or read_footer(self._backend, home)
        rows = [row for row, _ in rows_of(footer, chunks)]
        copied = self._copier.copy(footer, rows)
        self._copied += len(rows) - len(copied.damaged)
        return copied.targets

    # --- damaged packs ---

    def _is_misread(self, pack: PackId) -> bool:
        """Tell whether a pack that seemed to be damaged is not: no copy of it should be made for that."""
        key = pack_key(pack)
        if not self._found.is_intact(pack):
            return False
        if self._found.is_there(key):
            self._leave(key, "was found damaged, and intact a moment later: is memory or the network at fault?")
        else:
            self._done.add(key)
        return True

    def _copy_intact(self, damaged: Iterable[PackId]) -> dict[PackId, frozenset[PackId]]:
        """Copy what is intact of packs; return for each where that went. Packs that cannot be read are left out."""
        targets: dict[PackId, frozenset[PackId]] = {}
        for pack in damaged:
            footer = self._found.footer(pack)
            try:
                targets[pack] = frozenset() if footer is None else self._all_copies(footer)
            except ObjectNotFound:  # somebody else is repairing
                self._done.add(pack_key(pack))
            except CasCheckpointError as error:
                self._leave(pack_key(pack), str(error))
        return targets

    def _all_copies(self, footer: Footer) -> frozenset[PackId]:
        bad = {row for row in footer.delta_rows.tolist() if self._is_bad(footer, row)}  # a copier does not see that
        copied = self._copier.copy(footer, [row for row in range(len(footer.ids)) if row not in bad])
        self._copied += len(footer.ids) - len(bad) - len(copied.damaged)
        return copied.targets

    def _is_bad(self, footer: Footer, row: int) -> bool:
        return self._found.is_bad(footer.pack, ChunkId(bytes(footer.ids[row])))

    def _finish_copies(self) -> None:
        footers = self._copier.finish()
        if footers:
            put_index(self._backend, self._base, footers)

    def _move(self, targets: dict[PackId, frozenset[PackId]], damaged: list[PackId]) -> set[PackId]:
        """Record what went where, announce what is to go, and put it aside; return the packs that had to be spared."""
        for pack, packs in targets.items():  # each names all there is: older moves may be removed by others
            put_move(self._backend, pack, packs | self._found.moves.get(pack, frozenset()))
        number = publish_mark(self._backend, damaged) if damaged else None
        every = frozenset().union(*targets.values())
        lost = condemned_packs(self._backend, self._base, every, own=number) if every else frozenset()
        spared = {pack for pack, packs in targets.items() if packs & lost}
        for pack in sorted(targets):
            key = pack_key(pack)
            if pack in spared:  # a collection was faster
                self._leave(key, "what was to take its place is being collected: run 'repair' again")
            elif pack not in damaged or self._quarantine(pack):
                self._done.add(key)
        if number is not None:
            close_mark(self._backend, number)
        return spared

    def _quarantine(self, pack: PackId) -> bool:
        """Put a pack aside; tell whether it is out of the store."""
        key = pack_key(pack)
        try:
            size = self._backend.size(key)
            if size > MAX_PACK_SIZE:
                self._leave(key, f"has {size} bytes, too many to be put aside: move it out of the store yourself")
                return False
            parts = [
                self._backend.get_range(key, start, min(MAX_REQUEST, size - start))
                for start in range(0, size, MAX_REQUEST)
            ]
            self._put_aside(key, pack.hex(), parts)
        except ObjectNotFound:  # somebody else has put it aside
            return True
        except (DamagedObject, StorageError) as error:
            self._leave(key, f"cannot be put aside: {error}")
            return False
        return True

    def _put_aside(self, key: str, name: str, parts: list[bytes]) -> None:
        aside = QUARANTINE_PREFIX + name
        self._backend.put(aside, parts)
        if self._backend.size(aside) != sum(map(len, parts)):
            raise StorageError(f"{aside} was not written as a whole")
        self._backend.delete(key)
        self._aside.append(key)

    # --- manifests, moves and index ---

    def _remove_manifests(self) -> None:
        """Put damaged manifests aside that no commit vouches for: they keep collections from being made.

        If a save is still about to commit one of them, then that snapshot was lost with its manifest already.
        """
        if not self._found.bad_manifests:
            return
        committed = {manifest_key(key.transaction) for key in list_commits(self._backend)}
        for key in self._found.bad_manifests:
            if key not in committed and self._found.is_bad_manifest(key):
                self._remove_record(key, key.removeprefix("manifests/"), MAX_MANIFEST_SIZE)

    def _remove_moves(self, spared: set[PackId]) -> None:
        """Put damaged moves aside; others take their place, as far as there was anything that they could name."""
        for key in self._found.bad_moves:
            if key.pack not in spared:
                self._remove_record(str(key), key.collection.hex(), MAX_MOVE_SIZE)

    def _remove_record(self, key: str, name: str, max_size: int) -> None:
        """Put a record aside, under a name."""
        try:
            self._put_aside(key, name, [self._backend.get(key, max_size=max_size)])
        except ObjectNotFound:
            pass
        except (DamagedObject, StorageError) as error:
            self._leave(key, f"cannot be put aside: {error}")
            return
        self._done.add(key)

    def _unindexed(self) -> list[Footer]:
        """Return the footers of needed packs that no index object lists. Others may be of saves that are under way."""
        found = self._found
        packs = found.needed() - found.indexed - found.damaged
        return [found.footers[pack] for pack in sorted(packs) if pack in found.footers]

    def _rebuild_index(self, *, is_complete: bool) -> int:
        """Index what is not, then remove damaged index objects, and what others say of packs that are gone.

        As long as a damaged pack is there, that may hold the only copies of footers.
        """
        footers = self._unindexed()
        group: list[Footer] = []
        size = 0
        for footer in footers:
            group.append(footer)
            size += len(footer.encoded)
            if size > _MAX_INDEX_SIZE:
                put_index(self._backend, self._base, group)
                group, size = [], 0
        if group:
            put_index(self._backend, self._base, group)
        if is_complete:
            for name in self._found.bad_indexes:
                self._backend.delete(index_key(name))
                self._done.add(index_key(name))
        if self._aside:
            refresh_indexes(self._backend)
        return len(footers)
