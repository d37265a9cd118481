"""What manifests name, while snapshots come and go."""

from __future__ import annotations

import os

import pytest

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import Commit, State
from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import StoreId
from cas_checkpoint.roots import Roots
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import abort, put_move


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False)


@pytest.fixture
def snapshot(store):
    return store.save(os.urandom(300_000))


class Vanishing(LocalBackend):
    """An object is gone when it is read, although it was listed."""

    def __init__(self, root, kind):
        super().__init__(root, durable=False)
        self.kind = kind

    def get(self, key, *, max_size):
        if key.startswith(self.kind):
            self.delete(key)
        return super().get(key, max_size=max_size)


def read(backend, store):
    roots = Roots(backend, StoreId(bytes.fromhex(store.id)))
    roots.read()
    return roots


def test_a_manifest_that_goes_between_listing_and_reading_does_not_count(store, snapshot):
    assert read(Vanishing(store.url, "manifests/"), store).found == {}


def test_a_commit_that_goes_between_listing_and_reading_is_none(store, snapshot):
    key = snapshot.reader().key
    store._backend.delete(str(key))
    assert abort(store._backend, key, StoreId(bytes.fromhex(store.id)))
    (root,) = read(Vanishing(store.url, "commits/"), store).found.values()
    assert not root.is_committed
    assert root.commit.key == key


def test_an_aborted_manifest_does_not_count(store, snapshot):
    key = snapshot.reader().key
    store._backend.put(str(key), [Commit(State.ABORTED, StoreId(bytes.fromhex(store.id)), key).encode()])
    roots = read(store._backend, store)
    assert roots.found == {}
    assert roots.needed() == frozenset()
    assert list(roots.aborted) == [f"manifests/{snapshot.id}"]


def test_the_manifest_of_another_snapshot_is_damage(store, snapshot):
    data = store._backend.get(f"manifests/{snapshot.id}", max_size=2**20)
    store._backend.put(f"manifests/{'0' * 32}", [data])
    with pytest.raises(DamagedObject, match="nobody knows what it needs"):
        read(store._backend, store)


def test_what_was_moved_needs_what_it_was_moved_to(store, snapshot):
    (ref,) = [ref for ref in snapshot.reader().manifest().packs if ref.pack][:1]
    other = type(ref.pack)(b"q" * 16)
    put_move(store._backend, ref.pack, [other])
    roots = read(store._backend, store)
    (root,) = roots.found.values()
    assert other in roots.needed()
    assert other in roots.closure(root)
    assert roots.needing([other]).keys() == roots.found.keys()
    assert roots.needing([type(ref.pack)(b"z" * 16)]) == {}
