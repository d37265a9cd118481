"""The tensors of a distributed checkpoint in a snapshot: put together from the pieces in the files of its directory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final

from cas_checkpoint.dtypes import item_size
from cas_checkpoint.errors import EntryNotFound
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import Entry, EntryType
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.tensorfiles import FileRanges, TensorInfo, sliced
from cas_checkpoint.tensors import Tensor, find_tensors
from cas_checkpoint.tensors.dcp import Piece, read_metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TensorDirectory"]

_METADATA: Final = b".metadata"
_MAX_METADATA: Final = 2**28  # bytes


class TensorDirectory:
    """A directory that torch.distributed.checkpoint wrote, as a source of tensors. Safe to use from several threads."""

    def __init__(self, reader: SnapshotReader, top: bytes, pieces: dict[str, list[Piece]]) -> None:
        """Take what the metadata tell; made by `open` only."""
        self._reader, self._top, self._pieces = reader, top, pieces
        self._lock = threading.Lock()
        self._files: dict[str, FileRanges] = {}
        self._found: dict[Piece, Tensor] = {}
        names = {os.fsencode(piece.file) for several in pieces.values() for piece in several}
        self._entries = {os.fsdecode(name): entry for name, entry in _files(reader, top) if name in names}

    @classmethod
    def open(cls, reader: SnapshotReader, top: bytes) -> TensorDirectory | None:
        """Read the metadata of a directory; return None if it has none that can be read.

        Args:
            reader: a reader of the snapshot.
            top: the path of the directory.

        Raises:
            DamagedStore: something that it needs is damaged or missing.
        """
        entry = next((entry for name, entry in _files(reader, top) if name == _METADATA), None)
        if entry is None or entry.size > _MAX_METADATA:
            return None
        pieces = read_metadata(FileRanges(reader, entry).read_at(0, entry.size))
        grouped: dict[str, list[Piece]] = {}
        for piece in pieces or ():
            several = grouped.setdefault(piece.name, [])
            several.append(piece)
            if not len(piece.offsets) == len(piece.shape) == len(several[0].shape):
                return None
        return cls(reader, top, grouped) if grouped else None

    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return the tensors, in the order of the metadata.

        Raises:
            EntryNotFound: a file is missing, or holds something else than the metadata say.
        """
        return tuple(self._info(name) for name in self._pieces)

    def info(self, name: str) -> TensorInfo | None:
        """Return what is known of a tensor, None if there is none of that name; errors as for `tensors`."""
        return self._info(name) if name in self._pieces else None

    def _info(self, name: str) -> TensorInfo:
        pieces = self._pieces[name]
        ends = (map(sum, zip(piece.offsets, piece.shape, strict=True)) for piece in pieces)
        shape = tuple(map(max, zip(*ends, strict=True)))
        if sum(prod(piece.shape) for piece in pieces) != prod(shape):
            raise EntryNotFound(f"{os.fsdecode(self._top)!r} does not hold all pieces of {name!r}")
        dtype = self._locate(pieces[0]).dtype
        return TensorInfo(name, dtype, shape, prod(shape) * item_size(dtype))

    def read(self, name: str, rows: tuple[int, int] | None, out: NDArray[Any]) -> None:
        """Fill an array; see `TensorSource.read`. Errors as for `tensors`."""
        pieces = self._pieces[name]
        if len(pieces) > 1:
            out[...] = np.zeros((), out.dtype)  # should pieces overlap, others are missing
        for piece in pieces:
            start = piece.offsets[0] if rows else 0
            first, end = (max(rows[0], start), min(rows[1], start + piece.shape[0])) if rows else (0, 1)
            if first >= end:
                continue
            tensor = self._locate(piece)
            place: list[Any] = [slice(at, at + length) for at, length in zip(piece.offsets, piece.shape, strict=True)]
            if rows:
                tensor = sliced(tensor, (first - start, end - start))
                place[0] = slice(first - rows[0], end - rows[0])
            self._fill(piece, tensor, out[(*place, ...)])  # with the dots, a scalar is an array too

    def _fill(self, piece: Piece, tensor: Tensor, out: NDArray[Any]) -> None:
        if item_size(tensor.dtype) != out.dtype.itemsize:
            raise self._wrong(piece)
        if out.flags.c_contiguous:
            self._file(piece).fill_array(tensor, out)
            return
        part = np.empty(tensor.shape, out.dtype)
        self._file(piece).fill_array(tensor, part)
        out[...] = part

    def _locate(self, piece: Piece) -> Tensor:
        """Return where a piece lies in its file."""
        with self._lock:  # files are read for layouts by one thread at a time
            if piece not in self._found:
                layout = find_tensors(partial(_read_at, self._file(piece), piece), piece.size)
                tensors = layout.tensors if layout else ()
                if len(tensors) != 1 or tensors[0].shape != piece.shape:
                    raise self._wrong(piece)
                self._found[piece] = tensors[0]._replace(offset=piece.offset + tensors[0].offset)
            return self._found[piece]

    def _file(self, piece: Piece) -> FileRanges:
        """Return the file that a piece lies in."""
        if piece.file not in self._files:
            entry = self._entries.get(piece.file)
            if entry is None or piece.offset + piece.size > entry.size:
                raise self._wrong(piece)
            self._files[piece.file] = FileRanges(self._reader, entry)
        return self._files[piece.file]

    def _wrong(self, piece: Piece) -> EntryNotFound:
        place = os.fsdecode(self._top + b"/" + os.fsencode(piece.file))
        return EntryNotFound(f"{place!r} does not hold the piece of {piece.name!r} that it should hold")


def _read_at(file: FileRanges, piece: Piece, offset: int, size: int) -> bytes:
    """Return bytes of a piece's archive; fewer only at its end."""
    return file.read_at(piece.offset + offset, min(size, piece.size - offset))


def _files(reader: SnapshotReader, top: bytes) -> Iterator[tuple[bytes, Entry]]:
    """Yield the files below a directory by their paths in it."""
    prefix = top + b"/" if top else b""
    for entry in reader.entries():
        if entry.type is EntryType.FILE and entry.path.startswith(prefix):
            yield entry.path[len(prefix) :], entry
