"""The header of GGUF files: metadata of every type, tensors, and damage."""

import struct

import pytest

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors import gguf
from cas_checkpoint.tensors.layout import Region, Tensor

OPAQUE = Elements(1, is_float=False)


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, value=b""):
    return text(key) + struct.pack("<I", kind) + value


def array(kind, count, values):
    return struct.pack("<IQ", kind, count) + values


def tensor(name, shape, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def make(pairs, tensors, *, version=3, magic=b"GGUF", counts=None, alignment=32, size=200):
    count, pair_count = counts or (len(tensors), len(pairs))
    header = magic + struct.pack("<IQQ", version, count, pair_count) + b"".join((*pairs, *tensors))
    return header + bytes(-len(header) % alignment + size)


W = tensor("w", (3, 2))


@pytest.mark.parametrize("version", [2, 3])
def test_tensors(look, version):
    tensors = [
        tensor("w", (3, 2)),
        tensor("q", (32, 1), 8, 32),
        tensor("h", (5,), 1, 96),
        tensor("b", (5,), 30, 128),
        tensor("scalar", (), 27, 160),
        tensor("last", (32,), 8, 192),
    ]
    data = make([], tensors, version=version)
    start = len(data) - 200
    assert look(data) == (
        "gguf",
        (
            Region(start, 24, ELEMENTS["float32"], 12, "w"),
            Region(start + 32, 64, OPAQUE, 1, "q"),
            Region(start + 96, 10, ELEMENTS["float16"], 2, "h"),
            Region(start + 128, 10, ELEMENTS["bfloat16"], 2, "b"),
            Region(start + 160, 8, ELEMENTS["int64"], 8, "scalar"),
            Region(start + 192, 8, OPAQUE, 1, "last"),
        ),
        (
            Tensor("w", "float32", (2, 3), (3, 1), start),
            Tensor("h", "float16", (5,), (1,), start + 96),
            Tensor("b", "bfloat16", (5,), (1,), start + 128),
            Tensor("scalar", "int64", (), (), start + 160),
        ),
    )


@pytest.mark.parametrize("alignment", [1, 8, 64, 2**16])
def test_alignment(look, alignment):
    data = make([pair("general.alignment", 4, struct.pack("<I", alignment))], [W], alignment=alignment)
    assert look(data).regions[0].offset == len(data) - 200


@pytest.mark.parametrize("alignment", [0, 2**16 + 1])
def test_odd_alignment_is_refused(look, alignment):
    assert look(make([pair("general.alignment", 4, struct.pack("<I", alignment))], [W])) is None


WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
VALUES = {
    **{kind: bytes(width) for kind, width in WIDTHS.items()},
    8: text("some text"),
    9: array(8, 2, text("a") + text("bc")),
}


@pytest.mark.parametrize("kind", VALUES)
def test_metadata_of_each_type_is_passed_over(look, kind):
    pairs = [
        pair("value", kind, VALUES[kind]),
        pair("array", 9, array(kind, 3, VALUES[kind] * 3)),
        pair("arrays", 9, array(9, 2, array(kind, 1, VALUES[kind]) * 2)),
        pair("general.alignment", 8, text("not a number")),
    ]
    data = make(pairs, [W])
    assert look(data).regions[0].offset == len(data) - 200


def test_long_metadata(look):
    tokens = b"".join(text("token" * (at % 7)) for at in range(20_000))
    pairs = [pair("tokens", 9, array(8, 20_000, tokens)), pair("blob", 9, array(0, 300_000, bytes(300_000)))]
    pairs += [pair("k" * 100_000, 0, b"x")]
    data = make(pairs, [W])
    assert look(data).regions[0].offset == len(data) - 200


@pytest.mark.parametrize(
    "data",
    [
        make([], [W], version=1),
        make([], [W], version=4),
        make([], [W], version=0x03000000),
        make([], []),
        make([], [W], counts=(2**17 + 1, 0)),
        make([], [W], counts=(2, 0), size=0),
        make([], [W], counts=(1, 2**63)),
        make([pair("a", 13)], [W]),
        make([pair("a", 9, array(9, 1, array(9, 1, array(9, 1, array(9, 1, array(0, 1, b"x"))))))], [W]),
        make([pair("a", 9, array(0, 2**63, b""))], [W]),
        make([pair("a", 9, array(8, 2**63, b""))], [W]),
        make([pair("a", 8, struct.pack("<Q", 2**40))], [W]),
        make([], [tensor("w", (1,) * 9)]),
        make([], [tensor("w", (2**63,))]),
        make([], [tensor("w", (2**40, 2**40))]),
        make([], [tensor("w", (51,))]),
        make([], [tensor("w", (3, 2)), tensor("v", (3,), 0, 20)]),
        make([], [tensor("w", (3,), 0, 201)]),
        make([], [tensor("w", (3,), 8, 201)]),
        make([], [W], size=23),
    ],
)
def test_damaged_files_are_refused(look, data):
    assert look(data) is None


def test_another_magic_is_refused():
    data = make([], [W], magic=b"GGML")
    with pytest.raises(gguf.Unreadable):
        gguf.find(lambda offset, size: data[offset : offset + size], len(data))


def test_tensors_at_one_place_share_what_lies_there(look):
    layout = look(make([], [tensor("w", (3, 2)), tensor("v", (2,)), tensor("q", (9,), 8)]))
    assert [region.name for region in layout.regions] == ["v"]
    assert [found.name for found in layout.tensors] == ["w", "v"]
