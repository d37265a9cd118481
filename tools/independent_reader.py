#!/usr/bin/env python3
# ruff: noqa: ANN401, PLR2004 - values are what MessagePack gives; sizes and offsets are those of SPEC.md
"""Restores a snapshot of a store on a local disk: a second reader of the format, written from SPEC.md alone.

Usage: independent_reader.py STORE TARGET [SERIES[@latest|@N]]

It shows that SPEC.md is enough to get the data back, and shares no code with the library. TARGET must not exist yet;
it is removed again if anything fails. "Section" means SPEC.md's.
"""

import contextlib
import io
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgpack
import zstandard
from blake3 import blake3

NATURAL, SIGNED, ID = range(2**63), range(-(2**63), 2**63), 16
BODY_LIMITS = {b"H": 2**16, b"C": 2**21, b"M": 2**24}

# Shapes of values (see `fits`): a type, a range of ints, a number of bytes, (one, of), [array of], {map with}.
CHUNKER: dict[str, Any] = dict.fromkeys(("min_size", "normal_size", "max_size", "normalization"), NATURAL)
CHUNKER |= {"algorithm": str, "seed": range(2**64)}
HEADER = {"store": ID, "chunk_id": str, "chunker": CHUNKER, "metadata_chunker": CHUNKER, "key_slots": list}
HEADER |= {"capabilities": {"put_if_absent": bool}, "features": {"read": [str], "write": [str], "collect": [str]}}
NAMES = {"store": ID, "series": str, "sequence": NATURAL, "transaction": ID}
MANIFEST = NAMES | {"base": NATURAL, "packs": bytes, "entries": list, "entry_count": NATURAL}
COUNTS = ("files", "entries", "logical_size", "bytes_new", "bytes_reused", "chunks", "chunks_new", "bytes_written")
STATS = dict.fromkeys((*COUNTS, "objects_written"), NATURAL) | {"seconds": (float, int)}
COMMITTED = {"created_at": SIGNED, "step": (SIGNED, None), "metrics": dict, "tags": [str], "message": str}
COMMITTED |= {"stats": STATS, "manifest_digest": 32, "manifest_size": NATURAL}
COMMITTED |= {"inline": ({"manifest": bytes, "pack": bytes}, None)}
CONTENT = {"size": NATURAL, "depth": range(5), "refs": bytes}
ENTRY = {"path": bytes, "type": str, "mode": range(0o10000), "mtime": SIGNED, "size": NATURAL}
ENTRY |= {"content": (list, None), "extra": (dict, None)}
EXTRA = dict.fromkeys(("target", "extents"), (bytes, None)) | {"xattrs": (dict, None), "owner": (list, None)}
OWNER = {"uid": range(2**32), "gid": range(2**32), "user": str, "group": str}

Places = dict[bytes, tuple[bytes, int, int, int, int]]  # chunk: pack, offset, size, plain size, check


class RefusedError(Exception):
    """What is in the store breaks the specification, or is newer than it."""


def require(condition: object, complaint: str) -> None:
    """Refuse unless the condition holds."""
    if not condition:
        raise RefusedError(complaint)


def fits(value: Any, shape: Any) -> bool:
    """Tell whether a value has a shape."""
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, dict):
        return type(value) is dict and all(fits(value.get(key), one) for key, one in shape.items())
    if isinstance(shape, list):
        return type(value) is list and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, range):
        return type(value) is int and value in shape
    return (
        len(value) == shape if isinstance(shape, int) and type(value) is bytes else type(value) is (shape or type(None))
    )


def named(values: Any, shape: dict[str, Any], name: str) -> dict[str, Any]:
    """Give the items of an array their names."""
    row = dict(zip(shape, values, strict=False)) if type(values) is list and len(values) == len(shape) else None
    require(fits(row, shape), f"{name} is not an array of what it should be")
    return row or {}


def unpack(data: bytes, name: str) -> Any:
    """Decode exactly one MessagePack value (sections 4 and 19)."""
    try:
        return msgpack.unpackb(data, max_array_len=4096, max_map_len=4096, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise RefusedError(f"{name} is not one MessagePack value within the limits") from error


def check_head(data: bytes, kind: bytes, name: str) -> None:
    """Section 3."""
    require(data[:8] == b"\x89CAS\r\n\x1a\n" and len(data) >= 16, f"{name} is no object of a store")
    require(data[9] == 1, f"{name} has version {data[9]} of the format, which is not known here")
    require(data[8:9] == kind, f"{name} is an object of another kind")


def decode(blob: bytes, plain_size: int, name: str) -> bytes:
    """Section 6."""
    require(0 < len(blob) <= plain_size + 1, f"{name} has a wrong size")
    require(blob[0] <= 1, f"{name} needs codec {blob[0]}, which is not known here")
    plain = blob[1:]
    if blob[0] == 1:
        try:
            frame = zstandard.get_frame_parameters(plain)
            require(frame.content_size == plain_size and not frame.dict_id, f"{name} is a frame of another size")
            plain = zstandard.ZstdDecompressor().decompress(plain, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise RefusedError(f"{name} is a damaged frame") from error
    require(len(plain) == plain_size, f"{name} has another plain size")
    return plain


def read_record(data: bytes, kind: bytes, shape: dict[str, Any], name: str) -> dict[str, Any]:
    """Section 4."""
    check_head(data, kind, name)
    require(len(data) > 52 and blake3(data[:-32]).digest() == data[-32:], f"{name} has a wrong checksum")
    plain_size = int.from_bytes(data[16:20], "little")
    require(plain_size <= BODY_LIMITS[kind], f"{name} is too large")
    body: dict[str, Any] = unpack(decode(data[20:-32], plain_size, name), name)
    require(fits(body, shape), f"{name} has wrong fields")
    return body


def read_footer(footer: bytes, pack: bytes, pack_size: int) -> Places:
    """Section 7."""
    name, count = f"pack {pack.hex()}", (len(footer) - 80) // 44
    check_head(footer, b"P", name)
    whole = len(footer) == 80 + 44 * count and blake3(footer[:-32]).digest() == footer[-32:]
    require(whole and footer[16:32] == pack, f"{name} has a damaged footer")
    listed, _, blobs_size = struct.unpack_from("<IIQ", footer, 32)
    require(listed == count and pack_size == 40 + blobs_size + len(footer) < 2**32, f"{name} has another size")
    columns = [struct.unpack_from(f"<{count}I", footer, 48 + width * count) for width in (32, 36, 40)]
    places, offset = {}, 32
    for i, (size, plain_size, check) in enumerate(zip(*columns, strict=True)):
        require(size <= plain_size + 1 <= 2**24 + 1, f"{name} lists an impossible blob")
        places[footer[48 + 32 * i : 80 + 32 * i]] = (pack, offset, size, plain_size, check)
        offset += size
    require(offset == 32 + blobs_size, f"{name} lists sizes that do not add up")
    return places


def read_pack_end(file: BinaryIO, pack: bytes) -> Places:
    """Section 7, from the pack itself."""
    pack_size = file.seek(0, io.SEEK_END)
    file.seek(max(0, pack_size - 8))
    tail = file.read()
    footer_size = int.from_bytes(tail[:4], "little")
    require(tail[4:] == b"CASP" and 40 + footer_size <= pack_size, f"pack {pack.hex()} does not end like a pack")
    file.seek(pack_size - 8 - footer_size)
    return read_footer(file.read(footer_size), pack, pack_size)


def read_index(data: bytes, own_id: bytes) -> dict[bytes, bytes]:
    """Section 8: footers by their packs; each has its own checksum."""
    check_head(data, b"I", "index")
    end = 48 + 32 * int.from_bytes(data[40:44], "little")
    require(data[16:32] == own_id and blake3(data[:end]).digest() == data[end : end + 32], "index is damaged")
    rows = struct.iter_unpack("<16sQII", data[48:end])
    return {pack: data[offset : offset + size] for pack, offset, size, _ in rows}


def split(pieces: Iterable[bytes], row_size: int = 0) -> Iterator[bytes]:
    """Cut a stream into rows of one size, or into entries that follow their sizes (section 11)."""
    rest, head = b"", 0 if row_size else 4
    for piece in pieces:
        rest, begin = rest + piece, 0
        while len(rest) >= begin + max(head, row_size):
            end = begin + head + (row_size or int.from_bytes(rest[begin : begin + 4], "little"))
            require(end - begin <= 2**20 + 4, "an entry is too large")
            if len(rest) < end:
                break
            yield rest[begin + head : end]
            begin = end
        rest = rest[begin:]
    require(not rest, "a stream ends within a row")


class Snapshot:
    """A snapshot: its commit, its manifest, and where its chunks lie (section 15)."""

    def __init__(self, store: str, series: str, sequence: int | None) -> None:
        self.store = store
        header = read_record(self.load("cas-checkpoint"), b"H", HEADER, "header")
        require(header["chunk_id"] == "blake3-256" and not header["key_slots"], "the store is too new")
        require(not header["features"]["read"], f"unknown features: {header['features']['read']}")
        self.key, commit = self.find_commit(series, sequence)
        self.inline = commit["inline"]
        data = self.inline["manifest"] if self.inline else self.load(f"manifests/{commit['transaction'].hex()}")
        whole = (len(data), blake3(data).digest()) == (commit["manifest_size"], commit["manifest_digest"])
        require(whole, "the manifest is not the commit's")
        self.manifest = read_record(data, b"M", MANIFEST, "manifest")
        require(commit["store"] == header["store"], "the commit is another store's")
        require(all(self.manifest[name] == commit[name] for name in NAMES), "the manifest is another snapshot's")
        self.places = self.find_places()

    def load(self, key: str) -> bytes:
        """Read an object."""
        with open(os.path.join(self.store, key), "rb") as file:
            return file.read()

    def find_commit(self, series: str, sequence: int | None) -> tuple[str, dict[str, Any]]:
        """Find the commit of a number, or the latest (section 12)."""
        escape = re.compile(rb"[^a-z0-9_.-]|\A\.|\.\Z")
        escaped = escape.sub(lambda byte: b"%%%02x" % ord(byte[0]), series.encode())
        folder = f"commits/{escaped.decode()}"
        names = filter(re.compile("[0-9]{16}-[0-9a-f]{32}").fullmatch, os.listdir(os.path.join(self.store, folder)))
        for name in sorted(names, reverse=True):
            if sequence in {None, int(name[:16])}:
                commit = read_record(self.load(f"{folder}/{name}"), b"C", NAMES | {"state": str}, f"commit {name}")
                own = (commit["series"], commit["sequence"], commit["transaction"].hex())
                require(own == (series, int(name[:16]), name[17:]), f"commit {name} is another's")
                require(commit["state"] == "A" or fits(commit, COMMITTED), f"commit {name} has wrong fields")
                require(commit["state"] in {"A", "C"}, f"commit {name} is in an unknown state")
                if commit["state"] == "C":
                    return f"{folder}/{name}", {"inline": None, **commit}
        raise RefusedError("there is no such snapshot")

    def open_pack(self, pack: bytes) -> BinaryIO:
        """Open a pack, or the one within the commit."""
        if self.inline:
            return io.BytesIO(self.inline["pack"])
        try:
            return open(os.path.join(self.store, "packs", pack.hex()), "rb")
        except FileNotFoundError as error:
            forgotten = not os.path.exists(os.path.join(self.store, self.key))
            reason = "the snapshot was forgotten meanwhile" if forgotten else "the store is damaged"
            raise RefusedError(f"pack {pack.hex()} is missing: {reason}") from error

    def find_places(self) -> Places:
        """Read the footers of the snapshot's packs, from index objects as far as these are whole."""
        packs = self.manifest["packs"]
        require(len(packs) % 32 == 0 and not (self.inline and packs), "the manifest has a wrong list of packs")
        homes = {packs[i : i + 16]: packs[i + 16 : i + 32] for i in range(0, len(packs), 32)}
        footers: dict[bytes, bytes] = {}
        for home in set(homes.values()):
            with contextlib.suppress(OSError, RefusedError):
                footers |= read_index(self.load(f"index/{home.hex()}"), home)
        places: Places = {}
        for pack in homes if not self.inline else [self.manifest["transaction"]] * bool(self.inline["pack"]):
            with self.open_pack(pack) as file:
                try:
                    places |= read_footer(footers.get(pack, b""), pack, file.seek(0, io.SEEK_END))
                except RefusedError:
                    places |= read_pack_end(file, pack)
        return places

    def chunks(self, refs: Iterable[bytes]) -> Iterator[bytes]:
        """Read chunks and check them."""
        for ref in refs:
            chunk, name = ref[:32], f"chunk {ref[:32].hex()}"
            require(chunk in self.places, f"{name} is in no pack of the snapshot")
            pack, offset, size, plain_size, check = self.places[chunk]
            require(plain_size == int.from_bytes(ref[32:], "little") > 0, f"{name} has another size than its ref says")
            with self.open_pack(pack) as file:
                file.seek(offset)
                blob = file.read(size)
            plain = decode(blob, plain_size, name)
            require(check == (zlib.crc32(blob) if blob[0] else 0), f"{name} does not fit its check")
            require(blake3(plain).digest() == chunk, f"{name} has other bytes")
            yield plain

    def read(self, content: list[Any]) -> Iterator[bytes]:
        """Read a stream (section 9)."""
        size, depth, refs = named(content, CONTENT, "content").values()
        pieces: Iterable[bytes] = [refs] if refs else []
        for _ in range(depth + 1):
            pieces = self.chunks(split(pieces, 36))
        for piece in pieces:
            size -= len(piece)
            require(size >= 0, "a content is longer than its size")
            yield piece
        require(size == 0, "a content is shorter than its size")

    def entries(self) -> list[dict[str, Any]]:
        """Read all entries and check them (section 11)."""
        entries: dict[bytes, dict[str, Any]] = {}
        last = None
        for data in split(self.read(self.manifest["entries"])):
            entry = named(unpack(data, "entry"), ENTRY, "entry")
            key = entry["path"].replace(b"/", b"\0")
            require(last is None or last < key, f"entry {entry['path']!r} is out of order")
            check_entry(entry, entries)
            entries[entry["path"]], last = entry, key
        require(len(entries) == self.manifest["entry_count"], "the manifest has another number of entries")
        for path, entry in entries.items():
            file = entries.get(entry["extra"].get("target"))
            require(entry["type"] != "h" or (file and file["type"] == "f"), f"{path!r} is linked to no file")
        return list(entries.values())


def check_entry(entry: dict[str, Any], before: dict[bytes, dict[str, Any]]) -> None:
    """Check an entry against the rules of section 11, and work out the runs of data in a file."""
    path, kind, size, extra = entry["path"], entry["type"], entry["size"], entry["extra"] or {}
    parts, name = path.split(b"/"), f"entry {path!r}"
    safe = not {b"", b".", b".."} & set(parts) and b"\0" not in path and len(path) <= 32768
    require(safe or (path == b"" and kind == "d"), f"{name} has a forbidden path")
    parents = (before.get(b"/".join(parts[:depth])) for depth in range(1, len(parts)))
    require(all(parent is None or parent["type"] == "d" for parent in parents), f"{name} lies in what is no directory")
    require(kind in {"f", "d", "l", "h"} and fits(extra, EXTRA), f"{name} has a wrong type, or wrong fields")
    entry["extra"] = extra = {key: value for key, value in extra.items() if value is not None}
    require(bool(extra.get("target")) == (kind in {"l", "h"}), f"{name} has a target too many or too few")
    require(b"\0" not in extra.get("target", b""), f"{name} has a wrong target")
    xattrs = extra.get("xattrs", {})
    require(fits([*xattrs.keys(), *xattrs.values()], [bytes]), f"{name} has wrong attributes")
    named(extra.get("owner", [0, 0, "", ""]), OWNER, f"owner of {name}")
    extents, entry["runs"], end = extra.get("extents", struct.pack("<QQ", 0, size)), [], 0
    require(len(extents) % 16 == 0 and len(extents) <= 16 * 4096, f"{name} has a wrong list of extents")
    for offset, length in struct.iter_unpack("<QQ", extents):
        require(offset >= end and (length or "extents" not in extra), f"{name} has extents out of order")
        end = offset + length
        entry["runs"].append((offset, length))
    if kind == "f":
        content = named(entry["content"], CONTENT, f"content of {name}")
        data_size = sum(length for _, length in entry["runs"])
        require(content["size"] == data_size and end <= size, f"{name} has sizes that do not add up")
    else:
        require(entry["content"] is None and size == 0 and "extents" not in extra, f"{name} has content")


def write_file(path: bytes, size: int, runs: list[tuple[int, int]], pieces: Iterable[bytes]) -> None:
    """Write the runs of data of a file."""
    with open(path, "xb") as file:
        file.truncate(size)
        for piece in pieces:
            rest = piece
            while rest:
                offset, length = runs.pop(0)
                file.seek(offset)
                written = file.write(rest[:length])
                rest = rest[written:]
                if written < length:
                    runs.insert(0, (offset + written, length - written))


def make(snapshot: Snapshot, target: bytes, entry: dict[str, Any]) -> None:
    """Make what an entry says; `target` is a new directory, in which nothing leads out while files are written."""
    path, kind = os.path.join(target, entry["path"]), entry["type"]
    os.makedirs(path if kind == "d" else os.path.dirname(path), exist_ok=True)
    if kind == "f":
        write_file(path, entry["size"], entry["runs"], snapshot.read(entry["content"]))
    elif kind == "h":
        os.link(os.path.join(target, entry["extra"]["target"]), path, follow_symlinks=False)
    elif kind == "l":
        os.symlink(entry["extra"]["target"], path)


def finish(path: bytes, entry: dict[str, Any]) -> None:
    """Set attributes, mode and time, as far as the system has them."""
    for name, value in entry["extra"].get("xattrs", {}).items():
        with contextlib.suppress(OSError, AttributeError):
            os.setxattr(path, name, value, follow_symlinks=False)
    if entry["type"] != "l":
        os.chmod(path, entry["mode"])
    os.utime(path, ns=(entry["mtime"], entry["mtime"]), follow_symlinks=False)


def restore(snapshot: Snapshot, target: bytes) -> None:
    """Write a snapshot into a new directory: links last, and attributes after everything."""
    entries = snapshot.entries()
    os.mkdir(target, 0o700)
    try:
        for kind in "dfhl":
            for entry in (entry for entry in entries if entry["type"] == kind):
                make(snapshot, target, entry)
        for entry in (entry for entry in reversed(entries) if entry["type"] != "h"):
            finish(os.path.join(target, entry["path"]), entry)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def main(arguments: list[str]) -> int:
    """Run the command."""
    if len(arguments) not in {2, 3}:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        wanted = re.fullmatch(r"(.+?)(?:@(latest|[0-9]{1,16}))?", "".join(arguments[2:]) or "default", re.DOTALL)
        require(wanted, "give SERIES, SERIES@latest or SERIES@N")
        series, number = wanted.groups() if wanted else ("", None)
        snapshot = Snapshot(arguments[0], series, None if number in {None, "latest"} else int(number))
        restore(snapshot, os.fsencode(arguments[1]))
    except (RefusedError, OSError, ValueError) as error:
        print("independent_reader:", str(error).replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
