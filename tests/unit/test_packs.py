"""Packs and their footers."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.codecs import MAX_CHUNK_SIZE, Codec, Decoder, Encoder, blob_check
from cas_checkpoint.errors import DamagedObject, ForeignObject, UnsupportedStore
from cas_checkpoint.ids import PackId, chunk_id, digest
from cas_checkpoint.packs import (
    MAX_PACK_SIZE,
    PACK_TAIL_SIZE,
    PREFIX_SIZE,
    PackBuilder,
    check_pack,
    damaged_blobs,
    footer_size,
    parse_footer,
    read_tail,
)
from cas_checkpoint.records import Kind, make_head

PACK = PackId(b"pack of sixteen!")
NOISE = random.Random(5).randbytes(300)
CHUNKS = [b"a", bytes(1000), NOISE, b"text " * 100]


def build(chunks, *, pack=PACK, arena=None, lent=False):
    """Return the footer and the bytes of a pack."""
    builder = PackBuilder(pack, arena)
    for chunk in chunks:
        codec, payload = Encoder().encode(chunk)
        builder.add(chunk_id(chunk), codec, payload, len(chunk), blob_check(codec, payload), lent=lent)
    footer, parts = builder.finish()
    return footer, b"".join(parts)


def footer_of(rows, *, blobs_size=None, count=None, pack=PACK, deltas=(), delta_count=None):
    """Return a footer with a correct checksum that lists `rows`: (stored size, plain size), true or not.

    `deltas` are numbers of rows; their bases are of zeros.
    """
    delta_count = len(deltas) if delta_count is None else delta_count
    stored = [size for size, _ in rows]
    plain = [size for _, size in rows]
    frame = struct.pack(
        "<IIQ", len(rows) if count is None else count, delta_count, sum(stored) if blobs_size is None else blobs_size
    )
    table = b"".join(np.array(column, "<u4").tobytes() for column in (stored, plain, [0] * len(rows)))
    bases = np.array(deltas, "<u4").tobytes() + bytes(32 * len(deltas))
    content = make_head(Kind.PACK) + pack + frame + bytes(32 * len(rows)) + table + bases
    return content + digest((content,))


# --- round trips --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=500) | st.integers(1, 5000).map(bytes), max_size=20))
def test_every_chunk_comes_back_from_a_pack(chunks):
    footer, data = build(chunks)
    parsed = parse_footer(data[-PACK_TAIL_SIZE - len(footer.encoded) : -PACK_TAIL_SIZE], pack=PACK)
    assert parsed.pack == PACK
    assert parsed.ids.shape == (len(chunks), 32)
    assert parsed.pack_size == len(data)
    check_pack(parsed, data)
    for number, chunk in enumerate(chunks):
        blob = data[parsed.offsets[number] : parsed.offsets[number] + parsed.stored_sizes[number]]
        assert bytes(Decoder().decode(blob, int(parsed.plain_sizes[number]))) == chunk
        assert bytes(parsed.ids[number]) == chunk_id(chunk)
        assert parsed.checks[number] == blob_check(blob[0], blob[1:])


def test_a_pack_is_laid_out_as_specified():
    footer, data = build([b"a", bytes(1000)])
    assert data[:32] == make_head(Kind.PACK) + PACK
    assert data[32:34] == b"\0a"
    assert data[34] == Codec.ZSTD
    blobs_size = 2 + int(footer.stored_sizes[1])
    encoded = data[32 + blobs_size : -8]
    assert data[-8:] == len(encoded).to_bytes(4, "little") + b"CASP"
    assert len(encoded) == footer_size(2) == 80 + 44 * 2
    assert encoded[:32] == data[:32]
    assert struct.unpack("<IIQ", encoded[32:48]) == (2, 0, blobs_size)
    assert encoded[48:112] == chunk_id(b"a") + chunk_id(bytes(1000))
    assert struct.unpack("<6I", encoded[112:136]) == (2, blobs_size - 2, 1, 1000, 0, footer.checks[1])
    assert encoded[136:] == digest((encoded[:136],))
    assert encoded == footer.encoded


def test_an_empty_pack_has_no_chunks():
    footer, data = build([])
    assert len(data) == footer.pack_size == PREFIX_SIZE + footer_size(0) + PACK_TAIL_SIZE
    check_pack(footer, data)
    assert footer.ids.shape == (0, 32)


def test_a_builder_counts_what_it_holds():
    builder = PackBuilder(PACK)
    assert (len(builder), builder.size) == (0, PREFIX_SIZE)
    builder.add(chunk_id(b"abc"), Codec.RAW, b"abc", 3, 0)
    assert (len(builder), builder.size) == (1, PREFIX_SIZE + 4)


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("size", [0, 1, 40, 500, 5000])
def test_a_pack_is_built_in_any_arena_and_ignores_what_was_in_it(size, lent):
    arena = memoryview(bytearray(b"old" * size))
    _, data = build(CHUNKS, arena=arena, lent=lent)
    assert data == build(CHUNKS)[1]


def test_what_is_not_lent_is_copied():
    payloads = [bytearray(b"lent"), bytearray(b"copied into the arena"), bytearray(b"copied elsewhere" * 10)]
    builder = PackBuilder(PACK, memoryview(bytearray(PREFIX_SIZE + 50)))
    for number, payload in enumerate(payloads):
        builder.add(chunk_id(payload), Codec.RAW, payload, len(payload), 0, lent=number == 0)
    for payload in payloads:
        payload[:] = bytes(len(payload))
    _, parts = builder.finish()
    data = b"".join(parts)
    assert (b"lent" in data, b"copied into the arena" in data, b"copied elsewhere" * 10 in data) == (False, True, True)


def test_an_arena_is_used_again():
    arena = memoryview(bytearray(2000))
    first = build(CHUNKS, arena=arena)[1]
    second = build([b"b"], pack=PackId(bytes(16)), arena=arena)[1]
    assert first == build(CHUNKS)[1]
    assert second == build([b"b"], pack=PackId(bytes(16)))[1]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_a_footer_is_read_from_any_buffer(make):
    footer = parse_footer(make(build(CHUNKS)[0].encoded))
    assert isinstance(footer.encoded, bytes)
    assert footer.plain_sizes.tolist() == [len(chunk) for chunk in CHUNKS]


def test_chunks_of_the_largest_size_are_listed():
    footer = parse_footer(footer_of([(MAX_CHUNK_SIZE + 1, MAX_CHUNK_SIZE), (1, MAX_CHUNK_SIZE)]))
    assert footer.offsets.tolist() == [32, 33 + MAX_CHUNK_SIZE]


def test_deltas_are_listed_with_their_bases_as_specified():
    builder = PackBuilder(PACK)
    bases = [chunk_id(b"base"), chunk_id(b"another")]
    for number, chunk in enumerate([b"whole", b"delta", b"whole too", b"second delta"]):
        builder.add(chunk_id(chunk), number, chunk, 90, number, base=bases[number // 2] if number % 2 else None)
    footer, parts = builder.finish()
    data = b"".join(parts)
    assert len(footer.encoded) == footer_size(4, 2) == 80 + 44 * 4 + 36 * 2
    assert struct.unpack("<II", footer.encoded[32:40]) == (4, 2)
    end = 48 + 44 * 4
    assert struct.unpack("<II", footer.encoded[end : end + 8]) == (1, 3)
    assert footer.encoded[end + 8 : -32] == b"".join(bases)
    assert footer.delta_rows.tolist() == [1, 3]
    assert footer.delta_rows.dtype == np.uint32
    assert footer.base_ids() == {1: bases[0], 3: bases[1]}
    assert footer.pack_size == len(data)
    assert read_tail(data[-PACK_TAIL_SIZE:], pack_size=len(data)) == len(footer.encoded)


def test_a_pack_without_deltas_has_no_bases():
    footer, _ = build(CHUNKS)
    assert (footer.delta_rows.shape, footer.bases.shape, footer.base_ids()) == ((0,), (0, 32), {})


# --- refusals -----------------------------------------------------------------------------------

FULL = [(MAX_CHUNK_SIZE + 1, MAX_CHUNK_SIZE)] * 255


def filled_to(pack_size):
    """Return the rows of a pack of exactly that size."""
    left = pack_size - PREFIX_SIZE - footer_size(256) - PACK_TAIL_SIZE - 255 * (MAX_CHUNK_SIZE + 1)
    return [*FULL, (left, MAX_CHUNK_SIZE)]


def test_a_pack_just_below_4_gib_is_possible():
    footer = parse_footer(footer_of(filled_to(MAX_PACK_SIZE)))
    assert footer.pack_size == MAX_PACK_SIZE == 2**32 - 1
    assert int(footer.offsets[-1]) + int(footer.stored_sizes[-1]) < 2**32


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (make_head(Kind.PACK) + PACK, "a pack's footer of only 32 bytes"),
        (footer_of([])[:-1], "a pack's footer of only 79 bytes"),
        (footer_of([(2, 1)])[:-1], "does not fit its checksum"),
        (footer_of([(2, 1)], count=2), "cannot list 2 chunks"),
        (footer_of([(2, 1)], count=0), "cannot list 0 chunks"),
        (footer_of([(2, 1)], count=2**32 - 1), "cannot list 4294967295 chunks"),
        (footer_of([(2, 1)], blobs_size=3), "do not add up"),
        (footer_of([(2, 1)], blobs_size=0), "do not add up"),
        (footer_of([], blobs_size=1), "do not add up"),
        (footer_of([], blobs_size=2**64 - 1), "do not add up"),
        (footer_of([(2**32 - 1, 1)] * 2, blobs_size=2**32 - 2), "do not add up"),
        (footer_of([(3, 1)]), "a chunk of an impossible size"),
        (footer_of([(2, 1), (2, 0)]), "a chunk of an impossible size"),
        (footer_of([(2, MAX_CHUNK_SIZE + 1)]), "a chunk of an impossible size"),
        (footer_of([(2, 2**32 - 1)]), "a chunk of an impossible size"),
        (footer_of([(2**31, 1)]), "a chunk of an impossible size"),
        (footer_of(filled_to(MAX_PACK_SIZE + 1)), "larger than a pack can be"),
        (footer_of([*FULL, *FULL]), "larger than a pack can be"),
        (footer_of(filled_to(MAX_PACK_SIZE), deltas=[0]), "larger than a pack can be"),
        (footer_of([(2, 1)], delta_count=1), "cannot list 1 chunks, 1 of them deltas"),
        (footer_of([(2, 1)], deltas=[0], delta_count=0), "cannot list 1 chunks"),
        (footer_of([(2, 1)], delta_count=2**32 - 1), "cannot list 1 chunks, 4294967295 of them deltas"),
        (footer_of([(2, 1)], deltas=[1]), "deltas of chunks that it does not list, or twice"),
        (footer_of([(2, 1)], deltas=[0, 0]), "deltas of chunks that it does not list, or twice"),
        (footer_of([(2, 1)] * 3, deltas=[0, 2, 1]), "deltas of chunks that it does not list, or twice"),
        (footer_of([(2, 1)] * 3, deltas=[2, 0]), "deltas of chunks that it does not list, or twice"),
        (footer_of([], deltas=[0]), "deltas of chunks that it does not list, or twice"),
        (footer_of([(2, 1)], deltas=[2**32 - 1]), "deltas of chunks that it does not list, or twice"),
    ],
)
def test_an_impossible_footer_is_refused(encoded, reason):
    with pytest.raises(DamagedObject, match=reason):
        parse_footer(encoded)


def test_the_footer_of_another_pack_is_refused():
    encoded = footer_of([(2, 1)])
    with pytest.raises(DamagedObject, match=f"holds the footer of pack {PACK.hex()}"):
        parse_footer(encoded, pack=PackId(bytes(16)))


def test_a_footer_must_have_the_head_of_a_pack():
    encoded = footer_of([])
    with pytest.raises(ForeignObject):
        parse_footer(b"x" + encoded[1:])
    with pytest.raises(DamagedObject, match="of kind b'I'"):
        parse_footer(make_head(Kind.INDEX) + encoded[16:])
    with pytest.raises(UnsupportedStore, match="format version 9"):
        parse_footer(encoded[:9] + b"\x09" + encoded[10:])


def test_any_flipped_bit_of_a_footer_is_noticed():
    encoded = build(CHUNKS)[0].encoded
    for bit in range(0, 8 * len(encoded), 3):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedObject, UnsupportedStore)):
            parse_footer(damaged)


def test_the_tail_tells_the_size_of_the_footer():
    for chunks in ([], CHUNKS):
        footer, data = build(chunks)
        assert read_tail(data[-PACK_TAIL_SIZE:], pack_size=len(data)) == len(footer.encoded)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"", "does not end like a pack"),
        (b"CASP", "does not end like a pack"),
        (struct.pack("<I4s", 80, b"CASP") + b"\0", "does not end like a pack"),
        (struct.pack("<I4s", 80, b"PACK"), "does not end like a pack"),
        (struct.pack("<I4s", 79, b"CASP"), "its footer cannot have 79 bytes"),
        (struct.pack("<I4s", 81, b"CASP"), "its footer cannot have 81 bytes"),
        (struct.pack("<I4s", 2**32 - 1, b"CASP"), "its footer cannot have 4294967295 bytes"),
    ],
)
def test_an_impossible_tail_is_refused(tail, reason):
    with pytest.raises(DamagedObject, match=reason):
        read_tail(tail, pack_size=PREFIX_SIZE + 80 + PACK_TAIL_SIZE)


# --- whole packs --------------------------------------------------------------------------------


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_damaged_pack_is_refused_and_the_reason_says_where():
    footer, data = build(CHUNKS)
    zeros = int(footer.offsets[1])
    end = len(data) - PACK_TAIL_SIZE - len(footer.encoded)
    for damaged, reason in [
        (data[:-1], f"has {len(data) - 1} bytes instead of {len(data)}"),
        (data + b"\0", f"has {len(data) + 1} bytes instead of {len(data)}"),
        (b"", "has 0 bytes instead of"),
        (flipped(data, 0), "begins with other bytes"),
        (flipped(data, PREFIX_SIZE - 1), "begins with other bytes"),
        (flipped(data, end), "its footer was altered"),
        (flipped(data, len(data) - PACK_TAIL_SIZE - 1), "its footer was altered"),
        (flipped(data, zeros), f"chunk {chunk_id(bytes(1000)).hex()} does not fit its check"),
        (flipped(data, zeros + 5), f"chunk {chunk_id(bytes(1000)).hex()} does not fit its check"),
    ]:
        with pytest.raises(DamagedObject, match=reason):
            check_pack(footer, damaged)


def test_all_damaged_blobs_are_told():
    footer, data = build([bytes(1000), b"raw", bytes(2000), bytes(3000)])
    for number in (0, 2):
        data = flipped(data, int(footer.offsets[number]) + 3)
    assert damaged_blobs(footer, memoryview(data)) == [0, 2]


def test_damage_of_a_raw_blob_is_left_to_the_chunk_id():
    footer, data = build([b"raw"])
    assert damaged_blobs(footer, memoryview(flipped(data, PREFIX_SIZE + 2))) == []
