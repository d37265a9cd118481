"""Tensor cuts: the same chunks of a tensor wherever it lies, from buffers of any size; all bytes are covered."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.chunking import ChunkerParameters, Cutter
from cas_checkpoint.elements import Elements
from cas_checkpoint.ids import ChunkId, chunk_id
from cas_checkpoint.segments import Segment
from cas_checkpoint.tensorcuts import Earlier, TensorCuts
from cas_checkpoint.tensors import Region

SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
FLOAT = Elements(4, is_float=True)
NOISE = random.Random(5).randbytes(2**17)


def nothing(_):
    return ()


def region(offset, size, row_size=4, name="w"):
    return Region(offset, size, FLOAT, row_size, name)


def cut(data, regions, buffer=None, find=nothing):
    """Cut a stream as a stream reader does, from buffers of one size, what is left put before the next."""
    cuts, rest, found, position = TensorCuts(regions, SMALL, find), b"", [], 0
    step = buffer or max(1, len(data))
    for at in range(0, len(data), step):
        piece = rest + data[at : at + step]
        final = at + step >= len(data)
        ends = cuts.cuts(Segment(memoryview(piece), Cutter(SMALL)), 0, final=final)
        found += [(position + one.end, one.hint) for one in ends]
        last = ends[-1].end if ends else 0
        position, rest = position + last, piece[last:]
        assert len(rest) <= SMALL.max_size
        assert not (final and rest)
    return found


def chunks(data, regions, buffer=None):
    ends = [end for end, _ in cut(data, regions, buffer)]
    return [chunk_id(data[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


layouts = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 1500), st.sampled_from([4, 8, 400, 1200, 6000])), max_size=6
)


@settings(max_examples=300)
@given(layouts, st.integers(0, 3000), st.integers(1025, 9000))
def test_all_is_covered_alike_from_buffers_of_any_size(layout, tail, buffer):
    regions, position = [], 0
    for number, (gap, wanted, row_size) in enumerate(layout):
        rows = max(1, min(wanted, 9000 // row_size))
        regions.append(region(position + gap, rows * row_size, row_size, f"w{number}"))
        position += gap + rows * row_size
    data = NOISE[: position + tail]
    found = cut(data, regions)
    assert cut(data, regions, buffer) == found
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(data)
    assert all(end - start <= SMALL.max_size for start, end in zip([0, *ends], ends, strict=False))
    for one in regions:
        if one.size >= SMALL.min_size:
            assert one.offset in {0, *ends}
            assert one.offset + one.size in ends
            inside = [hint for end, hint in found if one.offset < end <= one.offset + one.size]
            assert all(hint is not None and hint.elements == FLOAT for hint in inside)
    assert sum(hint is not None for _, hint in found) >= sum(one.size >= SMALL.min_size for one in regions)


def test_a_tensor_has_the_same_chunks_wherever_it_lies():
    tensor, before = NOISE[:5000], NOISE[6000:6777]
    moved = chunks(before + tensor, [region(777, 5000)])
    assert set(chunks(tensor, [region(0, 5000)])) < set(moved)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_the_parts_of_a_tensor_have_its_chunks(shards):
    tensor = NOISE[: 64 * 256]
    whole = set(chunks(tensor, [region(0, len(tensor), 64)]))
    size = len(tensor) // shards
    parts = [tensor[at : at + size] for at in range(0, len(tensor), size)]
    assert {one for part in parts for one in chunks(part, [region(0, size, 64)])} == whole


def test_parts_are_whole_rows():
    assert [end for end, _ in cut(NOISE[:3000], [region(0, 3000, 300)])] == [900, 1800, 2700, 3000]


def test_a_row_larger_than_a_chunk_is_divided_into_whole_elements():
    ends = [end for end, _ in cut(NOISE[:5000], [region(0, 5000, 2500)])]
    assert ends == [628, 1256, 1884, 2512, 3140, 3768, 4396, 5000]


def earlier(*sizes, start=0):
    """Return chunks of so many bytes each, the first at `start`; they are called by their numbers."""
    ends = list(accumulate(sizes, initial=start))
    return [Earlier(place, size, name(number)) for number, (place, size) in enumerate(zip(ends, sizes, strict=False))]


def name(number):
    return ChunkId(bytes((number,)) * 32)


def parts(size, found):
    """Return where the parts of a region end, and what each is told to be compared with."""
    asked = []

    def find(region):
        asked.append(region.name)
        return found

    cuts = cut(NOISE[:size], [region(0, size, 4, "layer.weight")], find=find)
    assert asked == ["layer.weight"]
    return [(end, hint.base, hint.start) for end, hint in cuts]


def test_earlier_versions_of_chunks_are_told():
    assert parts(2048, earlier(1024, 1024)) == [(1024, name(0), 0), (2048, name(1), 0)]
    assert parts(2048, [Earlier(1024, 1024, name(7))]) == [(1024, None, 0), (2048, name(7), 0)]
    assert parts(2048, ()) == [(1024, None, 0), (2048, None, 0)]


def test_a_part_of_an_earlier_chunk_is_a_window_of_it():
    assert parts(512, earlier(1024)) == [(512, name(0), 0)]
    assert parts(512, earlier(1024, start=-512)) == [(512, name(0), 512)]
    assert parts(512, earlier(1024, start=-100)) == [(512, name(0), 100)]
    assert parts(512, earlier(600, 600, start=-300)) == [(512, None, 0)]  # some of it was in another


def test_a_tensor_that_was_put_together_keeps_the_chunks_of_its_parts():
    ends = [256, 512, 1024]
    assert [end for end, _, _ in parts(1024, earlier(256, 256, 512))] == ends
    assert [base for _, base, _ in parts(1024, earlier(256, 256, 512))] == [name(0), name(1), name(2)]


@pytest.mark.parametrize(
    "sizes",
    [
        [1024, 1028],  # larger than a chunk may be
        [1022, 1026 - 4],  # not of whole elements, and short of the end
        [1021, 1027 - 4, 4],
        [64] * 32,  # many more than there need be
        [1024],
        [512, 512, 512],
    ],
)
def test_chunks_that_do_not_suit_a_tensor_are_not_kept(sizes):
    assert [end for end, _, _ in parts(2048, earlier(*sizes))] == [1024, 2048]


@given(st.lists(st.integers(1, 1500), max_size=12), st.integers(-2000, 2000), st.integers(16, 1000))
def test_whatever_was_there_earlier_all_is_covered(sizes, start, size):
    size *= 4
    found, before = parts(size, earlier(*sizes, start=start)), 0
    for end, base, window in found:
        assert before < end <= size
        assert end - before <= SMALL.max_size
        if base is not None:
            place = start + sum(sizes[: base[0]])
            assert place + window == before
            assert end <= place + sizes[base[0]]
        before = end
    assert before == size


def test_a_file_that_ends_within_a_tensor_is_cut_to_its_end():
    found = cut(NOISE[:700], [region(100, 1000)])
    assert found[-1][0] == 700


def test_small_tensors_are_gathered():
    regions = [region(at, 40, 4, str(at)) for at in range(0, 400, 40)]
    assert [end for end, _ in cut(NOISE[:400], regions)] == Cutter(SMALL).cuts(NOISE[:400], final=True)


def test_there_is_nothing_to_guess():
    assert TensorCuts([], SMALL, nothing).skipped(1) is None
