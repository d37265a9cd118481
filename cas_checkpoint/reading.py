"""A snapshot's content, from commit to bytes: its manifest, its entries, and the chunks of its packs.

Nothing that comes from the store is believed before it is checked: manifests by the commit's digest, footers
by their checksums, chunks by their ids. Writing anything is not done here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cas_checkpoint.backends import Backend
from cas_checkpoint.codecs import MAX_BASE_RATIO
from cas_checkpoint.commits import Commit, CommitKey, State, manifest_key, pack_key
from cas_checkpoint.copies import Moved, Rescue, follow_moves, indexed_everywhere, rows_of
from cas_checkpoint.errors import (
    DamagedObject,
    DamagedStore,
    MissingObject,
    ObjectNotFound,
    SnapshotForgotten,
    UnsupportedStore,
)
from cas_checkpoint.fetching import MAX_REQUEST, ChunkRow, Failure, Fetcher, Request, again, requests
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import Buffer, ChunkId, PackId, TransactionId, digest
from cas_checkpoint.index import ChunkIndex, Locations, ids_array
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import (
    MAX_MANIFEST_SIZE,
    REF_SIZE,
    ChunkRef,
    Content,
    Entry,
    EntryReader,
    Manifest,
    PackRef,
    decode_refs,
)
from cas_checkpoint.merging import indexed_footers
from cas_checkpoint.monitor import Notice
from cas_checkpoint.packs import PACK_TAIL_SIZE, Footer, parse_footer, read_tail
from cas_checkpoint.transactions import read_commit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_REQUEST", "ChunkRow", "Lost", "Request", "SnapshotReader"]

Lost = Callable[[int, DamagedStore], None]
"""Told of each chunk that is nowhere to be had: its number in the list that was asked for, and what is wrong."""

_BATCH = 256  # chunks looked up at once when a content is read in order
_UNREAD = DamagedStore("it was not to be had at once")

_Fault = tuple[str, DamagedStore]  # the key of an object, and what is wrong with it


class SnapshotReader:
    """Reads one committed snapshot. Safe to use from several threads.

    A pack that is gone was perhaps moved by a collection, and a chunk that is damaged may be whole in another pack: all
    that the store's index tells is looked through before a reader gives up.

    Attributes:
        notice: told what is damaged although nothing was lost by it; by default nobody is.
    """

    def __init__(
        self,
        backend: Backend,
        record: Commit,
        *,
        footers: Mapping[PackId, Footer] | None = None,
        manifest: str | None = None,
    ) -> None:
        """Take the snapshot's commit; nothing else is read yet.

        Args:
            backend: the store's backend.
            record: the commit.
            footers: footers of packs that the caller has read already.
            manifest: the key of the manifest, if it is that of a part.
        """
        self._backend = backend
        self._commit = record
        self._known = {} if footers is None else footers
        self._manifest_key = manifest or manifest_key(record.key.transaction)
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._index: ChunkIndex | None = None
        self._fetcher = Fetcher(backend, record)
        self._faults: list[_Fault] = []  # packs that are not in the index for what is wrong with them
        self._moved: dict[str, Moved] = {}  # by the keys of packs that were gone after the index was read
        self._lost: set[ChunkId] = set()  # looked for in the whole store in vain
        self._lost_bases: set[ChunkId] = set()  # likewise, stored whole
        self._noticed: set[str] = set()
        self.notice: Callable[[Notice], None] = _nobody

    @property
    def key(self) -> CommitKey:
        """The key of the snapshot's commit."""
        return self._commit.key

    @property
    def near(self) -> bool:
        """Whether the store is where reading needs no parallel requests to be fast."""
        return self._backend.near

    def inline_size(self) -> int | None:
        """Return the bytes that the snapshot takes within its commit, None if it is not carried by it."""
        inline = self._commit.inline
        return len(inline.manifest) + len(inline.pack) if inline else None

    def manifest(self) -> Manifest:
        """Return the snapshot's manifest, checked against its commit.

        Raises:
            SnapshotForgotten: the snapshot was forgotten since its commit was read.
            MissingObject: the manifest is gone although the commit is there.
            DamagedObject: it was altered, or is another one.
        """
        with self._lock:
            if self._manifest is None:
                self._manifest = self._load_manifest()
            return self._manifest

    def _load_manifest(self) -> Manifest:
        record = self._commit
        key = str(record.key) if record.inline else self._manifest_key
        try:
            data = record.inline.manifest if record.inline else self._backend.get(key, max_size=MAX_MANIFEST_SIZE)
        except ObjectNotFound as error:
            raise self._missing(key) from error
        if len(data) != record.manifest_size or digest((data,)) != record.manifest_digest:
            raise DamagedObject("is not the manifest that the commit vouches for", key=key)
        try:
            manifest = Manifest.decode(data)
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=key) from error
        if (manifest.store, manifest.series, manifest.sequence, manifest.transaction) != (record.store, *record.key):
            raise DamagedObject("is the manifest of another snapshot", key=key)
        return manifest

    def _missing(self, key: str) -> MissingObject:
        """Return the error that tells that an object is not there; raise `SnapshotForgotten` if that is why."""
        if self._is_forgotten():
            raise SnapshotForgotten(f"the snapshot {self.key.transaction.hex()} was forgotten while it was being read")
        return MissingObject(
            f"{key} is missing, which the snapshot {self.key.transaction.hex()} needs. "
            "Run 'verify' to learn what else is affected; other snapshots may be intact."
        )

    def _is_forgotten(self) -> bool:
        """Tell whether the commit is gone, or a collector has put another in its place since it was forgotten."""
        try:
            return read_commit(self._backend, self.key, self._commit.store).state is not State.COMMITTED
        except ObjectNotFound:
            return True
        except (DamagedStore, UnsupportedStore):
            return False

    # --- the index of its packs ---

    def index(self) -> ChunkIndex:
        """Return the index of all packs that the snapshot needs, as far as they can be read; done on the first call."""
        manifest = self.manifest()
        with self._lock:
            if self._index is None:
                index, faults = ChunkIndex(), list[_Fault]()
                index.add(self._footers(manifest.packs, faults))
                self._index, self._faults = index, faults
            return self._index

    def _footers(self, refs: Sequence[PackRef], faults: list[_Fault]) -> Iterator[Footer]:
        """Yield the footers of packs, or of those that they were moved to; what is wrong is added to `faults`."""
        if self._commit.inline:
            if self._commit.inline.pack:
                yield self._inline_footer(self._commit.inline.pack)
            return
        wanted: dict[TransactionId, set[PackId]] = {}
        for ref in refs:
            if ref.pack in self._known:
                yield self._known[ref.pack]
            else:
                wanted.setdefault(ref.home, set()).add(ref.pack)
        missing = {pack for packs in wanted.values() for pack in packs}
        for footer in indexed_footers(self._backend, {home: frozenset(packs) for home, packs in wanted.items()}):
            missing.remove(footer.pack)
            yield footer
        gone = []
        for pack in (ref.pack for ref in refs if ref.pack in missing):  # an index is a cache
            try:
                yield read_footer(self._backend, pack)
            except ObjectNotFound:
                gone.append(pack)
            except DamagedObject as error:
                faults.append((pack_key(pack), again(error)))
        if gone:
            yield from self._follow(gone, faults)

    def _follow(self, gone: Iterable[PackId], faults: list[_Fault]) -> list[Footer]:
        """Return the footers of the packs to which those went that are gone."""
        moved = follow_moves(self._backend, gone)
        faults.extend(moved.faults)
        faults.extend((pack_key(pack), self._missing(pack_key(pack))) for pack in moved.lost)
        return moved.footers

    def _inline_footer(self, data: bytes) -> Footer:
        try:
            length = read_tail(data[-PACK_TAIL_SIZE:], pack_size=len(data))
            footer = parse_footer(data[-length - PACK_TAIL_SIZE : -PACK_TAIL_SIZE])
            if bytes(footer.pack) != bytes(self.key.transaction) or footer.pack_size != len(data):
                raise DamagedObject("carries a pack that is not its own")
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=str(self.key)) from error
        return footer

    def bases(self, chunks: Sequence[ChunkId]) -> NDArray[np.uint8]:
        """Return the ids of all chunks that any pack of the snapshot holds one of these as a delta of, shape (m, 32).

        Ids of others may be among them.

        Raises:
            DamagedObject: a pack is there whose footer cannot be read, so that nobody knows.
        """
        index = self.index()
        for _, error in self._faults:
            if isinstance(error, DamagedObject):
                raise again(error)
        return index.every_base(ids_array(b"".join(chunks)))

    # --- chunks ---

    def plan(self, refs: Sequence[ChunkRef], *, lost: Lost | None = None) -> list[Request]:
        """Return the requests that fetch these chunks, ordered by pack and offset; each chunk stands in one of them.

        A chunk that is named several times stands there once for each, one after another.

        Args:
            refs: the chunks.
            lost: called for each chunk that is nowhere to be had; by default that is raised.

        Raises:
            SnapshotForgotten: a pack is gone because the snapshot is.
            MissingObject: no pack holds one of the chunks.
            DamagedObject: the pack's footer and the manifest contradict one another.
        """
        if not refs:
            return []
        found = self._locate([ref.chunk for ref in refs])
        usable = found.found & (found.plain_sizes == np.fromiter((ref.size for ref in refs), np.uint32, len(refs)))
        for number in np.flatnonzero(~usable).tolist():
            is_found = bool(found.found[number])
            if lost is None:
                raise self._unusable(refs[number].chunk, is_found=is_found)
            lost(number, self._unusable(refs[number].chunk, is_found=is_found))
        order = np.lexsort((found.offsets, found.packs))
        order = order[usable[order]]
        columns = zip(
            *(column[order].tolist() for column in found[1:]),
            order.tolist(),
            strict=True,
        )
        index = self.index()
        packs, bases = index.packs, dict[int, ChunkId]()
        for number, base in zip(*index.bases(found), strict=True):
            bases[int(number)] = ChunkId(bytes(base))
        rows = (
            (packs[pack], ChunkRow(refs[number].chunk, offset, stored, plain, check, number, bases.get(number)))
            for pack, offset, stored, plain, check, number in columns
        )
        return list(requests(rows))

    def _locate(self, chunks: Sequence[ChunkId], *, whole: bool = False) -> Locations:
        """Look chunks up; those that are in no pack of the snapshot, in the whole store."""
        index, ids = self.index(), ids_array(b"".join(chunks))
        found = index.locate(ids, whole=whole)
        if not found.found.all():
            self._search({chunks[number] for number in np.flatnonzero(~found.found).tolist()}, whole=whole)
            found = index.locate(ids, whole=whole)
        return found

    def _search(self, wanted: set[ChunkId], *, whole: bool) -> None:
        """Add other packs of the store that hold these chunks to the index, as far as there are any."""
        index = self.index()
        lost = self._lost_bases if whole else self._lost
        wanted -= lost
        if not wanted:
            return
        for footer in indexed_everywhere(self._backend):
            rows = [] if footer.pack in index else rows_of(footer, wanted, whole=whole)
            if rows and self._is_whole(footer):
                with self._lock:
                    index.add([footer])
                wanted.difference_update([chunk for _, chunk in rows])
                self._warn(*self._fault(), footer.pack)
                if not wanted:
                    return
        lost.update(wanted)

    def _is_whole(self, footer: Footer) -> bool:
        """Tell whether a pack that an index object lists is there, in its size."""
        try:
            return self._backend.size(pack_key(footer.pack)) == footer.pack_size
        except ObjectNotFound:
            return False

    def _fault(self) -> _Fault:
        """Return why chunks may be in no pack of the snapshot."""
        if self._faults:
            return self._faults[0]
        return str(self.key), DamagedObject("needs chunks that are in none of the packs of its manifest")

    def _unusable(self, chunk: ChunkId, *, is_found: bool) -> DamagedStore:
        if is_found:
            return DamagedObject(f"the chunk {chunk.hex()} is listed with two sizes", key=str(self.key))
        if self._faults:
            return again(self._faults[0][1])
        return MissingObject(
            f"the chunk {chunk.hex()} is in none of the packs of the snapshot {self.key.transaction.hex()}"
        )

    def fetch(self, request: Request, *, lost: Lost | None = None) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Fetch the chunks of a request; yield each with its plain bytes, which are known to be right.

        The bytes are there until the next chunk is asked for, then their memory is used again.

        Args:
            request: of those that `plan` returned.
            lost: called for each chunk that is nowhere to be had; by default that is raised.

        Raises:
            DamagedObject: a blob was altered or its pack cut short, and there is no copy.
            MissingObject, SnapshotForgotten: the pack is gone, and there is no copy.
        """
        failures: list[Failure] = []
        yield from self._fetch(request, failures)
        if not failures:
            return
        rescue = Rescue(self._fetch, request.pack, failures)
        yield from self._rescued(rescue, request.pack, self._lost)
        for failure in rescue.failures():
            if lost is None:
                raise again(self._told(failure))
            lost(failure.row.number, self._told(failure))

    def _fetch(self, request: Request, failures: list[Failure]) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Fetch the chunks of a request, and before them what they are deltas of."""
        if all(row.base is None for row in request.rows):
            yield from self._fetcher.fetch(request, failures)
            return
        doubtful: list[Failure] = []
        yield from self._fetch_deltas(request.pack, request.rows, doubtful, unchecked=True)
        if doubtful:  # is it they, or what they are deltas of?
            rows = sorted((failure.row for failure in doubtful), key=lambda row: row.offset)
            yield from self._fetch_deltas(request.pack, rows, failures)

    def _fetch_deltas(
        self, pack: PackId, rows: Sequence[ChunkRow], failures: list[Failure], *, unchecked: bool = False
    ) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Fetch chunks of which some are deltas; with `unchecked`, what these are deltas of is not checked itself."""
        bases, faults = self._bases(rows, unchecked=unchecked)
        if faults:
            failures += [Failure(row, _baseless(row, faults[row.base])) for row in rows if row.base in faults]
        for part in requests((pack, row) for row in rows if row.base not in faults):
            yield from self._fetcher.fetch(part, failures, bases)

    def _bases(
        self, rows: Iterable[ChunkRow], *, unchecked: bool
    ) -> tuple[dict[ChunkId, bytes], dict[ChunkId | None, DamagedStore]]:
        """Fetch what these rows are deltas of, and what is wrong with those that are nowhere to be had."""
        wanted = {row.base: row.plain_size for row in rows if row.base is not None}
        bases, faults = dict[ChunkId, bytes](), dict[ChunkId | None, DamagedStore]()
        for request in self._whole_requests(wanted, faults):
            failures: list[Failure] = []
            for row, plain in self._fetcher.fetch(request, failures, unchecked=unchecked):
                bases[row.chunk] = bytes(plain)
            if unchecked:
                faults.update((failure.row.chunk, _UNREAD) for failure in failures)
            elif failures:
                rescue = Rescue(self._fetcher.fetch, request.pack, failures, whole=True)
                for row, plain in self._rescued(rescue, request.pack, self._lost_bases):
                    bases[row.chunk] = bytes(plain)
                faults.update((failure.row.chunk, self._told(failure)) for failure in rescue.failures())
        return bases, faults

    def _whole_requests(
        self, wanted: Mapping[ChunkId, int], faults: dict[ChunkId | None, DamagedStore]
    ) -> list[Request]:
        """Return the requests that fetch chunks which are stored whole; others are added to `faults`.

        Args:
            wanted: the chunks, and of each the size of one that is a delta of it.
            faults: see above.
        """
        chunks = list(wanted)
        found = self._locate(chunks, whole=True)
        packs = self.index().packs
        rows: list[tuple[PackId, ChunkRow]] = []
        columns = zip(*(column.tolist() for column in found), strict=True)
        for number, (is_found, pack, offset, stored, plain, check) in enumerate(columns):
            chunk = chunks[number]
            if is_found and plain <= MAX_BASE_RATIO * wanted[chunk]:
                rows.append((packs[pack], ChunkRow(chunk, offset, stored, plain, check, number)))
            else:
                faults[chunk] = self._unusable(chunk, is_found=is_found)
        return list(requests(sorted(rows, key=lambda row: (row[0], row[1].offset))))

    def _told(self, failure: Failure) -> DamagedStore:
        """Return what to tell of a failure; raise `SnapshotForgotten` if that is why."""
        if not isinstance(failure.error, ObjectNotFound):
            return failure.error
        missing = self._missing(failure.error.key)
        moved = self._moved.get(failure.error.key)
        return again(moved.faults[0][1]) if moved and moved.faults else missing

    def _rescued(self, rescue: Rescue, pack: PackId, lost: set[ChunkId]) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Yield what can be had elsewhere of chunks that are not to be had from that pack.

        What was looked for in the whole store in vain is in `lost`, or added to it.
        """
        yield from self._through_moves(rescue)
        if not rescue.wanted.keys() - lost:
            return
        error = self._told(next(rescue.failures()))
        for footer in chain(self._footers(self.manifest().packs, []), indexed_everywhere(self._backend)):
            before = len(rescue.wanted)
            yield from rescue.fetch_from(footer)
            yield from self._through_moves(rescue)
            if len(rescue.wanted) < before:
                self._warn(pack_key(pack), error, footer.pack)
            if not rescue.wanted:
                return
        lost.update(rescue.wanted)

    def _through_moves(self, rescue: Rescue) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Yield what can be had of packs that are gone from where they were moved."""
        while rescue.gone and rescue.wanted:
            pack = rescue.gone.pop()
            key = pack_key(pack)
            if key not in self._moved:
                self._moved[key] = follow_moves(self._backend, [pack])
            for footer in self._moved[key].footers:
                yield from rescue.fetch_from(footer)

    def _warn(self, key: str, error: DamagedStore, copy: PackId) -> None:
        """Tell once of each object that it is damaged."""
        with self._lock:
            is_new = key not in self._noticed
            self._noticed.add(key)
        if is_new:
            reason = error.reason if isinstance(error, DamagedObject) else str(error)
            self.notice(Notice(key, f"{reason}; a copy was read from {pack_key(copy)}. Run 'verify'"))

    def chunks(self, refs: Iterable[ChunkRef]) -> Iterator[bytes]:
        """Yield the plain bytes of these chunks, in their order."""
        for batch in _batches(refs):
            ready: dict[int, bytes] = {}
            waiting = iter(sorted(self.plan(batch), key=lambda request: min(row.number for row in request.rows)))
            for number in range(len(batch)):
                while number not in ready:
                    ready.update((row.number, bytes(plain)) for row, plain in self.fetch(next(waiting)))
                yield ready.pop(number)

    def refs(self, content: Content, *, lists: bool = False) -> Iterator[ChunkRef]:
        """Yield the chunks that a content consists of, in order, however deep its list lies.

        Args:
            content: what to list.
            lists: yield the chunks that hold the lists as well, each list before what it lists.
        """
        refs: Iterable[ChunkRef] = decode_refs(content.refs)
        for _ in range(content.depth):
            level = list(refs)
            if lists:
                yield from level
            refs = _refs_across(self.chunks(level))
        total = 0
        for ref in refs:
            total += ref.size
            if total > content.size:
                break
            yield ref
        if total != content.size:
            raise DamagedObject(f"a list of chunks does not add up to {content.size} bytes", key=str(self.key))

    def data(self, content: Content) -> Iterator[Buffer]:
        """Yield the bytes of a content, chunk by chunk."""
        return self.chunks(self.refs(content))

    def entries(self) -> Iterator[Entry]:
        """Yield the snapshot's entries, in their order; anything that is not right is `DamagedStore`."""
        manifest = self.manifest()
        reader = EntryReader()
        try:
            for piece in self.data(manifest.entries):
                yield from reader.feed(piece)
            reader.finish(manifest.entry_count)
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=error.key or str(self.key)) from error


def _baseless(row: ChunkRow, error: DamagedStore) -> DamagedStore:
    """Return what is wrong with a delta, given what is wrong with its base."""
    base = b"" if row.base is None else row.base
    told = f"the chunk {row.chunk.hex()} is stored as a difference from the chunk {base.hex()}: "
    if isinstance(error, DamagedObject):
        return DamagedObject(told + error.reason, key=error.key)
    return type(error)(told + str(error))


def _nobody(_: Notice) -> None:
    """Take no notice."""


def _refs_across(pieces: Iterable[Buffer]) -> Iterator[ChunkRef]:
    """Yield the refs of a list that was cut anywhere."""
    rest = b""
    for piece in pieces:
        data = rest + bytes(piece)
        whole = len(data) - len(data) % REF_SIZE
        rest = data[whole:]
        yield from decode_refs(data[:whole])
    yield from decode_refs(rest)


def _batches(refs: Iterable[ChunkRef]) -> Iterator[list[ChunkRef]]:
    """Divide refs into runs that can be held in memory."""
    batch: list[ChunkRef] = []
    size = 0
    for ref in refs:
        if batch and (len(batch) == _BATCH or size + ref.size > MAX_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(ref)
        size += ref.size
    if batch:
        yield batch
