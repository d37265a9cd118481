"""One snapshot that several processes save together."""

from __future__ import annotations

import os
import random

import pytest

from cas_checkpoint.commits import MAX_PARTS, SaveStats, State, parse_part_key, part_key
from cas_checkpoint.errors import (
    DamagedObject,
    InvalidArgument,
    InvalidArgumentType,
    SaveAborted,
    SourceError,
    StorageError,
    UnsupportedStore,
)
from cas_checkpoint.headers import FEATURES, OPERATIONS, Header
from cas_checkpoint.ids import StoreId, TransactionId
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.parts import PartPlan, PartReceipt
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import list_commits, list_packs, publish_mark, read_commit, read_header

KIB = 2**10


def noise(seed, size=300 * KIB):
    return random.Random(seed).randbytes(size)


RANKS = [{"model/0": noise(0), "shared/note0": b"zero"}, {"model/1": noise(1), "empty": b""}]


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=1)


def keys(store, kind):
    return sorted(store._backend.names(f"{kind}/"))


def save_parts(store, ranks=RANKS, **options):
    plan = store.begin_parts(parts=len(ranks), **options)
    return plan, [store.save_part(files, plan, part=part) for part, files in enumerate(ranks)]


def commit(store, ranks=RANKS, **options):
    return store.commit_parts(*save_parts(store, ranks, **options))


def content(snapshot):
    return {entry.name: snapshot.read_bytes(entry.name) for entry in snapshot.entries() if entry.type.value == "f"}


# --- the snapshot ---------------------------------------------------------------------------------


def test_the_parts_become_one_ordinary_snapshot(store):
    snapshot = commit(store, series="run", step=7, metrics={"loss": 0.5}, tags=["big"], message="all ranks")
    assert content(snapshot) == RANKS[0] | RANKS[1]
    assert (snapshot.series, snapshot.sequence, snapshot.step) == ("run", 1, 7)
    assert (dict(snapshot.metrics), snapshot.tags, snapshot.message) == ({"loss": 0.5}, ("big",), "all ranks")
    assert store.snapshot("run@latest") == snapshot
    assert keys(store, "parts") == []
    assert len(keys(store, "manifests")) == 1
    report = store.verify()
    assert report.problems == ()
    assert report.garbage_objects == 0


def test_the_manifest_names_all_packs_and_the_lowest_base(store):
    publish_mark(store._backend, [])
    plan, receipts = save_parts(store)
    manifest = store.commit_parts(plan, receipts).reader().manifest()
    assert {ref.pack for ref in manifest.packs} == list_packs(store._backend)
    assert len(manifest.packs) == 3
    assert manifest.base == 0
    assert {ref.home for ref in manifest.packs} == {
        TransactionId(bytes.fromhex(key.removeprefix("index/"))) for key in keys(store, "index")
    }


def test_plans_and_receipts_travel_as_bytes(store):
    plan, receipts = save_parts(store, step=3, metrics={"a": 1.5}, tags=["x"], message="m")
    assert PartPlan.from_bytes(plan.to_bytes()) == plan
    assert [PartReceipt.from_bytes(receipt.to_bytes()) for receipt in receipts] == receipts
    plain = store.begin_parts(parts=1)
    assert PartPlan.from_bytes(plain.to_bytes()) == plain
    with pytest.raises(DamagedObject):
        PartPlan.from_bytes(receipts[0].to_bytes())
    with pytest.raises(DamagedObject):
        PartReceipt.from_bytes(receipts[0].to_bytes()[:-1])


def test_a_part_stores_what_is_new_alone(store):
    store.save(RANKS[0])
    plan = store.begin_parts(parts=2)
    first = store.save_part(RANKS[0], plan, part=0)
    second = store.save_part(RANKS[1], plan, part=1)
    assert first.stats.bytes_new == 0
    assert second.stats.bytes_new == 300 * KIB
    snapshot = store.commit_parts(plan, [second, first])
    assert snapshot.stats.bytes_new == 300 * KIB
    assert snapshot.stats.logical_size == 600 * KIB + 4
    assert snapshot.stats.files == 4
    assert snapshot.stats.entries == len(list(snapshot.entries()))
    assert snapshot.sequence == 2


def test_directories_may_be_in_several_parts(store, tmp_path):
    for rank in (0, 1):
        top = tmp_path / f"rank{rank}"
        (top / "shared").mkdir(parents=True)
        (top / "shared").chmod(0o700 + rank)
        (top / "shared" / f"file{rank}").write_bytes(b"%d" % rank)
        os.link(top / "shared" / f"file{rank}", top / f"link{rank}")
    snapshot = commit(store, [tmp_path / "rank0", tmp_path / "rank1"])
    entries = {entry.name: entry for entry in snapshot.entries()}
    assert sorted(entries) == ["", "link0", "link1", "shared", "shared/file0", "shared/file1"]
    assert entries["shared"].mode == 0o700
    store.restore(snapshot, tmp_path / "out")
    assert (tmp_path / "out/link1").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("ranks", "path", "parts"),
    [
        ([{"a": b"1"}, {"b": b""}, {"a": b"1"}], "a", "0 and 2"),
        ([{"a/b": b"1"}, {"a": b""}], "a", "0 and 1"),
        ([{"a": b"1"}, {"a/b": b""}], "a", "0 and 1"),
        ([{"a": b"1"}, {"a-": b"", "a/b/c": b""}], "a", "0 and 1"),
    ],
)
def test_a_file_in_two_parts_is_an_error_that_names_it(store, ranks, path, parts):
    plan, receipts = save_parts(store, ranks)
    packs = list_packs(store._backend)
    with pytest.raises(InvalidArgument, match=f"{path}.*: is in the parts {parts}"):
        store.commit_parts(plan, receipts)
    assert list(list_commits(store._backend)) == []
    assert keys(store, "manifests") == []
    assert list_packs(store._backend) == packs


def test_many_entries_need_a_list_of_chunks(store):
    ranks = [{f"f{rank}/{number}": b"" for number in range(9000)} for rank in (0, 1)]
    snapshot = commit(store, ranks)
    assert sum(entry.type.value == "f" for entry in snapshot.entries()) == 18_000
    assert store.verify().problems == ()


def test_no_parts_without_files(store):
    assert content(commit(store, [{}, {}])) == {}


# --- what the caller may do wrong -----------------------------------------------------------------


def test_exactly_one_receipt_of_each_part_is_needed(store):
    plan, receipts = save_parts(store)
    for some in ([], receipts[:1], [*receipts, receipts[0]], [receipts[0]] * 2):
        with pytest.raises(InvalidArgument, match="one receipt of each of 2 parts"):
            store.commit_parts(plan, some)
    other, _ = save_parts(store)
    with pytest.raises(InvalidArgument, match="another plan"):
        store.commit_parts(other, receipts)
    assert content(store.commit_parts(plan, receipts)) == RANKS[0] | RANKS[1]


def test_wrong_arguments_are_told(store, tmp_path):
    plan = store.begin_parts(parts=2)
    with pytest.raises(InvalidArgument, match="part must be from 0 to 1"):
        store.save_part(b"", plan, part=2)
    with pytest.raises(InvalidArgumentType, match="from_bytes"):
        store.save_part(b"", plan.to_bytes(), part=0)
    with pytest.raises(InvalidArgumentType, match="from_bytes"):
        store.commit_parts(plan, [b"", b""])
    with pytest.raises(InvalidArgument, match="parts must be from 1"):
        store.begin_parts(parts=0)
    with pytest.raises(InvalidArgument, match="parts must be from 1"):
        store.begin_parts(parts=MAX_PARTS + 1)
    with pytest.raises(InvalidArgument, match="on_error"):
        store.save_part(b"", plan, part=0, on_error="never")
    other = Store.open(tmp_path / "other", create=True, durable=False)
    with pytest.raises(InvalidArgument, match="the plan is for the store"):
        other.save_part(b"", plan, part=0)
    with pytest.raises(InvalidArgument, match="move it out"):
        store.save_part(tmp_path, plan, part=0)


def test_a_store_of_an_older_version_takes_no_parts(tmp_path):
    store = Store.open(tmp_path / "store", create=True, durable=False)
    features = tuple((operation, FEATURES) for operation in OPERATIONS)
    header = Header(StoreId(bytes.fromhex(store.id)), features=features)
    store._backend.put("cas-checkpoint", [header.encode()])
    older = Store.open(tmp_path / "store")
    with pytest.raises(UnsupportedStore, match="made by an older version"):
        older.begin_parts(parts=1)
    assert older.save(b"as ever").sequence == 1


def test_new_stores_demand_of_collectors_to_know_parts(store):
    features = dict(read_header(store._backend).features)
    assert "parts" in features["collect"]
    assert "parts" not in features["read"] + features["write"]


def test_a_part_that_cannot_be_saved_leaves_nothing(store, tmp_path):
    plan = store.begin_parts(parts=1)
    with pytest.raises(SourceError):
        store.save_part(tmp_path / "missing", plan, part=0)
    assert keys(store, "parts") == []
    assert keys(store, "packs") == []


# --- beside collections ---------------------------------------------------------------------------


def test_a_part_counts_before_there_is_a_commit(store):
    plan, receipts = save_parts(store)
    report = store.collect(grace=3600)
    assert report.packs_deleted == report.transactions_aborted == 0
    assert content(store.commit_parts(plan, receipts)) == RANKS[0] | RANKS[1]


def test_parts_that_are_given_up_are_told_and_collected(store):
    plan, receipts = save_parts(store)
    report = store.collect()
    assert report.transactions_aborted == 1
    assert keys(store, "packs") == keys(store, "parts") == []
    with pytest.raises(SaveAborted, match="given up by a collector"):
        store.commit_parts(plan, receipts)
    assert read_commit(store._backend, plan.key, plan.store).state is State.ABORTED
    assert store.snapshots() == []


def test_parts_that_are_given_up_between_reading_and_commit_are_told(store):
    plan, receipts = save_parts(store)
    done = []

    class Collecting(Monitor):
        def wrote(self, size):
            if not done:
                done.append(store.collect())

    with pytest.raises(SaveAborted, match="given up by a collector"):
        store.commit_parts(plan, receipts, monitor=Collecting())
    store.collect()
    assert keys(store, "packs") == keys(store, "parts") == keys(store, "manifests") == []


def test_the_youngest_part_keeps_the_others_alive(store):
    plan, (first, _) = save_parts(store)
    for kind in ("parts", "packs"):
        for key in keys(store, kind):
            os.utime(store._backend._path(key) if hasattr(store._backend, "_path") else f"{store.url}/{key}", (1, 1))
    again = store.save_part(RANKS[1] | {"more": noise(9)}, plan, part=1)
    assert store.collect(grace=3600).transactions_aborted == 0
    assert content(store.commit_parts(plan, [first, again]))["more"] == noise(9)
    assert store.collect().packs_deleted == 0


def test_a_part_saved_twice_leaves_garbage_that_is_collected(store):
    plan, (first, _) = save_parts(store)
    second = store.save_part({"other": noise(5)}, plan, part=1)
    assert len(keys(store, "parts")) == 3
    snapshot = store.commit_parts(plan, [first, second])
    assert set(content(snapshot)) == {*RANKS[0], "other"}
    assert len(keys(store, "parts")) == 1  # whose receipt nobody has
    store.collect()
    assert keys(store, "parts") == []
    assert store.verify().garbage_objects == 0


def test_what_was_repacked_between_the_parts_and_the_commit_is_read_through_moves(store):
    old = store.save({"keep": noise(3), "drop": noise(4, 900 * KIB)})
    plan = store.begin_parts(parts=2)
    receipts = [store.save_part({"keep": noise(3)}, plan, part=0), store.save_part(RANKS[1], plan, part=1)]
    store.forget(old)
    assert store.collect(repack=0.1, grace=3600).packs_repacked == 1
    snapshot = store.commit_parts(plan, receipts)
    assert content(snapshot) == {"keep": noise(3)} | RANKS[1]
    store.collect(repack=0.1)
    assert content(snapshot) == {"keep": noise(3)} | RANKS[1]
    assert store.verify().problems == ()


def test_a_rank_stores_again_what_is_condemned(store):
    first = store.save(RANKS[0])
    publish_mark(store._backend, [ref.pack for ref in first.reader().manifest().packs])
    store._knowledge = None
    snapshot = commit(store)
    assert content(snapshot) == RANKS[0] | RANKS[1]
    condemned = {ref.pack for ref in first.reader().manifest().packs}
    assert not condemned & {ref.pack for ref in snapshot.reader().manifest().packs}


def test_entries_are_written_again_if_their_pack_is_condemned(store, monkeypatch):
    plan, receipts = save_parts(store)
    before = list_packs(store._backend)
    numbers = []
    real = type(store._backend).put

    def put(self, key, parts):
        real(self, key, parts)
        if key.startswith("packs/") and not numbers:
            numbers.append(publish_mark(self, list_packs(self) - before))

    monkeypatch.setattr(type(store._backend), "put", put)
    snapshot = store.commit_parts(plan, receipts)
    assert len(list_packs(store._backend)) == len(before) + 2
    assert len({ref.pack for ref in snapshot.reader().manifest().packs}) == len(before) + 1
    assert keys(store, "parts") == []


def test_collectors_that_never_stop_are_told(store, monkeypatch):
    plan, receipts = save_parts(store)
    monkeypatch.setattr("cas_checkpoint.parts.condemned_packs", lambda *_: frozenset({b"x"}))
    with pytest.raises(SaveAborted, match="keep deleting"):
        store.commit_parts(plan, receipts)
    assert keys(store, "manifests") == []


# --- crashes and repetitions ----------------------------------------------------------------------


def test_a_commit_can_be_repeated(store):
    plan, receipts = save_parts(store)
    snapshot = store.commit_parts(plan, receipts)
    assert store.commit_parts(plan, receipts) == snapshot
    assert len(store.snapshots()) == 1


def test_a_commit_that_was_begun_is_not_begun_again(store):
    plan, receipts = save_parts(store)
    store._backend.put(f"manifests/{plan.key.transaction.hex()}", [b"of another process"])
    with pytest.raises(SaveAborted, match="begun before"):
        store.commit_parts(plan, receipts)


def test_leftovers_of_a_committer_that_died_go_with_the_next_collection(store, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.parts.PartCommitter._remove", lambda *_: None)
    snapshot = commit(store)
    assert len(keys(store, "parts")) == 3
    assert store.verify().garbage_objects == 3
    assert store.collect().transactions_aborted == 0
    assert keys(store, "parts") == []
    assert store.verify().garbage_objects == 0
    assert content(snapshot) == RANKS[0] | RANKS[1]


def test_what_cannot_be_removed_is_only_a_warning(store, monkeypatch):
    plan, receipts = save_parts(store)
    told = []

    class Listening(Monitor):
        def warning(self, notice):
            told.append(notice.message)

    def refuse(_self, key):
        raise StorageError(f"not {key}")

    monkeypatch.setattr(type(store._backend), "delete", refuse)
    snapshot = store.commit_parts(plan, receipts, monitor=Listening())
    assert content(snapshot) == RANKS[0] | RANKS[1]
    assert len(told) == 1
    assert "leftovers" in told[0]


def test_a_damaged_part_manifest_is_told(store):
    plan, receipts = save_parts(store)
    key = receipts[1].manifest_key
    data = bytearray(store._backend.get(key, max_size=2**20))
    data[40] ^= 1
    store._backend.put(key, [bytes(data)])
    with pytest.raises(DamagedObject, match="the receipt vouches"):
        store.commit_parts(plan, receipts)
    assert [problem.key for problem in store.verify().problems] == [key]
    with pytest.raises(DamagedObject, match="nobody knows what it needs"):
        store.collect()
    assert store.repair().corrected == (key,)
    assert content(store.commit_parts(plan, receipts)) == RANKS[0] | RANKS[1]


# --- keys -----------------------------------------------------------------------------------------


def test_keys_of_parts():
    transaction, name = TransactionId(b"t" * 16), TransactionId(b"n" * 16)
    key = part_key(transaction, 12, name)
    assert key == f"parts/{'74' * 16}-000012-{'6e' * 16}"
    assert parse_part_key(key) == (transaction, 12)
    for other in (key[:-1], key + "0", key.replace("parts", "packs"), key.upper(), f"parts/{'74' * 16}"):
        assert parse_part_key(other) is None


def test_a_receipt_with_impossible_numbers_is_damage():
    receipt = PartReceipt(TransactionId(b"t" * 16), MAX_PARTS, TransactionId(b"n" * 16), b"d" * 32, 1, SaveStats())
    with pytest.raises(DamagedObject, match="'part'"):
        PartReceipt.from_bytes(receipt.to_bytes())
