#!/usr/bin/env python3
# ruff: noqa: PLR2004 - the numbers are the vectors
"""Writes the golden vectors into tests/vectors/: run once for each version of the format, never by the tests.

Usage: make_vectors.py DIRECTORY

Everything is put together from the format layer, with ids and times that are given here, so that two runs with the
same version of the zstd library write the same bytes. What the files are stands in tests/vectors/README.md.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import zstandard
from blake3 import blake3

from cas_checkpoint.chunking import DATA_CHUNKER, METADATA_CHUNKER, ChunkerParameters, Cutter
from cas_checkpoint.codecs import Codec, Encoder, blob_check
from cas_checkpoint.commits import Commit, CommitKey, Inline, SaveStats, State, index_key, manifest_key, pack_key
from cas_checkpoint.elements import Elements
from cas_checkpoint.headers import OPERATIONS, Header
from cas_checkpoint.ids import ChunkId, PackId, StoreId, TransactionId, chunk_id, digest
from cas_checkpoint.index import encode_index, parse_index
from cas_checkpoint.manifests import Content, Entry, EntryType, Manifest, Owner, PackRef, encode_entry, encode_ref
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.moves import Move, MoveKey
from cas_checkpoint.packs import Footer, PackBuilder, parse_footer
from cas_checkpoint.pointers import Pointer
from cas_checkpoint.records import Kind, decode_record, encode_record, make_head, pack_value, unpack_value

SECOND = 1_000_000_000
TIME = 1_700_000_000 * SECOND + 123_456_789
SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
SEEDED = DATA_CHUNKER._replace(seed=0x0123456789ABCDEF)

NO_TENSORS = tuple((operation, ("moves",)) for operation in OPERATIONS)
"""The features of stores that were made before there were tensors."""

Objects = dict[str, bytes]
Coded = Mapping[bytes, tuple[bytes, bytes | None]]
"""For some chunks the blob, and what it is a delta of, if it is one."""


def stream(seed: str, size: int) -> bytes:
    """Return the first bytes of BLAKE3's output for a seed."""
    return blake3(seed.encode()).digest(length=size) if size else b""


def numbered(name: str) -> bytes:
    """Return an id that is made of a name."""
    return blake3(name.encode()).digest()[:16]


def as_json(value: object) -> object:
    """Return a value of MessagePack with bytes as hexadecimal digits."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


class Writer:
    """Writes files below one directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def binary(self, path: str, data: bytes) -> None:
        """Write bytes."""
        place = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(data)

    def json(self, path: str, value: object) -> None:
        """Write JSON."""
        self.binary(path, (json.dumps(value, indent=1, ensure_ascii=True) + "\n").encode())

    def objects(self, path: str, objects: Objects) -> None:
        """Write a store."""
        for key, data in objects.items():
            self.binary(f"{path}/{key}", data)


# --- chunk ids, cuts, codecs --------------------------------------------------------------------


def write_chunk_ids(writer: Writer) -> None:
    """Write chunk_ids.json."""
    rows: list[dict[str, object]] = [
        {"hex": data.hex(), "id": chunk_id(data).hex()} for data in (b"\0", b"abc", b"abd")
    ]
    sizes = (1, 63, 64, 65, 1023, 1024, 1025, 65_536, 1_048_576, 16_777_216)
    rows += [{"seed": "chunk", "size": size, "id": chunk_id(stream("chunk", size)).hex()} for size in sizes]
    writer.json("chunk_ids.json", rows)


def write_cuts(writer: Writer) -> None:
    """Write cuts.json."""
    cases: list[tuple[ChunkerParameters, Sequence[int]]] = [
        (DATA_CHUNKER, (0, 1, 65_536, 65_537, 1_000_000, 6_000_000)),
        (METADATA_CHUNKER, (4_096, 4_097, 20_000, 1_000_000)),
        (SEEDED, (1_000_000, 6_000_000)),
        (METADATA_CHUNKER._replace(seed=2**63 - 1), (500_000,)),
        (SMALL, (64, 65, 10_000)),
        *((METADATA_CHUNKER._replace(normalization=level), (300_000,)) for level in (0, 2, 3)),
        *((METADATA_CHUNKER._replace(normal_size=size), (300_000,)) for size in (11_500, 11_700)),
        (METADATA_CHUNKER._replace(min_size=5_001, normal_size=16_384, max_size=20_000), (300_000,)),
    ]
    rows = []
    for parameters, sizes in cases:
        for size in sizes:
            for seed in ("cuts", None):
                data = bytes(size) if seed is None else stream(seed, size)
                cuts = Cutter(parameters).cuts(data, final=True)
                rows.append({"chunker": parameters._asdict(), "seed": seed, "size": size, "cuts": cuts})
    rows = [row for row in rows if row["seed"] or int(str(row["size"])) <= 1_000_000]
    writer.json("cuts.json", rows)


def write_codecs(writer: Writer) -> None:
    """Write codecs.json and the blobs that it lists."""
    text = b"".join(b"line %d of a text that compresses well\n" % number for number in range(200))
    blobs = {
        "raw-one-byte": (b"\0" + b"x", b"x"),
        "raw-incompressible": (Encoder(planes=False).blob(stream("raw", 3_000)), stream("raw", 3_000)),
        "zstd-zeros": (Encoder(planes=False).blob(bytes(20_000)), bytes(20_000)),
    }
    for level in (-5, 1, 3, 19):
        blobs[f"zstd-level-{level}"] = (Encoder(level=level, planes=False).blob(text), text)
    summed = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True).compress(text)
    blobs["zstd-with-checksum"] = (b"\1" + summed, text)
    rows = []
    for name, (blob, plain) in blobs.items():
        writer.binary(f"codecs/{name}.blob", blob)
        writer.binary(f"codecs/{name}.plain", plain)
        check = blob_check(blob[0], blob[1:])
        rows.append(
            {"name": name, "codec": blob[0], "plain_size": len(plain), "check": check, "id": digest((plain,)).hex()}
        )
    for name, (blob, plain, base) in tensor_blobs().items():
        writer.binary(f"codecs/{name}.blob", blob)
        writer.binary(f"codecs/{name}.plain", plain)
        row = {"name": name, "codec": blob[0], "plain_size": len(plain), "check": blob_check(blob[0], blob[1:])}
        row |= {"id": digest((plain,)).hex()}
        if base is not None:
            writer.binary(f"codecs/{name}.base", base)
            row |= {"base": digest((base,)).hex()}
        rows.append(row)
    writer.json("codecs/codecs.json", rows)


def part(coding: int, data: bytes) -> bytes:
    """Return a part of a payload of codec 2 or 3."""
    return struct.pack("<BI", coding, len(data)) + data


def packed_values(count: int, low: int, top: int, *parts: bytes, bits: bytes = b"") -> bytes:
    """Return packed values of which so many are large: their low bits, and the parts for tops and what exceeds them."""
    return struct.pack("<BBI", low, top, count) + bits + b"".join(parts)


def floats(seed: str, count: int, *, moved: float = 0.0) -> list[float]:
    """Return numbers around zero, as weights are, perhaps each a little farther on; without the mathematics library."""
    data = stream(seed, 4 * count)
    values = [sum(data[at : at + 3]) / 255 - 1.5 + 1 / 512 for at in range(0, 4 * count, 4)]
    return [value * (1 + moved * data[4 * at + 3] / 256) for at, value in enumerate(values)]


def sample_elements(elements: Elements, seed: str, count: int, *, moved: bool = False) -> bytes:
    """Return elements, and one byte more; some of those that are moved are near to those that are not."""
    width, is_float = elements
    if is_float and width > 2:
        numbers = floats(seed, count, moved=1e-6 if moved else 0.0)
        return array("f" if width == 4 else "d", numbers).tobytes() + b"!"
    data = stream(seed, count)
    steps = [byte % 5 - 2 if moved else 0 for byte in stream(f"{seed} moved", count)]
    top: int = 256**width
    values = [(byte * 16 + step) % top for byte, step in zip(data, steps, strict=True)]
    return b"".join(value.to_bytes(width, "little") for value in values) + b"!" * (width > 1)


def pack_bits(bits: int, values: bytes) -> bytes:
    """Pack values into so many bits each, large ones as the largest."""
    number: int = sum(min(value, 2**bits - 1) << bits * at for at, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


def tensor_blobs() -> dict[str, tuple[bytes, bytes, bytes | None]]:
    """Return blobs of codecs 2 and 3 by name, each with what it decodes to and its base."""
    frame = zstandard.ZstdCompressor(level=3, write_content_size=True).compress
    few = bytes((3, 0, 1, 200, 2, 0, 1)) * 13
    many = bytes(200 if byte < 20 else byte % 3 for byte in stream("many", 701))
    large, larger, ones = (bytes(value - top for value in many if value >= top) for top in (3, 15, 1))
    two = packed_values(26, 0, 2, part(0, pack_bits(2, few)), part(0, b"\0\xc5" * 13))
    four = packed_values(13, 0, 4, part(0, pack_bits(4, few)), part(0, bytes((200 - 15,)) * 13))
    two_frames = packed_values(len(large), 0, 2, part(1, frame(pack_bits(2, many))), part(1, frame(large)))
    four_frames = packed_values(len(larger), 0, 4, part(1, frame(pack_bits(4, many))), part(1, frame(larger)))
    one_bit = packed_values(len(ones), 0, 1, part(1, frame(pack_bits(1, many))), part(1, frame(ones)))
    numbers = [value * 37 % 1000 + (value % 50 == 0) * 60_000 for value in range(150)]
    noise, tops = [value & 31 for value in numbers], [value >> 5 for value in numbers]
    large_tops = b"".join((top - 255).to_bytes(2, "little") for top in tops if top >= 255)
    wide = packed_values(
        len(large_tops) // 2, 5, 8, part(0, bytes(min(top, 255) for top in tops)),
        part(0, large_tops[::2]), part(0, large_tops[1::2]),
        bits=pack_bits(4, bytes(value & 15 for value in noise)) + pack_bits(1, bytes(value >> 4 for value in noise)),
    )  # fmt: skip
    unzigzag = [value // 2 if value % 2 == 0 else -(value + 1) // 2 for value in numbers]
    moved = b"".join((1000 + step & 65535).to_bytes(2, "little") for step in unzigzag)
    low, zeros = bytes(range(40)), part(1, frame(bytes(40)))
    pairs = bytes(byte for value in low for byte in (value, 0))
    halves = part(0, b"\x01\x02" * 30) + part(1, frame(b"\x7f" * 60))
    blobs: dict[str, tuple[bytes, bytes, bytes | None]] = {
        "planes-raw": (b"\2\1" + part(0, low) + zeros, pairs, None),
        "planes-zstd": (b"\2\0" + part(1, frame(bytes(500))), bytes(500), None),
        "planes-zeros": (b"\2\1" + part(0, low) + part(2, b""), pairs, None),
        "planes-two-bits": (b"\2\0" + part(3, two), few, None),
        "planes-four-bits": (b"\2\0" + part(3, four), few, None),
        "planes-one-bit": (b"\2\0" + part(3, one_bit), many, None),
        "planes-two-bits-of-frames": (b"\2\0" + part(3, two_frames), many, None),
        "planes-four-bits-of-frames": (b"\2\0" + part(3, four_frames), many, None),
        "planes-counted-down": (b"\2\0" + part(4, b"\5" + four), bytes((5 - value) % 256 for value in few), None),
        "planes-counted-down-in-frames": (
            b"\2\0" + part(4, b"\xff" + four_frames), bytes(255 - value for value in many), None,
        ),
        "planes-without-large-values": (
            b"\2\0" + part(3, packed_values(0, 0, 2, part(0, b"\x24\x49\x92" * 8))), b"\0\1\2" * 32, None,
        ),
        "planes-of-bytes-that-are-floats": (
            b"\2\4" + part(1, frame(b"\x01\x02\xff" * 30)), b"\x80\x01\xff" * 30, None,
        ),
        "planes-of-two-bytes-that-are-floats": (b"\2\5" + halves + b"?", b"\x80\xbf\x81\x3f" * 30 + b"?", None),
        "delta-of-bytes": (
            b"\3\0\0\xff" + packed_values(20, 0, 8, part(1, frame(b"\0\1\2\3\xff" * 20)), part(2, b"")),
            b"\7\xff\0\5\x80" * 20, b"\7\0\xff\7\0" * 20,
        ),
        "delta-of-bytes-that-are-floats": (
            b"\3\4\0\xff" + packed_values(0, 0, 8, part(1, frame(b"\2\1\2" * 30))),
            b"\0\x80\x80" * 30, b"\x80\0\x81" * 30,
        ),
        "delta-two-bits": (b"\3\0\0\xff" + two, bytes((5, 7, 6, 107, 8, 7, 6)) * 13, b"\7" * 91),
        "delta-four-bits": (b"\3\0\0\xff" + four, bytes((5, 7, 6, 107, 8, 7, 6)) * 13, b"\7" * 91),
        "delta-of-no-change": (b"\3\2\0\xff" + packed_values(0, 0, 1, part(2, b"")), b"abcd" * 40, b"abcd" * 40),
        "delta-with-low-bits": (b"\3\1\0\xff" + wide, moved, b"\xe8\3" * 150),
        "delta-of-a-window": (
            b"\3\x09" + struct.pack("<I", 3) + b"\0\xff" + packed_values(0, 0, 8, part(1, frame(b"\2" * 60))),
            b"\x04\1" * 60, b"???" + b"\3\1" * 60 + bytes(90),
        ),
        "delta-in-groups": (
            b"\3\0\2\0\x08\xff"
            + packed_values(0, 0, 8, part(1, frame(b"\2" * 60)))
            + packed_values(0, 0, 4, part(1, frame(b"\x44" * 30)))
            + packed_values(0, 0, 8, part(1, frame(b"\6" * 120))),
            b"\x0c\1\x0c\3" * 60,
            b"\x09\0\x09\1" * 60,
        ),
    }  # fmt: skip
    for name, (blob, plain, _) in (blobs := blobs | encoded_blobs()).items():
        if len(blob) > len(plain) + 1:
            raise ValueError(f"the blob {name} is larger than it may be")
    return blobs


def encoded_blobs() -> dict[str, tuple[bytes, bytes, bytes | None]]:
    """Return such blobs as this version makes them of elements of all widths."""
    blobs: dict[str, tuple[bytes, bytes, bytes | None]] = {}
    for width in (1, 2, 4, 8):
        for is_float in (False, True):
            elements, name = Elements(width, is_float=is_float), f"of-{'floats' if is_float else 'integers'}-of-{width}"
            base = sample_elements(elements, "elements", 600)
            plain = sample_elements(elements, "elements", 600, moved=True)
            codec, payload = Encoder().encode(base, elements)
            if codec is Codec.PLANES:
                blobs[f"planes-{name}"] = (bytes((codec,)) + payload, base, None)
            blobs[f"delta-{name}"] = (delta_of(plain, base, elements), plain, base)
            window = plain[: 200 * width]
            blobs[f"delta-of-a-window-{name}"] = (delta_of(window, base, elements, start=0), window, base)
    return blobs


def delta_of(chunk: bytes, base: bytes, elements: Elements, start: int = 0) -> bytes:
    """Return a blob of codec 3."""
    payload = Encoder().encode_delta(chunk, base, elements, start=start, thorough=True, limit=len(chunk))
    if payload is None:
        raise ValueError("a delta is larger than its chunk")
    return b"\3" + payload


# --- objects ------------------------------------------------------------------------------------


def make_pack(pack: bytes, chunks: Iterable[bytes], coded: Coded | None = None) -> bytes:
    """Return a pack of these chunks, of which some are coded already."""
    builder = PackBuilder(PackId(pack))
    encoder = Encoder(planes=False)
    for chunk in chunks:
        blob, base = (coded or {}).get(chunk) or (encoder.blob(chunk), None)
        of = None if base is None else chunk_id(base)
        builder.add(chunk_id(chunk), blob[0], blob[1:], len(chunk), blob_check(blob[0], blob[1:]), base=of)
    return b"".join(builder.finish()[1])


def footer_of(pack: bytes) -> Footer:
    """Return the footer at a pack's end."""
    (size,) = struct.unpack_from("<I", pack, len(pack) - 8)
    return parse_footer(pack[len(pack) - 8 - size : -8])


def describe_footer(footer: Footer) -> dict[str, object]:
    """Say what a footer lists."""
    columns = (footer.offsets, footer.stored_sizes, footer.plain_sizes, footer.checks)
    names = ("offset", "size", "plain_size", "check")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    ids = [bytes(row).hex() for row in footer.ids]
    blobs = [{"id": chunk} | dict(zip(names, row, strict=True)) for chunk, row in zip(ids, rows, strict=True)]
    for row, base in footer.base_ids().items():
        blobs[row]["base"] = base.hex()
    return {"pack": footer.pack.hex(), "pack_size": footer.pack_size, "blobs": blobs}


def sample_commits() -> dict[str, Commit]:
    """Return a commit of each sort."""
    store, transaction = StoreId(numbered("store")), TransactionId(numbered("transaction"))
    key = CommitKey("run 7/ä", 12, transaction)
    stats = SaveStats(3, 5, 1_000, 600, 400, 4, 3, 900, 2, 0.25)
    manifest = sample_manifest().encode()
    normal = Commit(
        State.COMMITTED, store, key, TIME, 1_000, {"loss": 0.5, "accuracy": 1.0}, ("best", "größer"), "a message\n",
        stats, digest((manifest,)), len(manifest),
    )  # fmt: skip
    inline = Inline(manifest, make_pack(transaction, [b"a chunk", bytes(500)]))
    return {
        "commit-normal": normal,
        "commit-bare": normal._replace(created_at_ns=-1, step=None, metrics={}, tags=(), message=""),
        "commit-negative-step": normal._replace(step=-5),
        "commit-inline": normal._replace(inline=inline),
        "commit-inline-without-pack": normal._replace(inline=inline._replace(pack=b"")),
        "commit-aborted": Commit(State.ABORTED, store, key),
    }


def sample_manifest() -> Manifest:
    """Return a manifest."""
    store, transaction = StoreId(numbered("store")), TransactionId(numbered("transaction"))
    packs = tuple(PackRef(PackId(numbered(f"pack {i}")), TransactionId(numbered(f"home {i // 2}"))) for i in range(3))
    entries = Content(300, 0, encode_ref(digest((b"entries",)), 100) + encode_ref(digest((b"more",)), 200))
    return Manifest(store, "run 7/ä", 12, transaction, 4, packs, entries, 5)


def sample_records() -> dict[str, tuple[Kind, bytes]]:
    """Return a record of each sort."""
    store = StoreId(numbered("store"))
    features = (("read", ()), ("write", ("some-feature",)), ("collect", ("some-feature", "another")))
    mark = Mark(TransactionId(numbered("collection")), frozenset(PackId(numbered(f"pack {i}")) for i in range(3)))
    move = sample_move("pack 0", "pack 1", "pack 2")
    pointer = Pointer("s3://bucket/shared store", store, "run 7/ä")
    empty = sample_manifest()._replace(packs=(), entries=Content(0, 0, b""), entry_count=0)
    return {
        "header-default": (Kind.HEADER, Header(store, features=NO_TENSORS).encode()),
        "header-with-tensors": (Kind.HEADER, Header(store).encode()),
        "header-other": (Kind.HEADER, Header(store, SEEDED, SMALL, put_if_absent=False, features=features).encode()),
        "manifest": (Kind.MANIFEST, sample_manifest().encode()),
        "manifest-empty": (Kind.MANIFEST, empty.encode()),
        **{name: (Kind.COMMIT, commit.encode()) for name, commit in sample_commits().items()},
        "mark-open": (Kind.MARK, mark.encode()),
        "mark-closed": (Kind.MARK, mark._replace(packs=frozenset()).encode()),
        "move": (Kind.MOVE, move.encode()),
        "move-without-targets": (Kind.MOVE, move._replace(targets=frozenset()).encode()),
        "pointer": (Kind.POINTER, pointer.encode()),
    }


def sample_move(pack: str, *targets: str) -> Move:
    """Return a move of packs with these names."""
    key = MoveKey(PackId(numbered(pack)), TransactionId(numbered("collection")))
    return Move(key, frozenset(PackId(numbered(target)) for target in targets))


def sample_packs() -> dict[str, bytes]:
    """Return some packs."""
    return {
        "pack": make_pack(numbered("pack 0"), [b"a", b"second chunk", bytes(5_000), stream("pack", 2_000)]),
        "pack-of-one": make_pack(numbered("pack 1"), [b"only"]),
    }


def simple_delta_of(chunk: bytes, base: bytes) -> bytes:
    """Return a blob of codec 3 in its simplest form: differences of bytes, none of them large, in one frame."""
    differences = (((one - other + 128) & 255) - 128 for one, other in zip(chunk, base, strict=True))
    frame = zstandard.ZstdCompressor(level=3).compress(bytes((2 * d if d >= 0 else -2 * d - 1) for d in differences))
    return b"\3\0\0\xff" + packed_values(0, 0, 8, part(1, frame))


def delta_pack() -> bytes:
    """Return a pack in which two chunks are deltas: of one that is in it, and of one that is not."""
    base, absent = stream("base", 3_000), bytes(1_000)
    changed = bytes((byte + number // 1_000) & 255 for number, byte in enumerate(base))
    builder = PackBuilder(PackId(numbered("pack of deltas")))
    for chunk, source in ((b"whole", None), (changed, base), (base, None), (b"\xff" * 1_000, absent)):
        blob = b"\0" + chunk if source is None else simple_delta_of(chunk, source)
        of = None if source is None else chunk_id(source)
        builder.add(chunk_id(chunk), blob[0], blob[1:], len(chunk), blob_check(blob[0], blob[1:]), base=of)
    return b"".join(builder.finish()[1])


def write_objects(writer: Writer) -> None:
    """Write an object of each kind, and what it holds."""
    for name, (kind, data) in sample_records().items():
        body = unpack_value(pack_value(decode_record(kind, data)._map))  # noqa: SLF001 - all fields, not those known by name
        writer.binary(f"objects/{name}.bin", data)
        writer.json(f"objects/{name}.json", {"kind": kind.value.decode(), "body": as_json(body)})
    packs = sample_packs()
    for name, data in (packs | {"pack-with-deltas": delta_pack()}).items():
        writer.binary(f"objects/{name}.bin", data)
        writer.json(f"objects/{name}.json", {"kind": "P", **describe_footer(footer_of(data))})
    for name, members in {"index": list(packs), "index-empty": []}.items():
        footers = [footer_of(packs[member]) for member in members]
        writer.binary(f"objects/{name}.bin", encode_index(TransactionId(numbered("home 0")), 7, footers))
        said = {"id": numbered("home 0").hex(), "base": 7, "footers": [describe_footer(footer) for footer in footers]}
        writer.json(f"objects/{name}.json", {"kind": "I", **said})


# --- a whole store ------------------------------------------------------------------------------


class Item(NamedTuple):
    """Something to be saved: an entry without its content, and the data of a file run by run."""

    entry: Entry
    runs: tuple[tuple[int, bytes], ...] = ()

    @property
    def data(self) -> bytes:
        """The runs of a file one after another."""
        return b"".join(data for _, data in self.runs)


def file(path: bytes, data: bytes, **more: Any) -> Item:  # noqa: ANN401 - fields of an Entry
    """Return a file without holes."""
    return Item(
        Entry(path, EntryType.FILE, **({"mode": 0o644, "mtime_ns": TIME, "size": len(data)} | more)), ((0, data),)
    )


def other(path: bytes, kind: EntryType, **more: Any) -> Item:  # noqa: ANN401 - fields of an Entry
    """Return something else than a file."""
    return Item(Entry(path, kind, **({"mode": 0o755, "mtime_ns": TIME} | more)))


def described(item: Item) -> dict[str, object]:
    """Say what a restore has to make of an item."""
    entry = item.entry
    said: dict[str, object] = {"path": quote(entry.path, safe="/"), "type": entry.type.value, "mode": entry.mode}
    said |= {"mtime": entry.mtime_ns, "size": entry.size}
    if entry.type is EntryType.FILE:
        whole = bytearray(entry.size)
        for offset, data in item.runs:
            whole[offset : offset + len(data)] = data
        said["blake3"] = digest((whole,)).hex()
    if entry.target:
        said["target"] = quote(entry.target, safe="/")
    if entry.extents is not None:
        said["extents"] = [list(extent) for extent in entry.extents]
    if entry.xattrs:
        said["xattrs"] = {quote(name): value.hex() for name, value in entry.xattrs.items()}
    if entry.owner:
        said["owner"] = list(entry.owner)
    return said


class StoreMaker:
    """Puts a store together: saves as a writer does, but with ids and times that are given."""

    def __init__(self, name: str, chunker: ChunkerParameters = SMALL, *, tensors: bool = False) -> None:
        self.store = StoreId(numbered(name))
        self.name, self.cutter = name, Cutter(chunker)
        header = Header(self.store, chunker, chunker)
        self.objects: Objects = {
            "cas-checkpoint": (header if tensors else header._replace(features=NO_TENSORS)).encode()
        }
        self.coded: dict[bytes, tuple[bytes, bytes | None]] = {}
        self.trees: list[dict[str, object]] = []
        self._homes: dict[ChunkId, PackRef] = {}
        self._new: dict[ChunkId, bytes] = {}
        self._used: set[PackRef] = set()

    def _store(self, chunk: bytes) -> bytes:
        """Take a chunk; return its ref."""
        name = chunk_id(chunk)
        if name in self._homes:
            self._used.add(self._homes[name])
        else:
            self._new[name] = chunk
        _, base = self.coded.get(chunk, (b"", None))
        if base is not None:
            self._store(base)  # a snapshot needs it
        return encode_ref(name, len(chunk))

    def _cut(self, data: bytes) -> list[bytes]:
        if data in self.coded:
            return [data]
        ends = self.cutter.cuts(data, final=True)
        return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def content(self, data: bytes, *, depth: int = 0) -> Content:
        """Store a stream; its list of chunks lies as deep as it must, and at least `depth`."""
        refs = b"".join(map(self._store, self._cut(data)))
        level = 0
        while len(refs) > 512 * 36 or level < depth:
            refs = b"".join(map(self._store, self._cut(refs)))
            level += 1
        return Content(len(data), level, refs)

    def _packs(self, transaction: TransactionId, blobs_per_pack: int) -> tuple[PackRef, ...]:
        """Write the new chunks, and an index object of them."""
        chunks = list(self._new.items())
        refs, footers = [], []
        for start in range(0, len(chunks), blobs_per_pack):
            ref = PackRef(PackId(numbered(f"{transaction.hex()} {start}")), transaction)
            part = chunks[start : start + blobs_per_pack]
            data = make_pack(ref.pack, (chunk for _, chunk in part), self.coded)
            self.objects[pack_key(ref.pack)] = data
            self._homes.update(dict.fromkeys((name for name, _ in part), ref))
            refs.append(ref)
            footers.append(footer_of(data))
        if footers:
            self.objects[index_key(transaction)] = encode_index(transaction, 0, footers)
        return (*refs, *sorted(self._used))

    def _own_pack(self, transaction: TransactionId) -> bytes:
        return make_pack(transaction, self._new.values(), self.coded) if self._new else b""

    def save(
        self,
        key: CommitKey,
        items: Iterable[Item],
        *,
        inline: bool = True,
        depth: int = 0,
        blobs_per_pack: int = 10_000,
        **more: Any,  # noqa: ANN401 - fields of a Commit
    ) -> CommitKey:
        """Save a tree."""
        homes = self._homes
        self._new, self._used = {}, set()
        if inline:
            self._homes = {}  # a commit that carries its chunks relies on no pack
        encoded, shown = [], []
        for item in sorted(items, key=lambda item: item.entry.path.replace(b"/", b"\0")):
            content = self.content(item.data, depth=depth) if item.entry.type is EntryType.FILE else None
            if item.runs and not item.data:
                content = Content(0, 0, b"")
            encoded.append(encode_entry(item.entry._replace(content=content)))
            shown.append(described(item))
        entries = self.content(b"".join(encoded), depth=depth)
        packs = () if inline else self._packs(key.transaction, blobs_per_pack)
        manifest = Manifest(self.store, *key, 0, packs, entries, len(encoded)).encode()
        carried = None
        if inline:
            self._homes = homes
            carried = Inline(manifest, self._own_pack(key.transaction))
        else:
            self.objects[manifest_key(key.transaction)] = manifest
        record = Commit(
            State.COMMITTED, self.store, key, TIME, manifest_digest=digest((manifest,)), manifest_size=len(manifest)
        )
        self.objects[str(key)] = record._replace(inline=carried, **more).encode()
        said = {"series": key.series, "sequence": key.sequence, "id": key.transaction.hex(), "entries": shown}
        self.trees.append(said)
        return key

    def move(self, pack: PackId, *shares: int, collection: str = "collection") -> list[PackId]:
        """Move a pack to new ones with so many of its blobs each, the last with all that are left; return their ids."""
        data = self.objects.pop(pack_key(pack))
        footer = footer_of(data)
        rows = list(zip(footer.offsets.tolist(), footer.stored_sizes.tolist(), strict=True))
        targets = []
        for number, share in enumerate((*shares, len(rows))):
            builder, bases = PackBuilder(PackId(numbered(f"{pack.hex()} moved {number}"))), footer.base_ids()
            first = sum(shares[:number])
            for row in range(first, min(first + share, len(rows))):
                blob = data[rows[row][0] :][: rows[row][1]]
                chunk, check = ChunkId(bytes(footer.ids[row])), int(footer.checks[row])
                builder.add(chunk, blob[0], blob[1:], int(footer.plain_sizes[row]), check, base=bases.get(row))
            self.objects[pack_key(builder.pack)] = b"".join(builder.finish()[1])
            targets.append(builder.pack)
        key = MoveKey(pack, TransactionId(numbered(collection)))
        self.objects[str(key)] = Move(key, frozenset(targets)).encode()
        return targets

    def key(self, series: str, sequence: int, name: str = "") -> CommitKey:
        """Return the key of a commit."""
        return CommitKey(series, sequence, TransactionId(numbered(f"{self.name} {series} {sequence} {name}")))


def small_tree() -> list[Item]:
    """Return one of everything that is small."""
    return [
        other(b"", EntryType.DIRECTORY, mode=0o750, mtime_ns=TIME + 1),
        file(b"a.txt", b"hello\n", mode=0o600, xattrs={b"user.note": b"\0\xff", b"user.empty": b""}),
        other(b"a", EntryType.DIRECTORY, mode=0o700, mtime_ns=TIME - SECOND),
        file(b"a/b", b"sorted before a.txt, for / counts as NUL", mode=0o444),
        other(b"a/empty directory", EntryType.DIRECTORY, mode=0o555, mtime_ns=-1),
        file(b"empty", b"", mode=0o640, mtime_ns=-(SECOND * 86_400) + 1),
        file(b"no/entry/for/its/parents", b"deep"),
        file(b"not UTF-8: \xff\xfe", b"any bytes", mtime_ns=0),
        file("größe 100 %.txt".encode(), b"umlauts"),
        file(b"line\nbreak and \\", b"a name of two lines"),
        other(b"link", EntryType.SYMLINK, mode=0o777, target=b"a/b"),
        other(b"link out", EntryType.SYMLINK, mode=0o777, target=b"../../outside \xff"),
        other(b"linked", EntryType.HARDLINK, mode=0o600, target=b"a.txt"),
        other(b"a/linked", EntryType.HARDLINK, mode=0o600, target=b"z-last"),
        file(b"z-last", b"a hard link stands before this", mode=0o755, owner=Owner(12, 34, "someone", "")),
    ]


def sparse(path: bytes, size: int, runs: Sequence[tuple[int, bytes]]) -> Item:
    """Return a sparse file."""
    extents = tuple((offset, len(data)) for offset, data in runs)
    entry = Entry(path, EntryType.FILE, 0o644, TIME, size, extents=extents)
    return Item(entry, tuple(runs))


def large_tree(changed: bytes = b"") -> list[Item]:
    """Return files of many chunks."""
    text = b"".join(b"%06d a line of a file that has a list of chunks of its own\n" % number for number in range(300))
    return [
        other(b"", EntryType.DIRECTORY, mtime_ns=TIME + 2),
        file(b"long", text + changed + bytes(560 * 1024) + text[::-1]),
        file(b"random", stream("random", 9_000) + changed),
        file(b"same as random", stream("random", 9_000) + changed, mode=0o400),
        sparse(
            b"sparse", 1_000_000, [(4_096, stream("run", 4_096)), (8_192, bytes(10)), (999_000, b"the end" + changed)]
        ),
        sparse(b"sparse without data", 70_000, []),
        other(b"other", EntryType.DIRECTORY, mode=0o700),
        *(file(b"other/%03d" % number, b"%d\n" % number) for number in range(30)),
    ]


def golden_store() -> StoreMaker:
    """Return the whole small store."""
    maker = StoreMaker("golden store")
    series = "Zwei/ß.x"
    maker.save(maker.key("main", 1), small_tree(), metrics={"loss": 0.5}, step=1, tags=("first",), message="one")
    maker.save(maker.key("main", 2), large_tree(), inline=False, blobs_per_pack=120)
    first = maker.save(maker.key("main", 3), large_tree(b"changed"), inline=False)
    del maker.objects[index_key(first.transaction)]  # an index object may vanish at any time
    maker.save(maker.key("main", 4), [other(b"", EntryType.DIRECTORY)])
    maker.save(maker.key("main", 5), [])
    maker.save(maker.key("main", 6), [*small_tree(), file(b"x", b"deeper " * 200)], depth=2)
    maker.objects[str(maker.key("main", 7))] = Commit(State.ABORTED, maker.store, maker.key("main", 7)).encode()
    for name in ("one", "the other"):  # two saves at once
        maker.save(maker.key(series, 1, name), [file(b"who", name.encode())])
    maker.save(maker.key(series, 2), [*large_tree(), file(b"new", b"more")], inline=False, depth=1)
    damaged = index_key(maker.key(series, 2).transaction)  # a damaged index object is as good as none
    maker.objects[damaged] = maker.objects[damaged][:-1] + b"\0"
    condemned = Mark(TransactionId(numbered("collection")), frozenset([PackId(numbered("gone"))]))
    maker.objects[mark_key(1)] = condemned.encode()
    maker.objects[mark_key(1, closed=True)] = condemned._replace(packs=frozenset()).encode()
    maker.objects[mark_key(2)] = condemned.encode()
    add_moved(maker)
    maker.objects["packs/.tmp-unfinished"] = b"\x89CAS"
    maker.objects["notes.txt"] = b"belongs to somebody else\n"
    return maker


def tensor_store() -> StoreMaker:
    """Return a store with planes and deltas, in packs, within a commit, and moved."""
    maker = StoreMaker("store with tensors", tensors=True)
    trees: list[list[Item]] = [[], [], []]
    for width, is_float in ((1, False), (2, False), (2, True), (4, True), (8, True)):
        elements, name = Elements(width, is_float=is_float), f"{'f' if is_float else 'u'}{width}".encode()
        first, second = (sample_elements(elements, "tensor", 1_500, moved=moved) for moved in (False, True))
        third = first[: len(first) // 2] + second[len(first) // 2 :]
        window = second[8 * width : 8 * width + 500 * width]
        codec, payload = Encoder().encode(first, elements)
        maker.coded[first] = (bytes((codec,)) + payload, None)
        maker.coded[second] = (delta_of(second, first, elements), first)
        maker.coded[third] = (delta_of(third, first, elements), first)
        maker.coded[window] = (delta_of(window, first, elements, start=8 * width), first)
        for tree, data in zip(trees, (first, second, third), strict=True):
            tree.append(file(name, data))
        trees[2].append(file(name + b"w", window))
    more = [other(b"", EntryType.DIRECTORY), file(b"words", b"what is no tensor " * 100)]
    keys = [
        maker.save(maker.key("main", number), [*more, *tree], inline=False, blobs_per_pack=3)
        for number, tree in enumerate(trees, 1)
    ]
    maker.save(maker.key("main", 4), [*more, *trees[1][:2]])  # its deltas and their bases lie within the commit
    packs = [footers_in(maker.objects[index_key(key.transaction)], key.transaction) for key in keys]
    maker.move(packs[0][0])  # with bases
    maker.move(packs[1][0], 1)  # with deltas
    return maker


def add_moved(maker: StoreMaker) -> None:
    """Add snapshots whose packs were moved: once, twice, in two parts, and by two collections."""
    items = [file(b"%d" % number, stream(f"moved {number}", 2_000)) for number in range(4)]
    for sequence in (1, 2):
        tree = [*items, file(b"more", stream("moved more", 3_000))][: len(items) + sequence - 1]
        key = maker.save(maker.key("moved", sequence), tree, inline=False, blobs_per_pack=9)
        if sequence == 1:
            first = footers_in(maker.objects[index_key(key.transaction)], key.transaction)
        else:
            del maker.objects[index_key(key.transaction)]
    (once, in_parts, twice, *_) = first
    maker.move(once)
    maker.move(in_parts, 2, 3)
    (target,) = maker.move(twice)
    maker.move(target, 1)
    overtaken = MoveKey(once, TransactionId(numbered("overtaken collection")))
    maker.objects[str(overtaken)] = Move(overtaken, frozenset([PackId(numbered("gone"))])).encode()
    maker.objects["moves/notes.txt"] = b"belongs to somebody else\n"


def footers_in(index: bytes, name: TransactionId) -> list[PackId]:
    """Return the packs that an index object lists."""
    return [footer.pack for footer in parse_index(index, name=name)[1]]


# --- what must be refused -----------------------------------------------------------------------


def reseal(data: bytes) -> bytes:
    """Give an altered record a checksum that fits."""
    return data[:-32] + digest((data[:-32],))


def flipped(data: bytes, at: int) -> bytes:
    """Return the data with one bit turned over."""
    at %= len(data)
    return data[:at] + bytes((data[at] ^ 4,)) + data[at + 1 :]


def broken_objects() -> dict[str, tuple[str, bytes, str]]:
    """Return objects that must be refused: of which kind, their bytes, and the error."""
    good = {name: (kind.value.decode(), data) for name, (kind, data) in sample_records().items()}
    names = ("header-default", "manifest", "commit-inline", "commit-aborted", "mark-open", "move", "pointer")
    broken: dict[str, tuple[str, bytes, str]] = {}
    for name in names:
        kind, data = good[name]
        wrong = b"M" if kind != "M" else b"C"
        large = data[:16] + struct.pack("<I", 2**31) + data[20:]
        raw = encode_body(Kind(kind.encode()), b"\xc0")
        cases = {
            "empty": (b"", "DamagedObject"),
            "only-a-head": (data[:16], "DamagedObject"),
            "cut-in-the-middle": (data[: len(data) // 2], "DamagedObject"),
            "cut-by-one": (data[:-1], "DamagedObject"),
            "longer-by-one": (data + b"\0", "DamagedObject"),
            "flipped-body": (flipped(data, len(data) // 2), "DamagedObject"),
            "flipped-checksum": (flipped(data, -1), "DamagedObject"),
            "flipped-magic": (flipped(data, 1), "ForeignObject"),
            "line-ends-changed": (data.replace(b"\r\n", b"\n", 1), "ForeignObject"),
            "wrong-kind": (reseal(data[:8] + wrong + data[9:]), "DamagedObject"),
            "newer-version": (reseal(data[:9] + b"\2" + data[10:]), "UnsupportedStore"),
            "unknown-codec": (reseal(data[:20] + b"\7" + data[21:]), "UnsupportedStore"),
            "declares-2-GiB": (reseal(large), "DamagedObject"),
            "no-map": (raw, "DamagedObject"),
            "no-fields": (encode_body(Kind(kind.encode()), b"\x80"), "DamagedObject"),
            "two-values": (encode_body(Kind(kind.encode()), b"\x80\x80"), "DamagedObject"),
            "extension-type": (encode_body(Kind(kind.encode()), b"\x81\xa1x\xd4\x01\x00"), "DamagedObject"),
            "array-of-5000": (encode_body(Kind(kind.encode()), pack_value({"x": [0] * 5_000})), "DamagedObject"),
            "not-UTF-8": (encode_body(Kind(kind.encode()), b"\x81\xa1x\xa1\xff"), "DamagedObject"),
        }
        broken |= {f"{name}--{what}": (kind, altered, error) for what, (altered, error) in cases.items()}
    return broken | broken_packs() | broken_indexes() | broken_fields()


def encode_body(kind: Kind, plain: bytes) -> bytes:
    """Return a record with a body of any bytes."""
    return reseal(make_head(kind) + struct.pack("<I", len(plain)) + b"\0" + plain + bytes(32))


def broken_fields() -> dict[str, tuple[str, bytes, str]]:
    """Return records with a right checksum around fields that are wrong."""
    changes: dict[str, dict[str, dict[str, object]]] = {
        "header-default": {
            "encrypted": {"key_slots": [{}]},
            "other-chunk-id": {"chunk_id": "sha-256"},
            "store-of-15": {"store": bytes(15)},
            "features-no-map": {"features": []},
            "chunker-no-map": {"chunker": None},
        },
        "manifest": {
            "packs-of-33": {"packs": bytes(33)},
            "negative-count": {"entry_count": -1},
            "count-true": {"entry_count": True},
            "depth-5": {"entries": [36, 5, bytes(36)]},
            "refs-of-35": {"entries": [35, 0, bytes(35)]},
            "size-without-refs": {"entries": [1, 0, b""]},
            "refs-without-size": {"entries": [0, 0, bytes(36)]},
            "content-of-two": {"entries": [0, 0]},
            "series-bytes": {"series": b"main"},
        },
        "commit-normal": {
            "unknown-state": {"state": "B"},
            "digest-of-31": {"manifest_digest": bytes(31)},
            "tags-of-numbers": {"tags": [1]},
            "metrics-of-texts": {"metrics": {"loss": "low"}},
            "step-text": {"step": "1"},
            "inline-no-map": {"inline": b""},
            "inline-without-manifest": {"inline": {"pack": b""}},
            "stats-missing": {"stats": None},
            "sequence-too-large": {"sequence": 2**63},
        },
        "mark-open": {"packs-of-17": {"packs": bytes(17)}, "no-collection": {"collection": None}},
        "move": {
            "targets-of-17": {"targets": bytes(17)},
            "no-targets": {"targets": None},
            "pack-of-15": {"pack": bytes(15)},
            "no-collection": {"collection": None},
        },
        "pointer": {"url-bytes": {"url": b"x"}, "store-text": {"store": "x" * 16}},
    }
    records = sample_records()
    broken = {}
    for name, cases in changes.items():
        kind, data = records[name]
        body = decode_record(kind, data)._map  # noqa: SLF001 - all fields, not those known by name
        for what, change in cases.items():
            newer = what in {"encrypted", "other-chunk-id"}
            altered = encode_record(kind, body | change)
            broken[f"{name}--{what}"] = (kind.value.decode(), altered, "UnsupportedStore" if newer else "DamagedObject")
    return broken


def refooted(pack: bytes, change: Mapping[int, bytes], *, blobs: bytes | None = None) -> bytes:
    """Return a pack with bytes of its footer replaced, and a checksum that fits."""
    (size,) = struct.unpack_from("<I", pack, len(pack) - 8)
    footer = bytearray(pack[len(pack) - 8 - size : -8])
    for at, data in change.items():
        footer[at : at + len(data)] = data
    front = pack[: len(pack) - 8 - size] if blobs is None else pack[:32] + blobs
    return front + reseal(bytes(footer)) + pack[-8:]


def broken_packs() -> dict[str, tuple[str, bytes, str]]:
    """Return packs that must be refused; they should be pack-of-one's or, with its name, pack's."""
    one, four = sample_packs()["pack-of-one"], sample_packs()["pack"]
    cases = {
        "empty": (b"", "DamagedObject"),
        "cut-by-one": (one[:-1], "DamagedObject"),
        "cut-in-front": (one[:31] + one[32:], "DamagedObject"),
        "cut-blob": (one[:32] + one[33:], "DamagedObject"),
        "longer-in-the-middle": (one[:32] + b"\0" + one[32:], "DamagedObject"),
        "flipped-mark": (flipped(one, -1), "DamagedObject"),
        "flipped-footer-size": (flipped(one, -8), "ForeignObject"),
        "flipped-footer": (flipped(one, -60), "DamagedObject"),
        "other-id": (make_pack(numbered("pack 2"), [b"only"]), "DamagedObject"),
        "newer-version": (refooted(one, {9: b"\2"}), "UnsupportedStore"),
        "wrong-kind": (refooted(one, {8: b"I"}), "DamagedObject"),
        "wrong-count": (refooted(one, {32: b"\2"}), "DamagedObject"),
        "blobs-do-not-add-up": (refooted(one, {40: b"\4"}), "DamagedObject"),
        "plain-size-over-16-MiB": (refooted(one, {48 + 36: struct.pack("<I", 2**24 + 1)}), "DamagedObject"),
        "blob-larger-than-chunk-by-two": (refooted(one, {48 + 36: struct.pack("<I", 3)}), "DamagedObject"),
    }
    broken = {f"pack-of-one--{what}": ("P", data, error) for what, (data, error) in cases.items()}
    deltas, rows = delta_pack(), 48 + 4 * 44
    cases = {
        "fewer-than-listed": (refooted(deltas, {36: b"\1"}), "DamagedObject"),
        "none": (refooted(deltas, {36: b"\0"}), "DamagedObject"),
        "more-than-chunks": (refooted(deltas, {36: b"\5"}), "DamagedObject"),
        "of-no-row": (refooted(deltas, {rows + 4: b"\4"}), "DamagedObject"),
        "out-of-order": (refooted(deltas, {rows: b"\3", rows + 4: b"\1"}), "DamagedObject"),
        "twice": (refooted(deltas, {rows + 4: b"\1"}), "DamagedObject"),
    }
    broken |= {f"pack-with-deltas--{what}": ("P", data, error) for what, (data, error) in cases.items()}
    return broken | {"pack--sizes-overflow": ("P", refooted(four, {48 + 128: b"\xff" * 16}), "DamagedObject")}


def broken_indexes() -> dict[str, tuple[str, bytes, str]]:
    """Return index objects that must be refused."""
    footers = [footer_of(data) for data in sample_packs().values()]
    good = encode_index(TransactionId(numbered("home 0")), 7, footers)
    end = 48 + 64

    def redirected(change: Mapping[int, bytes]) -> bytes:
        front = bytearray(good[:end])
        for at, data in change.items():
            front[at : at + len(data)] = data
        return bytes(front) + digest((front,)) + good[end + 32 :]

    cases = {
        "empty": (b"", "DamagedObject"),
        "cut-in-directory": (good[:60], "DamagedObject"),
        "cut-by-one": (good[:-1], "DamagedObject"),
        "longer-by-one": (good + b"\0", "DamagedObject"),
        "flipped-directory": (flipped(good, 50), "DamagedObject"),
        "flipped-section": (flipped(good, -1), "DamagedObject"),
        "other-id": (encode_index(TransactionId(numbered("home 1")), 7, footers), "DamagedObject"),
        "newer-version": (redirected({9: b"\2"}), "UnsupportedStore"),
        "wrong-kind": (redirected({8: b"P"}), "DamagedObject"),
        "count-of-4-billion": (redirected({40: b"\xff\xff\xff\xff"}), "DamagedObject"),
        "section-elsewhere": (redirected({64: b"\1"}), "DamagedObject"),
        "section-of-another-pack": (redirected({48: good[80:96], 80: good[48:64]}), "DamagedObject"),
    }
    return {f"index--{what}": ("I", data, error) for what, (data, error) in cases.items()}


def raw_entry(path: bytes, kind: str, *more: object) -> bytes:
    """Return an entry of any fields: mode, mtime, size, content, extra."""
    defaults: list[object] = [0o644, TIME, 0, [0, 0, b""] if kind == "f" else None, None]
    return sized([path, kind, *more, *defaults[len(more) :]])


def sized(value: object) -> bytes:
    """Return a value with its size in front, as an entry stands in its stream."""
    data = pack_value(value)
    return struct.pack("<I", len(data)) + data


def data_entry(path: bytes, data: bytes, **change: object) -> bytes:
    """Return a file of one chunk, with fields replaced."""
    fields: dict[str, object] = {"mode": 0o644, "mtime": TIME, "size": len(data), "depth": 0, "extra": None}
    fields |= {"refs": encode_ref(chunk_id(data), len(data)), "content_size": len(data)} | change
    content = [fields["content_size"], fields["depth"], fields["refs"]]
    return raw_entry(path, "f", fields["mode"], fields["mtime"], fields["size"], content, fields["extra"])


DATA = b"some data of a file"
HEAVY = b"many equal bytes " * 100


def extents(*runs: tuple[int, int]) -> dict[str, object]:
    """Return an extra with extents."""
    return {"extents": b"".join(struct.pack("<QQ", *run) for run in runs)}


def broken_entries() -> dict[str, list[bytes]]:
    """Return streams of entries that must be refused."""
    ok, size = data_entry(b"f", DATA), len(DATA)
    link = ("h", 0, 0, 0, None)
    symlink = ("l", 0o777, TIME, 0, None)
    paths = {
        "traversal": b"../escaped",
        "traversal-below": b"a/../../escaped",
        "traversal-at-end": b"a/..",
        "dot": b"./escaped",
        "absolute": b"/escaped",
        "double-slash": b"a//b",
        "trailing-slash": b"a/",
        "nul": b"a\0b",
        "empty": b"",
        "too-long": b"x" * 32_769,
    }
    fields: dict[str, list[bytes]] = {
        "duplicate": [ok, ok],
        "out-of-order": [raw_entry(b"b", "f"), raw_entry(b"a", "f")],
        "ordered-by-plain-bytes": [raw_entry(b"a", "d"), raw_entry(b"a.b", "f"), raw_entry(b"a/b", "f")],
        "file-in-a-file": [ok, data_entry(b"f/escaped", DATA)],
        "file-in-a-symlink": [raw_entry(b"l", *symlink, {"target": b".."}), data_entry(b"l/escaped", DATA)],
        "file-in-a-hard-link": [ok, raw_entry(b"h", *link, {"target": b"f"}), data_entry(b"h/escaped", DATA)],
        "unknown-type": [raw_entry(b"x", "p")],
        "root-is-a-symlink": [raw_entry(b"", *symlink, {"target": b".."})],
        "mode-of-13-bits": [data_entry(b"f", DATA, mode=0o10000)],
        "mode-true": [data_entry(b"f", DATA, mode=True)],
        "time-of-64-bits": [data_entry(b"f", DATA, mtime=2**63)],
        "time-float": [data_entry(b"f", DATA, mtime=1.5)],
        "path-text": [sized(["some-path", "d", 0, 0, 0, None, None])],
        "six-fields": [sized([b"", "d", 0, 0, 0, None])],
        "no-array": [sized(None)],
        "bytes-after-the-array": [struct.pack("<I", len(ok) - 3) + ok[4:] + b"\xc0"],
        "size-of-2-MiB": [struct.pack("<I", 2**21) + ok[4:]],
        "cut-off": [ok[:-1]],
        "size-differs": [data_entry(b"f", DATA, size=size + 1)],
        "content-too-long": [data_entry(b"f", DATA, size=size - 1, content_size=size - 1)],
        "content-too-short": [data_entry(b"f", DATA, size=size + 1, content_size=size + 1)],
        "content-missing": [raw_entry(b"f", "f", 0o644, TIME, 0, None)],
        "content-for-a-directory": [raw_entry(b"d", "d", 0o755, TIME, 0, [0, 0, b""])],
        "size-for-a-directory": [raw_entry(b"d", "d", 0o755, TIME, 1)],
        "depth-5": [data_entry(b"f", DATA, depth=5)],
        "depth-1-without-list": [data_entry(b"f", DATA, depth=1)],
        "refs-cut-off": [data_entry(b"f", DATA, refs=encode_ref(chunk_id(DATA), size)[:-1])],
        "ref-of-another-size": [data_entry(b"f", DATA, size=5, content_size=5, refs=encode_ref(chunk_id(DATA), 5))],
        "ref-of-size-0": [
            data_entry(b"f", DATA, refs=encode_ref(chunk_id(DATA), size) + encode_ref(chunk_id(DATA), 0))
        ],
        "symlink-without-target": [raw_entry(b"l", "l")],
        "symlink-with-nul": [raw_entry(b"l", *symlink, {"target": b"a\0b"})],
        "target-text": [raw_entry(b"l", *symlink, {"target": "text"})],
        "file-with-target": [data_entry(b"f", DATA, extra={"target": b"x"})],
        "hard-link-to-nothing": [ok, raw_entry(b"h", *link, {"target": b"missing"})],
        "hard-link-to-a-directory": [raw_entry(b"d", "d"), raw_entry(b"h", *link, {"target": b"d"})],
        "hard-link-to-a-hard-link": [
            ok,
            raw_entry(b"g", *link, {"target": b"f"}),
            raw_entry(b"h", *link, {"target": b"g"}),
        ],
        "hard-link-to-itself": [raw_entry(b"h", *link, {"target": b"h"})],
        "hard-link-outside": [raw_entry(b"h", *link, {"target": b"../outside"})],
        "extents-overlap": [data_entry(b"f", DATA, size=99, extra=extents((0, 10), (9, size - 10)))],
        "extents-out-of-order": [data_entry(b"f", DATA, size=99, extra=extents((50, 10), (0, size - 10)))],
        "extents-beyond-the-end": [data_entry(b"f", DATA, size=99, extra=extents((90, size)))],
        "extents-of-size-0": [data_entry(b"f", DATA, size=99, extra=extents((0, 0), (0, size)))],
        "extents-do-not-add-up": [data_entry(b"f", DATA, size=99, extra=extents((0, size - 1)))],
        "extents-overflow": [data_entry(b"f", DATA, size=99, extra=extents((2**64 - 1, size)))],
        "extents-cut-off": [data_entry(b"f", DATA, size=99, extra={"extents": bytes(15)})],
        "extents-of-a-directory": [raw_entry(b"d", "d", 0o755, TIME, 0, None, extents())],
        "xattrs-of-texts": [data_entry(b"f", DATA, extra={"xattrs": {"user.a": "b"}})],
        "owner-of-three": [data_entry(b"f", DATA, extra={"owner": [1, 2, "x"]})],
        "extra-no-map": [data_entry(b"f", DATA, extra=[])],
    }
    return {f"path-{name}": [data_entry(path, DATA)] for name, path in paths.items()} | fields


STORE = StoreId(numbered("broken store"))
KEY = CommitKey("s", 1, TransactionId(numbered("broken snapshot")))


class Parts(NamedTuple):
    """A store of one snapshot, in pieces that can be replaced before it is put together."""

    entries: Sequence[bytes] = (data_entry(b"f", DATA), data_entry(b"heavy", HEAVY))
    said: int | None = None
    manifest: Mapping[str, object] = {}
    commit: Mapping[str, object] = {}
    header: Mapping[str, object] = {}
    pack: bytes | None = None
    inline: bool = True
    features: tuple[tuple[str, tuple[str, ...]], ...] = NO_TENSORS

    def objects(self) -> Objects:
        """Put the store together."""
        plain = b"".join(self.entries)
        name = PackId(KEY.transaction)
        pack = self.pack or make_pack(name, [chunk for chunk in (DATA, HEAVY, plain) if chunk])
        refs = encode_ref(chunk_id(plain), len(plain)) if plain else b""
        packs = () if self.inline else (PackRef(name, KEY.transaction),)
        count = len(self.entries) if self.said is None else self.said
        manifest = Manifest(STORE, *KEY, 0, packs, Content(len(plain), 0, refs), count).encode()
        manifest = changed(Kind.MANIFEST, manifest, self.manifest)
        carried = Inline(manifest, pack) if self.inline else None
        record = Commit(
            State.COMMITTED, STORE, KEY, TIME, manifest_digest=digest((manifest,)), manifest_size=len(manifest)
        )
        objects = {
            "cas-checkpoint": changed(Kind.HEADER, Header(STORE, features=self.features).encode(), self.header),
            str(KEY): changed(Kind.COMMIT, record._replace(inline=carried).encode(), self.commit),
        }
        if not self.inline:
            objects |= {manifest_key(KEY.transaction): manifest, pack_key(name): pack}
        return objects


def changed(kind: Kind, data: bytes, change: Mapping[str, object]) -> bytes:
    """Return a record with fields replaced."""
    return encode_record(kind, decode_record(kind, data)._map | dict(change)) if change else data  # noqa: SLF001


def blob_pack(
    plain: bytes, blob: bytes, *, size: int, check: int | None = None, base: bytes | None = None, beside: bytes = DATA
) -> bytes:
    """Return a pack in which one chunk stands as a given blob, and which also holds that and the entries of `Parts`."""
    builder = PackBuilder(PackId(KEY.transaction), memoryview(bytearray(1)))  # for a blob without payload
    crc = zlib.crc32(blob) if blob[0] else 0
    of = None if base is None else chunk_id(base)
    builder.add(chunk_id(plain), blob[0], blob[1:], size, crc if check is None else check, base=of)
    for chunk in sorted({DATA, HEAVY, beside, b"".join(Parts().entries)} - {plain}):
        builder.add(chunk_id(chunk), 0, chunk, len(chunk), 0)
    return b"".join(builder.finish()[1])


def broken_blobs() -> dict[str, tuple[Objects, str]]:
    """Return stores in which a chunk is not what it should be."""
    good = Encoder(planes=False).blob(HEAVY)
    size, damaged = len(HEAVY), "DamagedObject"
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(HEAVY)
    bomb = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(bytes(2**23))
    longer = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(HEAVY + b"!")
    lying = longer.replace(struct.pack("<H", size + 1 - 256), struct.pack("<H", size - 256), 1)
    cases = {
        "unknown-codec": (blob_pack(HEAVY, b"\7" + good[1:], size=size), "UnsupportedStore"),
        "wrong-check": (blob_pack(HEAVY, good, size=size, check=1), damaged),
        "check-for-raw": (blob_pack(DATA, b"\0" + DATA, size=len(DATA), check=1), damaged),
        "other-content": (blob_pack(DATA, b"\0" + DATA[::-1], size=len(DATA)), damaged),
        "other-content-zstd": (blob_pack(HEAVY, Encoder(planes=False).blob(HEAVY[::-1]), size=size), damaged),
        "frame-cut-off": (blob_pack(HEAVY, good[:-1], size=size), damaged),
        "frame-with-more-after-it": (blob_pack(HEAVY, good + b"\0", size=size), damaged),
        "two-frames": (blob_pack(HEAVY, good + good[1:], size=size), damaged),
        "frame-without-size": (blob_pack(HEAVY, b"\1" + unsized, size=size), damaged),
        "frame-is-a-bomb": (blob_pack(HEAVY, b"\1" + bomb, size=size), damaged),
        "frame-declares-less-than-it-holds": (blob_pack(HEAVY, b"\1" + lying, size=size), damaged),
        "no-frame": (blob_pack(HEAVY, b"\1" + bytes(20), size=size), damaged),
        "no-payload": (blob_pack(HEAVY, b"\1", size=size), damaged),
        "footer-says-another-size": (blob_pack(HEAVY, Encoder(planes=False).blob(HEAVY[:-1]), size=size - 1), damaged),
    }
    broken = {f"blob-{what}": (Parts(pack=pack).objects(), error) for what, (pack, error) in cases.items()}
    missing = make_pack(KEY.transaction, [HEAVY, b"".join(Parts().entries)])
    return broken | {"chunk-in-no-pack": (Parts(pack=missing).objects(), "MissingObject")}


def broken_planes() -> dict[str, bytes]:
    """Return blobs of codecs 2 and 3 that stand for HEAVY and must be refused; none is larger than a blob may be."""
    frame = zstandard.ZstdCompressor(level=19).compress
    size, half = len(HEAVY), part(1, frame(HEAVY[::2])) + part(1, frame(HEAVY[1::2]))
    tops, more = part(1, frame(b"\xff" * -(-size // 4))), part(1, frame(bytes(size)))
    nothing = packed_values(0, 0, 8, part(2, b""))
    return {
        "planes-cut-off": b"\2\1" + half[:-1],
        "planes-with-more-after-them": b"\2\1" + half + b"\0",
        "planes-cut-off-in-a-size": b"\2\1" + half[:3],
        "planes-of-one-too-few": b"\2\1" + part(1, frame(HEAVY)),
        "planes-of-an-unknown-shape": b"\2\x11" + half,
        "planes-of-a-window": b"\2\x09\0\0\0\0" + half,
        "planes-of-an-unknown-coding": b"\2\0" + part(5, frame(HEAVY)),
        "planes-counted-down-from-nothing": b"\2\0" + part(4, b""),
        "planes-counted-down-and-cut-off": b"\2\0" + part(4, b"\7\0\4\0"),
        "planes-counted-down-in-a-plane": b"\2\0" + part(3, packed_values(0, 0, 8, part(4, nothing))),
        "planes-of-another-size": b"\2\0" + part(1, frame(HEAVY[:-1])),
        "planes-whose-frame-is-a-bomb": b"\2\0" + part(1, frame(bytes(2**23))),
        "planes-of-zeros-that-are-not-empty": b"\2\0" + part(2, b"\0"),
        "planes-with-fewer-large-values": b"\2\0" + part(3, packed_values(size - 1, 0, 2, tops, part(2, b""))),
        "planes-with-2-to-the-32-large-values": b"\2\0" + part(3, packed_values(2**32 - 1, 0, 2, tops, more)),
        "planes-packed-twice": b"\2\0" + part(3, packed_values(0, 0, 8, part(3, nothing))),
        "planes-packed-and-cut-off": b"\2\0" + part(3, b"\0\0\0"),
        "planes-packed-with-low-bits-of-bytes": b"\2\0" + part(3, packed_values(0, 1, 8, part(2, b""))),
        "planes-packed-with-tops-of-3-bits": b"\2\0" + part(3, packed_values(0, 0, 3, part(2, b""))),
        "planes-packed-with-more-after-them": b"\2\0" + part(3, nothing + b"\0"),
        "planes-of-other-content": b"\2\0" + part(1, frame(HEAVY[::-1])),
        "delta-that-is-not-listed": b"\3\0\0\xff" + nothing,
    }


def broken_tensors() -> dict[str, tuple[Objects, str]]:
    """Return stores in which planes or deltas are not what they should be."""
    size, damaged = len(HEAVY), "DamagedObject"
    cases = {name: (blob_pack(HEAVY, blob, size=size), damaged) for name, blob in broken_planes().items()}
    nothing = packed_values(0, 0, 8, part(2, b""))
    wrong = {
        "delta-without-groups": b"\3\0",
        "delta-whose-groups-are-cut-off": b"\3\0\5\1\2",
        "delta-whose-groups-end-too-soon": b"\3\0\0\xfe" + nothing,
        "delta-whose-groups-go-back": b"\3\0\2\7\7\xff" + 3 * nothing,
        "delta-of-one-group-too-few": b"\3\0\1\7\xff" + nothing,
        "delta-of-one-group-too-many": b"\3\0\0\xff" + 2 * nothing,
        "delta-of-a-window-of-a-base-of-the-same-size": b"\3\x08" + bytes(4) + b"\0\xff" + nothing,
        "delta-of-a-window-that-is-cut-off": b"\3\x08\0",
        "delta-whose-low-bits-are-cut-off": b"\3\1\0\xff" + packed_values(0, 8, 8, bits=bytes(9)),
    }
    base = b"x" * size
    cases |= {
        name: (blob_pack(HEAVY, blob, size=size, base=base, beside=base), damaged) for name, blob in wrong.items()
    }
    window = struct.Struct("<BBI")
    cases |= {
        f"delta-of-a-window-{name}": (
            blob_pack(HEAVY, window.pack(3, 8, start) + b"\0\xff" + nothing, size=size, base=base, beside=base),
            damaged,
        )
        for name, start, base in (
            ("that-ends-behind-its-base", 6, HEAVY + b"xxxxx"),
            ("that-begins-behind-its-base", 2**32 - 1, HEAVY + b"xxxxx"),
            ("of-too-large-a-base", 0, HEAVY * 9),
        )
    }
    nothing = b"\3\0\0\xff" + nothing
    cases |= {
        "delta-of-what-is-in-no-pack": (blob_pack(HEAVY, nothing, size=size, base=bytes(size)), "MissingObject"),
        "delta-of-itself": (blob_pack(HEAVY, nothing, size=size, base=HEAVY), "MissingObject"),
        "delta-of-a-chunk-of-another-size": (blob_pack(HEAVY, nothing, size=size, base=DATA), damaged),
    }
    return {
        f"blob-{what}": (Parts(pack=pack, features=Header(STORE).features).objects(), error)
        for what, (pack, error) in cases.items()
    }


def broken_records() -> dict[str, tuple[Objects, str]]:
    """Return stores whose records contradict one another."""
    other_id, damaged, newer = numbered("another"), "DamagedObject", "UnsupportedStore"
    features: dict[str, object] = {
        "features": {"read": ["moves", "from-the-future"], "write": ["moves"], "collect": ["moves"]}
    }
    short = Parts().objects()[str(KEY)]
    foreign = make_pack(other_id, [DATA, HEAVY, b"".join(Parts().entries)])
    good = Parts().objects()
    cases: dict[str, tuple[Objects, str]] = {
        "header-unknown-read-feature": (Parts(header=features).objects(), newer),
        "header-other-chunk-id": (Parts(header={"chunk_id": "sha-256"}).objects(), newer),
        "header-encrypted": (Parts(header={"key_slots": [{}]}).objects(), newer),
        "header-newer-version": (good | {"cas-checkpoint": flip_version(good["cas-checkpoint"])}, newer),
        "header-flipped": (good | {"cas-checkpoint": flipped(good["cas-checkpoint"], 40)}, damaged),
        "header-foreign": (good | {"cas-checkpoint": b"something else entirely\n"}, "ForeignObject"),
        "header-missing": ({key: data for key, data in good.items() if key != "cas-checkpoint"}, "MissingObject"),
        "commit-of-another-store": (Parts(commit={"store": other_id}).objects(), damaged),
        "commit-of-another-series": (Parts(commit={"series": "t"}).objects(), damaged),
        "commit-of-another-sequence": (Parts(commit={"sequence": 2}).objects(), damaged),
        "commit-of-another-transaction": (Parts(commit={"transaction": other_id}).objects(), damaged),
        "commit-of-unknown-state": (Parts(commit={"state": "X"}).objects(), damaged),
        "commit-newer-version": (good | {str(KEY): flip_version(short)}, newer),
        "commit-cut-off": (good | {str(KEY): short[:-9]}, damaged),
        "commit-other-digest": (Parts(commit={"manifest_digest": bytes(32)}).objects(), damaged),
        "commit-other-size": (Parts(commit={"manifest_size": 1}).objects(), damaged),
        "commit-aborted": (good | {str(KEY): Commit(State.ABORTED, STORE, KEY).encode()}, "SnapshotNotFound"),
        "manifest-of-another-store": (Parts(manifest={"store": other_id}).objects(), damaged),
        "manifest-of-another-series": (Parts(manifest={"series": "t"}).objects(), damaged),
        "manifest-of-another-sequence": (Parts(manifest={"sequence": 2}).objects(), damaged),
        "manifest-of-another-transaction": (Parts(manifest={"transaction": other_id}).objects(), damaged),
        "manifest-with-more-entries": (Parts(said=3).objects(), damaged),
        "manifest-with-fewer-entries": (Parts(said=1).objects(), damaged),
        "inline-pack-of-another-id": (Parts(pack=foreign).objects(), damaged),
        "inline-pack-cut-off": (Parts(pack=blob_pack(DATA, b"\0" + DATA, size=len(DATA))[:-1]).objects(), damaged),
    }
    return cases


def flip_version(data: bytes) -> bytes:
    """Return a record of the format's next version."""
    return reseal(data[:9] + b"\2" + data[10:])


def broken_packed() -> dict[str, tuple[Objects, str]]:
    """Return stores whose snapshot is not carried by its commit."""
    good, damaged = Parts(inline=False).objects(), "DamagedObject"
    pack, manifest = pack_key(PackId(KEY.transaction)), manifest_key(KEY.transaction)
    index = {index_key(KEY.transaction): encode_index(KEY.transaction, 0, [footer_of(good[pack])])}
    lying = good[pack][:33] + b"X" + good[pack][34:]  # the first blob is raw
    cases: dict[str, tuple[Objects, str]] = {
        "pack-missing": ({key: data for key, data in good.items() if key != pack}, "MissingObject"),
        "pack-missing-but-indexed": (
            {key: data for key, data in (good | index).items() if key != pack},
            "MissingObject",
        ),
        "pack-cut-off": (good | {pack: good[pack][:-1]}, damaged),
        "pack-cut-off-but-indexed": (good | index | {pack: good[pack][:40]}, damaged),
        "pack-flipped": (good | {pack: lying}, damaged),
        "pack-flipped-but-indexed": (good | index | {pack: lying}, damaged),
        "pack-of-another-id": (good | {pack: make_pack(numbered("another"), [DATA])}, damaged),
        "pack-foreign": (good | {pack: bytes(1_000)}, damaged),
        "manifest-missing": ({key: data for key, data in good.items() if key != manifest}, "MissingObject"),
        "manifest-flipped": (good | {manifest: flipped(good[manifest], 60)}, damaged),
        "manifest-cut-off": (good | {manifest: good[manifest][:-1]}, damaged),
        "manifest-lists-no-packs": (Parts(inline=False, manifest={"packs": b""}).objects(), "MissingObject"),
    }
    return {f"packed-{what}": case for what, case in (cases | broken_moves(good, pack)).items()}


def broken_moves(good: Objects, pack: str) -> dict[str, tuple[Objects, str]]:
    """Return stores whose pack was moved, in a way that does not lead to all of its chunks."""
    rest = {key: data for key, data in good.items() if key != pack}
    move = sample_move("x", "target")
    move = move._replace(key=move.key._replace(pack=PackId(KEY.transaction)))
    back = sample_move("target", "x")._replace(targets=frozenset([PackId(KEY.transaction)]))
    target = PackId(numbered("target"))
    whole = make_pack(target, [DATA, HEAVY, b"".join(Parts().entries)])
    moved, damaged, missing = rest | {str(move.key): move.encode()}, "DamagedObject", "MissingObject"
    return {
        "pack-moved-to-nothing": (rest | {str(move.key): move._replace(targets=frozenset()).encode()}, missing),
        "pack-moved-to-what-is-gone": (moved, missing),
        "pack-moved-in-a-circle": (moved | {str(back.key): back.encode()}, missing),
        "pack-moved-without-a-chunk": (
            moved | {pack_key(target): make_pack(target, [DATA, b"".join(Parts().entries)])},
            missing,
        ),
        "pack-moved-to-a-damaged-one": (moved | {pack_key(target): whole[:-1]}, damaged),
        "pack-moved-to-one-of-another-id": (moved | {pack_key(target): good[pack]}, damaged),
        "pack-moved-by-a-damaged-move": (
            rest | {str(move.key): move.encode()[:-1], pack_key(target): whole},
            damaged,
        ),
        "pack-moved-by-the-move-of-another": (rest | {str(move.key): back.encode(), pack_key(target): whole}, damaged),
    }


def write_broken(writer: Writer) -> None:
    """Write what must be refused."""
    said = {}
    for name, (kind, data, error) in broken_objects().items():
        writer.binary(f"broken/objects/{name}.bin", data)
        said[name] = {"kind": kind, "error": error}
    writer.json("broken/objects.json", said)
    stores = {
        f"entry-{name}": (Parts(entries).objects(), "DamagedObject") for name, entries in broken_entries().items()
    }
    stores |= broken_blobs() | broken_tensors() | broken_records() | broken_packed()
    for name, (objects, _) in stores.items():
        writer.objects(f"broken/stores/{name}", objects)
    writer.json("broken/stores.json", {name: {"error": error} for name, (_, error) in stores.items()})


def main(arguments: Sequence[str]) -> int:
    """Write all vectors."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    writer = Writer(arguments[0])
    write_chunk_ids(writer)
    write_cuts(writer)
    write_codecs(writer)
    write_objects(writer)
    golden = golden_store()
    writer.objects("store", golden.objects)
    writer.json("trees.json", golden.trees)
    tensors = tensor_store()
    writer.objects("store-with-tensors", tensors.objects)
    writer.json("trees-with-tensors.json", tensors.trees)
    write_broken(writer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
