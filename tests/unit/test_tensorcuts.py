"""Tensor cuts: the same chunks of a tensor wherever it lies, from buffers of any size; all bytes are covered."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.chunking import ChunkerParameters, Cutter
from cas_checkpoint.elements import Elements
from cas_checkpoint.ids import ChunkId, chunk_id
from cas_checkpoint.segments import Segment
from cas_checkpoint.tensorcuts import TensorCuts
from cas_checkpoint.tensors import Region

SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
FLOAT = Elements(4, is_float=True)
NOISE = random.Random(5).randbytes(2**17)


def no_base(*_):
    return None


def region(offset, size, row_size=4, name="w"):
    return Region(offset, size, FLOAT, row_size, name)


def cut(data, regions, buffer=None, base=no_base):
    """Cut a stream as a stream reader does, from buffers of one size, what is left put before the next."""
    cuts, rest, found, position = TensorCuts(regions, SMALL, base), b"", [], 0
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


def test_earlier_versions_are_asked_for_by_name_and_place():
    asked = []

    def base(*what):
        asked.append(what)
        return ChunkId(b"b" * 32) if what[1] else None

    found = cut(NOISE[:2048], [region(0, 2048, 4, "layer.weight")], base=base)
    assert asked == [("layer.weight", 0, 1024), ("layer.weight", 1024, 1024)]
    assert [hint.base for _, hint in found] == [None, ChunkId(b"b" * 32)]


def test_a_file_that_ends_within_a_tensor_is_cut_to_its_end():
    found = cut(NOISE[:700], [region(100, 1000)])
    assert found[-1][0] == 700


def test_small_tensors_are_gathered():
    regions = [region(at, 40, 4, str(at)) for at in range(0, 400, 40)]
    assert [end for end, _ in cut(NOISE[:400], regions)] == Cutter(SMALL).cuts(NOISE[:400], final=True)


def test_there_is_nothing_to_guess():
    assert TensorCuts([], SMALL, no_base).skipped(1) is None
