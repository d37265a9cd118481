"""Where the members of a zip archive lie, from its central directory; archives may stand one after another.

Read are archives of one disk, with zip64 records or without; the members' bytes are taken only where they are stored
as they are.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cas_checkpoint.tensors.found import MAX_HEADER_SIZE, MAX_TENSORS, ZIP_MAGIC, Unreadable, take
from cas_checkpoint.tensors.layout import ReadAt

__all__ = ["Archive", "Member", "data_offset", "read_archive", "read_member"]

_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_EXTRA: Final = struct.Struct("<2H")
_ZIP64: Final = 1  # the extra field of sizes beyond 32 bits
_LARGE: Final = 2**32 - 1
_ENCRYPTED: Final = 1
_MAX_COMMENT_SIZE: Final = 2**16 - 1
_MAX_MEMBERS: Final = MAX_TENSORS + 2**10  # and a few that are no tensors


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: its name.
        header: where its local header begins, bytes from the beginning of the whole file.
        size: its bytes.
        stored: whether they are there as they are.
    """

    name: str
    header: int
    size: int
    stored: bool


class Archive(NamedTuple):
    """An archive in a file.

    Attributes:
        start: where it begins, bytes.
        directory: where its central directory begins, and its members' bytes end.
        members: by name; of several with one name the last.
    """

    start: int
    directory: int
    members: dict[str, Member]


def read_archive(read: ReadAt, end: int) -> Archive:
    """Return the archive that ends at a byte of a file.

    Raises:
        Unreadable: none ends there, or it is damaged.
    """
    record = _find_end(read, end)
    _, disk, directory_disk, _, count, size, offset, _ = _END.unpack(take(read, record, _END.size))
    if disk or directory_disk:
        raise Unreadable
    wide = record - _LOCATOR.size - _END64.size
    if wide >= 0:
        record64, locator = take(read, wide, _END64.size), take(read, wide + _END64.size, _LOCATOR.size)
        if locator[:4] == b"PK\x06\x07" and record64[:4] == b"PK\x06\x06":
            record = wide
            *_, count, size, offset = _END64.unpack(record64)
    directory = record - size
    start = directory - offset
    if start < 0 or count > _MAX_MEMBERS or size > MAX_HEADER_SIZE:
        raise Unreadable
    return Archive(start, directory, _read_directory(take(read, directory, size), count, start))


def _find_end(read: ReadAt, end: int) -> int:
    """Return where the record at the end of an archive begins; behind it there may be a comment."""
    if end < _END.size:
        raise Unreadable
    if take(read, end - _END.size, _END.size)[:4] == b"PK\x05\x06":
        return end - _END.size
    begin = max(0, end - _END.size - _MAX_COMMENT_SIZE)
    tail = take(read, begin, end - begin)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0 or at + _END.size + int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail):
        raise Unreadable
    return begin + at


def _read_directory(data: bytes, count: int, start: int) -> dict[str, Member]:
    members: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        if len(data) - at < _ENTRY.size:
            raise Unreadable
        fields = _ENTRY.unpack_from(data, at)
        name_size, extra_size, comment_size = fields[10:13]
        at += _ENTRY.size
        if fields[0] != b"PK\x01\x02" or len(data) - at < name_size + extra_size + comment_size:
            raise Unreadable
        extra = data[at + name_size : at + name_size + extra_size]
        stored_size, size, header = _widened(fields[8], fields[9], fields[16], extra)
        name = data[at : at + name_size].decode("utf-8", "replace")
        stored = not fields[4] and not fields[3] & _ENCRYPTED and stored_size == size
        members[name] = Member(name, start + header, size, stored)
        at += name_size + extra_size + comment_size
    return members


def _widened(stored_size: int, size: int, header: int, extra: bytes) -> tuple[int, int, int]:
    """Return sizes and offset with those that are beyond 32 bits from the extra field."""
    if _LARGE not in {stored_size, size, header}:
        return stored_size, size, header
    at = 0
    while len(extra) - at >= _EXTRA.size:
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _ZIP64:
            wide = extra[at : at + length]
            numbers = iter(int.from_bytes(wide[i : i + 8], "little") for i in range(0, len(wide) - 7, 8))
            size = next(numbers, size) if size == _LARGE else size
            stored_size = next(numbers, stored_size) if stored_size == _LARGE else stored_size
            return stored_size, size, next(numbers, header) if header == _LARGE else header
        at += length
    return stored_size, size, header


def data_offset(read: ReadAt, archive: Archive, member: Member) -> int:
    """Return where the bytes of a stored member begin in the whole file.

    Raises:
        Unreadable: they do not lie there as they are.
    """
    if not member.stored or not archive.start <= member.header < archive.directory:
        raise Unreadable
    fields = _LOCAL.unpack(take(read, member.header, _LOCAL.size))
    begin: int = member.header + _LOCAL.size + fields[-2] + fields[-1]
    if fields[0] != ZIP_MAGIC or fields[3] or begin + member.size > archive.directory:
        raise Unreadable
    return begin


def read_member(read: ReadAt, archive: Archive, member: Member) -> bytes:
    """Return the bytes of a stored member, at most 16 MiB.

    Raises:
        Unreadable: they do not lie there as they are, or are more.
    """
    return take(read, data_offset(read, archive, member), member.size)
