"""Compares this package's coding of tensors with ZipNN's, in memory, on one core, in turn.

Give it a file with tensors in it, and run it with a Python that has both (`pip install zipnn`). Of each type of numbers
at most 64 MiB are taken. A float16 copy of float32 is made besides.
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

from cas_checkpoint.codecs import Decoder, Encoder
from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.tensors import find_tensors

CHUNK_SIZE, MOST, ROUNDS = 2**20, 64 * 2**20, 5
KINDS = ("bfloat16", "float16", "float32")

T = TypeVar("T")


def numbers_in(path: str) -> dict[str, bytes]:
    """Return the bytes of the tensors of each type."""
    data = Path(path).read_bytes()
    layout = find_tensors(lambda offset, size: data[offset : offset + size], len(data))
    found: defaultdict[str, bytes] = defaultdict(bytes)
    for tensor in layout.tensors if layout else ():
        if tensor.dtype in KINDS and len(found[tensor.dtype]) < MOST:
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


def main(arguments: list[str]) -> int:
    """Print a line for each type and coder."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    if find_spec("zipnn") is None:
        print("ZipNN is not there: pip install zipnn", file=sys.stderr)
        return 1
    for kind, data in numbers_in(arguments[0]).items():
        for name, measure in (("ours", ours), ("ZipNN", theirs)):
            size, coding, decoding = measure(data, kind)
            speeds = (len(data) / 1e9 / seconds for seconds in (coding, decoding))
            print(f"{kind:9} {name:6} ratio {len(data) / size:.3f}, {' and '.join(f'{s:.2f}' for s in speeds)} GB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
