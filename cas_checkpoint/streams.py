"""Streams of bytes → batches of chunks → contents: reading ahead, cutting, and the lists of large streams.

One thread reads and cuts; `packing` does the rest. Buffers are few and used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cas_checkpoint.buffers import ReadBuffer, ReadBuffers
from cas_checkpoint.chunking import Cutter
from cas_checkpoint.forecasts import Cut, Forecast
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import Buffer, ChunkId
from cas_checkpoint.manifests import INLINE_REFS, REF_SIZE, Content, encode_ref
from cas_checkpoint.packing import MAX_BATCH_CHUNKS, Batch, Packer

__all__ = ["MetadataStream", "Readable", "Stream", "StreamReader", "buffer_size", "store_content"]

_BUFFER_SIZE = 8 * 2**20
_BUFFERS_SIZE = 96 * 2**20  # of all that are being filled, hashed and compressed
_READ_SIZE = 2**20  # read at once, so that progress is told often enough
_METADATA_BUFFER = 2**20


def buffer_size(header: Header, workers: int) -> int:
    """Return the size of the buffers for a store and a number of workers: no smaller than two chunks, or they stall."""
    return max(2 * header.chunker.max_size, min(_BUFFER_SIZE, _BUFFERS_SIZE // (workers + 2)))


class Readable(Protocol):
    """Whatever fills a buffer as far as it can; less than the buffer's size means the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` and return how many bytes are in it."""


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

    def __init__(self, buffer: ReadBuffer) -> None:
        self.buffer = buffer
        self.view = buffer.view
        self.fill = 0
        self.spans: list[tuple[int, int]] = []
        self.known: list[ChunkId | None] = []
        self.owners: list[Stream] = []

    def add(self, owner: Stream, start: int, cuts: Sequence[Cut]) -> int:
        """Add the chunks of `owner` that begin at `start`; return the last end."""
        position = start
        for end, known in cuts:
            self.spans.append((position, start + end))
            self.known.append(known)
            self.owners.append(owner)
            position = start + end
        owner.outstanding += len(cuts)
        return position


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

    @property
    def held(self) -> int:
        """Bytes read and not yet given to the packer."""
        return self._filling.fill

    @property
    def held_chunks(self) -> int:
        """Chunks not yet given to the packer."""
        return len(self._filling.spans)

    def read(self, source: Readable, progress: Callable[[int], None], forecast: Forecast | None = None) -> Stream:
        """Read a stream to its end; its chunks come back later, in order (see `Stream.outstanding`)."""
        stream = Stream()
        start = self._filling.fill
        while True:
            ended = self._fill(source, stream, progress)
            filling = self._filling
            if forecast is not None and not forecast.over:
                start = filling.add(
                    stream, start, forecast.cuts(filling.view[start : filling.fill], self._cutter, final=ended)
                )
            if forecast is None or forecast.over:
                start = filling.add(stream, start, self._cut(filling, start, ended=ended))
            if ended:
                break
            self._pass_on(start)
            start = 0
        stream.outstanding -= 1
        if self.held_chunks >= MAX_BATCH_CHUNKS:
            self.flush()
        return stream

    def _fill(self, source: Readable, stream: Stream, progress: Callable[[int], None]) -> bool:
        """Read until the buffer is full or the stream has ended; tell whether it has."""
        filling = self._filling
        while filling.fill < self._size:
            room = min(_READ_SIZE, self._size - filling.fill)
            count = source.readinto(filling.view[filling.fill : filling.fill + room])
            filling.fill += count
            stream.size += count
            progress(count)
            if count < room:
                return True
        return False

    def _cut(self, filling: _Filling, start: int, *, ended: bool) -> list[Cut]:
        size = filling.fill - start
        if ended and size <= self._cutter.parameters.min_size:
            return [Cut(size, None)] if size else []
        return [Cut(end, None) for end in self._cutter.cuts(filling.view[start : filling.fill], final=ended)]

    def flush(self) -> None:
        """Give what was read to the packer; only to be called between two streams."""
        self._pass_on(self._filling.fill)

    def _pass_on(self, keep_from: int) -> None:
        """Give the chunks in the buffer to the packer and go on in another one, with the bytes not cut yet."""
        full = self._filling
        packer = self._packer()
        self._filling = _Filling(self._buffers.take())
        rest = full.fill - keep_from
        self._filling.view[:rest] = full.view[keep_from : full.fill]
        self._filling.fill = rest
        owners, spans = full.owners, full.spans

        def done(results: Sequence[tuple[ChunkId, bool]]) -> None:
            for owner, (start, end), (chunk, is_new) in zip(owners, spans, results, strict=True):
                owner.take(chunk, end - start, is_new=is_new)

        packer.submit(Batch(full.buffer, spans, full.known, done))


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
