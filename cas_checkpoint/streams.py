"""Streams of bytes → batches of chunks → contents: reading ahead, cutting, and the lists of large streams.

One thread reads, and says where each chunk ends; of a large stream workers have found out before what that will
probably be (`segments`). `packing` does the rest. Buffers are few and used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import NamedTuple, Protocol

from cas_checkpoint.buffers import ReadBuffer, ReadBuffers
from cas_checkpoint.chunking import Cutter
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import Buffer, ChunkId
from cas_checkpoint.manifests import INLINE_REFS, REF_SIZE, Content, encode_ref
from cas_checkpoint.packing import MAX_BATCH_CHUNKS, Batch, Packer, buffers_ahead
from cas_checkpoint.segments import Cut, Hint, Segment

__all__ = ["MetadataStream", "Plan", "Readable", "Stream", "StreamReader", "buffer_size", "store_content"]

_BUFFER_SIZE = 8 * 2**20
_BUFFERS_SIZE = 96 * 2**20  # of all that are being filled, hashed and compressed
_READ_SIZE = 2**20  # read at once, so that progress is told often enough
_METADATA_BUFFER = 2**20


def buffer_size(header: Header, workers: int) -> int:
    """Return the size of the buffers for a store and a number of workers: no smaller than two chunks, or they stall."""
    return max(2 * header.chunker.max_size, min(_BUFFER_SIZE, _BUFFERS_SIZE // (workers + 3 + buffers_ahead(workers))))


class Readable(Protocol):
    """Whatever fills a buffer as far as it can; less than the buffer's size means the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` and return how many bytes are in it."""


class Plan(Protocol):
    """Says where a stream is cut, as far as that is not told by its content alone.

    Attributes:
        over: whether it has nothing more to say.
    """

    over: bool

    def cuts(self, segment: Segment, start: int, *, final: bool) -> list[Cut]:
        """Return the chunks of a segment from `start` on, as far as they can be told; in the order of the stream.

        If the segment is not the end of its stream (`final` is false), what is left may be the beginning of a chunk.
        """

    def skipped(self, size: int) -> tuple[int, Plan] | None:
        """Guess how many bytes beyond the next `size` a chunk begins, and return that and the plan from there on.

        None if nothing is gained by looking at the bytes there before those in front of them.
        """


class Stream:
    """The chunks of one content, as they become known.

    Attributes:
        refs: packed refs of the chunks so far.
        size: bytes of the stream.
        chunks_new: chunks that the store did not hold.
        bytes_new: their plain bytes.
        outstanding: chunks given away and not come back, plus one while the stream is being read.
    """

    __slots__ = ("bytes_new", "chunks_new", "outstanding", "refs", "size")

    def __init__(self) -> None:
        self.refs = bytearray()
        self.size = self.chunks_new = self.bytes_new = 0
        self.outstanding = 1

    def take(self, chunk: ChunkId, size: int, *, is_new: bool) -> None:
        """Append a chunk."""
        self.refs += encode_ref(chunk, size)
        self.outstanding -= 1
        if is_new:
            self.chunks_new += 1
            self.bytes_new += size


class _Filling:
    """A buffer being filled with the chunks of one or more streams."""

    def __init__(self, buffer: ReadBuffer, *, fill: int = 0) -> None:
        self.buffer = buffer
        self.view = buffer.view
        self.fill = fill
        self.spans: list[tuple[int, int]] = []
        self.known: list[ChunkId | None] = []
        self.hints: list[Hint | None] = []
        self.owners: list[Stream] = []

    def add(self, owner: Stream, start: int, cuts: Sequence[Cut]) -> int:
        """Add the chunks of `owner` that begin at `start`; return the last end."""
        for end, known, hint in cuts:
            self.spans.append((start, end))
            self.known.append(known)
            self.hints.append(hint)
            self.owners.append(owner)
            start = end
        owner.outstanding += len(cuts)
        return start


class _Reading(NamedTuple):
    """A stream that is being read."""

    source: Readable
    stream: Stream
    progress: Callable[[int], None]
    plan: Plan | None


class _Ahead(NamedTuple):
    """A buffer that was filled before it is known where its first chunk begins.

    Attributes:
        filling: the buffer; there is room in front for what the one before ends with.
        ended: whether the stream ends in it.
        segment: what is in it.
        looked_into: done when the workers have found out what they can.
    """

    filling: _Filling
    ended: bool
    segment: Segment
    looked_into: Future[object] | None


class StreamReader:
    """Reads streams into buffers, cuts them, and gives the chunks to a packer."""

    def __init__(self, header: Header, buffers: ReadBuffers, packer: Callable[[], Packer]) -> None:
        """Begin a save.

        Args:
            header: says how to cut.
            buffers: memory to read into, each large enough for two chunks.
            packer: gives the packer; called when the first buffer is full, or at `flush`.
        """
        self._cutter = Cutter(header.chunker)
        self._packer = packer
        self._buffers = buffers
        self._size = buffers.size
        self._filling = _Filling(buffers.take())
        self._room = header.chunker.max_size
        self._in_vain = False  # whether the last buffer was looked into in vain

    @property
    def held(self) -> int:
        """Bytes read and not yet given to the packer."""
        return self._filling.fill

    @property
    def held_chunks(self) -> int:
        """Chunks not yet given to the packer."""
        return len(self._filling.spans)

    def read(self, source: Readable, progress: Callable[[int], None], plan: Plan | None = None) -> Stream:
        """Read a stream to its end; its chunks come back later, in order (see `Stream.outstanding`)."""
        stream = Stream()
        reading = _Reading(source, stream, progress, plan)
        filling, start = self._filling, self._filling.fill
        ended = self._fill(filling, reading)
        if ended and stream.size <= self._cutter.parameters.min_size:
            filling.add(stream, start, [Cut(filling.fill, None)] if stream.size else [])
        else:
            segment = Segment(filling.view[: filling.fill], self._cutter)
            start = filling.add(stream, start, _cuts(segment, start, plan, final=ended))
        if not ended:
            self._read_on(reading, start)
        stream.outstanding -= 1
        if self.held_chunks >= MAX_BATCH_CHUNKS:
            self.flush()
        return stream

    def _read_on(self, reading: _Reading, start: int) -> None:
        """Read the rest of a stream that fills a buffer, and of which the chunks up to `start` are known."""
        count = max(1, self._packer().ahead)
        waiting: deque[_Ahead] = deque()
        ended = False
        try:
            while waiting or not ended:
                while not ended and len(waiting) < count:
                    before = self._filling.fill - start + sum(one.filling.fill - self._room for one in waiting)
                    waiting.append(self._read_ahead(reading, before))
                    ended = waiting[-1].ended
                start = self._join(reading, waiting.popleft(), start)
        finally:
            for one in waiting:
                self._drop(one.filling, one.looked_into)

    def _read_ahead(self, reading: _Reading, before: int) -> _Ahead:
        """Fill a buffer, `before` bytes beyond the chunks that are known, and let a worker look into it."""
        filling = _Filling(self._buffers.take(), fill=self._room)
        try:
            ended = self._fill(filling, reading)
        except BaseException:
            self._drop(filling)
            raise
        packer, plan = self._packer(), reading.plan
        segment = Segment(filling.view[: filling.fill], Cutter(self._cutter.parameters))
        guess = (0, None) if plan is None or plan.over else plan.skipped(before)
        if not packer.ahead or self._in_vain or guess is None:
            return _Ahead(filling, ended, segment, None)
        look = partial(_cuts, segment, self._room + guess[0], guess[1], final=ended)
        return _Ahead(filling, ended, segment, packer.run(look))

    def _join(self, reading: _Reading, ahead: _Ahead, start: int) -> int:
        """Pass the full buffer on and go on in the next, with the bytes not cut yet; return where its chunks end."""
        if ahead.looked_into is not None:
            ahead.looked_into.result()
        found = ahead.segment.known
        full = self._filling
        rest = full.fill - start
        first = self._room - rest
        ahead.filling.view[first : self._room] = full.view[start : full.fill]
        self._filling = ahead.filling
        self._submit(full)
        start = ahead.filling.add(reading.stream, first, _cuts(ahead.segment, first, reading.plan, final=ahead.ended))
        self._in_vain = 0 < found <= ahead.segment.known - found
        return start

    def _drop(self, filling: _Filling, looked_into: Future[object] | None = None) -> None:
        if looked_into is not None:
            wait([looked_into])
        self._buffers.drop(filling.buffer)

    def _fill(self, filling: _Filling, reading: _Reading) -> bool:
        """Read until the buffer is full or the stream has ended; tell whether it has."""
        while filling.fill < self._size:
            room = min(_READ_SIZE, self._size - filling.fill)
            count = reading.source.readinto(filling.view[filling.fill : filling.fill + room])
            filling.fill += count
            reading.stream.size += count
            reading.progress(count)
            if count < room:
                return True
        return False

    def flush(self) -> None:
        """Give what was read to the packer; only to be called between two streams."""
        full, self._filling = self._filling, _Filling(self._buffers.take())
        self._submit(full)

    def _submit(self, full: _Filling) -> None:
        owners, spans = full.owners, full.spans

        def done(results: Sequence[tuple[ChunkId, bool]]) -> None:
            for owner, (start, end), (chunk, is_new) in zip(owners, spans, results, strict=True):
                owner.take(chunk, end - start, is_new=is_new)

        self._packer().submit(Batch(full.buffer, spans, full.known, done, full.hints))


def _cuts(segment: Segment, start: int, plan: Plan | None, *, final: bool) -> list[Cut]:
    """Return the chunks of a segment from `start` on, as a plan tells them or by content."""
    cuts: list[Cut] = []
    if plan is not None and not plan.over:
        cuts = plan.cuts(segment, start, final=final)
        start = cuts[-1].end if cuts else start
    if plan is None or plan.over:
        cuts += [Cut(end, None) for end in segment.cuts(start, final=final)]
    return cuts


def store_content(packer: Packer, cutter: Cutter, refs: Buffer, size: int) -> Content:
    """Return the content of `size` bytes that consists of these packed refs, storing a long list as chunks."""
    packed, depth = bytes(refs), 0
    while len(packed) > INLINE_REFS * REF_SIZE:
        packed = bytes(_store_chunks(packer, packed, cutter.cuts(packed, final=True)))
        depth += 1
    return Content(size, depth, packed)


def _store_chunks(packer: Packer, data: Buffer, ends: Sequence[int]) -> bytearray:
    view = memoryview(data)
    refs = bytearray()
    start = 0
    for end in ends:
        refs += encode_ref(packer.store(view[start:end]), end - start)
        start = end
    return refs


class MetadataStream:
    """A stream made in memory, piece by piece: the entries of a snapshot."""

    def __init__(self, cutter: Cutter, packer: Callable[[], Packer]) -> None:
        """Begin the stream; `packer` is called when there is enough to store, or at `finish`."""
        self._cutter, self._packer = cutter, packer
        self._data = bytearray()
        self._refs = bytearray()
        self._size = 0

    @property
    def held(self) -> int:
        """Bytes not yet stored."""
        return len(self._data)

    def write(self, piece: bytes) -> None:
        """Append to the stream."""
        self._data += piece
        self._size += len(piece)
        if len(self._data) >= _METADATA_BUFFER:
            self._store(final=False)

    def _store(self, *, final: bool) -> None:
        data = bytes(self._data)
        ends = self._cutter.cuts(data, final=final)
        self._refs += _store_chunks(self._packer(), data, ends)
        self._data = bytearray(data[ends[-1] :] if ends else data)

    def finish(self) -> Content:
        """Store the rest; return the stream as a content."""
        self._store(final=True)
        return store_content(self._packer(), self._cutter, self._refs, self._size)
