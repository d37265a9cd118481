"""Verification: is every committed snapshot restorable, and if not, what is lost? Reports; repairs nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.codecs import Decoder, blob_check
from cas_checkpoint.commits import COMMITS_PREFIX, State, manifest_key, pack_key, parse_commit_key
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedObject,
    DamagedStore,
    ObjectNotFound,
    SnapshotForgotten,
    UnsupportedStore,
)
from cas_checkpoint.footers import read_footer, read_index_footers
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import ChunkId, PackId, TransactionId, chunk_id, is_hex_id
from cas_checkpoint.index import ids_array
from cas_checkpoint.manifests import ChunkRef, Entry, EntryType
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packs import PREFIX_SIZE, Footer
from cas_checkpoint.reading import MAX_REQUEST, SnapshotReader
from cas_checkpoint.transactions import read_commit, read_header

__all__ = ["AffectedPath", "Problem", "VerifyReport", "verify"]


_CHUNKS_AT_ONCE = 2**14


class AffectedPath(NamedTuple):
    """A file that cannot be restored: the id of its snapshot, and its path."""

    snapshot: str
    path: str


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
    """

    problems: tuple[Problem, ...]
    lost: tuple[AffectedPath, ...]
    snapshots: int
    packs: int
    chunks: int
    bytes_read: int
    garbage_objects: int
    garbage_size: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(backend: Backend, header: Header, *, data: bool, workers: int, monitor: Monitor) -> VerifyReport:
    """Verify a store; see `Store.verify`."""
    return _Verifier(backend, header, workers=workers, monitor=monitor).run(data=data)


class _Verifier:
    def __init__(self, backend: Backend, header: Header, *, workers: int, monitor: Monitor) -> None:
        self._backend, self._header, self._monitor = backend, header, monitor
        self._workers = max(1, workers)
        self._problems: list[Problem] = []
        self._lost: list[AffectedPath] = []
        self._readers: list[SnapshotReader] = []
        self._users: dict[PackId, list[str]] = {}
        self._footers: dict[PackId, Footer] = {}
        self._copies: dict[PackId, Footer] = {}  # from the index, of packs whose own footers are not to be had
        self._bytes_read = 0
        self._lock = threading.Lock()

    def run(self, *, data: bool) -> VerifyReport:
        listed = {info.key: info.size for info in self._backend.list("")}
        self._check_header()
        for key in sorted(listed):
            if key.startswith(COMMITS_PREFIX):
                self._check_commit(key)
        self._check_footers()
        self._check_indexes(listed)
        if data:
            bad = self._check_data()
            for reader in self._readers:
                self._check_entries(reader, bad)
        garbage = [size for key, size in listed.items() if self._is_garbage(key)]
        return VerifyReport(
            tuple(self._problems),
            tuple(self._lost),
            len(self._readers),
            len(self._users),
            sum(len(footer.ids) for footer in self._footers.values()),
            self._bytes_read,
            len(garbage),
            sum(garbage),
        )

    def _problem(self, key: str, error: Exception | str, snapshots: Iterable[str] = ()) -> None:
        reason = error.reason if isinstance(error, DamagedObject) else str(error)
        self._problems.append(Problem(key, reason, tuple(snapshots)))

    def _check_header(self) -> None:
        try:
            if read_header(self._backend) != self._header:
                self._problem(HEADER_KEY, "is not the header with which the store was opened")
        except (ObjectNotFound, DamagedStore, UnsupportedStore) as error:
            self._problem(HEADER_KEY, error)

    def _check_commit(self, text: str) -> None:
        key = parse_commit_key(text)
        if key is None:
            self._problem(text, "is not the name of a commit")
            return
        snapshot = key.transaction.hex()
        try:
            record = read_commit(self._backend, key, self._header.store)
        except ObjectNotFound:  # forgotten meanwhile
            return
        except (DamagedStore, UnsupportedStore) as error:
            self._problem(text, error, [snapshot])
            return
        if record.state is not State.COMMITTED:
            return
        reader = SnapshotReader(self._backend, record, footers=self._footers)
        try:
            manifest = reader.manifest()
        except SnapshotForgotten:
            return
        except (DamagedStore, UnsupportedStore) as error:
            self._problem(text if record.inline else manifest_key(key.transaction), error, [snapshot])
            return
        self._readers.append(reader)
        for ref in manifest.packs:
            self._users.setdefault(ref.pack, []).append(snapshot)

    def _check_footers(self) -> None:
        with ThreadPoolExecutor(self._workers) as pool:
            for pack, result in zip(self._users, pool.map(self._check_footer, self._users), strict=True):
                if isinstance(result, Footer):
                    self._footers[pack] = result
                else:
                    self._problem(pack_key(pack), result, self._users[pack])

    def _check_footer(self, pack: PackId) -> Footer | Exception | str:
        try:
            footer = read_footer(self._backend, pack)
            if self._backend.get_range(pack_key(pack), 0, PREFIX_SIZE) != footer.encoded[:PREFIX_SIZE]:
                return "does not begin as its footer says"
        except ObjectNotFound:
            return "is missing"
        except (DamagedStore, UnsupportedStore) as error:
            return error
        return footer

    def _check_indexes(self, listed: Iterable[str]) -> None:
        """Check the index objects; as they are a cache, no snapshot suffers from a damaged one."""
        for key in sorted(listed):
            name = key.removeprefix("index/")
            if key == name or not is_hex_id(name):
                continue
            try:
                footers = read_index_footers(self._backend, TransactionId(bytes.fromhex(name)))
            except ObjectNotFound:
                continue
            except (DamagedStore, UnsupportedStore) as error:
                self._problem(key, error)
                continue
            for footer in footers:
                known = self._footers.get(footer.pack)
                if known is None and footer.pack in self._users:
                    self._copies.setdefault(footer.pack, footer)
                elif known is not None and known.encoded != footer.encoded:
                    self._problem(key, f"contradicts the footer of {pack_key(footer.pack)}")

    def _is_garbage(self, key: str) -> bool:
        kind, _, name = key.partition("/")
        if not is_hex_id(name):
            return False
        identifier = bytes.fromhex(name)
        if kind == "packs":
            return identifier not in self._users
        committed = {reader.key.transaction for reader in self._readers}
        return kind == "manifests" and identifier not in committed

    # --- data ---

    def _check_data(self) -> frozenset[tuple[PackId, ChunkId]]:
        """Read all packs; return the chunks that are damaged, each with its pack: another may hold it whole."""
        footers = self._footers | self._copies
        self._monitor.total(sum(footer.pack_size for footer in footers.values()))
        bad: set[tuple[PackId, ChunkId]] = set()
        with ThreadPoolExecutor(self._workers) as pool:
            for pack, result in zip(footers, pool.map(self._check_pack, footers.values()), strict=True):
                for chunk, reason in result:
                    bad.add((pack, chunk))
                    if pack in self._footers:  # else the pack as a whole was told already
                        self._problem(pack_key(pack), f"chunk {chunk.hex()}: {reason}", self._users[pack])
        return frozenset(bad)

    def _check_pack(self, footer: Footer) -> list[tuple[ChunkId, str]]:
        decoder = Decoder()
        bad = []
        for start, end in _slices(footer):
            rows = range(start, end)
            first = int(footer.offsets[start])
            size = int(footer.offsets[end - 1]) + int(footer.stored_sizes[end - 1]) - first
            try:
                view = memoryview(self._backend.get_range(pack_key(footer.pack), first, size))
            except (CasCheckpointError, OSError) as error:
                bad += [(ChunkId(bytes(footer.ids[row])), str(error)) for row in rows]
                continue
            for row in rows:
                offset = int(footer.offsets[row]) - first
                reason = _blob_fault(decoder, footer, row, view[offset : offset + int(footer.stored_sizes[row])])
                if reason:
                    bad.append((ChunkId(bytes(footer.ids[row])), reason))
            with self._lock:
                self._bytes_read += size
                self._monitor.read(size)
        return bad

    def _check_entries(self, reader: SnapshotReader, bad: frozenset[tuple[PackId, ChunkId]]) -> None:
        """Find the files of a snapshot that need a lost chunk, or one that no pack holds."""
        snapshot = reader.key.transaction.hex()
        try:
            lost = list(_lost_paths(reader, _lost_chunks(reader, bad)))
        except SnapshotForgotten:
            return
        except CasCheckpointError as error:
            if not any(snapshot in problem.snapshots for problem in self._problems):
                self._problem(str(reader.key), error, [snapshot])
            self._lost.append(AffectedPath(snapshot, ""))
            return
        for path, reason in lost:
            self._lost.append(AffectedPath(snapshot, path))
            if not any(snapshot in problem.snapshots for problem in self._problems):
                self._problem(str(reader.key), f"{path!r}: {reason}", [snapshot])


def _slices(footer: Footer) -> Iterator[tuple[int, int]]:
    """Yield runs of rows that are read at once."""
    sizes = footer.stored_sizes.tolist()
    start, total = 0, 0
    for row, size in enumerate(sizes):
        if total and total + size > MAX_REQUEST:
            yield start, row
            start, total = row, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)


def _blob_fault(decoder: Decoder, footer: Footer, row: int, blob: memoryview) -> str:
    """Return what is wrong with a blob, nothing if it is right."""
    try:
        plain = decoder.decode(blob, int(footer.plain_sizes[row]))
    except CasCheckpointError as error:
        return str(error)
    if blob_check(blob[0], blob[1:]) != int(footer.checks[row]) or chunk_id(plain) != bytes(footer.ids[row]):
        return "its bytes are not those that were stored"
    return ""


def _lost_chunks(reader: SnapshotReader, bad: frozenset[tuple[PackId, ChunkId]]) -> frozenset[ChunkId]:
    """Return those of the damaged chunks that the snapshot's reader would take from where they are damaged."""
    if not bad:
        return frozenset()
    packs, chunks = zip(*bad, strict=True)
    index = reader.index()
    found = index.locate(ids_array(b"".join(chunks)))
    rows = zip(packs, chunks, found.found.tolist(), found.packs.tolist(), strict=True)
    return frozenset(chunk for pack, chunk, is_there, number in rows if is_there and index.packs[number] == pack)


def _lost_paths(reader: SnapshotReader, bad: frozenset[ChunkId]) -> Iterator[tuple[str, str]]:
    """Yield the files that need a lost chunk, or one that no pack holds, and what is wrong with each."""
    gathered: list[tuple[str, list[ChunkRef]]] = []
    count = 0
    links: list[Entry] = []
    for entry in reader.entries():
        if entry.type is EntryType.HARDLINK:
            links.append(entry)
        if entry.content is None:
            continue
        try:
            refs = list(reader.refs(entry.content, lists=True))
        except DamagedStore as error:
            yield entry.name, str(error)
            continue
        if any(ref.chunk in bad for ref in refs):
            yield entry.name, "needs a damaged chunk"
            continue
        gathered.append((entry.name, refs))
        count += len(refs)
        if count >= _CHUNKS_AT_ONCE:
            yield from _unreadable(reader, gathered)
            gathered, count = [], 0
    yield from _unreadable(reader, gathered)
    yield from _loose(reader, links)


def _loose(reader: SnapshotReader, links: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Yield those of the hard links that are linked to no file of the snapshot."""
    targets = {link.target for link in links}
    if not targets:
        return
    files = {entry.path for entry in reader.entries() if entry.type is EntryType.FILE and entry.path in targets}
    for link in links:
        if link.target not in files:
            yield link.name, "is linked to a file that the snapshot does not hold"


def _unreadable(reader: SnapshotReader, files: Sequence[tuple[str, list[ChunkRef]]]) -> Iterator[tuple[str, str]]:
    """Yield those of the files whose chunks are not to be had; one look-up does for all if all is well."""
    try:
        _look_up(reader, [ref for _, refs in files for ref in refs])
    except DamagedStore:
        for name, refs in files:
            try:
                _look_up(reader, refs)
            except DamagedStore as error:
                yield name, str(error)


def _look_up(reader: SnapshotReader, refs: Sequence[ChunkRef]) -> None:
    """Find chunks in the packs' footers; those within a commit are decoded as well, as no pack is read for them."""
    for request in reader.plan(refs):
        if reader.inline_size() is not None:
            for _ in reader.fetch(request):
                pass
