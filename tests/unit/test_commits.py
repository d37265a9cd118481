"""Commits, and the keys of a transaction's objects."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.commits import (
    COMMITS_PREFIX,
    MAX_COMMIT_SIZE,
    MAX_MESSAGE_SIZE,
    MAX_SEQUENCE,
    Commit,
    CommitKey,
    Inline,
    SaveStats,
    State,
    check_series,
    index_key,
    manifest_key,
    pack_key,
    parse_commit_key,
    series_prefix,
)
from cas_checkpoint.errors import DamagedObject, InvalidArgument
from cas_checkpoint.ids import PackId, StoreId, TransactionId
from cas_checkpoint.records import Kind, decode_record, encode_record

STORE = StoreId(b"id of some store")
KEY = CommitKey("a series", 3, TransactionId(b"some transaction"))
COMMIT = Commit(
    State.COMMITTED,
    STORE,
    KEY,
    created_at_ns=10**18,
    step=1000,
    metrics={"loss": 0.5},
    tags=("best",),
    message="a message",
    stats=SaveStats(1, 2, 3, 4, 5, 6, 7, 8, 9, 1.5),
    manifest_digest=b"d" * 32,
    manifest_size=99,
    inline=Inline(b"manifest", b"pack"),
)

series_names = st.text(min_size=1, max_size=15)
numbers = st.integers(0, 2**63 - 1)
signed = st.integers(-(2**63), 2**63 - 1)
transactions = st.binary(min_size=16, max_size=16)


@st.composite
def commits(draw):
    return Commit(
        State.COMMITTED,
        StoreId(draw(transactions)),
        CommitKey(draw(series_names), draw(numbers), TransactionId(draw(transactions))),
        draw(signed),
        draw(st.none() | signed),
        draw(st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False), max_size=5)),
        tuple(draw(st.lists(st.text(max_size=9), max_size=5))),
        draw(st.text(max_size=99)),
        SaveStats(*draw(st.tuples(*[numbers] * 9)), seconds=draw(st.floats(allow_nan=False, allow_infinity=False))),
        draw(st.binary(min_size=32, max_size=32)),
        draw(numbers),
        draw(st.none() | st.builds(Inline, st.binary(max_size=99), st.binary(max_size=99))),
    )


def body():
    fields = decode_record(Kind.COMMIT, COMMIT.encode())
    names = ("state", "store", "series", "sequence", "transaction", "created_at", "step", "metrics", "tags", "message")
    return {name: fields.get(name) for name in (*names, "stats", "manifest_digest", "manifest_size", "inline")}


def decode(**changes):
    return Commit.decode(encode_record(Kind.COMMIT, {**body(), **changes}))


# --- keys ---------------------------------------------------------------------------------------


def test_keys_are_as_specified():
    identity = b"\x01" * 15 + b"\xff"
    assert pack_key(PackId(identity)) == "packs/" + "01" * 15 + "ff"
    assert index_key(TransactionId(identity)) == "index/" + "01" * 15 + "ff"
    assert manifest_key(TransactionId(identity)) == "manifests/" + "01" * 15 + "ff"
    assert str(CommitKey("run-7", 12, TransactionId(identity))) == (
        "commits/run-7/0000000000000012-" + "01" * 15 + "ff"
    )


@pytest.mark.parametrize(
    ("series", "encoded"),
    [
        ("abc-xyz_0189", "abc-xyz_0189"),
        ("a.b", "a.b"),
        (".a.", "%2ea%2e"),
        (".", "%2e"),
        ("..", "%2e%2e"),
        ("...", "%2e.%2e"),
        ("Ab", "%41b"),
        ("a/b", "a%2fb"),
        ("a%2fb", "a%252fb"),
        ("a b\0", "a%20b%00"),
        ("caf\u00e9", "caf%c3%a9"),
    ],
)
def test_names_of_series_are_encoded_as_specified(series, encoded):
    assert series_prefix(series) == f"commits/{encoded}/"
    assert series_prefix(series).startswith(COMMITS_PREFIX)


@settings(deadline=None, max_examples=200)
@given(series_names, st.integers(0, MAX_SEQUENCE), transactions)
def test_what_a_key_says_comes_back(series, sequence, transaction):
    key = CommitKey(series, sequence, TransactionId(transaction))
    assert parse_commit_key(str(key)) == key
    assert str(key) == str(key).lower()
    assert len(str(key).split("/")) == 3


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_no_two_keys_say_the_same(text):
    key = f"commits/{text}/{'0' * 15}1-{'0' * 32}"
    parsed = parse_commit_key(key)
    assert parsed is None or str(parsed) == key


@pytest.mark.parametrize("series", ["a" * 200, "A" * 66 + "ab", "\u00e9" * 33])
def test_a_series_has_at_most_200_encoded_characters(series):
    assert check_series(series) == series
    with pytest.raises(InvalidArgument, match="not a name for a series"):
        check_series(series + "\U0001f600")


@pytest.mark.parametrize("series", ["", "a" * 201, "A" * 67, "\udcff", "a\ud800"])
def test_other_names_of_series_are_refused(series):
    with pytest.raises(InvalidArgument, match="it needs 1 to 200 characters"):
        check_series(series)
    with pytest.raises(InvalidArgument):
        series_prefix(series)


TAIL = "/0000000000000001-" + "0" * 32


@pytest.mark.parametrize(
    "key",
    [
        "",
        "commits/",
        "commits/a",
        "commits" + TAIL,
        "commits/" + TAIL,
        "commits/a/b" + TAIL,
        "commits/A" + TAIL,
        "commits/%41%" + TAIL,
        "commits/%2E" + TAIL,
        "commits/%61" + TAIL,  # a, which is never encoded
        "commits/." + TAIL,
        "commits/.." + TAIL,
        "commits/a." + TAIL,
        "commits/%ff" + TAIL,  # no UTF-8
        "commits/%ed%a0%80" + TAIL,  # half a surrogate
        "commits/\udcff" + TAIL,  # a file name of odd bytes
        "commits/\u00e9" + TAIL,
        "commits/" + "a" * 201 + TAIL,
        "commits/a/1-" + "0" * 32,
        "commits/a" + TAIL[:-1],
        "commits/a" + TAIL + "0",
        "commits/a" + TAIL + "\n",
        "commits/a" + TAIL[:-1] + "A",
        "commits/a/" + "\u0661" * 16 + "-" + "0" * 32,
        "x/commits/a" + TAIL,
        "marks/a" + TAIL,
    ],
)
def test_other_keys_are_no_commits(key):
    assert parse_commit_key(key) is None


# --- records ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(commits())
def test_a_commit_comes_back(commit):
    assert Commit.decode(commit.encode()) == commit


@settings(deadline=None, max_examples=50)
@given(commits())
def test_of_an_aborted_commit_only_its_names_come_back(commit):
    aborted = commit._replace(state=State.ABORTED)
    assert Commit.decode(aborted.encode()) == Commit(State.ABORTED, commit.store, commit.key)


def test_a_commit_has_the_specified_fields():
    assert body() == {
        "state": "C",
        "store": STORE,
        "series": "a series",
        "sequence": 3,
        "transaction": b"some transaction",
        "created_at": 10**18,
        "step": 1000,
        "metrics": {"loss": 0.5},
        "tags": ("best",),
        "message": "a message",
        "stats": {
            "files": 1,
            "entries": 2,
            "logical_size": 3,
            "bytes_new": 4,
            "bytes_reused": 5,
            "chunks": 6,
            "chunks_new": 7,
            "bytes_written": 8,
            "objects_written": 9,
            "seconds": 1.5,
        },
        "manifest_digest": b"d" * 32,
        "manifest_size": 99,
        "inline": {"manifest": b"manifest", "pack": b"pack"},
    }


def test_unknown_fields_are_ignored():
    assert decode(tomorrow=1, stats={**COMMIT.stats._asdict(), "tomorrow": 1}) == COMMIT


def test_metrics_may_be_whole_and_need_not_be_finite():
    metrics = decode(metrics={"a": 2**64 - 1, "b": -7, "c": math.inf, "d": math.nan}).metrics
    assert (metrics["a"], metrics["b"], metrics["c"]) == (2.0**64, -7.0, math.inf)
    assert math.isnan(metrics["d"])
    assert all(type(value) is float for value in metrics.values())


def test_as_many_metrics_and_tags_as_are_allowed_come_back():
    commit = COMMIT._replace(
        metrics={f"metric {number}": 0.5 for number in range(4096)},
        tags=tuple(f"tag {number}" for number in range(4096)),
        message="m" * MAX_MESSAGE_SIZE,
    )
    assert Commit.decode(commit.encode()) == commit


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "B"}, "a commit in the unknown state 'B'"),
        ({"state": ""}, "a commit in the unknown state ''"),
        ({"state": b"C"}, "field 'state' is not a text"),
        ({"store": bytes(15)}, "field 'store' is not a byte string of the right size"),
        ({"series": None}, "field 'series' is not a text"),
        ({"sequence": -1}, "field 'sequence' is not an integer"),
        ({"transaction": bytes(17)}, "field 'transaction' is not a byte string of the right size"),
        ({"created_at": None}, "field 'created_at' is not an integer"),
        ({"created_at": 2**63}, "field 'created_at' is not an integer"),
        ({"step": 1.0}, "field 'step' is not an integer"),
        ({"step": True}, "field 'step' is not an integer"),
        ({"metrics": None}, "field 'metrics' is not a map"),
        ({"metrics": {7: 1.0}}, "metrics that are not named numbers"),
        ({"metrics": {b"a": 1.0}}, "metrics that are not named numbers"),
        ({"metrics": {"a": True}}, "metrics that are not named numbers"),
        ({"metrics": {"a": "1"}}, "metrics that are not named numbers"),
        ({"tags": "best"}, "field 'tags' is not an array"),
        ({"tags": [b"best"]}, "field 'tags' holds something other than texts"),
        ({"message": "m" * (MAX_MESSAGE_SIZE + 1)}, "field 'message' is not a text of at most"),
        ({"stats": None}, "where a map belongs"),
        ({"stats": {}}, "field 'files' is not an integer"),
        ({"stats": {**SaveStats()._asdict(), "chunks": -1}}, "field 'chunks' is not an integer"),
        ({"stats": {**SaveStats()._asdict(), "seconds": None}}, "field 'seconds' is not a number"),
        ({"stats": {**SaveStats()._asdict(), "seconds": math.inf}}, "an endless save"),
        ({"stats": {**SaveStats()._asdict(), "seconds": math.nan}}, "an endless save"),
        ({"manifest_digest": bytes(31)}, "field 'manifest_digest' is not a byte string of the right size"),
        ({"manifest_size": -1}, "field 'manifest_size' is not an integer"),
        ({"inline": []}, "where a map belongs"),
        ({"inline": {}}, "field 'manifest' is not a byte string"),
        ({"inline": {"manifest": b"", "pack": None}}, "field 'pack' is not a byte string"),
    ],
)
def test_an_impossible_commit_is_damage(changes, reason):
    with pytest.raises(DamagedObject, match=reason):
        decode(**changes)


def test_a_commit_over_its_limit_is_neither_written_nor_read():
    with pytest.raises(InvalidArgument, match="save less"):
        COMMIT._replace(inline=Inline(bytes(MAX_COMMIT_SIZE), b"")).encode()
    with pytest.raises(DamagedObject, match=f"at most {MAX_COMMIT_SIZE} are allowed"):
        decode(tomorrow=bytes(MAX_COMMIT_SIZE))


def test_another_kind_of_object_is_no_commit():
    with pytest.raises(DamagedObject, match="of kind b'M'"):
        Commit.decode(encode_record(Kind.MANIFEST, body()))
