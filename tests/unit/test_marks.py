"""Marks and their keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import TransactionId
from cas_checkpoint.marks import MARKS_PREFIX, Mark, mark_key, parse_mark_key
from cas_checkpoint.records import Kind, decode_record, encode_record

COLLECTION = TransactionId(b"a collector's id")
pack_ids = st.binary(min_size=16, max_size=16)


@settings(deadline=None, max_examples=100)
@given(pack_ids, st.frozensets(pack_ids, max_size=50))
def test_a_mark_comes_back(collection, packs):
    mark = Mark(collection, packs)
    assert Mark.decode(mark.encode()) == mark


def test_a_mark_has_the_specified_fields():
    fields = decode_record(Kind.MARK, Mark(COLLECTION, frozenset({b"b" * 16, b"a" * 16})).encode())
    assert fields.bytes("collection") == COLLECTION
    assert fields.bytes("packs") == b"a" * 16 + b"b" * 16


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"packs": bytes(15)}, "its list of packs is cut short"),
        ({"packs": bytes(33)}, "its list of packs is cut short"),
        ({"packs": "text"}, "field 'packs' is not a byte string"),
        ({"packs": None}, "field 'packs' is not a byte string"),
        ({"collection": bytes(15)}, "field 'collection' is not a byte string of the right size"),
        ({"collection": None}, "field 'collection' is not a byte string of the right size"),
    ],
)
def test_an_impossible_mark_is_damage(changes, reason):
    with pytest.raises(DamagedObject, match=reason):
        Mark.decode(encode_record(Kind.MARK, {"collection": COLLECTION, "packs": b"", **changes}))


def test_another_kind_of_object_is_no_mark():
    with pytest.raises(DamagedObject, match="of kind b'M'"):
        Mark.decode(encode_record(Kind.MANIFEST, {"collection": COLLECTION, "packs": b""}))


def test_keys_are_as_specified():
    assert mark_key(7) == "marks/0000000000000007"
    assert mark_key(7, closed=True) == "marks/0000000000000007-closed"
    assert mark_key(7).startswith(MARKS_PREFIX)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**16 - 1), st.booleans())
def test_what_a_key_says_comes_back(number, closed):
    assert parse_mark_key(mark_key(number, closed=closed)) == (number, closed)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "marks/",
        "marks/7",
        "marks/000000000000007",
        "marks/00000000000000007",
        "marks/0000000000000007-open",
        "marks/0000000000000007-closed-closed",
        "marks/0000000000000007\n",
        "marks/-000000000000007",
        "marks/" + "\u0667" * 16,
        "marks/\udcff",
        "packs/0000000000000007",
        "x/marks/0000000000000007",
    ],
)
def test_other_keys_are_no_marks(key):
    assert parse_mark_key(key) is None
