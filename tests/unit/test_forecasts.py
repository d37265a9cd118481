"""Forecasts: a file is cut where it was cut before, as far as it is as it was, and by content where it is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cas_checkpoint import forecasts, segments
from cas_checkpoint.buffers import ReadBuffers
from cas_checkpoint.chunking import ChunkerParameters, Cutter
from cas_checkpoint.forecasts import Candidate, Forecast
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import StoreId, chunk_id
from cas_checkpoint.manifests import ChunkRef, decode_refs
from cas_checkpoint.packing import Coding, Packer
from cas_checkpoint.segments import Segment
from cas_checkpoint.streams import StreamReader

SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
CUTTER = Cutter(SMALL)


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


DATA = noise(40_000)


class CountingCutter(Cutter):
    """Counts how often cuts are looked for."""

    def __init__(self, parameters=SMALL):
        super().__init__(parameters)
        self.calls = 0

    def cuts(self, data, *, final):
        self.calls += 1
        return super().cuts(data, final=final)

    def first(self, data):
        self.calls += 1
        return super().first(data)


def chunks_of(data, ends):
    starts = [0, *ends[:-1]]
    return [ChunkRef(chunk_id(data[start:end]), end - start) for start, end in zip(starts, ends, strict=True)]


def cut(data):
    """Return the chunks of `data` by content alone."""
    return chunks_of(data, CUTTER.cuts(data, final=True)) if data else []


def whole(data, cutter=CUTTER):
    return Segment(memoryview(data), cutter)


def candidate(refs):
    return Candidate(refs[0], lambda: refs)


def forecast_of(*contents):
    return Forecast([candidate(cut(data)) for data in contents])


def run(data, forecast, *, sizes=(), cutter=CUTTER):
    """Cut `data` as it comes, in pieces of these sizes and the rest; return all its chunks.

    What a forecast leaves when it is over is cut by content.
    """
    view = memoryview(data)
    chunks, start, came = [], 0, 0
    pieces = [*sizes, len(data)]
    for number, size in enumerate(pieces):
        final = number == len(pieces) - 1
        came = len(data) if final else min(len(data), came + size)
        before = start
        if not forecast.over:
            for end, known, _ in forecast.cuts(Segment(view[before:came], cutter), 0, final=final):
                assert known == chunk_id(view[start : before + end])
                chunks.append(ChunkRef(known, before + end - start))
                start = before + end
        if forecast.over:
            ends = [start + end for end in cutter.cuts(view[start:came], final=final)] if start < came else []
            for end in ends:
                chunks.append(ChunkRef(chunk_id(view[start:end]), end - start))
                start = end
        assert final or came - start <= SMALL.max_size  # else a buffer of two chunks would never be emptied
    assert start == len(data)
    return chunks


def check_cover(data, chunks):
    position = 0
    for chunk, size in chunks:
        assert 0 < size <= SMALL.max_size
        assert chunk_id(data[position : position + size]) == chunk
        position += size
    assert position == len(data)


# --- any edits ----------------------------------------------------------------------------------

places = st.floats(0, 1)
edits = st.one_of(
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("insert noise"), places, st.integers(1, 3000)),
    st.tuples(st.just("insert zeros"), places, st.integers(1, 5000)),
    st.tuples(st.just("delete"), places, st.integers(1, 4000)),
    st.tuples(st.just("replace"), places, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("truncate"), places, st.none()),
    st.tuples(st.just("append"), places, st.integers(1, 4000)),
    st.tuples(st.just("swap"), places, places),
    st.tuples(st.just("repeat"), places, st.integers(1, 3000)),
)


def edited(data, changes):
    for kind, where, what in changes:
        at = int(where * len(data))
        if kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "insert noise":
            data = data[:at] + noise(what, at) + data[at:]
        elif kind == "insert zeros":
            data = data[:at] + bytes(what) + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + what :]
        elif kind == "replace":
            data = data[:at] + what + data[at + len(what) :]
        elif kind == "truncate":
            data = data[:at]
        elif kind == "append":
            data += noise(what, at)
        elif kind == "swap":
            low, high = sorted((at, int(what * len(data))))
            data = data[high:] + data[low:high] + data[:low]
        else:
            data = data[:at] + data[at : at + what] * 3 + data[at + what :]
    return data


olds = st.one_of(
    st.builds(noise, st.integers(1, 20_000), st.integers(0, 3)),
    st.integers(1, 20_000).map(bytes),
    st.integers(0, 200).map(lambda count: (noise(300, count) + bytes(2000)) * (count % 7 + 1)),
)
pieces = st.lists(st.integers(0, 6000), max_size=8)


@settings(deadline=None, max_examples=300)
@given(old=olds, changes=st.lists(edits, max_size=4), sizes=pieces)
@example(old=bytes(3000), changes=[("truncate", 0.0, None)], sizes=[0])
@example(old=DATA, changes=[], sizes=[1024, 1, 1023, 1025, 64, 63])
def test_whatever_was_changed_the_chunks_cover_the_data(old, changes, sizes):
    new = edited(old, changes)
    check_cover(new, run(new, forecast_of(old), sizes=sizes))


@settings(deadline=None, max_examples=100)
@given(contents=st.lists(olds, min_size=2, max_size=4), changes=st.lists(edits, max_size=2), sizes=pieces)
def test_whatever_the_candidates_are_the_chunks_cover_the_data(contents, changes, sizes):
    new = edited(contents[0], changes)
    check_cover(new, run(new, forecast_of(*contents), sizes=sizes))


@settings(deadline=None, max_examples=100)
@given(old=olds, sizes=pieces)
def test_the_same_data_gives_the_same_chunks_without_looking_for_cuts(old, sizes):
    cutter = CountingCutter()
    assert run(old, forecast_of(old), sizes=sizes, cutter=cutter) == cut(old)
    assert cutter.calls == 0


@settings(deadline=None, max_examples=100)
@given(old=olds, what=st.binary(min_size=1, max_size=20), where=places, sizes=pieces)
def test_in_pieces_or_at_once_is_the_same(old, what, where, sizes):
    new = edited(old, [("insert", where, what)])
    assert run(new, forecast_of(old), sizes=sizes) == run(new, forecast_of(old))


INNER = sorted(set(range(39_000)) - set(CUTTER.cuts(DATA, final=True)))


@settings(deadline=None, max_examples=100)
@given(at=st.sampled_from(INNER), what=st.binary(min_size=1, max_size=40), kind=st.sampled_from(["insert", "replace"]))
def test_a_change_within_a_chunk_gives_the_chunks_that_content_alone_gives(at, what, kind):
    new = DATA[:at] + what + DATA[at + (len(what) if kind == "replace" else 0) :]
    assert run(new, forecast_of(DATA)) == cut(new)


@pytest.mark.parametrize("number", range(0, 100, 7))
def test_what_is_put_in_after_a_chunk_leaves_it_as_it_was(number):
    """Content alone might cut otherwise, for a cut depends on the byte after it as well."""
    before = cut(DATA)
    at = sum(ref.size for ref in before[:number])
    new = run(DATA[:at] + b"!!!" + DATA[at:], forecast_of(DATA))
    assert new[:number] == before[:number]


@pytest.mark.parametrize("at", range(0, 40_000, 5_000))
def test_a_few_bytes_put_in_leave_all_but_a_few_chunks_as_they_were(at):
    old, new = cut(DATA), run(DATA[:at] + b"!!!" + DATA[at:], forecast_of(DATA))
    assert 1 <= len(set(new) - set(old)) <= 8
    assert len(set(old) - set(new)) <= 8


def test_a_small_change_is_all_that_cuts_are_looked_for():
    cutter = CountingCutter()
    run(DATA[:20_000] + b"!" + DATA[20_000:], forecast_of(DATA), cutter=cutter)
    assert 1 <= cutter.calls <= 8


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, 20_000])
def test_a_file_that_was_cut_short_has_the_chunks_of_before_up_to_its_end(size):
    before = cut(DATA)
    chunks = run(DATA[:size], forecast_of(DATA))
    check_cover(DATA[:size], chunks)
    assert chunks[:-1] == before[: max(0, len(chunks) - 1)]


@pytest.mark.parametrize("extra", [1, 100, 10_000])
def test_a_file_that_grew_keeps_all_chunks_but_the_last(extra):
    before = cut(DATA)
    forecast = forecast_of(DATA)
    chunks = run(DATA + noise(extra, 9), forecast)
    assert chunks[: len(before) - 1] == before[:-1]
    assert forecast.over


def test_chunks_that_are_gone_are_passed_over():
    before = cut(DATA)
    gone = sum(ref.size for ref in before[:50])
    cutter = CountingCutter()
    assert run(DATA[gone:], forecast_of(DATA), cutter=cutter) == before[50:]
    assert cutter.calls == 1


def test_a_repetition_is_gone_on_with_from_its_beginning():
    """The chunk found again is the first of many that are alike: all that follows is still expected."""
    block = bytes(SMALL.max_size)
    head, tail = DATA[:1000], DATA[20_000:]
    old = chunks_of(head, [1000]) + chunks_of(block, [len(block)]) * 200 + cut(tail)
    new = noise(1000, 5) + block * 200 + tail
    forecast = Forecast([candidate(old)])
    cutter = CountingCutter()
    chunks = run(new, forecast, cutter=cutter)
    assert chunks[-len(cut(tail)) + 8 :] == cut(tail)[8:]
    assert cutter.calls <= 20


# --- other data ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(new=olds, sizes=pieces)
def test_data_that_is_nothing_like_it_is_cut_as_if_there_were_no_forecast(new, sizes):
    assert run(new, forecast_of(noise(5000, 99)), sizes=sizes) == cut(new)


def test_a_forecast_that_fails_too_often_is_over():
    forecast = forecast_of(DATA)
    cutter = CountingCutter()
    other = noise(100_000, 7)
    found = forecast.cuts(whole(other, cutter), 0, final=True)
    assert forecast.over
    assert len(found) == cutter.calls == forecasts._MAX_MISSES + 1
    assert [one.end for one in found] == CUTTER.cuts(other, final=True)[: len(found)]


def test_misses_count_only_in_a_row():
    """Each edit misses a few chunks; many edits together miss more than a forecast endures, yet it goes on."""
    data = bytearray(noise(300_000))
    old = bytes(data)
    for at in range(0, len(data), 3000):
        data[at] ^= 1
    forecast = forecast_of(old)
    cutter = CountingCutter()
    chunks = run(bytes(data), forecast, cutter=cutter)
    assert forecasts._MAX_MISSES < cutter.calls < len(chunks) / 2
    assert len({ref.chunk for ref in cut(old)} & {ref.chunk for ref in chunks}) > len(chunks) / 2


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_where_chunks_were_changed_in_their_places_cuts_are_looked_for_in_them_alone(every, monkeypatch):
    before = cut(DATA)[:60]
    data, position, changed = bytearray(DATA[: sum(ref.size for ref in before)]), 0, 0
    for number, ref in enumerate(before):
        if number % every == 0:
            data[position + 10] ^= 1  # where no cut can be, nor anything that moves one
            changed += 1
        position += ref.size
    hashed = []
    monkeypatch.setattr(segments, "chunk_id", lambda piece: hashed.append(len(piece)) or chunk_id(piece))
    cutter = CountingCutter()
    chunks = run(bytes(data), Forecast([candidate(before)]), cutter=cutter)
    assert [ref.size for ref in chunks] == [ref.size for ref in before]
    assert sum(ref in before for ref in chunks) == len(before) - changed
    assert cutter.calls == changed
    assert sum(hashed) == len(data)  # each byte once


def test_a_chunk_beyond_the_horizon_is_not_looked_for(monkeypatch):
    before = cut(DATA)
    gone = sum(ref.size for ref in before[:50])
    for horizon, over in ((51, False), (50, True)):
        monkeypatch.setattr(forecasts, "_HORIZON", horizon)
        forecast = forecast_of(DATA)
        forecast.cuts(whole(DATA[gone : gone + 5000]), 0, final=False)
        assert (forecast._next == 0) == over


# --- candidates ---------------------------------------------------------------------------------


def test_no_candidates_no_forecast():
    assert Forecast([]).over


def test_a_candidate_without_chunks_is_no_forecast():
    forecast = Forecast([Candidate(cut(DATA)[0], tuple)])
    assert forecast.cuts(whole(DATA), 0, final=True) == []
    assert forecast.over


def asked(refs, calls):
    def get():
        calls.append(refs[0].chunk)
        return refs

    return Candidate(refs[0], get)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("sizes", [[], [1], [10, 5000], [SMALL.max_size]])
def test_of_several_candidates_the_one_that_begins_as_the_data_does_is_chosen(which, sizes):
    contents = [noise(10_000, seed) for seed in range(3)]
    calls = []
    forecast = Forecast([asked(cut(data), calls) for data in contents])
    cutter = CountingCutter()
    assert run(contents[which], forecast, sizes=sizes, cutter=cutter) == cut(contents[which])
    assert cutter.calls == 0
    assert calls == [cut(contents[which])[0].chunk]  # no other was asked for all its chunks


def test_of_several_candidates_none_is_chosen_if_none_begins_so():
    calls = []
    forecast = Forecast([asked(cut(noise(10_000, seed)), calls) for seed in (1, 2, 3)])
    assert forecast.cuts(whole(DATA), 0, final=True) == []
    assert forecast.over
    assert calls == []


def test_a_single_candidate_is_chosen_though_the_file_begins_otherwise():
    new = b"another beginning" + DATA
    chunks = run(new, forecast_of(DATA))
    assert chunks[5:] == cut(DATA)[-len(chunks) + 5 :]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [1025, 4096, 10**6])
@pytest.mark.parametrize("sizes", [[], [2048] * 19, [100] * 300])
def test_chunks_larger_than_any_of_the_store_stall_nothing(count, size, sizes):
    ref = ChunkRef(chunk_id(b"not there"), size)
    forecast = Forecast([candidate([ref, *cut(DATA)])] * count)
    check_cover(DATA, run(DATA, forecast, sizes=sizes))


def test_a_candidate_that_lies_about_sizes_is_not_believed():
    lies = [ref._replace(size=ref.size + 1) for ref in cut(DATA)]
    assert run(DATA, Forecast([candidate(lies)])) == cut(DATA)


# --- as streams are read ------------------------------------------------------------------------


class Pieces:
    """Gives data as a reader does."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def readinto(self, buffer):
        piece = self.data[self.at : self.at + len(buffer)]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


class NoBackend:
    parallel_puts = 1


@pytest.mark.parametrize("buffer", [2048, 2049, 5000, 100_000])
@pytest.mark.parametrize("before", [0, 1, 2000, 2047])
@pytest.mark.parametrize("kind", ["same", "changed", "grown", "other", "empty"])
def test_a_stream_reader_with_a_forecast_reads_all(buffer, before, kind):
    new = {
        "same": DATA,
        "changed": DATA[:9000] + b"!" + DATA[9500:],
        "grown": DATA + noise(5000, 3),
        "other": noise(60_000, 4),
        "empty": b"",
    }[kind]
    buffers = ReadBuffers(buffer)
    packer = Packer(
        NoBackend(), None, buffers, new_pack=lambda: bytes(16), workers=1, coding=Coding(1), monitor=None
    )  # keeps everything in memory, as for a commit
    try:
        reader = StreamReader(Header(StoreId(b"s" * 16), chunker=SMALL), buffers, lambda: packer)
        first = reader.read(Pieces(noise(before, 8)), lambda _: None)
        stream = reader.read(Pieces(new), lambda _: None, forecast_of(DATA, noise(9000, 6)))
        last = reader.read(Pieces(DATA), lambda _: None, forecast_of(DATA))
        reader.flush()
        packer.settle()
    finally:
        packer.close()
    assert [one.outstanding for one in (first, stream, last)] == [0, 0, 0]
    assert (first.size, stream.size, last.size) == (before, len(new), len(DATA))
    check_cover(new, decode_refs(stream.refs))
    assert list(decode_refs(last.refs)) == cut(DATA)
    if kind == "same":
        assert list(decode_refs(stream.refs)) == cut(DATA)
    if kind in ("same", "changed", "grown"):
        assert last.bytes_new < 3000
