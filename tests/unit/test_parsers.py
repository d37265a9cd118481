"""Every parser of the format on hostile bytes: what it cannot read it refuses, in bounded memory."""

from __future__ import annotations

import struct
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cas_checkpoint.codecs import MAX_CHUNK_SIZE, Codec, Decoder, Encoder, blob_check
from cas_checkpoint.commits import Commit, CommitKey, Inline, SaveStats, State, parse_commit_key
from cas_checkpoint.elements import Elements
from cas_checkpoint.errors import DamagedObject, UnsupportedStore
from cas_checkpoint.headers import MAX_HEADER_SIZE, OPERATIONS, Header, check_features
from cas_checkpoint.ids import PackId, StoreId, TransactionId, chunk_id, digest
from cas_checkpoint.index import ChunkIndex, directory_size, encode_index, parse_directory, parse_index
from cas_checkpoint.manifests import (
    Content,
    Entry,
    EntryReader,
    EntryType,
    Manifest,
    Owner,
    PackRef,
    decode_entry,
    decode_refs,
    encode_entry,
    encode_ref,
)
from cas_checkpoint.marks import Mark, mark_key, parse_mark_key
from cas_checkpoint.moves import Move, MoveKey, parse_move_key
from cas_checkpoint.packs import PACK_TAIL_SIZE, PackBuilder, check_pack, footer_size, parse_footer, read_tail
from cas_checkpoint.pointers import Pointer
from cas_checkpoint.records import CHECKSUM_SIZE, MAX_RECORD_SIZE, Kind, decode_record, make_head, pack_value
from cas_checkpoint.tensors import find_tensors
from cas_checkpoint.tensors.dcp import read_metadata

STORE = StoreId(b"id of some store")
NAME = TransactionId(b"some transaction")
PACK = PackId(b"pack of sixteen!")
REF = encode_ref(b"c" * 32, 5)

FOLDER = Path(__file__).with_name("tensors") / "containers"
CONTAINERS = sorted(path for path in FOLDER.iterdir() if path.suffix not in {".json", ".metadata"})
METADATA = (FOLDER / "pieces.metadata").read_bytes()

# --- valid objects ------------------------------------------------------------------------------


def _pack():
    builder = PackBuilder(PACK)
    for chunk in (b"a", bytes(500), b"some text " * 30):
        codec, payload = Encoder().encode(chunk)
        builder.add(chunk_id(chunk), codec, payload, len(chunk), blob_check(codec, payload))
    footer, parts = builder.finish()
    return footer, b"".join(parts)


FOOTER, WHOLE_PACK = _pack()
INDEX = encode_index(NAME, 3, [FOOTER, FOOTER])
MANIFEST = Manifest(STORE, "series", 1, NAME, 2, (PackRef(PACK, NAME),), Content(5, 0, REF), 1)
COMMIT = Commit(
    State.COMMITTED,
    STORE,
    CommitKey("series", 1, NAME),
    created_at_ns=10**18,
    step=3,
    metrics={"loss": 0.5},
    tags=("best",),
    message="message",
    stats=SaveStats(seconds=1.5),
    manifest_digest=b"d" * 32,
    manifest_size=99,
    inline=Inline(MANIFEST.encode(), WHOLE_PACK),
)
ENTRIES = [
    Entry(b"", EntryType.DIRECTORY, 0o755),
    Entry(b"file", EntryType.FILE, 0o644, 7, 5, Content(5, 0, REF), owner=Owner(1, 2, "u", "g")),
    Entry(b"link", EntryType.SYMLINK, target=b"file", xattrs={b"user.a": b"1"}),
    Entry(b"sparse", EntryType.FILE, 0o644, 7, 100, Content(5, 0, REF), extents=((1, 2), (7, 3))),
    Entry(b"twin", EntryType.HARDLINK, target=b"file"),
]
STREAM = b"".join(map(encode_entry, ENTRIES))
BLOB = Encoder().blob(bytes(500))
FLOATS = Elements(4, is_float=True)
TENSOR = np.random.default_rng(1).normal(0, 1, 200).astype("<f4").tobytes() + b"!"
EARLIER = (np.frombuffer(TENSOR, "<u4", 200) + np.arange(200, dtype="<u4") % 3 * 70).astype("<u4").tobytes() + b"?"
SPARSE = bytes(0 if at % 9 else 200 if at % 2 else 1 for at in range(1000))
BYTES = Elements(1, is_float=False)
NEAR = bytes(200 if at % 300 == 7 else 120 - at % 11 for at in range(1000))
PLANES = {
    "planes": (bytes((Codec.PLANES,)) + Encoder().encode(TENSOR, FLOATS)[1], TENSOR, None),
    "packed planes": (bytes((Codec.PLANES,)) + Encoder().encode(SPARSE, BYTES)[1], SPARSE, None),
    "delta": (
        bytes((Codec.DELTA,)) + Encoder().encode_delta(TENSOR, EARLIER, FLOATS, thorough=True, limit=2**20),
        TENSOR,
        EARLIER,
    ),
    "delta of a window": (
        bytes((Codec.DELTA,))
        + Encoder().encode_delta(TENSOR[8:408], EARLIER, FLOATS, start=8, thorough=True, limit=2**20),
        TENSOR[8:408],
        EARLIER,
    ),
    "planes counted down": (bytes((Codec.PLANES,)) + Encoder().encode(NEAR, BYTES)[1], NEAR, None),
}
assert PLANES["planes counted down"][0][2] == 4

MOVE_KEY = str(MoveKey(PACK, NAME))
RECORDS = {
    Kind.HEADER: (Header.decode, Header(STORE).encode()),
    Kind.MANIFEST: (Manifest.decode, MANIFEST.encode()),
    Kind.COMMIT: (Commit.decode, COMMIT.encode()),
    Kind.MARK: (Mark.decode, Mark(NAME, frozenset({PACK})).encode()),
    Kind.MOVE: (Move.decode, Move(MoveKey(PACK, NAME), frozenset({PACK, PackId(NAME)})).encode()),
    Kind.POINTER: (Pointer.decode, Pointer("s3://bucket/store", STORE, "series").encode()),
}


def read_entries(data):
    """Read a stream of entries in pieces."""
    reader = EntryReader()
    found = [entry for at in range(0, len(data), 100) for entry in reader.feed(data[at : at + 100])]
    reader.finish(len(found))
    return found


def find_in(data):
    """Return where the tensors of a container lie."""
    return find_tensors(lambda offset, size: bytes(data[offset : offset + size]), len(data))


def decode_blob(plain, base, data):
    """Decode what should be the blob of `plain`, a delta of `base` if there is one."""
    return bytes(Decoder().decode(data, len(plain), base))


PARSERS = {
    **{kind.name: record for kind, record in RECORDS.items()},
    "footer": (parse_footer, FOOTER.encoded),
    "footer of a pack": (lambda data: parse_footer(data, pack=PACK), FOOTER.encoded),
    "tail": (lambda data: read_tail(data, pack_size=len(WHOLE_PACK)), WHOLE_PACK[-PACK_TAIL_SIZE:]),
    "pack": (lambda data: check_pack(FOOTER, data), WHOLE_PACK),
    "index": (lambda data: parse_index(data, name=NAME), INDEX),
    "directory": (lambda data: parse_directory(data, name=NAME, object_size=len(data)), INDEX),
    "first bytes of a directory": (lambda data: parse_directory(data, name=NAME, object_size=2**40), INDEX[:100]),
    "entry": (decode_entry, encode_entry(ENTRIES[3])[4:]),
    "owned entry": (decode_entry, encode_entry(ENTRIES[1])[4:]),
    "symlink entry": (decode_entry, encode_entry(ENTRIES[2])[4:]),
    "entries": (read_entries, STREAM),
    "list of chunks": (lambda data: list(decode_refs(data)), REF * 3),
    **{f"tensors of {path.name}": (find_in, path.read_bytes()) for path in CONTAINERS},
    "metadata of tensors": (lambda data: read_metadata(bytes(data)), METADATA),
    "blob": (lambda data: bytes(Decoder().decode(data, 500)), BLOB),
    **{name: (partial(decode_blob, plain, base), blob) for name, (blob, plain, base) in PLANES.items()},
}
parsers = pytest.mark.parametrize(("parse", "valid"), PARSERS.values(), ids=PARSERS)


def outcome(parse, data):
    """Parse `data`; return what came of it, or None if it was refused as it should be."""
    try:
        return parse(data)
    except (DamagedObject, UnsupportedStore) as error:
        reason = str(error)
    assert 0 < len(reason) < 2**20
    return None


# --- mutations ----------------------------------------------------------------------------------

MATERIAL = [valid for _, valid in PARSERS.values()]
ODD = [b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\xdd\xff\xff\xff\xff", b"\xc7\x00\x05", b"\x80", b"\xc1", bytes(40)]


@st.composite
def mutated(draw, valid):
    """Return `valid` after one or a few changes: bits, bytes, cuts, splices."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 64)) | st.just(start) | st.just(len(data)))
        match draw(st.sampled_from(["bit", "cut", "splice", "odd", "bytes", "swap"])):
            case "bit":
                if start < len(data):
                    data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start:end]
            case "splice":
                other = draw(st.sampled_from(MATERIAL))
                at = draw(st.integers(0, len(other)))
                data[start:end] = other[at : at + 100]
            case "odd":
                data[start:end] = draw(st.sampled_from(ODD))
            case "bytes":
                data[start:end] = draw(st.binary(max_size=20))
            case "swap":
                data[start:] = data[start:][::-1]
    return bytes(data)


def resealed(content):
    return bytes(content) + digest((bytes(content),))


def sealed_record(kind, body, *, size=None, codec=Codec.RAW, payload=None):
    """Return a record with a correct checksum around any bytes."""
    head = make_head(kind) + struct.pack("<I", len(body) if size is None else size)
    return resealed(head + bytes((codec,)) + (body if payload is None else payload))


def body_of(kind):
    """Return the names and values of a valid record of that kind."""
    fields = decode_record(kind, RECORDS[kind][1])
    return dict(fields._map)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40)
    | st.sampled_from([REF, b"i" * 16, b"d" * 32, "C", "A", "fastcdc-2020", "blake3-256"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def with_other_values(draw, value):
    """Return `value` with some of its parts replaced by values of any type."""
    if draw(st.integers(0, 7)) == 0:
        return draw(values)
    if isinstance(value, dict):
        return {name: draw(with_other_values(part)) for name, part in value.items() if draw(st.integers(0, 19))}
    if isinstance(value, (tuple, list)):
        return [draw(with_other_values(part)) for part in value]
    return value


# --- nothing but refusals -----------------------------------------------------------------------


@parsers
def test_valid_objects_are_read(parse, valid):
    parse(valid)
    parse(memoryview(valid))


@parsers
@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(parse, valid, data):
    outcome(parse, data)
    outcome(parse, valid[:16] + data)


@parsers
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_mutations_are_read_or_refused(parse, valid, data):
    outcome(parse, data.draw(mutated(valid)))


@parsers
def test_every_truncation_is_read_or_refused(parse, valid):
    for size in range(0, len(valid), max(1, len(valid) // 200)):
        outcome(parse, valid[:size])


@pytest.mark.parametrize("kind", RECORDS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_sealed_records_of_mutated_bodies_are_read_or_refused(kind, data):
    parse, valid = RECORDS[kind]
    body = data.draw(mutated(pack_value(body_of(kind))))
    outcome(parse, sealed_record(kind, body))
    outcome(parse, sealed_record(kind, body, codec=Codec.ZSTD, payload=zstandard.compress(body)))
    outcome(parse, resealed(data.draw(mutated(valid[:-CHECKSUM_SIZE]))))


@pytest.mark.parametrize("kind", RECORDS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_sealed_records_of_other_values_are_read_or_refused(kind, data):
    found = outcome(RECORDS[kind][0], sealed_record(kind, pack_value(data.draw(with_other_values(body_of(kind))))))
    if isinstance(found, Header):
        for operation in OPERATIONS:
            outcome(partial(check_features, found), operation)
    if found is not None and kind is not Kind.HEADER:
        assert RECORDS[kind][0](found.encode()) == found or repr(found) == repr(RECORDS[kind][0](found.encode()))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.type.name)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_entries_of_other_values_are_read_or_refused(entry, data):
    extra = {"target": b"x", "extents": bytes(16), "xattrs": {b"a": b"1"}, "owner": (1, 2, "a", "b")}
    plain = [entry.path, entry.type.value, entry.mode, entry.mtime_ns, entry.size, entry.content, extra]
    packed = pack_value(data.draw(with_other_values(plain)))
    found = outcome(decode_entry, packed)
    if found is not None:
        assert decode_entry(encode_entry(found)[4:]) == found
    outcome(read_entries, STREAM + len(packed).to_bytes(4, "little") + packed)


@settings(deadline=None, max_examples=100)
@given(data=mutated(FOOTER.encoded[:-CHECKSUM_SIZE]))
@example(data=FOOTER.encoded[:-CHECKSUM_SIZE])
def test_sealed_footers_are_read_or_refused(data):
    footer = outcome(parse_footer, resealed(data))
    if footer is not None:
        assert footer.pack_size >= len(footer.encoded)
        index = ChunkIndex()
        index.add([footer])
        assert index.locate(footer.ids).found.all()
        outcome(lambda pack: check_pack(footer, pack), WHOLE_PACK)


@settings(deadline=None, max_examples=100)
@given(
    columns=st.lists(st.tuples(*[st.sampled_from([0, 1, 2, 3, 2**24, 2**24 + 1, 2**31, 2**32 - 1])] * 3), max_size=5),
    blobs_size=st.none() | st.integers(0, 2**64 - 1),
)
def test_sealed_footers_of_any_sizes_are_read_or_refused(columns, blobs_size):
    total = sum(row[0] for row in columns) if blobs_size is None else blobs_size
    table = np.array(columns, "<u4").reshape(-1, 3).T.tobytes()
    frame = struct.pack("<IIQ", len(columns), 0, total)
    footer = outcome(parse_footer, resealed(make_head(Kind.PACK) + PACK + frame + bytes(32 * len(columns)) + table))
    if footer is not None:
        assert footer.pack_size < 2**32
        assert footer.offsets.tolist() == [32 + sum(row[0] for row in columns[:at]) for at in range(len(columns))]
        if footer.pack_size < 1000:
            check = (
                bytes(footer.stored_sizes.sum()) + footer.encoded + struct.pack("<I4s", len(footer.encoded), b"CASP")
            )
            outcome(lambda pack: check_pack(footer, pack), make_head(Kind.PACK) + PACK + check)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_sealed_indexes_are_read_or_refused(data):
    end = directory_size(2)
    directory = data.draw(mutated(INDEX[: end - CHECKSUM_SIZE]))
    section = resealed(data.draw(mutated(FOOTER.encoded[:-CHECKSUM_SIZE])))
    for candidate in (
        resealed(directory) + INDEX[end:],
        resealed(directory) + section,
        INDEX[: -len(FOOTER.encoded)] + section,
    ):
        outcome(lambda index: parse_index(index, name=NAME), candidate)
        for size in (16, 48, len(directory), len(candidate)):
            outcome(partial(parse_directory, name=NAME, object_size=len(candidate)), candidate[:size])


@settings(deadline=None, max_examples=100)
@given(
    data=mutated(BLOB)
    | st.sampled_from(list(PLANES.values())).flatmap(lambda case: mutated(case[0]))
    | st.binary(max_size=50),
    size=st.integers(-1, MAX_CHUNK_SIZE + 1) | st.integers(0, 600),
)
def test_blobs_of_any_size_are_read_or_refused(data, size):
    base = bytes(max(0, size))
    for codec in Codec:
        chunk = outcome(lambda blob: Decoder().decode(blob, size, base), bytes((codec,)) + data[1:])
        assert chunk is None or len(chunk) == size


odd_text = st.text(st.characters(), max_size=40)  # with lone surrogates, as file names of odd bytes have them


@settings(deadline=None, max_examples=200)
@given(text=odd_text, at=st.integers(0, 60), length=st.integers(0, 20))
def test_keys_of_any_text_are_read_or_are_none(text, at, length):
    keys = (parse_commit_key, str(COMMIT.key)), (parse_mark_key, mark_key(7, closed=True)), (parse_move_key, MOVE_KEY)
    for parse, valid in keys:
        for key in (text, valid[:at] + text + valid[at + length :], f"commits/{text}" + valid[-50:]):
            assert parse(key) is None or key.isascii()


# --- bounded memory -----------------------------------------------------------------------------

SMALL = 2 * 2**20
"""What a parser may take beyond what its limits say."""


def peak(parse, data):
    """Return the most bytes that were allocated at any time while `data` was read or refused."""
    outcome(parse, data)  # whatever is made once
    tracemalloc.start()
    try:
        outcome(parse, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def huge_frame(size, payload=b""):
    """Return the beginning of a zstd frame of one segment which declares `size` bytes."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little") + payload


HOSTILE_VALUES = {
    "an array of 2**32 - 1 items": b"\xdd\xff\xff\xff\xff",
    "a map of 2**32 - 1 items": b"\xdf\xff\xff\xff\xff",
    "bytes of 2**32 - 1": b"\xc6\xff\xff\xff\xff",
    "text of 2**32 - 1": b"\xdb\xff\xff\xff\xff",
    "an extension of 2**32 - 1": b"\xc9\xff\xff\xff\xff\x05",
    "nested arrays": b"\x91" * 100_000,
    "nested maps": b"\x81\x00" * 100_000,
    "nested keys": b"\x81" * 100_000,
    "nested arrays of 4096 items, few": b"\xdc\x10\x00" * 250,
    "nested arrays of 4096 items": b"\xdc\x10\x00" * 1000,
    "nested arrays of 4096 items, many": b"\xdc\x10\x00" * 100_000,
    "nested arrays of 4096 items in bytes": (b"\x92\xc5\x04\x00" + bytes(1024)) + b"\xdc\x10\x00" * 1000,
    "arrays of maps": b"\x98" + (b"\xdc\x10\x00" + b"\x80" * 4096) * 8,
    "arrays of texts": b"\x98" + (b"\xdc\x10\x00" + b"\xa2ab" * 4096) * 8,
    "bytes left over": b"\x80" + bytes(100_000),
}


@pytest.mark.parametrize("value", HOSTILE_VALUES.values(), ids=HOSTILE_VALUES)
def test_a_hostile_value_takes_little_memory(value):
    assert peak(decode_entry, value) < SMALL
    for kind, (parse, _) in RECORDS.items():
        assert peak(parse, sealed_record(kind, b"\x81\xa1x" + value)) < SMALL + len(value)


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("size", [MAX_RECORD_SIZE, MAX_RECORD_SIZE + 1, 2**32 - 1])
def test_a_record_that_declares_a_huge_body_takes_no_more_than_its_limit(kind, size):
    parse, _ = RECORDS[kind]
    limit = MAX_RECORD_SIZE if kind in {Kind.MANIFEST, Kind.MARK, Kind.MOVE} else 0
    for declared in (size, 2**40, 2**64 - 2):
        data = sealed_record(kind, b"", size=size, codec=Codec.ZSTD, payload=huge_frame(declared, b"\x03\x00\x00"))
        assert peak(parse, data) < SMALL + limit


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("filling", [b"\0", b"\x80", b"\x90", b"\x91", b"\xdc\x10\x00", b"\x82", b"\xa2ab"], ids=repr)
def test_a_small_record_of_a_large_body_takes_no_more_than_its_limit(kind, filling):
    limit = {Kind.HEADER: MAX_HEADER_SIZE, Kind.POINTER: MAX_HEADER_SIZE, Kind.COMMIT: 2**21}.get(kind, MAX_RECORD_SIZE)
    part = b"\xdc\x10\x00" + filling * 4096
    body = (b"\x81\xa1x\xdc\x10\x00" + part * (limit // len(part)))[:limit]
    payload = zstandard.compress(body)
    data = sealed_record(kind, body, codec=Codec.ZSTD, payload=payload)
    assert len(data) < 10_000
    assert peak(RECORDS[kind][0], data) < SMALL + limit


@pytest.mark.parametrize("declared", [MAX_CHUNK_SIZE, MAX_CHUNK_SIZE + 1, 2**32 - 1, 2**62])
def test_a_blob_that_declares_a_huge_chunk_takes_no_more_than_a_chunk_may(declared):
    blob = bytes((Codec.ZSTD,)) + huge_frame(declared, b"\x03\x00\x00")
    assert peak(lambda data: Decoder().decode(data, 500), blob) < SMALL
    assert peak(lambda data: Decoder().decode(data, declared), blob) < SMALL + MAX_CHUNK_SIZE


@pytest.mark.parametrize("codec", [Codec.PLANES, Codec.DELTA])
@pytest.mark.parametrize("coding", range(5))
@pytest.mark.parametrize("declared", [MAX_CHUNK_SIZE, MAX_CHUNK_SIZE + 1, 2**32 - 1])
def test_planes_that_declare_a_huge_chunk_take_no_more_than_a_chunk_may(codec, coding, declared):
    frame = huge_frame(declared, b"\x03\x00\x00")
    packed = huge_frame(declared // 4, b"\x03\x00\x00")
    values = struct.pack("<IBI", declared, 1, len(packed)) + packed + b"\1" + frame
    base = bytes(min(declared, MAX_CHUNK_SIZE))
    for part in (frame, values, b"\7" + values):
        blob = bytes((codec, 0, coding)) + struct.pack("<I", len(part)) + part
        assert peak(lambda data: Decoder().decode(data, 500, base[:500]), blob) < SMALL
        assert peak(lambda data: Decoder().decode(data, declared, base), blob) < SMALL + 2 * MAX_CHUNK_SIZE


@pytest.mark.parametrize("count", [1, 2**16, 2**32 - 1])
def test_lists_that_declare_many_items_take_little_memory(count):
    footer = make_head(Kind.PACK) + PACK + struct.pack("<IIQ", count, 0, 2**40)
    assert peak(parse_footer, resealed(footer)) < SMALL
    directory = make_head(Kind.INDEX) + NAME + struct.pack("<QII", 0, count, 0)
    assert peak(lambda data: parse_index(data, name=NAME), resealed(directory)) < SMALL
    assert peak(lambda data: parse_directory(data, name=NAME, object_size=2**40), resealed(directory)) < SMALL
    assert peak(lambda data: read_tail(data, pack_size=2**32), struct.pack("<I4s", count, b"CASP")) < SMALL


def test_a_footer_takes_memory_in_proportion_to_its_size():
    count = 20_000
    table = np.array([[2] * count, [1] * count, [0] * count], "<u4").tobytes()
    frame = struct.pack("<IIQ", count, 0, 2 * count)
    footer = resealed(make_head(Kind.PACK) + PACK + frame + bytes(32 * count) + table)
    assert len(footer) == footer_size(count)
    assert peak(parse_footer, footer) < 4 * len(footer)


@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 2**32 - 1])
def test_an_entry_that_declares_a_huge_size_takes_little_memory(size):
    assert peak(lambda data: list(EntryReader().feed(data)), size.to_bytes(4, "little") + bytes(1000)) < SMALL
