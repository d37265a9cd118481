"""A snapshot's content, from commit to bytes: its manifest, its entries, and the chunks of its packs.

Nothing that comes from the store is believed before it is checked: manifests by the commit's digest, footers
by their checksums, chunks by their ids. Writing anything is not done here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.buffers import anonymous_memory
from cas_checkpoint.codecs import Decoder, blob_check
from cas_checkpoint.commits import Commit, CommitKey, manifest_key, pack_key
from cas_checkpoint.errors import (
    DamagedObject,
    DamagedStore,
    MissingObject,
    ObjectNotFound,
    SnapshotForgotten,
)
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import Buffer, ChunkId, PackId, TransactionId, chunk_id, digest
from cas_checkpoint.index import ChunkIndex, ids_array
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
from cas_checkpoint.packs import PACK_TAIL_SIZE, Footer, parse_footer, read_tail

__all__ = ["MAX_REQUEST", "ChunkRow", "Request", "SnapshotReader"]

MAX_GAP = 2**20
"""Blobs closer together than this many bytes are fetched in one request."""
MAX_REQUEST = 16 * 2**20
"""No request is larger, unless for a single blob."""

_NEAR_REQUEST = 2**20  # what is read at once where that is all the same: few enough bytes to stay in a CPU's cache
_BATCH = 256  # chunks looked up at once when a content is read in order


class ChunkRow(NamedTuple):
    """One chunk to fetch: where its blob lies, and what it must turn out to be. Sizes are bytes."""

    chunk: ChunkId
    offset: int
    stored_size: int
    plain_size: int
    check: int
    number: int  # of the caller's list of chunks


class Request(NamedTuple):
    """A run of one pack's bytes to fetch at once, and the chunks in it."""

    pack: PackId
    offset: int
    size: int
    rows: Sequence[ChunkRow]


class _Workspace:
    """What one thread reads and decodes with. Its memory is used again for each read."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self._memory = memoryview(b"")

    def memory(self, size: int) -> memoryview:
        """Return `size` bytes of memory; what was returned before is invalid then."""
        if size > len(self._memory):
            self._memory = anonymous_memory(size)
        return self._memory[:size]


class SnapshotReader:
    """Reads one committed snapshot. Safe to use from several threads."""

    def __init__(self, backend: Backend, record: Commit, *, footers: Mapping[PackId, Footer] | None = None) -> None:
        """Take the snapshot's commit; nothing else is read yet.

        Args:
            backend: the store's backend.
            record: the commit.
            footers: footers of packs that the caller has read already.
        """
        self._backend = backend
        self._commit = record
        self._known = {} if footers is None else footers
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._index: ChunkIndex | None = None
        self._spare: list[_Workspace] = []

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
        key = str(record.key) if record.inline else manifest_key(record.key.transaction)
        try:
            data = record.inline.manifest if record.inline else self._backend.get(key, max_size=MAX_MANIFEST_SIZE)
        except ObjectNotFound as error:
            raise self._gone(key) from error
        if len(data) != record.manifest_size or digest((data,)) != record.manifest_digest:
            raise DamagedObject("is not the manifest that the commit vouches for", key=key)
        try:
            manifest = Manifest.decode(data)
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=key) from error
        if (manifest.store, manifest.series, manifest.sequence, manifest.transaction) != (record.store, *record.key):
            raise DamagedObject("is the manifest of another snapshot", key=key)
        return manifest

    def _gone(self, key: str) -> MissingObject | SnapshotForgotten:
        """Tell why an object that the snapshot needs is not there."""
        try:
            self._backend.size(str(self.key))
        except ObjectNotFound:
            return SnapshotForgotten(f"the snapshot {self.key.transaction.hex()} was forgotten while it was being read")
        return MissingObject(
            f"{key} is missing, which the snapshot {self.key.transaction.hex()} needs. "
            "Run 'verify' to learn what else is affected; other snapshots may be intact."
        )

    # --- the index of its packs ---

    def index(self) -> ChunkIndex:
        """Return the index of all packs that the snapshot needs, read on the first call."""
        manifest = self.manifest()
        with self._lock:
            if self._index is None:
                index = ChunkIndex()
                index.add(self._footers(manifest.packs))
                self._index = index
            return self._index

    def _footers(self, refs: Sequence[PackRef]) -> Iterator[Footer]:
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
        for pack in missing:  # an index is a cache
            yield self._footer_from_pack(pack)

    def _footer_from_pack(self, pack: PackId) -> Footer:
        try:
            return read_footer(self._backend, pack)
        except ObjectNotFound as error:
            raise self._gone(pack_key(pack)) from error

    def _inline_footer(self, data: bytes) -> Footer:
        try:
            length = read_tail(data[-PACK_TAIL_SIZE:], pack_size=len(data))
            footer = parse_footer(data[-length - PACK_TAIL_SIZE : -PACK_TAIL_SIZE])
            if bytes(footer.pack) != bytes(self.key.transaction) or footer.pack_size != len(data):
                raise DamagedObject("carries a pack that is not its own")
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=str(self.key)) from error
        return footer

    # --- chunks ---

    def plan(self, refs: Sequence[ChunkRef]) -> list[Request]:
        """Return the requests that fetch these chunks, ordered by pack and offset; each chunk stands in one of them.

        A chunk that is named several times stands there once for each, one after another.

        Raises:
            MissingObject: no pack of the snapshot holds one of the chunks.
            DamagedObject: the pack's footer and the manifest contradict one another.
        """
        if not refs:
            return []
        index = self.index()
        found = index.locate(ids_array(b"".join(ref.chunk for ref in refs)))
        if not found.found.all():
            missing = refs[int(np.flatnonzero(~found.found)[0])]
            raise MissingObject(
                f"the chunk {missing.chunk.hex()} is in none of the packs of the snapshot {self.key.transaction.hex()}"
            )
        wrong = np.flatnonzero(found.plain_sizes != np.fromiter((ref.size for ref in refs), np.uint32, len(refs)))
        if len(wrong):
            chunk = refs[int(wrong[0])].chunk
            raise DamagedObject(f"the chunk {chunk.hex()} is listed with two sizes", key=str(self.key))
        order = np.lexsort((found.offsets, found.packs))
        columns = zip(
            *(column[order].tolist() for column in found[1:]),
            order.tolist(),
            strict=True,
        )
        rows = (
            (index.packs[pack], ChunkRow(refs[number].chunk, offset, stored, plain, check, number))
            for pack, offset, stored, plain, check, number in columns
        )
        return list(_requests(rows))

    def fetch(self, request: Request) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Fetch the chunks of a request; yield each with its plain bytes, which are known to be right.

        The bytes are there until the next chunk is asked for, then their memory is used again.

        Raises:
            DamagedObject: a blob was altered or its pack cut short.
            MissingObject, SnapshotForgotten: the pack is gone.
        """
        try:
            workspace = self._spare.pop()
        except IndexError:
            workspace = _Workspace()
        try:
            for part in self._parts(request):
                yield from self._decoded(part, self._read(part, workspace), workspace.decoder)
        finally:
            self._spare.append(workspace)

    def _parts(self, request: Request) -> Iterable[Request]:
        """Divide a request into those that are made of it."""
        if not self.near:
            return (request,)
        return _requests(((request.pack, row) for row in request.rows), _NEAR_REQUEST)

    def _read(self, request: Request, workspace: _Workspace) -> memoryview:
        """Return the bytes of a request."""
        inline = self._commit.inline
        if inline and inline.pack:
            return memoryview(inline.pack)[request.offset :][: request.size]
        memory = workspace.memory(request.size)
        key = pack_key(request.pack)
        try:
            self._backend.read_into(key, request.offset, memory)
        except ObjectNotFound as error:
            raise self._gone(key) from error
        return memory

    def _decoded(self, request: Request, data: memoryview, decoder: Decoder) -> Iterator[tuple[ChunkRow, Buffer]]:
        last: bytes = b""
        plain: Buffer = b""
        for row in request.rows:
            if row.chunk != last:
                blob = data[row.offset - request.offset :][: row.stored_size]
                try:
                    plain = _plain(blob, row, decoder)
                except DamagedStore as error:
                    key = str(self.key) if self._commit.inline else pack_key(request.pack)
                    raise DamagedObject(f"chunk {row.chunk.hex()}: {error}", key=key) from error
                last = row.chunk
            yield row, plain

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


def _refs_across(pieces: Iterable[Buffer]) -> Iterator[ChunkRef]:
    """Yield the refs of a list that was cut anywhere."""
    rest = b""
    for piece in pieces:
        data = rest + bytes(piece)
        whole = len(data) - len(data) % REF_SIZE
        rest = data[whole:]
        yield from decode_refs(data[:whole])
    yield from decode_refs(rest)


def _plain(blob: memoryview, row: ChunkRow, decoder: Decoder) -> Buffer:
    """Return the plain bytes of a blob if they are those of the row."""
    plain = decoder.decode(blob, row.plain_size)
    if chunk_id(plain) != row.chunk or blob_check(blob[0], blob[1:]) != row.check:
        raise DamagedObject("its bytes are not those that were stored")
    return plain


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


def _requests(rows: Iterable[tuple[PackId, ChunkRow]], limit: int = MAX_REQUEST) -> Iterator[Request]:
    """Merge rows, ordered by pack and offset, into requests of at most `limit` bytes, unless for a single blob."""
    pack, start, end = PackId(b""), 0, 0
    gathered: list[ChunkRow] = []
    for row_pack, row in rows:
        row_end = row.offset + row.stored_size
        if gathered and (row_pack != pack or row.offset > end + MAX_GAP or row_end - start > limit):
            yield Request(pack, start, end - start, gathered)
            gathered = []
        if not gathered:
            pack, start, end = row_pack, row.offset, row.offset
        gathered.append(row)
        end = max(end, row_end)
    if gathered:
        yield Request(pack, start, end - start, gathered)
