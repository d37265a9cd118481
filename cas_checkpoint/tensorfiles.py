"""The tensors of one file of a snapshot: what there is, and their values; only the chunks that hold them are read."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cas_checkpoint.dtypes import array_type, item_size, raw_type
from cas_checkpoint.errors import EntryNotFound, InvalidArgument, InvalidArgumentType
from cas_checkpoint.filereader import SnapshotFile
from cas_checkpoint.ids import Buffer, ChunkId
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import ChunkRef, Entry
from cas_checkpoint.reading import Request, SnapshotReader
from cas_checkpoint.tensors import Layout, Tensor, find_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FileRanges",
    "Piece",
    "TensorFile",
    "TensorInfo",
    "TensorSource",
    "is_packed",
    "not_a_container",
    "read_from",
]

_FAR_READERS: Final = 8
_SMALL_CHUNK: Final = 16 * 2**10
_MAX_SMALL_SIZE: Final = 16 * 2**20
_MAX_RUNS: Final = 2**20  # of a tensor whose elements do not lie together; with more of them all between is read


class TensorInfo(NamedTuple):
    """A tensor of a snapshot's file.

    Attributes:
        name: its name in the file.
        dtype: the name that numpy or ml_dtypes has for its type, such as `float32` or `bfloat16`.
        shape: lengths of its axes.
        size: bytes of its elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Piece(NamedTuple):
    """A part of a range of a file that lies in one chunk or hole. Sizes and places are bytes.

    Attributes:
        at: where it begins, from the beginning of the range.
        size: its size.
        number: which chunk of the file's content holds it, -1 for a hole.
        skip: where it begins in the chunk.
    """

    at: int
    size: int
    number: int
    skip: int


class TensorSource(Protocol):
    """What has tensors: a file, or the directory of a distributed checkpoint."""

    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return the tensors, in the order in which they are stored."""

    def info(self, name: str) -> TensorInfo | None:
        """Return what is known of a tensor, None if there is none of that name."""

    def read(self, name: str, rows: tuple[int, int] | None, out: NDArray[Any]) -> None:
        """Fill an array.

        Args:
            name: the name of one of the tensors.
            rows: the first index along the first axis and the one after the last; None for all.
            out: C-contiguous, of the shape of what is to be read.
        """


class TensorFile:
    """A container of tensors in a snapshot, its layout read. Safe to use from several threads.

    Attributes:
        file: its bytes.
        layout: where the tensors lie.
    """

    def __init__(self, file: FileRanges, layout: Layout) -> None:
        """Take a file and its layout; made by `open` only."""
        self.file, self.layout = file, layout
        self._tensors = {tensor.name: tensor for tensor in layout.tensors}

    @classmethod
    def open(cls, reader: SnapshotReader, entry: Entry) -> TensorFile | None:
        """Read where the tensors of a file lie; return None if it is no container of tensors.

        Args:
            reader: a reader of the snapshot.
            entry: a file with content.

        Raises:
            DamagedStore: something that it needs is damaged or missing.
        """
        file = FileRanges(reader, entry)
        layout = find_tensors(file.read_at, entry.size)
        return None if layout is None else cls(file, layout)

    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return the tensors, in the order in which they are stored."""
        return tuple(map(_info, self.layout.tensors))

    def info(self, name: str) -> TensorInfo | None:
        """Return what is known of a tensor, None if there is none of that name."""
        tensor = self._tensors.get(name)
        return None if tensor is None else _info(tensor)

    def tensor(self, name: str) -> Tensor:
        """Return where a tensor lies; `name` must be one of the tensors' names."""
        return self._tensors[name]

    def within(self, chunks: Collection[ChunkId]) -> tuple[str, ...]:
        """Return the names of the tensors that begin, end or lie in any of these chunks of the file."""
        pieces = [(piece.at, piece.at + piece.size) for piece in self.file.pieces_of(chunks)]
        ends = [end for _, end in pieces]
        names = []
        for tensor in self.layout.tensors:
            first, last = (tensor.offset + place * item_size(tensor.dtype) for place in span(tensor))
            number = bisect_right(ends, first)
            if all(tensor.shape) and number < len(pieces) and pieces[number][0] < last:
                names.append(tensor.name)
        return tuple(names)

    def read(self, name: str, rows: tuple[int, int] | None, out: NDArray[Any]) -> None:
        """Fill an array; see `TensorSource.read`."""
        tensor = self._tensors[name]
        self.file.fill_array(tensor if rows is None else sliced(tensor, rows), out)


class FileRanges(SnapshotFile):
    """A file of a snapshot of which whole ranges are read at once.

    All but `read_at` may be called by several threads at once.
    """

    def __init__(self, reader: SnapshotReader, entry: Entry) -> None:
        """Open `entry`, which must be a file with content."""
        super().__init__(reader, entry)
        self._small: dict[int, bytes] | None = None

    def read_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer only at the end; chunks are kept for the next call."""
        self.seek(offset)
        parts = []
        while size > 0 and (part := self.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def starts(self) -> dict[int, ChunkRef]:
        """Return the chunks of the file's data, by where they begin in it."""
        return {end - ref.size: ref for end, ref in zip(self._ends, self._refs, strict=True)}

    def _chunk(self, number: int) -> Buffer:
        """Return a chunk.

        Small ones lie between tensors and tell what these are: where requests take long all are fetched at once.
        """
        if self._reader.near or self._refs[number].size > _SMALL_CHUNK:
            return super()._chunk(number)
        if self._small is None:
            self._small = self._all_small()
        return self._small[number] if number in self._small else super()._chunk(number)

    def _all_small(self) -> dict[int, bytes]:
        """Fetch all small chunks, if they are not too many."""
        numbers = [number for number, ref in enumerate(self._refs) if ref.size <= _SMALL_CHUNK]
        if sum(self._refs[number].size for number in numbers) > _MAX_SMALL_SIZE:
            return {}
        found: dict[int, bytes] = {}

        def fetch(request: Request) -> None:
            found.update((numbers[row.number], bytes(plain)) for row, plain in self._reader.fetch(request))

        self._each(self._reader.plan([self._refs[number] for number in numbers]), fetch)
        return found

    def is_whole(self, piece: Piece) -> bool:
        """Tell whether a piece is a whole chunk."""
        return piece.number >= 0 and piece.size == self._refs[piece.number].size

    def identity(self, piece: Piece, at: int) -> tuple[bytes, int]:
        """Return what tells the bytes of a piece from `at` on, a place in the range, from all others.

        That is the id of a chunk, empty for a hole, and a place in the chunk.
        """
        return (self._refs[piece.number].chunk, piece.skip + at - piece.at) if piece.number >= 0 else (b"", 0)

    def pieces_of(self, chunks: Collection[ChunkId]) -> Iterator[Piece]:
        """Yield the pieces of the file that are any of these chunks, in order."""
        pieces = self.pieces(0, self._size)
        yield from (piece for piece in pieces if piece.number >= 0 and self._refs[piece.number].chunk in chunks)

    def pieces(self, offset: int, size: int) -> Iterator[Piece]:
        """Yield what a range consists of, in order."""
        position, end = offset, offset + size
        first = max(0, bisect_right(self._extents, (offset, 2**63)) - 1)
        for (start, length), data_start in zip(self._extents[first:], self._starts[first:], strict=False):
            if start >= end:
                break
            if position < start:
                yield Piece(position - offset, start - position, -1, 0)
                position = start
            until = min(end, start + length)
            if position < until:
                yield from self._data_pieces(position - offset, data_start + position - start, until - position)
                position = until
        if position < end:
            yield Piece(position - offset, end - position, -1, 0)

    def _data_pieces(self, at: int, position: int, size: int) -> Iterator[Piece]:
        """Yield the pieces of a range of the file's data, which has no holes."""
        number = bisect_right(self._ends, position)
        while size:
            skip = position - (self._ends[number] - self._refs[number].size)
            length = min(size, self._refs[number].size - skip)
            yield Piece(at, length, number, skip)
            at, position, size, number = at + length, position + length, size - length, number + 1

    def fill(self, offset: int, out: memoryview, runs: _Runs | None = None) -> None:
        """Fill `out` with the bytes from `offset` on.

        Args:
            offset: where they begin in the file.
            out: what to fill.
            runs: what is needed of them; the rest of `out` may be left as it is.
        """
        pieces = []
        for piece in self.pieces(offset, len(out)):
            if piece.number < 0:
                np.frombuffer(out[piece.at : piece.at + piece.size], np.uint8)[:] = 0
            elif runs is None or runs.touch(piece.at, piece.size):
                pieces.append(piece)
        requests = self._reader.plan([self._refs[piece.number] for piece in pieces])
        self._each(requests, partial(self._fetch, pieces, out))

    def _each(self, requests: Sequence[Request], fetch: Callable[[Request], None]) -> None:
        """Fetch requests, several at once."""
        readers = min(len(requests), (os.cpu_count() or 1) if self._reader.near else _FAR_READERS)
        if readers <= 1:
            for request in requests:
                fetch(request)
            return
        with ThreadPoolExecutor(readers, "cas-checkpoint-tensors") as pool:
            for _ in pool.map(fetch, requests):
                pass

    def fill_array(self, tensor: Tensor, out: NDArray[Any]) -> None:
        """Fill an array with a tensor of the file, or with a part of one.

        Args:
            tensor: where it lies.
            out: C-contiguous, of the tensor's shape, its elements of the same width.
        """
        if not out.size:
            return
        if is_packed(tensor.shape, tensor.strides):
            self.fill(tensor.offset, out.reshape(-1).view(np.uint8).data)
            return
        width = out.dtype.itemsize
        low, high = span(tensor)
        memory = np.empty((high - low) * width, np.uint8)
        self.fill(tensor.offset + low * width, memory.data, _runs(tensor, width))
        strides = tuple(stride * width for stride in tensor.strides)
        out[...] = np.ndarray(out.shape, out.dtype, memory, -low * width, strides)

    def _fetch(self, pieces: Sequence[Piece], out: memoryview, request: Request) -> None:
        for row, plain in self._reader.fetch(request):
            piece = pieces[row.number]
            out[piece.at : piece.at + piece.size] = memoryview(plain)[piece.skip : piece.skip + piece.size]


# --- tensors whose elements do not lie together -------------------------------------------------


class _Runs:
    """Ranges of bytes of one size that are needed, which may overlap."""

    def __init__(self, starts: Sequence[int], size: int) -> None:
        """Take where they begin, in order, and their size in bytes."""
        self._starts, self._size = starts, size

    def touch(self, at: int, size: int) -> bool:
        """Tell whether a range has anything of what is needed."""
        number = bisect_left(self._starts, at + size) - 1  # the last that begins before the range ends
        return number >= 0 and self._starts[number] + self._size > at


def _info(tensor: Tensor) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.dtype, tensor.shape, prod(tensor.shape) * item_size(tensor.dtype))


def is_packed(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether elements lie one after another in the order of their indexes."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def sliced(tensor: Tensor, rows: tuple[int, int]) -> Tensor:
    """Return where a slice of a tensor along its first axis lies: from one index to before the other."""
    first, end = rows
    offset = tensor.offset + first * tensor.strides[0] * item_size(tensor.dtype)
    return tensor._replace(shape=(end - first, *tensor.shape[1:]), offset=offset)


def span(tensor: Tensor) -> tuple[int, int]:
    """Return where the lowest element of a tensor lies and where the highest ends, in elements from its first."""
    reaches = [(length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)]
    return sum(reach for reach in reaches if reach < 0), sum(reach for reach in reaches if reach > 0) + 1


def _runs(tensor: Tensor, width: int) -> _Runs | None:
    """Return which bytes of a tensor's span belong to it, whatever the signs of its strides.

    None if these would be too many runs, or just one.
    """
    axes = sorted((abs(stride), length) for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    run = 1  # elements that lie together
    outer: list[tuple[int, int]] = []
    for stride, length in axes:
        if length == 1 or stride == 0:
            continue
        if stride == run and not outer:
            run *= length
        else:
            outer.append((stride, length))
    if not outer or prod(length for _, length in outer) > _MAX_RUNS:
        return None
    starts = np.zeros(1, np.int64)
    for stride, length in outer:
        starts = (starts[:, None] + np.arange(length, dtype=np.int64) * (stride * width)).reshape(-1)
    starts.sort()
    return _Runs(starts.tolist(), run * width)


# --- for users ----------------------------------------------------------------------------------


def read_from(
    source: TensorSource,
    place: str,
    name: str,
    *,
    start: int | None = None,
    stop: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Read a tensor or a slice of it.

    Args:
        source: what has it.
        place: the path of that, for messages.
        name: the tensor's name.
        start: the first index along the first axis; 0 if None.
        stop: the index after the last; the length of the axis if None.
        out: what to fill and return; a new array if None.

    Raises:
        EntryNotFound: there is no tensor of that name.
        InvalidArgument: the slice does not lie in the tensor, or `out` does not fit what is read.
        DamagedStore: something that it needs is damaged or missing.
    """
    if not isinstance(name, str):
        raise InvalidArgumentType(f"a tensor's name must be str, not {name!r}")
    info = source.info(name)
    if info is None:
        raise EntryNotFound(f"{place!r} holds no tensor {name!r}{_hint(name, source)}")
    rows = _rows(info, start, stop)
    shape = info.shape if rows is None else (rows[1] - rows[0], *info.shape[1:])
    if out is None:
        try:
            out = np.empty(shape, array_type(info.dtype))
        except ValueError as error:  # more axes than numpy has
            raise InvalidArgument(f"{name!r} cannot be an array: {error}") from error
    else:
        _check_out(out, info.dtype, shape)
    source.read(name, rows, out)
    return out


def _hint(name: str, source: TensorSource) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 -- for an error alone

    close = get_close_matches(name, [info.name for info in source.tensors()], n=3, cutoff=0.5)
    return f"; the closest are {', '.join(map(repr, close))}" if close else ""


def _rows(info: TensorInfo, start: int | None, stop: int | None) -> tuple[int, int] | None:
    """Return the slice along the first axis, None for all."""
    if start is None and stop is None:
        return None
    for value in (start, stop):
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise InvalidArgumentType(f"the ends of a slice must be integers, not {value!r}")
    if not info.shape:
        raise InvalidArgument(f"{info.name!r} is a scalar, which has no slices")
    first, end = 0 if start is None else int(start), info.shape[0] if stop is None else int(stop)
    if not 0 <= first <= end <= info.shape[0]:
        raise InvalidArgument(f"{info.name!r} has {info.shape[0]} rows; {first}:{end} is no slice of them")
    return first, end


def _check_out(out: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray):
        raise InvalidArgumentType(f"out must be a numpy array, not {type(out).__name__}")
    if out.dtype not in (array_type(dtype), raw_type(dtype)):
        raise InvalidArgument(f"out has the type {out.dtype}; what is read has {array_type(dtype)}")
    if out.shape != shape:
        raise InvalidArgument(f"out has the shape {out.shape}; what is read has {shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidArgument("out must be C-contiguous and writable")


def not_a_container(place: str) -> EntryNotFound:
    """Return the error that tells that a file holds no tensors."""
    return EntryNotFound(f"{place!r} is no container of tensors that is known here, or is damaged")
