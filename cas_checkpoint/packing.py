"""Chunks → blobs → packs: what a save does with the chunks of its streams. Knows nothing of files or entries.

Batches of chunks are hashed, looked up and compressed by worker threads. The calling thread takes the
results in the order in which the batches were given, so that what is written does not depend on timing; full
packs are written by threads of their own. Memory is bounded by the number of buffers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from cas_checkpoint.backends import Backend
from cas_checkpoint.buffers import ReadBuffer, ReadBuffers, anonymous_memory
from cas_checkpoint.codecs import MAX_CHUNK_SIZE, Codec, Encoder, blob_check
from cas_checkpoint.commits import pack_key
from cas_checkpoint.ids import Buffer, ChunkId, PackId, chunk_id
from cas_checkpoint.index import ChunkIndex, ids_array
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packs import Footer, PackBuilder
from cas_checkpoint.segments import Hint

__all__ = ["MAX_BATCH_CHUNKS", "PACK_SIZE", "Batch", "Coding", "Packer", "PlainBases", "Spans", "buffers_ahead"]

PACK_SIZE = 64 * 2**20
"""A pack is closed when it has this many bytes."""
MAX_PACK_CHUNKS = 2**16
MAX_BATCH_CHUNKS = 1024
_METADATA_HELD = 8 * 2**20  # bytes of entries and lists kept back, so that they lie together in the last pack
_ARENA_MARGIN = MAX_CHUNK_SIZE  # for the chunk that fills a pack
_MAX_AHEAD = 5
_LENT_SIZE = 160 * 2**20  # at most so much memory is lent to packs; beyond that, what is in buffers is copied
_DELTA_SHARE = 0.85  # of what a chunk would be whole: a delta that is smaller always pays
_GROWING_SHARE = 0.97  # the same of one that is hardly larger than it was in the save before
_GROWTH = 1.01  # of a delta since then; if it is more, a new base is worth while
_LENT_SHARE = 5 / 8  # a buffer is lent only if so much of it goes into packs as it is, for it is kept as a whole

Spans = Sequence[tuple[int, int]]


def buffers_ahead(workers: int) -> int:
    """Return how many buffers a number of workers can well look into ahead; none where there is but one worker."""
    return min(workers // 2 + 1, _MAX_AHEAD) if workers > 1 else 0


class PlainBases(Protocol):
    """Where the bytes of those chunks are that others may be deltas of. Used by several threads."""

    def get(self, wanted: Mapping[ChunkId, int]) -> Mapping[ChunkId, Buffer]:
        """Return the bytes of chunks of these sizes, as far as they are to be had at little cost."""

    def keep(self, chunk: ChunkId, plain: Buffer) -> None:
        """Take note of a chunk of a tensor that is stored whole."""


class Coding(NamedTuple):
    """How chunks become blobs.

    Attributes:
        level: the zstd level.
        planes: whether the store's readers know planes and deltas.
        bases: where bases come from; None for no deltas.
        small: whether deltas are to be small rather than fast.
    """

    level: int
    planes: bool = True
    bases: PlainBases | None = None
    small: bool = False


class Batch(NamedTuple):
    """Chunks that are handled together.

    Attributes:
        buffer: memory that holds their bytes; the packer drops it when it needs it no more.
        spans: start and end of each chunk in the buffer.
        known: the id of each chunk, None where it is to be found out.
        done: called with each chunk's id and whether it was new, in the order of the spans.
        hints: what helps to code each chunk, None where nothing is known.
    """

    buffer: ReadBuffer
    spans: Spans
    known: Sequence[ChunkId | None]
    done: Callable[[Sequence[tuple[ChunkId, bool]]], None]
    hints: Sequence[Hint | None]


class _Coded(NamedTuple):
    """A chunk after a worker has seen it; no blob if the store was found to hold the chunk."""

    chunk: ChunkId
    size: int
    blob: tuple[int, Buffer, int] | None  # codec, payload, check
    base: ChunkId | None = None  # what the blob is a delta of


class _Base(NamedTuple):
    """What a chunk may be a delta of.

    Attributes:
        chunk: a chunk that is stored whole.
        pack: the number of a pack that holds it so.
        size: its bytes.
        before: bytes of the earlier version's blob, if that is a delta of the same chunk; else 0.
        plain: its bytes.
    """

    chunk: ChunkId
    pack: int
    size: int
    before: int = 0
    plain: Buffer = b""


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


class _Pack:
    """A pack being built or written.

    Attributes:
        builder: what it consists of.
        arena: memory that it uses.
        lent: buffers that it uses.
    """

    def __init__(self, pack: PackId, arena: memoryview | None) -> None:
        self.builder = PackBuilder(pack, arena)
        self.arena = arena
        self.lent: list[ReadBuffer] = []


class Packer:
    """Stores the chunks of one save. Used by one thread; `close` must be called in the end."""

    def __init__(
        self,
        backend: Backend,
        knowledge: Knowledge | None,
        buffers: ReadBuffers,
        *,
        new_pack: Callable[[], PackId],
        workers: int,
        coding: Coding,
        monitor: Monitor,
    ) -> None:
        """Begin a save's packs.

        Args:
            backend: where packs are written.
            knowledge: what need not be stored again; None stores everything, and writes no pack by itself.
            buffers: where the buffers of batches come from.
            new_pack: makes the random id of a pack.
            workers: threads that hash and compress.
            coding: how chunks become blobs.
            monitor: told of bytes written.
        """
        self.footers: list[Footer] = []
        self.bytes_written = 0
        self._backend, self._knowledge, self._buffers, self._new_pack = backend, knowledge, buffers, new_pack
        self._coding, self._monitor, self._workers = coding, monitor, workers
        self._local = threading.local()
        self._metadata_encoder = Encoder(level=coding.level, planes=False)  # of the calling thread
        self._wrote_lock = threading.Lock()  # a monitor is never told of two packs at once
        self._own = ChunkIndex()  # the chunks of packs that are closed
        self._fresh: set[ChunkId] = set()  # the chunks of the pack being built, and of the metadata held back
        self._used: set[int] = set()  # numbers of old packs that the save relies on
        self._pack: _Pack | None = None
        self._arenas: list[memoryview] = []
        self._lent_size = 0  # of the buffers that packs use
        self._held: list[_Coded] = []
        self._held_size = 0
        self._batches: deque[tuple[Batch, Future[_Results]]] = deque()
        self._uploads: deque[tuple[Future[None], _Pack]] = deque()
        self._coders = ThreadPoolExecutor(max(1, workers), "cas-checkpoint-code")
        self._writers = ThreadPoolExecutor(backend.parallel_puts, "cas-checkpoint-write")

    def close(self) -> None:
        """Stop all threads; what is being written is waited for, what is not is dropped."""
        self._coders.shutdown(wait=True, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)
        self._arenas.clear()

    # --- what goes in ---

    def submit(self, batch: Batch) -> None:
        """Take a batch; calls `done` of this or earlier batches as they are finished."""
        if self._knowledge is None:  # so little that a thread would cost more than it does
            self._take(batch, self._code(batch.buffer.view, batch.spans, batch.known, batch.hints))
            return
        found = self._coders.submit(self._code, batch.buffer.view, batch.spans, batch.known, batch.hints)
        self._batches.append((batch, found))
        while len(self._batches) > self._workers + 1:
            self._collect()

    @property
    def ahead(self) -> int:
        """How many buffers are worth being looked into before it is known where their chunks begin."""
        return 0 if self._knowledge is None else buffers_ahead(self._workers)

    def run(self, task: Callable[[], object]) -> Future[object]:
        """Let a worker do something between batches."""
        return self._coders.submit(task)

    def store(self, chunk: Buffer) -> ChunkId:
        """Store one chunk of metadata (entries, lists of chunks); these lie together, apart from files' data."""
        (coded,), used, _ = self._code(chunk, [(0, len(chunk))], [None], [None], self._metadata_encoder)
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
        if self._pack:
            self._close_pack(self._pack)
        while self._uploads:
            self._await_upload()
        packs = self._knowledge.index.packs if self._knowledge else []
        return frozenset(packs[number] for number in self._used)

    def finish_inline(self) -> bytes:
        """Return everything as one pack, empty if there is no chunk, instead of writing it."""
        self.settle()
        self._release_held()
        if not self._pack:
            return b""
        _, parts = self._pack.builder.finish()
        return b"".join(parts)

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
        index = self._knowledge.index
        found = index.locate(array)
        old = found.found & ~known
        numbers, ids_of_bases = index.bases(found)
        if not len(numbers):
            return (known | old).tolist(), set(found.packs[old].tolist())
        bases = index.locate(ids_of_bases, whole=True)
        old[numbers] &= bases.found
        packs = set(found.packs[old].tolist()) | set(bases.packs[old[numbers]].tolist())
        return (known | old).tolist(), packs

    def _encoder(self) -> Encoder:
        encoder: Encoder | None = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = Encoder(level=self._coding.level, planes=self._coding.planes)
        return encoder

    def _code(
        self,
        buffer: Buffer,
        spans: Spans,
        known_ids: Sequence[ChunkId | None],
        hints: Sequence[Hint | None],
        encoder: Encoder | None = None,
    ) -> _Results:
        own_packs = len(self._own.packs)
        view = memoryview(buffer)
        ids = [known or chunk_id(view[start:end]) for known, (start, end) in zip(known_ids, spans, strict=True)]
        known, used = self._look_up(ids)
        fresh: dict[ChunkId, int] = {}
        for number, (chunk, is_known) in enumerate(zip(ids, known, strict=True)):
            if not is_known and chunk not in self._fresh:
                fresh.setdefault(chunk, number)
        bases = self._bases(hints[number] for number in fresh.values())
        coded = [_Coded(chunk, end - start, None) for chunk, (start, end) in zip(ids, spans, strict=True)]
        for (chunk, number), base in zip(fresh.items(), bases, strict=True):
            start, end = spans[number]
            found = self._blob(chunk, view[start:end], hints[number], base, encoder or self._encoder())
            coded[number] = found
            if found.base is not None and base is not None:
                used.add(base.pack)
        return _Results(coded, used, own_packs)

    def _bases(self, hints: Iterable[Hint | None]) -> list[_Base | None]:
        """Return what each chunk may be a delta of: its earlier version, or what that one is a delta of itself."""
        candidates = [hint.base if hint is not None else None for hint in hints]
        wanted = [chunk for chunk in candidates if chunk is not None]
        if not wanted or self._knowledge is None or self._coding.bases is None:
            return [None] * len(candidates)
        index = self._knowledge.index
        array = ids_array(b"".join(wanted))
        earlier = index.locate(array)
        numbers, ids_of_bases = index.bases(earlier)
        before = np.zeros(len(array), np.int64)
        sizes = earlier.plain_sizes
        if len(numbers):
            before[numbers] = earlier.stored_sizes[numbers]
            array = array.copy()
            array[numbers] = ids_of_bases
        found = index.locate(array, whole=True)
        usable = found.found & (found.plain_sizes == sizes)  # nobody knows of which window the earlier version is
        columns = (found.packs, found.plain_sizes, before)
        places = zip(usable.tolist(), array, *(column.tolist() for column in columns), strict=True)
        bases = iter(
            [_Base(ChunkId(bytes(chunk)), *others) if is_found else None for is_found, chunk, *others in places]
        )
        return self._with_bytes([None if chunk is None else next(bases) for chunk in candidates])

    def _with_bytes(self, bases: Sequence[_Base | None]) -> list[_Base | None]:
        """Get the bytes of bases; None stands for those that are not to be had."""
        wanted = {base.chunk: base.size for base in bases if base is not None}
        found = self._coding.bases.get(wanted) if self._coding.bases is not None and wanted else {}
        return [
            base._replace(plain=found[base.chunk]) if base is not None and base.chunk in found else None
            for base in bases
        ]

    def _blob(
        self,
        chunk: ChunkId,
        plain: memoryview,
        hint: Hint | None,
        base: _Base | None,
        encoder: Encoder,
    ) -> _Coded:
        """Turn a chunk into a blob: a delta if that pays."""
        if hint is not None and base is not None:
            before = base.before if base.size == len(plain) else 0
            limit = self._limit(encoder.estimate(plain, hint.elements), before)
            delta = encoder.encode_delta(
                plain,
                base.plain,
                hint.elements,
                start=hint.start,
                thorough=self._coding.small,
                limit=limit,
                sure=before > 0,  # few grow beyond the limit from one save to the next
            )
            if delta is not None:
                blob = (Codec.DELTA, delta, blob_check(Codec.DELTA, delta))
                return _Coded(chunk, len(plain), blob, base.chunk)
        if hint is not None and self._coding.bases is not None:
            self._coding.bases.keep(chunk, plain)
        codec, payload = encoder.encode(plain, None if hint is None else hint.elements)
        return _Coded(chunk, len(plain), (codec, payload, blob_check(codec, payload)))

    def _limit(self, whole: int, before: int) -> int:
        """Return how large a delta may be that stands for so many bytes: less, if it grows from save to save.

        A new base costs a whole chunk once, and deltas that are small again are gained by it.
        """
        return int(min(_GROWING_SHARE * whole, max(_DELTA_SHARE * whole, _GROWTH * before if before else whole)))

    # --- in the calling thread ---

    def _collect(self) -> None:
        """Take the oldest batch from the workers and put its new chunks into packs."""
        batch, future = self._batches.popleft()
        self._take(batch, future.result())

    def _take(self, batch: Batch, found: _Results) -> None:
        coded, used, own_packs = found
        self._used |= used
        if own_packs != len(self._own.packs):  # a pack was closed since: it may hold what was looked for in vain
            stored = self._own.contains([item.chunk for item in coded]).tolist()
            coded = [item._replace(blob=None) if there else item for item, there in zip(coded, stored, strict=True)]
        lender = batch.buffer if self._may_lend(batch.buffer, coded) else None
        results = []
        for item in coded:
            is_new = item.blob is not None and item.chunk not in self._fresh
            if is_new:
                self._fresh.add(item.chunk)
                self._append(item, lender)
            results.append((item.chunk, is_new))
        batch.done(results)
        self._buffers.drop(batch.buffer)

    def _may_lend(self, buffer: ReadBuffer, coded: Sequence[_Coded]) -> bool:
        """Tell whether packs should use a batch's buffer until they are written, instead of copying from it."""
        if self._knowledge is None or self._lent_size + len(buffer.view) > _LENT_SIZE:
            return False
        raw = sum(item.size for item in coded if item.blob is not None and item.blob[0] == Codec.RAW)
        return raw >= _LENT_SHARE * len(buffer.view)

    def _append(self, item: _Coded, lender: ReadBuffer | None = None) -> None:
        if item.blob is None:
            return
        if self._pack is None:
            self._pack = _Pack(self._new_pack(), self._arena())
        pack = self._pack
        codec, payload, check = item.blob
        lent = lender is not None and codec == Codec.RAW
        if lender is not None and lent and (not pack.lent or pack.lent[-1] is not lender):
            lender.users += 1
            pack.lent.append(lender)
            self._lent_size += len(lender.view)
        pack.builder.add(item.chunk, codec, payload, item.size, check, base=item.base, lent=lent)
        if self._knowledge and (pack.builder.size >= PACK_SIZE or len(pack.builder) >= MAX_PACK_CHUNKS):
            self._close_pack(pack)

    def _arena(self) -> memoryview | None:
        """Return memory for a pack; none for the small one that a commit carries."""
        if self._knowledge is None:
            return None
        return self._arenas.pop() if self._arenas else anonymous_memory(PACK_SIZE + _ARENA_MARGIN)

    def _release_held(self) -> None:
        held, self._held, self._held_size = self._held, [], 0
        for item in held:
            self._append(item)

    def _close_pack(self, pack: _Pack) -> None:
        """Hand the pack being built to a writer, and wait if too many are being written."""
        self._pack = None
        footer, parts = pack.builder.finish()
        self.footers.append(footer)
        self.bytes_written += footer.pack_size
        self._own.add([footer])
        self._fresh = {item.chunk for item in self._held}
        self._uploads.append((self._writers.submit(self._upload, footer, parts), pack))
        while len(self._uploads) > self._backend.parallel_puts:
            self._await_upload()

    def _upload(self, footer: Footer, parts: Sequence[Buffer]) -> None:
        self._backend.put(pack_key(footer.pack), parts)
        with self._wrote_lock:
            self._monitor.wrote(footer.pack_size)

    def _await_upload(self) -> None:
        """Wait for the oldest pack that is being written, and use its memory again."""
        future, pack = self._uploads.popleft()
        future.result()
        for buffer in pack.lent:
            self._lent_size -= len(buffer.view)
            self._buffers.drop(buffer)
        if pack.arena is not None:
            self._arenas.append(pack.arena)
