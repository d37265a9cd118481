"""Where streams are cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.chunking import DATA_CHUNKER, METADATA_CHUNKER, ChunkerParameters, Cutter
from cas_checkpoint.errors import InvalidArgument, UnsupportedStore
from cas_checkpoint.ids import chunk_id

SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
NOISE = random.Random(1).randbytes(2**20)


def cut_in_pieces(cutter, data, sizes):
    """Return the cuts of `data` when it comes in pieces of these sizes, what is not cut yet in front of the next."""
    ends, done, at = [], 0, 0
    for size in [*sizes, len(data)]:
        at = min(at + size, len(data))
        last = at == len(data)
        ends += [done + end for end in cutter.cuts(data[done:at], final=last)]
        done = ends[-1] if ends else 0
        if last:
            break
    return ends


def ids(cutter, data):
    ends = cutter.cuts(data, final=True)
    return [chunk_id(data[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("parameters", [SMALL, METADATA_CHUNKER, DATA_CHUNKER, DATA_CHUNKER._replace(seed=2**63 - 1)])
def test_the_chunks_of_a_stream_are_the_stream_within_the_sizes_that_are_allowed(parameters):
    data = random.Random(2).randbytes(8 * parameters.max_size)
    ends = Cutter(parameters).cuts(data, final=True)
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == len(data)
    assert max(sizes) <= parameters.max_size
    assert min(sizes[:-1]) >= parameters.min_size
    assert len(set(sizes)) > 4  # cut by content


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"a"])
def test_a_stream_without_content_to_cut_by_is_cut_at_most_at_the_largest_size(byte):
    ends = Cutter(SMALL).cuts(byte * 5000, final=True)
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == 5000
    assert max(sizes) <= SMALL.max_size


@pytest.mark.parametrize("final", [True, False])
def test_nothing_has_no_chunks(final):
    assert Cutter(SMALL).cuts(b"", final=final) == []


@pytest.mark.parametrize("size", [1, 63, 64])
def test_a_short_stream_is_one_chunk_once_it_has_ended(size):
    assert Cutter(SMALL).cuts(NOISE[:size], final=True) == [size]
    assert Cutter(SMALL).cuts(NOISE[:size], final=False) == []


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 20_000), st.lists(st.integers(0, 5000), max_size=20), st.sampled_from([NOISE, bytes(20_000)]))
def test_cuts_do_not_depend_on_how_the_stream_was_read(size, sizes, noise):
    data = noise[:size]
    assert cut_in_pieces(Cutter(SMALL), data, sizes) == Cutter(SMALL).cuts(data, final=True)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5000))
def test_more_than_the_largest_size_is_always_cut_somewhere(start):
    piece = NOISE[start : start + SMALL.max_size + 1]
    assert Cutter(SMALL).cuts(piece, final=False)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_buffer_is_cut_alike(make):
    assert Cutter(SMALL).cuts(make(NOISE[:9000]), final=True) == Cutter(SMALL).cuts(NOISE[:9000], final=True)


def test_a_cutter_is_used_again_for_other_streams():
    cutter = Cutter(SMALL)
    first = cutter.cuts(NOISE[:9000], final=True)
    cutter.cuts(NOISE[9000:], final=False)
    assert cutter.cuts(NOISE[:9000], final=True) == first


@pytest.mark.parametrize("at", [0, 1, 300_000, 2**20 - 1])
@pytest.mark.parametrize("change", ["insertion", "removal", "replacement"])
def test_a_change_of_one_byte_leaves_all_but_a_few_chunks_as_they_were(at, change):
    before = ids(Cutter(METADATA_CHUNKER), NOISE)
    middle = {"insertion": b"x" + NOISE[at : at + 1], "removal": b"", "replacement": bytes([NOISE[at] ^ 1])}[change]
    after = ids(Cutter(METADATA_CHUNKER), NOISE[:at] + middle + NOISE[at + 1 :])
    assert before != after
    assert len(before) > 40
    assert len(set(after) - set(before)) <= 4
    assert len(set(before) - set(after)) <= 4


def test_the_seed_moves_the_cuts():
    assert Cutter(SMALL._replace(seed=1)).cuts(NOISE[:9000], final=True) != Cutter(SMALL).cuts(NOISE[:9000], final=True)


def test_a_cutter_tells_how_it_cuts():
    assert Cutter(METADATA_CHUNKER).parameters == METADATA_CHUNKER


def test_an_unknown_way_of_cutting_is_refused_as_too_new():
    with pytest.raises(UnsupportedStore, match="'rabin'"):
        Cutter(SMALL._replace(algorithm="rabin"))


@pytest.mark.parametrize(
    "change",
    [
        {"min_size": 0},
        {"min_size": -1},
        {"min_size": 512},  # more than the normal size
        {"normal_size": 2048},  # more than the largest size
        {"max_size": 2**40},
        {"normalization": 4},
        {"normalization": -1},
        {"seed": 2**63},
        {"seed": -1},
    ],
)
def test_parameters_out_of_range_are_refused(change):
    with pytest.raises(InvalidArgument, match="unusable chunker parameters"):
        Cutter(SMALL._replace(**change))


def test_the_first_cut_is_the_first_of_all():
    data = random.Random(4).randbytes(3 * 2**20)
    cutter = Cutter(DATA_CHUNKER)
    assert cutter.first(data) == cutter.cuts(data, final=True)[0]
    assert cutter.first(data[:1000]) is None
