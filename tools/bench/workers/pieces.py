"""A directory as named pieces: the tensors of its files with their types, and the bytes between them; in order.

safetensors files and zip files (what `torch.save` writes) are known; of the latter the numbers are taken as fp32.
Also how a worker keeps coded pieces: one file, with a table in front.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Piece", "pieces", "read_table", "write_files", "write_table"]

_WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4}
_LEAST = 1024
_LOCAL_HEADER = 30


class Piece(NamedTuple):
    """Some bytes of a file.

    Attributes:
        path: of the file, within the directory.
        name: the tensor's, or one made up for what is none; each comes once in a file.
        kind: the type of its numbers as safetensors call it, "" for bytes.
        data: the bytes.
    """

    path: str
    name: str
    kind: str
    data: bytes

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return _WIDTHS.get(self.kind, 1)


def pieces(root: Path) -> Iterator[Piece]:
    """Yield what all files of a directory consist of."""
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            path = Path(folder, name)
            data, last = path.read_bytes(), 0
            for tensor, kind, start, end in sorted(_tensors(path, data), key=lambda found: found[2]):
                if end - start >= _LEAST:
                    for part in ((f"before {tensor}", "", data[last:start]), (tensor, kind, data[start:end])):
                        if part[2]:
                            yield Piece(str(path.relative_to(root)), *part)
                    last = end
            if data[last:] or not data:
                yield Piece(str(path.relative_to(root)), "the rest", "", data[last:])


def _tensors(path: Path, data: bytes) -> list[tuple[str, str, int, int]]:
    """Return the name, type, start and end of each tensor."""
    if path.suffix == ".safetensors":
        start = 8 + int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8:start])
        header.pop("__metadata__", None)
        return [
            (name, entry["dtype"], start + entry["data_offsets"][0], start + entry["data_offsets"][1])
            for name, entry in header.items()
        ]
    found = []
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _, _, name = entry.filename.partition("/")  # the root folder changes, the names below it do not
                at = entry.header_offset + _LOCAL_HEADER
                start = at + sum(int.from_bytes(data[at - 4 + n : at - 2 + n], "little") for n in (0, 2))
                if name.startswith("data/") and entry.file_size % 4 == 0:
                    found.append((name, "F32", start, start + entry.file_size))
    return found


def write_files(root: Path, found: list[Piece]) -> None:
    """Write the files that consist of these pieces."""
    files: dict[str, list[bytes]] = {}
    for piece in found:
        files.setdefault(piece.path, []).append(piece.data)
    for name, parts in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(parts))


def write_table(path: Path, rows: list[list[Any]], blobs: list[bytes]) -> None:
    """Write rows of plain values, each with a blob."""
    table = json.dumps([[*row, len(blob)] for row, blob in zip(rows, blobs, strict=True)]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([len(table).to_bytes(8, "little"), table, *blobs]))


def read_table(path: Path) -> Iterator[tuple[list[Any], bytes]]:
    """Yield each row and its blob."""
    data = path.read_bytes()
    at = 8 + int.from_bytes(data[:8], "little")
    for *row, size in json.loads(data[8:at]):
        yield row, data[at : at + size]
        at += size
