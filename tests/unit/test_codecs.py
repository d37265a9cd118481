"""Chunks and blobs."""

from __future__ import annotations

import importlib.util
import random
import struct
import sys
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import codecs, kernels, planes
from cas_checkpoint.codecs import BLOB_OVERHEAD, DEFAULT_LEVEL, MAX_CHUNK_SIZE, Codec, Decoder, Encoder, blob_check
from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.errors import DamagedObject, UnsupportedStore

NOISE = random.Random(3).randbytes(5000)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"


def frame(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2000) | st.builds(bytes.__mul__, st.binary(min_size=1, max_size=5), st.integers(1, 3000)))
def test_a_chunk_comes_back_from_its_blob(chunk):
    blob = Encoder().blob(chunk)
    assert bytes(Decoder().decode(blob, len(chunk))) == chunk
    assert len(blob) <= len(chunk) + BLOB_OVERHEAD


@pytest.mark.parametrize("level", [-100, -1, DEFAULT_LEVEL, 3, 19, 22])
def test_every_level_decodes_alike(level):
    chunk = b"text that repeats " * 500
    blob = Encoder(level=level).blob(chunk)
    assert blob[0] == Codec.ZSTD
    assert Decoder().decode(blob, len(chunk)) == chunk


def test_what_compresses_is_compressed():
    codec, payload = Encoder().encode(bytes(10_000))
    assert codec is Codec.ZSTD
    assert len(payload) < 100


def test_what_does_not_compress_is_stored_as_it_is_and_not_copied():
    codec, payload = Encoder().encode(NOISE)
    assert codec is Codec.RAW
    assert payload is NOISE


def test_too_small_a_gain_is_not_worth_a_decoder():
    chunk = random.Random(4).randbytes(128 * 2**10) + bytes(300)  # zstd gains less than 1/256
    assert len(frame(chunk, level=DEFAULT_LEVEL)) < len(chunk)
    assert Encoder().encode(chunk)[0] is Codec.RAW


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("chunk", [b"", b"x", NOISE, bytes(5000)], ids=["empty", "byte", "noise", "zeros"])
def test_any_buffer_is_encoded_and_decoded_alike(make, chunk):
    blob = Encoder().blob(make(chunk))
    assert blob == Encoder().blob(chunk)
    assert bytes(Decoder().decode(make(blob), len(chunk))) == chunk


def test_a_raw_chunk_is_a_view_of_its_blob():
    blob = bytes((Codec.RAW,)) + NOISE
    chunk = Decoder().decode(blob, len(NOISE))
    assert isinstance(chunk, memoryview)
    assert chunk.obj is blob


def test_the_largest_chunk_is_encoded_and_decoded():
    chunk = bytes(MAX_CHUNK_SIZE)
    assert Decoder().decode(Encoder().blob(chunk), MAX_CHUNK_SIZE) == chunk


@pytest.mark.parametrize("size", [-1, MAX_CHUNK_SIZE + 1, 2**63])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(DamagedObject, match=f"a chunk cannot have {size} bytes"):
        Decoder().decode(b"\0abc", size)


def test_an_empty_blob_is_refused():
    with pytest.raises(DamagedObject, match="an empty blob"):
        Decoder().decode(b"", 0)


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_raw_blob_of_another_size_is_refused(size):
    with pytest.raises(DamagedObject, match=f"a raw blob of 3 bytes stands for a chunk of {size}"):
        Decoder().decode(b"\0abc", size)


@pytest.mark.parametrize("codec", [4, 127, 255])
def test_an_unknown_codec_is_refused_as_too_new(codec):
    with pytest.raises(UnsupportedStore, match=f"codec {codec}"):
        Decoder().decode(bytes((codec,)) + b"abc", 3)


ZEROS = bytes(300)
TWO_FRAMES = frame(ZEROS) + frame(ZEROS)


@pytest.mark.parametrize(
    ("payload", "size", "reason"),
    [
        (frame(ZEROS), 299, "a zstd frame of 300 bytes stands for a chunk of 299"),
        (frame(ZEROS), MAX_CHUNK_SIZE, "a zstd frame of 300 bytes stands"),
        (frame(ZEROS, write_content_size=False), 300, "stands for a chunk of 300"),
        (frame(b""), 0, "a zstd frame of 0 bytes"),
        (frame(b"") + b"more", 0, "a zstd frame of 0 bytes"),
        (SKIPPABLE, 4, "cannot be decoded"),
        (SKIPPABLE + frame(ZEROS), 300, "stands for a chunk of 300"),
        (frame(ZEROS) + b"more", 300, "cannot be decoded"),
        (frame(ZEROS) + SKIPPABLE, 300, "cannot be decoded"),
        (TWO_FRAMES, 300, "cannot be decoded"),
        (TWO_FRAMES, 600, "stands for a chunk of 600"),
        (frame(NOISE)[:-1], len(NOISE), "cannot be decoded"),
        (frame(NOISE)[:3], len(NOISE), "cannot be decoded"),
        (b"", 3, "cannot be decoded"),
        (b"no frame at all", 3, "cannot be decoded"),
    ],
)
def test_a_frame_that_no_writer_makes_is_refused(payload, size, reason):
    with pytest.raises(DamagedObject, match=reason):
        Decoder().decode(bytes((Codec.ZSTD,)) + payload, size)


def test_a_frame_that_needs_a_dictionary_is_refused():
    dictionary = zstandard.train_dictionary(1024, [b"sample %d of some text" % number for number in range(2000)])
    assert dictionary.dict_id()
    payload = zstandard.ZstdCompressor(dict_data=dictionary).compress(ZEROS)
    with pytest.raises(DamagedObject, match="zstd frame"):
        Decoder().decode(bytes((Codec.ZSTD,)) + payload, 300)


@pytest.mark.parametrize(("declared", "given"), [(301, 300), (299, 300)])
def test_a_frame_that_lies_about_its_size_is_refused(declared, given):
    honest = frame(bytes(given))
    at = honest.index((given - 256).to_bytes(2, "little"))
    lying = honest[:at] + (declared - 256).to_bytes(2, "little") + honest[at + 2 :]
    with pytest.raises(DamagedObject, match="cannot be decoded"):
        Decoder().decode(bytes((Codec.ZSTD,)) + lying, declared)


def test_a_decoder_goes_on_after_a_damaged_blob():
    decoder = Decoder()
    with pytest.raises(DamagedObject):
        decoder.decode(b"\1" + frame(NOISE)[:-9], len(NOISE))
    assert decoder.decode(b"\1" + frame(ZEROS), 300) == ZEROS


def test_a_raw_blob_needs_no_check():
    assert blob_check(Codec.RAW, NOISE) == 0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 255), st.binary(max_size=50))
def test_the_check_of_another_blob_is_the_crc_of_all_its_bytes(codec, payload):
    assert blob_check(codec, payload) == zlib.crc32(bytes((codec,)) + payload)


def test_random_data_is_not_compressed_in_full(monkeypatch):
    tried = []
    encoder = Encoder()
    compress = encoder._zstd.compress
    monkeypatch.setattr(
        encoder, "_zstd", SimpleNamespace(compress=lambda data: tried.append(len(data)) or compress(data))
    )
    noise = random.Random(1).randbytes(2**17)
    codec, payload = encoder.encode(noise)
    assert (codec, payload) == (Codec.RAW, noise)
    assert sum(tried) == 3 * 2**12


@pytest.mark.parametrize("at", [0, 2**16 - 2000, 2**17 - 4000])
def test_a_chunk_with_a_sample_that_can_be_compressed_is(at):
    data = bytearray(random.Random(1).randbytes(2**17))
    data[at : at + 4000] = bytes(4000)
    codec, payload = Encoder().encode(data)
    assert codec == Codec.ZSTD
    assert len(payload) < len(data) - 3000


# --- planes and deltas ---

ALL_ELEMENTS = sorted(set(ELEMENTS.values()) | {Elements(8, is_float=True)})
SIZES = [*range(17), 31, 100, 257, 4096, 5003]
RAW, ZSTD, NOTHING, PACKED, COUNTED = range(5)

all_elements = pytest.mark.parametrize("elements", ALL_ELEMENTS, ids=str)
efforts = pytest.mark.parametrize("thorough", [False, True], ids=["quick", "thorough"])


def normal(count, dtype, seed=0, scale=0.05):
    """Weights as they come from a training."""
    values = np.random.default_rng(seed).normal(0, scale, count)
    return (values if dtype != "bfloat16" else bfloat16(values)).astype("<u2" if dtype == "bfloat16" else dtype)


def bfloat16(values):
    return values.astype("<f4").view("<u4") >> 16


def sparse(size, seed=0):
    chooser = random.Random(seed)
    return bytes(chooser.randrange(256) if chooser.random() < 0.05 else 0 for _ in range(size))


def fillings(size):
    """Data of each sort."""
    yield from (bytes(size), b"\xff" * size, random.Random(size).randbytes(size), sparse(size), b"\x01\x80" * size)
    yield normal(size // 4 + 1, "<f4").tobytes()
    yield (np.arange(size // 8 + 1) * 1000).astype("<i8").tobytes()


def payload_of(chunk, base, elements, *, thorough=False, limit=2**40, start=0):
    return Encoder().encode_delta(chunk, base, elements, start=start, thorough=thorough, limit=limit)


def parts_of(payload):
    """Return the shape of a payload of planes, coding and bytes of each, and what is left over."""
    shape, at, parts = payload[0], 1, []
    for _ in range(1 << (shape & 3)):
        coding, size = struct.unpack_from("<BI", payload, at)
        parts.append((coding, payload[at + 5 : at + 5 + size]))
        at += 5 + size
    return shape, parts, payload[at:]


def codings_of(payload):
    return [coding for coding, _ in parts_of(payload)[1]]


@all_elements
@pytest.mark.parametrize("size", SIZES)
def test_a_chunk_of_known_elements_comes_back_and_is_never_larger(elements, size):
    encoder, decoder = Encoder(), Decoder()
    for data in fillings(size):
        chunk = data[:size]
        codec, payload = encoder.encode(chunk, elements)
        assert codec in {Codec.RAW, Codec.PLANES} or size < elements.width
        assert len(payload) <= size
        assert bytes(decoder.decode(bytes((codec,)) + payload, size)) == chunk
        assert (codec, payload) == Encoder().encode(bytearray(chunk), elements)  # always the same


@all_elements
@efforts
@pytest.mark.parametrize("size", SIZES)
def test_a_delta_comes_back(elements, thorough, size):
    encoder, decoder = Encoder(), Decoder()
    for number, data in enumerate(fillings(size)):
        base = data[:size]
        for changed in (base, sparse(size, number), bytes(byte ^ (byte % 7 == 0) for byte in base), base[::-1]):
            payload = encoder.encode_delta(changed, base, elements, thorough=thorough, limit=2**40)
            assert payload == payload_of(changed, bytearray(base), elements, thorough=thorough)
            assert bytes(decoder.decode(b"\3" + payload, size, base)) == changed


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_chunk_comes_back_from_planes_and_deltas(data):
    size = data.draw(st.integers(0, 300))
    pieces = st.binary(max_size=40) | st.builds(bytes, st.integers(0, 60)) | st.sampled_from([b"\x01\0" * 50])
    chunk, base = ((b"".join(data.draw(st.lists(pieces, max_size=12))) + bytes(size))[:size] for _ in range(2))
    elements, thorough = data.draw(st.sampled_from(ALL_ELEMENTS)), data.draw(st.booleans())
    codec, payload = Encoder().encode(chunk, data.draw(st.sampled_from([elements, None])))
    assert len(payload) <= size
    assert bytes(Decoder().decode(bytes((codec,)) + payload, size)) == chunk
    delta = payload_of(chunk, base, elements, thorough=thorough)
    assert bytes(Decoder().decode(b"\3" + delta, size, base)) == chunk


@all_elements
@efforts
def test_large_chunks_come_back(elements, thorough):
    base = random.Random(1).randbytes(300_001)
    lower = np.frombuffer(base, "<u1").copy()
    lower[:: elements.width] ^= 3
    chunk = lower.tobytes()
    assert bytes(Decoder().decode(Encoder().blob(chunk), len(chunk))) == chunk
    payload = payload_of(chunk, base, elements, thorough=thorough, limit=len(chunk))
    assert len(payload) < len(chunk) / (1 if elements.width == 1 else 1.2)
    assert bytes(Decoder().decode(b"\3" + payload, len(chunk), base)) == chunk


def test_planes_gain_what_matches_do_not():
    chunk = normal(50_000, "<f4").tobytes()
    codec, payload = Encoder().encode(chunk, ELEMENTS["float32"])
    assert codec is Codec.PLANES
    assert len(payload) < 0.88 * len(chunk)
    assert len(payload) < 0.96 * len(frame(chunk, level=DEFAULT_LEVEL))


@pytest.mark.parametrize("dtype", ["bfloat16", "<f4", "<f8", "<u4"])
def test_planes_of_unknown_elements_are_found(dtype):
    chunk = (
        normal(50_000, dtype) if dtype != "<u4" else np.random.default_rng(1).integers(0, 60_000, 50_000, dtype)
    ).tobytes()
    codec, payload = Encoder().encode(chunk)
    assert codec is Codec.PLANES
    assert not payload[0] & ~3  # not known to be floats
    assert len(payload) < 0.95 * len(Encoder(planes=False).encode(chunk)[1])
    assert bytes(Decoder().decode(b"\2" + payload, len(chunk))) == chunk


def test_planes_are_guessed_only_if_that_is_allowed():
    chunk = normal(50_000, "bfloat16").tobytes()
    assert Encoder().encode(chunk)[0] is Codec.PLANES
    codec, payload = Encoder(planes=False).encode(chunk)
    assert codec is Codec.ZSTD
    assert bytes(Decoder().decode(b"\1" + payload, len(chunk))) == chunk


@pytest.mark.parametrize("chunk", [b"a text of many lines\n" * 9000, random.Random(1).randbytes(2**16) + bytes(2**17)])
def test_what_matches_shorten_is_left_to_them(chunk):
    assert Encoder().encode(chunk)[0] is Codec.ZSTD


def test_letters_at_random_are_no_elements():
    chunk = bytes(random.Random(1).choices(b"abcdefghijklmnopqrstuvwxyz", k=200_000))
    codec, payload = Encoder().encode(chunk)
    assert codec is Codec.ZSTD
    assert len(payload) < 0.65 * len(chunk)


def one_plane(plane, coding_of_values):
    """Encode bytes as the only plane of a chunk of known elements."""
    codec, payload = Encoder().encode(plane, Elements(1, is_float=False))
    assert codec is Codec.PLANES
    ((coding, data),) = parts_of(payload)[1]
    assert coding == coding_of_values
    assert bytes(Decoder().decode(b"\2" + payload, len(plane))) == plane
    return data


def mixed(zeros, small, size=20_000):
    """Bytes of which so many are zero and so many of the others small."""
    chooser = random.Random(size)
    return bytes(
        0 if chooser.random() < zeros else (chooser.randrange(1, 3) if chooser.random() < small else 200)
        for _ in range(size)
    )


def test_each_coding_of_a_plane_is_chosen_where_it_suits():
    one_plane(bytes(5000), NOTHING)
    one_plane(bytes(4999) + b"!", ZSTD)
    for zeros, top_bits in ((0.97, 1), (0.93, 2), (0.65, 4)):
        data = one_plane(mixed(zeros, 0.99), PACKED)
        assert data[1] in {top_bits, 2 * top_bits}
        assert len(data) < 20_000 * top_bits / 8
    one_plane(bytes(random.Random(1).choices(range(60), k=5000)), ZSTD)
    for values in (b"abcd", range(200, 215), (0, 1, 2, 254, 255), range(15)):
        one_plane(bytes(random.Random(1).choices(values, k=5000)), COUNTED)
    incompressible = np.stack([np.frombuffer(random.Random(1).randbytes(5000), np.uint8), np.zeros(5000, np.uint8)], 1)
    payload = Encoder().encode(incompressible.tobytes(), Elements(2, is_float=False))[1]
    assert codings_of(payload) == [RAW, NOTHING]


def test_exponents_take_less_than_codes_of_whole_bits():
    values = normal(200_000, "bfloat16")
    exponents = (values << 1 >> 8).astype(np.uint8)
    counts = np.bincount(exponents)
    entropy = -sum(count * np.log2(count / len(values)) for count in counts.tolist() if count) / 8
    data = one_plane(exponents.tobytes(), COUNTED)
    assert data[0] in range(int(exponents.max()) - 2, int(exponents.max()) + 1)
    assert entropy < len(data) < 1.02 * entropy
    rare = exponents.copy()
    rare[::1000] = np.arange(200) + 50  # far from the others
    one_plane(rare.tobytes(), COUNTED)
    rare[::20] = np.random.default_rng(1).integers(0, 256, 10_000)
    one_plane(rare.tobytes(), ZSTD)


def test_a_packed_plane_that_is_no_smaller_is_stored_as_it_is():
    chooser = random.Random(1)
    plane = bytes(0 if chooser.random() < 0.6 else chooser.randrange(40, 256) for _ in range(30))
    wide = b"".join(bytes((value, 0)) for value in plane)
    assert codings_of(Encoder().encode(wide, Elements(2, is_float=False))[1]) == [RAW, NOTHING]


def groups_of(payload):
    """Return the last keys of the groups of a delta, and what follows them."""
    count = payload[1] + 1
    return list(payload[2 : 2 + count]), payload[2 + count :]


def test_parts_for_which_coding_does_nothing_are_stored_as_they_are():
    few = bytes((3, 1, 4, 1, 5, 9))
    payload = payload_of(few + b"!", bytes(7), Elements(2, is_float=False))
    lasts, packed = groups_of(payload)
    assert (payload[0], lasts, packed[:2], payload[-1:]) == (1, [255], b"\0\x08", b"!")
    assert packed[6] == RAW


@all_elements
def test_numpy_and_compiled_functions_make_the_same_bytes(elements, monkeypatch):
    chunks = [data[:5003] for data in fillings(5003)]
    chunks += [normal(70_000, "<f8", scale=scale).tobytes() for scale in (1e-3, 1)]

    def payloads():
        encoder = Encoder()
        for base in chunks:
            yield bytes(encoder.encode(base, elements)[1])
            for changed in (base, sparse(len(base)), bytes(byte ^ (byte % 7 == 0) for byte in base)):
                yield encoder.encode_delta(changed, base, elements, thorough=True, limit=2**40)

    found = list(payloads())
    for name in kernels.__all__:
        monkeypatch.setattr(codecs, name, getattr(planes, name))
    assert list(payloads()) == found


def test_low_bits_of_large_differences_are_left_alone():
    base = np.random.default_rng(1).integers(0, 2**32, 50_000, dtype=np.uint32)
    chunk = base + np.random.default_rng(2).integers(-(2**19), 2**19, len(base)).astype("<u4")
    payload = payload_of(chunk.tobytes(), base.tobytes(), Elements(4, is_float=False))
    assert len(payload) < 20.3 / 32 * base.nbytes
    assert groups_of(payload)[1][0] >= 13


@pytest.mark.parametrize("limit", [0, 1, 50])
def test_a_delta_that_is_no_smaller_than_wanted_is_none(limit):
    chunk, base = random.Random(1).randbytes(5000), random.Random(2).randbytes(5000)
    assert payload_of(chunk, base, Elements(4, is_float=True), limit=limit) is None
    size = len(payload_of(base, base, Elements(4, is_float=True)))
    assert payload_of(base, base, Elements(4, is_float=True), limit=size) is None
    assert len(payload_of(base, base, Elements(4, is_float=True), limit=size + 1)) == size


@all_elements
def test_a_delta_that_is_surely_smaller_is_the_same(elements):
    for base in fillings(4096):
        chunk = sparse(len(base))
        delta = Encoder().encode_delta(chunk, base, elements, thorough=False, limit=2**40, sure=True)
        assert delta == payload_of(chunk, base, elements)
    chunk, base = random.Random(1).randbytes(5000), random.Random(2).randbytes(5000)
    assert Encoder().encode_delta(chunk, base, elements, thorough=False, limit=50, sure=True) is None


@all_elements
@pytest.mark.parametrize("size", [0, 9, 257, 5003])
def test_thorough_is_never_larger(elements, size):
    for number, data in enumerate(fillings(size)):
        base = data[:size]
        for chunk in (base, sparse(size, number), bytes(byte ^ (byte % 7 == 0) for byte in base), base[::-1]):
            quick, thorough = (payload_of(chunk, base, elements, thorough=effort) for effort in (False, True))
            assert len(thorough) <= len(quick)


def test_noise_stands_as_it_is():
    base = np.zeros(5000, "<u4")
    found = np.random.default_rng(7).integers(0, 2**20, len(base), dtype=np.uint32)
    chunk = np.where(found % 2, -(found.astype(np.int64) + 1) // 2, found // 2).astype(
        "<u4"
    )  # of which these are zigzag
    payload = groups_of(payload_of(chunk.tobytes(), base.tobytes(), Elements(4, is_float=False)))[1]
    assert payload[0] >= 8
    assert payload[6 : 6 + len(base)] == found.astype(np.uint8).tobytes()


def test_a_delta_of_another_size_is_none():
    for size in (0, 9, 81):
        assert payload_of(bytes(10), bytes(size), Elements(1, is_float=False)) is None
    for start in (1, 2**40):
        assert payload_of(bytes(10), bytes(10), Elements(1, is_float=False), start=start) is None


@all_elements
@efforts
@pytest.mark.parametrize("size", [1, 9, 257, 5003])
def test_a_delta_of_a_window_comes_back(elements, thorough, size):
    for number, data in enumerate(fillings(8 * size)):
        base = data[: 2 * size + number]
        for start in (0, 1, size + number):
            window = base[start : start + size]
            for chunk in (window, sparse(size, number), window[::-1]):
                payload = payload_of(chunk, base, elements, thorough=thorough, start=start)
                assert bytes(Decoder().decode(b"\3" + payload, size, base)) == chunk
                plain = payload_of(chunk, window, elements, thorough=thorough)
                assert payload == bytes((plain[0] | 8,)) + struct.pack("<I", start) + plain[1:]
        assert payload_of(window, base, elements, start=size + number + 1) is None


def test_a_window_must_lie_in_a_base_that_is_larger():
    plain = payload_of(b"abcd", b"abcd", Elements(1, is_float=False))

    def decode(start, base):
        return bytes(Decoder().decode(b"\3\x08" + struct.pack("<I", start) + plain[1:], 4, base))

    assert decode(2, b"abcdef") == b"cdef"
    assert decode(28, bytes(28) + b"abcd") == b"abcd"
    for start, base in ((3, b"abcdef"), (2**32 - 1, b"abcdef"), (0, b"abcd"), (0, b"abc"), (0, bytes(33))):
        with pytest.raises(DamagedObject, match="not in its base"):
            decode(start, base)
    for end in range(4):
        with pytest.raises(DamagedObject, match="cut short"):
            Decoder().decode(b"\3\x08" + bytes(end), 4, b"abcdef")
    with pytest.raises(DamagedObject, match="without a base"):
        decode(0, None)
    with pytest.raises(DamagedObject, match="unknown shape"):
        Decoder().decode(b"\2\x08" + bytes(4) + plain[1:], 4)


def test_numbers_that_move_alike_have_no_noise():
    base = normal(50_000, "<f4").view("<u4")
    chunk = base + 500 + np.random.default_rng(1).integers(0, 6, len(base), dtype=np.uint32)
    payload = payload_of(chunk.tobytes(), base.tobytes(), ELEMENTS["float32"])
    assert groups_of(payload)[1][0] == 0
    assert len(payload) < 4 / 32 * base.nbytes  # of the bits that stood as they are there would be as many


def test_some_numbers_that_move_far_make_more_of_the_others_noise():
    chooser = np.random.default_rng(3)
    base = np.zeros(50_000, "<u4")
    near = chooser.integers(-(2**16), 2**16, len(base)).astype("<u4")
    far = np.where(chooser.random(len(base)) < 0.1, chooser.integers(-(2**20), 2**20, len(base)), near).astype("<u4")
    low = [
        groups_of(payload_of(chunk.tobytes(), base.tobytes(), Elements(4, is_float=False)))[1][0]
        for chunk in (near, far)
    ]
    assert low[1] >= low[0] + 2 > 8


def entropy(values):
    """Bytes that values take of which nothing is known but how frequent each is."""
    counts = np.unique(values, return_counts=True)[1]
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


def test_differences_are_coded_by_the_magnitude_of_the_base():
    base = normal(200_000, "bfloat16")
    floats = (base.astype("<u4") << 16).view("<f4")
    chunk = bfloat16(floats + np.random.default_rng(5).normal(0, 1e-3, len(base))).astype("<u2")
    found = [
        payload_of(chunk.tobytes(), base.tobytes(), ELEMENTS["bfloat16"], thorough=thorough)
        for thorough in (False, True)
    ]
    assert len(found[1]) <= len(found[0]) < 0.92 * entropy(chunk - base)
    assert len(groups_of(found[0])[0]) > 3


@all_elements
@efforts
def test_what_differs_nowhere_takes_next_to_nothing(elements, thorough):
    chunk = normal(50_000, "<f8").tobytes()
    assert len(payload_of(chunk, chunk, elements, thorough=thorough)) < 70 * 20


@all_elements
def test_an_estimate_is_near_what_planes_take(elements):
    chunk = (normal(50_000, f"<f{elements.width}") if elements.width > 1 else normal(50_000, "<f4")).tobytes()
    expected = len(Encoder().encode(chunk, elements)[1])
    assert 0.9 * expected <= Encoder().estimate(chunk, elements) <= 1.1 * expected
    assert Encoder().estimate(b"", elements) == 0


# --- planes and deltas that no writer makes ---


def part(coding, data):
    return struct.pack("<BI", coding, len(data)) + data


def packed(large_count, top_bits, *parts, low_bits=0, low=b""):
    return struct.pack("<BBI", low_bits, top_bits, large_count) + low + b"".join(parts)


def packed_part(bits, count, small, large, *, first=RAW, second=RAW):
    parts = (part(first, small), *([part(second, large)] if large else []))
    return part(PACKED, packed(count, bits, *parts))


def planes_of(*parts, shape=0, rest=b""):
    return bytes((Codec.PLANES, shape)) + b"".join(parts) + rest


def delta_of(*packed_values, lasts=(255,), shape=0, rest=b""):
    return bytes((Codec.DELTA, shape, len(lasts) - 1, *lasts)) + b"".join(packed_values) + rest


def test_planes_by_hand():
    """As SPEC.md says it, byte by byte."""
    one = packed_part(1, 3, bytes([0b10101]), bytes([2, 199, 0]))
    assert bytes(Decoder().decode(planes_of(one), 5)) == bytes([3, 0, 200, 0, 1])
    two = packed_part(2, 2, bytes([0b11_01_00_11, 0b10]), bytes([0, 197]))
    assert bytes(Decoder().decode(planes_of(two), 5)) == bytes([3, 0, 1, 200, 2])
    four = packed_part(4, 1, bytes([0x0F, 0x7E, 0x01]), bytes([240]))
    assert bytes(Decoder().decode(planes_of(four), 5)) == bytes([255, 0, 14, 7, 1])
    eight = packed_part(8, 1, bytes([1, 255, 3]), bytes([0]))
    assert bytes(Decoder().decode(planes_of(eight), 3)) == bytes([1, 255, 3])
    zipped = packed_part(4, 300, frame(b"\xff" * 150), frame(b"\x11" * 300), first=ZSTD, second=ZSTD)
    assert bytes(Decoder().decode(planes_of(zipped), 300)) == b"\x20" * 300
    wide = planes_of(part(RAW, b"\1\2"), part(RAW, b"\3\4"), shape=1, rest=b"!")
    assert bytes(Decoder().decode(wide, 5)) == b"\1\3\2\4!"
    turned = planes_of(part(RAW, b"\x01"), part(RAW, b"\x7f"), shape=0b101)
    assert bytes(Decoder().decode(turned, 2)) == bytes([0x80, 0xBF])
    assert bytes(Decoder().decode(planes_of(part(NOTHING, b"")), 300)) == bytes(300)


def test_deltas_by_hand():
    """As SPEC.md says it, byte by byte."""
    integers = delta_of(packed(0, 8, part(RAW, bytes([0, 1, 2, 3]))))
    assert bytes(Decoder().decode(integers, 4, bytes([7, 0, 255, 7]))) == bytes([7, 255, 0, 5])
    floats = delta_of(packed(0, 8, part(RAW, bytes([2, 1, 2]))), shape=4)
    # the next one up from -0 is 0, from -1 and from 1
    assert bytes(Decoder().decode(floats, 3, bytes([0x80, 0x00, 0x81]))) == bytes([0x00, 0x80, 0x80])
    groups = delta_of(
        packed(1, 4, part(RAW, bytes([0xF2])), part(RAW, bytes([5]))),
        packed(0, 8, part(RAW, b"\6\x08")),
        lasts=(1, 255),
    )
    assert bytes(Decoder().decode(groups, 4, bytes([9, 0, 9, 1]))) == bytes([9 + 3, 0 + 1, 9 + 4, 1 + 10])
    empty = delta_of(packed(0, 1, part(RAW, b"")), packed(0, 8, part(RAW, b"\6")), lasts=(8, 255))
    assert bytes(Decoder().decode(empty, 1, b"\x09")) == b"\x0c"
    # 0x0154 and 0x3fe2: low bytes 54 and e2; the tops 1 and 63 in one byte each
    low = delta_of(packed(0, 8, part(RAW, b"\1\x3f"), low_bits=8, low=b"\x54\xe2"), shape=1, rest=b"!")
    assert bytes(Decoder().decode(low, 5, bytes(5))) == struct.pack("<HH", 0x0154 // 2, 0x3FE2 // 2) + b"!"
    # seven low bits: four, two and one of each of three values, then the tops; the last is large
    values = (0b1_0110_101, 0b0_1011_001 | 3 << 7, 0b1_1111_110 | 300 << 7)
    fours = bytes([(values[0] & 15) | (values[1] & 15) << 4, values[2] & 15])
    twos = bytes([sum((value >> 4 & 3) << 2 * at for at, value in enumerate(values))])
    ones = bytes([sum((value >> 6 & 1) << at for at, value in enumerate(values))])
    parts = part(RAW, bytes([values[0] >> 7, values[1] >> 7, 255])), part(RAW, bytes([301 - 255])), part(RAW, b"\0")
    seven = delta_of(packed(1, 8, *parts, low_bits=7, low=fours + twos + ones), shape=1)
    expected = [value // 2 if value % 2 == 0 else 2**16 - (value + 1) // 2 for value in values]
    assert np.frombuffer(Decoder().decode(seven, 6, bytes(6)), "<u2").tolist() == expected


@pytest.mark.parametrize(
    ("blob", "size"),
    [
        (b"\2", 0),
        (planes_of(part(RAW, b"ab"), shape=0b1000), 2),
        (planes_of(part(RAW, b"ab"), shape=0x80), 2),
        (planes_of(part(RAW, b"ab"))[:-1], 2),
        (planes_of(part(RAW, b"ab"))[:5], 2),
        (planes_of(part(RAW, b"ab")), 1),
        (planes_of(part(RAW, b"ab")), 3),
        (planes_of(part(RAW, b"ab"), rest=b"!"), 2),
        (planes_of(part(RAW, b"a"), part(RAW, b"b"), shape=1), 3),
        (planes_of(part(RAW, b"a"), part(RAW, b"b"), shape=1, rest=b"!!"), 4),
        (planes_of(part(RAW, b"a"), shape=1), 2),
        (planes_of(part(4, b"ab")), 2),
        (planes_of(part(255, b"ab")), 2),
        (planes_of(part(ZSTD, frame(ZEROS))), 299),
        (planes_of(part(ZSTD, frame(ZEROS) + b"!")), 300),
        (planes_of(part(ZSTD, b"no frame at all")), 300),
        (planes_of(part(ZSTD, frame(b""))), 0),
        (planes_of(part(NOTHING, b"\0\0")), 2),
        (planes_of(part(PACKED, b"\0\2\0\0\0")), 4),
        (planes_of(part(PACKED, b"\0\2\0\0\0\0")), 4),  # no tops, not even none
        (planes_of(packed_part(2, 0, b"", b"")), 4),
        (planes_of(packed_part(2, 0, b"\0\0", b"")), 4),
        (planes_of(packed_part(2, 0, b"\x03", b"")), 4),
        (planes_of(packed_part(2, 0, b"\x03", b"\x09")), 4),
        (planes_of(packed_part(2, 1, b"\0", b"\x09")), 4),
        (planes_of(packed_part(2, 1, b"\x03", b"")), 4),
        (planes_of(packed_part(2, 1, b"\x03", b"\x09\x09")), 4),
        (planes_of(packed_part(2, 5, b"\xff", b"\x09" * 5)), 4),
        (planes_of(packed_part(2, 2**32 - 1, b"\xff", b"\x09" * 4)), 4),
        (planes_of(packed_part(3, 0, b"\0\0", b"")), 4),
        (planes_of(packed_part(0, 0, b"", b"")), 4),
        (planes_of(packed_part(2, 1, b"\x03", b"\x09", first=PACKED)), 4),  # packed twice
        (planes_of(packed_part(2, 1, b"\x03", b"\x09", second=PACKED)), 4),
        (planes_of(packed_part(2, 1, b"\x03", b"\x09", second=ZSTD)), 4),
        (planes_of(part(PACKED, packed(0, 8, part(NOTHING, b""), low_bits=1, low=b"\0"))), 4),  # a byte has none
        (planes_of(part(PACKED, packed(0, 8, part(NOTHING, b"")) + b"!")), 4),
    ],
)
def test_planes_that_no_writer_makes_are_refused(blob, size):
    with pytest.raises(DamagedObject):
        Decoder().decode(blob, size)


GOOD = packed(0, 8, part(NOTHING, b""))


@pytest.mark.parametrize(
    ("blob", "size"),
    [
        (b"\3", 4),
        (b"\3\0", 4),
        (b"\3\0\0", 4),
        (b"\3\0\5\1\2\3", 4),
        (delta_of(GOOD, lasts=(254,)), 4),
        (delta_of(GOOD, GOOD, lasts=(255, 255)), 4),
        (delta_of(GOOD, GOOD, GOOD, lasts=(9, 8, 255)), 4),
        (delta_of(GOOD, GOOD, lasts=(9, 8)), 4),
        (delta_of(GOOD, lasts=(9, 255)), 4),
        (delta_of(GOOD, GOOD), 4),
        (delta_of(GOOD, shape=0b1000), 4),
        (delta_of(GOOD, shape=0x40), 4),
        (delta_of(GOOD)[:-1], 4),
        (delta_of(GOOD, rest=b"!"), 4),
        (delta_of(GOOD, shape=1), 5),
        (delta_of(packed(0, 8, part(NOTHING, b""), low_bits=9, low=bytes(5)), shape=1), 4),  # all tops need 8 bits
        (delta_of(packed(0, 8, part(NOTHING, b""), low_bits=8, low=b"\0"), shape=1), 4),
        (delta_of(packed(0, 8, low_bits=8, low=b"\0"), shape=1), 4),
        (delta_of(packed(0, 8, part(NOTHING, b""), low_bits=255), shape=3), 8),
        (delta_of(packed(1, 8, part(RAW, b"\xff\0"), part(NOTHING, b"")), shape=1), 4),  # one plane of two
        (delta_of(packed(3, 1, part(RAW, b"\x03"), part(NOTHING, b""), part(NOTHING, b"")), shape=1), 4),
    ],
)
def test_deltas_that_no_writer_makes_are_refused(blob, size):
    with pytest.raises(DamagedObject):
        Decoder().decode(blob, size, bytes(size))


@pytest.mark.parametrize("base", [None, b"", bytes(3), bytes(5)])
def test_a_delta_without_a_base_of_its_size_is_refused(base):
    with pytest.raises(DamagedObject, match="without a base of that size"):
        Decoder().decode(delta_of(GOOD), 4, base)


def hostile_payloads():
    """Valid blobs of every coding, with the chunk, and the base of a delta."""
    base = normal(1500, "<f4")
    chunk = (base + np.random.default_rng(5).normal(0, 1e-6, len(base))).astype("<f4").tobytes() + b"!"
    lower = base.tobytes() + b"?"
    whole = {
        "planes of floats": (chunk, Elements(4, is_float=True)),
        "planes of numbers": (np.arange(900).astype("<i8").tobytes(), Elements(8, is_float=False)),
        "two bits": (mixed(0.95, 0.9, 2000), Elements(1, is_float=False)),
        "four bits": (mixed(0.65, 0.9, 2000), Elements(1, is_float=False)),
    }
    for name, (plain, elements) in whole.items():
        codec, payload = Encoder().encode(plain, elements)
        assert codec is Codec.PLANES
        yield name, bytes((codec,)) + payload, plain, None
    payload = payload_of(chunk, lower, ELEMENTS["float32"], thorough=True)
    assert groups_of(payload)[1][0] > 0  # there are low bits
    yield "delta", b"\3" + payload, chunk, lower
    near = (np.frombuffer(lower[:6000], "<u4") + np.arange(1500) % 7 // 5).astype("<u4").tobytes() + b"!"
    yield "delta of small steps", b"\3" + payload_of(near, lower, ELEMENTS["float32"]), near, lower


HOSTILE = list(hostile_payloads())
hostile = pytest.mark.parametrize(
    ("blob", "plain", "base"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)


def refused_or_of_its_size(blob, size, base):
    """Decode what may be damaged."""
    try:
        chunk = Decoder().decode(blob, size, base)
    except DamagedObject:
        return None
    assert len(chunk) == size
    return bytes(chunk)


@hostile
def test_every_truncation_and_every_wrong_size_is_refused(blob, plain, base):
    assert bytes(Decoder().decode(blob, len(plain), base)) == plain
    for size in [*range(1, 60), *range(60, len(blob), 37), len(blob) - 1]:
        assert refused_or_of_its_size(blob[:size], len(plain), base) is None
    for size in (0, 1, len(plain) - 9, len(plain) + 9, MAX_CHUNK_SIZE):
        assert refused_or_of_its_size(blob, size, None if base is None else bytes(size)) is None
    assert refused_or_of_its_size(blob + b"!", len(plain), base) is None


@hostile
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_payloads_are_refused_or_decode_to_other_bytes(blob, plain, base, data):
    damaged = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(1, 40) | st.integers(1, len(blob) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    refused_or_of_its_size(damaged, len(plain), base)
    start, end = sorted(data.draw(st.integers(1, len(blob))) for _ in range(2))
    refused_or_of_its_size(blob[:start] + data.draw(st.binary(max_size=30)) + blob[end:], len(plain), base)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([2, 3]), st.integers(0, 15), st.binary(max_size=80), st.integers(0, 40))
def test_random_payloads_are_refused_or_decode_to_something(codec, shape, data, size):
    refused_or_of_its_size(bytes((codec,)) + data, size, bytes(size))
    refused_or_of_its_size(bytes((codec, shape)) + data, size, bytes(size))


@pytest.mark.parametrize("coding", [RAW, ZSTD, NOTHING, PACKED])
@pytest.mark.parametrize("declared", [2**24, 2**31, 2**32 - 1])
def test_payloads_that_declare_much_take_little_memory(coding, declared):
    huge = b"\x28\xb5\x2f\xfd\xe0" + declared.to_bytes(8, "little") + b"\x03\0\0"
    inner = packed(declared, 8, part(ZSTD, huge), part(ZSTD, huge))
    payloads = [part(coding, payload) for payload in (huge, inner, packed(declared, 8))]
    payloads += [bytes((coding,)) + struct.pack("<I", declared) + huge]
    blobs = [b"\2\0" + payload for payload in payloads]
    blobs += [delta_of(payload) for payload in (huge, inner, packed(0, 8, *payloads[:1]), packed(declared % 999, 8))]
    for blob in blobs:
        tracemalloc.start()
        try:
            assert refused_or_of_its_size(blob, 1000, bytes(1000)) is None
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_small_blob_of_the_largest_chunk_takes_memory_in_proportion_to_it(width):
    elements = Elements(width, is_float=True)
    chunk = bytes(MAX_CHUNK_SIZE)
    blobs = [b"\2" + Encoder().encode(chunk, elements)[1], b"\3" + payload_of(chunk, chunk, elements, thorough=True)]
    for blob in blobs:
        assert len(blob) < 10_000
        tracemalloc.start()
        try:
            assert bytes(Decoder().decode(blob, len(chunk), chunk)) == chunk
            assert tracemalloc.get_traced_memory()[1] < 6 * MAX_CHUNK_SIZE
        finally:
            tracemalloc.stop()


# --- checks ---


def test_checks_are_the_same_with_and_without_isal(monkeypatch):
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    spec = importlib.util.spec_from_file_location("codecs_without_isal", codecs.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.crc32 is zlib.crc32
    for size in (0, 1, 7, 100, 70_000):
        payload = random.Random(size).randbytes(size)
        for found in (codecs, module):
            assert found.blob_check(Codec.ZSTD, payload) == zlib.crc32(b"\1" + payload)
            assert found.blob_check(Codec.ZSTD, memoryview(payload)) == zlib.crc32(b"\1" + payload)
            assert found.blob_check(Codec.RAW, payload) == 0
