"""Merging index objects: which are chosen, what comes out, and that nothing ever gets lost or more certain by it."""

from __future__ import annotations

import random
from itertools import count

import pytest

from cas_checkpoint import Store
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import index_key
from cas_checkpoint.errors import StorageError
from cas_checkpoint.ids import PackId, TransactionId, chunk_id
from cas_checkpoint.index import encode_index, parse_index
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.merging import indexed_footers, list_indexes, merge_indexes, worth_merging
from cas_checkpoint.packs import PackBuilder

MANY = 33  # one more than are left alone
LARGE = 32 * 2**20


def name(number):
    return TransactionId(number.to_bytes(16, "big"))


def pack(number):
    return PackId(number.to_bytes(16, "little"))


def footer(number, chunks=1):
    builder = PackBuilder(pack(number))
    for item in range(chunks):
        plain = b"%d of pack %d" % (item, number)
        builder.add(chunk_id(plain), 0, plain, len(plain), 0)
    return builder.finish()[0]


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "store", durable=False)


def put(backend, number, base, *footers):
    backend.put(index_key(name(number)), [encode_index(name(number), base, footers)])


def put_many(backend, number=MANY, base=7):
    for item in range(1, number + 1):
        put(backend, item, base, footer(item))


def contents(backend):
    """Return base and packs of each index object that is whole."""
    whole = {}
    for item in list_indexes(backend):
        base, footers = parse_index(backend.get(index_key(item), max_size=LARGE), name=item)
        whole[item] = (base, [footer.pack for footer in footers])
    return whole


def close_marks(backend, number):
    backend.put(mark_key(number), [Mark(name(1), frozenset()).encode()])
    backend.put(mark_key(number, closed=True), [Mark(name(1), frozenset()).encode()])


# --- which --------------------------------------------------------------------------------------


def chosen(*sizes):
    """Return the sizes of those that are chosen."""
    listed = {name(number): size for number, size in enumerate(sizes)}
    return [listed[item] for item in worth_merging(listed)]


def test_few_small_ones_are_left_alone():
    assert chosen() == []
    assert chosen(*[200] * 32) == []
    assert chosen(*[200] * 33) == [200] * 33


def test_a_large_one_is_merged_only_with_as_much_again():
    small = [200] * 33
    assert chosen(6_601, *small) == small
    assert chosen(6_600, *small) == [*small, 6_600]
    assert chosen(13_200, 6_600, *small) == [*small, 6_600, 13_200]
    assert chosen(13_201, 6_600, *small) == [*small, 6_600]


def test_a_few_tiny_ones_do_not_keep_the_small_from_being_merged():
    assert chosen(1, 2, 4, 8, 100, *[300] * 40) == [1, 2, 4, 8, 100, *[300] * 40]


def test_no_more_is_merged_than_fits_into_one():
    assert len(chosen(*[2**19] * 100)) == 64
    assert chosen(*[2**20] * 100) == []
    assert chosen(*[200] * 32, LARGE) == []


def test_a_backlog_is_merged_in_several_goes():
    assert len(chosen(*[200] * 10_000)) == 256


def test_after_any_number_of_saves_there_are_few_small_ones_and_little_was_copied():
    source, names = random.Random(3), count()
    listed, written, copied, most = {}, 0, 0, 0
    for _ in range(5_000):
        size = source.choice([236, 500, 5_000, 50_000])
        listed[next(names)] = size
        written += size
        parts = worth_merging(listed)
        if parts:
            size = sum(listed.pop(part) for part in parts)
            listed[next(names)] = size
            copied += size
        most = max(most, sum(size < LARGE // 4 for size in listed.values()))
    assert most <= 50
    assert sum(listed.values()) == written
    assert copied < 8 * written


# --- what comes out -----------------------------------------------------------------------------


def test_small_ones_become_one_that_knows_all_of_them(backend):
    put_many(backend)
    merged = merge_indexes(backend)
    close = contents(backend)
    assert list(close) == [merged]
    assert sorted(close[merged][1]) == sorted(pack(number) for number in range(1, MANY + 1))


def test_nothing_is_merged_where_there_are_few(backend):
    assert merge_indexes(backend) is None
    put_many(backend, MANY - 1)
    assert merge_indexes(backend) is None
    assert len(list_indexes(backend)) == MANY - 1


def test_the_lowest_date_counts(backend):
    close_marks(backend, 9)
    put_many(backend, base=7)
    put(backend, 50, 3, footer(50))
    merged = merge_indexes(backend)
    assert contents(backend)[merged][0] == 3


def test_no_date_is_later_than_the_merge_itself(backend):
    close_marks(backend, 2)
    put_many(backend, base=7)
    merged = merge_indexes(backend)
    assert contents(backend)[merged][0] == 2


def test_a_pack_that_several_list_is_listed_once(backend):
    put_many(backend)
    put(backend, 50, 1, footer(1), footer(2), footer(60))
    merged = merge_indexes(backend)
    base, packs = contents(backend)[merged]
    assert base == 0  # no marks at all
    assert len(packs) == len(set(packs)) == MANY + 1


def test_what_is_damaged_or_newer_is_left_where_it_is(backend):
    put_many(backend, MANY + 2)
    for number, at in ((1, 60), (2, -1), (3, 9)):
        data = bytearray(backend.get(index_key(name(number)), max_size=LARGE))
        data[at] ^= 3
        backend.put(index_key(name(number)), [data])
    merged = merge_indexes(backend)
    assert set(list_indexes(backend)) == {merged, name(1), name(2), name(3)}
    _, footers = parse_index(backend.get(index_key(merged), max_size=LARGE), name=merged)
    assert len(footers) == MANY - 1


def test_where_next_to_nothing_can_be_read_nothing_is_written(backend):
    put(backend, 1, 0, footer(1))
    for number in range(2, MANY + 2):
        backend.put(index_key(name(number)), [bytes(300)])
    before = set(list_indexes(backend))
    assert merge_indexes(backend) is None
    assert set(list_indexes(backend)) == before


def test_a_merge_holds_so_many_packs_and_no_more(backend, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.merging._MAX_MERGED_PACKS", 20)
    put_many(backend)
    merged = merge_indexes(backend)
    assert len(contents(backend)[merged][1]) == 20
    assert len(list_indexes(backend)) == MANY - 20 + 1


def test_foreign_names_are_no_index_objects(backend):
    backend.put("index/readme", [b"x"])
    put(backend, 1, 0, footer(1))
    assert list(list_indexes(backend)) == [name(1)]


# --- beside others, and when it fails -----------------------------------------------------------


@pytest.mark.parametrize("operation", ["list", "get", "put", "delete"])
def test_a_refusal_is_passed_over_and_nothing_is_lost(backend, monkeypatch, operation):
    put_many(backend)

    def refuse(*arguments, **options):
        raise StorageError("no")

    monkeypatch.setattr(backend, operation, refuse)
    merge_indexes(backend)
    monkeypatch.undo()
    known = {item for _, packs in contents(backend).values() for item in packs}
    assert known == {pack(number) for number in range(1, MANY + 1)}


def test_at_every_moment_every_pack_is_listed(backend, monkeypatch):
    put_many(backend)
    everything = {pack(number) for number in range(1, MANY + 1)}
    watched = LocalBackend(backend.root, durable=False)
    moments = []

    def delete(key):
        moments.append({item for _, packs in contents(watched).values() for item in packs})
        watched.delete(key)

    monkeypatch.setattr("cas_checkpoint.merging._REQUESTS", 1)
    monkeypatch.setattr(backend, "delete", delete)
    merge_indexes(backend)
    assert moments == [everything] * MANY


def test_two_merges_at_once_are_harmless(backend):
    put_many(backend)
    other = LocalBackend(backend.root, durable=False)

    class Interrupted(LocalBackend):
        def put(self, key, parts):
            merge_indexes(other)
            super().put(key, parts)

    merge_indexes(Interrupted(backend.root, durable=False))
    assert [sorted(packs) for _, packs in contents(backend).values()] == [
        sorted(pack(number) for number in range(1, MANY + 1))
    ] * 2


def test_parts_that_vanish_are_done_without(backend):
    put_many(backend)

    class Vanishing(LocalBackend):
        def get(self, key, *, max_size):
            if key == index_key(name(5)):
                self.delete(key)
            return super().get(key, max_size=max_size)

    merged = merge_indexes(Vanishing(backend.root, durable=False))
    assert len(contents(backend)[merged][1]) == MANY - 1


def test_snapshots_are_read_and_verified_after_a_merge(tmp_path):
    source = random.Random(5)
    saved = []
    for _ in range(MANY):
        store = Store.open(tmp_path / "store", create=True, durable=False)
        saved.append(source.randbytes(140_000))
        store.save({"data": saved[-1]})
    assert merge_indexes(store._backend) is not None
    again = Store.open(tmp_path / "store", durable=False)
    assert again.verify().ok
    assert [snapshot.read_bytes("data") for snapshot in reversed(again.snapshots())] == saved
    before = again.info().objects["packs"]
    again.save({"data": saved[3], "more": saved[20]})
    assert again.info().objects["packs"][0] == before[0] + 1  # entries
    assert again.latest().stats.bytes_new == 0


# --- finding what was merged --------------------------------------------------------------------


def told(backend, wanted):
    """Return the packs that are told of those wanted, numbers by the numbers of their homes."""
    packs = {name(home): frozenset(map(pack, numbers)) for home, numbers in wanted.items()}
    return sorted(int.from_bytes(item.pack, "little") for item in indexed_footers(backend, packs))


class Counting(LocalBackend):
    def __init__(self, root):
        super().__init__(root, durable=False)
        self.done = []

    def size(self, key):
        self.done.append("size")
        return super().size(key)

    def list(self, prefix):
        self.done.append("list")
        return super().list(prefix)


def test_packs_are_told_by_their_homes(backend):
    put(backend, 1, 0, *(footer(number) for number in range(10)))
    put(backend, 2, 0, *(footer(number) for number in range(10, 20)))
    counting = Counting(backend.root)
    assert told(counting, {1: range(3, 7), 2: [12]}) == [3, 4, 5, 6, 12]
    assert counting.done == ["size"] * 2


def test_packs_are_told_where_they_were_merged(backend):
    put_many(backend)
    merge_indexes(backend)
    for number in (1, 2, 3):
        put(backend, number, 0, footer(number))
    counting = Counting(backend.root)
    assert told(counting, {number: [number] for number in range(1, MANY + 1)}) == list(range(1, MANY + 1))
    assert counting.done == ["list"] + ["size"] * 4
    counting.done.clear()
    assert told(counting, {99: range(1, 30)}) == list(range(1, 30))
    assert counting.done == ["size", "list", "size"]


def test_a_pack_or_two_whose_home_is_gone_are_not_looked_for(backend):
    put_many(backend)
    merge_indexes(backend)
    counting = Counting(backend.root)
    assert told(counting, {1: [1], 2: [2]}) == []
    assert counting.done == ["size"] * 2


def test_a_pack_in_two_index_objects_is_told_once(backend):
    put(backend, 1, 0, *(footer(number) for number in range(8)))
    put(backend, 2, 0, *(footer(number) for number in range(6)))
    assert told(backend, {99: range(10)}) == list(range(8))


def test_no_more_requests_are_made_than_reading_the_packs_would_take(backend, monkeypatch):
    put_many(backend)
    read = []
    monkeypatch.setattr("cas_checkpoint.merging.read_index_footers", lambda *arguments: read.append(arguments) or [])
    for missing in (4, 6, 9):
        read.clear()
        assert told(backend, {99: range(100, 100 + missing)}) == []
        assert len(read) == 1 + -(-2 * missing // 3)


def test_damaged_index_objects_are_passed_over_in_the_search(backend):
    put(backend, 1, 0, *(footer(number) for number in range(10)))
    backend.put(index_key(name(2)), [bytes(10_000)])
    assert told(backend, {2: [1, 2], 3: [3, 4, 5]}) == [1, 2, 3, 4, 5]


def test_a_pack_that_an_index_object_lists_twice_is_told_once(backend):
    put(backend, 1, 0, footer(1), footer(1))
    assert told(backend, {1: [1]}) == [1]
