"""Chunk ↔ blob. A blob says how it was made: one codec byte, then that codec's payload (SPEC.md, "Blobs").

Encoders and decoders hold a zstd context and memory each, and belong to one thread at a time.
The only importer of `zstandard`.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Final

import zstandard

from cas_checkpoint.elements import Elements
from cas_checkpoint.errors import DamagedObject, UnsupportedStore
from cas_checkpoint.ids import Buffer
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.planes import (
    as_elements,
    blocks,
    differences,
    exponents,
    grouped,
    join,
    packed,
    rotated,
    rotated_back,
    split,
    sums,
    ungrouped,
    unpacked,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "BLOB_OVERHEAD",
    "DEFAULT_LEVEL",
    "MAX_CHUNK_SIZE",
    "Codec",
    "Decoder",
    "Encoder",
    "blob_check",
]

MAX_CHUNK_SIZE = 16 * 2**20
"""The largest chunk, in plain bytes, that any blob may hold."""
BLOB_OVERHEAD = 1
"""A blob is at most this many bytes larger than its chunk."""
DEFAULT_LEVEL = 1
"""The zstd level for chunks unless the caller asks for another."""

_SAMPLED_SIZE = 64 * 2**10  # smaller chunks are just tried
_SAMPLE_SIZE = 4 * 2**10
_WORTHWHILE = 256  # a compressed blob must save at least 1/256 of the chunk, or decoding it is wasted work

_SHAPE_WIDTH, _SHAPE_FLOAT, _SHAPE_ORDERED = 0b11, 0b100, 0b1000
_PART: Final = struct.Struct("<BI")  # coding and size of a part of a payload
_COUNT: Final = struct.Struct("<I")
_WINDOW_LOG = 17  # of frames without matches
_STATISTICS_SIZE = 4 * 2**10  # of a plane, looked at to choose its coding
_ESTIMATED_SIZE = 16 * 2**10  # of a chunk, looked at to tell what its planes would take
_INCOMPRESSIBLE = 7.9  # bits a byte
_MATCHED = 0.995  # of a plane; if one value is more frequent, matches are looked for
_PACKED_IN_TWO, _PACKED_IN_FOUR = (
    0.75,
    0.55,
)  # of a plane; if zeros are more frequent, a code for single bytes is too long
_UNSURE = 1.05  # a sample may be wrong by that much
_STRUCTURED = 0.6  # of a sample, when compressed; if less is left, matches do more than planes could
_PLANES_GAIN = 0.95
_NARROWER = 1.02
_ORDER_GAIN = 0.985  # of an unordered delta; to order takes time, and again whenever it is read


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
    TWO_BITS = 2
    FOUR_BITS = 3


_BITS: Final = {_Coding.TWO_BITS: 2, _Coding.FOUR_BITS: 4}


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

    def planes(self, count: int, width: int) -> list[NDArray[np.uint8]]:
        """Return planes for so many elements, likewise with number 0."""
        memory = self.elements(0, count, width).view(np.uint8)
        return [memory[number * count : (number + 1) * count] for number in range(width)]


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
        values = as_elements(sample, elements.width)
        size = _planes_size(split(rotated(values) if elements.is_float else values))
        return int(size * len(chunk) / max(1, len(sample)))

    def _as_planes(self, chunk: Buffer, elements: Elements) -> bytes:
        width, is_float = elements
        view = memoryview(chunk)
        values = as_elements(view, width)
        planes = self._memory.planes(len(values), width)
        for at in blocks(values):
            split(rotated(values[at]) if is_float else values[at], [plane[at] for plane in planes])
        return self._payload(width.bit_length() - 1 | (_SHAPE_FLOAT if is_float else 0), planes, view)

    def encode_delta(
        self, chunk: Buffer, base: Buffer, elements: Elements, *, ordered: bool, limit: int
    ) -> bytes | None:
        """Return the payload of `chunk` as a delta, None if it would not be smaller than `limit` bytes.

        Args:
            chunk: plain bytes.
            base: those of another chunk of the same size.
            elements: what both consist of.
            ordered: whether to spend more time for fewer bytes.
            limit: see above.
        """
        width, is_float = elements
        view, size = memoryview(chunk), len(chunk)
        if len(base) != size:
            return None
        sample = (as_elements(_middle(memoryview(data), width), width) for data in (chunk, base))
        sampled = split(differences(*sample, is_float=is_float))
        if _planes_size(sampled) * size > _UNSURE * limit * len(sampled[0]) * width:
            return None
        lower = as_elements(memoryview(base), width)
        count, planes = len(lower), self._memory.planes(len(lower), width)
        found = self._memory.elements(1, count, width)
        differences(as_elements(view, width), lower, is_float=is_float, out=found)
        shape = width.bit_length() - 1 | (_SHAPE_FLOAT if is_float else 0)
        payload = self._payload(shape, split(found, planes), view)
        if ordered:
            found = grouped(found, exponents(lower, is_float=is_float), self._memory.elements(2, count, width))
            other = self._payload(shape | _SHAPE_ORDERED, split(found, planes), view)
            payload = other if len(other) < _ORDER_GAIN * len(payload) else payload
        return payload if len(payload) < limit else None

    def _payload(self, shape: int, planes: Sequence[NDArray[np.uint8]], view: memoryview) -> bytes:
        parts: list[Buffer] = [bytes((shape,))]
        for plane in planes:
            coding, data = self._plane(plane)
            parts += [_PART.pack(coding, len(data)), data]
        parts.append(view[len(planes[0]) * len(planes) :])
        return b"".join(parts)

    def _plane(self, plane: NDArray[np.uint8]) -> tuple[_Coding, Buffer]:
        """Code a plane by what suits it, told from a sample of it."""
        counts = _counts(plane[:: max(1, len(plane) // _STATISTICS_SIZE)])
        total = counts.sum() or 1
        if counts.max() > _MATCHED * total:
            return self._tried(plane, self._zstd)
        zeros = counts[0] / total
        if zeros > _PACKED_IN_FOUR:
            coding = _Coding.TWO_BITS if zeros > _PACKED_IN_TWO else _Coding.FOUR_BITS
            return coding, self._packed(plane, _BITS[coding])
        if _bits(counts) > _INCOMPRESSIBLE:
            return _Coding.RAW, plane.data
        return self._tried(plane, self._without_matches())

    def _packed(self, plane: NDArray[np.uint8], bits: int) -> bytes:
        values, large = packed(plane, bits)
        coded = self._tried(values, self._without_matches()), self._tried(large, self._without_matches())
        (first, small), (second, rest) = coded
        return b"".join((_COUNT.pack(len(large)), _PART.pack(first, len(small)), small, bytes((second,)), rest))

    def _tried(self, plane: NDArray[np.uint8], compressor: zstandard.ZstdCompressor) -> tuple[_Coding, Buffer]:
        data = compressor.compress(plane.data) if len(plane) else b""
        return (_Coding.ZSTD, data) if 0 < len(data) < len(plane) else (_Coding.RAW, plane.data)

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


def _sizes_by_width(data: NDArray[np.uint8]) -> dict[int, float]:
    """Return the bytes that planes of elements of 1, 2, 4 and 8 bytes would take; of data of a multiple of 8 bytes."""
    places = np.arange(0, 8 * 256, 256, dtype=np.uint16)
    counts = np.bincount((data.reshape(-1, 8) + places).reshape(-1), minlength=8 * 256).reshape(8, 256)
    return {width: _size(counts.reshape(-1, width, 256).sum(axis=0)) for width in (1, 2, 4, 8)}


def _planes_size(planes: Sequence[NDArray[np.uint8]]) -> float:
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
        shape, planes, rest = self._parts(payload, plain_size, _SHAPE_FLOAT)
        values = join(planes, self._memory.elements(0, len(planes[0]), len(planes)))
        return _bytes(rotated_back(values) if shape & _SHAPE_FLOAT else values, rest)

    def _delta(self, payload: memoryview, plain_size: int, base: Buffer | None) -> Buffer:
        if base is None or len(base) != plain_size:
            raise DamagedObject(f"a delta of {plain_size} bytes without a base of that size")
        shape, planes, rest = self._parts(payload, plain_size, _SHAPE_FLOAT | _SHAPE_ORDERED)
        is_float = bool(shape & _SHAPE_FLOAT)
        lower, width = as_elements(memoryview(base), len(planes)), len(planes)
        found = join(planes, self._memory.elements(0, len(lower), width))
        if shape & _SHAPE_ORDERED:
            keys = exponents(lower, is_float=is_float)
            found = ungrouped(found, keys, self._memory.elements(1, len(lower), width))
        return _bytes(sums(found, lower, is_float=is_float), rest)

    def _parts(
        self, payload: memoryview, plain_size: int, flags: int
    ) -> tuple[int, list[NDArray[np.uint8]], memoryview]:
        """Return the shape of a payload, which has no other flags than these, its planes, and the bytes left over."""
        if not payload or payload[0] & ~(_SHAPE_WIDTH | flags):
            raise DamagedObject("planes of an unknown shape")
        shape, payload = payload[0], payload[1:]
        width = 1 << (shape & _SHAPE_WIDTH)
        planes = []
        for _ in range(width):
            coding, data, payload = _part(payload)
            planes.append(self._plane(coding, data, plain_size // width))
        if len(payload) != plain_size % width:
            raise DamagedObject(f"{len(payload)} bytes after the planes of a chunk of {plain_size}")
        return shape, planes, payload

    def _plane(self, coding: int, data: memoryview, count: int) -> NDArray[np.uint8]:
        """Return a plane of `count` bytes."""
        bits = _BITS.get(coding)  # type: ignore[call-overload]
        if bits is None:
            return self._simple(coding, data, count)
        if len(data) < _COUNT.size:
            raise DamagedObject("a packed plane that is cut short")
        (large_count,) = _COUNT.unpack_from(data)
        coding, small, rest = _part(data[_COUNT.size :])
        if large_count > count or not rest:
            raise DamagedObject("a packed plane that is cut short, or has more large values than values")
        plane = unpacked(self._simple(coding, small, -(-count * bits // 8)), bits, count)
        is_large = plane == (1 << bits) - 1
        if np.count_nonzero(is_large) != large_count:
            raise DamagedObject("a packed plane with another number of large values than it says")
        plane[is_large] = self._simple(rest[0], rest[1:], large_count)
        return plane

    def _simple(self, coding: int, data: memoryview, count: int) -> NDArray[np.uint8]:
        if coding == _Coding.ZSTD:
            return np.frombuffer(self._unzstd(data, count), np.uint8)
        if coding != _Coding.RAW or len(data) != count:
            raise DamagedObject(f"{len(data)} bytes in coding {coding} where {count} values belong")
        return np.frombuffer(data, np.uint8)


def _part(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Return coding and bytes of the first part, and what follows it."""
    if len(data) < _PART.size:
        raise DamagedObject("planes that are cut short")
    coding, size = _PART.unpack_from(data)
    if size > len(data) - _PART.size:
        raise DamagedObject("planes that are cut short")
    return coding, data[_PART.size :][:size], data[_PART.size + size :]


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
    return zlib.crc32(payload, zlib.crc32(bytes((codec,))))
