"""Forgetting and collecting: what goes, what stays, and what happens beside it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cas_checkpoint import packing
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import Commit, CommitKey, State, manifest_key, pack_key
from cas_checkpoint.errors import (
    DamagedObject,
    DamagedStore,
    InvalidArgument,
    SaveAborted,
    SnapshotNotFound,
    UnsupportedStore,
)
from cas_checkpoint.ids import PackId, StoreId, TransactionId
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.moves import closure
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import (
    abort,
    commit,
    list_commits,
    list_marks,
    list_moves,
    list_packs,
    put_move,
    read_commit,
    read_moves,
)

KIB = 2**10
DAY = 86_400.0


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False)


@pytest.fixture
def backend(store):
    return store._backend


def noise(size):
    return os.urandom(size)


def packs_of(snapshot):
    return {ref.pack for ref in snapshot.reader().manifest().packs}


def keys(backend, prefix=""):
    return {info.key for info in backend.list(prefix)}


def size(backend):
    return sum(info.size for info in backend.list(""))


def unreachable(backend, store):
    """Return packs, manifests and moves that no snapshot needs."""
    snapshots = store.snapshots()
    moves = read_moves(backend, list_moves(backend))
    needed = closure((pack for snapshot in snapshots for pack in packs_of(snapshot)), moves)
    named = {manifest_key(snapshot.reader().key.transaction) for snapshot in snapshots}
    loose = {str(key) for key in list_moves(backend) if key.pack not in needed}
    return {pack_key(pack) for pack in list_packs(backend) - needed} | (keys(backend, "manifests/") - named) | loose


def put_mark(backend, number, *packs):
    assert backend.put_if_absent(mark_key(number), Mark(TransactionId(b"g" * 16), frozenset(packs)).encode())


@dataclass
class Listener(Monitor):
    notices: list = field(default_factory=list)

    def warning(self, notice):
        self.notices.append(notice)


# --- forgetting ---------------------------------------------------------------------------------


def test_a_forgotten_snapshot_is_gone_and_the_others_are_not(store):
    first, second = store.save(noise(300 * KIB)), store.save(noise(300 * KIB))
    assert store.forget(first) == [first]
    assert store.snapshots() == [second]
    assert keys(store._backend, "manifests/") == {f"manifests/{second.id}"}
    with pytest.raises(SnapshotNotFound):
        store.snapshot(first.id)
    second.read_bytes("_dst_cp")


def test_several_are_forgotten_at_once_or_none(store):
    saved = [store.save(b"x%d" % number) for number in range(3)]
    with pytest.raises(SnapshotNotFound):
        store.forget([saved[0].id, "default@9"])
    assert len(store.snapshots()) == 3
    assert store.forget(["default@1", saved[0].id, saved[1]]) == saved[:2]
    assert store.snapshots() == saved[2:]


def test_the_older_ones_of_a_series_are_forgotten(store):
    saved = [store.save(b"x%d" % number) for number in range(5)]
    other = store.save(b"other", series="other")
    assert set(store.forget_older(2)) == set(saved[:3])
    assert set(store.snapshots()) == {*saved[3:], other}
    with pytest.raises(InvalidArgument):
        store.forget_older(0)


def test_aborted_transactions_do_not_count_as_snapshots(store):
    saved = [store.save(b"x%d" % number) for number in range(3)]
    key = CommitKey("default", 9, TransactionId(b"t" * 16))
    abort(store._backend, key, StoreId(bytes.fromhex(store.id)))
    assert store.forget_older(2) == saved[:1]
    assert str(key) in keys(store._backend)


def test_a_commit_that_cannot_be_read_stays(store, backend):
    saved = [store.save(b"x%d" % number) for number in range(3)]
    key = str(saved[0].reader().key)
    backend.put(key, [backend.get(key, max_size=10_000)[:-1]])
    assert store.forget_older(1) == saved[1:2]
    assert key in keys(backend)


def test_a_committed_record_as_small_as_an_aborted_one_counts(store, backend, monkeypatch):
    saved = [store.save(b"x%d" % number) for number in range(3)]
    real = backend.list

    def small(prefix):
        for info in real(prefix):
            size = len(Commit(State.ABORTED, StoreId(bytes.fromhex(store.id)), saved[0].reader().key).encode())
            yield info._replace(size=size)

    monkeypatch.setattr(backend, "list", small)
    assert store.forget_older(1) == saved[1::-1]


def spoil(store, key):
    """Alter a byte of an object in more than one bit."""
    path = Path(store.url, str(key))
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))


def test_a_snapshot_whose_commit_is_damaged_is_forgotten_by_its_full_id(store):
    lost, kept, other = (store.save(noise(300 * KIB)) for _ in range(3))
    key = lost.reader().key
    spoil(store, key)
    for ref in ("default@1", lost.id[:12]):
        with pytest.raises(DamagedObject, match=f"to forget it, name its full id, {lost.id}"):
            store.forget([other, ref])
    assert len(list(list_commits(store._backend))) == 3
    forgotten = store.forget([other, lost.id])
    assert [(each.id, each.series, each.sequence) for each in forgotten] == [
        (other.id, "default", 3),
        (lost.id, "default", 1),
    ]
    assert list(store.snapshots()) == [kept]
    with pytest.raises(SnapshotNotFound):
        store.snapshot(lost.id)
    assert store.collect().packs_deleted == 2
    assert store.verify().ok
    with pytest.raises(SaveAborted):  # whoever comes to commit it yet
        commit(store._backend, Commit(State.COMMITTED, store._header.store, key, manifest_size=1))


def test_a_damaged_record_that_a_save_was_given_up_stays_one(store):
    snapshot = store.save(noise(300 * KIB))
    key = snapshot.reader().key
    store._backend.delete(str(key))
    assert abort(store._backend, key, store._header.store)
    spoil(store, key)
    with pytest.raises(DamagedObject, match=snapshot.id):
        store.collect()
    store.forget(snapshot.id)
    assert read_commit(store._backend, key, store._header.store).state is State.ABORTED
    assert store.collect().packs_deleted == 1


def test_a_save_that_keeps_forgets_the_older_ones(store):
    for number in range(5):
        last = store.save(b"x%d" % number, keep=2)
    assert [snapshot.sequence for snapshot in store.snapshots()] == [5, 4]
    assert last.sequence == 5
    with pytest.raises(InvalidArgument):
        store.save(b"x", keep=0)


# --- collecting ---------------------------------------------------------------------------------


def test_there_is_nothing_to_collect_in_a_new_store(store):
    before = keys(store._backend)
    assert store.collect() == (0,) * 7 + (False,)
    assert keys(store._backend) == before


def test_what_only_a_forgotten_snapshot_needed_is_deleted(store, backend):
    kept_data, lost_data = noise(300 * KIB), noise(400 * KIB)
    first, kept = store.save(lost_data), store.save(kept_data)
    before = size(backend)
    store.forget(first)
    forgotten = size(backend)

    report = store.collect()

    assert report.packs_deleted == 1
    assert list_packs(backend) == packs_of(kept)
    assert kept.read_bytes("_dst_cp") == kept_data
    assert report.bytes_freed == pytest.approx(forgotten - size(backend), abs=KIB)  # but for marks
    assert before - size(backend) > 400 * KIB
    assert unreachable(backend, store) == set()
    assert store.verify().ok


def test_a_dry_run_says_what_would_be_freed_and_does_nothing(store, backend):
    store.forget([store.save(noise(300 * KIB)), store.save(noise(300 * KIB))])
    store.save(noise(300 * KIB))
    before = keys(backend)
    planned = store.collect(dry_run=True)
    assert planned.dry_run
    assert keys(backend) == before
    done = store.collect()
    assert not done.dry_run
    assert (planned.packs_deleted, planned.packs_repacked) == (done.packs_deleted, done.packs_repacked) == (2, 0)
    assert abs(planned.bytes_freed - done.bytes_freed) < KIB


def test_what_a_dead_save_has_left_is_collected(store, backend):
    snapshot = store.save(noise(300 * KIB))
    data = noise(300 * KIB)
    dead = store.save(data)
    backend.delete(str(dead.reader().key))  # as if it had stopped before its commit

    report = store.collect()

    assert report.transactions_aborted == 1
    assert unreachable(backend, store) == set()
    assert list_packs(backend) == packs_of(snapshot)
    assert str(dead.reader().key) in keys(backend)  # the outcome stays
    assert store.save(data).read_bytes("_dst_cp") == data


def test_a_grace_period_protects_saves_under_way(store, backend):
    dead = store.save(noise(300 * KIB))
    backend.delete(str(dead.reader().key))
    loose = store.save(noise(300 * KIB))
    store.forget(loose)
    report = store.collect(grace=600)
    assert (report.packs_deleted, report.transactions_aborted) == (0, 0)
    assert report.bytes_waiting > 300 * KIB
    old = time.time() - 1200
    for key in keys(backend, "packs/") | keys(backend, "manifests/"):
        os.utime(os.path.join(backend.root, key), (old, old))
    assert store.collect(grace=600).packs_deleted == 2


def test_one_young_pack_protects_all_of_its_save(store, backend, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 2**20)
    store.forget(store.save(noise(5 * 2**20)))
    old = time.time() - 1200
    oldest, *_ = sorted(keys(backend, "packs/"))
    os.utime(os.path.join(backend.root, oldest), (old, old))
    assert store.collect(grace=600).packs_deleted == 0


def test_without_exclusive_creation_a_day_of_grace_is_demanded(store):
    store._header = store._header._replace(put_if_absent=False)
    with pytest.raises(InvalidArgument, match="at least a day"):
        store.collect(grace=3600)
    store.collect(grace=DAY)


def test_a_store_that_demands_more_is_refused(store):
    store._header = store._header._replace(features=(("collect", ("something new",)),))
    with pytest.raises(UnsupportedStore, match="something new"):
        store.collect()


def test_a_store_that_older_programs_may_write_is_refused(store):
    store._header = store._header._replace(features=(("read", ()), ("write", ()), ("collect", ())))
    with pytest.raises(UnsupportedStore, match="older versions"):
        store.collect()


@pytest.mark.parametrize("arguments", [{"grace": -1}, {"grace": float("nan")}, {"repack": 0}, {"repack": 1.1}])
def test_impossible_arguments_are_refused(store, arguments):
    with pytest.raises(InvalidArgument):
        store.collect(**arguments)


def test_a_damaged_manifest_stops_a_collection_before_anything_is_deleted(store, backend):
    store.forget(store.save(noise(300 * KIB)))
    snapshot = store.save(noise(300 * KIB))
    before = keys(backend)
    data = bytearray(backend.get(f"manifests/{snapshot.id}", max_size=2**20))
    data[40] ^= 1
    backend.put(f"manifests/{snapshot.id}", [data])
    with pytest.raises(DamagedStore, match="nobody knows what it needs"):
        store.collect()
    assert keys(backend) == before


def test_the_index_names_only_what_is_there_and_savers_need_not_ask(store, backend):
    first, second = store.save(noise(300 * KIB)), store.save(noise(300 * KIB))
    store.forget(first)
    store.collect()
    again = Store.open(store.url, durable=False)
    known = again._learn(None, frozenset())
    assert {known.home(pack)[1] for pack in packs_of(second)} == {1}
    assert set(known.index.packs) == packs_of(second)


# --- interrupted collections ---------------------------------------------------------------------


def test_the_mark_of_a_dead_collector_is_closed_when_its_packs_are_gone(store, backend):
    lost = store.save(noise(300 * KIB))
    kept = store.save(noise(300 * KIB))
    put_mark(backend, 1, *packs_of(lost))
    store.forget(lost)

    store.collect()

    assert list_marks(backend) == ((), (1, 2))
    assert list_packs(backend) == packs_of(kept)


def test_a_pack_that_a_dead_collector_condemned_although_it_is_needed_is_replaced(store, backend):
    data = noise(300 * KIB)
    snapshot = store.save(data)
    put_mark(backend, 1, *packs_of(snapshot))

    report = store.collect()

    assert report.packs_repacked == 1
    assert not packs_of(snapshot) & list_packs(backend)
    assert list_marks(backend).open == ()
    assert snapshot.read_bytes("_dst_cp") == data
    assert store.verify().ok
    assert unreachable(backend, store) == set()


def test_a_move_that_a_dead_collector_began_is_finished(store, backend):
    data = noise(300 * KIB)
    snapshot, other = store.save(data), store.save(noise(300 * KIB))
    (source,), targets = packs_of(snapshot), packs_of(other)
    put_move(backend, source, targets)  # which do not hold its chunks

    report = store.collect()

    assert report.packs_repacked == 1
    assert source not in list_packs(backend)
    assert snapshot.read_bytes("_dst_cp") == data
    store.forget(other)
    assert store.collect().packs_deleted == 1  # nothing of it is needed, although it is the target of a move
    assert not targets & list_packs(backend)
    assert snapshot.read_bytes("_dst_cp") == data


def test_old_marks_are_removed_but_never_the_latest(store, backend):
    for _ in range(70):
        store.forget(store.save(noise(200 * KIB)))
        store.collect()
    marks = list_marks(backend)
    assert marks.closed == tuple(range(7, 71))
    assert marks.open == ()


# --- repacking -----------------------------------------------------------------------------------


@pytest.fixture
def partly(store):
    """A snapshot that needs a part of a pack, the rest of which nobody needs any more."""
    files = {f"f{number}": noise(300 * KIB) for number in range(10)}
    first = store.save(files)
    kept = store.save({name: files[name] for name in ("f1", "f7")})
    store.forget(first)
    return kept, {name: files[name] for name in ("f1", "f7")}


def check(snapshot, files):
    for name, data in files.items():
        assert snapshot.read_bytes(name) == data


def test_a_partly_dead_pack_is_replaced_by_what_is_needed_of_it(store, backend, partly):
    kept, files = partly
    before = size(backend)

    report = store.collect()

    assert (report.packs_deleted, report.packs_repacked) == (1, 1)
    assert before - size(backend) > 2000 * KIB
    assert report.bytes_freed == pytest.approx(before - size(backend), abs=KIB)
    check(kept, files)
    assert store.verify().ok
    assert unreachable(backend, store) == set()
    assert store.collect().packs_deleted == 0


def test_a_pack_with_little_dead_in_it_is_left_alone(store, backend, partly):
    assert store.collect(repack=0.9).packs_repacked == 0
    assert store.collect(repack=None).packs_repacked == 0
    assert store.collect(repack=0.5).packs_repacked == 1


def test_what_was_moved_is_found_by_the_next_save(store, partly, tmp_path):
    _, files = partly
    store.collect()
    again = Store.open(store.url, durable=False).save(files)
    assert again.stats.bytes_new == 0
    check(again, files)


def test_an_unchanged_source_whose_packs_were_moved_is_saved_without_naming_them(store, backend, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        (source / f"f{number}").write_bytes(noise(300 * KIB))
    first = store.save(source)
    for number in range(2, 10):
        (source / f"f{number}").unlink()
    second = store.save(source)
    store.forget(first)
    store.collect()
    third = store.save(source)
    assert packs_of(third) <= list_packs(backend)
    assert third.stats.bytes_new == 0
    store.forget(second)
    store.collect()
    check(third, {f"f{number}": (source / f"f{number}").read_bytes() for number in range(2)})
    assert unreachable(backend, store) == set()


def test_what_was_moved_can_be_moved_again(store, backend, partly):
    kept, files = partly
    one = store.save({"f1": files["f1"]})
    store.collect()
    check(kept, files)
    store.forget(kept)
    store.collect()
    check(one, {"f1": files["f1"]})
    assert len(list_moves(backend)) == 2
    assert size(backend) < 350 * KIB
    store.forget(one)
    store.collect()
    assert list_moves(backend) == []
    assert list_packs(backend) == frozenset()


def test_a_pack_whose_footer_is_damaged_is_not_repacked(store, backend, partly):
    pack = max(list_packs(backend), key=lambda pack: backend.size(pack_key(pack)))
    backend.put(pack_key(pack), [backend.get(pack_key(pack), max_size=2**26)[:-1]])
    listener = Listener()
    assert store.collect(monitor=listener).packs_deleted == 0
    assert any("left as it is" in str(notice) for notice in listener.notices)


def test_a_damaged_pack_is_not_repacked(store, backend, partly):
    pack = max(list_packs(backend), key=lambda pack: backend.size(pack_key(pack)))
    data = bytearray(backend.get(pack_key(pack), max_size=2**26))
    for offset in range(40, len(data) - 2000, 1000):
        data[offset] ^= 1
    backend.put(pack_key(pack), [data])
    listener = Listener()
    report = store.collect(monitor=listener)
    assert report.packs_deleted == 0
    assert pack in list_packs(backend)
    assert any("repair" in str(notice) for notice in listener.notices)


def test_a_manifest_that_cannot_be_followed_keeps_its_packs_as_they_are(store, backend, partly):
    """A save that did not finish may name packs whose chunks are not there."""
    kept, files = partly
    other = store.save({"f1": files["f1"], "new": noise(300 * KIB)})
    (new,) = packs_of(other) - packs_of(kept)
    backend.delete(str(other.reader().key))
    backend.delete(pack_key(new))
    before = list_packs(backend)
    store.collect(grace=3600)
    assert list_packs(backend) == before


# --- beside others -------------------------------------------------------------------------------


class Beside(LocalBackend):
    """Does something once, just before an operation on a certain kind of object."""

    def __init__(self, root, before, action):
        super().__init__(root, durable=False)
        self.before, self.action = before, action

    def _meet(self, verb, key):
        if self.action and (verb, key.partition("/")[0]) == self.before:
            action, self.action = self.action, None
            action()

    def put(self, key, parts):
        self._meet("put", key)
        super().put(key, parts)

    def put_if_absent(self, key, data):
        self._meet("put", key)
        return super().put_if_absent(key, data)

    def delete(self, key):
        self._meet("delete", key)
        super().delete(key)


def beside(store, before, action):
    changed = Store.open(store.url, durable=False)
    changed._backend = Beside(store.url, before, action)
    return changed


@pytest.mark.parametrize("moment", [("put", "marks"), ("put", "packs"), ("put", "moves"), ("delete", "packs")])
def test_a_save_at_any_moment_of_a_collection_is_whole(store, backend, partly, moment):
    kept, files = partly
    data = noise(300 * KIB)
    saved = []

    def save():
        saved.append(Store.open(store.url, durable=False).save(files | {"f9": data}))

    beside(store, moment, save).collect()

    assert len(saved) == 1
    check(saved[0], files | {"f9": data})
    check(kept, files)
    assert store.verify().ok
    store.collect()
    assert unreachable(backend, store) == set()


@pytest.mark.parametrize("moment", [("put", "packs"), ("put", "manifests"), ("put", "commits")])
def test_a_collection_at_any_moment_of_a_save_does_not_harm_it(store, backend, partly, moment):
    kept, files = partly
    data = noise(300 * KIB)
    saver = beside(store, moment, lambda: Store.open(store.url, durable=False).collect())
    saved = saver.save(files | {"new": data})
    check(saved, files | {"new": data})
    check(kept, files)
    assert store.verify().ok
    store.collect()
    assert unreachable(backend, store) == set()


@pytest.mark.parametrize("moment", [("put", "marks"), ("put", "packs"), ("put", "moves"), ("delete", "packs")])
def test_two_collections_at_once_do_no_harm(store, backend, partly, moment):
    kept, files = partly
    beside(store, moment, lambda: Store.open(store.url, durable=False).collect()).collect()
    check(kept, files)
    assert store.verify().ok
    store.collect()
    assert unreachable(backend, store) == set()
    assert list_marks(backend).open == ()


def test_a_reader_goes_on_beside_a_collection(store, partly):
    kept, files = partly
    reader = Store.open(store.url, durable=False).snapshot(kept.id)
    with reader.open("f7") as file:
        first = file.read(1000)
        store.collect()
        assert first + file.read() == files["f7"]


# --- in the background ----------------------------------------------------------------------------


def test_what_is_superseded_is_collected_in_the_background(store, backend):
    for _ in range(4):
        last = store.save(noise(300 * KIB), keep=1)
    old = time.time() - DAY
    for key in keys(backend, "packs/"):
        os.utime(os.path.join(backend.root, key), (old, old))
    again = Store.open(store.url, durable=False)
    last = again.save(noise(300 * KIB), keep=1)
    again.settle()
    assert packs_of(last) <= list_packs(backend)
    assert len(list_packs(backend)) <= 2


def test_a_failure_in_the_background_is_a_warning(store, backend, monkeypatch):
    store.save(noise(300 * KIB))
    backend.put("manifests/" + "0" * 32, [b"no manifest"])
    listener = Listener()
    store.save(noise(300 * KIB), keep=1, monitor=listener)
    store.settle()
    assert any("could not be collected" in str(notice) for notice in listener.notices)


def test_ids_of_packs_tell_which_save_wrote_them(store, backend, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 2**20)
    snapshot = store.save(noise(3 * 2**20))
    packs = list_packs(backend)
    assert len(packs) > 1
    assert {pack[:8] for pack in packs} == {bytes.fromhex(snapshot.id)[:8]}
    assert all(isinstance(pack, bytes) for pack in map(PackId, packs))
