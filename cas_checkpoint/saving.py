"""The save protocol: source → streams → packs → index → manifest → marks → commit.

The order of writes is the contract (SPEC.md, "Order of writes"): a crash anywhere leaves garbage, never a
snapshot that lies. How files become chunks stands in `streams`, what happens to chunks in `packing`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.basecache import BaseCache
from cas_checkpoint.buffers import ReadBuffers
from cas_checkpoint.chunking import Cutter
from cas_checkpoint.commits import (
    MAX_INLINE_SIZE,
    Commit,
    CommitKey,
    Inline,
    SaveStats,
    State,
    index_key,
    manifest_key,
    pack_key,
)
from cas_checkpoint.comparing import Comparison, Parent
from cas_checkpoint.earliertensors import EarlierTensors
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedStore,
    ObjectNotFound,
    SaveAborted,
    SnapshotForgotten,
    SourceError,
    StoreNotFound,
    UnsupportedStore,
)
from cas_checkpoint.filescache import FilesCache, FilesCacheWriter, Row, Stamp
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import PackId, TransactionId, digest
from cas_checkpoint.index import encode_index
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.manifests import (
    ENTRY_FRAME_SIZE,
    REF_SIZE,
    ChunkRef,
    Content,
    Entry,
    EntryType,
    Manifest,
    PackRef,
    decode_entry,
    encode_entry,
)
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.overlays import overlay
from cas_checkpoint.packing import MAX_BATCH_CHUNKS, Coding, Packer
from cas_checkpoint.parentbases import ParentBases
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.sources import Source, SourceItem, SourceReader, Walker, is_rereadable
from cas_checkpoint.streams import MetadataStream, Plan, Stream, StreamReader, buffer_size, store_content
from cas_checkpoint.tensorcuts import FindEarlier, TensorCuts
from cas_checkpoint.tensors import Layout, find_tensors
from cas_checkpoint.transactions import (
    commit,
    condemned_packs,
    list_commits,
    list_moves,
    new_pack_id,
    next_sequence,
    random_id,
    read_commit,
    read_header,
)

__all__ = ["MAX_ATTEMPTS", "Attempt", "Delta", "OnError", "SaveOptions", "Saver"]

Delta = Literal["off", "fast", "small"]
OnError = Literal["fail", "skip"]

MAX_ATTEMPTS = 5
_KEPT_CHUNKS = 4096  # looked up at once
_BASES_SIZE = 8 * 2**30  # of what is kept on this machine for stores far away


class SaveOptions(NamedTuple):
    """How to save, and what to say of the snapshot; see `Store.save`."""

    series: str
    step: int | None
    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    message: str
    on_error: OnError
    owner: bool
    level: int
    workers: int
    caches: Path | None
    delta: Delta = "fast"


class _ParentUnusable(Exception):
    """The snapshot that was compared with cannot be relied on after all."""


class Saver:
    """Saves sources into one store. What it needs from the world comes in here."""

    def __init__(
        self,
        backend: Backend,
        header: Header,
        options: SaveOptions,
        *,
        knowledge: Callable[[CommitKey | None, frozenset[PackId]], Knowledge],
        onto: SnapshotReader | None = None,
        monitor: Monitor,
    ) -> None:
        """Prepare a save.

        Args:
            backend: the store's backend.
            header: the store's header.
            options: how to save.
            knowledge: gives what is known to be in the store, told the latest commit of the series and packs not to
                rely on; not called for a small snapshot.
            onto: a snapshot whose entries are kept where the source has none of that path.
            monitor: told of progress and warnings.
        """
        self.backend, self.header, self.options = backend, header, options
        self.knowledge, self.onto, self.monitor = knowledge, onto, monitor
        self.notices: list[Notice] = []
        self.latest: CommitKey | None = None

    def run(self, source: Source) -> Commit:
        """Save `source`; return the commit once the snapshot exists.

        Raises:
            SourceError: something could not be saved and `on_error` is "fail"; nothing was committed.
            SaveAborted: collectors kept deleting what the save relied on; nothing was committed.
        """
        started, now_ns = time.monotonic(), time.time_ns()
        walker = Walker(source, owner=self.options.owner, now_ns=now_ns, problem=self.problem, notice=self.notice)
        earlier = list(list_commits(self.backend, self.options.series))
        if not earlier:
            self._check_store()
        sequence = next_sequence(earlier)
        self.latest = max(earlier, key=lambda key: (key.sequence, key.transaction), default=None)
        cache = self._cache_path(walker) if is_rereadable(source) else None
        comparison = self._comparison(cache)
        condemned: frozenset[PackId] = frozenset()
        for _ in range(MAX_ATTEMPTS):
            self.notices.clear()
            attempt = self._attempt(sequence, comparison, started=started, now_ns=now_ns, condemned=condemned)
            try:
                record = self._commit(attempt, attempt.write(walker))
                if record is not None:
                    attempt.remember(cache)
                    return record
            except _ParentUnusable:
                attempt.clean_up()
            except BaseException:
                attempt.clean_up()
                raise
            condemned |= attempt.condemned
            comparison = None
            if not is_rereadable(source):
                break
        raise SaveAborted("packs that the save relied on are being collected; no snapshot was made: save again")

    def _attempt(
        self,
        sequence: int,
        comparison: Comparison | None,
        *,
        started: float,
        now_ns: int,
        condemned: frozenset[PackId],
    ) -> Attempt:
        """Begin an attempt to make the snapshot of that number."""
        key = CommitKey(self.options.series, sequence, TransactionId(random_id()))
        return Attempt(self, key, comparison, started=started, now_ns=now_ns, condemned=condemned)

    def _commit(self, attempt: Attempt, record: Commit | None) -> Commit | None:
        """Commit, as another transaction if a collector gave this one up; None if packs are being collected."""
        for _ in range(MAX_ATTEMPTS):
            if record is None:
                return None
            try:
                commit(self.backend, record)
                return record
            except SaveAborted:
                record = attempt.renew(TransactionId(random_id()))
        raise SaveAborted("collectors keep giving the save up; no snapshot was made: save again")

    def _cache_path(self, walker: Walker) -> Path | None:
        """Return where the files cache of the source is; None if there is to be none."""
        options, places = self.options, walker.places()
        if options.caches is None or self.onto is not None or not places:
            return None
        said = repr((options.series, options.owner, places)).encode()
        return options.caches / self.header.store.hex() / digest((said,)).hex()

    def _comparison(self, cache: Path | None) -> Comparison | None:
        """Return what to compare the source with."""
        known = FilesCache.load(cache, self.options.series) if cache is not None else None
        return Comparison(self.backend, self.header.store, known, self.latest)

    def _check_store(self) -> None:
        """Make sure that the store was not removed since it was opened: nobody would find the snapshot again."""
        try:
            found = read_header(self.backend).store
        except ObjectNotFound as error:
            raise StoreNotFound(f"the store {self.backend.url} is gone; open it again with create=True") from error
        if found != self.header.store:
            raise StoreNotFound(f"another store has the place of the one at {self.backend.url}; open it again")

    def notice(self, notice: Notice) -> None:
        """Pass a warning on, and remember it for the snapshot."""
        self.notices.append(notice)
        self.monitor.warning(notice)

    def problem(self, error: SourceError) -> None:
        """Deal with something that cannot be saved, as the caller asked."""
        if self.options.on_error == "fail":
            raise error
        self.notice(Notice("", f"{error} (left out)"))


class _Pending(NamedTuple):
    """An entry that waits for its content, and for the entries before it.

    Attributes:
        entry: the entry, as far as it is known.
        stream: the content of a file that was read.
        stamp: what the file is recognized by.
    """

    entry: Entry
    stream: Stream | None = None
    stamp: Stamp | None = None


class Attempt:
    """One run through the source, up to the manifest."""

    def __init__(
        self,
        saver: Saver,
        key: CommitKey,
        comparison: Comparison | None,
        *,
        started: float,
        now_ns: int,
        condemned: frozenset[PackId],
    ) -> None:
        self.condemned = condemned
        self._comparison = comparison
        cache = comparison.cache if comparison is not None else None
        self._known = cache if comparison is not None and cache is not None and comparison.parent() else None
        self._same = 0  # rows of the files cache that hold, from the first on
        self._kept: list[ChunkRef] = []  # chunks of the parent that are to be relied on
        self._rows = FilesCacheWriter(now_ns)
        self._saver, self._backend, self._key = saver, saver.backend, key
        self._home = key.transaction  # names the index object of the packs
        self._started, self._now_ns = started, now_ns
        self._packer: Packer | None = None
        self._bases: ParentBases | None = None
        self._earlier: EarlierTensors | None = None
        self._knowledge: Knowledge | None = None
        self._packs: list[PackId] = []
        self._indexed = False
        self._named: tuple[Content, tuple[PackRef, ...], int] = (Content(0, 0, b""), (), 0)  # in the manifest
        self._buffers = ReadBuffers(buffer_size(saver.header, saver.options.workers))
        self._streams = StreamReader(saver.header, self._buffers, self._packing)
        self._metadata_cutter = Cutter(saver.header.metadata_chunker)
        self._entries = MetadataStream(self._metadata_cutter, self._packing)
        self._pending: deque[_Pending] = deque()
        self._above: list[Entry] = []  # entries that are to be laid over another snapshot's
        self._counts = dict.fromkeys(SaveStats._fields[:-1], 0)

    # --- the protocol ---

    def write(self, walker: Walker) -> Commit | None:
        """Write everything but the commit; return the commit to make, None if packs that were relied on are going."""
        try:
            self._read(walker)
            if self._known is not None and self._same == self._known.size and not self._is_moved():
                return self._unchanged_commit(self._known)
            self._diverge()
            self._rely_on_kept()
            packer = self._packing(small=self._is_small())
            self._streams.flush()
            packer.settle()
            self._emit()
            if self._saver.onto is not None:
                self._lay_over(self._saver.onto, packer)
            entries = self._entries.finish()
            if self._knowledge is None:
                return self._inline_commit(entries, packer.finish_inline())
            return self._packed_commit(entries, packer, packer.finish(), self._knowledge)
        finally:
            if self._packer is not None:
                self._packer.close()

    def _is_small(self) -> bool:
        """Tell whether what was read is so little that the commit can carry it."""
        size = self._streams.held + self._entries.held + sum(len(pending.entry.path) + 64 for pending in self._pending)
        if self._saver.onto is not None:
            size += self._saver.onto.inline_size() or MAX_INLINE_SIZE
        return self._packer is None and size <= MAX_INLINE_SIZE and self._streams.held_chunks <= MAX_BATCH_CHUNKS

    def _packing(self, *, small: bool = False) -> Packer:
        """Return the packer; the first call decides whether the commit carries the snapshot."""
        if self._packer is None:
            saver = self._saver
            if not small:
                self._knowledge = saver.knowledge(saver.latest, self.condemned)
            self._packer = Packer(
                self._backend,
                self._knowledge,
                self._buffers,
                new_pack=self._new_pack if not small else lambda: PackId(self._key.transaction),
                workers=saver.options.workers,
                coding=self._coding(),
                monitor=saver.monitor,
            )
        return self._packer

    def _coding(self) -> Coding:
        """Return how chunks are to become blobs."""
        options, header = self._saver.options, self._saver.header
        self._bases = None
        if header.knows_tensors and options.delta != "off" and self._comparison is not None and self._knowledge:
            self._bases = ParentBases(self._comparison.reader, self._base_cache())
        return Coding(options.level, header.knows_tensors, self._bases, options.delta == "small")

    def _base_cache(self) -> BaseCache | None:
        """Return where to keep what the next save may make deltas of; None where the store itself is as near."""
        saver = self._saver
        if self._backend.near or saver.options.caches is None:
            return None
        return BaseCache(saver.options.caches / "bases" / saver.header.store.hex(), limit=_BASES_SIZE)

    def _new_pack(self) -> PackId:
        self._packs.append(new_pack_id(self._key.transaction))
        return self._packs[-1]

    def _inline_commit(self, entries: Content, pack: bytes) -> Commit:
        manifest = self._manifest(entries, (), base=0)
        return self._commit(manifest, Inline(manifest, pack))

    def _is_moved(self) -> bool:
        """Tell whether a pack of the parent was moved, or soon will be: only its manifest may name that one.

        In the end the parent must be there still: moves go when nobody needs them any more.
        """
        parent = self._parent()
        try:
            packs = {ref.pack for ref in parent.reader.manifest().packs}
            is_moved = any(key.pack in packs for key in list_moves(self._backend))
            if read_commit(self._backend, parent.record.key, parent.record.store).state is not State.COMMITTED:
                raise _ParentUnusable
        except CasCheckpointError as error:
            raise _ParentUnusable from error
        return is_moved

    def _unchanged_commit(self, known: FilesCache) -> Commit | None:
        """Make another snapshot of what the parent holds; None if its packs are being collected."""
        parent = self._parent()
        try:
            before = parent.reader.manifest()
        except CasCheckpointError as error:
            raise _ParentUnusable from error
        stats = parent.record.stats
        self._counts |= {name: getattr(stats, name) for name in ("files", "entries", "logical_size", "chunks")}
        self._counts["bytes_reused"] = stats.bytes_new + stats.bytes_reused
        self._known = known.renamed(self._key)
        return self._checked_commit(before.entries, before.packs, parent.base)

    def _packed_commit(
        self, entries: Content, packer: Packer, old: frozenset[PackId], knowledge: Knowledge
    ) -> Commit | None:
        homes = {pack: knowledge.home(pack) for pack in old}
        base = min([knowledge.now, *(date for _, date in homes.values())])
        refs = [PackRef(footer.pack, self._home) for footer in packer.footers]
        refs += sorted(PackRef(pack, home) for pack, (home, _) in homes.items())
        self._counts["bytes_written"] += packer.bytes_written
        self._counts["objects_written"] += len(packer.footers)
        if packer.footers:
            self._indexed = True
            self._put(index_key(self._home), encode_index(self._home, knowledge.now, packer.footers))
            knowledge.add(self._home, knowledge.now, packer.footers)
        self._known = self._rows.finish(self._key)
        return self._checked_commit(entries, tuple(refs), base)

    def renew(self, transaction: TransactionId) -> Commit | None:
        """Begin again at the manifest, as another transaction; None if packs are being collected."""
        self._backend.delete(manifest_key(self._key.transaction))
        self._key = self._key._replace(transaction=transaction)
        if self._known is not None:
            self._known = self._known.renamed(self._key)
        return self._checked_commit(*self._named)

    def _checked_commit(self, entries: Content, refs: tuple[PackRef, ...], base: int) -> Commit | None:
        """Write the manifest, then look at the marks; None if any of its packs, old or new, is being collected."""
        self._named = (entries, refs, base)
        manifest = self._manifest(entries, refs, base=base)
        key = self._write_manifest(manifest)
        condemned = condemned_packs(self._backend, base, (ref.pack for ref in refs))
        if condemned:
            self.condemned |= condemned
            self._backend.delete(key)
            return None
        return self._commit(manifest, None)

    def _write_manifest(self, manifest: bytes) -> str:
        """Write the manifest; return its key."""
        key = manifest_key(self._key.transaction)
        self._put(key, manifest)
        return key

    def _manifest(self, entries: Content, packs: tuple[PackRef, ...], *, base: int) -> bytes:
        return Manifest(self._saver.header.store, *self._key, base, packs, entries, self._counts["entries"]).encode()

    def _commit(self, manifest: bytes, inline: Inline | None) -> Commit:
        options = self._saver.options
        self._counts["objects_written"] += 1
        return Commit(
            State.COMMITTED,
            self._saver.header.store,
            self._key,
            self._now_ns,
            options.step,
            options.metrics,
            options.tags,
            options.message,
            SaveStats(**self._counts, seconds=time.monotonic() - self._started),
            digest((manifest,)),
            len(manifest),
            inline,
        )

    def _put(self, key: str, data: bytes) -> None:
        self._backend.put(key, [data])
        self._counts["bytes_written"] += len(data)
        self._counts["objects_written"] += 1
        self._saver.monitor.wrote(len(data))

    def remember(self, cache: Path | None) -> None:
        """Write the files cache of the snapshot; there is none of a small one, which is read as fast."""
        if self._bases is not None:
            self._bases.finish()
        if cache is not None and self._known is not None:
            self._known.store(cache)

    def clean_up(self) -> None:
        """After a failure, remove the packs that no object names yet, so that nobody can have come to rely on them."""
        if self._indexed:
            return
        for pack in self._packs:
            try:
                self._backend.delete(pack_key(pack))
            except CasCheckpointError:  # garbage is harmless; the failure itself is what the caller must see
                return

    # --- entries ---

    def _read(self, walker: Walker) -> None:
        """Read everything that is to be saved, in the order of the entries."""
        walker.rows = self._comparison.row if self._comparison is not None else lambda *_: None
        for item in walker:
            if self._is_same(item):
                self._same += 1
                continue
            self._diverge()
            pending = self._keep_row(item.row) if item.is_unchanged and item.row else self._read_item(item)
            if pending is None:
                walker.forget(item.entry)
                continue
            self._pending.append(pending)
            self._emit()

    def _is_same(self, item: SourceItem) -> bool:
        """Tell whether the source has been what the parent holds, from the first item to this one."""
        if self._known is None or self._comparison is None:
            return False
        if not item.is_unchanged:
            row = self._comparison.row(item.entry.path) if item.open is None else None
            if row is None or encode_entry(item.entry)[ENTRY_FRAME_SIZE:] != row.encoded:
                return False
        return self._comparison.number == self._same  # else something of the parent is gone

    def _diverge(self) -> None:
        """From now on the source is not what the parent holds: take over what was the same so far."""
        known, self._known = self._known, None
        for row in islice(known.rows(), self._same) if known is not None else ():
            self._pending.append(self._keep_row(row))
            self._emit()

    def _keep_row(self, row: Row) -> _Pending:
        """Take over an entry of the parent."""
        try:
            entry = decode_entry(row.encoded)
            if entry.content is not None:
                self._kept += self._count_kept(self._parent().reader, entry.content)
        except CasCheckpointError as error:
            raise _ParentUnusable from error
        if len(self._kept) >= _KEPT_CHUNKS:
            self._rely_on_kept()
        return _Pending(entry, stamp=row.stamp)

    def _parent(self) -> Parent:
        parent = self._comparison.parent() if self._comparison is not None else None
        if parent is None:
            raise _ParentUnusable
        return parent

    def _rely_on_kept(self) -> None:
        kept, self._kept = self._kept, []
        if kept:
            try:
                self._hold(self._parent().reader, kept, self._packing())
            except (DamagedStore, ObjectNotFound, SnapshotForgotten, UnsupportedStore) as error:
                raise _ParentUnusable from error

    def _read_item(self, item: SourceItem) -> _Pending | None:
        """Read a file's data; None if it could not be read and is left out."""
        if item.open is None:
            return _Pending(item.entry)
        try:
            reader = item.open()
            try:
                stream = self._streams.read(reader, self._saver.monitor.read, self._plan(item, reader))
                size = reader.finish()
            finally:
                reader.close()
        except SourceError as error:
            self._saver.problem(error)
            return None
        return _Pending(item.entry._replace(size=size, extents=reader.extents), stream, item.stamp)

    def _plan(self, item: SourceItem, reader: SourceReader) -> Plan | None:
        """Return where to cut a file, if that can be told before it is read."""
        header, comparison, size = self._saver.header, self._comparison, item.entry.size
        layout = None
        if header.knows_tensors and size > header.chunker.min_size and reader.extents is None:
            layout = find_tensors(reader.read_at, size)
        if layout is not None and layout.regions:
            return TensorCuts(layout.regions, header.chunker, self._find_earlier(item, layout))
        if item.stamp is not None and comparison is not None:
            return comparison.forecast(item.row, size)
        return None

    def _find_earlier(self, item: SourceItem, layout: Layout) -> FindEarlier:
        """Return what finds earlier versions of the tensors of a file."""
        comparison = self._comparison
        if comparison is None or comparison.parent() is None:
            return lambda _: ()
        if self._earlier is None:
            self._earlier = EarlierTensors(comparison)
        return self._earlier.finder(item.entry, comparison.earlier(item.row, item.entry), layout)

    def _emit(self) -> None:
        """Write the entries whose turn has come."""
        while self._pending and (self._pending[0].stream is None or not self._pending[0].stream.outstanding):
            entry, stream, stamp = self._pending.popleft()
            if stream is not None:
                content = Content(0, 0, b"")
                if stream.size:
                    content = store_content(self._packing(), self._metadata_cutter, stream.refs, stream.size)
                    self._count_stream(stream)
                entry = entry._replace(content=content)
            if self._saver.onto is not None:
                self._above.append(entry)
            else:
                self._write_entry(entry, stamp)

    def _count_stream(self, stream: Stream) -> None:
        counts = self._counts
        counts["chunks"] += len(stream.refs) // REF_SIZE
        counts["chunks_new"] += stream.chunks_new
        counts["bytes_new"] += stream.bytes_new
        counts["bytes_reused"] += stream.size - stream.bytes_new

    def _write_entry(self, entry: Entry, stamp: Stamp | None = None) -> None:
        self._counts["entries"] += 1
        if entry.type is EntryType.FILE:
            self._counts["files"] += 1
            self._counts["logical_size"] += entry.size
        encoded = encode_entry(entry)
        self._entries.write(encoded)
        self._rows.add(encoded, stamp)

    def _lay_over(self, lower: SnapshotReader, packer: Packer) -> None:
        """Write the entries of the lower snapshot with ours laid over them."""
        for entry, kept in overlay(lower.entries(), self._above):
            if kept and entry.content is not None:
                self._hold(lower, self._count_kept(lower, entry.content), packer)
            self._write_entry(entry)

    def _count_kept(self, reader: SnapshotReader, content: Content) -> list[ChunkRef]:
        """Count a content that is taken over from another snapshot; return all chunks that it needs."""
        refs = list(reader.refs(content, lists=True))
        lists = len(refs)
        size = content.size
        while size > 0:  # the chunks of the data come last
            lists -= 1
            size -= refs[lists].size
        self._counts["chunks"] += len(refs) - lists
        self._counts["bytes_reused"] += content.size
        return refs

    def _hold(self, reader: SnapshotReader, refs: Sequence[ChunkRef], packer: Packer) -> None:
        """Make the new snapshot hold chunks of another one, copying only what is not known to be in the store."""
        missing = set(packer.rely_on(ref.chunk for ref in refs))
        wanted = list({ref.chunk: ref for ref in refs if ref.chunk in missing}.values())
        for chunk in reader.chunks(wanted):
            packer.store(chunk)
