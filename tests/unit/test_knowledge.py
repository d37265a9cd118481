"""What a writer knows to be in the store: from which index objects, since when, and what it passes over."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import index_key
from cas_checkpoint.errors import StorageError
from cas_checkpoint.ids import PackId, TransactionId, chunk_id
from cas_checkpoint.index import encode_index, ids_array
from cas_checkpoint.knowledge import _PACK_COST, _SHARE_LEARNED, Knowledge
from cas_checkpoint.manifests import PackRef
from cas_checkpoint.packs import PackBuilder
from cas_checkpoint.rows import ROW_SIZE

LIMIT = 2**20  # room for all that these tests know


def name(number):
    return TransactionId(bytes([number]) * 16)


def pack(number):
    return PackId(bytes([0x80 + number]) * 16)


def chunk(number):
    return chunk_id(b"chunk %d" % number)


def footer(number, *chunks):
    builder = PackBuilder(pack(number))
    for item in chunks:
        builder.add(chunk(item), 0, b"chunk %d" % item, len(b"chunk %d" % item), 0)
    return builder.finish()[0]


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "store", durable=False)


def put(backend, number, base, *footers):
    backend.put(index_key(name(number)), [encode_index(name(number), base, footers)])


def knows(knowledge, *chunks):
    return knowledge.index.contains([chunk(item) for item in chunks]).tolist()


def test_nothing_is_known_at_first():
    knowledge = Knowledge(7, limit=LIMIT)
    assert knowledge.now == 7
    assert len(knowledge.index) == 0
    assert knows(knowledge, 1) == [False]


def test_all_index_objects_are_learned_with_their_dates(backend):
    put(backend, 1, 3, footer(1, 1, 2))
    put(backend, 2, 5, footer(2, 3), footer(3, 4))
    knowledge = Knowledge(9, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2, 3, 4, 5) == [True, True, True, True, False]
    assert [knowledge.home(pack(number)) for number in (1, 2, 3)] == [(name(1), 3), (name(2), 5), (name(2), 5)]


def test_only_what_is_new_is_read_again(backend):
    put(backend, 1, 0, footer(1, 1))
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend)
    backend.put(index_key(name(1)), [b"changed, but already learned"])
    put(backend, 2, 0, footer(2, 2))
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: data[:9] + b"\x02" + data[10:],
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_or_newer_index_object_is_passed_over(backend, change):
    put(backend, 1, 0, footer(1, 1))
    put(backend, 2, 0, footer(2, 2))
    data = backend.get(index_key(name(1)), max_size=10_000)
    backend.put(index_key(name(1)), [change(data)])
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [False, True]
    with pytest.raises(KeyError):
        knowledge.home(pack(1))


def test_an_index_object_under_the_name_of_another_is_passed_over(backend):
    backend.put(index_key(name(1)), [encode_index(name(2), 0, [footer(1, 1)])])
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, 1) == [False]


def test_an_index_object_that_vanishes_after_it_was_listed_is_passed_over(backend):
    put(backend, 1, 0, footer(1, 1))
    put(backend, 2, 0, footer(2, 2))

    class Vanishing(LocalBackend):
        def list(self, prefix):
            found = list(super().list(prefix))
            self.delete(index_key(name(1)))
            return iter(found)

    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(Vanishing(backend.root, durable=False))
    assert knows(knowledge, 1, 2) == [False, True]


def test_foreign_names_beside_index_objects_are_ignored(backend):
    backend.put("index/readme", [b"x"])
    backend.put("index/" + "0" * 31, [b"x"])
    put(backend, 1, 0, footer(1, 1))
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, 1) == [True]


def cost(*chunks):
    """Return the bytes of memory that packs with so many chunks take."""
    return sum(number + _PACK_COST for number in chunks) * ROW_SIZE


def learning(size):
    """Return the limit of a knowledge that may learn so many bytes."""
    return int(size / _SHARE_LEARNED) + ROW_SIZE


def refs(*pairs):
    """Return a function that gives the packs of a parent, each with its home."""
    return lambda: [PackRef(pack(item), name(home)) for item, home in pairs]


def test_at_the_limit_the_packs_of_the_parent_were_learned_first(backend):
    """In index objects that hold others as well, and in one that is not where the parent says."""
    put(backend, 1, 0, *(footer(number, number) for number in range(10, 20)))
    put(backend, 2, 0, *(footer(number, number) for number in range(20, 30)))
    put(backend, 3, 0, *(footer(number, number) for number in range(30, 41)))
    knowledge = Knowledge(0, limit=learning(cost(1, 1, 1)))
    knowledge.learn(backend, parent=refs((28, 2), (12, 1), (36, 99)))
    assert knows(knowledge, 28, 12, 36) == [True, True, True]
    assert len(knowledge.index) == 3
    assert [knowledge.home(pack(number)) for number in (28, 12, 36)] == [(name(2), 0), (name(1), 0), (name(3), 0)]


def test_what_room_is_left_goes_to_the_newest(backend):
    for number in range(1, 9):
        put(backend, number, 0, footer(number, *range(100 * number, 100 * number + 40)))
    knowledge = Knowledge(0, limit=learning(cost(40, 40, 40)))
    knowledge.learn(backend, parent=refs((5, 5)), newest=lambda: [name(77), name(3), name(5), name(8), name(1)])
    known = knows(knowledge, *range(100, 900, 100))
    assert known == [False, False, True, False, True, False, False, True]


def test_of_the_rest_the_largest_come_first(backend):
    put(backend, 1, 0, footer(1, 1))
    put(backend, 2, 0, footer(2, *range(20, 25)))
    knowledge = Knowledge(0, limit=learning(cost(5)))
    knowledge.learn(backend)
    assert knows(knowledge, 1, 20) == [False, True]


def test_no_more_is_learned_than_there_is_room_for(backend):
    for number in range(1, 9):
        put(backend, number, 0, *(footer(10 * number + item, 10 * number + item) for item in range(3)))
    for limit in range(0, learning(cost(*[1] * 24)) + 400, 400):
        knowledge = Knowledge(0, limit=limit)
        knowledge.learn(backend)
        known = len(knowledge.index)
        assert cost(*[1] * known) <= limit * _SHARE_LEARNED
        assert known == 24 or cost(*[1] * (known + 1)) > limit * _SHARE_LEARNED - ROW_SIZE
    assert known == 24


def test_what_did_not_fit_is_not_read_again(backend):
    put(backend, 1, 0, footer(1, 1), footer(2, 2))
    knowledge = Knowledge(0, limit=learning(cost(1)))
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [True, False]
    reads = []
    backend.get_range = lambda *arguments: reads.append(arguments)
    knowledge.learn(backend, parent=lambda: reads.append("parent"))
    assert reads == []


def test_a_refusal_leaves_what_is_missing_to_be_learned_later(backend, monkeypatch):
    put(backend, 1, 0, footer(1, 1))
    put(backend, 2, 0, footer(2, 2))
    knowledge = Knowledge(0, limit=LIMIT)

    def refuse(key, offset, size):
        if key == index_key(name(2)):
            raise StorageError("no")
        return LocalBackend.get_range(backend, key, offset, size)

    monkeypatch.setattr(backend, "get_range", refuse)
    with pytest.raises(StorageError):
        knowledge.learn(backend, parent=refs((1, 1)))
    assert knows(knowledge, 1, 2) == [True, False]
    assert knowledge.home(pack(1)) == (name(1), 0)
    monkeypatch.undo()
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [True, True]


def test_what_is_saved_is_known_beyond_what_may_be_learned(backend):
    put(backend, 1, 0, footer(1, 1), footer(2, 2))
    knowledge = Knowledge(0, limit=learning(cost(1)))
    knowledge._limit = cost(1, 1) // ROW_SIZE
    knowledge.learn(backend)
    knowledge.add(name(3), 0, [footer(3, 3)])
    assert knows(knowledge, 1, 2, 3) == [True, False, True]
    assert not knowledge.full
    knowledge.add(name(4), 0, [footer(4, 4)])
    assert knows(knowledge, 4) == [False]
    assert knowledge.full
    with pytest.raises(KeyError):
        knowledge.home(pack(4))


def test_so_many_index_objects_are_read_and_no_more(backend, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.knowledge._MAX_READ", 3)
    for number in range(1, 9):
        put(backend, number, 0, footer(number, number))
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend, parent=refs((8, 8), (7, 7)), newest=lambda: [name(5), name(4), name(3), name(2)])
    assert knows(knowledge, *range(1, 9)) == [False, False, True, True, True, False, True, True]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("first", [80, 160, 2**20])
def test_index_objects_are_read_in_pieces(backend, monkeypatch, near, first):
    monkeypatch.setattr(LocalBackend, "near", near)
    monkeypatch.setattr("cas_checkpoint.knowledge._FIRST_READ", first)
    monkeypatch.setattr("cas_checkpoint.knowledge._MAX_REQUEST", 300)
    monkeypatch.setattr("cas_checkpoint.knowledge._MAX_GAP", 10)
    for number in range(1, 30):
        put(backend, number, number, *(footer(3 * number + item, 3 * number + item) for item in range(3)))
    put(backend, 90, 0, footer(99, *range(1000, 1009)), footer(100, 1009))  # a footer beyond all requests
    knowledge = Knowledge(50, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, *range(3, 90)) == [True] * 87
    assert knows(knowledge, 1000, 1009) == [False, True]
    assert [knowledge.home(pack(number)) for number in (3, 89)] == [(name(1), 1), (name(29), 29)]
    some = Knowledge(50, limit=learning(cost(1, 1)))
    some.learn(backend, parent=refs((4, 1), (86, 28)))
    assert knows(some, 3, 4, 5, 85, 86) == [False, True, False, False, True]


def test_an_index_object_whose_end_is_damaged_is_learned_up_to_there(backend, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.knowledge._MAX_REQUEST", 130)
    put(backend, 1, 0, footer(1, 1), footer(2, 2))
    data = backend.get(index_key(name(1)), max_size=10_000)
    backend.put(index_key(name(1)), [data[:-1] + bytes([data[-1] ^ 1])])
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [True, False]
    assert knowledge.home(pack(1)) == (name(1), 0)
    with pytest.raises(KeyError):
        knowledge.home(pack(2))


def test_a_directory_that_is_too_large_is_passed_over(backend, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.knowledge._FIRST_READ", 80)
    monkeypatch.setattr("cas_checkpoint.knowledge._MAX_DIRECTORY_SIZE", 120)
    put(backend, 1, 0, footer(1, 1), footer(2, 2))
    put(backend, 2, 0, footer(3, 3))
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2, 3) == [False, False, True]


def test_a_pack_whose_home_was_merged_gets_the_new_one_and_keeps_its_date(backend):
    put(backend, 1, 5, footer(1, 1))
    put(backend, 2, 6, footer(2, 2))
    knowledge = Knowledge(9, limit=LIMIT)
    knowledge.learn(backend)
    put(backend, 3, 2, footer(1, 1), footer(2, 2))
    backend.delete(index_key(name(1)))
    knowledge.learn(backend)
    assert knowledge.home(pack(1)) == (name(3), 5)
    assert knowledge.home(pack(2)) == (name(2), 6)
    assert len(knowledge.index) == 2


def test_nobody_is_asked_for_an_order_where_all_is_read(backend):
    put(backend, 1, 0, footer(1, 1))
    asked = []
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.learn(backend, newest=lambda: asked.append("newest"))
    knowledge.learn(backend, parent=lambda: asked.append("parent"))
    assert knows(knowledge, 1) == [True]
    assert asked == []


def test_many_small_index_objects_are_merged_when_asked(backend):
    knowledge = Knowledge(0, limit=LIMIT)
    for number in range(1, 33):
        put(backend, number, 0, footer(number, number))
    knowledge.learn(backend)
    knowledge.tidy(backend)
    assert len(list(backend.list("index/"))) == 32
    put(backend, 33, 0, footer(33, 33))
    knowledge.learn(backend)
    knowledge.tidy(backend)
    assert len(list(backend.list("index/"))) == 1
    listings = []
    backend.list = listings.append
    knowledge.tidy(backend)
    assert listings == []
    del backend.list
    knowledge.learn(backend)
    (info,) = backend.list("index/")
    assert knowledge.home(pack(7)) == (bytes.fromhex(info.key.removeprefix("index/")), 0)


def test_packs_not_to_rely_on_are_not_known(backend):
    put(backend, 1, 0, footer(1, 1, 2), footer(2, 2, 3))
    knowledge = Knowledge(0, limit=LIMIT, without=frozenset([pack(1)]))
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2, 3) == [False, True, True]
    with pytest.raises(KeyError):
        knowledge.home(pack(1))
    knowledge.add(name(9), 0, [footer(1, 1)])
    assert knows(knowledge, 1) == [False]


def test_a_pack_keeps_the_home_from_which_it_was_learned_first(backend):
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.add(name(1), 2, [footer(1, 1)])
    knowledge.add(name(2), 5, [footer(1, 1), footer(2, 2)])
    assert knowledge.home(pack(1)) == (name(1), 2)
    assert knowledge.home(pack(2)) == (name(2), 5)
    assert len(knowledge.index) == 2


def test_of_a_chunk_in_two_packs_one_is_told():
    knowledge = Knowledge(0, limit=LIMIT)
    knowledge.add(name(1), 0, [footer(1, 1), footer(2, 1)])
    found = knowledge.index.locate(ids_array(chunk(1)))
    assert found.found.tolist() == [True]
    assert knowledge.index.packs[int(found.packs[0])] in (pack(1), pack(2))


def test_one_may_learn_while_others_look_up():
    knowledge = Knowledge(0, limit=LIMIT)
    footers = [footer(number, *range(10 * number, 10 * number + 10)) for number in range(100)]
    wanted = ids_array(b"".join(chunk(item) for item in range(1000)))
    stop = threading.Event()
    wrong = []

    def look():
        before = np.zeros(1000, bool)
        while not stop.is_set():
            found = knowledge.index.locate(wanted).found
            if (before & ~found).any():
                wrong.append("forgot")
            before = found

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    adders = [
        threading.Thread(target=lambda part=part: [knowledge.add(name(part), 0, [item]) for item in footers[part::4]])
        for part in range(4)
    ]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert not wrong
    assert knowledge.index.locate(wanted).found.all()
    assert len(knowledge.index) == 1000
