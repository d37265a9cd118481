"""Pickles as symbols: what each opcode leaves, and what is refused."""

import argparse
import collections
import pickle
import struct

import pytest

from cas_checkpoint.tensors import pickles
from cas_checkpoint.tensors.found import Unreadable
from cas_checkpoint.tensors.pickles import OPAQUE, Global, Made, Persistent, interpret


def plain(value):
    """Return a symbolic value as tuples, lists and numbers."""
    match value:
        case list():
            return [plain(part) for part in value]
        case tuple():
            return tuple(plain(part) for part in value)
        case Global():
            return ("global", value.name)
        case Persistent():
            return ("persistent", plain(value.what))
        case Made():
            items = [(plain(key), plain(part)) for key, part in value.items or ()]
            return (value.call, plain(value.arguments), items, plain(value.state))
        case _:
            return "opaque" if value is OPAQUE else value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 255, 65535, 2**31 - 1, -1, -(2**31), 2**62, -(2**63), "text", "ä\ud800", "x" * 300),
        *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [1, 2, 3], [[], [()]], ("a", "a", ("a",))),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_simple_values(protocol, value):
    assert plain(interpret(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dictionaries(protocol):
    value = {"a": 1, 2: {"b": []}, (3,): {}}
    expected = ("dict", (), [("a", 1), (2, ("dict", (), [("b", [])], None)), ((3,), ("dict", (), [], None))], None)
    assert plain(interpret(pickle.dumps(value, protocol))) == expected


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "value", [1.5, b"bytes", bytes(300), 2**100, 2**3000, bytearray(b"x")], ids=lambda value: repr(value)[:30]
)
def test_values_that_say_nothing(protocol, value):
    found = plain(interpret(pickle.dumps(value, protocol)))
    assert found == "opaque" or found[0] == "builtins.bytearray"


@pytest.mark.parametrize("value", [{1, 2}, frozenset((1, 2))])
def test_sets_say_nothing(value):
    assert plain(interpret(pickle.dumps([value, 5], 4))) == ["opaque", 5]


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects(protocol):
    value = argparse.Namespace(a=1)
    found = plain(interpret(pickle.dumps(value, protocol)))
    assert found == ("argparse.Namespace", (), [], ("dict", (), [("a", 1)], None))


@pytest.mark.parametrize("protocol", [2, 4])
def test_calls(protocol):
    value = collections.OrderedDict(a=collections.deque([1]))
    found = plain(interpret(pickle.dumps(value, protocol)))
    assert found == ("collections.OrderedDict", (), [("a", ("collections.deque", (), [], None))], None)


def test_what_comes_back_is_the_same_value():
    shared = [1]
    found = interpret(pickle.dumps([shared, shared, (shared,)], 4))
    assert found[0] is found[1] is found[2][0]
    cyclic = []
    cyclic.append(cyclic)
    found = interpret(pickle.dumps(cyclic, 4))
    assert found[0] is found


@pytest.mark.parametrize(
    ("opcodes", "expected"),
    [
        (b"K\1K\2\x86Q", ("persistent", (1, 2))),
        (b"K\1K\2" + b"0", 1),
        (b"K\1(K\2K\3" + b"1", 1),
        (b"K\1" + b"2\x86", (1, 1)),
        (b"(K\1K\2l", [1, 2]),
        (b"(K\1K\2d", ("dict", (), [(1, 2)], None)),
        (b"}K\1K\2s", ("dict", (), [(1, 2)], None)),
        (b"}K\1K\2sK\3K\4s", ("dict", (), [(1, 2), (3, 4)], None)),
        (b"]K\1a", [1]),
        (b"\x8f(K\1\x90", "opaque"),
        (b"ca b\nc.d\n", ("global", "a b.c.d")),
        (b"\x8c\1a\x8c\1b\x93", ("global", "a.b")),
        (b"ca\nb\n)}\x92", ("a.b", (), [], None)),
        (b"K\1)R", ("", (), [], None)),
        (b"K\1N\x85b", 1),
        (b"U\1ar\5\0\0\0j\5\0\0\0\x86", ("opaque", "opaque")),
        (b"T\1\0\0\0a", "opaque"),
        (b"\x8d\1\0\0\0\0\0\0\0a", "a"),
        (b"\x8e\1\0\0\0\0\0\0\0a", "opaque"),
        (b"\x96\1\0\0\0\0\0\0\0a", "opaque"),
        (b"\x8a\x0a" + bytes(10), "opaque"),
        (b"\x8a\0", 0),
        (b"K\1\x94K\2h\0", 1),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_opcodes(opcodes, expected):
    found = plain(interpret(b"(K\x09" + opcodes + b"t."))
    assert found[-1] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02N",
        b".",
        b"(.",
        b"0.",
        b"1.",
        b"2.",
        b"a.",
        b"Na.",
        b"e.",
        b"(e.",
        b"(NNe.",
        b"NN(NNu.",
        b"}(Nu.",
        b"(Nd.",
        b"Ns.",
        b"}Ns.",
        b"(\x86.",
        b"K\1\x86.",
        b"q\0.",
        b"\x94.",
        b"h\0.",
        b"K\1K\2\x93.",
        b"\x8c\1aK\2\x93.",
        b"NR.",
        b"(R.",
        b"N)\x92.",
        b"Nb.",
        b"Q.",
        b"X\5\0\0\0abc.",
        b"X\1\0\0\0\xff.",
        b"\x8d" + b"\xff" * 8 + b"a.",
        b"ca\n.",
        b"ca\nb.",
        b"c",
        b"c\xff\n\xff\n.",
        b"S'text'\n.",
        b"I5\n.",
        b"P1\n.",
        b"\x82\1.",
        b"(ia\nb\n.",
        b"\x97.",
        b"\xff.",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_damaged_or_unknown_pickles_are_refused(data):
    with pytest.raises(Unreadable):
        interpret(data)


def test_too_many_bytes_or_opcodes_are_refused(monkeypatch):
    with pytest.raises(Unreadable):
        interpret(b"\x8e" + struct.pack("<Q", 2**24) + bytes(2**24) + b".")
    monkeypatch.setattr(pickles, "_MAX_OPCODES", 100)
    assert interpret(b"N0" * 49 + b"N.") is None
    with pytest.raises(Unreadable):
        interpret(b"N0" * 50 + b"N.")


def test_nothing_is_called():
    class Evil:
        def __reduce__(self):
            return (print, ("called",))

    assert plain(interpret(pickle.dumps(Evil(), 4))) == ("builtins.print", ("called",), [], None)
