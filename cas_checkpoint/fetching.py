"""Blobs as they lie in packs → plain bytes, verified; what cannot be read is told, not looked for elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, TypeVar

from cas_checkpoint.backends import Backend
from cas_checkpoint.buffers import anonymous_memory
from cas_checkpoint.codecs import Decoder, blob_check
from cas_checkpoint.commits import Commit, pack_key
from cas_checkpoint.errors import DamagedObject, DamagedStore, ObjectNotFound, UnsupportedStore
from cas_checkpoint.ids import Buffer, ChunkId, PackId, chunk_id

__all__ = ["MAX_DELTAS", "MAX_REQUEST", "Bases", "ChunkRow", "Failure", "Fetcher", "Request", "again", "requests"]

MAX_GAP = 2**20
"""Blobs closer together than this many bytes are fetched in one request."""
MAX_REQUEST = 16 * 2**20
"""No request is larger, unless for a single blob."""
MAX_DELTAS = 8 * 2**20
"""No request has deltas of more plain bytes, unless it is a single one: what they are deltas of is held meanwhile."""

Bases: TypeAlias = Mapping[ChunkId, Buffer]
"""The plain bytes of chunks that others are deltas of."""

Fault = TypeVar("Fault", bound=DamagedStore | ObjectNotFound)

_NO_BASES: Bases = MappingProxyType({})
_NEAR_REQUEST = 2**20  # what is read at once where that is all the same: few enough bytes to stay in a CPU's cache


class ChunkRow(NamedTuple):
    """One chunk to fetch: where its blob lies, and what it must turn out to be. Sizes are bytes.

    Attributes:
        number: of the caller's list of chunks.
        base: what the chunk is a delta of, if it is one.
    """

    chunk: ChunkId
    offset: int
    stored_size: int
    plain_size: int
    check: int
    number: int
    base: ChunkId | None = None


class Request(NamedTuple):
    """A run of one pack's bytes to fetch at once, and the chunks in it."""

    pack: PackId
    offset: int
    size: int
    rows: Sequence[ChunkRow]


class Failure(NamedTuple):
    """A chunk that was not to be had where it should be: it is altered, or its pack is cut short or gone."""

    row: ChunkRow
    error: DamagedStore | ObjectNotFound


def again(error: Fault) -> Fault:
    """Return an equal error, to be kept and raised later: it holds on to none of the places where the first one was."""
    if isinstance(error, ObjectNotFound):
        return type(error)(error.key)
    return type(error)(error.reason, key=error.key) if isinstance(error, DamagedObject) else type(error)(str(error))


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


class Fetcher:
    """Fetches the chunks of a snapshot's packs. Safe to use from several threads."""

    def __init__(self, backend: Backend, record: Commit) -> None:
        """Take the store's backend, and the commit, which may hold a pack itself."""
        self._backend, self._commit = backend, record
        self._own = PackId(record.key.transaction) if record.inline and record.inline.pack else None
        self._spare: list[_Workspace] = []

    def fetch(
        self, request: Request, failures: list[Failure], bases: Bases = _NO_BASES, *, unchecked: bool = False
    ) -> Iterator[tuple[ChunkRow, Buffer]]:
        """Fetch the chunks of a request; yield each with its plain bytes, which are known to be right.

        The bytes are there until the next chunk is asked for, then their memory is used again. What is not to be had
        is added to `failures`. What the chunks are deltas of must be in `bases`. With `unchecked` the bytes are only
        known to have the right size: for what is made of them will be checked.
        """
        try:
            workspace = self._spare.pop()
        except IndexError:
            workspace = _Workspace()
        try:
            for part in self._parts(request):
                yield from self._fetch(part, workspace, failures, bases, unchecked=unchecked)
        finally:
            self._spare.append(workspace)

    def _parts(self, request: Request) -> Iterable[Request]:
        """Divide a request into those that are made of it."""
        if not self._backend.near:
            return (request,)
        return requests(((request.pack, row) for row in request.rows), _NEAR_REQUEST)

    def _fetch(
        self, request: Request, workspace: _Workspace, failures: list[Failure], bases: Bases, *, unchecked: bool
    ) -> Iterator[tuple[ChunkRow, Buffer]]:
        try:
            data = self._read(request, workspace)
        except ObjectNotFound as error:
            fault = again(error)
            failures.extend(Failure(row, fault) for row in request.rows)
        except DamagedObject as error:  # the pack is cut short: what lies before the cut is to be had
            if len(request.rows) == 1:
                failures.append(Failure(request.rows[0], again(error)))
                return
            for part in requests(((request.pack, row) for row in request.rows), 0):
                yield from self._fetch(part, workspace, failures, bases, unchecked=unchecked)
        else:
            yield from self._decoded(request, data, workspace.decoder, failures, bases, unchecked=unchecked)

    def _read(self, request: Request, workspace: _Workspace) -> memoryview:
        """Return the bytes of a request."""
        inline = self._commit.inline
        if inline and request.pack == self._own:
            return memoryview(inline.pack)[request.offset :][: request.size]
        memory = workspace.memory(request.size)
        self._backend.read_into(pack_key(request.pack), request.offset, memory)
        return memory

    def _decoded(
        self,
        request: Request,
        data: memoryview,
        decoder: Decoder,
        failures: list[Failure],
        bases: Bases,
        *,
        unchecked: bool,
    ) -> Iterator[tuple[ChunkRow, Buffer]]:
        last: bytes = b""
        plain: Buffer = b""
        fault: DamagedObject | None = None
        for row in request.rows:
            if row.chunk != last:
                last, fault = row.chunk, None
                blob = data[row.offset - request.offset :][: row.stored_size]
                try:
                    base = None if row.base is None else bases.get(row.base)
                    decode = _unchecked if unchecked else _plain
                    plain = decode(blob, row, decoder, base)
                except DamagedStore as error:
                    key = str(self._commit.key) if request.pack == self._own else pack_key(request.pack)
                    fault = DamagedObject(f"chunk {row.chunk.hex()}: {error}", key=key)
            if fault is None:
                yield row, plain
            else:
                failures.append(Failure(row, fault))


def _unchecked(blob: memoryview, row: ChunkRow, decoder: Decoder, base: Buffer | None) -> Buffer:
    """Return the plain bytes of a blob, which may be any of the row's size."""
    return decoder.decode(blob, row.plain_size, base)


def _plain(blob: memoryview, row: ChunkRow, decoder: Decoder, base: Buffer | None) -> Buffer:
    """Return the plain bytes of a blob if they are those of the row."""
    try:
        plain = decoder.decode(blob, row.plain_size, base)
    except UnsupportedStore:
        if blob_check(blob[0], blob[1:]) == row.check:
            raise
        raise DamagedObject("its bytes are not those that were stored") from None
    if chunk_id(plain) != row.chunk or blob_check(blob[0], blob[1:]) != row.check:
        raise DamagedObject("its bytes are not those that were stored")
    return plain


def requests(rows: Iterable[tuple[PackId, ChunkRow]], limit: int = MAX_REQUEST) -> Iterator[Request]:
    """Merge rows, ordered by pack and offset, into requests of at most `limit` bytes, unless for a single blob."""
    pack, start, end, deltas = PackId(b""), 0, 0, 0
    gathered: list[ChunkRow] = []
    for row_pack, row in rows:
        row_end = row.offset + row.stored_size
        deltas += row.plain_size if row.base is not None else 0
        is_far = row_pack != pack or row.offset > end + MAX_GAP or row_end - start > limit
        if gathered and (is_far or (row.base is not None and deltas > MAX_DELTAS)):
            yield Request(pack, start, end - start, gathered)
            gathered, deltas = [], row.plain_size if row.base is not None else 0
        if not gathered:
            pack, start, end = row_pack, row.offset, row.offset
        gathered.append(row)
        end = max(end, row_end)
    if gathered:
        yield Request(pack, start, end - start, gathered)
