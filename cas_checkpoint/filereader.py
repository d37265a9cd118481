"""One file of a snapshot as a seekable stream that fetches only the chunks that are read."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

from cas_checkpoint.errors import InvalidArgument
from cas_checkpoint.ids import Buffer
from cas_checkpoint.manifests import Content, Entry
from cas_checkpoint.reading import SnapshotReader

__all__ = ["SnapshotFile"]


class SnapshotFile(io.RawIOBase):
    """A file of a snapshot, open for reading; fetches only the chunks that are read."""

    _KEPT = 4  # chunks kept in memory

    def __init__(self, reader: SnapshotReader, entry: Entry) -> None:
        """Open `entry`, which must be a file with content."""
        super().__init__()
        content = entry.content or Content(0, 0, b"")
        self.name = entry.name
        self._reader = reader
        self._refs = list(reader.refs(content))
        self._ends = list(accumulate(ref.size for ref in self._refs))
        self._extents = entry.extents if entry.extents is not None else (((0, entry.size),) if entry.size else ())
        self._starts = list(accumulate((size for _, size in self._extents), initial=0))
        self._size = entry.size
        self._position = 0
        self._kept: OrderedDict[int, Buffer] = OrderedDict()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, as any seekable file does."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if origin is None or origin + offset < 0:
            raise InvalidArgument(f"cannot seek to {offset} from {whence}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        """Fill `buffer` as far as one chunk or hole goes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        piece = self._piece(wanted)
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _piece(self, wanted: int) -> Buffer:
        at = bisect_right(self._extents, (self._position, 2**63)) - 1
        start, size = self._extents[at] if at >= 0 else (0, 0)
        if self._position >= start + size:  # in a hole: up to the next extent or the end
            end = self._extents[at + 1][0] if at + 1 < len(self._extents) else self._size
            return bytes(min(wanted, end - self._position, 2**20))
        within = self._position - start
        position = self._starts[at] + within
        number = bisect_right(self._ends, position)
        skip = position - (self._ends[number] - self._refs[number].size)
        return memoryview(self._chunk(number))[skip : skip + min(wanted, size - within)]

    def _chunk(self, number: int) -> Buffer:
        if number not in self._kept:
            self._kept[number] = bytes(next(self._reader.chunks(self._refs[number : number + 1])))
            if len(self._kept) > self._KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]
