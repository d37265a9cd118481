"""Entries ↔ bytes: what a snapshot contains, and the packs that hold it (SPEC.md, "Manifests").

A manifest object is small: its entries are themselves a stream that is cut and stored like the content of a
file, so that a snapshot which shares most entries with the one before stores only what changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from cas_checkpoint.codecs import MAX_CHUNK_SIZE
from cas_checkpoint.errors import DamagedObject, InvalidArgument
from cas_checkpoint.ids import CHUNK_ID_SIZE, RANDOM_ID_SIZE, Buffer, ChunkId, PackId, StoreId, TransactionId
from cas_checkpoint.records import (
    MAX_ITEMS,
    MAX_RECORD_SIZE,
    Fields,
    Kind,
    decode_record,
    encode_record,
    pack_value,
    unpack_value,
)

__all__ = [
    "ENTRY_FRAME_SIZE",
    "INLINE_REFS",
    "MAX_DEPTH",
    "MAX_ENTRY_SIZE",
    "MAX_EXTENTS",
    "MAX_MANIFEST_SIZE",
    "MAX_PATH_SIZE",
    "REF_SIZE",
    "ChunkRef",
    "Content",
    "Entry",
    "EntryReader",
    "EntrySplitter",
    "EntryType",
    "Manifest",
    "Owner",
    "PackRef",
    "check_path",
    "decode_entry",
    "decode_refs",
    "encode_entry",
    "encode_ref",
    "order",
    "peek_path",
]

MAX_PATH_SIZE = 32 * 2**10
MAX_ENTRY_SIZE = 2**20
MAX_EXTENTS = 4096
MAX_DEPTH = 4
MAX_MANIFEST_SIZE = MAX_RECORD_SIZE + 2**10
INLINE_REFS = 512
"""Chunk lists longer than this are stored as chunks themselves."""

_REF: Final = struct.Struct(f"<{CHUNK_ID_SIZE}sI")
REF_SIZE = _REF.size
_EXTENT: Final = struct.Struct("<QQ")
_PACK_REF: Final = struct.Struct(f"<{RANDOM_ID_SIZE}s{RANDOM_ID_SIZE}s")
_ENTRY_SIZE: Final = struct.Struct("<I")
ENTRY_FRAME_SIZE = _ENTRY_SIZE.size
"""What stands before an entry in a stream of entries: its size."""
_MODE_BITS: Final = 0o7777


class ChunkRef(NamedTuple):
    """A chunk as a part of some content: its id and its plain size in bytes."""

    chunk: ChunkId
    size: int


class Content(NamedTuple):
    """A stream of bytes, as chunks.

    Attributes:
        size: bytes of the stream.
        depth: 0 if `refs` are the stream's own chunks; n if they are the chunks of the list of refs of depth n - 1.
        refs: packed `ChunkRef`s of 36 bytes each.
    """

    size: int
    depth: int
    refs: bytes


class EntryType(str, Enum):
    """What an entry is."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    HARDLINK = "h"


_TYPES: Final = {entry_type.value: entry_type for entry_type in EntryType}


class Owner(NamedTuple):
    """Who owns an entry; names are empty where the system had none."""

    uid: int
    gid: int
    user: str
    group: str


class Entry(NamedTuple):
    """One file, directory or link of a snapshot.

    Attributes:
        path: relative, `/`-separated bytes; empty for the saved directory itself.
        type: what it is.
        mode: permission bits (0o7777).
        mtime_ns: time of last change, nanoseconds since 1970.
        size: bytes of a file; 0 otherwise.
        content: a file's data (without its holes).
        target: where a symlink points, or the path of the entry that a hard link shares its file with.
        extents: (offset, size) of the runs of data of a sparse file; None for a file without holes.
        xattrs: extended attributes.
        owner: None unless it was asked for.
    """

    path: bytes
    type: EntryType
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: Content | None = None
    target: bytes = b""
    extents: tuple[tuple[int, int], ...] | None = None
    xattrs: Mapping[bytes, bytes] = {}
    owner: Owner | None = None

    @property
    def name(self) -> str:
        """The path as text, undecodable bytes as surrogate escapes."""
        return self.path.decode("utf-8", "surrogateescape")


class PackRef(NamedTuple):
    """A pack that a snapshot needs, and its home: the index object that listed it when the manifest was written."""

    pack: PackId
    home: TransactionId


class Manifest(NamedTuple):
    """The content of one snapshot.

    Attributes:
        store: the store's id.
        series: the series.
        sequence: the snapshot's number in its series.
        transaction: the snapshot's id.
        base: the date of the dedup knowledge that went into `packs`.
        packs: every pack that the snapshot needs.
        entries: the stream of encoded entries.
        entry_count: their number.
    """

    store: StoreId
    series: str
    sequence: int
    transaction: TransactionId
    base: int
    packs: tuple[PackRef, ...]
    entries: Content
    entry_count: int

    def encode(self) -> bytes:
        """Return the manifest object."""
        return encode_record(
            Kind.MANIFEST,
            {
                "store": self.store,
                "series": self.series,
                "sequence": self.sequence,
                "transaction": self.transaction,
                "base": self.base,
                "packs": b"".join(_PACK_REF.pack(*ref) for ref in self.packs),
                "entries": tuple(self.entries),
                "entry_count": self.entry_count,
            },
        )

    @classmethod
    def decode(cls, data: Buffer) -> Manifest:
        """Read a manifest object; one that was altered is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.MANIFEST, data)
        packs = fields.bytes("packs")
        if len(packs) % _PACK_REF.size:
            raise DamagedObject("its list of packs is cut short")
        return cls(
            StoreId(fields.bytes("store", RANDOM_ID_SIZE)),
            fields.text("series"),
            fields.integer("sequence"),
            TransactionId(fields.bytes("transaction", RANDOM_ID_SIZE)),
            fields.integer("base"),
            tuple(PackRef(PackId(pack), TransactionId(home)) for pack, home in _PACK_REF.iter_unpack(packs)),
            _decode_content(fields.get("entries")),
            fields.integer("entry_count"),
        )


def encode_ref(chunk: bytes, size: int) -> bytes:
    """Return a packed `ChunkRef`."""
    return _REF.pack(chunk, size)


def decode_refs(data: Buffer) -> Iterator[ChunkRef]:
    """Yield the `ChunkRef`s packed in `data`; an impossible one is `DamagedObject`."""
    if len(data) % REF_SIZE:
        raise DamagedObject("a list of chunks is cut short")
    for chunk, size in _REF.iter_unpack(data):
        if not 0 < size <= MAX_CHUNK_SIZE:
            raise DamagedObject(f"a list of chunks holds one of {size} bytes")
        yield ChunkRef(chunk, size)


def _decode_content(value: Any) -> Content:  # noqa: ANN401 -- from unpack_value
    if not isinstance(value, tuple) or len(value) != 3:  # noqa: PLR2004 -- the fields of Content
        raise DamagedObject("a content that is not size, depth and chunks")
    size, depth, refs = value
    if type(size) is not int or type(depth) is not int or type(refs) is not bytes:
        raise DamagedObject("a content whose fields are of other types")
    if not 0 <= size < 2**63 or not 0 <= depth <= MAX_DEPTH or len(refs) % REF_SIZE or bool(refs) != bool(size):
        raise DamagedObject(f"an impossible content of {size} bytes at depth {depth}")
    return Content(size, depth, refs)


# --- paths --------------------------------------------------------------------------------------


def check_path(path: bytes) -> bytes:
    """Return `path` if an entry other than the root may have it, else raise `InvalidArgument`.

    It must be relative, without empty, `.` or `..` components and without NUL bytes.
    """
    parts = path.split(b"/")
    if len(path) > MAX_PATH_SIZE or b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise InvalidArgument(f"not a path that a snapshot can hold: {path[:200]!r}")
    return path


def order(path: bytes) -> bytes:
    """Return the key by which entries are ordered: component by component, parents before their children."""
    return path.replace(b"/", b"\0")


# --- entries ------------------------------------------------------------------------------------


def encode_entry(entry: Entry) -> bytes:
    """Return the entry as it stands in an entry stream; one that the format cannot hold is `InvalidArgument`."""
    extra: dict[str, object] = {}
    if entry.extents is not None:
        extra["extents"] = b"".join(_EXTENT.pack(*extent) for extent in entry.extents)
    if entry.target:
        extra["target"] = entry.target
    if entry.xattrs:
        extra["xattrs"] = dict(sorted(entry.xattrs.items()))
    if entry.owner is not None:
        extra["owner"] = tuple(entry.owner)
    fields = [entry.path, entry.type.value, entry.mode, entry.mtime_ns, entry.size, entry.content, extra or None]
    encoded = pack_value(fields)
    if len(encoded) > MAX_ENTRY_SIZE or len(entry.xattrs) > MAX_ITEMS:
        raise InvalidArgument(f"{entry.name}: its metadata would take {len(encoded)} bytes; at most {MAX_ENTRY_SIZE}")
    return _ENTRY_SIZE.pack(len(encoded)) + encoded


def decode_entry(data: Buffer) -> Entry:
    """Read one entry, without its size in front; anything that is not right is `DamagedObject`."""
    value = unpack_value(data)
    if type(value) is not tuple or len(value) != 7:  # noqa: PLR2004 -- the fields of an entry
        raise DamagedObject("an entry that does not have the seven fields of an entry")
    path, kind, mode, mtime_ns, size, content, extra = value
    if [type(field) for field in value[:5]] != [bytes, str, int, int, int]:
        raise DamagedObject("an entry whose fields are of other types")
    entry_type = _TYPES.get(kind)
    if entry_type is None:
        raise DamagedObject(f"an entry of the unknown type {kind[:20]!r}: {path[:200]!r}")
    if not 0 <= mode <= _MODE_BITS or not -(2**63) <= mtime_ns < 2**63 or not 0 <= size < 2**63:
        raise DamagedObject(f"an entry with an impossible mode, time or size: {path[:200]!r}")
    if path or entry_type is not EntryType.DIRECTORY:
        _check_stored_path(path)
    entry = Entry(path, entry_type, mode, mtime_ns, size, None if content is None else _decode_content(content))
    if extra is not None:
        entry = _with_extra(entry, Fields(extra))
    _check_entry(entry)
    return entry


def _check_stored_path(path: bytes) -> None:
    try:
        check_path(path)
    except InvalidArgument as error:
        raise DamagedObject(f"an entry with the forbidden path {path[:200]!r}") from error


def _with_extra(entry: Entry, fields: Fields) -> Entry:
    extents, target, xattrs, owner = (fields.get(name) for name in ("extents", "target", "xattrs", "owner"))
    if extents is not None:
        packed = fields.bytes("extents")
        if len(packed) % _EXTENT.size or len(packed) > MAX_EXTENTS * _EXTENT.size:
            raise DamagedObject(f"an impossible list of extents: {entry.path[:200]!r}")
        entry = entry._replace(extents=tuple(_EXTENT.iter_unpack(packed)))
    if target is not None:
        entry = entry._replace(target=fields.bytes("target"))
    if xattrs is not None:
        items = fields.map("xattrs")
        if not all(type(name) is bytes and type(value) is bytes for name, value in items.items()):
            raise DamagedObject(f"extended attributes that are not bytes: {entry.path[:200]!r}")
        entry = entry._replace(xattrs=items)
    if owner is not None:
        entry = entry._replace(owner=_decode_owner(fields.array("owner")))
    return entry


def _decode_owner(value: Sequence[Any]) -> Owner:
    if len(value) != 4 or [type(item) for item in value] != [int, int, str, str]:  # noqa: PLR2004 -- fields of Owner
        raise DamagedObject("an owner that is not two numbers and two names")
    owner = Owner(*value)
    if not (0 <= owner.uid < 2**32 and 0 <= owner.gid < 2**32):
        raise DamagedObject("an owner with an impossible number")
    return owner


def _check_entry(entry: Entry) -> None:
    """Check what the fields of an entry must be to one another."""
    if entry.type is EntryType.FILE:
        data_size = entry.size if entry.extents is None else _check_extents(entry.extents, entry.size)
        fits = entry.content is not None and entry.content.size == data_size and not entry.target
    else:
        linked = entry.type is not EntryType.DIRECTORY
        fits = entry.content is None and entry.extents is None and entry.size == 0 and bool(entry.target) == linked
    if not fits or b"\0" in entry.target:
        raise DamagedObject(f"an entry whose fields contradict one another: {entry.path[:200]!r}")
    if entry.type is EntryType.HARDLINK:
        _check_stored_path(entry.target)


def _check_extents(extents: tuple[tuple[int, int], ...], size: int) -> int:
    end = 0
    for start, length in extents:
        if start < end or length == 0:
            raise DamagedObject("extents that overlap, are empty or out of order")
        end = start + length
    if end > size:
        raise DamagedObject("extents beyond the end of their file")
    return sum(length for _, length in extents)


class EntrySplitter:
    """Splits an entry stream into encoded entries, piece by piece as they come.

    Attributes:
        rest: what came of the next entry.
    """

    def __init__(self) -> None:
        """Begin a stream."""
        self.rest = b""

    def feed(self, piece: Buffer) -> Iterator[bytes]:
        """Yield the entries that are complete with this piece, without their sizes."""
        data = self.rest + bytes(piece)
        start = 0
        while len(data) - start >= _ENTRY_SIZE.size:
            (size,) = _ENTRY_SIZE.unpack_from(data, start)
            if size > MAX_ENTRY_SIZE:
                raise DamagedObject(f"an entry of {size} bytes; at most {MAX_ENTRY_SIZE} are allowed")
            end = start + _ENTRY_SIZE.size + size
            if end > len(data):
                break
            yield data[start + _ENTRY_SIZE.size : end]
            start = end
        self.rest = data[start:]


def peek_path(encoded: bytes) -> bytes:
    """Return the path of an encoded entry without checking anything else in it; empty if there is none."""
    first = encoded[1:2]
    if first == b"\xc4":
        return encoded[3 : 3 + int.from_bytes(encoded[2:3], "big")]
    if first == b"\xc5":
        return encoded[4 : 4 + int.from_bytes(encoded[2:4], "big")]
    return b""


class EntryReader:
    """Reads entries from the pieces of an entry stream, as they come."""

    def __init__(self) -> None:
        """Begin a stream."""
        self._splitter = EntrySplitter()
        self._last: Entry | None = None
        self._count = 0

    def feed(self, piece: Buffer) -> Iterator[Entry]:
        """Yield the entries that are complete with this piece; anything that is not right is `DamagedObject`."""
        for encoded in self._splitter.feed(piece):
            yield self._next(decode_entry(encoded))

    def _next(self, entry: Entry) -> Entry:
        last = self._last
        if last is not None:
            if order(entry.path) <= order(last.path):
                raise DamagedObject(f"entries out of order at {entry.path[:200]!r}")
            # What a directory contains comes directly after it, so the last entry is the only one to ask.
            if last.type is not EntryType.DIRECTORY and entry.path.startswith(last.path + b"/"):
                raise DamagedObject(f"an entry in what is no directory: {entry.path[:200]!r}")
        self._last, self._count = entry, self._count + 1
        return entry

    def finish(self, count: int) -> None:
        """Check that the stream ended between two entries, after `count` of them."""
        if self._splitter.rest or self._count != count:
            raise DamagedObject(f"the entries end after {self._count} of {count}")
