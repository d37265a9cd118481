"""Verification: is every committed snapshot restorable, and if not, what is lost? Reports; repairs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Final, Literal, NamedTuple, TypeVar

from cas_checkpoint.backends import Backend
from cas_checkpoint.bases import Fault, KnownBases
from cas_checkpoint.checkedpacks import CheckedPacks
from cas_checkpoint.commits import (
    COMMITS_PREFIX,
    CommitKey,
    State,
    is_manifest_key,
    manifest_key,
    pack_key,
    parse_commit_key,
    parse_part_key,
)
from cas_checkpoint.copies import rows_of
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedObject,
    DamagedStore,
    ObjectNotFound,
    SnapshotForgotten,
    UnsupportedStore,
)
from cas_checkpoint.footers import all_index_footers, read_footer
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import ChunkId, PackId, TransactionId, is_hex_id
from cas_checkpoint.index import ChunkIndex
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.losses import Doubt, doubts
from cas_checkpoint.manifests import MAX_MANIFEST_SIZE, Content, Entry, Manifest
from cas_checkpoint.marks import MAX_MARK_SIZE, Mark, parse_mark_key
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.moves import MoveKey, closure, parse_move_key, reverse
from cas_checkpoint.packs import PREFIX_SIZE, Footer
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.records import Kind, check_head
from cas_checkpoint.sampling import Sample
from cas_checkpoint.tensorfiles import TensorFile
from cas_checkpoint.transactions import list_moves, read_commit, read_header, read_moves

__all__ = [
    "QUARANTINE_PREFIX",
    "AffectedPath",
    "Depth",
    "Problem",
    "Stray",
    "Verification",
    "VerifyReport",
    "verify",
]

QUARANTINE_PREFIX: Final = "quarantine/"
"""Where a repair puts what it takes out of the store."""

Depth = Literal["structure", "sample", "data"]
"""How deep a verification looks: at everything but data, at a share of the chunks as well, or at all of them."""

_UNREADABLE = (DamagedStore, UnsupportedStore)

Item = TypeVar("Item")
Result = TypeVar("Result")


class AffectedPath(NamedTuple):
    """A file that cannot be restored.

    Attributes:
        snapshot: the id of its snapshot.
        path: its path; empty for the list of entries.
        tensors: names of the tensors in it that are affected, if it is a container of tensors and says where these lie.
            The others can be read with `Snapshot.read_tensor`.
    """

    snapshot: str
    path: str
    tensors: tuple[str, ...] = ()


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        key: the object, by its key.
        message: what is wrong with it.
        snapshots: ids of the snapshots that need the object.
    """

    key: str
    message: str
    snapshots: tuple[str, ...] = ()


class VerifyReport(NamedTuple):
    """What a verification found.

    Attributes:
        problems: everything that is wrong; empty if all is well.
        lost: the files that cannot be restored, as far as the depth of the verification shows them.
        snapshots: committed snapshots that were looked at.
        packs: packs that they need.
        chunks: chunks in those packs.
        bytes_read: bytes of pack data read; 0 if only the structure was verified.
        garbage_objects: objects that no snapshot needs: left by saves that did not finish, or still under way.
        garbage_size: their size in bytes.
        quarantined_objects: objects that a repair has put aside.
        quarantined_size: their size in bytes.
    """

    problems: tuple[Problem, ...]
    lost: tuple[AffectedPath, ...]
    snapshots: int
    packs: int
    chunks: int
    bytes_read: int
    garbage_objects: int
    garbage_size: int
    quarantined_objects: int = 0
    quarantined_size: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class Stray(NamedTuple):
    """A file of which chunks are in none of the snapshot's own packs, but in others of the store.

    Attributes:
        snapshot: the snapshot's id.
        path: the file's path, empty for the list of entries.
        chunks: these chunks.
    """

    snapshot: str
    path: str
    chunks: frozenset[ChunkId]


class _Committed(NamedTuple):
    """A snapshot: its commit, what its stream of entries consists of, and the packs that its manifest names."""

    key: CommitKey
    entries: Content
    packs: frozenset[PackId]


def verify(
    backend: Backend,
    header: Header,
    *,
    sample: Sample | None,
    checked: CheckedPacks | None,
    workers: int,
    monitor: Monitor,
) -> VerifyReport:
    """Verify a store, its structure only if there is no `sample`; see `Store.verify`."""
    found = Verification(backend, header, sample=sample, checked=checked, workers=workers, monitor=monitor)
    found.run()
    return found.report()


class Verification:
    """One verification. What it found is there for a repair.

    Attributes:
        problems: everything that is wrong.
        lost: files whose chunks are intact nowhere in the store.
        strays: files that can be restored, but not from the snapshot's own packs.
        committed: the snapshots, by their ids.
        footers: of the packs that are there, as far as they can be read.
        copies: footers in index objects of packs whose own ones cannot be read.
        damaged: packs that are there, and damaged.
        missing: packs that a manifest or a move names, and that are not there.
        moves: for each pack that was moved, where it went.
        told_files: commits under whose keys it was told that files are lost or strays.
        bad_manifests: keys of manifests that are damaged, and of which no commit is there.
        bad_moves: moves that are damaged.
        bad_marks: marks that are damaged, with their numbers, and whether it is what closes one.
        bad_indexes: index objects that are damaged, or contradict a pack.
        indexed: packs that other index objects list.
    """

    def __init__(
        self,
        backend: Backend,
        header: Header,
        *,
        sample: Sample | None,
        checked: CheckedPacks | None = None,
        only: Collection[PackId] | None = None,
        workers: int,
        monitor: Monitor,
    ) -> None:
        """Prepare.

        Args:
            backend: the store's backend.
            header: its header.
            sample: which chunks' data to read; None for none.
            checked: packs whose data need not be read, as it was before; what is found intact is added.
            only: the packs whose data is read, all by default.
            workers: threads to read with.
            monitor: told of progress.
        """
        self._backend, self._header, self._monitor = backend, header, monitor
        self._sample, self._checked, self._only = sample, checked, only
        self._workers = max(1, workers)
        self._lock = threading.Lock()
        self._bytes_read = 0
        self._listed: dict[str, int] = {}
        self._obscure: set[str] = set()  # ids of snapshots whose commits are damaged
        self._kept: set[PackId] = set()  # packs that these need
        self._bad: set[tuple[PackId, ChunkId]] = set()
        self._needing: dict[PackId, tuple[str, ...]] = {}
        self._records: list[tuple[PackId, frozenset[PackId]]] = []  # of moves: what each says
        self._bases = KnownBases(backend, ())
        self._copies: dict[
            ChunkId, frozenset[tuple[PackId, ChunkId | None]]
        ] = {}  # intact, and what they are deltas of
        self._closed_index: tuple[frozenset[PackId], ChunkIndex] = frozenset(), ChunkIndex()
        self.problems: list[Problem] = []
        self.lost: list[AffectedPath] = []
        self.strays: list[Stray] = []
        self.committed: dict[str, _Committed] = {}
        self.footers: dict[PackId, Footer] = {}
        self.copies: dict[PackId, Footer] = {}
        self.damaged: set[PackId] = set()
        self.missing: set[PackId] = set()
        self.moves: dict[PackId, frozenset[PackId]] = {}
        self.told_files: set[str] = set()
        self.bad_manifests: list[str] = []
        self.bad_moves: list[MoveKey] = []
        self.bad_marks: list[tuple[int, bool]] = []
        self.bad_indexes: list[TransactionId] = []
        self.indexed: set[PackId] = set()

    def run(self) -> None:
        """Do it."""
        self._listed = {info.key: info.size for info in self._backend.list("")}
        self._check_header()
        self._check_commits()
        self._check_manifests()
        self._check_marks()
        self._read_moves()
        self._check_packs(self._listed_packs() | self._named())
        self._check_indexes()
        if self._sample is not None:
            self._check_all_data(self._sample)
        self._tell_missing()
        if self._sample is not None:
            self._check_files()

    def report(self) -> VerifyReport:
        """Return what was found."""
        needed = self.needed()
        garbage = [size for key, size in self._listed.items() if self._is_garbage(key, needed)]
        aside = [size for key, size in self._listed.items() if key.startswith(QUARANTINE_PREFIX)]
        return VerifyReport(
            tuple(self.problems),
            tuple(self.lost),
            len(self.committed),
            len(needed - self.missing),
            sum(len(footer.ids) for pack, footer in self.footers.items() if pack in needed),
            self._bytes_read,
            len(garbage),
            sum(garbage),
            len(aside),
            sum(aside),
        )

    def _problem(self, key: str, error: Exception | str, snapshots: Iterable[str] = ()) -> None:
        reason = error.reason if isinstance(error, DamagedObject) else str(error)
        self.problems.append(Problem(key, reason, tuple(snapshots)))

    def _each(self, work: Callable[[Item], Result], items: Collection[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield items with what came of them, worked on by several threads."""
        if len(items) <= 1 or self._workers == 1:
            yield from ((item, work(item)) for item in items)
            return
        pool = ThreadPoolExecutor(self._workers, "cas-checkpoint-verify")
        try:
            yield from zip(items, pool.map(work, items), strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    # --- records ---

    def _check_header(self) -> None:
        try:
            if read_header(self._backend) != self._header:
                self._problem(HEADER_KEY, "is not the header with which the store was opened")
        except (ObjectNotFound, *_UNREADABLE) as error:
            self._problem(HEADER_KEY, error)

    def _check_commits(self) -> None:
        keys: list[CommitKey] = []
        for text in sorted(self._listed):
            if text.startswith(COMMITS_PREFIX):
                key = parse_commit_key(text)
                if key is None:
                    self._problem(text, "is not the name of a commit")
                else:
                    keys.append(key)
        names: dict[PackId, PackId] = {}  # of each only one is kept in memory
        for key, found in self._each(self._read_snapshot, keys):
            if isinstance(found, Problem):
                self.problems.append(found)
                self._obscure.update(found.snapshots)
            elif found is not None:
                packs = frozenset(names.setdefault(ref.pack, ref.pack) for ref in found.packs)
                self.committed[key.transaction.hex()] = _Committed(key, found.entries, packs)

    def _read_snapshot(self, key: CommitKey) -> Manifest | Problem | None:
        """Read a commit and its manifest; None if there is no such snapshot."""
        snapshots = (key.transaction.hex(),)
        at = str(key)
        try:
            record = read_commit(self._backend, key, self._header.store)
            if record.state is not State.COMMITTED:
                return None
            at = at if record.inline else manifest_key(key.transaction)
            return SnapshotReader(self._backend, record).manifest()
        except (ObjectNotFound, SnapshotForgotten):  # forgotten meanwhile
            return None
        except _UNREADABLE as error:
            return Problem(at, error.reason if isinstance(error, DamagedObject) else str(error), snapshots)

    def _check_manifests(self) -> None:
        """Check the manifests that no commit vouches for: what they name may be needed soon."""
        told = {problem.key for problem in self.problems}
        unfinished = (key for key, name in self._named_by_id("manifests/") if name.hex() not in self.committed)
        parts = (key for key in self._listed if parse_part_key(key))
        bad = self._check_records(
            (key for key in chain(unfinished, parts) if key not in told), MAX_MANIFEST_SIZE, self._read_manifest
        )
        obscure = {manifest_key(TransactionId(bytes.fromhex(name))) for name in self._obscure}
        self.bad_manifests = [key for key in bad if parse_part_key(key) is None and key not in obscure]

    def is_bad_manifest(self, key: str) -> bool:
        """Look at a manifest once more, and tell whether it is damaged."""
        return isinstance(self._fault(key, MAX_MANIFEST_SIZE, self._read_manifest), DamagedStore)

    def _read_manifest(self, key: str, data: bytes) -> None:
        manifest = Manifest.decode(data)
        if not is_manifest_key(key, manifest.transaction) or manifest.store != self._header.store:
            raise DamagedObject("is the manifest of another snapshot")
        if manifest.transaction.hex() in self._obscure:
            self._kept.update(ref.pack for ref in manifest.packs)

    def _check_marks(self) -> None:
        marks = {key: parsed for key in self._listed if (parsed := parse_mark_key(key))}
        bad = self._check_records(marks, MAX_MARK_SIZE, lambda _, data: Mark.decode(data))
        self.bad_marks = [marks[key] for key in bad]

    def _check_records(self, keys: Iterable[str], max_size: int, decode: Callable[[str, bytes], object]) -> list[str]:
        """Check records that no snapshot needs; return the keys of those that are damaged."""
        bad = []
        for key, error in self._each(lambda key: self._fault(key, max_size, decode), sorted(keys)):
            if error is not None:
                self._problem(key, error)
            if isinstance(error, DamagedStore):
                bad.append(key)
        return bad

    def _fault(self, key: str, max_size: int, decode: Callable[[str, bytes], object]) -> Exception | None:
        """Return what is wrong with a record, None if nothing is, or it is gone."""
        try:
            decode(key, self._backend.get(key, max_size=max_size))
        except ObjectNotFound:
            return None
        except _UNREADABLE as error:
            return error
        return None

    # --- packs ---

    def _named_by_id(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the listed objects of a kind that are named by an id, with these ids."""
        for key in self._listed:
            name = key.removeprefix(prefix)
            if key != name and is_hex_id(name):
                yield key, bytes.fromhex(name)

    def _listed_packs(self) -> set[PackId]:
        return {PackId(name) for _, name in self._named_by_id("packs/")}

    def _named(self) -> set[PackId]:
        """Return the packs that the snapshots' manifests name."""
        return {pack for found in self.committed.values() for pack in found.packs}

    def needed(self) -> frozenset[PackId]:
        """Return the packs that snapshots need, and all to which these were moved."""
        return closure(self._named() | self._kept, self.moves)

    def needing(self, pack: PackId) -> tuple[str, ...]:
        """Return the ids of the snapshots that need a pack, be it as one to which others were moved."""
        if pack not in self._needing:
            sources = closure([pack], reverse(self.moves))
            self._needing[pack] = tuple(name for name, found in self.committed.items() if found.packs & sources)
        return self._needing[pack]

    def _check_packs(self, packs: Iterable[PackId]) -> None:
        """Check the footers of packs, and of all to which needed ones were moved; note which are not there."""
        waiting = set(packs)
        seen = set(waiting)
        while waiting:
            gone = self._check_footers(sorted(waiting))
            self.missing |= gone
            if gone:  # a move is there before its pack is deleted
                self._read_moves()
            waiting = set(self.needed() - seen - self.footers.keys() - self.damaged - self.missing)
            seen |= waiting

    def _check_footers(self, packs: Sequence[PackId]) -> set[PackId]:
        """Check the footers of packs; return those that are gone."""
        gone = set()
        faults = []
        for pack, (footer, error) in self._each(self._check_footer, packs):
            if footer is not None:
                self.footers[pack] = footer
            if isinstance(error, ObjectNotFound):
                gone.add(pack)
            elif error is not None:
                faults.append((pack, error))
        for pack, error in faults:
            if isinstance(error, DamagedStore):
                self.damaged.add(pack)
            self._problem(pack_key(pack), error, self.needing(pack))
        return gone

    def _check_footer(self, pack: PackId) -> tuple[Footer | None, CasCheckpointError | None]:
        try:
            prefix = self._backend.get_range(pack_key(pack), 0, PREFIX_SIZE)
            try:
                footer = read_footer(self._backend, pack)
            except UnsupportedStore as error:
                check_head(prefix, Kind.PACK)  # if that is of this version, so is the footer, but for the damage
                return None, DamagedObject(f"its footer is altered, and seems to be of {error}")
        except (ObjectNotFound, *_UNREADABLE) as error:
            return None, error
        if prefix != footer.encoded[:PREFIX_SIZE]:
            return footer, DamagedObject("does not begin as its footer says")
        return footer, None

    def _read_moves(self) -> None:
        moves: dict[PackId, frozenset[PackId]] = {}
        self._records = []
        for key, found in self._each(self._read_move, list_moves(self._backend)):
            if isinstance(found, frozenset):
                self._records.append((key.pack, found))
                moves[key.pack] = moves.get(key.pack, frozenset()) | found
            elif not any(problem.key == str(key) for problem in self.problems):
                self._problem(str(key), found, self.needing(key.pack))
                if isinstance(found, DamagedStore):
                    self.bad_moves.append(key)
        self.moves = moves
        self._needing.clear()

    def _read_move(self, key: MoveKey) -> frozenset[PackId] | CasCheckpointError:
        try:
            return read_moves(self._backend, [key]).get(key.pack, frozenset())
        except _UNREADABLE as error:
            return error

    def _tell_missing(self) -> None:
        """Tell of needed packs that are gone, though neither moved nor of snapshots that were forgotten meanwhile."""
        gone = self._gone_for_good()
        moves = {pack: targets & gone for pack, targets in self.moves.items() if pack in gone}
        sources = reverse(moves)
        for pack in sorted(closure(self._named() & gone, moves) - moves.keys()):
            needing = closure([pack], sources)
            users = [name for name, found in self.committed.items() if found.packs & needing]
            users = [name for name in users if self.is_there(str(self.committed[name].key))]
            if users:
                self._problem(pack_key(pack), "is missing", users)

    def _gone_for_good(self) -> set[PackId]:
        """Return the missing packs whose place nothing takes: in each record of a move of theirs, something is gone.

        A collection that was overtaken by another may leave a record that names a pack which is gone; another record
        then names all that is needed.
        """
        gone = set(self.missing)
        while True:
            found = {pack for pack, targets in self._records if pack in gone and gone.isdisjoint(targets)}
            if not found:
                return gone
            gone -= found

    def is_there(self, key: str) -> bool:
        """Tell whether there is an object with that key."""
        try:
            self._backend.size(key)
        except ObjectNotFound:
            return False
        return True

    # --- the index ---

    def _check_indexes(self) -> None:
        """Check the index objects; as they are a cache, no snapshot suffers from a damaged one."""
        for key, raw in sorted(self._named_by_id("index/")):
            name = TransactionId(raw)
            packs: set[PackId] = set()
            try:
                for footer in all_index_footers(self._backend, name):
                    self._compare(footer)
                    packs.add(footer.pack)
            except ObjectNotFound:
                continue
            except _UNREADABLE as error:
                self._problem(key, error)
                self.bad_indexes.append(name)
            else:
                self.indexed |= packs

    def _compare(self, footer: Footer) -> None:
        """Compare a copy of a footer with the pack's own; keep it if that cannot be read."""
        known = self.footers.get(footer.pack)
        if known is None:
            if footer.pack in self.damaged:
                self.copies.setdefault(footer.pack, footer)
        elif known.encoded != footer.encoded:
            raise DamagedObject(f"contradicts the footer of {pack_key(footer.pack)}")

    # --- data ---

    def _check_all_data(self, sample: Sample) -> None:
        """Read packs; those that are gone meanwhile were perhaps moved, and others are to be read in their place."""
        waiting = self.footers | self.copies
        try:
            while waiting:
                seen = set(self.footers)
                gone = self._check_data(waiting, sample)
                for pack in gone:
                    self.footers.pop(pack, None)
                    self.copies.pop(pack, None)
                self._check_packs(gone)
                waiting = {pack: self.footers[pack] for pack in self.footers.keys() - seen}
        finally:
            if self._checked is not None:
                self._checked.write()
        if self._checked is not None:
            self._checked.remove()

    def _check_data(self, footers: Mapping[PackId, Footer], sample: Sample) -> list[PackId]:
        """Read the data of packs; return those that are gone."""
        done = self._checked.packs if self._checked is not None else set[PackId]()
        wanted = {
            pack: footer
            for pack, footer in footers.items()
            if pack not in done and (self._only is None or pack in self._only)
        }
        sizes = (int(footer.stored_sizes[sample.rows(footer)].sum(dtype=np.uint64)) for footer in wanted.values())
        self._monitor.total(self._bytes_read + sum(sizes))
        self._bases = KnownBases(self._backend, (self.copies | self.footers).values())
        gone = []
        for pack, faults in self._each(
            lambda pack: sample.faults(self._backend, wanted[pack], self._bases, self._tell_read), list(wanted)
        ):
            if faults is None:
                gone.append(pack)
                continue
            for fault in faults:
                self._note(fault)
            if self._checked is not None and not faults and pack not in self.damaged:
                self._checked.add(pack, wanted[pack].pack_size)
        return gone

    def _note(self, fault: Fault) -> None:
        """Tell of a chunk that is not right, once; a base may be found so by several of its deltas."""
        pack, chunk, error = fault
        if (pack, chunk) in self._bad:
            return
        self._bad.add((pack, chunk))
        if isinstance(error, DamagedStore):
            self.damaged.add(pack)
        if pack in self.footers:  # else the pack as a whole was told already
            self._problem(pack_key(pack), f"chunk {chunk.hex()}: {_reason(error)}", self.needing(pack))

    def is_bad(self, pack: PackId, chunk: ChunkId) -> bool:
        """Tell whether a chunk was found not to be right in a pack."""
        return (pack, chunk) in self._bad

    def is_intact(self, pack: PackId) -> bool:
        """Look at a pack once more, as a whole; if it is gone, it is not damaged."""
        footer, error = self._check_footer(pack)
        if footer is None or error is not None:
            return isinstance(error, ObjectNotFound)
        faults = Sample(1.0, 0).faults(self._backend, footer, self._bases, self._tell_read) or ()
        return not any(fault.pack == pack and isinstance(fault.error, DamagedStore) for fault in faults)

    def _tell_read(self, size: int) -> None:
        with self._lock:
            self._bytes_read += size
            self._monitor.read(size)

    # --- files ---

    def _check_files(self) -> None:
        """Find the files that need a chunk which is not intact in any of the snapshot's packs."""
        bad = frozenset(chunk for _, chunk in self._bad)
        seen: dict[tuple[Content, frozenset[PackId]], list[Doubt]] = {}
        for name, found in self.committed.items():
            packs = closure(found.packs, self.moves)
            same = seen.get((found.entries, packs)) if packs else None  # another snapshot of the very same
            try:
                result = self._doubts(found.key, packs, bad) if same is None else same
            except (ObjectNotFound, SnapshotForgotten):
                continue
            except CasCheckpointError as error:
                self._tell_lost(name, "", str(error))
                continue
            seen[found.entries, packs] = result
            if result:
                self._judge(name, result, packs)

    def _doubts(self, key: CommitKey, packs: frozenset[PackId], bad: frozenset[ChunkId]) -> list[Doubt]:
        return list(doubts(self._reader(key), self._index(packs), bad))

    def _reader(self, key: CommitKey) -> SnapshotReader:
        record = read_commit(self._backend, key, self._header.store)
        return SnapshotReader(self._backend, record, footers=self.footers)

    def _index(self, packs: frozenset[PackId]) -> ChunkIndex:
        """Return the index of all packs of these that are there; of the last ones asked for it is kept."""
        if self._closed_index[0] != packs:
            index = ChunkIndex()
            index.add(footer for pack in sorted(packs) if (footer := self.footer(pack)) is not None)
            self._closed_index = packs, index
        return self._closed_index[1]

    def footer(self, pack: PackId) -> Footer | None:
        """Return the footer of a pack that is there, its own or a copy."""
        return self.footers.get(pack) or self.copies.get(pack)

    def find_holders(self, chunks: Iterable[ChunkId]) -> None:
        """Find out for chunks which packs hold them intact."""
        wanted = set(chunks) - self._copies.keys()
        while wanted:
            found: dict[ChunkId, set[tuple[PackId, ChunkId | None]]] = {chunk: set() for chunk in wanted}
            for pack, footer in (self.copies | self.footers).items():
                rows = rows_of(footer, wanted)
                bases = footer.base_ids() if rows else {}
                for row, chunk in rows:
                    if (pack, chunk) not in self._bad:
                        found[chunk].add((pack, bases.get(row)))
            self._copies.update({chunk: frozenset(copies) for chunk, copies in found.items()})
            needed = {base for copies in found.values() for _, base in copies if base is not None}
            wanted = needed - self._copies.keys()

    def holders(self, chunk: ChunkId, packs: Collection[PackId] | None = None) -> dict[PackId, ChunkId | None]:
        """Return the packs from which a chunk can be had, and what each holds it as a delta of, if it does.

        Args:
            chunk: one of those that `find_holders` was told of.
            packs: let only these count, and for what the chunk is a delta of as well; by default all do.
        """
        found: dict[PackId, ChunkId | None] = {}
        for pack, base in self._copies[chunk]:
            if (packs is None or pack in packs) and (base is None or self._is_whole(base, packs)):
                found[pack] = None if base is None or found.get(pack, base) is None else base
        return found

    def _is_whole(self, chunk: ChunkId, packs: Collection[PackId] | None) -> bool:
        """Tell whether one of the packs holds a chunk whole, and intact."""
        return any(base is None and (packs is None or pack in packs) for pack, base in self._copies[chunk])

    def _judge(self, name: str, result: Sequence[Doubt], packs: frozenset[PackId]) -> None:
        """Tell which files are lost, and which are to be had only from packs that the snapshot does not name."""
        self.find_holders(chunk for doubt in result for chunk in doubt.chunks)
        gone = {path: frozenset(chunk for chunk in chunks if not self.holders(chunk)) for path, chunks, _ in result}
        lost = {path: chunks for path, chunks in gone.items() if chunks}
        tensors = self._tensors(name, lost)
        for path, chunks, fault in result:
            if fault:
                self._tell_lost(name, path, fault)
            elif path in lost:
                self._tell_lost(name, path, self._reason_of_loss(min(lost[path])), tensors.get(path, ()))
            elif missing := frozenset(chunk for chunk in chunks if not self.holders(chunk, packs)):
                self.strays.append(Stray(name, path, missing))
                self._tell_file(
                    name, path, "can be read only from packs that this snapshot does not name: run 'repair'"
                )

    def _reason_of_loss(self, chunk: ChunkId) -> str:
        bases = sorted(base for _, base in self._copies[chunk] if base is not None)
        if not bases:
            return self._fate(chunk)
        return f"the chunk {chunk.hex()} is stored as a difference from another, but {self._fate(bases[0])}"

    def _fate(self, chunk: ChunkId) -> str:
        is_bad = any(chunk == bad for _, bad in self._bad)
        return f"the chunk {chunk.hex()} {'is damaged' if is_bad else 'is in none of the packs'}"

    def _tensors(self, name: str, lost: Mapping[str, frozenset[ChunkId]]) -> dict[str, tuple[str, ...]]:
        """Return, by path, which tensors in the files of a snapshot need any of the lost chunks, as far as is known."""
        if not lost:
            return {}
        found: dict[str, tuple[str, ...]] = {}
        try:
            reader = self._reader(self.committed[name].key)
            for entry in reader.entries():
                if entry.name in lost:
                    found[entry.name] = _affected(reader, entry, lost[entry.name])
        except CasCheckpointError:
            pass
        return found

    def _tell_lost(self, name: str, path: str, reason: str, tensors: tuple[str, ...] = ()) -> None:
        self.lost.append(AffectedPath(name, path, tensors))
        self._tell_file(name, path, reason)

    def _tell_file(self, name: str, path: str, reason: str) -> None:
        """Tell what is wrong with a file, unless the snapshot is known to be affected."""
        if not any(name in problem.snapshots for problem in self.problems):
            key = str(self.committed[name].key)
            self.told_files.add(key)
            self._problem(key, f"{path!r}: {reason}" if path else reason, [name])

    # --- garbage ---

    def _is_garbage(self, key: str, needed: frozenset[PackId]) -> bool:
        kind, _, name = key.partition("/")
        move = parse_move_key(key)
        if move is not None:
            return move.pack not in needed
        if parse_part_key(key):
            return True
        if kind not in {"packs", "manifests"} or not is_hex_id(name):
            return False
        if kind == "manifests":
            return name not in self.committed and name not in self._obscure
        return PackId(bytes.fromhex(name)) not in needed


def _affected(reader: SnapshotReader, entry: Entry, lost: frozenset[ChunkId]) -> tuple[str, ...]:
    """Return the names of the tensors in a file that need any of the lost chunks; none if its beginning is lost."""
    try:
        first = next(reader.refs(entry.content), None) if entry.content else None
        file = None if first is None or first.chunk in lost else TensorFile.open(reader, entry)
        return () if file is None else file.within(lost)
    except CasCheckpointError:
        return ()


def _reason(error: CasCheckpointError) -> str:
    return error.reason if isinstance(error, DamagedObject) else str(error)
