"""A pickle's opcodes → symbolic values. Nothing is imported, called or built: what a pickle would make stays a name.

Understood are the opcodes of protocols 2 to 5 that pickles of tensors consist of, as `pickletools` describes them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from cas_checkpoint.tensors.found import MAX_HEADER_SIZE, Unreadable

__all__ = ["OPAQUE", "Global", "Made", "Persistent", "Value", "interpret"]

Value: TypeAlias = object
"""None, a truth value, an integer, a text, a tuple or list of values, or one of the classes below."""

_MAX_OPCODES: Final = 2**21
_MAX_NUMBER_SIZE: Final = 9  # bytes; larger ones are opaque


class Opaque:
    """A value that says nothing about tensors: bytes, a float, a set."""

    __slots__ = ()


OPAQUE: Final = Opaque()


class Global:
    """Something importable, by its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
        """Module and name, with a dot between them."""


class Persistent:
    """Something outside the pickle."""

    __slots__ = ("what",)

    def __init__(self, what: Value) -> None:
        self.what = what


class Made:
    """What a call returns, or a dictionary."""

    __slots__ = ("arguments", "call", "items", "state")

    def __init__(self, call: str, arguments: Value) -> None:
        self.call = call
        """The name of what is called, with its module; "dict" for a dictionary, "" for what has no name."""
        self.arguments = arguments
        self.items: list[tuple[Value, Value]] | None = None
        """Keys and values that were set."""
        self.state: Value = None


class _Mark:
    """Stands on the stack where a list of values begins."""


_MARK: Final = _Mark()


def _opcodes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the names of opcodes, before that of the end, with the bytes of their arguments.

    Raises:
        Unreadable: there are others, or too many, or the pickle ends before it says so.
    """
    at = 0
    for _ in range(_MAX_OPCODES):
        name, size = _ARGUMENTS.get(data[at : at + 1], ("", 0))
        at += 1
        if name == "STOP":
            return
        if not name:
            raise Unreadable
        if name == "GLOBAL":
            end = data.find(b"\n", data.find(b"\n", at) + 1)
            argument = data[at:end]
            size = len(argument) + 1 if end > at else len(data)
        else:
            if size < 0:  # its size stands before it
                prefix = -size
                size = int.from_bytes(data[at : at + prefix], "little")
                at += prefix
            argument = data[at : at + size]
        at += size
        if at > len(data):
            raise Unreadable
        yield name, argument
    raise Unreadable


def interpret(data: bytes) -> Value:
    """Return the value of a pickle, at most 16 MiB of it.

    Raises:
        Unreadable: it is damaged, too large, or uses what is not understood.
    """
    if len(data) > MAX_HEADER_SIZE:
        raise Unreadable
    machine = _Machine()
    for name, argument in _opcodes(data):
        try:
            _ACTIONS[name](machine, argument)
        except (IndexError, KeyError, UnicodeDecodeError):
            raise Unreadable from None
    return machine.pop()


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self._stack: list[Value] = []
        self._memo: dict[int, Value] = {}

    def push(self, value: Value) -> None:
        self._stack.append(value)

    def pop(self) -> Value:
        """Return the top of the stack.

        Raises:
            Unreadable: there is none, or it is a mark.
        """
        if not self._stack or self._stack[-1] is _MARK:
            raise Unreadable
        return self._stack.pop()

    def pop_many(self) -> list[Value]:
        """Return what lies above the topmost mark; mark and values go."""
        values = []
        while self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        self._stack.pop()
        return values[::-1]

    def discard(self, _argument: bytes) -> None:
        self._stack.pop()

    def discard_many(self, _argument: bytes) -> None:
        self.pop_many()

    def duplicate(self, _argument: bytes) -> None:
        self.push(self._stack[-1])

    # --- memo

    def put(self, argument: bytes) -> None:
        self._memo[int.from_bytes(argument, "little")] = self._stack[-1]

    def memoize(self, _argument: bytes) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, argument: bytes) -> None:
        self.push(self._memo[int.from_bytes(argument, "little")])

    # --- simple values

    def natural(self, argument: bytes) -> None:
        self.push(int.from_bytes(argument, "little"))

    def integer(self, argument: bytes) -> None:
        short = len(argument) <= _MAX_NUMBER_SIZE
        self.push(int.from_bytes(argument, "little", signed=True) if short else OPAQUE)

    def text(self, argument: bytes) -> None:
        self.push(argument.decode("utf-8", "surrogatepass"))

    def opaque(self, _argument: bytes) -> None:
        self.push(OPAQUE)

    # --- collections

    def make_list(self, _argument: bytes) -> None:
        self.push(self.pop_many())

    def make_tuple(self, _argument: bytes) -> None:
        self.push(tuple(self.pop_many()))

    def make_opaque(self, _argument: bytes) -> None:
        self.pop_many()
        self.push(OPAQUE)

    def append(self, _argument: bytes) -> None:
        value = self.pop()
        self._extend([value])

    def extend(self, _argument: bytes) -> None:
        self._extend(self.pop_many())

    def _extend(self, values: list[Value]) -> None:
        if isinstance(self._stack[-1], list):  # else something that is like a list
            self._stack[-1].extend(values)

    def set_item(self, _argument: bytes) -> None:
        value = self.pop()
        self._set_items([self.pop(), value])

    def set_items(self, _argument: bytes) -> None:
        self._set_items(self.pop_many())

    def _set_items(self, values: list[Value]) -> None:
        top = self._stack[-1]
        if not isinstance(top, Made) or len(values) % 2:
            raise Unreadable
        if top.items is None:
            top.items = []
        top.items.extend(zip(values[::2], values[1::2], strict=True))

    def make_dictionary(self, _argument: bytes) -> None:
        values = self.pop_many()
        self.push(Made("dict", ()))
        self._set_items(values)

    # --- what is made

    def global_name(self, argument: bytes) -> None:
        self.push(Global(argument.decode("utf-8").replace("\n", ".")))

    def stacked_global(self, _argument: bytes) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Unreadable
        self.push(Global(f"{module}.{name}"))

    def call(self, _argument: bytes) -> None:
        arguments, callee = self.pop(), self.pop()
        self.push(Made(callee.name if isinstance(callee, Global) else "", arguments))

    def call_with_names(self, argument: bytes) -> None:
        self.pop()
        self.call(argument)

    def build(self, _argument: bytes) -> None:
        state = self.pop()
        if isinstance(self._stack[-1], Made):
            self._stack[-1].state = state

    def persistent(self, _argument: bytes) -> None:
        self.push(Persistent(self.pop()))


def _push_new(make: Callable[[], Value]) -> Callable[[_Machine, bytes], None]:
    return lambda machine, _argument: machine.push(make())


def _tuple_of(count: int) -> Callable[[_Machine, bytes], None]:
    return lambda machine, _argument: machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


def _nothing(_machine: _Machine, _argument: bytes) -> None:
    return


_ACTIONS: Final[Mapping[str, Callable[[_Machine, bytes], None]]] = MappingProxyType(
    {
        **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
        "MARK": _push_new(lambda: _MARK),
        "POP": _Machine.discard,
        "POP_MARK": _Machine.discard_many,
        "DUP": _Machine.duplicate,
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
        "MEMOIZE": _Machine.memoize,
        **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
        "NONE": _push_new(lambda: None),
        "NEWTRUE": _push_new(lambda: True),
        "NEWFALSE": _push_new(lambda: False),
        **dict.fromkeys(("BININT1", "BININT2"), _Machine.natural),
        **dict.fromkeys(("BININT", "LONG1"), _Machine.integer),
        **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.text),
        **dict.fromkeys(("BINFLOAT", "LONG4", "SHORT_BINSTRING", "BINSTRING"), _Machine.opaque),
        **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.opaque),
        "EMPTY_LIST": _push_new(list),
        "LIST": _Machine.make_list,
        "APPEND": _Machine.append,
        **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.extend),
        "EMPTY_TUPLE": _push_new(tuple),
        "TUPLE": _Machine.make_tuple,
        **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
        "EMPTY_DICT": _push_new(lambda: Made("dict", ())),
        "DICT": _Machine.make_dictionary,
        "SETITEM": _Machine.set_item,
        "SETITEMS": _Machine.set_items,
        "EMPTY_SET": _Machine.opaque,
        "FROZENSET": _Machine.make_opaque,
        "GLOBAL": _Machine.global_name,
        "STACK_GLOBAL": _Machine.stacked_global,
        **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
        "NEWOBJ_EX": _Machine.call_with_names,
        "BUILD": _Machine.build,
        "BINPERSID": _Machine.persistent,
    }
)

_PREFIXES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: -1,
    pickletools.TAKEN_FROM_ARGUMENT4: -4,
    pickletools.TAKEN_FROM_ARGUMENT4U: -4,
    pickletools.TAKEN_FROM_ARGUMENT8U: -8,
}

_ARGUMENTS: Final = MappingProxyType(
    {
        opcode.code.encode("latin-1"): (
            opcode.name,
            _PREFIXES.get(opcode.arg.n, opcode.arg.n) if opcode.arg is not None else 0,
        )
        for opcode in pickletools.opcodes
        if opcode.name in _ACTIONS
    }
)
"""By its byte, the name of an opcode and the size of its argument; if negative, of the size that stands before it."""
