"""The protocol's steps, and a save beside collectors: marks are written by hand, as a collector writes them."""

from __future__ import annotations

import io
import os

import pytest

from cas_checkpoint import transactions
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import Commit, CommitKey, State, index_key, manifest_key, pack_key
from cas_checkpoint.errors import DamagedObject, InvalidArgument, SaveAborted, StorageError, UnsupportedStore
from cas_checkpoint.ids import PackId, StoreId, TransactionId
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.moves import MoveKey
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import (
    MarkTable,
    abort,
    commit,
    condemned_packs,
    forget,
    list_commits,
    list_marks,
    list_moves,
    next_sequence,
    publish_mark,
    put_move,
    read_commit,
    read_mark,
    read_moves,
    remove_marks,
)

COLLECTION = TransactionId(b"g" * 16)
BIG = os.urandom(300_000)  # more than a commit carries


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "store", durable=False)


@pytest.fixture
def store(backend):
    return Store.open(backend.root, create=True, durable=False)


def pack(number: int) -> PackId:
    return PackId(bytes([number]) * 16)


def put_mark(backend, number, *packs):
    assert backend.put_if_absent(mark_key(number), Mark(COLLECTION, frozenset(packs)).encode())


def close_mark(backend, number):
    assert backend.put_if_absent(mark_key(number, closed=True), Mark(COLLECTION, frozenset()).encode())


def packs_of(snapshot):
    return {ref.pack for ref in snapshot.reader().manifest().packs}


# --- the base -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opened", "closed", "base"),
    [((), (), 0), ((), (1, 2), 2), ((3,), (1, 2), 2), ((2,), (1, 3), 1), ((1, 4), (2, 3), 0)],
)
def test_the_base_is_before_the_lowest_open_mark_or_else_the_latest(backend, opened, closed, base):
    for number in (*opened, *closed):
        put_mark(backend, number)
    for number in closed:
        close_mark(backend, number)

    assert list_marks(backend) == MarkTable(opened, closed)
    assert list_marks(backend).base == base


def test_a_closing_object_without_its_mark_counts_as_closed(backend):
    close_mark(backend, 7)

    assert list_marks(backend) == MarkTable((), (7,))


# --- condemned packs ----------------------------------------------------------------------------


def test_only_open_marks_above_the_base_condemn(backend):
    put_mark(backend, 1, pack(1))
    put_mark(backend, 2, pack(2), pack(3))

    assert condemned_packs(backend, 1, [pack(1), pack(2), pack(4)]) == {pack(2)}
    assert condemned_packs(backend, 2, [pack(1), pack(2)]) == frozenset()


def test_after_a_closed_mark_packs_must_still_exist(backend):
    backend.put(pack_key(pack(1)), [b"x"])
    put_mark(backend, 1, pack(2))
    close_mark(backend, 1)

    assert condemned_packs(backend, 0, [pack(1), pack(2)]) == {pack(2)}
    assert condemned_packs(backend, 1, [pack(1), pack(2)]) == frozenset()


def test_after_marks_that_were_removed_packs_must_still_exist(backend):
    backend.put(pack_key(pack(1)), [b"x"])
    put_mark(backend, 5)

    assert condemned_packs(backend, 3, [pack(1), pack(2)]) == {pack(2)}
    assert condemned_packs(backend, 4, [pack(1), pack(2)]) == frozenset()


def test_who_relies_on_nothing_looks_at_nothing(backend):
    backend.put(mark_key(1), [b"not a mark at all"])

    assert condemned_packs(backend, 0, []) == frozenset()


def test_a_damaged_mark_stops_a_save_that_cannot_tell_what_it_condemns(backend):
    backend.put(mark_key(1), [b"not a mark at all"])

    with pytest.raises(DamagedObject, match=mark_key(1)):
        condemned_packs(backend, 0, [pack(1)])


# --- commits ------------------------------------------------------------------------------------


def test_an_aborted_transaction_cannot_commit(backend):
    key = CommitKey("default", 1, TransactionId(b"t" * 16))
    store_id = StoreId(b"s" * 16)
    assert backend.put_if_absent(str(key), Commit(State.ABORTED, store_id, key).encode())

    with pytest.raises(SaveAborted, match="no snapshot was made"):
        commit(backend, Commit(State.COMMITTED, store_id, key, manifest_digest=b"d" * 32))
    with pytest.raises(InvalidArgument):
        commit(backend, Commit(State.ABORTED, store_id, key))


def test_the_next_number_counts_aborted_commits(backend):
    key = CommitKey("a/B", 41, TransactionId(b"t" * 16))
    backend.put_if_absent(str(key), Commit(State.ABORTED, StoreId(b"s" * 16), key).encode())
    backend.put("commits/foreign", [b"x"])

    assert list(list_commits(backend)) == [key]
    assert next_sequence(list_commits(backend, "a/B")) == 42
    assert next_sequence(list_commits(backend, "other")) == 1
    with pytest.raises(InvalidArgument, match="full"):
        next_sequence([CommitKey("a", 10**16 - 1, key.transaction)])


def test_a_commit_must_lie_where_it_says_and_belong_to_the_store(backend):
    key = CommitKey("default", 1, TransactionId(b"t" * 16))
    data = Commit(State.ABORTED, StoreId(b"s" * 16), key).encode()
    moved = key._replace(sequence=2)
    backend.put_if_absent(str(key), data)
    backend.put_if_absent(str(moved), data)
    newer = key._replace(sequence=3)
    backend.put_if_absent(str(newer), data[:9] + b"\x02" + data[10:])

    assert read_commit(backend, key, StoreId(b"s" * 16)).state is State.ABORTED
    with pytest.raises(DamagedObject, match="is the commit"):
        read_commit(backend, moved, StoreId(b"s" * 16))
    with pytest.raises(DamagedObject, match="belongs to the store"):
        read_commit(backend, key, StoreId(b"o" * 16))
    with pytest.raises(UnsupportedStore, match=str(newer)):
        read_commit(backend, newer, StoreId(b"s" * 16))


# --- a save beside a collector ------------------------------------------------------------------


class Interfering(LocalBackend):
    """Does something once, or several times, each just after the manifest of a save was written."""

    def __init__(self, root, action, times):
        super().__init__(root, durable=False)
        self.action, self.times = action, times

    def put(self, key, parts):
        super().put(key, parts)
        if key.startswith("manifests/") and self.times:
            self.times -= 1
            self.action(self)


def interfered(store, action, *, times=1):
    """Return a view of the store in which `action` happens after the next manifests."""
    changed = Store.open(store.url, durable=False)
    changed._backend = Interfering(store.url, action, times)
    return changed


def test_a_save_that_relies_on_a_condemned_pack_stores_its_chunks_again(store):
    first = store.save(BIG)
    (condemned,) = packs_of(first)

    second = interfered(store, lambda backend: put_mark(backend, 1, condemned)).save(BIG)

    assert condemned not in packs_of(second)
    assert second.stats.bytes_new == len(BIG)
    assert second.read_bytes("_dst_cp") == BIG
    store._backend.delete(pack_key(condemned))
    assert second.read_bytes("_dst_cp") == BIG
    assert len(list(store._backend.list("manifests/"))) == 2  # the one given up is gone


def test_a_save_whose_pack_was_deleted_meanwhile_stores_its_chunks_again(store):
    first = store.save(BIG)
    (condemned,) = packs_of(first)

    def collect(backend):
        put_mark(backend, 1, condemned)
        backend.delete(pack_key(condemned))
        backend.delete(index_key(TransactionId(bytes.fromhex(first.id))))
        close_mark(backend, 1)

    second = interfered(store, collect).save(BIG)

    assert second.read_bytes("_dst_cp") == BIG
    assert condemned not in packs_of(second)


def test_a_save_beside_a_mark_that_condemns_other_packs_goes_on(store):
    first = store.save(BIG)

    second = interfered(store, lambda backend: put_mark(backend, 1, pack(9))).save(BIG)

    assert packs_of(first) < packs_of(second)  # the entry's time is new
    assert second.stats.bytes_new == 0


def test_a_stream_that_cannot_be_read_again_is_given_up_cleanly(store):
    (condemned,) = packs_of(store.save(BIG))

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.inner = io.BytesIO(BIG)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.inner.readinto(buffer)

    with pytest.raises(SaveAborted, match="save again"):
        interfered(store, lambda backend: put_mark(backend, 1, condemned)).save(Pipe())
    assert len(store.snapshots()) == 1


def test_a_seekable_reader_is_read_again_from_where_it_stood(store):
    (condemned,) = packs_of(store.save(BIG))
    reader = io.BytesIO(b"skipped" + BIG)
    reader.seek(7)

    second = interfered(store, lambda backend: put_mark(backend, 1, condemned)).save(reader)

    assert second.read_bytes("_dst_cp") == BIG


def aborting(store):
    """Return what gives up every transaction that has a manifest."""

    def abort(backend):
        for manifest in backend.list("manifests/"):
            transaction = TransactionId(bytes.fromhex(manifest.key.removeprefix("manifests/")))
            key = CommitKey("default", 1, transaction)
            backend.put_if_absent(str(key), Commit(State.ABORTED, StoreId(bytes.fromhex(store.id)), key).encode())

    return abort


def test_a_save_that_was_aborted_before_its_commit_goes_on_as_another_transaction(store):
    snapshot = interfered(store, aborting(store)).save(BIG)

    assert snapshot.read_bytes("_dst_cp") == BIG
    assert [found.id for found in store.snapshots()] == [snapshot.id]
    assert [info.key for info in store._backend.list("manifests/")] == [f"manifests/{snapshot.id}"]
    assert len(list(store._backend.list("packs/"))) == 1  # nothing was stored twice
    assert store.verify().ok


def test_a_save_that_is_aborted_again_and_again_fails_and_loses_nothing(store):
    with pytest.raises(SaveAborted, match="keep giving the save up"):
        interfered(store, aborting(store), times=99).save(BIG)

    assert store.snapshots() == []
    assert store.latest() is None
    assert store.verify().ok
    assert store.save(BIG).sequence == 2


def test_packs_of_a_save_under_way_that_are_condemned_are_stored_again(store):
    def condemn(backend):
        packs = [PackId(bytes.fromhex(info.key.removeprefix("packs/"))) for info in backend.list("packs/")]
        put_mark(backend, 1, *packs)
        for pack in packs:
            backend.delete(pack_key(pack))
        close_mark(backend, 1)

    snapshot = interfered(store, condemn).save(BIG)

    assert snapshot.read_bytes("_dst_cp") == BIG
    assert store.verify().ok


def test_knowledge_that_is_older_than_a_collection_is_not_relied_on(store):
    """A store object that lives through a collection starts its knowledge anew."""
    first = store.save(BIG)
    (condemned,) = packs_of(first)
    backend = store._backend
    transaction = TransactionId(bytes.fromhex(first.id))
    backend.delete(str(CommitKey("default", 1, transaction)))
    backend.delete(manifest_key(transaction))
    put_mark(backend, 1, condemned)
    backend.delete(pack_key(condemned))
    backend.delete(index_key(transaction))
    close_mark(backend, 1)

    second = store.save(BIG)

    assert condemned not in packs_of(second)
    assert second.read_bytes("_dst_cp") == BIG


def test_a_manifest_is_dated_by_the_oldest_knowledge_it_relies_on(store):
    store.save(BIG)
    put_mark(store._backend, 1)
    close_mark(store._backend, 1)

    second = store.save({"a": BIG, "b": os.urandom(300_000)})

    assert second.reader().manifest().base == 0
    assert store.save(os.urandom(300_000)).reader().manifest().base == 1


# --- collectors' steps -----------------------------------------------------------------------------


STORE = StoreId(b"s" * 16)
KEY = CommitKey("default", 1, TransactionId(b"t" * 16))


def test_an_abort_takes_the_place_of_a_commit_only_if_there_is_none(backend):
    assert abort(backend, KEY, STORE)
    assert abort(backend, KEY, STORE)  # by somebody else, or once more
    other = KEY._replace(transaction=TransactionId(b"u" * 16))
    commit(backend, Commit(State.COMMITTED, STORE, other, manifest_digest=bytes(32)))
    assert not abort(backend, other, STORE)
    forget(backend, other)
    assert list(backend.list("commits/")) != []


def test_an_abort_of_what_is_forgotten_at_that_moment_did_not_abort_it(backend):
    class Forgetful(LocalBackend):
        def put_if_absent(self, key, data):
            return False

    assert not abort(Forgetful(backend.root, durable=False), KEY, STORE)


def test_a_mark_is_the_latest_when_it_is_there(backend):
    class Overtaken(LocalBackend):
        overtaken = False

        def put_if_absent(self, key, data):
            if not self.overtaken:
                self.overtaken = True
                put_mark(backend, 9, pack(9))
                close_mark(backend, 9)
            return super().put_if_absent(key, data)

    assert publish_mark(Overtaken(backend.root, durable=False), [pack(1)]) == 10
    assert list_marks(backend) == ((10,), (1, 9))
    assert read_mark(backend, 10).packs == {pack(1)}


def test_collections_take_different_numbers(backend):
    assert [publish_mark(backend, [pack(number)]) for number in (1, 2)] == [1, 2]


def test_a_mark_for_which_there_is_no_number_is_an_error(backend, monkeypatch):
    class Crowded(LocalBackend):
        def put_if_absent(self, key, data):
            return False

    monkeypatch.setattr(transactions, "_MARK_ATTEMPTS", 3)
    with pytest.raises(StorageError, match="too many others"):
        publish_mark(Crowded(backend.root, durable=False), [pack(1)])


def test_a_mark_that_is_not_there_is_none(backend):
    assert read_mark(backend, 3) is None


def test_moves_are_read_together(backend):
    put_move(backend, pack(1), [pack(2)])
    put_move(backend, pack(1), [pack(3), pack(4)])
    put_move(backend, pack(5), [])
    keys = list_moves(backend)
    assert len(keys) == 3
    assert len(list_moves(backend, pack(1))) == 2
    backend.delete(str(list_moves(backend, pack(5))[0]))
    assert read_moves(backend, keys) == {pack(1): {pack(2), pack(3), pack(4)}}


def test_a_move_that_is_damaged_or_another_is_told(backend):
    put_move(backend, pack(1), [pack(2)])
    (key,) = list_moves(backend)
    data = backend.get(str(key), max_size=1000)
    other = MoveKey(pack(7), key.collection)
    backend.put(str(other), [data])
    with pytest.raises(DamagedObject, match="is the move"):
        read_moves(backend, [other])
    backend.put(str(key), [data[:-1]])
    with pytest.raises(DamagedObject, match=str(key)):
        read_moves(backend, [key])


def test_a_move_under_a_name_that_is_taken_is_an_error(backend, monkeypatch):
    monkeypatch.setattr(transactions, "random_id", lambda: b"r" * 16)
    put_move(backend, pack(1), [pack(2)])
    with pytest.raises(StorageError, match="drawn at random"):
        put_move(backend, pack(1), [pack(3)])


def test_old_marks_go_before_what_closes_them(backend, monkeypatch):
    for number in (1, 2):
        put_mark(backend, number)
        close_mark(backend, number)
    deleted = []
    real = backend.delete
    monkeypatch.setattr(backend, "delete", lambda key: (deleted.append(key), real(key)))
    remove_marks(backend, [1])
    assert deleted == [mark_key(1), mark_key(1, closed=True)]
    assert list_marks(backend) == ((), (2,))
