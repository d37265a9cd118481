"""Small files of the real libraries: what is found in them; and any other bytes: nothing, or a sound layout."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.elements import Elements
from cas_checkpoint.tensors import Layout, Region, Tensor, find_tensors
from cas_checkpoint.tensors.dcp import read_metadata

CONTAINERS = Path(__file__).with_name("containers")
FILES = {path.name: path.read_bytes() for path in sorted(CONTAINERS.iterdir()) if path.suffix != ".json"}
LAYOUTS = json.loads((CONTAINERS / "layouts.json").read_text())
files = pytest.mark.parametrize("name", FILES)


def _layout(parts):
    kind, regions, tensors = parts
    return Layout(
        kind,
        tuple(Region(at, size, Elements(*elements), *others) for at, size, elements, *others in regions),
        tuple(Tensor(name, dtype, tuple(shape), tuple(strides), at) for name, dtype, shape, strides, at in tensors),
    )


@files
def test_golden_containers(look, name):
    layout = look(FILES[name])
    assert layout == (LAYOUTS[name] and _layout(LAYOUTS[name]))
    assert (layout is None) == (name == "pieces.metadata")


def test_every_kind_of_container_is_here():
    kinds = {parts[0] for parts in LAYOUTS.values() if parts}
    assert kinds == {"safetensors", "torch", "npy", "npz", "gguf", "dcp", "hdf5"}


@files
def test_a_truncated_container_has_no_tensors_beyond_its_end(look, name):
    data = FILES[name]
    for size in range(len(data)):
        look(data[:size])
        if size < 2000:
            read_metadata(data[:size])


@files
def test_what_ends_before_its_size_is_not_read(look, name):
    data = FILES[name]
    for size in range(0, len(data), 61):
        layout = look(data[:size], len(data))
        assert layout is None or layout.tensors


@files
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_changed_containers_are_read_or_not(look, name, data):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        value = data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 127, 128, 255]))
        count = data.draw(st.sampled_from([1, 1, 1, 2, 4, 8]))
        content[at : at + count] = bytes((value,)) * len(content[at : at + count])
    look(bytes(content))
    pieces = read_metadata(bytes(content))
    assert pieces is None or all(len(piece.offsets) == len(piece.shape) or piece.name for piece in pieces)


@files
def test_containers_with_one_flipped_bit_are_read_or_not(look, name):
    content = bytearray(FILES[name])
    for at in range(0, len(content), 1 + len(content) // 1500):
        content[at] ^= 1 << at % 8
        look(bytes(content))
        read_metadata(bytes(content))
        content[at] ^= 1 << at % 8


@settings(deadline=None, max_examples=300)
@given(head=st.sampled_from([b"", *(data[:64] for data in FILES.values())]), data=st.binary(max_size=400))
def test_any_bytes_are_read_or_not(look, head, data):
    look(head + data)
    look(head[:8] + data)
    read_metadata(data)
    read_metadata(head[:2] + data + b".")


def test_nothing_but_what_read_raises_is_raised():
    def read(offset, size):
        if offset:
            raise ValueError("the disk is gone")
        return FILES["state.pt"][:size]

    with pytest.raises(ValueError, match="the disk is gone"):
        find_tensors(read, len(FILES["state.pt"]))


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"plain text, and no container of tensors"])
def test_other_files_have_no_tensors(look, data):
    assert look(data) is None
