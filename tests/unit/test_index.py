"""Index objects, and the index in memory."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.codecs import Codec
from cas_checkpoint.errors import DamagedObject, ForeignObject, UnsupportedStore
from cas_checkpoint.ids import ChunkId, PackId, TransactionId, digest
from cas_checkpoint.index import (
    ChunkIndex,
    IndexDirectory,
    Section,
    directory_size,
    encode_index,
    ids_array,
    parse_directory,
    parse_index,
)
from cas_checkpoint.packs import PackBuilder, footer_size, parse_footer
from cas_checkpoint.records import Kind, make_head

NAME = TransactionId(b"name of an index")


def pack_id(number):
    return PackId(number.to_bytes(16, "little"))


def footer_for(number, chunks, bases=None):
    """Return the footer of pack `number` which holds chunks of these ids, each of another size.

    `bases` says which are deltas of what.
    """
    builder = PackBuilder(pack_id(number))
    for at, chunk in enumerate(chunks):
        builder.add(ChunkId(chunk), Codec.RAW, bytes(at + 1), at + 1, 7 * at, base=(bases or {}).get(chunk))
    footer, _ = builder.finish()
    return footer


def random_ids(count, seed=0):
    source = random.Random(seed)
    return [source.randbytes(32) for _ in range(count)]


FOOTERS = [footer_for(1, random_ids(3)), footer_for(2, []), footer_for(3, random_ids(5, seed=1))]
WHOLE = encode_index(NAME, 9, FOOTERS)
END = directory_size(3)


def resealed(directory, rest=b""):
    return directory + digest((directory,)) + rest


def directory_of(rows, *, base=9, count=None, name=NAME):
    """Return a directory, without its checksum, that lists `rows`: (pack, offset, size), true or not."""
    frame = struct.pack("<QII", base, len(rows) if count is None else count, 0)
    return make_head(Kind.INDEX) + name + frame + b"".join(struct.pack("<16sQII", *row, 0) for row in rows)


# --- objects ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 10), max_size=8))
def test_the_footers_come_back_from_an_index(base, sizes):
    footers = [footer_for(number, random_ids(size, seed=number)) for number, size in enumerate(sizes)]
    found_base, found = parse_index(encode_index(NAME, base, footers), name=NAME)
    assert found_base == base
    assert [footer.encoded for footer in found] == [footer.encoded for footer in footers]
    assert [footer.pack for footer in found] == [pack_id(number) for number in range(len(sizes))]


def test_an_index_is_laid_out_as_specified():
    assert WHOLE[:32] == make_head(Kind.INDEX) + NAME
    assert struct.unpack("<QII", WHOLE[32:48]) == (9, 3, 0)
    offsets = [END, END + footer_size(3), END + footer_size(3) + footer_size(0)]
    assert list(struct.iter_unpack("<16sQII", WHOLE[48 : 48 + 32 * 3])) == [
        (footer.pack, offset, len(footer.encoded), 0) for footer, offset in zip(FOOTERS, offsets, strict=True)
    ]
    assert WHOLE[48 + 32 * 3 : END] == digest((WHOLE[: 48 + 32 * 3],))
    assert WHOLE[END:] == b"".join(footer.encoded for footer in FOOTERS)


def test_an_index_of_no_packs_is_possible():
    assert parse_index(encode_index(NAME, 0, []), name=NAME) == (0, [])


def test_the_directory_is_read_from_the_first_bytes_alone():
    directory = parse_directory(WHOLE[:END], name=NAME, object_size=len(WHOLE))
    assert isinstance(directory, IndexDirectory)
    assert directory.base == 9
    assert [parse_footer(WHOLE[at : at + size], pack=pack).pack for pack, at, size in directory.sections] == [
        pack_id(1),
        pack_id(2),
        pack_id(3),
    ]
    assert directory.sections[0] == Section(pack_id(1), END, footer_size(3))
    assert parse_directory(memoryview(WHOLE), name=NAME, object_size=len(WHOLE)) == directory


def test_too_few_first_bytes_are_told_how_many_will_do():
    for size in range(48, END):
        assert parse_directory(WHOLE[:size], name=NAME, object_size=len(WHOLE)) == END


@pytest.mark.parametrize(
    ("data", "object_size", "reason"),
    [
        (WHOLE[:47], len(WHOLE), "an index of only"),
        (WHOLE[:79], 79, "an index of only 79 bytes"),
        (WHOLE, END - 1, "cannot list 3 packs"),
        (directory_of([], count=2**32 - 1), 2**32, "cannot list 4294967295 packs"),
        (resealed(directory_of([], name=TransactionId(bytes(16)))), 80, "is the index of another name"),
        (WHOLE[: END - 1] + b"?" + WHOLE[END:], len(WHOLE), "does not fit its checksum"),
        (WHOLE, len(WHOLE) - 1, f"has {len(WHOLE) - 1} bytes instead of {len(WHOLE)}"),
        (WHOLE, len(WHOLE) + 1, f"has {len(WHOLE) + 1} bytes instead of {len(WHOLE)}"),
        (resealed(directory_of([(bytes(16), 113, 80)])), 193, "do not follow one another"),
        (resealed(directory_of([(bytes(16), 0, 80)])), 192, "do not follow one another"),
        (resealed(directory_of([(bytes(16), 112, 79)])), 191, "do not follow one another"),
        (resealed(directory_of([(bytes(16), 144, 80), (bytes(16), 223, 80)])), 304, "do not follow one another"),
        (resealed(directory_of([(bytes(16), 2**64 - 1, 80)])), 192, "do not follow one another"),
        (make_head(Kind.PACK) + WHOLE[16:], len(WHOLE), "of kind b'P'"),
    ],
)
def test_an_impossible_directory_is_refused(data, object_size, reason):
    with pytest.raises(DamagedObject, match=reason):
        parse_directory(data, name=NAME, object_size=object_size)


def test_foreign_and_newer_objects_are_told_apart():
    with pytest.raises(ForeignObject):
        parse_directory(b"?" + WHOLE[1:], name=NAME, object_size=len(WHOLE))
    with pytest.raises(UnsupportedStore, match="format version 2"):
        parse_directory(WHOLE[:9] + b"\2" + WHOLE[10:], name=NAME, object_size=len(WHOLE))


def test_an_index_cut_short_anywhere_is_damaged():
    for size in range(len(WHOLE)):
        with pytest.raises(DamagedObject):
            parse_index(WHOLE[:size], name=NAME)


def test_a_whole_index_cannot_end_within_its_directory():
    with pytest.raises(DamagedObject, match="cannot list 3 packs"):
        parse_index(WHOLE[: END - 1], name=NAME)


def test_a_section_of_another_pack_is_refused():
    swapped = directory_of([(pack_id(8), 112, len(FOOTERS[0].encoded))])
    with pytest.raises(DamagedObject, match=f"holds the footer of pack {pack_id(1).hex()}"):
        parse_index(resealed(swapped, FOOTERS[0].encoded), name=NAME)


def test_any_flipped_bit_of_an_index_is_noticed():
    for bit in range(0, 8 * len(WHOLE), 7):
        damaged = bytearray(WHOLE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedObject, UnsupportedStore)):
            parse_index(damaged, name=NAME)


# --- the index in memory ------------------------------------------------------------------------


def places(index, ids):
    """Return for each id None, or the pack and row that it was found at."""
    found = index.locate(ids_array(b"".join(ids)))
    return [
        (index.packs[number], int(size) - 1) if there else None
        for there, number, size in zip(found.found, found.packs, found.plain_sizes, strict=True)
    ]


def test_an_empty_index_knows_nothing():
    index = ChunkIndex()
    assert len(index) == 0
    assert places(index, random_ids(2)) == [None, None]
    assert index.contains([]).tolist() == []
    assert pack_id(1) not in index


def test_every_column_of_a_chunk_is_found():
    ids = random_ids(5)
    footer = footer_for(1, ids)
    index = ChunkIndex()
    index.add([footer])
    found = index.locate(ids_array(b"".join(ids)))
    assert found.found.all()
    assert found.packs.tolist() == [0] * 5
    for name in ("offsets", "stored_sizes", "plain_sizes", "checks"):
        assert getattr(found, name).tolist() == getattr(footer, name).tolist()
        assert getattr(found, name).dtype == np.uint32


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_an_index_finds_what_a_dictionary_finds(data):
    # Few different first words, so that many ids share theirs.
    pool = [word.to_bytes(8, "big") + rest * 24 for word in (0, 1, 2**64 - 1) for rest in (b"\0", b"\1", b"\xff")]
    packs = data.draw(st.lists(st.lists(st.sampled_from(pool), max_size=6), max_size=8))
    index, expected = ChunkIndex(), {}
    for number, ids in enumerate(packs):
        index.add([footer_for(number, ids)])
        for at, chunk in enumerate(ids):
            expected.setdefault(chunk, (pack_id(number), at))
    assert len(index) == sum(map(len, packs))
    assert places(index, pool) == [expected.get(chunk) for chunk in pool]
    assert index.contains(pool).tolist() == [chunk in expected for chunk in pool]


def test_whole_copies_are_preferred_whatever_was_added_first():
    first, second, base = random_ids(3)
    index = ChunkIndex()
    index.add([footer_for(1, [first, second], {first: base, second: base})])
    assert places(index, [first, second]) == [(pack_id(1), 0), (pack_id(1), 1)]
    index.add([footer_for(2, [base, second])])
    assert places(index, [first, second, base]) == [(pack_id(1), 0), (pack_id(2), 1), (pack_id(2), 0)]
    assert (len(index), index.deltas) == (4, 2)
    assert index.locate(ids_array(first + second + base), whole=True).found.tolist() == [False, True, True]
    assert index.contains([first, second, base]).all()


def test_an_index_without_deltas_tells_no_bases():
    index = ChunkIndex()
    numbers, bases = index.bases(index.locate(ids_array(b"".join(random_ids(2)))))
    assert (numbers.shape, bases.shape) == ((0,), (0, 32))
    index.add([footer_for(1, random_ids(2))])
    numbers, bases = index.bases(index.locate(ids_array(b"".join(random_ids(2)))))
    assert (numbers.shape, bases.shape) == ((0,), (0, 32))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_an_index_tells_deltas_and_their_bases_as_a_dictionary_does(data):
    pool = random_ids(8)
    one = st.tuples(st.sampled_from(pool), st.sampled_from([None, *random_ids(3, seed=1)]))
    packs = data.draw(st.lists(st.lists(one, max_size=6, unique_by=lambda pair: pair[0]), max_size=9))
    index, whole, deltas = ChunkIndex(), {}, {}
    together = data.draw(st.integers(1, 3))
    footers = []
    for number, rows in enumerate(packs):
        footers.append(footer_for(number, [chunk for chunk, _ in rows], dict(rows)))
        for at, (chunk, base) in enumerate(rows):
            if base is None:
                whole.setdefault(chunk, (pack_id(number), at))
            else:
                deltas.setdefault(chunk, ((pack_id(number), at), base))
    for start in range(0, len(footers), together):
        index.add(footers[start : start + together])
    expected = [whole.get(chunk) or deltas.get(chunk, (None,))[0] for chunk in pool]
    assert places(index, pool) == expected
    found = index.locate(ids_array(b"".join(pool)))
    numbers, bases = index.bases(found)
    told = dict(zip(numbers.tolist(), map(bytes, bases), strict=True))
    assert told == {at: deltas[chunk][1] for at, chunk in enumerate(pool) if chunk in deltas and chunk not in whole}
    assert numbers.tolist() == sorted(told)
    assert index.locate(ids_array(b"".join(pool)), whole=True).found.tolist() == [chunk in whole for chunk in pool]


def test_all_bases_of_a_chunk_are_told_whatever_copies_there_are():
    chunks, bases = random_ids(6), random_ids(4, seed=1)
    index = ChunkIndex()
    assert index.every_base(ids_array(b"".join(chunks))).shape == (0, 32)
    index.add([footer_for(1, chunks, dict.fromkeys(chunks[:2], bases[0]))])
    index.add([footer_for(2, chunks[:3], {chunks[1]: bases[1], chunks[2]: bases[2]})])
    index.add(
        [footer_for(3, [chunks[5]] * 2, {chunks[5]: bases[3]}), footer_for(4, chunks[1:2], {chunks[1]: bases[0]})]
    )

    def told(*wanted):
        return {bytes(base) for base in index.every_base(ids_array(b"".join(wanted)))}

    assert told(chunks[0]) == {bases[0]}
    assert told(chunks[1]) == {bases[0], bases[1]}
    assert told(chunks[0], chunks[2]) == {bases[0], bases[2]}
    assert told(chunks[3], chunks[4], bases[0]) == set()
    assert told(*chunks) == set(bases)
    assert told() == set()


def test_tables_of_bases_are_joined_so_that_few_are_searched():
    index = ChunkIndex()
    for number in range(200):
        ids = random_ids(10, seed=number)
        index.add([footer_for(number, ids, dict.fromkeys(ids, ids[0]))])
    assert len(index._bases) <= 12
    ids = random_ids(10, seed=77)
    numbers, bases = index.bases(index.locate(ids_array(b"".join(ids))))
    assert numbers.tolist() == list(range(10))
    assert {bytes(base) for base in bases} == {ids[0]}


def test_runs_are_merged_so_that_few_are_searched():
    index = ChunkIndex()
    for number in range(200):
        index.add([footer_for(number, random_ids(10, seed=number))])
    assert len(index) == 2000
    assert len(index._runs) <= 12  # each at least twice as long as the next
    assert all(older.rows >= 2 * newer.rows for older, newer in zip(index._runs, index._runs[1:], strict=False))
    assert places(index, random_ids(10, seed=77)) == [(pack_id(77), at) for at in range(10)]


def test_long_runs_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr("cas_checkpoint.index._MAX_MERGED", 40)
    index = ChunkIndex()
    for number in range(9):
        index.add([footer_for(number, random_ids(10, seed=number))])
    assert [run.rows for run in index._runs] == [40, 40, 10]
    assert all(places(index, random_ids(10, seed=number))[0] == (pack_id(number), 0) for number in range(9))


def test_of_very_many_chunks_several_runs_are_made(monkeypatch):
    monkeypatch.setattr("cas_checkpoint.index._MAX_MERGED", 0)
    monkeypatch.setattr("cas_checkpoint.index._MAX_SORTED", 25)
    index = ChunkIndex()
    index.add(footer_for(number % 9, random_ids(10, seed=number % 9)) for number in range(18))
    assert [run.rows for run in index._runs] == [30, 30, 30]
    assert all(places(index, random_ids(10, seed=number))[9] == (pack_id(number), 9) for number in range(9))


def test_several_packs_are_added_at_once():
    index = ChunkIndex()
    index.add(footer_for(number, random_ids(3, seed=number)) for number in range(4))
    assert index.packs == [pack_id(number) for number in range(4)]
    assert places(index, random_ids(3, seed=2)) == [(pack_id(2), at) for at in range(3)]


def test_a_pack_is_added_once():
    index = ChunkIndex()
    footer = footer_for(1, random_ids(3))
    index.add([footer, footer])
    index.add([footer])
    assert len(index) == 3
    assert index.packs == [pack_id(1)]
    assert pack_id(1) in index


def test_a_pack_without_chunks_is_known_all_the_same():
    index = ChunkIndex()
    index.add([footer_for(1, [])])
    assert pack_id(1) in index
    assert len(index) == 0


def test_a_look_up_beside_an_addition_sees_the_runs_as_they_were():
    index = ChunkIndex()
    index.add([footer_for(1, random_ids(3))])
    before = index._runs
    index.add([footer_for(2, random_ids(3, seed=1))])
    assert sum(run.rows for run in before) == 3


def test_ids_become_rows():
    assert ids_array(b"".join(random_ids(3))).shape == (3, 32)
    assert ids_array(b"").shape == (0, 32)
