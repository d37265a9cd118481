"""Chunk ↔ blob. A blob says how it was made: one codec byte, then that codec's payload (SPEC.md, "Blobs").

Encoders and decoders hold a zstd context and memory each, and belong to one thread at a time.
The only importer of `zstandard`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cache
from math import log
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from cas_checkpoint.elements import Elements
from cas_checkpoint.errors import DamagedObject, UnsupportedStore
from cas_checkpoint.ids import Buffer
from cas_checkpoint.kernels import differences, join, key_counts, measure, pack, split, sums, unpack
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.planes import KEYS, low_size

try:
    from isal.isal_zlib import crc32  # the same, several times as fast
except ImportError:
    from zlib import crc32

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLOB_OVERHEAD",
    "DEFAULT_LEVEL",
    "MAX_BASE_RATIO",
    "MAX_CHUNK_SIZE",
    "Codec",
    "Decoder",
    "Encoder",
    "blob_check",
]

MAX_CHUNK_SIZE = 16 * 2**20
"""The largest chunk, in plain bytes, that any blob may hold."""
MAX_BASE_RATIO = 8
"""A base is at most so many times as large as a chunk that is a delta of a window of it."""
BLOB_OVERHEAD = 1
"""A blob is at most this many bytes larger than its chunk."""
DEFAULT_LEVEL = 1
"""The zstd level for chunks unless the caller asks for another."""

_SAMPLED_SIZE = 64 * 2**10  # smaller chunks are just tried
_SAMPLE_SIZE = 4 * 2**10
_WORTHWHILE = 256  # a compressed blob must save at least 1/256 of the chunk, or decoding it is wasted work

_SHAPE_WIDTH, _SHAPE_FLOAT, _SHAPE_WINDOW = 0b11, 0b100, 0b1000
_WINDOW: Final = struct.Struct("<I")  # where it begins in the base, bytes
_PART: Final = struct.Struct("<BI")  # coding and size of a part of a payload
_PACKED: Final = struct.Struct("<BBI")  # low bits, bits of a top, number of large values
_TOP_BITS: Final = (1, 2, 4, 8)
_LARGEST_TOP = 255  # of 8 bits
_WINDOW_LOG = 17  # of frames without matches
_STATISTICS_SIZE = 4 * 2**10  # of a plane, looked at to choose its coding
_ESTIMATED_SIZE = 16 * 2**10  # of a chunk, looked at to tell what its planes would take
_SAMPLED_VALUES = 2**10  # of a group, looked at to tell how large they are
_INCOMPRESSIBLE = 7.9  # bits a byte
_MATCHED = 0.995  # of a plane; if one value is more frequent, matches are looked for
_NEIGHBOURS = 15  # values that a half of a byte tells, and what is none of them
_MOSTLY_NEIGHBOURS = 0.99  # of a plane; if so many values are among these, a code for two of them at once is shorter
_PACKED_ZEROS = 0.55  # of a plane; if zeros are more frequent, a code for single bytes is too long
_SMALL_MEANS: Final = ((0.02, 1), (0.1, 2), (2.0, 4))  # below the first, tops of so many bits take the fewest bytes
_TOP_LENGTH = 6  # bits of a top that are worth coding; those below are noise
_FEW = 24  # bytes of which a frame is hardly ever shorter
_NOISE = 0.97  # of their bits; the lowest ones that take less when coded are none
_BEYOND_NOISE = 4  # bits, which look like noise too where there is any, and do not where numbers move alike
_FAR = 0.02  # of all values; if more are larger than a top can tell, so many more bits are noise:
_MORE_NOISE = 2
_GROUPS = 64  # a group has at least this part of all values
_MOST_GROUPS = 16  # more gain hardly a byte, and take long
_GROUP_SIZE = 2**12  # and so many, or what tells how it is coded takes more than that gains
_SAMPLED_GROUP = 2**9  # the same, of a sample
_UNSURE = 1.05  # a sample may be wrong by that much
_STRUCTURED = 0.6  # of a sample, when compressed; if less is left, matches do more than planes could
_PLANES_GAIN = 0.95
_NARROWER = 1.02


class Codec(IntEnum):
    """The first byte of a blob."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DELTA = 3


class _Coding(IntEnum):
    """How one part of a payload is coded."""

    RAW = 0
    ZSTD = 1
    ZEROS = 2
    PACKED = 3
    COUNTED_DOWN = 4


class _Memory:
    """Memory for arrays that is used again, so that its pages are touched once."""

    def __init__(self) -> None:
        self._parts: dict[int, NDArray[np.uint8]] = {}

    def elements(self, number: int, count: int, width: int) -> NDArray[np.unsignedinteger]:
        """Return so many elements of so many bytes; what was returned for the same number before is invalid then."""
        size = count * width
        part = self._parts.get(number)
        if part is None or len(part) < size:
            part = self._parts[number] = np.empty(size, np.uint8)
        return part[:size].view(f"<u{width}")

    def bytes(self, number: int, size: int) -> NDArray[np.uint8]:
        """Return so many bytes, likewise."""
        return self.elements(number, size, 1)


class Encoder:
    """Turns chunks into blobs."""

    def __init__(self, *, level: int = DEFAULT_LEVEL, planes: bool = True) -> None:
        """Make an encoder.

        Args:
            level: the zstd level, as `zstd` counts them (-100 to 22).
            planes: whether planes may be used.
        """
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
        self._planes = planes
        self._memory = _Memory()
        self._statistical: zstandard.ZstdCompressor | None = None

    def encode(self, chunk: Buffer, elements: Elements | None = None) -> tuple[Codec, Buffer]:
        """Return the codec and the payload for `chunk`; a raw payload is `chunk` itself, not a copy.

        Args:
            chunk: plain bytes.
            elements: what they consist of; None if that is not known.
        """
        size = len(chunk)
        codec, payload = Codec.RAW, chunk
        if self._planes and elements is not None and size >= elements.width:
            codec, payload = Codec.PLANES, self._as_planes(chunk, elements)
        elif size and (samples := self._samples(chunk, size)) is not None:
            width = self._width(samples)
            if width:
                codec, payload = Codec.PLANES, self._as_planes(chunk, Elements(width, is_float=False))
            else:
                codec, payload = Codec.ZSTD, self._zstd.compress(chunk)
        if len(payload) < size - size // _WORTHWHILE:
            return codec, payload
        return Codec.RAW, chunk

    def _samples(self, chunk: Buffer, size: int) -> list[tuple[memoryview, int]] | None:
        """Return samples of a large chunk, and how many bytes are left when they are compressed.

        Returns:
            None if none of them can be compressed, so that the rest need not be tried; what a sample cannot show is a
            repetition of random data further apart than the sample is long. No samples of a small chunk.
        """
        if size < _SAMPLED_SIZE:
            return []
        view = memoryview(chunk)
        places = (0, size // 2 & ~7, (size - _SAMPLE_SIZE) & ~7)
        samples = [view[at : at + _SAMPLE_SIZE] for at in places]
        found = [(sample, len(self._zstd.compress(sample))) for sample in samples]
        return None if all(left >= _SAMPLE_SIZE for _, left in found) else found

    def _width(self, samples: list[tuple[memoryview, int]]) -> int:
        """Return the width of the elements that a chunk seems to consist of, 0 if planes would not help it."""
        left = sum(size for _, size in samples)
        if not self._planes or left < _STRUCTURED * _SAMPLE_SIZE * len(samples) or not left:
            return 0
        sizes = _sizes_by_width(np.frombuffer(b"".join(sample for sample, _ in samples), np.uint8))
        bound = _PLANES_GAIN * min(left, sizes.pop(1))
        enough = min(bound, _NARROWER * min(sizes.values()))  # wider elements only seem to gain a little, always
        return next((width for width, size in sizes.items() if size < enough), 0)

    def estimate(self, chunk: Buffer, elements: Elements) -> int:
        """Return about how many bytes the planes of a chunk would take, told from a sample."""
        sample = _middle(memoryview(chunk), elements.width)
        values = _elements(sample, elements.width)
        size = _planes_size(self._split(values, elements))
        return int(size * len(chunk) / max(1, len(sample)))

    def _split(self, values: NDArray[np.unsignedinteger], elements: Elements) -> NDArray[np.uint8]:
        """Return the planes of elements, a row each; they are there until the next call."""
        planes = self._memory.bytes(0, len(values) * elements.width)
        split(values, planes, elements.is_float)
        return planes.reshape(elements.width, len(values))

    def _as_planes(self, chunk: Buffer, elements: Elements) -> bytes:
        view = memoryview(chunk)
        values = _elements(view, elements.width)
        parts: list[Buffer] = [_shape(elements)]
        for plane in self._split(values, elements):
            coding, data = self._plane(plane)
            parts += [_PART.pack(coding, len(data)), data]
        parts.append(view[values.nbytes :])
        return b"".join(parts)

    def _plane(self, plane: NDArray[np.uint8]) -> tuple[_Coding, Buffer]:
        """Code a plane by what suits it, told from a sample of it."""
        counts = _counts(plane[:: max(1, len(plane) // _STATISTICS_SIZE)])
        total = counts.sum() or 1
        if counts.max() > _MATCHED * total:
            return _tried(plane, self._zstd)
        if counts[0] > _PACKED_ZEROS * total:
            data = self._packed(plane, thorough=False)
            return (_Coding.PACKED, data) if len(data) < len(plane) else (_Coding.RAW, plane.data)
        if _bits(counts) > _INCOMPRESSIBLE:
            return _Coding.RAW, plane.data
        highest, share = _neighbours(counts)
        if share > _MOSTLY_NEIGHBOURS * total:
            return self._counted_down(plane, highest)
        return _tried(plane, self._without_matches())

    def _counted_down(self, plane: NDArray[np.uint8], highest: int) -> tuple[_Coding, Buffer]:
        """Code a plane of values of which most are a little below the highest one: two of them by one code."""
        values = self._memory.bytes(6, len(plane))
        np.subtract(np.uint8(highest), plane, out=values)
        data = bytes((highest,)) + self._packed_as(values, 0, 4, self._without_matches())
        return (_Coding.COUNTED_DOWN, data) if len(data) < len(plane) else (_Coding.RAW, plane.data)

    def encode_delta(
        self,
        chunk: Buffer,
        base: Buffer,
        elements: Elements,
        *,
        start: int = 0,
        thorough: bool,
        limit: int,
        sure: bool = False,
    ) -> bytes | None:
        """Return the payload of `chunk` as a delta, None if it would not be smaller than `limit` bytes.

        Args:
            chunk: plain bytes.
            base: those of another chunk, of the same size or larger.
            elements: what both consist of.
            start: where the window of the base begins that the chunk is compared with, bytes.
            thorough: whether to spend more time for fewer bytes.
            limit: see above.
            sure: whether it will be smaller, as far as the caller can know; then no sample need tell.
        """
        width, is_float = elements
        view, size = memoryview(chunk), len(chunk)
        window = memoryview(base)[start : start + size]
        if len(window) != size or len(base) > MAX_BASE_RATIO * size:
            return None
        values, lower = _elements(view, width), _elements(window, width)
        if not sure:
            middle = (_elements(_middle(data, width), width) for data in (view, window))
            if self._delta_size(*middle, is_float=is_float) * size > _UNSURE * limit:
                return None
        lasts, found = self._differences(values, lower, _GROUP_SIZE, is_float=is_float)
        shape = _shape(elements) if len(base) == size else _window_shape(elements, start)
        parts: list[Buffer] = [shape, bytes((len(lasts) - 1, *lasts))]
        left = limit - sum(map(len, parts)) - size % width
        for group in found:
            part = self._packed(group, thorough=thorough)
            left -= len(part)
            if left <= 0:
                return None
            parts.append(part)
        parts.append(view[values.nbytes :])
        return b"".join(parts)

    def _delta_size(
        self, values: NDArray[np.unsignedinteger], base: NDArray[np.unsignedinteger], *, is_float: bool
    ) -> float:
        """Return about how many bytes a delta would take, as a part of all, told from samples."""
        if not len(values):
            return 0.0
        _, found = self._differences(values, base, _SAMPLED_GROUP, is_float=is_float)
        return sum(_packed_size(group, _noise(group, _measured(group, 1)[0])) for group in found) / values.nbytes

    def _differences(
        self, values: NDArray[np.unsignedinteger], base: NDArray[np.unsignedinteger], least: int, *, is_float: bool
    ) -> tuple[list[int], list[NDArray[np.unsignedinteger]]]:
        """Return the last keys of groups of so many elements or more, and their differences, until the next call."""
        counts = _counts_of_keys(base, is_float=is_float)
        lasts = _last_keys(counts, least)
        groups = _Groups.of(counts, lasts)
        found = self._memory.elements(1, len(values), values.itemsize)
        differences(values, base, groups.numbers, groups.starts, found, is_float)
        return lasts, groups.parts(found)

    def _packed(self, values: NDArray[np.unsignedinteger], *, thorough: bool) -> bytes:
        """Divide values into low bits, tops and the rest of large ones, and code them.

        Args:
            values: what to code.
            thorough: try what else might take fewer bytes.
        """
        step = max(1, len(values) // _SAMPLED_VALUES)
        most, mean = _measured(values, step)
        if most:
            low_bits = _noise(values[::step], most)
            return self._packed_as(values, low_bits, _TOP_BITS[-1], self._without_matches())
        top_bits = next((bits for limit, bits in _SMALL_MEANS if mean < limit), _TOP_BITS[-1])
        is_sparse = top_bits == _TOP_BITS[0]  # long runs of zeros
        found = self._packed_as(values, 0, top_bits, self._zstd if is_sparse else self._without_matches())
        if thorough:
            others = (bits for bits in _TOP_BITS if bits != top_bits)
            tried = (self._packed_as(values, 0, bits, self._without_matches()) for bits in others)
            found = min(found, *tried, key=len)
        return found

    def _packed_as(
        self,
        values: NDArray[np.unsignedinteger],
        low_bits: int,
        top_bits: int,
        compressor: zstandard.ZstdCompressor,
    ) -> bytes:
        count, width = len(values), values.itemsize
        low = self._memory.bytes(2, low_size(count, low_bits))
        top = self._memory.bytes(3, -(-count * top_bits // 8))
        large = self._memory.elements(4, count, width)
        large = large[: pack(values, low_bits, top_bits, low, top, large)]
        parts: list[Buffer] = [_PACKED.pack(low_bits, top_bits, len(large)), low.data]
        coded = [_tried(top, compressor)]
        if len(large):
            planes = self._memory.bytes(5, large.nbytes)
            split(large, planes, False)  # noqa: FBT003 -- positional in the compiled one
            coded += [_tried(plane, self._without_matches()) for plane in planes.reshape(width, -1)]
        for coding, data in coded:
            parts += [_PART.pack(coding, len(data)), data]
        return b"".join(parts)

    def _without_matches(self) -> zstandard.ZstdCompressor:
        """Return what codes bytes by their frequencies alone, as far as zstd can be brought to that."""
        if self._statistical is None:
            parameters = zstandard.ZstdCompressionParameters(
                strategy=zstandard.STRATEGY_FAST,
                hash_log=6,
                min_match=7,
                window_log=_WINDOW_LOG,
                target_length=0,
                write_content_size=True,
                write_checksum=False,
            )
            self._statistical = zstandard.ZstdCompressor(compression_params=parameters)
        return self._statistical

    def blob(self, chunk: Buffer) -> bytes:
        """Return the whole blob for `chunk`."""
        codec, payload = self.encode(chunk)
        return bytes((codec,)) + payload


class _Groups(NamedTuple):
    """Keys next to one another, of elements whose differences are coded together.

    Attributes:
        numbers: for each key the number of its group.
        starts: where each group begins among all elements sorted by groups.
    """

    numbers: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, counts: NDArray[np.int64], lasts: Sequence[int]) -> _Groups:
        """Return the groups that end at these keys, of which there are so many each."""
        numbers = np.searchsorted(lasts, np.arange(KEYS)).astype(np.uint8)
        return cls(numbers, np.concatenate(([0], np.cumsum(counts)[lasts[:-1]])))

    def parts(self, found: NDArray[np.unsignedinteger]) -> list[NDArray[np.unsignedinteger]]:
        """Divide sorted elements into those of each group."""
        starts = self.starts.tolist()
        return [found[start:stop] for start, stop in zip(starts, [*starts[1:], len(found)], strict=True)]


def _counts_of_keys(base: NDArray[np.unsignedinteger], *, is_float: bool) -> NDArray[np.int64]:
    counts = np.empty(KEYS, np.int64)
    key_counts(base, counts, is_float)
    return counts


def _last_keys(counts: NDArray[np.int64], least: int) -> list[int]:
    """Divide keys that were counted into groups of enough elements, at least so many; return the last key of each."""
    enough = max(least, -(-int(counts.sum()) // _GROUPS))
    seen = np.flatnonzero(counts)
    pairs = list(zip(seen.tolist(), counts[seen].tolist(), strict=True))
    while True:
        lasts, gathered = list[int](), 0
        for key, count in pairs:
            gathered += count
            if gathered >= enough:
                lasts.append(key)
                gathered = 0
        if len(lasts) <= _MOST_GROUPS:
            return [*lasts[:-1], KEYS - 1]
        enough *= 2


def _shape(elements: Elements) -> bytes:
    return bytes((elements.width.bit_length() - 1 | (_SHAPE_FLOAT if elements.is_float else 0),))


def _window_shape(elements: Elements, start: int) -> bytes:
    return bytes((_shape(elements)[0] | _SHAPE_WINDOW,)) + _WINDOW.pack(start)


def _elements(data: memoryview, width: int) -> NDArray[np.unsignedinteger]:
    """Return the elements of so many bytes each that `data` begins with, without the bytes left over at its end."""
    return np.frombuffer(data, f"<u{width}", len(data) // width)


def _measured(values: NDArray[np.unsignedinteger], step: int) -> tuple[int, float]:
    """Look at every value after so many.

    Returns:
        How many of their lowest bits may be noise, told from how long they are on average; and the mean of what is
        small of them.
    """
    count = max(1, -(-len(values) // step))
    length, small = measure(values, step)
    return max(0, min(8 * values.itemsize - 8, length // count - _TOP_LENGTH)), small / count


def _noise(values: NDArray[np.unsignedinteger], most: int) -> int:
    """Return how many of the lowest bits of values are noise, given how many may be.

    Numbers that move alike, as by a decay, have none, however far they move; a few that move far make it more.
    """
    if not most:
        return 0
    looked = min(most + _BEYOND_NOISE, 8)
    lowest = np.bitwise_and(values, values.dtype.type((1 << looked) - 1)).astype(np.uint8)
    if _fair_size(_counts(lowest)) < _NOISE * len(values) * looked / 8:
        return 0
    far = np.count_nonzero(values >= values.dtype.type(_LARGEST_TOP << most))
    return most if far < _FAR * len(values) else min(most + _MORE_NOISE, 8 * values.itemsize - 8)


def _packed_size(values: NDArray[np.unsignedinteger], low_bits: int) -> float:
    """Return about how many bytes packed values take, told from a sample: it is what so many more would take each."""
    rest = np.right_shift(values, low_bits)
    parts = [np.minimum(rest, _LARGEST_TOP).astype(np.uint8)]
    large = rest[rest >= _LARGEST_TOP]
    if len(large):
        large -= large.dtype.type(_LARGEST_TOP)
        parts += [np.right_shift(large, 8 * place).astype(np.uint8) for place in range(values.itemsize)]
    return len(values) * low_bits / 8 + sum(_fair_size(_counts(part)) for part in parts)


def _fair_size(counts: NDArray[np.int64]) -> float:
    """Return the bytes that an entropy coder needs for bytes like those that were counted.

    A small sample seems to take less than that, as not all values are in it (Miller, *Note on the bias of information
    estimates*, 1955).
    """
    return _size(counts) + (np.count_nonzero(counts) - 1) / (16 * log(2))


def _tried(plane: NDArray[np.uint8], compressor: zstandard.ZstdCompressor) -> tuple[_Coding, Buffer]:
    """Compress a plane if that makes it smaller."""
    if not plane[:_FEW].any() and not plane.any():
        return _Coding.ZEROS, b""
    if len(plane) < _FEW:
        return _Coding.RAW, plane.data
    data = compressor.compress(plane.data)
    return (_Coding.ZSTD, data) if len(data) < len(plane) else (_Coding.RAW, plane.data)


def _middle(view: memoryview, width: int) -> memoryview:
    """Return a sample from the middle of a chunk, which begins with an element."""
    start = max(0, len(view) - _ESTIMATED_SIZE) // 2 // width * width
    return view[start : start + _ESTIMATED_SIZE]


def _counts(plane: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(plane, minlength=256)


def _bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy of bytes that were counted, in bits a byte."""
    total = int(counts.sum())
    return _size(counts) * 8 / total if total else 0.0


def _size(counts: NDArray[np.int64]) -> float:
    """Return the bytes that an entropy coder needs for bytes that were counted in rows, each with a code of its own."""
    table = _logarithms()
    return float(table[counts.sum(axis=-1)].sum() - table[counts].sum()) / 8


@cache
def _logarithms() -> NDArray[np.float64]:
    """Return n log2 n for each n up to more than the bytes of any sample."""
    numbers = np.arange(2 * _ESTIMATED_SIZE, dtype=np.float64)
    return numbers * np.log2(np.maximum(numbers, 1))


def _neighbours(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return which value has, with those that are next below it, the largest share, and that share; 255 is below 0."""
    sums = np.cumsum(np.concatenate((counts[-_NEIGHBOURS:], counts)))
    shares = sums[_NEIGHBOURS:] - sums[:-_NEIGHBOURS]
    highest = int(shares.argmax())
    return highest, int(shares[highest])


def _sizes_by_width(data: NDArray[np.uint8]) -> dict[int, float]:
    """Return the bytes that planes of elements of 1, 2, 4 and 8 bytes would take; of data of a multiple of 8 bytes."""
    places = np.arange(0, 8 * 256, 256, dtype=np.uint16)
    counts = np.bincount((data.reshape(-1, 8) + places).reshape(-1), minlength=8 * 256).reshape(8, 256)
    return {width: _size(counts.reshape(-1, width, 256).sum(axis=0)) for width in (1, 2, 4, 8)}


def _planes_size(planes: Iterable[NDArray[np.uint8]]) -> float:
    """Return about how many bytes planes take."""
    return sum(_size(_counts(plane)) for plane in planes)


class Decoder:
    """Turns blobs into chunks. Trusts nothing: sizes are checked before anything is allocated."""

    def __init__(self) -> None:
        """Make a decoder."""
        self._zstd = zstandard.ZstdDecompressor()
        self._memory = _Memory()

    def decode(self, blob: Buffer, plain_size: int, base: Buffer | None = None) -> Buffer:
        """Return the `plain_size` bytes that `blob` was made of.

        They are there until the next call, whose bytes go to the same memory; for a raw blob they are a view of it.

        Args:
            blob: codec and payload.
            plain_size: bytes of the chunk.
            base: the plain bytes of the chunk that it is a delta of, if it is one.

        Raises:
            DamagedObject: the blob is not what a writer makes of a chunk of that size.
            UnsupportedStore: the codec is not known to this version.
        """
        if not 0 <= plain_size <= MAX_CHUNK_SIZE:
            raise DamagedObject(f"a chunk cannot have {plain_size} bytes")
        view = memoryview(blob)
        if not view:
            raise DamagedObject("an empty blob")
        codec, payload = view[0], view[1:]
        if codec == Codec.RAW:
            if len(payload) != plain_size:
                raise DamagedObject(f"a raw blob of {len(payload)} bytes stands for a chunk of {plain_size}")
            return payload
        if codec == Codec.ZSTD:
            return self._unzstd(payload, plain_size)
        if codec == Codec.PLANES:
            return self._planes(payload, plain_size)
        if codec == Codec.DELTA:
            return self._delta(payload, plain_size, base)
        raise UnsupportedStore(f"a chunk is stored with codec {codec}, which this version does not know; update it")

    def _unzstd(self, payload: memoryview, plain_size: int) -> bytes:
        try:
            declared = zstandard.get_frame_parameters(payload)
            if declared.content_size != plain_size or not plain_size or declared.dict_id:
                raise DamagedObject(f"a zstd frame of {declared.content_size} bytes stands for a chunk of {plain_size}")
            return self._zstd.decompress(payload, allow_extra_data=False)  # and exactly as much as was declared
        except zstandard.ZstdError as error:
            raise DamagedObject(f"a zstd frame that cannot be decoded ({error})") from error

    def _planes(self, payload: memoryview, plain_size: int) -> Buffer:
        width, is_float, payload = _shaped(payload)
        planes = []
        for _ in range(width):
            coding, data, payload = _part(payload)
            planes.append(self._plane(coding, data, plain_size // width))
        _check_rest(payload, plain_size % width)
        values = self._memory.elements(0, plain_size // width, width)
        join(planes, values, is_float)
        return _bytes(values, payload)

    def _delta(self, payload: memoryview, plain_size: int, base: Buffer | None) -> Buffer:
        if base is None:
            raise DamagedObject(f"a delta of {plain_size} bytes without a base of that size")
        is_window = bool(payload) and bool(payload[0] & _SHAPE_WINDOW)
        width, is_float, payload = _shaped(payload, _SHAPE_WINDOW)
        window, payload = _window(payload, memoryview(base), plain_size, is_window=is_window)
        lasts, payload = _read_lasts(payload)
        lower = _elements(window, width)
        groups = _Groups.of(_counts_of_keys(lower, is_float=is_float), lasts)
        found = self._memory.elements(1, len(lower), width)
        for part in groups.parts(found):
            payload = self._packed(payload, part)
        _check_rest(payload, plain_size % width)
        values = self._memory.elements(0, len(lower), width)
        sums(found, lower, groups.numbers, groups.starts, values, is_float)
        return _bytes(values, payload)

    def _plane(self, coding: int, data: memoryview, count: int) -> NDArray[np.uint8]:
        """Return a plane of `count` bytes."""
        if coding not in {_Coding.PACKED, _Coding.COUNTED_DOWN}:
            return self._simple(coding, data, count)
        plane = np.empty(count, np.uint8)
        is_counted = coding == _Coding.COUNTED_DOWN
        _check_rest(self._packed(data[is_counted:], plane), 0)
        if is_counted:
            np.subtract(np.uint8(data[0]), plane, out=plane)
        return plane

    def _packed(self, payload: memoryview, out: NDArray[np.unsignedinteger]) -> memoryview:
        """Fill `out` with packed values that a payload begins with; return what follows them."""
        count, width = len(out), out.itemsize
        if len(payload) < _PACKED.size:
            raise DamagedObject("packed values that are cut short")
        low_bits, top_bits, large_count = _PACKED.unpack_from(payload)
        if low_bits > 8 * width - 8 or top_bits not in _TOP_BITS or large_count > count:
            raise DamagedObject("packed values of an unknown shape")
        size = low_size(count, low_bits)
        if size > len(payload) - _PACKED.size:
            raise DamagedObject("packed values that are cut short")
        low = np.frombuffer(payload, np.uint8, size, _PACKED.size)
        coding, data, payload = _part(payload[_PACKED.size + size :])
        top = self._simple(coding, data, -(-count * top_bits // 8))
        planes = []
        for _ in range(width if large_count else 0):
            coding, data, payload = _part(payload)
            planes.append(self._simple(coding, data, large_count))
        large = self._memory.elements(2, large_count, width)
        if large_count:
            join(planes, large, False)  # noqa: FBT003 -- positional in the compiled one
        if unpack(low, top, large, low_bits, top_bits, out) != large_count:
            raise DamagedObject("packed values of which more or fewer are large than it says")
        return payload

    def _simple(self, coding: int, data: memoryview, count: int) -> NDArray[np.uint8]:
        if coding == _Coding.ZSTD:
            return np.frombuffer(self._unzstd(data, count), np.uint8)
        if coding == _Coding.ZEROS and not data:
            return np.zeros(count, np.uint8)
        if coding != _Coding.RAW or len(data) != count:
            raise DamagedObject(f"{len(data)} bytes in coding {coding} where {count} values belong")
        return np.frombuffer(data, np.uint8)


def _shaped(payload: memoryview, others: int = 0) -> tuple[int, bool, memoryview]:
    """Return the width of the elements, whether they are floats, and what follows; bits of `others` may be set too."""
    if not payload or payload[0] & ~(_SHAPE_WIDTH | _SHAPE_FLOAT | others):
        raise DamagedObject("elements of an unknown shape")
    return 1 << (payload[0] & _SHAPE_WIDTH), bool(payload[0] & _SHAPE_FLOAT), payload[1:]


def _window(payload: memoryview, base: memoryview, size: int, *, is_window: bool) -> tuple[memoryview, memoryview]:
    """Return the bytes of the base that a delta of `size` bytes is a delta of, and what follows in the payload."""
    if not is_window:
        if len(base) != size:
            raise DamagedObject(f"a delta of {size} bytes without a base of that size")
        return base, payload
    if len(payload) < _WINDOW.size:
        raise DamagedObject("a delta that is cut short")
    (start,) = _WINDOW.unpack_from(payload)
    if not size < len(base) <= MAX_BASE_RATIO * size or start > len(base) - size:
        raise DamagedObject(f"a delta of {size} bytes, of a window that is not in its base of {len(base)}")
    return base[start : start + size], payload[_WINDOW.size :]


def _read_lasts(payload: memoryview) -> tuple[Sequence[int], memoryview]:
    """Return the last keys of groups, and what follows them."""
    count = 1 + payload[0] if payload else 0
    lasts = payload[1 : 1 + count].tolist()
    if not count or len(lasts) != count or lasts[-1] != KEYS - 1 or any(map(int.__ge__, lasts, lasts[1:])):
        raise DamagedObject("a delta whose groups are none")
    return lasts, payload[1 + count :]


def _part(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Return coding and bytes of the first part, and what follows it."""
    if len(data) < _PART.size:
        raise DamagedObject("a part that is cut short")
    coding, size = _PART.unpack_from(data)
    if size > len(data) - _PART.size:
        raise DamagedObject("a part that is cut short")
    return coding, data[_PART.size :][:size], data[_PART.size + size :]


def _check_rest(rest: memoryview, size: int) -> None:
    """Raise `DamagedObject` unless so many bytes are left over."""
    if len(rest) != size:
        raise DamagedObject(f"{len(rest)} bytes are left over where {size} belong")


def _bytes(values: NDArray[np.unsignedinteger], rest: memoryview) -> Buffer:
    """Return the bytes of elements, and those left over."""
    return values.tobytes() + rest if rest else values.view(np.uint8).data


def blob_check(codec: int, payload: Buffer) -> int:
    """Return the 32-bit check of a blob as it stands in a pack's footer.

    Zero for a raw blob, whose bytes the chunk id covers already; else CRC-32 (IEEE 802.3) of codec byte and
    payload, because some bits of a compressed frame do not change what it decodes to.
    """
    if codec == Codec.RAW:
        return 0
    return crc32(payload, crc32(bytes((codec,))))
