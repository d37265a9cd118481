"""Chunks → blobs → packs: what a save does with the chunks of its streams. Knows nothing of files or entries.

Batches of chunks are hashed, looked up and compressed by worker threads. The calling thread takes the
results in the order in which the batches were given, so that what is written does not depend on timing; full
packs are written by threads of their own. Memory is bounded by the number of buffers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.codecs import Encoder, blob_check
from cas_checkpoint.commits import pack_key
from cas_checkpoint.ids import Buffer, ChunkId, PackId, chunk_id
from cas_checkpoint.index import ChunkIndex, ids_array
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packs import Footer, PackBuilder

__all__ = ["MAX_BATCH_CHUNKS", "PACK_SIZE", "Batch", "Packer", "Spans"]

PACK_SIZE = 64 * 2**20
"""A pack is closed when it has this many bytes."""
MAX_PACK_CHUNKS = 2**16
MAX_BATCH_CHUNKS = 1024
_METADATA_HELD = 8 * 2**20  # bytes of entries and lists kept back, so that they lie together in the last pack
_ARENA_MARGIN = 4 * 2**20  # for the chunk that fills a pack, and for its footer
_UPLOADS = 2

Spans = Sequence[tuple[int, int]]


class Batch(NamedTuple):
    """Chunks that are handled together.

    Attributes:
        buffer: memory that holds their bytes; not to be changed until `done` was called.
        spans: start and end of each chunk in the buffer.
        done: called with each chunk's id and whether it was new, in the order of the spans.
    """

    buffer: bytearray
    spans: Spans
    done: Callable[[Sequence[tuple[ChunkId, bool]]], None]


class _Coded(NamedTuple):
    """A chunk after a worker has seen it; no blob if the store was found to hold the chunk."""

    chunk: ChunkId
    size: int
    blob: tuple[int, Buffer, int] | None  # codec, payload, check


class _Results(NamedTuple):
    """What a worker found out about a batch.

    Attributes:
        coded: its chunks.
        used: numbers of the old packs that hold some of them.
        own_packs: how many of the save's own packs had been closed when the worker looked.
    """

    coded: list[_Coded]
    used: set[int]
    own_packs: int


class Packer:
    """Stores the chunks of one save. Used by one thread; `close` must be called in the end."""

    def __init__(
        self,
        backend: Backend,
        knowledge: Knowledge | None,
        *,
        new_pack: Callable[[], PackId],
        workers: int,
        level: int,
        monitor: Monitor,
    ) -> None:
        """Begin a save's packs.

        Args:
            backend: where packs are written.
            knowledge: what need not be stored again; None stores everything, and writes no pack by itself.
            new_pack: makes the random id of a pack.
            workers: threads that hash and compress.
            level: the zstd level.
            monitor: told of bytes written.
        """
        self.footers: list[Footer] = []
        self.bytes_written = 0
        self._backend, self._knowledge, self._new_pack = backend, knowledge, new_pack
        self._level, self._monitor, self._workers = level, monitor, workers
        self._local = threading.local()
        self._wrote_lock = threading.Lock()  # a monitor is never told of two packs at once
        self._own = ChunkIndex()  # the chunks of packs that are closed
        self._fresh: set[ChunkId] = set()  # the chunks of the pack being built, and of the metadata held back
        self._used: set[int] = set()  # numbers of old packs that the save relies on
        self._builder: PackBuilder | None = None
        self._arenas: list[bytearray] = []
        self._held: list[_Coded] = []
        self._held_size = 0
        self._batches: deque[tuple[Batch, Future[_Results]]] = deque()
        self._uploads: deque[tuple[Future[None], bytearray]] = deque()
        self._coders = ThreadPoolExecutor(max(1, workers), "cas-checkpoint-code")
        self._writers = ThreadPoolExecutor(_UPLOADS, "cas-checkpoint-write")

    def close(self) -> None:
        """Stop all threads; what is being written is waited for, what is not is dropped."""
        self._coders.shutdown(wait=True, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)
        self._arenas.clear()

    # --- what goes in ---

    def submit(self, batch: Batch) -> None:
        """Take a batch; calls `done` of this or earlier batches as they are finished."""
        self._batches.append((batch, self._coders.submit(self._code, batch.buffer, batch.spans)))
        while len(self._batches) > self._workers + 1:
            self._collect()

    def store(self, chunk: Buffer) -> ChunkId:
        """Store one chunk of metadata (entries, lists of chunks); these lie together, apart from files' data."""
        (coded,), used, _ = self._code(chunk, [(0, len(chunk))])
        self._used |= used
        if coded.blob is not None:
            self._fresh.add(coded.chunk)
            self._held.append(coded)
            self._held_size += coded.size
            if self._held_size > _METADATA_HELD:
                self._release_held()
        return coded.chunk

    def settle(self) -> None:
        """Finish all batches that were submitted."""
        while self._batches:
            self._collect()

    def finish(self) -> frozenset[PackId]:
        """Write everything that is left; return the old packs that the save relies on."""
        self.settle()
        self._release_held()
        if self._builder:
            self._close_pack()
        while self._uploads:
            self._await_upload()
        packs = self._knowledge.index.packs if self._knowledge else []
        return frozenset(packs[number] for number in self._used)

    def finish_inline(self) -> bytes:
        """Return everything as one pack, empty if there is no chunk, instead of writing it."""
        self.settle()
        self._release_held()
        if not self._builder:
            return b""
        _, view = self._builder.finish()
        return bytes(view)

    def rely_on(self, chunks: Iterable[ChunkId]) -> list[ChunkId]:
        """Note that the save needs these chunks; return those that must be stored because they are not known."""
        wanted = list(chunks)
        coded, used = self._look_up(wanted)
        self._used |= used
        return [chunk for chunk, known in zip(wanted, coded, strict=True) if not known and chunk not in self._fresh]

    # --- in the workers ---

    def _look_up(self, ids: Sequence[ChunkId]) -> tuple[list[bool], set[int]]:
        """Tell which chunks are in the store already, and the numbers of the old packs that hold them."""
        array = ids_array(b"".join(ids))
        known = self._own.locate(array).found
        if self._knowledge is None:
            return known.tolist(), set()
        found = self._knowledge.index.locate(array)
        old = found.found & ~known
        return (known | old).tolist(), set(found.packs[old].tolist())

    def _code(self, buffer: Buffer, spans: Spans) -> _Results:
        own_packs = len(self._own.packs)
        view = memoryview(buffer)
        ids = [chunk_id(view[start:end]) for start, end in spans]
        known, used = self._look_up(ids)
        encoder: Encoder | None = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = Encoder(level=self._level)
        coded, seen = [], set()
        for chunk, (start, end), is_known in zip(ids, spans, known, strict=True):
            blob = None
            if not is_known and chunk not in seen and chunk not in self._fresh:
                codec, payload = encoder.encode(view[start:end])
                blob = (codec, payload, blob_check(codec, payload))
                seen.add(chunk)
            coded.append(_Coded(chunk, end - start, blob))
        return _Results(coded, used, own_packs)

    # --- in the calling thread ---

    def _collect(self) -> None:
        """Take the oldest batch from the workers and put its new chunks into packs."""
        batch, future = self._batches.popleft()
        coded, used, own_packs = future.result()
        self._used |= used
        if own_packs != len(self._own.packs):  # a pack was closed since: it may hold what was looked for in vain
            stored = self._own.contains([item.chunk for item in coded]).tolist()
            coded = [item._replace(blob=None) if there else item for item, there in zip(coded, stored, strict=True)]
        results = []
        for item in coded:
            is_new = item.blob is not None and item.chunk not in self._fresh
            if is_new:
                self._fresh.add(item.chunk)
                self._append(item)
            results.append((item.chunk, is_new))
        batch.done(results)

    def _append(self, item: _Coded) -> None:
        if item.blob is None:
            return
        if self._builder is None:
            self._builder = PackBuilder(self._new_pack(), self._arena())
        codec, payload, check = item.blob
        self._builder.add(item.chunk, codec, payload, item.size, check)
        if self._knowledge and (self._builder.size >= PACK_SIZE or len(self._builder) >= MAX_PACK_CHUNKS):
            self._close_pack()

    def _arena(self) -> bytearray:
        """Return memory for a pack; pages that stay unused cost nothing."""
        if self._arenas:
            return self._arenas.pop()
        return bytearray(PACK_SIZE + _ARENA_MARGIN if self._knowledge else 0)

    def _release_held(self) -> None:
        held, self._held, self._held_size = self._held, [], 0
        for item in held:
            self._append(item)

    def _close_pack(self) -> None:
        """Hand the pack being built to a writer, and wait if too many are being written."""
        builder, self._builder = self._builder, None
        if builder is None:
            return
        footer, view = builder.finish()
        self.footers.append(footer)
        self.bytes_written += len(view)
        self._own.add([footer])
        self._fresh = {item.chunk for item in self._held}
        self._uploads.append((self._writers.submit(self._upload, footer.pack, view), builder.buffer))
        while len(self._uploads) > _UPLOADS:
            self._await_upload()

    def _upload(self, pack: PackId, view: memoryview) -> None:
        with view:
            self._backend.put(pack_key(pack), [view])
            with self._wrote_lock:
                self._monitor.wrote(len(view))

    def _await_upload(self) -> None:
        future, arena = self._uploads.popleft()
        future.result()
        self._arenas.append(arena)
