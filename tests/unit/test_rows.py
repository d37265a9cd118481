"""Tables of chunks: what they take of footers, what they refuse, and what memory they need."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.errors import DamagedObject, ForeignObject, UnsupportedStore
from cas_checkpoint.ids import PackId, digest
from cas_checkpoint.index import ChunkIndex
from cas_checkpoint.packs import footer_size, parse_footer
from cas_checkpoint.records import Kind, make_head
from cas_checkpoint.rows import ROW_SIZE, ChunkRows, id_words, merge_runs

GENERATOR = np.random.default_rng(11)


def pack_id(number):
    return PackId(number.to_bytes(16, "little"))


def encoded(number, stored, plain, *, blobs_size=None, count=None, ids=None, deltas=(), delta_count=None):
    """Return the footer of a pack, true or not, with a true checksum; `deltas` are pairs of a row and a base."""
    delta_count = len(deltas) if delta_count is None else delta_count
    frame = struct.pack("<IIQ", len(stored) if count is None else count, delta_count, blobs_size or sum(stored))
    ids = GENERATOR.bytes(32 * len(stored)) if ids is None else ids
    columns = b"".join(np.array(column, "<u4").tobytes() for column in (stored, plain, range(len(stored))))
    bases = np.array([row for row, _ in deltas], "<u4").tobytes() + b"".join(base for _, base in deltas)
    content = make_head(Kind.PACK) + pack_id(number) + frame + ids + columns + bases
    return content + digest((content,))


def run_of(*copies):
    rows = ChunkRows(1000)
    rows.add_copies((pack_id(number), data) for number, data in enumerate(copies))
    return rows.sorted(0).whole


def test_deltas_are_put_into_a_table_of_their_own():
    rows = ChunkRows(20)
    copies = [DELTAS, encoded(1, [7, 8, 9], [7, 8, 9], deltas=[(0, BASE[2:] + b"02")]), encoded(2, [3], [3])]
    rows.add_copies((pack_id(number), data) for number, data in enumerate(copies))
    table = rows.sorted(5)
    footers = [parse_footer(data) for data in copies]
    assert sorted(table.whole.columns[:3].T.tolist()) == [[5, 32, 10], [6, 39, 8], [6, 47, 9], [7, 32, 3]]
    assert sorted(table.deltas.columns.T.tolist()) == [[5, 42, 20, 100, 1], [5, 62, 5, 9, 2], [6, 32, 7, 7, 0]]
    ids = np.concatenate([footers[0].ids[1:], footers[1].ids[:1]])
    found, at = table.deltas.find(id_words(ids))
    assert sorted(found.tolist()) == [0, 1, 2]
    assert table.deltas.columns[0, at[np.argsort(found)]].tolist() == [5, 5, 6]
    assert table.whole.find(id_words(ids))[0].tolist() == []
    assert table.bases.places.tolist() == [5 * 2**32 + 42, 5 * 2**32 + 62, 6 * 2**32 + 32]
    assert [bytes(base) for base in table.bases.ids] == [BASE, BASE[1:] + b"1", BASE[2:] + b"02"]


def test_a_delta_counts_twice():
    rows = ChunkRows(100, limit=13)
    rows.add_copies([(pack_id(0), DELTAS), (pack_id(1), encoded(1, [1] * 5, [1] * 5, deltas=[(3, BASE)]))])
    assert (len(rows), rows.full) == (8, False)
    rows.add_copies([(pack_id(2), encoded(2, [1], [1])), (pack_id(3), encoded(3, [1], [1], deltas=[(0, BASE)]))])
    assert (len(rows), rows.full) == (9, True)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=6), max_size=6))
def test_a_table_says_what_the_footers_say(packs):
    copies = [
        encoded(number, [min(sizes) for sizes in pack], [max(sizes) for sizes in pack])
        for number, pack in enumerate(packs)
    ]
    run = run_of(*copies)
    expected = []
    for number, footer in enumerate(map(parse_footer, copies)):
        columns = (footer.offsets, footer.stored_sizes, footer.plain_sizes, footer.checks)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        expected += [(bytes(chunk), number, *row) for chunk, row in zip(footer.ids, rows, strict=True)]
    words = np.ascontiguousarray(run.words.T).astype("<u8")
    found = [(words[row].tobytes(), *run.columns[:, row].tolist()) for row in range(run.rows)]
    assert sorted(found) == sorted(expected)
    assert (np.diff(run.words[0].astype(object)) >= 0).all()


def test_copies_and_footers_give_the_same_table():
    copies = [encoded(number, [5, 6, 7], [50, 60, 70]) for number in range(5)]
    rows = ChunkRows(15)
    rows.add(map(parse_footer, copies))
    other = rows.sorted(0).whole
    for one, two in zip(run_of(*copies), other, strict=True):
        assert (one == two).all()


WHOLE = encoded(0, [10, 20], [10, 100])
BASE = b"base of a delta " * 2
DELTAS = encoded(0, [10, 20, 5], [10, 100, 9], deltas=[(1, BASE), (2, BASE[1:] + b"1")])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "only 0 bytes long"),
        (WHOLE[:79], "a pack's footer of only 79 bytes"),
        (WHOLE[:-1], "does not fit its checksum"),
        (WHOLE[:60] + b"?" + WHOLE[61:], "does not fit its checksum"),
        (encoded(1, [10], [10]), f"holds the footer of pack {pack_id(1).hex()}"),
        (encoded(0, [10], [10], count=2), "cannot list 2 chunks"),
        (encoded(0, [], [], count=2**32 - 1), "cannot list 4294967295 chunks"),
        (encoded(0, [10, 20], [10, 100], blobs_size=31), "do not add up"),
        (encoded(0, [10, 20], [10, 100], blobs_size=2**64 - 1), "do not add up"),
        (encoded(0, [], [], blobs_size=1), "do not add up"),
        (encoded(0, [2**24] * 256, [2**24] * 256), "larger than a pack can be"),
        (encoded(0, [10], [2**24 + 1]), "of an impossible size"),
        (encoded(0, [12], [10]), "of an impossible size"),
        (encoded(0, [2**32 - 400], [2**32 - 1]), "of an impossible size"),
        (encoded(0, [10], [10], delta_count=1), "cannot list 1 chunks, 1 of them deltas"),
        (encoded(0, [], [], delta_count=2**32 - 1), "cannot list 0 chunks, 4294967295 of them deltas"),
        (encoded(0, [10], [10], deltas=[(1, BASE)]), "deltas of chunks that it does not list, or twice"),
        (encoded(0, [], [], deltas=[(0, BASE)]), "deltas of chunks that it does not list, or twice"),
        (encoded(0, [10, 20], [10, 100], deltas=[(1, BASE)] * 2), "deltas of chunks that it does not list, or twice"),
        (encoded(0, [10, 20], [10, 100], deltas=[(1, BASE), (0, BASE)]), "deltas of chunks that it does not list"),
        (make_head(Kind.INDEX) + WHOLE[16:], "of kind b'I'"),
    ],
)
def test_a_damaged_copy_is_refused_with_all_that_came_with_it(data, reason):
    rows = ChunkRows(1000)
    rows.add_copies([(pack_id(7), encoded(7, [1, 2], [1, 2], deltas=[(1, BASE)]))])
    with pytest.raises(DamagedObject, match=reason):
        rows.add_copies([(pack_id(8), encoded(8, [1], [1], deltas=[(0, BASE)])), (pack_id(0), data)])
    assert list(rows.packs) == [pack_id(7)]
    assert len(rows) == 2
    rows.add_copies([(pack_id(0), WHOLE)])
    table = rows.sorted(0)
    assert table.whole.columns[0].max() == 1
    assert table.deltas.rows == 1


@pytest.mark.parametrize("footer", [WHOLE, DELTAS])
def test_what_footers_refuse_copies_refuse(footer):
    """Neither way of reading a footer lets anything through that the other does not."""
    for bit in range(0, 8 * len(footer), 3):
        damaged = bytearray(footer)
        damaged[bit // 8] ^= 1 << bit % 8
        resealed = bytes(damaged[:-32]) + digest((bytes(damaged[:-32]),))
        outcomes = []
        for attempt in (
            lambda data: parse_footer(data, pack=pack_id(0)),
            lambda data: ChunkRows(9).add_copies([(pack_id(0), data)]),
        ):
            try:
                attempt(resealed)
                outcomes.append(None)
            except (DamagedObject, UnsupportedStore) as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_foreign_and_newer_copies_are_told_apart():
    with pytest.raises(ForeignObject):
        run_of(b"?" + WHOLE[1:])
    with pytest.raises(UnsupportedStore):
        run_of(WHOLE[:9] + b"\2" + WHOLE[10:])


def test_the_largest_pack_is_taken():
    size = 2**32 - 1 - 32 - footer_size(256) - 8
    stored = [2**24] * 255 + [size - 255 * 2**24]
    assert run_of(encoded(0, stored, [2**24] * 256)).rows == 256


def test_the_largest_pack_has_room_for_its_bases():
    size = 2**32 - 1 - 32 - footer_size(256, 1) - 8
    stored = [2**24] * 255 + [size - 255 * 2**24]
    run_of(encoded(0, stored, [2**24] * 256, deltas=[(3, BASE)]))
    with pytest.raises(DamagedObject, match="larger than a pack can be"):
        run_of(WHOLE, encoded(1, [*stored[:-1], stored[-1] + 1], [2**24] * 256, deltas=[(3, BASE)]))


def test_there_is_room_for_so_much():
    rows = ChunkRows(100, limit=30, pack_cost=4)
    rows.add_copies((pack_id(number), encoded(number, [1] * 10, [1] * 10)) for number in range(2))
    assert (len(rows), rows.full) == (20, False)
    rows.add_copies([(pack_id(2), encoded(2, [], []))])
    assert rows.full
    assert list(rows.packs) == [pack_id(0), pack_id(1)]
    rows = ChunkRows(1, limit=30)
    rows.add_copies([(pack_id(0), WHOLE)])
    assert (len(rows), rows.full) == (0, True)


def test_a_pack_is_taken_once():
    rows = ChunkRows(100)
    rows.add_copies([(pack_id(0), WHOLE), (pack_id(0), WHOLE)])
    rows.add_copies([(pack_id(0), WHOLE)])
    assert len(rows) == 2


def test_of_equal_ids_the_first_added_stays_first():
    ids = GENERATOR.bytes(32)
    runs = [run_of(encoded(0, [3, 4], [9, 9], ids=ids * 2)), run_of(encoded(0, [5], [9], ids=ids))]
    assert merge_runs(*runs).columns[2].tolist() == [3, 4, 5]
    found, rows = merge_runs(*runs).find(id_words(np.frombuffer(ids, np.uint8).reshape(1, 32)))
    assert (found.tolist(), rows.tolist()) == ([0], [0])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 1000])
def test_hints_never_hide_a_chunk(count):
    run = run_of(encoded(0, [1] * count, [1] * count))
    found, rows = run.find(run.words)
    assert found.tolist() == rows.tolist() == list(range(count))
    assert run.hints.size >= 4 * count
    assert run.find(run.words ^ np.uint64(2**63))[0].tolist() == []


def test_memory_for_an_addition_is_less_than_twice_that_of_its_result():
    footers = [parse_footer(encoded(number, [9] * 1000, [9] * 1000)) for number in range(200)]
    final = 200_000 * ROW_SIZE
    tracemalloc.start()
    try:
        index = ChunkIndex()
        index.add(footers)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 200_000
    assert size < final + 2**18
    assert peak < 2 * final
