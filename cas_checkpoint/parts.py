"""Saves in several parts: each rank of a distributed job saves its own files, then one process makes the snapshot.

A rank ends with a part manifest instead of a commit. It counts for collectors as any manifest does, until its
transaction is aborted, or the whole manifest has taken over. The committer merges the entries of all parts, and begins
like a rank: what it writes is under a part manifest of its own before anything else relies on it. So all packs that the
whole manifest names are protected already, by manifests after each of which the marks were looked at, and it needs no
look of its own.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.buffers import ReadBuffers
from cas_checkpoint.chunking import Cutter
from cas_checkpoint.commits import (
    MAX_PARTS,
    Commit,
    CommitKey,
    SaveStats,
    State,
    index_key,
    manifest_key,
    pack_key,
    part_key,
)
from cas_checkpoint.comparing import Comparison
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedObject,
    InvalidArgument,
    ObjectNotFound,
    SaveAborted,
    SnapshotForgotten,
    UnsupportedStore,
)
from cas_checkpoint.headers import PARTS, Header, check_features
from cas_checkpoint.ids import (
    CHUNK_ID_SIZE,
    RANDOM_ID_SIZE,
    Buffer,
    PackId,
    StoreId,
    TransactionId,
    digest,
)
from cas_checkpoint.index import encode_index
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.manifests import (
    MAX_MANIFEST_SIZE,
    Content,
    Entry,
    EntryType,
    Manifest,
    PackRef,
    encode_entry,
    order,
)
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.packing import Coding, Packer
from cas_checkpoint.packs import Footer
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.records import Fields, Kind, decode_record, encode_record
from cas_checkpoint.saving import MAX_ATTEMPTS, Attempt, SaveOptions, Saver
from cas_checkpoint.sources import Source
from cas_checkpoint.streams import MetadataStream, buffer_size
from cas_checkpoint.transactions import (
    commit,
    condemned_packs,
    list_commits,
    list_marks,
    new_pack_id,
    next_sequence,
    random_id,
    read_commit,
)

__all__ = ["PartCommitter", "PartPlan", "PartReceipt", "PartSaver", "plan_parts"]

_LEVEL = 3  # of zstd, for entries


class PartPlan(NamedTuple):
    """What all who save parts of one snapshot must know. Pass it on to them as `to_bytes`.

    Attributes:
        store: the store's id.
        key: the key of the commit that is to be.
        parts: how many parts there are, numbered from 0.
        created_at_ns: when the save began, nanoseconds since 1970.
        step: the training step, if any.
        metrics: numbers by name.
        tags: words to find it by.
        message: free text.
    """

    store: StoreId
    key: CommitKey
    parts: int
    created_at_ns: int
    step: int | None = None
    metrics: Mapping[str, float] = {}
    tags: tuple[str, ...] = ()
    message: str = ""

    def to_bytes(self) -> bytes:
        """Return the plan in a form that can be sent."""
        body = {**self._asdict(), **self.key._asdict(), "metrics": dict(self.metrics), "tags": list(self.tags)}
        del body["key"]
        return encode_record(Kind.PLAN, body)

    @classmethod
    def from_bytes(cls, data: Buffer) -> PartPlan:
        """Read what `to_bytes` returned; anything else is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.PLAN, data)
        return cls(
            StoreId(fields.bytes("store", RANDOM_ID_SIZE)),
            CommitKey(
                fields.text("series"),
                fields.integer("sequence"),
                TransactionId(fields.bytes("transaction", RANDOM_ID_SIZE)),
            ),
            fields.integer("parts", low=1, high=MAX_PARTS),
            fields.integer("created_at_ns", low=-(2**63)),
            None if fields.get("step") is None else fields.integer("step", low=-(2**63)),
            dict(fields.map("metrics")),
            fields.texts("tags"),
            fields.text("message"),
        )


class PartReceipt(NamedTuple):
    """Tells that a part was saved. Pass it on to who commits, as `to_bytes`.

    Attributes:
        transaction: the plan's.
        part: the number of the part.
        name: the random id in the key of the part manifest.
        manifest_digest: BLAKE3-256 of the part manifest.
        manifest_size: its bytes.
        stats: what the part's save did.
    """

    transaction: TransactionId
    part: int
    name: TransactionId
    manifest_digest: bytes
    manifest_size: int
    stats: SaveStats

    @property
    def manifest_key(self) -> str:
        """The key of the part manifest."""
        return part_key(self.transaction, self.part, self.name)

    def to_bytes(self) -> bytes:
        """Return the receipt in a form that can be sent."""
        return encode_record(Kind.RECEIPT, {**self._asdict(), "stats": self.stats._asdict()})

    @classmethod
    def from_bytes(cls, data: Buffer) -> PartReceipt:
        """Read what `to_bytes` returned; anything else is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.RECEIPT, data)
        stats = Fields(fields.get("stats"))
        counts = {name: stats.integer(name) for name in SaveStats._fields if name != "seconds"}
        return cls(
            TransactionId(fields.bytes("transaction", RANDOM_ID_SIZE)),
            fields.integer("part", high=MAX_PARTS - 1),
            TransactionId(fields.bytes("name", RANDOM_ID_SIZE)),
            fields.bytes("manifest_digest", CHUNK_ID_SIZE),
            fields.integer("manifest_size"),
            SaveStats(**counts, seconds=stats.number("seconds")),
        )


def plan_parts(backend: Backend, header: Header, options: SaveOptions, parts: int) -> PartPlan:
    """Plan a snapshot in so many parts; nothing is written yet.

    Raises:
        UnsupportedStore: collectors of the store need not know of parts.
    """
    if PARTS not in dict(header.features)["collect"]:
        raise UnsupportedStore(
            "this store was made by an older version, whose collections do not look out for parts; "
            "save into a new store to save in parts"
        )
    check_features(header, "write")
    key = CommitKey(options.series, next_sequence(list_commits(backend, options.series)), TransactionId(random_id()))
    said = options.step, options.metrics, options.tags, options.message
    return PartPlan(header.store, key, parts, time.time_ns(), *said)


def _manifest(plan: PartPlan, base: int, packs: Iterable[PackRef], entries: Content, count: int) -> bytes:
    return Manifest(plan.store, *plan.key, base, tuple(packs), entries, count).encode()


# --- the ranks ----------------------------------------------------------------------------------


class PartSaver(Saver):
    """Saves one part, for a plan."""

    plan: PartPlan
    part: int
    name: TransactionId  # of the part manifest of the latest attempt

    def run_part(self, source: Source, plan: PartPlan, part: int) -> PartReceipt:
        """Save `source` as a part; errors as for `run`."""
        self.plan, self.part = plan, part
        record = self.run(source)
        return PartReceipt(
            plan.key.transaction, part, self.name, record.manifest_digest, record.manifest_size, record.stats
        )

    def _attempt(
        self,
        sequence: int,  # noqa: ARG002 -- the plan says it
        comparison: Comparison | None,
        *,
        started: float,
        now_ns: int,
        condemned: frozenset[PackId],
    ) -> Attempt:
        self.name = TransactionId(random_id())
        return _PartAttempt(self, self.plan.key, comparison, started=started, now_ns=now_ns, condemned=condemned)

    def _commit(self, attempt: Attempt, record: Commit | None) -> Commit | None:  # noqa: ARG002 -- nothing to renew
        return record


class _PartAttempt(Attempt):
    """One run through a rank's source, up to the part manifest."""

    def __init__(
        self,
        saver: PartSaver,
        key: CommitKey,
        comparison: Comparison | None,
        *,
        started: float,
        now_ns: int,
        condemned: frozenset[PackId],
    ) -> None:
        super().__init__(saver, key, comparison, started=started, now_ns=now_ns, condemned=condemned)
        self._part_key = part_key(key.transaction, saver.part, saver.name)
        self._home = saver.name  # every part has an index object of its own

    def _is_small(self) -> bool:
        return False

    def _write_manifest(self, manifest: bytes) -> str:
        self._put(self._part_key, manifest)
        return self._part_key


# --- the committer ------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A part, as the committer finds it."""

    receipt: PartReceipt
    manifest: Manifest
    reader: SnapshotReader


class PartCommitter:
    """Makes one snapshot of all parts of a plan."""

    def __init__(self, backend: Backend, header: Header, plan: PartPlan, *, workers: int, monitor: Monitor) -> None:
        """Prepare to commit."""
        self._backend, self._header, self._plan, self._workers = backend, header, plan, workers
        self._monitor = monitor
        self._count = 0
        self._written = self._objects = 0

    def run(self, receipts: Sequence[PartReceipt]) -> Commit:
        """Commit; return the commit, which may be there already if this was called before.

        Raises:
            InvalidArgument: there is not one receipt for each part, or several parts have the same file.
            SaveAborted: a collector has given the save up; no snapshot was made.
        """
        started = time.monotonic()
        ordered = self._ordered(receipts)
        before = self._outcome()
        if before is not None:
            return before
        try:
            parts = [self._read(receipt) for receipt in ordered]
            own, manifest = self._write(parts)
        except SnapshotForgotten as error:  # parts are gone, and nobody committed them: a collector gave them up
            raise self._aborted() from error
        key = manifest_key(self._plan.key.transaction)
        self._written += len(manifest)
        self._objects += 1
        if not self._backend.put_if_absent(key, manifest):  # who knows the other one never reads this one
            raise SaveAborted("another commit of the same parts was begun before; no snapshot was made: save again")
        record = self._record(parts, manifest, time.monotonic() - started)
        try:
            commit(self._backend, record)
        except SaveAborted:
            self._remove([key, own])  # it does not count any more; the ranks' own manifests are left to the collector
            raise
        self._remove([own, *(receipt.manifest_key for receipt in ordered)])
        return record

    def _ordered(self, receipts: Sequence[PartReceipt]) -> list[PartReceipt]:
        plan = self._plan
        if any(receipt.transaction != plan.key.transaction for receipt in receipts):
            raise InvalidArgument("a receipt is of another plan")
        numbers = sorted(receipt.part for receipt in receipts)
        if numbers != list(range(plan.parts)):
            raise InvalidArgument(
                f"there must be one receipt of each of {plan.parts} parts; there are some of {numbers}"
            )
        return sorted(receipts, key=lambda receipt: receipt.part)

    def _outcome(self) -> Commit | None:
        """Return the commit if it is there; raise if a collector has put another one in its place."""
        try:
            record = read_commit(self._backend, self._plan.key, self._plan.store)
        except ObjectNotFound:
            return None
        if record.state is State.ABORTED:
            raise self._aborted()
        return record

    def _aborted(self) -> SaveAborted:
        return SaveAborted(
            f"the save {self._plan.key.transaction.hex()} was given up by a collector because it took too long; "
            "no snapshot was made: save all parts again"
        )

    def _read(self, receipt: PartReceipt) -> _Part:
        plan, key = self._plan, receipt.manifest_key
        try:
            data = self._backend.get(key, max_size=MAX_MANIFEST_SIZE)
        except ObjectNotFound as error:
            raise self._aborted() from error
        if digest((data,)) != receipt.manifest_digest:
            raise DamagedObject("is not the part manifest that the receipt vouches for", key=key)
        vouched = {"manifest_digest": receipt.manifest_digest, "manifest_size": receipt.manifest_size}
        record = Commit(State.COMMITTED, plan.store, plan.key, **vouched)  # type: ignore[arg-type]
        reader = SnapshotReader(self._backend, record, manifest=key)
        reader.notice = self._monitor.warning
        return _Part(receipt, reader.manifest(), reader)

    # --- what is written ---

    def _write(self, parts: Sequence[_Part]) -> tuple[str, bytes]:
        """Write the merged entries and a part manifest for them; return its key, and its bytes.

        If a collector condemned the packs before that manifest was there, they are written once more. The packs of the
        ranks are not looked at: the manifests of these were looked after when they were written, and have counted since
        unless the transaction was aborted; then it cannot be committed. Of a pack that was moved since, all is kept
        that the manifest of a rank needs, and the whole one needs no more.
        """
        for _ in range(MAX_ATTEMPTS):
            name = TransactionId(random_id())
            base = list_marks(self._backend).base
            entries, footers = self._store(parts, base)
            if footers:
                self._put(index_key(name), encode_index(name, base, footers))
            homes = {ref.pack: ref.home for part in parts for ref in part.manifest.packs}
            homes |= dict.fromkeys((footer.pack for footer in footers), name)
            refs = [PackRef(*item) for item in sorted(homes.items())]
            lowest = min(base, *(part.manifest.base for part in parts))
            manifest = _manifest(self._plan, lowest, refs, entries, self._count)
            key = part_key(self._plan.key.transaction, self._plan.parts, name)
            self._put(key, manifest)
            if not condemned_packs(self._backend, base, (footer.pack for footer in footers)):
                return key, manifest
            self._remove([key])
        raise SaveAborted("collectors keep deleting what is written; no snapshot was made: save again")

    def _put(self, key: str, data: bytes) -> None:
        self._backend.put(key, [data])
        self._written += len(data)
        self._objects += 1
        self._monitor.wrote(len(data))

    def _store(self, parts: Sequence[_Part], base: int) -> tuple[Content, list[Footer]]:
        """Store the merged entries in packs of their own, which nobody else knows of yet."""
        packs: list[PackId] = []

        def new_pack() -> PackId:
            packs.append(new_pack_id(self._plan.key.transaction))
            return packs[-1]

        packer = Packer(
            self._backend,
            Knowledge(base, limit=0),
            ReadBuffers(buffer_size(self._header, self._workers)),
            new_pack=new_pack,
            workers=1,
            coding=Coding(_LEVEL),
            monitor=self._monitor,
        )
        try:
            stream = MetadataStream(Cutter(self._header.metadata_chunker), lambda: packer)
            self._count = 0
            for entry in merge_entries([part.reader.entries() for part in parts]):
                stream.write(encode_entry(entry))
                self._count += 1
            content = stream.finish()
            packer.finish()
        except BaseException:
            packer.close()
            self._remove([pack_key(pack) for pack in packs])
            raise
        packer.close()
        self._written += packer.bytes_written
        self._objects += len(packer.footers)
        return content, packer.footers

    def _record(self, parts: Sequence[_Part], manifest: bytes, seconds: float) -> Commit:
        plan = self._plan
        each = [part.receipt.stats for part in parts]
        sums = {name: sum(getattr(stats, name) for stats in each) for name in SaveStats._fields[:-1]}
        sums["entries"] = self._count
        sums["bytes_written"] += self._written
        sums["objects_written"] += self._objects - len(parts) + 1  # each rank counted the commit
        seconds += max(stats.seconds for stats in each)
        stats = SaveStats(**sums, seconds=seconds)
        said = plan.step, plan.metrics, plan.tags, plan.message
        return Commit(
            State.COMMITTED, plan.store, plan.key, plan.created_at_ns, *said, stats, digest((manifest,)), len(manifest)
        )

    def _remove(self, keys: Iterable[str]) -> None:
        """Delete what is not needed any more; what cannot be deleted is left to the collector."""
        try:
            for key in keys:
                self._backend.delete(key)
        except CasCheckpointError as error:
            self._monitor.warning(Notice("", f"leftovers are left to the next collection: {error}"))


def merge_entries(parts: Sequence[Iterator[Entry]]) -> Iterator[Entry]:
    """Yield the entries of all parts in their order; of a directory in several parts, the lowest part's entry.

    Raises:
        InvalidArgument: two parts have an entry of the same path that is no directory, or one has an entry within what
            is no directory in the other.
    """
    keyed = [_keyed(number, entries) for number, entries in enumerate(parts)]
    last, holder = None, 0
    for _, number, entry in heapq.merge(*keyed, key=lambda item: item[:2]):
        if last is not None and (entry.path == last.path or entry.path.startswith(last.path + b"/")):
            is_same = entry.path == last.path
            if last.type is not EntryType.DIRECTORY or (is_same and entry.type is not EntryType.DIRECTORY):
                first, second = sorted((holder, number))
                raise InvalidArgument(
                    f"{entry.name}: is in the parts {first} and {second}; only directories may be in several. "
                    "No snapshot was made"
                )
            if is_same:
                continue
        yield entry
        last, holder = entry, number


def _keyed(number: int, entries: Iterator[Entry]) -> Iterator[tuple[bytes, int, Entry]]:
    return ((order(entry.path), number, entry) for entry in entries)
