"""Chunk ↔ blob. A blob says how it was made: one codec byte, then that codec's payload (SPEC.md, "Blobs").

Encoders and decoders hold a zstd context each and belong to one thread at a time.
The only importer of `zstandard`.
"""

from __future__ import annotations

import zlib
from enum import IntEnum

import zstandard

from cas_checkpoint.elements import Elements
from cas_checkpoint.errors import DamagedObject, UnsupportedStore
from cas_checkpoint.ids import Buffer

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


class Codec(IntEnum):
    """The first byte of a blob."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DELTA = 3


class Encoder:
    """Turns chunks into blobs."""

    def __init__(self, *, level: int = DEFAULT_LEVEL) -> None:
        """Make an encoder.

        Args:
            level: the zstd level, as `zstd` counts them (-100 to 22).
        """
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)

    def encode(self, chunk: Buffer) -> tuple[Codec, Buffer]:
        """Return the codec and the payload for `chunk`; a raw payload is `chunk` itself, not a copy."""
        size = len(chunk)
        if size and not self._seems_random(chunk, size):
            payload = self._zstd.compress(chunk)
            if len(payload) < size - size // _WORTHWHILE:
                return Codec.ZSTD, payload
        return Codec.RAW, chunk

    def _seems_random(self, chunk: Buffer, size: int) -> bool:
        """Tell whether none of a large chunk's samples can be compressed, so that it need not be tried with the rest.

        What a sample cannot show is a repetition of random data further apart than the sample is long.
        """
        if size < _SAMPLED_SIZE:
            return False
        view = memoryview(chunk)
        samples = (view[at : at + _SAMPLE_SIZE] for at in (0, size // 2, size - _SAMPLE_SIZE))
        return all(len(self._zstd.compress(sample)) >= _SAMPLE_SIZE for sample in samples)

    def encode_delta(
        self, chunk: Buffer, base: Buffer, elements: Elements | None, *, ordered: bool, limit: int
    ) -> bytes | None:
        """Stand-in, to be thrown away: the differing bits as one zstd frame."""
        del elements, ordered
        frame = self._zstd.compress(_differences(chunk, base))
        payload = b"\0\1" + len(frame).to_bytes(4, "little") + frame
        return payload if len(payload) < limit else None

    def blob(self, chunk: Buffer) -> bytes:
        """Return the whole blob for `chunk`."""
        codec, payload = self.encode(chunk)
        return bytes((codec,)) + payload


class Decoder:
    """Turns blobs into chunks. Trusts nothing: sizes are checked before anything is allocated."""

    def __init__(self) -> None:
        """Make a decoder."""
        self._zstd = zstandard.ZstdDecompressor()

    def decode(self, blob: Buffer, plain_size: int, base: Buffer | None = None) -> Buffer:
        """Return the `plain_size` bytes that `blob` was made of (for a raw blob a view of it, not a copy).

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
        if codec == Codec.DELTA:
            if base is None or len(base) != plain_size:
                raise DamagedObject("a delta without its base")
            return _summed(self._unzstd(payload[6:], plain_size), base)
        raise UnsupportedStore(f"a chunk is stored with codec {codec}, which this version does not know; update it")

    def _unzstd(self, payload: memoryview, plain_size: int) -> bytes:
        try:
            declared = zstandard.get_frame_parameters(payload)
            if declared.content_size != plain_size or not plain_size or declared.dict_id:
                raise DamagedObject(f"a zstd frame of {declared.content_size} bytes stands for a chunk of {plain_size}")
            return self._zstd.decompress(payload, allow_extra_data=False)  # and exactly as much as was declared
        except zstandard.ZstdError as error:
            raise DamagedObject(f"a zstd frame that cannot be decoded ({error})") from error


def _differences(chunk: Buffer, base: Buffer) -> bytes:
    pairs = (((one - other) & 255, one) for one, other in zip(bytes(chunk), bytes(base), strict=True))
    return bytes((2 * d ^ (255 if d & 128 else 0)) & 255 for d, _ in pairs)


def _summed(differences: Buffer, base: Buffer) -> bytes:
    pairs = zip(bytes(differences), bytes(base), strict=True)
    return bytes(((z >> 1 ^ (255 if z & 1 else 0)) + other) & 255 for z, other in pairs)


def blob_check(codec: int, payload: Buffer) -> int:
    """Return the 32-bit check of a blob as it stands in a pack's footer.

    Zero for a raw blob, whose bytes the chunk id covers already; else CRC-32 (IEEE 802.3) of codec byte and
    payload, because some bits of a compressed frame do not change what it decodes to.
    """
    if codec == Codec.RAW:
        return 0
    return zlib.crc32(payload, zlib.crc32(bytes((codec,))))
