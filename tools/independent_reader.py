#!/usr/bin/env python3
# ruff: noqa: ANN401, PLR2004 - values are what MessagePack gives; sizes and offsets are those of SPEC.md
"""Restores a snapshot of a store on a local disk: a second reader of the format, written from SPEC.md alone.

Usage: independent_reader.py STORE TARGET [SERIES[@latest|@N]]

TARGET must not exist yet; it is removed again if anything fails. Fields that are not used here (owners, statistics) are
not checked, and the index, which is only a cache, is not read. "Section" means SPEC.md's.
"""

import contextlib
import io
import itertools
import math
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack
import zstandard
from blake3 import blake3

UNPACKING: dict[str, Any] = {"max_array_len": 4096, "max_map_len": 4096, "max_ext_len": 0}  # sections 4 and 19
UNPACKING["ext_hook"] = lambda *_: require(None, "an extension type")  # max_ext_len lets pass one without data


def require(condition: object, complaint: str) -> None:
    """Refuse unless the condition holds."""
    if not condition:
        raise ValueError(complaint)


def number(value: Any, end: int = 2**63, begin: int = 0) -> int:
    """Check an integer; true and false are none (section 4)."""
    require(type(value) is int and begin <= value < end, f"{value!r:.40} is not the number that it should be")
    return int(value)


def check_object(data: bytes, kind: bytes, key: str) -> None:
    """Check a head (section 3), and the checksum that ends records and footers (sections 4 and 7)."""
    require(data[:8] == b"\x89CAS\r\n\x1a\n" and data[9] == 1, f"{key} is no object of version 1 of the format")
    require(data[8:9] == kind and blake3(data[:-32]).digest() == data[-32:], f"{key} has a wrong kind or checksum")


def decode(blob: bytes, plain_size: int, base: bytes | None = None) -> bytes:
    """Section 6."""
    require(
        blob[0] < 4 and len(blob) <= plain_size + 1, f"a blob has a wrong size, or codec {blob[0]} is not known here"
    )
    return expand(blob, plain_size) if blob[0] < 2 else join(blob, plain_size, base)


def expand(data: bytes, size: int) -> bytes:
    """Read bytes that are raw, a frame, or zeros, as the first byte says."""
    if data == b"\2":
        return bytes(size)
    known = data[0] == 0 or (data[0] == 1 and zstandard.frame_content_size(data[1:]) == size)
    require(known, "a frame has a wrong size, or is in an unknown coding")
    plain = zstandard.ZstdDecompressor().decompress(data[1:], allow_extra_data=False) if data[0] else data[1:]
    require(len(plain) == size, "a blob or a part of one has another plain size")
    return plain


def part(data: bytes) -> tuple[bytes, bytes]:
    """Return a part with its coding before it, and what follows."""
    end = 5 + int.from_bytes(data[1:5], "little")
    require(5 <= end <= len(data), "a part of a blob is cut short")
    return data[:1] + data[5:end], data[end:]


def bits(data: bytes, width: int, count: int) -> list[int]:
    """Read numbers of so many bits, the first in the lowest bits."""
    return [data[at * width // 8] >> at * width % 8 & 2**width - 1 for at in range(count)]


def packed(data: bytes, width: int, count: int) -> tuple[list[int], bytes]:
    """Read values of so many bytes each: low bits, small tops, and what the tops of large ones exceed these by."""
    require(len(data) >= 6, "packed values are cut short")
    low, top, large = data[0], data[1], int.from_bytes(data[2:6], "little")
    require(low <= 8 * width - 8 and top in {1, 2, 4, 8} and large <= count, "packed values have an unknown shape")
    values, rest, at = [0] * count, data[6:], 0
    for step in [8] * (low // 8) + [step for step in (4, 2, 1) if low & step]:
        size = -(-count * step // 8)
        require(size <= len(rest), "low bits are cut short")
        values = [value | more << at for value, more in zip(values, bits(rest, step, count), strict=True)]
        rest, at = rest[size:], at + step
    data, rest = part(rest)
    tops = bits(expand(data, -(-count * top // 8)), top, count)
    marks = [number for number, value in enumerate(tops) if value == 2**top - 1]
    require(len(marks) == large, "packed values have another number of large ones")
    for place in range(width if large else 0):
        data, rest = part(rest)
        for number, byte in zip(marks, expand(data, large), strict=True):
            tops[number] += byte << 8 * place
    top = 256**width
    return [(value | high << low) % top for value, high in zip(values, tops, strict=True)], rest


def plane(data: bytes, count: int) -> bytes:
    """Read one byte of each element, which may be packed values."""
    if data[0] not in {3, 4}:
        return expand(data, count)
    values, rest = packed(data[data[0] - 2 :], 1, count)
    require(not rest, "a plane goes on after its values")
    return bytes(values) if data[0] == 3 else bytes((data[1] - value) % 256 for value in values)


def joined(rest: bytes, width: int, count: int, *, is_float: bool) -> tuple[list[int], bytes]:
    """Put planes together."""
    planes = []
    for _ in range(width):
        data, rest = part(rest)
        planes.append(plane(data, count))
    values = [int.from_bytes(column, "little") for column in zip(*planes, strict=True)]
    return [value >> 1 | (value & 1) << 8 * width - 1 for value in values] if is_float else values, rest


def added(rest: bytes, width: int, lower: list[int], *, is_float: bool) -> tuple[list[int], bytes]:
    """Add differences, which are grouped by the highest byte of the base without its sign, to the base."""
    groups, top = 1 + rest[0], 1 << 8 * width - 1
    lasts, rest = list(rest[1 : 1 + groups]), rest[1 + groups :]
    require([*sorted(set(lasts)), 255][:groups] == lasts and lasts[-1] == 255, "a delta has no groups")
    shift = 8 * width - (9 if is_float and width > 1 else 8)
    keys = [old >> shift & 255 for old in lower]
    values = [0] * len(lower)
    for first, last in zip([-1, *lasts], lasts, strict=False):
        numbers = [number for number, key in enumerate(keys) if first < key <= last]
        found, rest = packed(rest, width, len(numbers))
        for number, value in zip(numbers, found, strict=True):
            values[number] = value
    lower = [(value ^ (2 * top - 1 if value & top else top)) if is_float else value for value in lower]
    values = [(value >> 1 ^ -(value & 1)) + old & 2 * top - 1 for value, old in zip(values, lower, strict=True)]
    return [(value ^ (top if value & top else 2 * top - 1)) if is_float else value for value in values], rest


def join(blob: bytes, size: int, base: bytes | None) -> bytes:
    """Put planes together, or add differences to the base, or to a window of it."""
    require(len(blob) > 1 and blob[1] < 8 * (blob[0] - 1), "a blob has an unknown shape")
    width, is_float, base = 1 << (blob[1] & 3), bool(blob[1] & 4), base or b""
    if blob[1] & 8:
        require(len(blob) > 6 and size < len(base) <= 8 * size, "a base has another size")
        base, blob = base[int.from_bytes(blob[2:6], "little") :][:size], blob[:2] + blob[6:]
    if blob[0] == 2:
        values, rest = joined(blob[2:], width, size // width, is_float=is_float)
    else:
        require(len(base) == size and len(blob) > 2, "a delta has no base of its size")
        lower = [int.from_bytes(base[at : at + width], "little") for at in range(0, size - size % width, width)]
        values, rest = added(blob[2:], width, lower, is_float=is_float)
    require(len(rest) == size % width, "a blob has another number of bytes after its planes")
    return b"".join(value.to_bytes(width, "little") for value in values) + rest


def split(pieces: Iterable[bytes], row_size: int = 0) -> Iterator[bytes]:
    """Cut a stream into rows of one size, or into entries that begin with theirs (section 11)."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        while len(rest) >= (size := row_size or 4 + int.from_bytes(rest[:4], "little")) and size <= 2**20 + 4:
            yield bytes(rest[:size])
            del rest[:size]
        require(len(rest) < 2**20 + 4, "an entry is too large")
    require(not rest, "a stream ends within a row")


class Entry:
    """An entry, checked as far as that needs no other (section 11)."""

    def __init__(self, data: bytes) -> None:
        self.path, self.kind, mode, mtime, size, self.content, extra = msgpack.unpackb(data[4:], **UNPACKING)
        self.mode, self.mtime, self.size = number(mode, 2**12), number(mtime, 2**63, -(2**63)), number(size)
        given: Any = {key: value for key, value in ({} if extra is None else extra).items() if value is not None}
        target, extents, self.xattrs = given.get("target"), given.get("extents"), given.get("xattrs", {})
        self.parts, self.target, name = self.path.split(b"/"), target or b"", f"entry {self.path!r:.200}"
        safe = not {b"", b".", b".."} & {*self.parts} and b"\0" not in self.path and len(self.path) <= 32768
        require(safe or (self.path == b"" and self.kind == "d"), f"{name} has a forbidden path")
        fits = re.fullmatch(rb"[^\0]+", target) if self.kind in {"l", "h"} else target is None
        require(fits and self.kind in {"f", "d", "l", "h"}, f"{name} has a wrong target, or an unknown type")
        require({type(text) for pair in self.xattrs.items() for text in pair} <= {bytes}, f"{name} has wrong xattrs")
        self.runs = [(0, self.size)] * bool(size) if extents is None else list(struct.iter_unpack("<QQ", extents))
        bounds = [0, *(bound for offset, length in self.runs for bound in (offset, offset + length)), self.size]
        lengths = [length for _, length in self.runs]
        require(bounds == sorted(bounds) and all(lengths) and len(lengths) <= 4096, f"{name} has wrong extents")
        plain = (self.content, size, extents) == (None, 0, None)
        require(number(self.content[0]) == sum(lengths) if self.kind == "f" else plain, f"{name} has a wrong size")


class Snapshot:
    """A snapshot, as it lies in a store (section 15)."""

    def __init__(self, store: str, series: str, sequence: str) -> None:
        self.store, self.inline = store, dict[str, bytes]()
        self.places: dict[bytes, tuple[str, int, int, int, int]] = {}
        self.deltas: dict[bytes, tuple[str, int, int, int, int, bytes]] = {}
        header = self.read_record("cas-checkpoint", b"H", 2**16, {"chunk_id": "blake3-256", "key_slots": []})
        features = header["features"]["read"]
        require(
            type(features) is list and {*features} <= {"moves", "tensors-3"}, f"unknown features: {features!r:.200}"
        )
        escaped = re.sub(rb"[^a-z0-9_.-]|\A\.|\.\Z", lambda byte: b"%%%02x" % ord(byte[0]), series.encode()).decode()
        wanted = re.compile(f"{sequence.zfill(16) if sequence else '[0-9]{16}'}-[0-9a-f]{{32}}")
        for key in sorted(filter(wanted.fullmatch, os.listdir(f"{store}/commits/{escaped}")), reverse=True):
            self.key, self.names = f"commits/{escaped}/{key}", {"store": header["store"], "series": series}
            self.names |= {"sequence": int(key[:16]), "transaction": bytes.fromhex(key[17:])}
            self.commit = self.read_record(self.key, b"C", 2**21, self.names)
            require(self.commit["state"] in {"A", "C"}, f"{self.key} is in an unknown state")
            if self.commit["state"] == "C":
                return
        raise ValueError("there is no such snapshot")

    def load(self, key: str, offset: int, size: int) -> bytes:
        """Read from an object, or from what the commit holds in its place; an offset below 0 counts from the end."""
        with io.BytesIO(self.inline[key]) if key in self.inline else open(f"{self.store}/{key}", "rb") as file:
            file.seek(offset, io.SEEK_END if offset < 0 else io.SEEK_SET)
            return file.read(size)

    def read_record(self, key: str, kind: bytes, limit: int, fields: dict[str, Any], whole: Any = None) -> Any:
        """Section 4; some fields must be as given, others are checked where they are used."""
        data = self.load(key, 0, 2**24 + 54)
        check_object(data, kind, key)
        require(whole in {None, (len(data), blake3(data).digest())}, f"{key} is not what the commit names")
        plain_size = int.from_bytes(data[16:20], "little")
        require(plain_size <= limit, f"{key} is too large")
        body = msgpack.unpackb(decode(data[20:-32], plain_size), **UNPACKING)
        require(all(repr(body[name]) == repr(fields[name]) for name in fields), f"{key} is another's, or too new")
        return body

    def read_footer(self, key: str) -> None:
        """Section 7."""
        footer_size, mark = struct.unpack("<I4s", tail := self.load(key, -8, 8))
        footer = self.load(key, -8 - footer_size, footer_size)
        check_object(footer, b"P", key)
        pack, count, delta_count, blobs_size = struct.unpack_from("<16sIIQ", footer, 16)
        columns = [struct.unpack_from(f"<{count}I", footer, 48 + width * count) for width in (32, 36, 40)]
        fits = (mark, footer_size, blobs_size) == (b"CASP", 80 + 44 * count + 36 * delta_count, sum(columns[0]))
        require(fits and key == f"packs/{pack.hex()}", f"{key} has another id, or sizes that do not add up")
        require(self.load(key, 32 + blobs_size, footer_size + 9) == footer + tail, f"{key} has another size")
        deltas = struct.unpack_from(f"<{delta_count}I", footer, end := 48 + 44 * count)
        require([*deltas] == sorted({*deltas} & {*range(count)}), f"{key} lists impossible deltas")
        ids = struct.iter_unpack("<32s", footer[end + 4 * delta_count : -32])
        bases = {number: base for number, (base,) in zip(deltas, ids, strict=True)}
        for i, row in enumerate(zip(itertools.accumulate(columns[0], initial=32), *columns, strict=False)):
            require(row[1] <= row[2] + 1 <= 2**24 + 1, f"{key} lists an impossible blob")
            chunk = footer[48 + 32 * i : 80 + 32 * i]
            if i in bases:
                self.deltas[chunk] = (key, *row, bases[i])
            else:
                self.places[chunk] = (key, *row)

    def read_moves(self, pack: str) -> list[str] | None:
        """Find out where the chunks of a pack went that is gone (section 13): None if nobody moved it."""
        names = os.listdir(f"{self.store}/moves") if os.path.isdir(f"{self.store}/moves") else []
        targets = None
        for match in filter(None, map(re.compile(f"{pack}-([0-9a-f]{{32}})").fullmatch, names)):
            given = {"pack": bytes.fromhex(pack), "collection": bytes.fromhex(match[1])}
            move = self.read_record(f"moves/{match[0]}", b"V", 2**24, given)
            targets = (targets or []) + [target.hex() for (target,) in struct.iter_unpack("<16s", move["targets"])]
        return targets

    def read_chunk(self, name: bytes, sizes: range, deltas: dict[bytes, Any]) -> bytes:
        """Read a chunk and check it; if it is a delta, read first what it is a delta of, stored whole (section 7)."""
        require(name in self.places or name in deltas, f"chunk {name.hex()} is in no pack of the snapshot")
        pack, offset, blob_size, plain_size, check, *base = self.places.get(name) or deltas[name]
        require(plain_size in sizes and plain_size, "a chunk has another size than its ref says")
        blob = self.load(pack, offset, blob_size)
        sizes = range(plain_size, 8 * plain_size + 1)
        plain = decode(blob, plain_size, *(self.read_chunk(source, sizes, {}) for source in base))
        fits = check == (zlib.crc32(blob) if blob[0] else 0) and blake3(plain).digest() == name
        require(fits, f"chunk {name.hex()} has other bytes, or another check")
        return plain

    def read(self, size: float, depth: int, refs: bytes) -> Iterator[bytes]:
        """Read the chunks of a content and check them; how large a list of refs is nobody says (section 9)."""
        lists = self.read(math.inf, depth - 1, refs) if number(depth, 5) else [refs]
        for ref in split(lists, 36):
            wanted = int.from_bytes(ref[32:], "little")
            plain = self.read_chunk(ref[:32], range(wanted, wanted + 1), self.deltas)
            size -= wanted
            require(size >= 0, "a content is longer than its size")
            yield plain
        require(size in {0, math.inf}, "a content is shorter than its size")

    def read_entries(self) -> list[Entry]:
        """Read the manifest, the footers of its packs, and the entries (sections 10 to 12)."""
        inline, own = self.commit.get("inline"), self.key[-32:]
        self.inline = {} if inline is None else {f"manifests/{own}": inline["manifest"], f"packs/{own}": inline["pack"]}
        whole = (self.commit["manifest_size"], self.commit["manifest_digest"])
        manifest = self.read_record(f"manifests/{own}", b"M", 2**24, self.names, whole)
        packs = [pack.hex() for pack, _ in struct.iter_unpack("<16s16s", manifest["packs"])]
        require(inline is None or not packs, "a snapshot within its commit has other packs")
        named = packs if inline is None else [own] * bool(inline["pack"])
        found = list(named)
        for pack in found:  # grows while packs are found to be gone
            try:
                self.read_footer(f"packs/{pack}")
            except FileNotFoundError:
                targets = self.read_moves(pack)
                require(targets is not None or pack not in named, f"packs/{pack} is missing, and was not moved")
                found += [target for target in targets or () if target not in found]
        size, depth, refs = manifest["entries"]
        entries = [Entry(row) for row in split(self.read(number(size), depth, refs))]
        require(len(entries) == number(manifest["entry_count"]), "the manifest has another number of entries")
        for last, entry in itertools.pairwise(entries):  # the first that lies in another follows it directly
            placed = last.kind == "d" or last.parts != entry.parts[: len(last.parts)]
            require(placed and last.parts < entry.parts, f"entry {entry.path!r} is in no directory, or out of order")
        files = {entry.path for entry in entries if entry.kind == "f"}
        require(files >= {entry.target for entry in entries if entry.kind == "h"}, "a hard link is to no file")
        return entries

    def make(self, path: bytes, entry: Entry, target: bytes) -> None:
        """Make what an entry says, at a path in the target, in which there are no symlinks yet if it is a file."""
        os.makedirs(path if entry.kind == "d" else os.path.dirname(path), exist_ok=True)
        if entry.kind == "l":
            os.symlink(entry.target, path)
        elif entry.kind == "h":
            os.link(os.path.join(target, entry.target), path)
        elif entry.kind == "f":
            pieces, rest = self.read(*entry.content), memoryview(b"")
            with open(path, "xb") as file:
                file.truncate(entry.size)
                for offset, length in entry.runs:
                    file.seek(offset)
                    while file.tell() < offset + length:
                        rest = rest or memoryview(next(pieces))
                        rest = rest[file.write(rest[: offset + length - file.tell()]) :]
            require(next(pieces, None) is None, "a content is longer than its size")

    def restore(self, target: bytes) -> None:
        """Write everything into a new directory: links last, and attributes after everything."""
        entries = [(os.path.join(target, entry.path), entry) for entry in self.read_entries()]
        os.mkdir(target, 0o700)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, target, ignore_errors=True)
            for path, entry in sorted(entries, key=lambda item: "dfhl".index(item[1].kind)):
                self.make(path, entry, target)
            for path, entry in reversed([item for item in entries if item[1].kind != "h"]):
                for name, value in entry.xattrs.items():
                    with contextlib.suppress(OSError, AttributeError, ValueError):
                        os.setxattr(path, name, value, follow_symlinks=False)
                if entry.kind != "l":
                    os.chmod(path, entry.mode)
                os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)
            undo.pop_all()


def main(arguments: list[str]) -> int:
    """Run the command."""
    if len(arguments) not in {2, 3}:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        store, target, reference = [*arguments, "default"][:3]
        series, sequence = re.findall(r"\A(.+?)(?:@(?:latest|([0-9]{1,16})))?\Z", reference, re.DOTALL)[0]
        Snapshot(store, series, sequence).restore(os.fsencode(target))
    except Exception as error:  # noqa: BLE001 - what has a wrong type or length fails as it may where it is used
        print("independent_reader:", type(error).__name__, *str(error).split(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
