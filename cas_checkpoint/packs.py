"""Blobs ↔ pack: one object of many blobs, and the footer that lists them (SPEC.md, "Packs").

A footer repeats the pack's first bytes and carries its own checksum, so that it can be trusted wherever it
lies: at the end of its pack, or copied into an index object.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.codecs import BLOB_OVERHEAD, MAX_CHUNK_SIZE, blob_check
from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import CHUNK_ID_SIZE, RANDOM_ID_SIZE, Buffer, ChunkId, PackId, digest
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.records import CHECKSUM_SIZE, HEAD_SIZE, Kind, check_head, make_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FOOTER_FRAME",
    "FOOTER_TABLE_START",
    "MAX_PACK_SIZE",
    "PACK_TAIL_SIZE",
    "PREFIX_SIZE",
    "Footer",
    "PackBuilder",
    "check_delta_rows",
    "check_footer_size",
    "check_pack",
    "footer_size",
    "parse_footer",
    "read_deltas",
    "read_tail",
]

MAX_PACK_SIZE = 2**32 - 1
PREFIX_SIZE = HEAD_SIZE + RANDOM_ID_SIZE
"""A pack's bytes before its first blob: head and pack id."""
PACK_TAIL_SIZE = 8
"""A pack's last bytes: the size of its footer, and a mark."""

FOOTER_FRAME = struct.Struct("<IIQ")
"""What follows the pack's beginning in a footer: number of chunks, how many of them are deltas, size of all blobs."""
_TAIL = struct.Struct("<I4s")
_TAIL_MARK = b"CASP"
_ROW_SIZE = CHUNK_ID_SIZE + 12
_DELTA_SIZE = 4 + CHUNK_ID_SIZE
FOOTER_TABLE_START = PREFIX_SIZE + FOOTER_FRAME.size
"""Where a footer's columns begin."""
_FIXED_SIZE = FOOTER_TABLE_START + CHECKSUM_SIZE


class Footer(NamedTuple):
    """The list of a pack's blobs, one row for each, in the order in which they lie.

    Attributes:
        pack: the pack's id.
        ids: chunk ids, uint8, shape (n, 32).
        offsets: where each blob begins in the pack, uint32, shape (n,).
        stored_sizes: bytes of each blob, uint32, shape (n,).
        plain_sizes: bytes of each chunk, uint32, shape (n,).
        checks: the check of each blob, uint32, shape (n,).
        delta_rows: numbers of the rows whose blobs are deltas, in increasing order, uint32, shape (m,).
        bases: ids of the chunks that these are deltas of, uint8, shape (m, 32).
        encoded: the footer's own bytes.
    """

    pack: PackId
    ids: NDArray[np.uint8]
    offsets: NDArray[np.uint32]
    stored_sizes: NDArray[np.uint32]
    plain_sizes: NDArray[np.uint32]
    checks: NDArray[np.uint32]
    delta_rows: NDArray[np.uint32]
    bases: NDArray[np.uint8]
    encoded: bytes

    @property
    def pack_size(self) -> int:
        """The size in bytes that the whole pack must have."""
        return PREFIX_SIZE + int(self.stored_sizes.sum(dtype=np.uint64)) + len(self.encoded) + PACK_TAIL_SIZE

    def base_ids(self) -> dict[int, ChunkId]:
        """Return for the number of each row whose blob is a delta the id of its base."""
        return {row: ChunkId(bytes(base)) for row, base in zip(self.delta_rows.tolist(), self.bases, strict=True)}


class PackBuilder:
    """Gathers blobs into one pack: copies of some, and memory that is lent to it for others."""

    def __init__(self, pack: PackId, arena: memoryview | None = None) -> None:
        """Begin the pack of that id.

        Args:
            pack: the new pack's random id.
            arena: memory for what is copied; what does not fit goes elsewhere.
        """
        self.pack = pack
        self._arena = memoryview(b"") if arena is None else arena
        self._filled = self._parted = 0  # of the arena
        self._parts: list[Buffer] = []
        self._size = 0
        self._ids: list[ChunkId] = []
        self._stored_sizes: list[int] = []
        self._plain_sizes: list[int] = []
        self._checks: list[int] = []
        self._delta_rows: list[int] = []
        self._bases: list[ChunkId] = []
        self._prefix = make_head(Kind.PACK) + pack
        self._copy(self._prefix)

    def __len__(self) -> int:
        """Return the number of blobs so far."""
        return len(self._ids)

    @property
    def size(self) -> int:
        """The bytes gathered so far, without the footer to come."""
        return self._size

    def _copy(self, data: Buffer) -> None:
        end = self._filled + len(data)
        if end > len(self._arena):
            self._append(bytes(data))
            return
        self._arena[self._filled : end] = data
        self._filled = end
        self._size += len(data)

    def _append(self, data: Buffer) -> None:
        if self._filled > self._parted:
            self._parts.append(self._arena[self._parted : self._filled])
            self._parted = self._filled
        self._parts.append(data)
        self._size += len(data)

    def add(
        self,
        chunk: ChunkId,
        codec: int,
        payload: Buffer,
        plain_size: int,
        check: int,
        *,
        lent: bool = False,
        base: ChunkId | None = None,
    ) -> None:
        """Append the blob made of `codec` and `payload`; `check` is `blob_check` of the two.

        If the payload is lent, its memory must stay as it is until the pack was written; else it is copied. If the blob
        is a delta, `base` is the chunk that it is a delta of.
        """
        if base is not None:
            self._delta_rows.append(len(self._ids))
            self._bases.append(base)
        self._copy(bytes((codec,)))
        if lent:
            self._append(payload)
        else:
            self._copy(payload)
        self._ids.append(chunk)
        self._stored_sizes.append(len(payload) + BLOB_OVERHEAD)
        self._plain_sizes.append(plain_size)
        self._checks.append(check)

    def finish(self) -> tuple[Footer, list[Buffer]]:
        """Append the footer; return it, and the whole pack in parts."""
        table = b"".join(
            (
                b"".join(self._ids),
                np.array(self._stored_sizes, "<u4").tobytes(),
                np.array(self._plain_sizes, "<u4").tobytes(),
                np.array(self._checks, "<u4").tobytes(),
                np.array(self._delta_rows, "<u4").tobytes(),
                b"".join(self._bases),
            )
        )
        frame = FOOTER_FRAME.pack(len(self._ids), len(self._bases), self._size - PREFIX_SIZE)
        content = self._prefix + frame + table
        footer = content + digest((content,))
        self._append(footer + _TAIL.pack(len(footer), _TAIL_MARK))
        return parse_footer(footer), self._parts


def footer_size(chunks: int, deltas: int = 0) -> int:
    """Return the size in bytes of the footer of a pack of that many chunks, so many of which are stored as deltas."""
    return _FIXED_SIZE + chunks * _ROW_SIZE + deltas * _DELTA_SIZE


def check_footer_size(size: int, chunks: int, deltas: int) -> None:
    """Raise `DamagedObject` if a footer of `size` bytes cannot list so many chunks and, among them, deltas."""
    if footer_size(chunks, deltas) != size:
        listed = f"{chunks} chunks, {deltas} of them deltas" if deltas else f"{chunks} chunks"
        raise DamagedObject(f"a pack's footer of {size} bytes cannot list {listed}")


def read_deltas(encoded: Buffer, chunks: int, deltas: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return the numbers of the rows of a footer whose blobs are deltas, shape (m,), and their bases, shape (m, 32)."""
    start = FOOTER_TABLE_START + chunks * _ROW_SIZE
    rows = np.frombuffer(encoded, "<u4", deltas, start).astype(np.uint32, copy=False)
    bases = np.frombuffer(encoded, np.uint8, deltas * CHUNK_ID_SIZE, start + 4 * deltas)
    return rows, bases.reshape(deltas, CHUNK_ID_SIZE)


def check_delta_rows(rows: NDArray[np.uint32], chunks: int) -> None:
    """Raise `DamagedObject` unless the numbers increase and are those of rows, of which there are `chunks`."""
    if len(rows) and (int(rows[-1]) >= chunks or not bool((rows[1:] > rows[:-1]).all())):
        raise DamagedObject("a pack's footer lists deltas of chunks that it does not list, or twice")


def parse_footer(data: Buffer, *, pack: PackId | None = None) -> Footer:
    """Read a footer, which should be that of `pack` if that is given.

    Raises:
        DamagedObject: it is not, or was altered.
        UnsupportedStore: it is of a newer format version.
    """
    encoded = bytes(data)
    check_head(encoded, Kind.PACK)
    if len(encoded) < _FIXED_SIZE:
        raise DamagedObject(f"a pack's footer of only {len(encoded)} bytes")
    content, checksum = encoded[:-CHECKSUM_SIZE], encoded[-CHECKSUM_SIZE:]
    if digest((content,)) != checksum:
        raise DamagedObject("a pack's footer does not fit its checksum")
    found = PackId(encoded[HEAD_SIZE:PREFIX_SIZE])
    if pack is not None and found != pack:
        raise DamagedObject(f"holds the footer of pack {found.hex()}")
    count, deltas, blobs_size = FOOTER_FRAME.unpack_from(encoded, PREFIX_SIZE)
    check_footer_size(len(encoded), count, deltas)
    return _parse_table(found, encoded, count, deltas, blobs_size)


def _parse_table(pack: PackId, encoded: bytes, count: int, deltas: int, blobs_size: int) -> Footer:
    start = FOOTER_TABLE_START
    ids = np.frombuffer(encoded, np.uint8, count * CHUNK_ID_SIZE, start).reshape(count, CHUNK_ID_SIZE)
    columns = np.frombuffer(encoded, "<u4", count * 3, start + count * CHUNK_ID_SIZE).reshape(3, count)
    stored, plain, checks = columns.astype(np.uint32, copy=False)
    ends = np.cumsum(stored, dtype=np.uint64) + np.uint64(PREFIX_SIZE)
    if (int(ends[-1]) if count else PREFIX_SIZE) != PREFIX_SIZE + blobs_size:
        raise DamagedObject("the sizes in a pack's footer do not add up")
    if PREFIX_SIZE + blobs_size + len(encoded) + PACK_TAIL_SIZE > MAX_PACK_SIZE:
        raise DamagedObject("the footer of a pack that would be larger than a pack can be")
    if count and (int(plain.max()) > MAX_CHUNK_SIZE or bool((stored.astype(np.int64) - plain > BLOB_OVERHEAD).any())):
        raise DamagedObject("a pack's footer lists a chunk of an impossible size")
    rows, bases = read_deltas(encoded, count, deltas)
    check_delta_rows(rows, count)
    return Footer(pack, ids, (ends - stored).astype(np.uint32), stored, plain, checks, rows, bases, encoded)


def read_tail(tail: Buffer, *, pack_size: int) -> int:
    """Return the size of the footer of a pack of `pack_size` bytes, told by its last `PACK_TAIL_SIZE` bytes."""
    size, mark = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
    if mark != _TAIL_MARK:
        raise DamagedObject("does not end like a pack")
    if not _FIXED_SIZE <= size <= pack_size - PREFIX_SIZE - PACK_TAIL_SIZE:
        raise DamagedObject(f"its footer cannot have {size} bytes")
    return int(size)


def check_pack(footer: Footer, data: Buffer) -> None:
    """Check a whole pack against its footer, all but what the chunk ids themselves cover.

    Raises:
        DamagedObject: it is cut short or altered; the reason names the first chunk that is affected.
    """
    view = memoryview(data)
    if len(view) != footer.pack_size:
        raise DamagedObject(f"has {len(view)} bytes instead of {footer.pack_size}")
    if view[:PREFIX_SIZE] != footer.encoded[:PREFIX_SIZE]:
        raise DamagedObject("begins with other bytes than its footer says")
    end = len(view) - PACK_TAIL_SIZE
    if view[end - len(footer.encoded) : end] != footer.encoded:
        raise DamagedObject("its footer was altered")
    for number in damaged_blobs(footer, view):
        raise DamagedObject(f"chunk {bytes(footer.ids[number]).hex()} does not fit its check")


def damaged_blobs(footer: Footer, view: memoryview) -> Sequence[int]:
    """Return the numbers of the blobs that do not fit their checks."""
    rows = zip(footer.offsets.tolist(), footer.stored_sizes.tolist(), footer.checks.tolist(), strict=True)
    return [
        number
        for number, (offset, size, check) in enumerate(rows)
        if blob_check(view[offset], view[offset + 1 : offset + size]) != check
    ]
