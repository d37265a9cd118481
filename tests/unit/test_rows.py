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


def encoded(number, stored, plain, *, blobs_size=None, count=None, ids=None):
    """Return the footer of a pack, true or not, with a true checksum."""
    frame = struct.pack("<IIQ", len(stored) if count is None else count, 0, blobs_size or sum(stored))
    ids = GENERATOR.bytes(32 * len(stored)) if ids is None else ids
    columns = b"".join(np.array(column, "<u4").tobytes() for column in (stored, plain, range(len(stored))))
    content = make_head(Kind.PACK) + pack_id(number) + frame + ids + columns
    return content + digest((content,))


def run_of(*copies):
    rows = ChunkRows(1000)
    rows.add_copies((pack_id(number), data) for number, data in enumerate(copies))
    return rows.sorted(0)


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
    other = rows.sorted(0)
    for one, two in zip(run_of(*copies), other, strict=True):
        assert (one == two).all()


WHOLE = encoded(0, [10, 20], [10, 100])


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
        (make_head(Kind.INDEX) + WHOLE[16:], "of kind b'I'"),
    ],
)
def test_a_damaged_copy_is_refused_with_all_that_came_with_it(data, reason):
    rows = ChunkRows(1000)
    rows.add_copies([(pack_id(7), encoded(7, [1], [1]))])
    with pytest.raises(DamagedObject, match=reason):
        rows.add_copies([(pack_id(8), encoded(8, [1], [1])), (pack_id(0), data)])
    assert list(rows.packs) == [pack_id(7)]
    assert len(rows) == 1
    rows.add_copies([(pack_id(0), WHOLE)])
    assert rows.sorted(0).columns[0].max() == 1


def test_what_footers_refuse_copies_refuse():
    """Neither way of reading a footer lets anything through that the other does not."""
    for bit in range(0, 8 * len(WHOLE), 3):
        damaged = bytearray(WHOLE)
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
