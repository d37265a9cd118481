"""The head that every object begins with, and the sealed record that small objects consist of (SPEC.md, "Records").

A record is a head, one msgpack map as a blob, and a checksum. What the maps mean stands in the modules of the
objects (`headers`, `manifests`, `commits`, `marks`, `pointers`). The only importer of `msgpack`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgpack

from cas_checkpoint._version import __version__
from cas_checkpoint.codecs import Codec, Decoder, Encoder
from cas_checkpoint.errors import DamagedObject, ForeignObject, InvalidArgument, UnsupportedStore
from cas_checkpoint.ids import Buffer, digest

__all__ = [
    "CHECKSUM_SIZE",
    "FORMAT_VERSION",
    "HEAD_SIZE",
    "MAX_ITEMS",
    "MAX_RECORD_SIZE",
    "MAX_VALUES",
    "Fields",
    "Kind",
    "check_head",
    "decode_record",
    "encode_record",
    "make_head",
    "pack_value",
    "unpack_value",
]

FORMAT_VERSION = 1
MAGIC = b"\x89CAS\r\n\x1a\n"
HEAD_SIZE = 16
CHECKSUM_SIZE = 32
MAX_RECORD_SIZE = 16 * 2**20
"""The largest plain body of a record, in bytes; a record's object is never larger than this and its frame."""
MAX_ITEMS = 4096
"""The most items in one msgpack array or map; long lists travel as packed bytes instead."""
MAX_VALUES = 4 * MAX_ITEMS
"""The most values of any kind in one msgpack value, itself and the keys of maps counted."""

_HEAD = struct.Struct("<8scBHHH")
_SIZE = struct.Struct("<I")
_RECORD_LEVEL = 3
_MIN_COMPRESSED = 4096  # to make an encoder takes longer than to write so few bytes
_HARMLESS_SIZE = 768  # so few bytes cannot declare more than 2 MiB of nested arrays, whatever they say


def _layout(tag: int) -> tuple[int, int, int, int]:
    """Return what follows a msgpack tag: width of a number, bytes, values, values for each one of the number."""
    if tag in range(0x80, 0x90):
        return 0, 0, 2 * (tag - 0x80), 0
    if tag in range(0x90, 0xA0):
        return 0, 0, tag - 0x90, 0
    if tag in range(0xA0, 0xC0):
        return 0, tag - 0xA0, 0, 0
    sizes = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    widths = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
    each = {0xDC: 1, 0xDD: 1, 0xDE: 2, 0xDF: 2}
    return widths.get(tag, 0), sizes.get(tag, 0), 0, each.get(tag, 0)  # extensions: refused by the parser


_LAYOUT = tuple(map(_layout, range(256)))


class Kind(bytes, Enum):
    """What an object is; one byte of its head."""

    HEADER = b"H"
    PACK = b"P"
    INDEX = b"I"
    MANIFEST = b"M"
    COMMIT = b"C"
    MARK = b"K"
    MOVE = b"V"
    POINTER = b"R"
    PLAN = b"L"
    RECEIPT = b"T"


def _writer_version() -> tuple[int, int, int]:
    major, minor, patch = (int("".join(filter(str.isdigit, part)) or 0) for part in __version__.split(".")[:3])
    return major, minor, patch


def make_head(kind: Kind) -> bytes:
    """Return the 16 bytes with which an object of this kind begins: magic, kind, format and writer version."""
    return _HEAD.pack(MAGIC, kind.value, FORMAT_VERSION, *_writer_version())


def check_head(data: Buffer, kind: Kind) -> None:
    """Check the head of an object that should be of `kind`.

    Raises:
        ForeignObject: not an object of a store at all.
        DamagedObject: cut short, or of another kind.
        UnsupportedStore: of a newer format version.
    """
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)]:
        raise ForeignObject("does not begin like an object of a checkpoint store")
    if len(data) < HEAD_SIZE:
        raise DamagedObject(f"only {len(data)} bytes long")
    _, found, version, major, minor, patch = _HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        raise UnsupportedStore(
            f"format version {version}, written by cas-checkpoint {major}.{minor}.{patch}; "
            f"this version reads format {FORMAT_VERSION}: update it"
        )
    if found != kind.value:
        raise DamagedObject(f"is an object of kind {found!r}, not {kind.value!r}")


def pack_value(value: object) -> bytes:
    """Return `value` (None, bool, int, float, str, bytes, list, dict) in msgpack."""
    packed = msgpack.packb(value, use_bin_type=True)
    return bytes(packed)


def unpack_value(data: Buffer) -> Any:  # noqa: ANN401 -- whatever the bytes say; callers check it with Fields
    """Return the one msgpack value that `data` consists of; anything else is `DamagedObject`.

    Arrays come back as tuples. No extension types; at most `MAX_ITEMS` items in any array or map and at most
    `MAX_VALUES` values in all, so that a few bytes cannot ask for much memory.
    """
    if len(data) > _HARMLESS_SIZE:
        _check_amount(data)
    most = min(MAX_ITEMS, len(data))  # an item has at least one byte
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=False,
            max_array_len=most,
            max_map_len=most,
            max_ext_len=0,
            ext_hook=_no_extension,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise DamagedObject(f"cannot be parsed ({type(error).__name__}: {error})") from error


def _no_extension(code: int, _: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _check_amount(data: Buffer) -> None:
    """Refuse all but one msgpack value of at most `MAX_VALUES` parts, before anything is made of it."""
    at, owed, seen = 0, 1, 0
    while owed:
        if at >= len(data) or seen == MAX_VALUES:
            raise DamagedObject(f"cannot be parsed (cut short, or more than {MAX_VALUES} values)")
        width, size, values, each = _LAYOUT[data[at]]
        if width:
            number = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            size, values = (0, number * each) if each else (number, 0)
        at += 1 + width + size
        owed += values - 1
        seen += 1
    if at != len(data):
        raise DamagedObject("cannot be parsed (cut short, or followed by other bytes)")


def encode_record(kind: Kind, body: Mapping[str, object], *, limit: int = MAX_RECORD_SIZE) -> bytes:
    """Return the record of `kind` with the given body, of at most `limit` plain bytes."""
    plain = pack_value(dict(body))
    if len(plain) > limit:
        raise InvalidArgument(
            f"a record of kind {kind.value!r} would have {len(plain)} bytes; at most {limit} are possible: save less"
        )
    is_small = len(plain) < _MIN_COMPRESSED
    blob = bytes((Codec.RAW,)) + plain if is_small else Encoder(level=_RECORD_LEVEL, planes=False).blob(plain)
    content = make_head(kind) + _SIZE.pack(len(plain)) + blob
    return content + digest((content,))


def decode_record(kind: Kind, data: Buffer, *, limit: int = MAX_RECORD_SIZE) -> Fields:
    """Return the body of a record that should be of `kind`.

    Raises:
        DamagedObject: not such a record, or altered.
        UnsupportedStore: of a newer format version.
    """
    view = memoryview(data)
    check_head(view, kind)
    if len(view) < HEAD_SIZE + _SIZE.size + CHECKSUM_SIZE:
        raise DamagedObject(f"only {len(view)} bytes long")
    content, checksum = view[:-CHECKSUM_SIZE], view[-CHECKSUM_SIZE:]
    if digest((content,)) != checksum:
        raise DamagedObject("its checksum does not fit its content")
    (plain_size,) = _SIZE.unpack_from(content, HEAD_SIZE)
    if plain_size > limit:
        raise DamagedObject(f"declares a body of {plain_size} bytes; at most {limit} are allowed")
    body = unpack_value(Decoder().decode(content[HEAD_SIZE + _SIZE.size :], plain_size))
    return Fields(body)


class Fields:
    """A msgpack map from a store, read field by field; whatever is not as it should be is `DamagedObject`."""

    def __init__(self, value: object) -> None:
        """Take `value`, which should be a map."""
        if not isinstance(value, dict):
            raise DamagedObject(f"holds {type(value).__name__} where a map belongs")
        self._map = value

    def get(self, name: str) -> Any:  # noqa: ANN401 -- not checked yet
        """Return the raw value of a field, None if there is none."""
        return self._map.get(name)

    def bytes(self, name: str, size: int | None = None) -> bytes:
        """Return a byte string, of exactly `size` bytes if that is given."""
        value = self._map.get(name)
        if type(value) is not bytes or (size is not None and len(value) != size):
            raise DamagedObject(f"field {name!r} is not a byte string of the right size")
        return value

    def text(self, name: str, *, limit: int = 2**16) -> str:
        """Return a text of at most `limit` characters."""
        value = self._map.get(name)
        if not isinstance(value, str) or len(value) > limit:
            raise DamagedObject(f"field {name!r} is not a text of at most {limit} characters")
        return value

    def integer(self, name: str, *, low: int = 0, high: int = 2**63 - 1) -> int:
        """Return an integer between `low` and `high`, both included."""
        value = self._map.get(name)
        if type(value) is not int or not low <= value <= high:
            raise DamagedObject(f"field {name!r} is not an integer from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        """Return a floating-point number."""
        value = self._map.get(name)
        if type(value) is not float and type(value) is not int:
            raise DamagedObject(f"field {name!r} is not a number")
        return float(value)

    def array(self, name: str) -> tuple[Any, ...]:
        """Return an array, its items not checked yet."""
        value = self._map.get(name)
        if not isinstance(value, tuple):
            raise DamagedObject(f"field {name!r} is not an array")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return an array of texts."""
        value = self.array(name)
        if not all(isinstance(item, str) for item in value):
            raise DamagedObject(f"field {name!r} holds something other than texts")
        return value

    def map(self, name: str) -> dict[Any, Any]:
        """Return a map, its items not checked yet."""
        value = self._map.get(name)
        if not isinstance(value, dict):
            raise DamagedObject(f"field {name!r} is not a map")
        return value
