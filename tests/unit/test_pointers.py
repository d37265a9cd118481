"""Pointers to shared stores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.errors import DamagedObject, InvalidArgument
from cas_checkpoint.ids import StoreId
from cas_checkpoint.pointers import MAX_POINTER_SIZE, Pointer
from cas_checkpoint.records import Kind, decode_record, encode_record

POINTER = Pointer("s3://bucket/store", StoreId(b"id of some store"), "a series")


@settings(deadline=None, max_examples=100)
@given(st.text(), st.binary(min_size=16, max_size=16), st.text())
def test_a_pointer_comes_back(url, store, series):
    pointer = Pointer(url, StoreId(store), series)
    assert Pointer.decode(pointer.encode()) == pointer


def test_a_pointer_has_the_specified_fields():
    fields = decode_record(Kind.POINTER, POINTER.encode())
    assert {name: fields.get(name) for name in ("url", "store", "series")} == POINTER._asdict()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": None}, "field 'url' is not a text"),
        ({"url": b"bytes"}, "field 'url' is not a text"),
        ({"series": 7}, "field 'series' is not a text"),
        ({"store": bytes(17)}, "field 'store' is not a byte string of the right size"),
        ({"store": None}, "field 'store' is not a byte string of the right size"),
        ({"more": "x" * MAX_POINTER_SIZE}, "at most 65536 are allowed"),
    ],
)
def test_an_impossible_pointer_is_damage(changes, reason):
    with pytest.raises(DamagedObject, match=reason):
        Pointer.decode(encode_record(Kind.POINTER, {**POINTER._asdict(), **changes}))


def test_another_kind_of_object_is_no_pointer():
    with pytest.raises(DamagedObject, match="of kind b'H'"):
        Pointer.decode(encode_record(Kind.HEADER, POINTER._asdict()))


def test_the_largest_pointer_that_is_written_is_no_larger_than_what_is_read():
    source = random.Random(6)
    url = "".join(chr(source.randrange(0x10000, 0x110000)) for _ in range(MAX_POINTER_SIZE // 4))
    with pytest.raises(InvalidArgument, match="at most"):
        POINTER._replace(url=url).encode()
    longest = POINTER._replace(url=url[: MAX_POINTER_SIZE // 4 - 300])
    assert len(longest.encode()) <= MAX_POINTER_SIZE
    assert Pointer.decode(longest.encode()) == longest
