"""Heads, msgpack values and sealed records."""

from __future__ import annotations

import math
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.codecs import Codec, Encoder
from cas_checkpoint.errors import DamagedObject, ForeignObject, InvalidArgument, UnsupportedStore
from cas_checkpoint.ids import digest
from cas_checkpoint.records import (
    CHECKSUM_SIZE,
    FORMAT_VERSION,
    HEAD_SIZE,
    MAX_ITEMS,
    MAX_RECORD_SIZE,
    MAX_VALUES,
    Fields,
    Kind,
    check_head,
    decode_record,
    encode_record,
    make_head,
    pack_value,
    unpack_value,
)

KINDS = list(Kind)
BODY = {"name": "some text", "number": 7, "nothing": None}

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5).map(tuple) | st.dictionaries(st.text() | st.binary(), inner, max_size=5),
    max_leaves=20,
)


def sealed(kind, body, *, size=None, blob=None):
    """Return a record with a correct checksum around any msgpack bytes."""
    head = make_head(kind) + struct.pack("<I", len(body) if size is None else size)
    content = head + (b"\0" + body if blob is None else blob)
    return content + digest((content,))


# --- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_laid_out_as_specified(kind):
    head = make_head(kind)
    assert len(head) == HEAD_SIZE
    assert head[:8] == b"\x89CAS\r\n\x1a\n"
    assert head[8:9] == kind.value
    assert head[9] == FORMAT_VERSION == 1
    check_head(head, kind)
    check_head(memoryview(head + b"more"), kind)


@pytest.mark.parametrize(
    "data",
    [b"\0", b"PK\3\4", b"\x89PNG\r\n\x1a\n" + bytes(8), b"\x89CAS\n\x1a\n" + bytes(9), b"\x09CAS\r\n\x1a\n" + bytes(8)],
)
def test_other_bytes_are_something_foreign(data):
    with pytest.raises(ForeignObject, match="does not begin like an object"):
        check_head(data, Kind.PACK)


@pytest.mark.parametrize("size", range(HEAD_SIZE))
def test_a_head_cut_short_is_damaged_and_not_foreign(size):
    with pytest.raises(DamagedObject, match=f"only {size} bytes long") as caught:
        check_head(make_head(Kind.PACK)[:size], Kind.PACK)
    assert not isinstance(caught.value, ForeignObject)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_format_version_is_refused_as_too_new_whatever_the_kind(version):
    head = make_head(Kind.PACK)[:8] + b"?" + bytes([version]) + struct.pack("<HHH", 3, 14, 15)
    with pytest.raises(UnsupportedStore, match=rf"format version {version}, written by cas-checkpoint 3\.14\.15"):
        check_head(head, Kind.PACK)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_of_another_kind_is_damaged(kind):
    other = KINDS[KINDS.index(kind) - 1]
    with pytest.raises(DamagedObject, match=f"is an object of kind {kind.value!r}, not {other.value!r}"):
        check_head(make_head(kind), other)


# --- msgpack ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(values)
def test_a_value_comes_back(value):
    assert unpack_value(pack_value(value)) == value


@settings(deadline=None, max_examples=50)
@given(st.lists(values, min_size=1, max_size=20).map(tuple))
def test_a_value_comes_back_from_any_buffer(value):
    packed = pack_value((value, bytes(1000)))
    assert unpack_value(memoryview(packed)) == unpack_value(bytearray(packed)) == (value, bytes(1000))


@pytest.mark.parametrize("number", [math.inf, -math.inf, -0.0])
def test_any_float_comes_back(number):
    assert repr(unpack_value(pack_value(number))) == repr(number)
    assert math.isnan(unpack_value(pack_value(math.nan)))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 2**16 - 1, 2**16])
@pytest.mark.parametrize("make", [bytes, lambda size: "x" * size], ids=["bin", "str"])
def test_every_width_of_texts_and_byte_strings_comes_back(make, size):
    value = (make(size), bytes(1000), 1.5, -1, 2**7, 2**15, 2**31, 2**63, -(2**7), -(2**15), -(2**31), -(2**63))
    assert unpack_value(pack_value(value)) == value


@pytest.mark.parametrize("size", [0, 1, 15, 16, MAX_ITEMS])
def test_arrays_and_maps_of_every_width_come_back(size):
    assert unpack_value(pack_value(list(range(size)))) == tuple(range(size))
    assert unpack_value(pack_value(dict.fromkeys(range(size)))) == dict.fromkeys(range(size))


@pytest.mark.parametrize("value", [[0] * (MAX_ITEMS + 1), dict.fromkeys(range(MAX_ITEMS + 1))], ids=["array", "map"])
def test_more_items_than_allowed_are_refused(value):
    with pytest.raises(DamagedObject, match=f"exceeds max_.*_len.{MAX_ITEMS}"):
        unpack_value(pack_value(value))


def test_as_many_values_as_allowed_are_taken_and_no_more():
    most = [[0] * (MAX_ITEMS - 2)] * 4 + [0, 0, 0]
    assert 1 + 4 * (MAX_ITEMS - 1) + 3 == MAX_VALUES
    assert len(unpack_value(pack_value(most))) == 7
    with pytest.raises(DamagedObject, match=f"more than {MAX_VALUES} values"):
        unpack_value(pack_value([*most, 0]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x00\x00",
        b"\x92\x00",
        b"\xa2a",
        b"\xc4\x02a",
        b"\xa2\xed\xa0",  # half a surrogate
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\x80\x00",  # a map as a key
        b"\x81\x91\x80\x00",  # an array that holds a map as a key
    ],
)
@pytest.mark.parametrize("around", [0, 1000], ids=["short", "long"])
def test_what_is_not_one_value_is_refused(data, around):
    before = b"\x92\xc5" + around.to_bytes(2, "big") + bytes(around) if around else b""
    with pytest.raises(DamagedObject, match="cannot be parsed"):
        unpack_value(before + data)


@pytest.mark.parametrize(
    "data",
    [
        b"\xd4\x05a",
        b"\xd8\x05" + bytes(16),
        b"\xc7\x00\x05",
        b"\xc7\x05\x05" + bytes(5),
        b"\xc8\x00\x00\x05",
        b"\xc9" + bytes(4) + b"\x05",
        b"\xd6\xff" + bytes(4),
        b"\xd7\xff" + bytes(8),
        b"\xc7\x0c\xff" + bytes(12),
        b"\xc7\x00\xff",
    ],
)
@pytest.mark.parametrize("around", [0, 1000], ids=["short", "long"])
def test_extension_types_are_refused(data, around):
    before = b"\x92\xc5" + around.to_bytes(2, "big") + bytes(around) if around else b""
    with pytest.raises(DamagedObject, match="cannot be parsed"):
        unpack_value(before + data)


@pytest.mark.parametrize("depth", [700, 1010, 1100, 100_000])
def test_keys_too_deep_to_be_compared_are_refused(depth):
    key = b"\x91" * depth + b"\x90"
    if depth < 1000:
        assert len(unpack_value(b"\x81" + key + b"\0")) == 1
        return
    with pytest.raises(DamagedObject, match="cannot be parsed"):
        unpack_value(b"\x82" + (key + b"\0") * 2)


# --- records ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(KINDS), st.dictionaries(st.text(max_size=10), values, max_size=5))
def test_the_fields_of_a_record_come_back(kind, body):
    fields = decode_record(kind, encode_record(kind, body))
    assert {name: fields.get(name) for name in body} == body


def test_a_record_is_laid_out_as_specified():
    body = pack_value(BODY)
    data = encode_record(Kind.COMMIT, BODY)
    assert data == make_head(Kind.COMMIT) + struct.pack("<I", len(body)) + b"\0" + body + data[-CHECKSUM_SIZE:]
    assert data[-CHECKSUM_SIZE:] == digest((data[:-CHECKSUM_SIZE],))
    assert data == sealed(Kind.COMMIT, body)


def test_a_large_record_is_compressed():
    data = encode_record(Kind.MANIFEST, {"packs": bytes(2**20)})
    assert len(data) < 1000
    assert decode_record(Kind.MANIFEST, data).bytes("packs") == bytes(2**20)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_a_record_is_read_from_any_buffer(make):
    assert decode_record(Kind.MARK, make(encode_record(Kind.MARK, BODY))).integer("number") == 7


def test_unknown_fields_are_ignored():
    assert (
        decode_record(Kind.MARK, encode_record(Kind.MARK, {**BODY, "of tomorrow": [1, {}]})).text("name") == "some text"
    )


def test_a_record_over_its_limit_is_not_written():
    body = {"data": bytes(94)}
    assert encode_record(Kind.MARK, body, limit=102)
    with pytest.raises(InvalidArgument, match=r"would have 102 bytes; at most 101 .*save less"):
        encode_record(Kind.MARK, body, limit=101)


def test_a_record_over_its_limit_is_not_read():
    data = encode_record(Kind.MARK, {"data": bytes(94)})
    assert decode_record(Kind.MARK, data, limit=102)
    with pytest.raises(DamagedObject, match="declares a body of 102 bytes; at most 101 are allowed"):
        decode_record(Kind.MARK, data, limit=101)


@pytest.mark.parametrize("size", range(len(encode_record(Kind.MARK, BODY))))
def test_a_record_cut_short_anywhere_is_damaged(size):
    with pytest.raises(DamagedObject, match="only .* bytes long" if size < 52 else "its checksum does not fit"):
        decode_record(Kind.MARK, encode_record(Kind.MARK, BODY)[:size])


def test_any_flipped_bit_is_noticed():
    whole = encode_record(Kind.MARK, BODY)
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedObject, UnsupportedStore)):
            decode_record(Kind.MARK, data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode_record(Kind.COMMIT, BODY), "is an object of kind b'C', not b'K'"),
        (encode_record(Kind.MARK, BODY) + b"\0", "its checksum does not fit"),
        (sealed(Kind.MARK, b"\x80", size=2), "a raw blob of 1 bytes stands for a chunk of 2"),
        (sealed(Kind.MARK, b"", blob=b""), "an empty blob"),
        (sealed(Kind.MARK, b"\x80", size=MAX_RECORD_SIZE + 1), "declares a body of"),
        (sealed(Kind.MARK, b"\x80", size=2**32 - 1), "declares a body of"),
        (sealed(Kind.MARK, b""), "cannot be parsed"),
        (sealed(Kind.MARK, b"\x80\x80"), "cannot be parsed"),
        (sealed(Kind.MARK, b"\x90"), "holds tuple where a map belongs"),
        (sealed(Kind.MARK, b"\xc0"), "holds NoneType where a map belongs"),
        (sealed(Kind.MARK, bytes(5000), blob=Encoder().blob(bytes(4999))), "a zstd frame of 4999 bytes"),
    ],
)
def test_a_sealed_record_is_still_checked(data, reason):
    with pytest.raises(DamagedObject, match=reason):
        decode_record(Kind.MARK, data)


def test_a_record_with_a_codec_of_tomorrow_is_refused_as_too_new():
    with pytest.raises(UnsupportedStore, match="codec 4"):
        decode_record(Kind.MARK, sealed(Kind.MARK, b"\x80", blob=b"\4abc"))


def test_of_a_field_that_stands_twice_the_last_one_counts():
    body = b"\x82" + msgpack.packb("a") + b"\1" + msgpack.packb("a") + b"\2"
    assert decode_record(Kind.MARK, sealed(Kind.MARK, body)).integer("a") == 2


# --- fields -------------------------------------------------------------------------------------

FIELDS = {
    "bytes": b"1234",
    "text": "text",
    "integer": 7,
    "negative": -7,
    "number": 1.5,
    "flag": True,
    "array": (1, "b"),
    "texts": ("a", "b"),
    "map": {"a": 1},
    "nothing": None,
}


@pytest.fixture
def fields():
    return Fields(FIELDS)


def test_each_field_is_read_by_its_type(fields):
    assert {name: fields.get(name) for name in FIELDS} == FIELDS
    assert fields.get("missing") is None
    assert fields.bytes("bytes") == fields.bytes("bytes", 4) == b"1234"
    assert fields.text("text") == fields.text("text", limit=4) == "text"
    assert fields.integer("integer", low=7, high=7) == 7
    assert fields.integer("negative", low=-7) == -7
    assert fields.number("number") == 1.5
    assert (fields.number("integer"), type(fields.number("integer"))) == (7.0, float)
    assert fields.array("array") == (1, "b")
    assert fields.texts("texts") == ("a", "b")
    assert fields.map("map") == {"a": 1}


READERS = {
    "bytes": (Fields.bytes, {"bytes"}, "is not a byte string"),
    "text": (Fields.text, {"text"}, "is not a text"),
    "integer": (Fields.integer, {"integer"}, "is not an integer"),
    "number": (Fields.number, {"number", "integer", "negative"}, "is not a number"),
    "array": (Fields.array, {"array", "texts"}, "is not an array"),
    "texts": (Fields.texts, {"texts"}, "is not an array|holds something other than texts"),
    "map": (Fields.map, {"map"}, "is not a map"),
}


@pytest.mark.parametrize(
    ("reader", "field"),
    [(name, field) for name, (_, fit, _) in READERS.items() for field in [*FIELDS, "missing"] if field not in fit],
)
def test_a_field_of_another_type_is_refused(fields, reader, field):
    read, _, reason = READERS[reader]
    with pytest.raises(DamagedObject, match=f"field '{field}' ({reason})"):
        read(fields, field)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_byte_string_of_another_size_is_refused(fields, size):
    with pytest.raises(DamagedObject, match="field 'bytes' is not a byte string of the right size"):
        fields.bytes("bytes", size)


def test_too_long_a_text_is_refused(fields):
    with pytest.raises(DamagedObject, match="field 'text' is not a text of at most 3 characters"):
        fields.text("text", limit=3)


@pytest.mark.parametrize("limits", [{"low": 8}, {"high": 6}])
def test_an_integer_out_of_range_is_refused(fields, limits):
    with pytest.raises(DamagedObject, match="field 'integer' is not an integer from"):
        fields.integer("integer", **limits)


@pytest.mark.parametrize(("value", "fits"), [(0, True), (-1, False), (2**63 - 1, True), (2**63, False)])
def test_integers_have_63_bits_unless_said_otherwise(value, fits):
    fields = Fields({"value": value})
    if fits:
        assert fields.integer("value") == value
    else:
        with pytest.raises(DamagedObject):
            fields.integer("value")


@pytest.mark.parametrize("value", [None, 7, "text", b"bytes", (), [], object()])
def test_only_a_map_has_fields(value):
    with pytest.raises(DamagedObject, match="where a map belongs"):
        Fields(value)


@pytest.mark.parametrize("dtype", ["<u2", "<f4", "<f8"])
def test_no_record_is_stored_as_planes(dtype):
    """Though its body is such as would be, were it a chunk of a file."""
    values = np.random.default_rng(1).normal(1000, 50, 2**17).astype(dtype).tobytes()
    body = {"packs": values}
    data = encode_record(Kind.MANIFEST, body)
    assert data[HEAD_SIZE + 4] == Codec.ZSTD
    assert decode_record(Kind.MANIFEST, data).bytes("packs") == values
    assert Encoder().encode(pack_value(body))[0] is Codec.PLANES
