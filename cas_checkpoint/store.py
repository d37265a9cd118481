"""The library's face: a store of snapshots at one place. Arguments are checked here, the work is done below."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from typing import Literal, NamedTuple, get_args

from cas_checkpoint.backends import Backend, LocalBackend, open_backend, probe_put_if_absent
from cas_checkpoint.checkedpacks import CheckedPacks
from cas_checkpoint.codecs import DEFAULT_LEVEL
from cas_checkpoint.collecting import CollectReport, Garbage, collect
from cas_checkpoint.commits import MAX_MESSAGE_SIZE, MAX_PARTS, Commit, CommitKey, State, check_series, parse_commit_key
from cas_checkpoint.errors import (
    AmbiguousReference,
    CasCheckpointError,
    DamagedObject,
    ForeignObject,
    InvalidArgument,
    InvalidArgumentType,
    MissingObject,
    NotAStore,
    ObjectNotFound,
    SnapshotNotFound,
    StoreNotFound,
)
from cas_checkpoint.fallbacks import restore_intact
from cas_checkpoint.filescache import cache_directory
from cas_checkpoint.forgetting import forget_superseded
from cas_checkpoint.headers import HEADER_KEY, Header, check_features
from cas_checkpoint.ids import PackId, StoreId, TransactionId, is_hex_id
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.manifests import PackRef
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.parts import PartCommitter, PartPlan, PartReceipt, PartSaver, plan_parts
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.records import MAX_ITEMS
from cas_checkpoint.repairing import RepairReport, repair
from cas_checkpoint.restoring import RestoreResult, restore
from cas_checkpoint.sampling import Sample
from cas_checkpoint.saving import Delta, OnError, SaveOptions, Saver
from cas_checkpoint.snapshots import PathArgument, Snapshot, entry_path
from cas_checkpoint.sources import Source
from cas_checkpoint.transactions import (
    forget,
    forget_damaged,
    list_commits,
    list_marks,
    random_id,
    read_commit,
    read_header,
)
from cas_checkpoint.verifying import Depth, VerifyReport, verify

__all__ = ["Store", "StoreInfo"]

_INDEX_LIMIT = 192 * 2**20  # bytes of memory for what is known to be in the store: some three million chunks
_READERS = 16  # commits read at once
_MIN_PREFIX = 4
_NAMED = ("manifests/", "packs/")  # of objects with random names
_SEQUENCE_DIGITS = 16


class StoreInfo(NamedTuple):
    """What a store consists of.

    Attributes:
        url: where it is.
        id: its id, 32 hexadecimal digits.
        put_if_absent: whether its backend can create an object only if there is none.
        series: for each series the number of its snapshots.
        objects: for each kind of object ("packs", "index", ...) their number and size in bytes.
    """

    url: str
    id: str
    put_if_absent: bool
    series: Mapping[str, int]
    objects: Mapping[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """The size of all objects, in bytes."""
        return sum(size for _, size in self.objects.values())


class Store:
    """A store of snapshots. Safe to use from several threads, to pickle, and to use after a fork."""

    def __init__(self, backend: Backend, header: Header, *, workers: int, level: int) -> None:
        """Use `Store.open` instead."""
        self._backend, self._header = backend, header
        self._workers, self._level = workers, level
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._knowledge: Knowledge | None = None
        self._garbage = Garbage(self._backend, self._header)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("_backend", "_header", "_workers", "_level")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._backend.url

    @property
    def id(self) -> str:
        """The store's id: 32 hexadecimal digits."""
        return self._header.store.hex()

    # --- opening ---

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str] | Backend,
        *,
        create: bool = False,
        durable: bool = True,
        workers: int | None = None,
        level: int = DEFAULT_LEVEL,
        storage_options: Mapping[str, object] | None = None,
    ) -> Store:
        """Open the store at `url`.

        Args:
            url: a local path, any URL that fsspec knows, or a backend of your own.
            create: make the store if there is none.
            durable: on local disk, wait for the disk at every object; switch off for scratch data only.
            workers: threads for hashing, compression and reading; by default one for each usable core.
            level: zstd level for new chunks, -50 to 19.
            storage_options: passed on to fsspec.

        Raises:
            StoreNotFound: there is no store, and `create` is false.
            NotAStore: something else is in its place.
            DamagedStore: there is one, but its header is damaged or gone.
            UnsupportedStore: it needs a newer version of this package.
            StorageError: the file system refused something.
        """
        workers = _usable_cores() if workers is None else _integer("workers", workers, 1, 1024)
        if isinstance(url, Backend):
            backend = url
        else:
            backend = open_backend(url, durable=durable, storage_options=storage_options)
        header = _read_header(backend)
        if header is None:
            if not create:
                raise StoreNotFound(f"there is no store at {backend.url}; create one with create=True or by 'save'")
            header = _create(backend)
        check_features(header, "read")
        return cls(backend, header, workers=workers, level=_integer("level", level, -50, 19))

    # --- saving ---

    def save(
        self,
        source: Source,
        *,
        series: str = "default",
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] | None = None,
        message: str | None = None,
        on_error: OnError = "fail",
        owner: bool = False,
        files_cache: bool = True,
        onto: Snapshot | None = None,
        keep: int | None = None,
        delta: Delta = "fast",
        monitor: Monitor | None = None,
    ) -> Snapshot:
        """Save `source` as the next snapshot of a series.

        Args:
            source: a path to a directory (its contents are saved, not the folder itself) or a file (saved under its
                own name); bytes or an open binary reader (saved as `_dst_cp`); or a mapping of relative paths to
                any of these.
            series: the series; made by its first snapshot.
            step: a number of yours, such as the training step.
            metrics: numbers of yours by name.
            tags: words of yours.
            message: a text of yours.
            on_error: what to do about a file that cannot be read, changes or vanishes while it is being saved:
                "fail" commits nothing; "skip" leaves it out and says so in `Snapshot.warnings`.
            owner: record owners and groups.
            files_cache: do not read files whose size, times and inode are those of the last save of the same source,
                as a cache on this machine has them (in CAS_CHECKPOINT_CACHE, or the user's directory for caches).
            onto: keep that snapshot's entries where `source` has none of the path.
            keep: after the commit forget all snapshots of the series but so many of the newest; when much of what these
                needed can be freed, that is done in the background.
            delta: how to store what changed of tensors that the latest snapshot of the series holds at the same path
                and by the same name: "fast" and "small" as differences where that pays, "small" taking longer
                for fewer bytes; "off" always whole.
            monitor: told of progress and warnings.

        Returns:
            The snapshot, which is safely stored.

        Raises:
            InvalidArgument: an argument cannot be used.
            SourceError: see `on_error`.
            StorageError: the store's file system refused something; nothing was committed.
            SaveAborted: collectors kept deleting what the save relied on; nothing was committed.
        """
        options = self._options(
            series,
            step=step,
            metrics=metrics,
            tags=tags,
            message=message,
            on_error=on_error,
            owner=owner,
            cache=files_cache,
            delta=delta,
        )
        keep = None if keep is None else _integer("keep", keep, 1, 2**31)
        if onto is not None and not isinstance(onto, Snapshot):
            raise InvalidArgumentType(f"onto must be a Snapshot, not {onto!r}; get it with Store.snapshot")
        check_features(self._header, "write")
        self._check_outside(source)
        saver = Saver(
            self._backend,
            self._header,
            options,
            knowledge=self._learn,
            onto=onto.reader() if onto is not None else None,
            monitor=monitor or Monitor(),
        )
        record = saver.run(source)
        if self._knowledge is not None:
            self._knowledge.tidy(self._backend)
        if keep is not None:
            self._keep(options.series, keep, monitor or Monitor())
        return Snapshot(self._backend, record, warnings=tuple(saver.notices))

    # --- saving in parts ---

    def begin_parts(
        self,
        *,
        parts: int,
        series: str = "default",
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] | None = None,
        message: str | None = None,
    ) -> PartPlan:
        """Plan a snapshot that several processes save together, such as the ranks of a distributed job.

        One process calls this and sends the plan to the others; each calls `save_part` and sends its receipt back; then
        one calls `commit_parts`. Nothing is written before `save_part`; until the commit there is no snapshot.

        Args:
            parts: how many parts there will be.
            series: as for `save`, like all that follows.
            step: see `save`.
            metrics: see `save`.
            tags: see `save`.
            message: see `save`.

        Raises:
            InvalidArgument: an argument cannot be used.
            UnsupportedStore: the store was made by a version whose collections do not look out for parts.
        """
        options = self._options(series, step=step, metrics=metrics, tags=tags, message=message)
        return plan_parts(self._backend, self._header, options, _integer("parts", parts, 1, MAX_PARTS))

    def save_part(
        self,
        source: Source,
        plan: PartPlan,
        *,
        part: int,
        on_error: OnError = "fail",
        owner: bool = False,
        delta: Delta = "fast",
        monitor: Monitor | None = None,
    ) -> PartReceipt:
        """Save `source` as one part of a snapshot. Files and links must not be in any other part; directories may.

        Args:
            source: as for `save`. Paths in the snapshot are those within the source.
            plan: from `begin_parts`.
            part: the number of this part, from 0.
            on_error: see `save`; what is left out is told to the monitor of this part alone.
            owner: see `save`.
            delta: see `save`.
            monitor: told of progress and warnings.

        Returns:
            A receipt for `commit_parts`.

        Raises:
            InvalidArgument, SourceError, StorageError, SaveAborted: as for `save`.
        """
        self._check_plan(plan)
        part = _integer("part", part, 0, plan.parts - 1)
        options = self._options(plan.key.series, on_error=on_error, owner=owner, delta=delta)
        self._check_outside(source)
        monitor = monitor or Monitor()
        saver = PartSaver(self._backend, self._header, options, knowledge=self._learn, monitor=monitor)
        return saver.run_part(source, plan, part)

    def commit_parts(
        self, plan: PartPlan, receipts: Iterable[PartReceipt], *, monitor: Monitor | None = None
    ) -> Snapshot:
        """Make one snapshot of all parts. Called again after it succeeded, it returns that snapshot.

        Args:
            plan: from `begin_parts`.
            receipts: one of each part, in any order.
            monitor: told of progress and warnings.

        Raises:
            InvalidArgument: receipts are missing or too many, or a file is in several parts.
            SaveAborted: a collection gave the save up, because its grace period was over.
            DamagedStore: a part is damaged.
            StorageError: the store's file system refused something.
        """
        self._check_plan(plan)
        known = list(receipts)
        if not all(isinstance(receipt, PartReceipt) for receipt in known):
            raise InvalidArgumentType("receipts must be what save_part returned; use PartReceipt.from_bytes")
        committer = PartCommitter(
            self._backend, self._header, plan, workers=self._workers, monitor=monitor or Monitor()
        )
        return Snapshot(self._backend, committer.run(known))

    def _check_plan(self, plan: PartPlan) -> None:
        if not isinstance(plan, PartPlan):
            raise InvalidArgumentType(f"plan must be what begin_parts returned, not {plan!r}; use PartPlan.from_bytes")
        if plan.store != self._header.store:
            raise InvalidArgument(f"the plan is for the store {plan.store.hex()}, and this one is {self.id}")
        check_features(self._header, "write")

    def _options(
        self,
        series: str,
        *,
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] | None = None,
        message: str | None = None,
        on_error: OnError = "fail",
        owner: bool = False,
        cache: bool = False,
        delta: Delta = "off",
    ) -> SaveOptions:
        """Check the arguments of a save."""
        if on_error not in ("fail", "skip"):
            raise InvalidArgument(f'on_error must be "fail" or "skip", not {on_error!r}')
        if delta not in ("off", "fast", "small"):
            raise InvalidArgument(f'delta must be "off", "fast" or "small", not {delta!r}')
        return SaveOptions(
            check_series(_text("series", series)),
            None if step is None else _integer("step", step, -(2**63), 2**63 - 1),
            _metrics(metrics or {}),
            _tags(tags or ()),
            _text("message", message or ""),
            on_error,
            owner,
            self._level,
            self._workers,
            cache_directory() if cache else None,
            delta,
        )

    def _keep(self, series: str, keep: int, monitor: Monitor) -> None:
        """Forget what is superseded; collect if that may be much. The save is done: nothing of this makes it fail."""
        try:
            superseded = forget_superseded(self._backend, self._header.store, series, keep)
            self._garbage.add(sum(record.stats.bytes_new for record in superseded), monitor)
        except CasCheckpointError as error:
            monitor.warning(Notice("", f"older snapshots of {series!r} were not forgotten: {error}"))

    def _check_outside(self, source: Source) -> None:
        """Refuse to save a directory that holds the store itself."""
        if not isinstance(self._backend, LocalBackend):
            return
        root = os.path.realpath(self._backend.root)
        for value in source.values() if isinstance(source, Mapping) else [source]:
            if isinstance(value, (str, os.PathLike)):
                try:
                    place = os.path.realpath(value)
                except ValueError:  # not a path at all: the walker says so
                    continue
                if os.path.commonpath([root, place]) == place:
                    raise InvalidArgument(f"the store {root} lies within {place}, which is to be saved; move it out")

    def _learn(self, latest: CommitKey | None, condemned: frozenset[PackId]) -> Knowledge:
        """Return what is known to be in the store, read as far as it is new."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            now = list_marks(self._backend).base
            known = self._knowledge
            if known is None or known.now != now or known.full or condemned:
                known = self._knowledge = Knowledge(now, limit=_INDEX_LIMIT, without=condemned)
            known.learn(self._backend, parent=lambda: self._packs_of(latest), newest=self._newest)
            return known

    def _packs_of(self, latest: CommitKey | None) -> tuple[PackRef, ...]:
        """Return the packs that the latest snapshot of the series needs, which are learned first."""
        try:
            if latest is None:
                return ()
            record = read_commit(self._backend, latest, self._header.store)
            return SnapshotReader(self._backend, record).manifest().packs if record.state is State.COMMITTED else ()
        except CasCheckpointError:  # only an order of preference; what is damaged is told when it is needed
            return ()

    def _newest(self) -> list[TransactionId]:
        """Return all transactions, the latest of each series first, then the ones before these, and so on."""
        keys: dict[str, list[CommitKey]] = {}
        for key in list_commits(self._backend):
            keys.setdefault(key.series, []).append(key)
        ranked = [enumerate(sorted(group, key=_newest_first)) for group in keys.values()]
        return [key.transaction for _, key in merge(*ranked, key=lambda item: item[0])]

    # --- finding ---

    def snapshots(
        self, series: str | None = None, *, damaged: Callable[[CasCheckpointError], None] | None = None
    ) -> list[Snapshot]:
        """Return all snapshots, or those of one series, newest first.

        Within a series the order is that of the saves; between series that of the savers' clocks.

        Args:
            series: a series, or None for all.
            damaged: called for each commit that cannot be read; by default that error is raised.
        """
        keys: dict[str, list[CommitKey]] = {}
        for key in list_commits(self._backend, None if series is None else check_series(series)):
            keys.setdefault(key.series, []).append(key)
        lists = [list(self._read_all(sorted(group, key=_newest_first), damaged)) for group in keys.values()]
        return list(merge(*lists, key=lambda snapshot: -snapshot.created_at.timestamp()))

    def _read_all(
        self, keys: Sequence[CommitKey], damaged: Callable[[CasCheckpointError], None] | None
    ) -> Iterator[Snapshot]:
        def read(key: CommitKey) -> Commit | CasCheckpointError | None:
            try:
                return read_commit(self._backend, key, self._header.store)
            except ObjectNotFound:
                return None
            except CasCheckpointError as error:
                return error

        with ThreadPoolExecutor(min(_READERS, len(keys)) or 1) as pool:
            for result in pool.map(read, keys):
                if isinstance(result, CasCheckpointError):
                    if damaged is None:
                        raise result
                    damaged(result)
                elif result is not None and result.state is State.COMMITTED:
                    yield Snapshot(self._backend, result)

    def latest(self, series: str = "default") -> Snapshot | None:
        """Return the newest snapshot of a series, None if it has none."""
        keys = sorted(list_commits(self._backend, check_series(series)), key=_newest_first)
        return next(self._read_some(keys), None)

    def _read_some(self, keys: Iterable[CommitKey]) -> Iterator[Snapshot]:
        for key in keys:
            try:
                record = read_commit(self._backend, key, self._header.store)
            except ObjectNotFound:  # forgotten since it was listed
                continue
            if record.state is State.COMMITTED:
                yield Snapshot(self._backend, record)

    def snapshot(self, ref: str | Snapshot) -> Snapshot:
        """Return the snapshot that `ref` means.

        Args:
            ref: a full id; a prefix of at least four digits that only one id has; `latest` (of the series `default`);
                `SERIES@latest`; or `SERIES@N` for the number N of a series.

        Raises:
            SnapshotNotFound: there is none.
            AmbiguousReference: there are several.
        """
        if isinstance(ref, Snapshot):
            return ref
        series, at, which = _text("ref", ref).rpartition("@")
        if at or which == "latest":
            return self._in_series(series if at else "default", which)
        if len(ref) < _MIN_PREFIX or not set(ref) <= set("0123456789abcdef"):
            raise SnapshotNotFound(
                f"{ref!r} is no snapshot: give an id, at least {_MIN_PREFIX} digits of one, latest, SERIES@latest "
                "or SERIES@N"
            )
        keys = [key for key in list_commits(self._backend) if key.transaction.hex().startswith(ref)]
        return self._only(ref, keys, "'list' shows all there are")

    def _in_series(self, series: str, which: str) -> Snapshot:
        check_series(series)
        if which == "latest":
            found = self.latest(series)
            if found is None:
                others = sorted({key.series for key in list_commits(self._backend)})
                hint = f"there are {', '.join(f'{name}@latest' for name in others)}" if others else "the store is empty"
                raise SnapshotNotFound(f"the series {series!r} has no snapshot; {hint}")
            return found
        if not (which.isascii() and which.isdecimal() and len(which) <= _SEQUENCE_DIGITS):
            raise SnapshotNotFound(f"{series}@{which} is no snapshot: after @ comes 'latest' or a number")
        keys = [key for key in list_commits(self._backend, series) if key.sequence == int(which)]
        return self._only(f"{series}@{which}", keys, f"'list --series {series}' shows all there are")

    def _only(self, ref: str, keys: Sequence[CommitKey], hint: str) -> Snapshot:
        found = list(self._read_some(keys))
        if not found:
            raise SnapshotNotFound(f"no snapshot {ref} in {self.url}; {hint}")
        if len(found) > 1:
            raise AmbiguousReference(f"{ref} fits {', '.join(snapshot.id for snapshot in found)}; give more digits")
        return found[0]

    # --- restoring ---

    def restore(
        self,
        ref: str | Snapshot,
        target: str | os.PathLike[str],
        *,
        paths: Sequence[PathArgument] | None = None,
        exact: bool = False,
        owner: bool = False,
        damaged: Literal["fail", "skip"] = "fail",
        fallback: Literal["previous"] | None = None,
        monitor: Monitor | None = None,
    ) -> RestoreResult:
        """Write a snapshot into the directory `target`, which is created if it is not there.

        What is there already and not in the snapshot stays; files whose content is right are not written again;
        nothing outside of the target is touched, whatever links there are.

        Args:
            ref: as for `snapshot`.
            target: the directory.
            paths: restore only what lies at or below these paths of the snapshot.
            exact: also remove what the snapshot does not have, and replace directories that are in the way of files.
            owner: also set owners and groups, where they were recorded.
            damaged: what to do about a file that needs something which is lost: "fail" stops there; "skip" leaves it
                out, leaves what has its name in the target as it is, and names it in `RestoreResult.lost`. Where the
                store holds another copy, nothing is lost.
            fallback: "previous" restores, if the snapshot is damaged, the next older one of its series that is not,
                with a warning; never a mixture of both. If the target holds something already and is not to be
                `exact`, everything is read once before anything is written.
            monitor: told of progress and warnings.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            EntryNotFound: the snapshot holds nothing at one of `paths`.
            DamagedStore: something that is needed is damaged or missing; what is complete stays in the target.
            RestoreError: the target cannot be written.
        """
        if exact and paths is not None:
            raise InvalidArgument("exact=True restores whole snapshots: it cannot be combined with paths")
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise InvalidArgumentType("paths must be a sequence of paths, not a single one")
        if not isinstance(target, (str, os.PathLike)):
            raise InvalidArgumentType(f"target must be a path as text, not {target!r}")
        if damaged not in ("fail", "skip"):
            raise InvalidArgument(f'damaged must be "fail" or "skip", not {damaged!r}')
        if fallback not in (None, "previous") or (fallback and damaged == "skip"):
            raise InvalidArgument(
                f'fallback must be "previous" or None, and None with damaged="skip", not {fallback!r}'
            )
        selected = None if paths is None else [entry_path(path) for path in paths]
        monitor = monitor or Monitor()
        if fallback:
            candidates = self._and_older(ref)
            result = restore_intact(
                candidates,
                lambda key: candidates[key] or self._reader_at(key),
                target,
                paths=selected,
                exact=exact,
                owner=owner,
                workers=self._workers,
                monitor=monitor,
            )
            if result is not None:
                return result
        return restore(
            self.snapshot(ref).reader(),
            target,
            paths=selected,
            exact=exact,
            owner=owner,
            skip=damaged == "skip",
            workers=self._workers,
            monitor=monitor,
        )

    def _and_older(self, ref: str | Snapshot) -> dict[CommitKey, SnapshotReader | None]:
        """Return the commit of a snapshot and those before it in its series, newest first, with the first one's reader.

        For `latest` there is no reader: its commit may be damaged.
        """
        series, at, which = ref.rpartition("@") if isinstance(ref, str) else ("", "", "")
        if which == "latest":
            keys = list_commits(self._backend, check_series(series if at else "default"))
            return dict.fromkeys(sorted(keys, key=_newest_first))
        reader = self.snapshot(ref).reader()
        keys = list_commits(self._backend, reader.key.series)
        older = [key for key in keys if _newest_first(key) > _newest_first(reader.key)]
        return {reader.key: reader, **dict.fromkeys(sorted(older, key=_newest_first))}

    def _reader_at(self, key: CommitKey) -> SnapshotReader | None:
        return next((snapshot.reader() for snapshot in self._read_some([key])), None)

    # --- looking after it ---

    def forget(self, refs: str | Snapshot | Iterable[str | Snapshot]) -> list[Snapshot]:
        """Let snapshots not exist any more. What they alone needed stays in the store until it is collected.

        Args:
            refs: one or more references, as for `snapshot`; all are looked up before anything is forgotten. A snapshot
                whose commit is damaged must be named by its full id.

        Returns:
            The snapshots that were forgotten.

        Raises:
            SnapshotNotFound: there is no such snapshot; nothing was forgotten.
            DamagedObject: a commit is damaged, and it was not named by its full id; nothing was forgotten.
        """
        check_features(self._header, "write")
        wanted = [refs] if isinstance(refs, (str, Snapshot)) else list(refs)
        found = dict(self._forgettable(ref) for ref in wanted)
        for snapshot, is_damaged in found.items():
            key = snapshot.reader().key
            if is_damaged:
                forget_damaged(self._backend, key, self._header.store)
            else:
                forget(self._backend, key)
        return list(found)

    def _forgettable(self, ref: str | Snapshot) -> tuple[Snapshot, bool]:
        """Return a snapshot that is to be forgotten, and whether its commit is damaged: then hardly more is known."""
        try:
            return self.snapshot(ref), False
        except DamagedObject as error:
            key = parse_commit_key(error.key)
            if key is None:
                raise
            if key.transaction.hex() != ref:
                reason = f"{error.reason}; to forget it, name its full id, {key.transaction.hex()}"
                raise DamagedObject(reason, key=error.key) from error
            return Snapshot(self._backend, Commit(State.ABORTED, self._header.store, key)), True

    def settle(self) -> None:
        """Wait for a collection that runs in the background; see `save`."""
        self._garbage.wait()

    def forget_older(self, keep: int, *, series: str = "default") -> list[Snapshot]:
        """Forget all snapshots of a series but so many of the newest, at least one; return what was forgotten."""
        check_features(self._header, "write")
        keep = _integer("keep", keep, 1, 2**31)
        records = forget_superseded(self._backend, self._header.store, check_series(series), keep)
        return [Snapshot(self._backend, record) for record in records]

    def collect(
        self,
        *,
        grace: float = 0.0,
        repack: float | None = 0.5,
        dry_run: bool = False,
        monitor: Monitor | None = None,
    ) -> CollectReport:
        """Delete what no snapshot needs. Safe beside saves, restores and other collections, and wherever it is stopped.

        A save under way whose packs are deleted notices that before its commit, and stores them again: to spare it
        that work, give a grace period if saves may take place.

        Args:
            grace: seconds; what a save has written is left alone if any pack of it is younger than this, by the clock
                of the storage. It must be at least a day where objects cannot be created exclusively (see `info`).
            repack: a pack of which at least this share is not needed is replaced by a copy of the rest; None to delete
                only packs of which nothing is needed.
            dry_run: do nothing, and tell what would be done.
            monitor: told of progress and warnings.

        Raises:
            DamagedStore: a manifest is damaged, so that nobody knows what it needs; nothing more is deleted.
            StorageError: the store's file system refused something; the next collection does what is left.
        """
        if repack is not None and not 0 < repack <= 1:
            raise InvalidArgument(f"repack must be a share above 0 and at most 1, or None, not {repack!r}")
        if not grace >= 0:
            raise InvalidArgument(f"grace must be a number of seconds, not {grace!r}")
        return collect(
            self._backend,
            self._header,
            grace=grace,
            repack=repack,
            dry_run=dry_run,
            now=time.time(),
            monitor=monitor or Monitor(),
        )

    def verify(
        self,
        *,
        depth: Depth = "data",
        sample: float = 0.05,
        seed: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        monitor: Monitor | None = None,
    ) -> VerifyReport:
        """Check that every snapshot can be restored, and report what is wrong. Nothing is changed.

        Args:
            depth: "structure" for all but data: commits, manifests, packs' footers, index, moves, marks; "sample" for
                the lists of files, and a share of the chunks, besides; "data" for all of it.
            sample: the share of the chunks that a sample reads, above 0 and at most 1.
            seed: which ones; the same seed reads the same chunks. By default it is drawn at random.
            resume: a file where the packs are noted that were found intact. If a verification is interrupted, the next
                one that is given the same file goes on where it stopped; one that comes to its end removes the file.
            monitor: told of progress.

        Raises:
            InvalidArgument: the file is of another store, damaged, or no such file.
        """
        if depth not in get_args(Depth):
            raise InvalidArgument(f"depth must be one of {', '.join(get_args(Depth))}, not {depth!r}")
        if depth == "sample" and not 0 < sample <= 1:
            raise InvalidArgument(f"sample must be a share above 0 and at most 1, not {sample!r}")
        if resume is not None and depth != "data":
            raise InvalidArgument("only a verification of all data can go on where another one stopped")
        number = int.from_bytes(random_id(), "big") if seed is None else seed
        return verify(
            self._backend,
            self._header,
            sample=None if depth == "structure" else Sample(sample if depth == "sample" else 1.0, number),
            checked=None if resume is None else CheckedPacks(resume, self._header.store),
            workers=self._workers,
            monitor=monitor or Monitor(),
        )

    def repair(
        self, *, report: VerifyReport | None = None, dry_run: bool = False, monitor: Monitor | None = None
    ) -> RepairReport:
        """Take damaged packs out of the store, put what is whole in their place, and rebuild the index.

        What is taken out is put aside in the store's `quarantine/`, which nobody reads. Chunks that are lost are found
        again where anybody has saved the same content since: so save again what is still there, then repair once more.
        Safe beside saves, restores and collections; it may be stopped anywhere, and run again.

        Args:
            report: what a verification of all data found just now; else all data is read first.
            dry_run: do nothing, and tell what would be done.
            monitor: told of progress.

        Raises:
            StorageError: the store's file system refused something; the next repair does what is left.
        """
        return repair(
            self._backend,
            self._header,
            report=report,
            dry_run=dry_run,
            workers=self._workers,
            monitor=monitor or Monitor(),
        )

    def info(self) -> StoreInfo:
        """Return what the store consists of."""
        objects: dict[str, tuple[int, int]] = {}
        for item in self._backend.list(""):
            kind = item.key.partition("/")[0] if "/" in item.key else "header"
            count, size = objects.get(kind, (0, 0))
            objects[kind] = (count + 1, size + item.size)
        series: dict[str, int] = {}
        for key in list_commits(self._backend):
            series[key.series] = series.get(key.series, 0) + 1
        return StoreInfo(self.url, self.id, self._header.put_if_absent, dict(sorted(series.items())), objects)


def _newest_first(key: CommitKey) -> tuple[int, int]:
    return -key.sequence, -int.from_bytes(key.transaction, "big")


def _read_header(backend: Backend) -> Header | None:
    """Return the header of the store, None if there is no store at all."""
    try:
        return read_header(backend)
    except ObjectNotFound:
        return _read_header_again(backend) if _has_objects(backend) else None
    except ForeignObject as error:
        if _has_objects(backend):
            raise
        raise NotAStore(f"{backend.url} holds {HEADER_KEY}, which is not the header of a store") from error


def _read_header_again(backend: Backend) -> Header:
    """Return the header of a store that has objects: somebody else may have made it since we looked."""
    try:
        return read_header(backend)
    except ObjectNotFound as error:
        raise MissingObject(
            f"the header {HEADER_KEY} is missing in {backend.url}, which holds the objects of a store; "
            "restore that small object from a copy of the store"
        ) from error


def _has_objects(backend: Backend) -> bool:
    """Tell whether there is any object that only a store has; a folder of somebody else's may have its names."""
    if next(list_commits(backend), None):
        return True
    return any(is_hex_id(key.partition("/")[2]) for prefix in _NAMED for key in backend.names(prefix))


def _create(backend: Backend) -> Header:
    """Make a new store, or return the header of the one that somebody else made at the same moment."""
    header = Header(StoreId(random_id()), put_if_absent=probe_put_if_absent(backend))
    if backend.put_if_absent(HEADER_KEY, header.encode()):
        return header
    return read_header(backend)


def _usable_cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not hasattr(value, "__index__"):
        raise InvalidArgumentType(f"{name} must be an integer, not {value!r}")
    number = int(value.__index__())
    if not low <= number <= high:
        raise InvalidArgument(f"{name} must be from {low} to {high}, not {number}")
    return number


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentType(f"{name} must be a text, not {value!r}")
    try:
        encoded = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name} is not valid Unicode: {value!r}") from error
    if len(encoded) > MAX_MESSAGE_SIZE:
        raise InvalidArgument(f"{name} has {len(encoded)} bytes; at most {MAX_MESSAGE_SIZE} are allowed")
    return value


def _tags(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidArgumentType(f"tags must be a sequence of texts, not {value!r}")
    tags = tuple(_text("a tag", tag) for tag in value)
    if len(tags) > MAX_ITEMS:
        raise InvalidArgument(f"at most {MAX_ITEMS} tags are allowed")
    return tags


def _metrics(value: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise InvalidArgumentType(f"metrics must be numbers by name, not {value!r}")
    metrics = {}
    for name, number in value.items():
        try:
            metrics[_text("the name of a metric", name)] = float(number)
        except OverflowError as error:
            raise InvalidArgument(f"the metric {name!r} is larger than a float can be") from error
        except InvalidArgument:
            raise
        except (TypeError, ValueError) as error:
            raise InvalidArgumentType(f"the metric {name!r} must be a number, not {number!r}") from error
    if len(metrics) > MAX_ITEMS:
        raise InvalidArgument(f"at most {MAX_ITEMS} metrics are allowed")
    return metrics
