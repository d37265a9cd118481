"""Compares this package's coding of tensors with others', in memory, on one core, in turn: codecs.py FILE [PARENT].

FILE has tensors in it; of each type of numbers at most 64 MiB are taken, and a float16 copy of float32 is made
besides. Alone, it is coded by ZipNN too (`pip install zipnn`). With PARENT, an earlier version of it, the differences
are coded: by BitX's method in our words (XOR, byte planes, zstd 3), and by lmz (`pip install lmzip`) if that is there.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cas_checkpoint.codecs import Codec, Decoder, Encoder
from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.tensors import find_tensors

CHUNK_SIZE, MOST, ROUNDS = 2**20, 64 * 2**20, 5
LONG_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

T = TypeVar("T")


def numbers_in(path: str) -> dict[str, bytes]:
    """Return the bytes of the tensors of each type."""
    data = Path(path).read_bytes()
    layout = find_tensors(lambda offset, size: data[offset : offset + size], len(data))
    found: defaultdict[str, bytes] = defaultdict(bytes)
    for tensor in layout.tensors if layout else ():
        if tensor.dtype in LONG_NAMES.values() and len(found[tensor.dtype]) < MOST:
            size = prod(tensor.shape) * ELEMENTS[tensor.dtype].width
            found[tensor.dtype] += data[tensor.offset : tensor.offset + size]
    if "float32" in found:
        found["float16"] += np.frombuffer(found["float32"], "<f4").astype("<f2").tobytes()
    return {kind: data[:MOST] for kind, data in found.items()}


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return the least CPU time of some rounds, and what came out."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        result = action()
        times.append(time.process_time() - start)
    return min(times), result


def ours(data: bytes, kind: str) -> tuple[int, float, float]:
    """Return the bytes when coded, and the time that coding and decoding take."""
    encoder, decoder, elements = Encoder(), Decoder(), ELEMENTS[kind]
    chunks = [data[at : at + CHUNK_SIZE] for at in range(0, len(data), CHUNK_SIZE)]
    coding, coded = timed(lambda: [encoder.encode(chunk, elements) for chunk in chunks])
    blobs = [bytes((codec,)) + bytes(payload) for codec, payload in coded]
    pairs = list(zip(blobs, chunks, strict=True))
    decoding, _ = timed(lambda: [decoder.decode(blob, len(chunk)) for blob, chunk in pairs])
    if any(bytes(decoder.decode(blob, len(chunk))) != chunk for blob, chunk in pairs):
        raise RuntimeError("a chunk did not come back")
    return sum(map(len, blobs)), coding, decoding


def theirs(data: bytes, kind: str) -> tuple[int, float, float]:
    """Return the same of ZipNN."""
    coder: Any = import_module("zipnn").ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
    coding, coded = timed(lambda: bytes(coder.compress(bytearray(data))))
    decoding, plain = timed(lambda: coder.decompress(bytearray(coded)))
    if bytes(plain) != data:
        raise RuntimeError("ZipNN did not give the bytes back")
    return len(coded), coding, decoding


def our_deltas(data: bytes, parent: bytes, kind: str, *, small: bool) -> tuple[int, float, float]:
    """Return the same of differences; a chunk of which none is smaller is coded as it is."""
    encoder, decoder, elements = Encoder(), Decoder(), ELEMENTS[kind]
    chunks = _pairs(data, parent, CHUNK_SIZE)

    def encode(chunk: bytes, base: bytes) -> bytes:
        limit = encoder.estimate(chunk, elements)
        delta = encoder.encode_delta(chunk, base, elements, thorough=small, limit=limit)
        if delta is not None:
            return bytes((Codec.DELTA,)) + delta
        codec, payload = encoder.encode(chunk, elements)
        return bytes((codec,)) + bytes(payload)

    coding, blobs = timed(lambda: [encode(*pair) for pair in chunks])
    coded = list(zip(blobs, chunks, strict=True))
    decoding, _ = timed(lambda: [decoder.decode(blob, len(base), base) for blob, (_, base) in coded])
    if any(bytes(decoder.decode(blob, len(base), base)) != chunk for blob, (chunk, base) in coded):
        raise RuntimeError("a chunk did not come back")
    return sum(map(len, blobs)), coding, decoding


def bitx_deltas(data: bytes, parent: bytes, kind: str) -> tuple[int, float, float]:
    """Return the same of XOR, byte planes and zstd, as in the trajectories."""
    sys.path.append(str(Path(__file__).parent / "workers"))
    coder: Any = import_module("chained").BitX()
    piece, name = import_module("pieces").Piece, next(name for name, long in LONG_NAMES.items() if long == kind)
    chunks = [(piece("", "", name, chunk), base) for chunk, base in _pairs(data, parent, CHUNK_SIZE)]
    coding, coded = timed(lambda: [coder.encode(chunk, base) for chunk, base in chunks])
    pairs = list(zip(coded, chunks, strict=True))
    decoding, plain = timed(lambda: [coder.decode(blob, chunk, base) for blob, (chunk, base) in pairs])
    if b"".join(plain) != data:
        raise RuntimeError("BitX's method did not give the bytes back")
    return sum(map(len, coded)), coding, decoding


def lmz_deltas(data: bytes, parent: bytes, kind: str) -> tuple[int, float, float]:
    """Return the same of lmz, in chunks of its own size."""
    codec: Any = import_module("lmz.codec")
    width = ELEMENTS[kind].width
    form = codec.KIND_BF16 if kind == "bfloat16" else codec.KIND_BYTES
    chunks = _pairs(data, parent, import_module("lmz.api").DEFAULT_CHUNK_SIZE)
    coding, found = timed(lambda: [codec.encode_delta(chunk, base, width, kind=form) for chunk, base in chunks])
    coded = [(b"".join(map(bytes, parts)), flags, crc) for parts, flags, crc in found]
    pairs = list(zip(coded, chunks, strict=True))

    def decode() -> list[bytes]:
        return [
            codec.decode_delta(memoryview(blob), width, flags, len(base), base, crc)
            for (blob, flags, crc), (_, base) in pairs
        ]

    decoding, plain = timed(decode)
    if b"".join(map(bytes, plain)) != data:
        raise RuntimeError("lmz did not give the bytes back")
    return sum(len(blob) for blob, _, _ in coded), coding, decoding


def _pairs(data: bytes, parent: bytes, size: int) -> list[tuple[bytes, bytes]]:
    return [(data[at : at + size], parent[at : at + size]) for at in range(0, len(data), size)]


def _print(kind: str, name: str, size: int, result: tuple[int, float, float]) -> None:
    coded, *times = result
    speeds = " and ".join(f"{size / 1e9 / seconds:.2f}" for seconds in times)
    print(f"{kind:9} {name:12} ratio {size / coded:.3f}, {speeds} GB/s")


def compare(path: str) -> None:
    """Print a line for each type and coder."""
    for kind, data in numbers_in(path).items():
        for name, measure in (("ours", ours), ("ZipNN", theirs)):
            _print(kind, name, len(data), measure(data, kind))


def compare_deltas(path: str, parent: str) -> None:
    """Print the same of differences from an earlier version."""
    bases = numbers_in(parent)
    for kind, data in numbers_in(path).items():
        base = bases.get(kind, b"")
        if len(base) != len(data):
            raise SystemExit(f"the two files do not hold as many {kind}")
        _print(kind, "ours, fast", len(data), our_deltas(data, base, kind, small=False))
        _print(kind, "ours, small", len(data), our_deltas(data, base, kind, small=True))
        _print(kind, "as BitX", len(data), bitx_deltas(data, base, kind))
        if find_spec("lmz") is not None:
            _print(kind, "lmz", len(data), lmz_deltas(data, base, kind))


def main(arguments: list[str]) -> int:
    """Run what was asked for."""
    if len(arguments) not in {1, 2}:
        print(__doc__, file=sys.stderr)
        return 2
    if len(arguments) == 1 and find_spec("zipnn") is None:
        print("ZipNN is not there: pip install zipnn", file=sys.stderr)
        return 1
    (compare if len(arguments) == 1 else compare_deltas)(*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
