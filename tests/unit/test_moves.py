"""Moves, their keys, and what they lead to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import PackId, TransactionId
from cas_checkpoint.moves import MOVES_PREFIX, Move, MoveKey, closure, parse_move_key
from cas_checkpoint.records import Kind, decode_record, encode_record

KEY = MoveKey(PackId(b"pack of sixteen!"), TransactionId(b"a collector's id"))
ids = st.binary(min_size=16, max_size=16)


@settings(deadline=None, max_examples=100)
@given(ids, ids, st.frozensets(ids, max_size=50))
def test_a_move_comes_back(pack, collection, targets):
    move = Move(MoveKey(pack, collection), targets)
    assert Move.decode(move.encode()) == move


def test_a_move_has_the_specified_fields():
    fields = decode_record(Kind.MOVE, Move(KEY, frozenset({b"b" * 16, b"a" * 16})).encode())
    assert fields.bytes("pack") == KEY.pack
    assert fields.bytes("collection") == KEY.collection
    assert fields.bytes("targets") == b"a" * 16 + b"b" * 16


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"targets": bytes(15)}, "its list of packs is cut short"),
        ({"targets": bytes(33)}, "its list of packs is cut short"),
        ({"targets": None}, "field 'targets' is not a byte string"),
        ({"pack": bytes(15)}, "field 'pack' is not a byte string of the right size"),
        ({"pack": None}, "field 'pack' is not a byte string"),
        ({"collection": "text"}, "field 'collection' is not a byte string"),
    ],
)
def test_an_impossible_move_is_damage(changes, reason):
    with pytest.raises(DamagedObject, match=reason):
        Move.decode(encode_record(Kind.MOVE, {**KEY._asdict(), "targets": b"", **changes}))


def test_another_kind_of_object_is_no_move():
    with pytest.raises(DamagedObject, match="of kind b'K'"):
        Move.decode(encode_record(Kind.MARK, {**KEY._asdict(), "targets": b""}))


@settings(deadline=None, max_examples=100)
@given(ids, ids)
def test_what_a_key_says_comes_back(pack, collection):
    key = MoveKey(pack, collection)
    assert str(key) == f"moves/{pack.hex()}-{collection.hex()}"
    assert str(key).startswith(MOVES_PREFIX)
    assert parse_move_key(str(key)) == key


GOOD = str(KEY)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "moves/",
        "moves/\udcff",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        GOOD.upper(),
        "x/" + GOOD,
        GOOD.replace("-", "_"),
    ],
)
def test_other_keys_are_no_moves(key):
    assert parse_move_key(key) is None


numbers = st.integers(0, 7)


@settings(deadline=None, max_examples=200)
@given(st.frozensets(numbers), st.dictionaries(numbers, st.frozensets(numbers)))
def test_a_closure_is_the_least_set_that_moves_do_not_leave(packs, moves):
    found = closure(packs, moves)
    assert packs <= found
    assert all(moves.get(pack, frozenset()) <= found for pack in found)
    reached = packs
    for _ in range(8):
        reached = reached.union(*(moves.get(pack, frozenset()) for pack in reached))
    assert found == reached
