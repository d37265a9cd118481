"""Chunks and blobs."""

from __future__ import annotations

import random
import zlib
from types import SimpleNamespace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.codecs import BLOB_OVERHEAD, DEFAULT_LEVEL, MAX_CHUNK_SIZE, Codec, Decoder, Encoder, blob_check
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
