"""What a writer knows to be in the store: from which index objects, since when, and what it passes over."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import index_key
from cas_checkpoint.ids import PackId, TransactionId, chunk_id
from cas_checkpoint.index import encode_index, ids_array
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.packs import PackBuilder


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
    knowledge = Knowledge(7, limit=100)
    assert knowledge.now == 7
    assert len(knowledge.index) == 0
    assert knows(knowledge, 1) == [False]


def test_all_index_objects_are_learned_with_their_dates(backend):
    put(backend, 1, 3, footer(1, 1, 2))
    put(backend, 2, 5, footer(2, 3), footer(3, 4))
    knowledge = Knowledge(9, limit=100)
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2, 3, 4, 5) == [True, True, True, True, False]
    assert [knowledge.home(pack(number)) for number in (1, 2, 3)] == [(name(1), 3), (name(2), 5), (name(2), 5)]


def test_only_what_is_new_is_read_again(backend):
    put(backend, 1, 0, footer(1, 1))
    knowledge = Knowledge(0, limit=100)
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
    knowledge = Knowledge(0, limit=100)
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [False, True]
    backend.put(index_key(name(1)), [data])  # mended
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2) == [True, True]


def test_an_index_object_under_the_name_of_another_is_passed_over(backend):
    backend.put(index_key(name(1)), [encode_index(name(2), 0, [footer(1, 1)])])
    knowledge = Knowledge(0, limit=100)
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

    knowledge = Knowledge(0, limit=100)
    knowledge.learn(Vanishing(backend.root, durable=False))
    assert knows(knowledge, 1, 2) == [False, True]


def test_foreign_names_beside_index_objects_are_ignored(backend):
    backend.put("index/readme", [b"x"])
    backend.put("index/" + "0" * 31, [b"x"])
    put(backend, 1, 0, footer(1, 1))
    knowledge = Knowledge(0, limit=100)
    knowledge.learn(backend)
    assert knows(knowledge, 1) == [True]


def test_at_the_limit_the_preferred_ones_were_learned_first(backend):
    for number in range(1, 9):
        put(backend, number, 0, footer(number, 10 * number, 10 * number + 1))
    knowledge = Knowledge(0, limit=5)
    knowledge.learn(backend, [name(7), name(99), name(4), name(7)])
    assert knows(knowledge, 70, 40, 10) == [True, True, True]
    assert len(knowledge.index) == 6
    knowledge.learn(backend, [name(8)])
    assert knows(knowledge, 80) == [False]  # full is full


def test_packs_not_to_rely_on_are_not_known(backend):
    put(backend, 1, 0, footer(1, 1, 2), footer(2, 2, 3))
    knowledge = Knowledge(0, limit=100, without=frozenset([pack(1)]))
    knowledge.learn(backend)
    assert knows(knowledge, 1, 2, 3) == [False, True, True]
    with pytest.raises(KeyError):
        knowledge.home(pack(1))
    knowledge.add(name(9), 0, [footer(1, 1)])
    assert knows(knowledge, 1) == [False]


def test_a_pack_keeps_the_home_from_which_it_was_learned_first(backend):
    knowledge = Knowledge(0, limit=100)
    knowledge.add(name(1), 2, [footer(1, 1)])
    knowledge.add(name(2), 5, [footer(1, 1), footer(2, 2)])
    assert knowledge.home(pack(1)) == (name(1), 2)
    assert knowledge.home(pack(2)) == (name(2), 5)
    assert len(knowledge.index) == 2


def test_of_a_chunk_in_two_packs_one_is_told():
    knowledge = Knowledge(0, limit=100)
    knowledge.add(name(1), 0, [footer(1, 1), footer(2, 1)])
    found = knowledge.index.locate(ids_array(chunk(1)))
    assert found.found.tolist() == [True]
    assert knowledge.index.packs[int(found.packs[0])] in (pack(1), pack(2))


def test_one_may_learn_while_others_look_up():
    knowledge = Knowledge(0, limit=10**6)
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
