"""The header of safetensors: what is taken from it, and what is refused."""

import json

import pytest

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors import safetensors
from cas_checkpoint.tensors.found import Unreadable
from cas_checkpoint.tensors.layout import Region, Tensor


def make(entries, size=100):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def entry(dtype="F32", shape=(2, 3), data_offsets=(0, 24)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


def test_tensors_and_metadata(look):
    data = make(
        {"__metadata__": {"a": "b"}, "w": entry(), "e": entry("I8", [0], [24, 24]), "s": entry("F64", [], [24, 32])}
    )
    start = len(data) - 100
    assert look(data) == (
        "safetensors",
        (
            Region(start, 24, ELEMENTS["float32"], 12, "w"),
            Region(start + 24, 8, ELEMENTS["float64"], 8, "s"),
        ),
        (
            Tensor("w", "float32", (2, 3), (3, 1), start),
            Tensor("e", "int8", (0,), (1,), start + 24),
            Tensor("s", "float64", (), (), start + 24),
        ),
    )


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "of tomorrow"])
def test_types_that_are_not_known_have_a_region_without_elements(look, dtype):
    data = make({"w": entry(dtype, [5], [10, 13])})
    assert look(data) == ("safetensors", (Region(len(data) - 90, 3, Elements(1, is_float=False), 1, "w"),), ())


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"__metadata__": {}},
        {"w": 5},
        {"w": {}},
        {"w": entry(dtype=None)},
        {"w": entry(dtype=["F32"])},
        {"w": entry(shape=[2, 4])},
        {"w": entry(shape=[2, -3])},
        {"w": entry(shape=None)},
        {"w": entry(data_offsets=[0])},
        {"w": entry(data_offsets=[24, 0])},
        {"w": entry(data_offsets=[80, 104])},
        {"w": entry("F4", [5], [99, 103])},
        {"w": entry(shape=[2**62, 2**62])},
        b"{}garbage",
        b'{"w": "\xff"}',
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_other_headers_are_refused(look, entries):
    assert look(make(entries)) is None


def test_a_list_is_no_header():
    data = make(b"[1]")
    with pytest.raises(Unreadable):
        safetensors.find(lambda offset, size: data[offset : offset + size], len(data))


def test_a_header_of_too_many_values_is_refused(look, monkeypatch):
    data = make({"w": entry()})
    assert look(data) is not None
    monkeypatch.setattr(safetensors, "_MAX_PARTS", 5)
    assert look(data) is None


@pytest.mark.parametrize("size", [0, 1, 2**24 + 1, 2**63])
def test_a_header_of_an_odd_size_is_refused(look, size):
    assert look(size.to_bytes(8, "little") + b'{"a":5}' + bytes(100)) is None
