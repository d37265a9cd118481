"""Checkpoints coded one by one: chained.py CODER save STORE NUMBER SOURCE [BEFORE], CODER restore STORE NUMBER TARGET.

Coders: `zipnn`, ZipNN tensor by tensor; `zipnn-chain`, the same with its delta against the checkpoint before; `bitx`,
BitX (of ZipLLM) in our own words: XOR with the same tensor of the checkpoint before, byte planes, zstd 3. A tensor's
base is found by file and name, and must be as long. To restore a checkpoint, the chain is decoded from its start.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pieces import Piece, pieces, read_table, write_files, write_table  # type: ignore[import-not-found]

_KINDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_LEVEL = 3


class Coder(Protocol):
    """How a tensor becomes bytes and back; without a base if that is None."""

    def encode(self, piece: Piece, base: bytes | None) -> bytes:
        """Return a piece's bytes, coded."""

    def decode(self, blob: bytes, piece: Piece, base: bytes | None) -> bytes:
        """Return a piece's bytes; `piece` has all else of it."""


class ZipNN:
    """The library, with one thread more than it would need."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._zipnn: Any = import_module("zipnn").ZipNN

    def _of(self, kind: str, base: bytes | None) -> Any:  # noqa: ANN401 -- without types
        delta = {} if base is None else {"delta_compressed_type": "byte"}
        return self._zipnn(bytearray_dtype=_KINDS.get(kind, "bfloat16"), input_format="byte", threads=2, **delta)

    def encode(self, piece: Piece, base: bytes | None) -> bytes:  # noqa: D102 -- as above
        extra = {} if base is None else {"delta_second_data": base}
        return bytes(self._of(piece.kind, base).compress(piece.data, **extra))

    def decode(self, blob: bytes, piece: Piece, base: bytes | None) -> bytes:  # noqa: D102 -- as above
        extra = {} if base is None else {"delta_second_data": base}
        return bytes(self._of(piece.kind, base).decompress(blob, **extra))


class BitX:
    """Byte planes of what XOR leaves, each under zstd."""

    def __init__(self) -> None:
        zstd: Any = import_module("zstandard")
        self._np: Any = import_module("numpy")
        self._compress, self._decompress = zstd.ZstdCompressor(_LEVEL).compress, zstd.ZstdDecompressor().decompress

    def _xor(self, one: Any, base: bytes | None) -> Any:  # noqa: ANN401 -- arrays
        return one if base is None else one ^ self._np.frombuffer(base, "u1")

    def encode(self, piece: Piece, base: bytes | None) -> bytes:  # noqa: D102 -- as above
        left = self._xor(self._np.frombuffer(piece.data, "u1"), base).reshape(-1, piece.width)
        planes = [self._compress(left[:, at].tobytes()) for at in range(piece.width)]
        return b"".join(len(plane).to_bytes(4, "little") + plane for plane in planes)

    def decode(self, blob: bytes, piece: Piece, base: bytes | None) -> bytes:  # noqa: D102, ARG002 -- as above
        planes, at = [], 0
        while at < len(blob):
            size = int.from_bytes(blob[at : at + 4], "little")
            planes.append(self._np.frombuffer(self._decompress(blob[at + 4 : at + 4 + size]), "u1"))
            at += 4 + size
        whole: bytes = self._xor(self._np.stack(planes, 1).ravel(), base).tobytes()
        return whole


def save(coder: Coder, path: Path, source: Path, before: Path | None) -> None:
    """Write a checkpoint's coded pieces; what does not get smaller is kept as it is."""
    bases = {(piece.path, piece.name): piece.data for piece in pieces(before)} if before else {}
    rows, blobs = [], []
    for piece in pieces(source):
        base = bases.get((piece.path, piece.name))
        if base is not None and (len(base) != len(piece.data) or not piece.kind):
            base = None
        blob = coder.encode(piece, base) if piece.kind else piece.data
        plain = len(blob) >= len(piece.data)
        rows.append([piece.path, piece.name, piece.kind, plain, base is not None])
        blobs.append(piece.data if plain else blob)
    write_table(path, rows, blobs)


def load(coder: Coder, path: Path, before: list[Piece]) -> list[Piece]:
    """Return a checkpoint's pieces, given those of the one before."""
    bases, found = {(piece.path, piece.name): piece.data for piece in before}, []
    for (name, tensor, kind, plain, chained), blob in read_table(path):
        bare = Piece(name, tensor, kind, b"")
        base = bases[name, tensor] if chained else None
        found.append(bare._replace(data=blob if plain else coder.decode(blob, bare, base)))
    return found


def main() -> None:
    """Do it."""
    name, verb, store, number, place, *before = sys.argv[1:]
    coder: Coder = BitX() if name == "bitx" else ZipNN()
    if verb == "save":
        save(coder, Path(store, number), Path(place), Path(before[0]) if before else None)
        return
    found: list[Piece] = []
    for at in range(0 if name in ("bitx", "zipnn-chain") else int(number), int(number) + 1):
        found = load(coder, Path(store, str(at)), found)
    write_files(Path(place), found)


if __name__ == "__main__":
    main()
