"""Streams: cut alike by any number of workers, from buffers of any size, whatever is in them."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.buffers import ReadBuffers
from cas_checkpoint.chunking import DATA_CHUNKER, ChunkerParameters, Cutter
from cas_checkpoint.errors import SourceUnreadable
from cas_checkpoint.forecasts import Candidate, Forecast
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import PackId, StoreId, chunk_id
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.manifests import ChunkRef, decode_refs
from cas_checkpoint.packing import Coding, Packer, buffers_ahead
from cas_checkpoint.streams import StreamReader, buffer_size

SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
CUTTER = Cutter(SMALL)
HEADER = Header(StoreId(b"s" * 16), chunker=SMALL)
NOISE = random.Random(3).randbytes(2**18)


class Quiet:
    """A monitor that is not interested."""

    def wrote(self, size):
        pass


class CountingPacker(Packer):
    """Counts the buffers that its workers looked into ahead."""

    looked_into = 0

    def run(self, task):
        self.looked_into += 1
        return super().run(task)


class Pieces:
    """Gives data as a reader does; fails where it is told to."""

    def __init__(self, data, fail_at=None):
        self.data, self.at, self.fail_at = data, 0, fail_at

    def readinto(self, buffer):
        piece = self.data[self.at : self.at + len(buffer)]
        self.at += len(piece)
        if self.fail_at is not None and self.at > self.fail_at:
            raise SourceUnreadable("broken here")
        buffer[: len(piece)] = piece
        return len(piece)


class Reading:
    """A stream reader with all that it needs, and a way to end it."""

    def __init__(self, tmp_path, workers, size):
        self.buffers = ReadBuffers(size)
        self.packer = CountingPacker(
            LocalBackend(tmp_path, durable=False),
            Knowledge(0, limit=2**20),
            self.buffers,
            new_pack=lambda: PackId(random.randbytes(16)),
            workers=workers,
            coding=Coding(1),
            monitor=Quiet(),
        )
        self.reader = StreamReader(HEADER, self.buffers, lambda: self.packer)

    def read(self, data, forecast=None):
        return self.reader.read(data if isinstance(data, Pieces) else Pieces(data), lambda _: None, forecast)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.reader.flush()
                self.packer.finish()
        finally:
            self.packer.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


def cut(data):
    """Return the chunks of `data`, cut at once."""
    ends = CUTTER.cuts(data, final=True)
    return [ChunkRef(chunk_id(data[start:end]), end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def forecast_of(data):
    refs = cut(data)
    return Forecast([Candidate(refs[0], lambda: refs)])


def refs(stream):
    assert stream.outstanding == 0
    return list(decode_refs(stream.refs))


contents = st.one_of(
    st.integers(0, 60_000).map(lambda size: NOISE[:size]),
    st.integers(0, 60_000).map(bytes),
    st.tuples(st.integers(1, 3000), st.integers(1, 30)).map(lambda one: NOISE[: one[0]] * one[1]),
    st.tuples(st.integers(0, 30_000), st.integers(0, 9000)).map(
        lambda one: NOISE[: one[0]] + bytes(one[1]) + NOISE[one[0] : 30_000]
    ),
)
sizes = st.one_of(st.integers(2048, 9000), st.sampled_from([2048, 2049, 4096]))


@settings(deadline=None, max_examples=120)
@given(streams=st.lists(contents, min_size=1, max_size=3), workers=st.integers(1, 6), size=sizes)
@example(streams=[bytes(60_000)], workers=4, size=2048)
@example(streams=[NOISE[:1500] * 40], workers=4, size=2048)
@example(streams=[b"x", bytes(2047), NOISE[:6144]], workers=2, size=2048)
def test_cuts_depend_on_nothing_but_the_stream(place, streams, workers, size):
    with Reading(place, workers, size) as reading:
        found = [reading.read(data) for data in streams]
    assert [refs(stream) for stream in found] == [cut(data) if data else [] for data in streams]
    assert [stream.size for stream in found] == [len(data) for data in streams]


edits = st.lists(
    st.tuples(
        st.integers(0, 60_000), st.sampled_from([b"", b"!", b"?" * 70, bytes(3000), NOISE[-900:]]), st.integers(0, 900)
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=80)
@given(old=contents.filter(bool), changes=edits, workers=st.integers(2, 6), size=sizes)
def test_what_a_forecast_leads_to_does_not_depend_on_the_workers(place, old, changes, workers, size):
    new = old
    for at, put_in, taken_out in changes:
        new = new[:at] + put_in + new[at + taken_out :]
    found = []
    for count in (1, workers):
        with Reading(place, count, size) as reading:
            found.append(reading.read(new, forecast_of(old)))
    one, many = map(refs, found)
    assert one == many
    position = 0
    for ref in one:
        assert chunk_id(new[position : position + ref.size]) == ref.chunk
        position += ref.size
    assert position == len(new)
    if not changes:
        assert one == cut(old)


@settings(deadline=None, max_examples=40)
@given(fail_at=st.integers(0, 60_000), workers=st.integers(1, 4), before=st.integers(0, 3000))
def test_a_stream_that_breaks_leaves_no_buffer_behind_and_the_next_one_whole(place, fail_at, workers, before):
    with Reading(place, workers, 4096) as reading:
        first = reading.read(NOISE[:before])
        with pytest.raises(SourceUnreadable):
            reading.read(Pieces(NOISE[:70_000], fail_at))
        last = reading.read(NOISE[5000:40_000])
    assert refs(first) == (cut(NOISE[:before]) if before else [])
    assert refs(last) == cut(NOISE[5000:40_000])
    assert reading.buffers.used == 1  # the one that would be filled next


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 40])
def test_only_so_many_buffers_are_filled_ahead(place, workers):
    data = (b"abcdefgh" * 2048 + NOISE[:500]) * 30
    with Reading(place, workers, 4096) as reading:
        stream = reading.read(data)
    assert refs(stream) == cut(data)
    assert reading.buffers.made <= workers + 3 + buffers_ahead(workers)


@pytest.mark.parametrize(("workers", "expected"), [(1, 0), (2, 2), (4, 3), (8, 5), (1024, 5)])
def test_one_worker_looks_into_nothing_ahead_and_many_into_a_few_buffers(workers, expected):
    assert buffers_ahead(workers) == expected


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16, 32])
def test_buffers_take_a_bounded_part_of_memory(workers):
    size = buffer_size(HEADER._replace(chunker=DATA_CHUNKER), workers)
    assert 2 * DATA_CHUNKER.max_size <= size <= 8 * 2**20
    assert size * (workers + 3 + buffers_ahead(workers)) <= 96 * 2**20


def test_a_buffer_is_large_enough_for_two_of_the_largest_chunks():
    large = DATA_CHUNKER._replace(max_size=16 * 2**20)
    assert buffer_size(HEADER._replace(chunker=large), 4) == 32 * 2**20


def test_every_buffer_of_a_large_stream_is_looked_into_ahead(place):
    with Reading(place, 4, 4096) as reading:
        reading.read(NOISE)
    fresh = 4096 - SMALL.max_size
    assert reading.packer.looked_into == 1 + (len(NOISE) - 4096) // fresh


def test_what_is_looked_into_in_vain_is_looked_into_less(place):
    """Zeros are cut at the largest size, wherever one begins: no guess ever meets the truth."""
    data, size = bytes(2**18), 4000
    with Reading(place, 4, size) as reading:
        stream = reading.read(data)
    assert refs(stream) == cut(data)
    assert reading.packer.looked_into <= 0.7 * len(data) // (size - SMALL.max_size)


def test_nothing_is_looked_into_ahead_for_streams_that_fit_into_a_buffer(place):
    with Reading(place, 4, 9000) as reading:
        streams = [reading.read(NOISE[at : at + 2000]) for at in range(0, 8000, 2000)]
    assert reading.packer.looked_into == 0
    assert [refs(stream) for stream in streams] == [cut(NOISE[at : at + 2000]) for at in range(0, 8000, 2000)]
