"""Segments: what was found out ahead, from whatever guess, never changes what is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cas_checkpoint import segments
from cas_checkpoint.chunking import ChunkerParameters, Cutter
from cas_checkpoint.ids import chunk_id
from cas_checkpoint.segments import Segment

SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
CUTTER = Cutter(SMALL)
NOISE = random.Random(1).randbytes(2**17)


class CountingCutter(Cutter):
    """Counts how often a cut is looked for."""

    calls = 0

    def first(self, data):
        self.calls += 1
        return super().first(data)


def segment(data, cutter=CUTTER):
    return Segment(memoryview(data), cutter)


contents = st.one_of(
    st.integers(0, 20_000).map(lambda size: NOISE[:size]),
    st.integers(0, 20_000).map(bytes),
    st.tuples(st.integers(1, 1500), st.integers(1, 20)).map(lambda one: NOISE[: one[0]] * one[1]),
    st.integers(0, 9000).map(lambda size: NOISE[:size] + bytes(5000) + NOISE[size:9000]),
)


@settings(deadline=None, max_examples=200)
@given(
    data=contents, start=st.integers(0, 3000), guesses=st.lists(st.integers(0, 20_000), max_size=3), final=st.booleans()
)
@example(data=bytes(1024), start=0, guesses=[0], final=False)
@example(data=bytes(9000), start=1, guesses=[0], final=True)
def test_cuts_are_those_of_the_cutter_whatever_was_found_out_before(data, start, guesses, final):
    known = segment(data)
    for guess in guesses:
        known.cuts(guess, final=final)
    start = min(start, len(data))
    expected = [start + end for end in CUTTER.cuts(data[start:], final=final)]
    assert known.cuts(start, final=final) == segment(data).cuts(start, final=final) == expected
    assert final or len(data) - (expected[-1] if expected else start) <= SMALL.max_size


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1023, 1024, 1025, 2048, 2049])
@pytest.mark.parametrize("final", [True, False])
def test_short_segments_are_cut_as_the_cutter_cuts_them(size, final):
    for data in (NOISE[:size], bytes(size)):
        assert segment(data).cuts(0, final=final) == CUTTER.cuts(data, final=final)


def test_a_chunk_has_the_id_of_its_bytes_and_is_hashed_once(monkeypatch):
    hashed = []
    monkeypatch.setattr(segments, "chunk_id", lambda piece: hashed.append(bytes(piece)) or chunk_id(piece))
    one = segment(NOISE[:1000])
    for start, end in [(0, 10), (0, 11), (1, 11), (0, 10), (1, 11), (900, 1000)]:
        assert one.chunk(start, end) == chunk_id(NOISE[start:end])
    assert len(hashed) == 4
    assert one.known == 4


def test_from_where_a_guess_meets_the_truth_nothing_is_cut_again():
    cutter = CountingCutter(SMALL)
    one = segment(NOISE, cutter)
    one.cuts(1000, final=False)
    known = one.known
    assert one.cuts(17, final=False) == [17 + end for end in CUTTER.cuts(NOISE[17:], final=False)]
    assert cutter.calls == one.known - known < 20 < known / 10


def test_where_no_guess_meets_the_truth_all_is_cut_again():
    cutter = CountingCutter(SMALL)
    one = segment(bytes(50 * 1024), cutter)
    one.cuts(500, final=False)
    known = one.known
    assert one.cuts(0, final=True) == [1024 * number for number in range(1, 51)]
    assert cutter.calls == one.known - known >= known


def test_the_room_in_front_may_be_filled_after_what_is_behind_it_was_looked_into():
    buffer = bytearray(1024) + NOISE[600:40_000]
    one = segment(buffer)
    one.cuts(1024, final=True)
    buffer[424:1024] = NOISE[:600]
    assert one.cuts(424, final=True) == [424 + end for end in CUTTER.cuts(NOISE[:40_000], final=True)]
