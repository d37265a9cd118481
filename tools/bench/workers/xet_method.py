"""Xet's method in our own words: xet_method.py save STORE NUMBER SOURCE | restore STORE NUMBER TARGET.

Files are cut by a gear hash into chunks of 8 to 128 KiB, 64 KiB on average; a chunk that is there already is not
stored again; each is stored as it is, with LZ4, or with LZ4 after its bytes were grouped by 4, whichever is smallest.
A chunk's entry takes 48 bytes. The gear table is ours, so the cuts lie elsewhere than Xet's.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_LEAST, _MOST, _BITS = 8 * 2**10, 128 * 2**10, 16
_PIECE = 2**20
_WINDOW = 64  # bytes that a hash of 64 bits knows of
_ENTRY = 48  # digest, place, size


class Chunks:
    """The chunks of a store: one file, and a table of what lies where."""

    def __init__(self, store: Path) -> None:
        self._np: Any = import_module("numpy")
        self._lz4: Any = import_module("lz4.block")
        self._data, self._index = store / "chunks", store / "index"
        raw = self._index.read_bytes() if self._index.exists() else b""
        rows = [raw[at : at + _ENTRY] for at in range(0, len(raw), _ENTRY)]
        self._known = {row[:32]: (int.from_bytes(row[32:40], "little"), row[40:]) for row in rows}
        self._table = self._np.random.default_rng(1).integers(0, 2**64, 256, "u8")

    def cuts(self, data: bytes) -> list[int]:
        """Return where the chunks of a file end."""
        ends, start = [], 0
        marks = self._marks(data)
        while start < len(data):
            at = int(self._np.searchsorted(marks, start + _LEAST))
            end = int(marks[at]) if at < len(marks) else len(data)
            start = min(end, start + _MOST, len(data))
            ends.append(start)
        return ends

    def _marks(self, data: bytes) -> Any:  # noqa: ANN401 -- an array
        """Return where the hash of the last 64 bytes has 16 zeros in front: all hashes at once, by doubling."""
        np, found = self._np, []
        for start in range(0, len(data), _PIECE):
            low = max(0, start - _WINDOW)
            hashes = self._table[np.frombuffer(data, "u1", min(_PIECE + start - low, len(data) - low), low)]
            for width in (1, 2, 4, 8, 16, 32):
                hashes[width:] += hashes[:-width] << np.uint64(width)
            marks = np.flatnonzero(hashes >> np.uint64(64 - _BITS) == 0) + low + 1
            found.append(marks[marks > start])
        return np.concatenate(found) if found else np.empty(0, int)

    def _blob(self, chunk: bytes) -> tuple[int, bytes]:
        np = self._np
        rest = chunk[len(chunk) // 4 * 4 :]
        grouped = np.frombuffer(chunk, "u1", len(chunk) // 4 * 4).reshape(-1, 4).T.tobytes() + rest
        ways = [chunk, *(self._lz4.compress(way, store_size=False) for way in (chunk, grouped))]
        return min(enumerate(ways), key=lambda way: len(way[1]))

    def put(self, files: list[bytes]) -> list[list[str]]:
        """Store files; return the digests of each one's chunks."""
        found = []
        with self._data.open("ab") as data, self._index.open("ab") as index:
            for content in files:
                names, start = [], 0
                for end in self.cuts(content):
                    chunk = content[start:end]
                    name = hashlib.blake2b(chunk, digest_size=32).digest()
                    if name not in self._known:
                        way, blob = self._blob(chunk)
                        size = b"".join(number.to_bytes(3, "little") for number in (len(blob), len(chunk)))
                        self._known[name] = data.tell(), size + bytes([way, 0])
                        index.write(name + data.tell().to_bytes(8, "little") + size + bytes([way, 0]))
                        data.write(blob)
                    names.append(name.hex())
                    start = end
                found.append(names)
        return found

    def get(self, names: list[str]) -> bytes:
        """Return the bytes of a file."""
        parts = []
        with self._data.open("rb") as data:
            for name in names:
                place, row = self._known[bytes.fromhex(name)]
                size, plain, way = int.from_bytes(row[:3], "little"), int.from_bytes(row[3:6], "little"), row[6]
                data.seek(place)
                blob = data.read(size)
                chunk = self._lz4.decompress(blob, uncompressed_size=plain) if way else blob
                parts.append(self._ungrouped(chunk) if way == 2 else chunk)  # noqa: PLR2004 -- as they were tried
        return b"".join(parts)

    def _ungrouped(self, chunk: bytes) -> bytes:
        whole = len(chunk) // 4 * 4
        plain: bytes = self._np.frombuffer(chunk, "u1", whole).reshape(4, -1).T.tobytes()
        return plain + chunk[whole:]


def main() -> None:
    """Do it."""
    verb, place, number, directory = sys.argv[1:]
    store, root = Path(place), Path(directory)
    store.mkdir(exist_ok=True)
    chunks, names = Chunks(store), store / f"{number}.json"
    if verb == "save":
        paths = sorted(Path(folder, name) for folder, _, found in os.walk(root) for name in found)
        stored = chunks.put([path.read_bytes() for path in paths])
        listed = {str(path.relative_to(root)): rows for path, rows in zip(paths, stored, strict=True)}
        names.write_bytes(import_module("zlib").compress(json.dumps(listed).encode()))
    else:
        for name, rows in json.loads(import_module("zlib").decompress(names.read_bytes())).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(chunks.get(rows))


if __name__ == "__main__":
    main()
