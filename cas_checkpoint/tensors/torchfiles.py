"""Where the tensors of a file of `torch.save` lie: a zip archive of a pickle and of storages, one member each.

The pickle is read as symbols. Tensors are found wherever they are in dictionaries, lists, tuples and objects, and are
named after the way there. Files from before torch 1.6 are no archives and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final, NamedTuple

from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.tensors.found import Found, Unreadable, dense_strides, item_size, to_shape
from cas_checkpoint.tensors.layout import Layout, ReadAt, Tensor
from cas_checkpoint.tensors.pickles import Global, Made, Persistent, Value, interpret
from cas_checkpoint.tensors.zips import Archive, data_offset, read_member

__all__ = ["add_tensors", "find_in_archive", "pickle_size", "to_lengths"]

_PICKLE: Final = "/data.pkl"
_ALONE: Final = "#0"  # the name of a tensor that is all that was saved
_MAX_DEPTH: Final = 100
_MAX_WRAPPERS: Final = 8
_COLLECTIONS: Final = (Made, tuple, list)

_STORAGES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}
_ALIASES: Final = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32"}
_WRAPPERS: Final = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
_TYPED: Final = "torch._tensor._rebuild_from_type_v2"
_PLAIN: Final = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
_WITH_DTYPE: Final = "torch._utils._rebuild_tensor_v3"


class _View(NamedTuple):
    """A tensor in a storage; `dtype` is None for what has no name here. Offset and strides are in elements."""

    key: str
    dtype: str | None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Way(NamedTuple):
    """The keys from the root of a pickle to a value, from the last one back."""

    before: _Way | None
    key: str
    length: int


class _Storage(NamedTuple):
    """Where a storage lies in the file."""

    offset: int
    size: int


def pickle_size(archive: Archive) -> int:
    """Return the bytes of the pickle in an archive of `torch.save`; 0 if it is none."""
    prefix = _prefix(archive)
    return 0 if prefix is None else archive.members[prefix + _PICKLE].size


def _prefix(archive: Archive) -> str | None:
    """Return what all names of an archive begin with; None if it is none of `torch.save`."""
    for name in archive.members:
        if name.endswith(_PICKLE) and name.count("/") == 1:
            return name.removesuffix(_PICKLE)
    return None


def find_in_archive(read: ReadAt, size: int, archive: Archive) -> Layout | None:
    """Return where the tensors of a file of `size` bytes lie; None if there are none.

    Raises:
        Unreadable: it is no such file, or damaged, or big-endian.
    """
    found = Found("torch", size)
    add_tensors(found, read, archive)
    return found.layout()


def add_tensors(found: Found, read: ReadAt, archive: Archive, root: str = "") -> None:
    """Add the tensors of an archive, and a region for each storage that they lie in.

    Args:
        found: where they go.
        read: reads the file.
        archive: an archive of `torch.save` in it.
        root: the name of what was saved; the names of the tensors in it begin with it.

    Raises:
        Unreadable: it is no such archive, or damaged, or big-endian.
    """
    prefix = _prefix(archive)
    if prefix is None:
        raise Unreadable
    order = archive.members.get(f"{prefix}/byteorder")
    if order is not None and read_member(read, archive, order) != b"little":
        raise Unreadable
    storages: dict[str, _Storage] = {}
    for path, view in _views(interpret(read_member(read, archive, archive.members[prefix + _PICKLE]))):
        name = found.name(".".join(filter(None, (root, path))) or _ALONE)
        known = storages.get(view.key)
        if known is None:
            member = archive.members.get(f"{prefix}/data/{view.key}")
            if member is None:
                raise Unreadable
            known = storages[view.key] = _Storage(data_offset(read, archive, member), member.size)
            _add_region(found, name, view, known)
        if view.dtype is not None:
            offset = known.offset + view.offset * item_size(view.dtype)
            tensor = Tensor(name, view.dtype, view.shape, view.strides, offset)
            found.add_tensor(tensor, end=known.offset + known.size)


def _add_region(found: Found, name: str, view: _View, storage: _Storage) -> None:
    if view.dtype is None:
        found.add_region(name, storage.offset, storage.size)
        return
    width = item_size(view.dtype)
    covers = view.offset == 0 and prod(view.shape) * width == storage.size
    rows = covers and view.strides == dense_strides(view.shape)
    row_size = width * prod(view.shape[1:]) if rows else width
    found.add_region(name, storage.offset, storage.size, ELEMENTS[view.dtype], row_size)


# --- tensors among symbols ----------------------------------------------------------------------


def _views(root: Value) -> Iterator[tuple[str, _View]]:
    """Yield every tensor with its name; collections that are reached twice count once."""
    seen = set()
    todo: list[tuple[_Way, Value]] = [(_Way(None, "", 0), root)]
    while todo:
        way, value = todo.pop()
        view = _to_view(value)
        if view is not None:
            yield _join(way), view
        elif id(value) not in seen and way.length < _MAX_DEPTH:
            seen.add(id(value))
            todo.extend((_Way(way, key, way.length + 1), part) for key, part in reversed(_parts(value)))


def _join(way: _Way) -> str:
    keys = []
    while way.before is not None:
        keys.append(way.key)
        way = way.before
    return ".".join(reversed(keys))


def _parts(value: Value) -> list[tuple[str, Value]]:
    """Return what a value consists of, each part with its name, as far as there may be tensors in it."""
    if not isinstance(value, Made):
        return _numbered(value)
    items = value.items or []
    parts = [(str(key) if isinstance(key, (str, int)) else str(at), part) for at, (key, part) in enumerate(items)]
    states = value.state if isinstance(value.state, tuple) else (value.state,)  # of slots apart from others
    for state in states:
        if isinstance(state, Made):
            parts += [(str(key), part) for key, part in state.items or []]
    return [*_numbered(value.arguments), *((key, part) for key, part in parts if isinstance(part, _COLLECTIONS))]


def _numbered(values: Value) -> list[tuple[str, Value]]:
    if not isinstance(values, (tuple, list)):
        return []
    return [(str(at), part) for at, part in enumerate(values) if isinstance(part, _COLLECTIONS)]


def _to_view(value: Value) -> _View | None:
    """Return the tensor that a call makes; None if it makes none."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(value, Made) or not isinstance(value.arguments, tuple):
            return None
        if value.call in _PLAIN:
            return _plain_view(value.arguments)
        if value.call == _WITH_DTYPE:
            return _view_with_dtype(value.arguments)
        value = _unwrapped(value.call, value.arguments)
    return None


def _unwrapped(call: str, arguments: tuple[Value, ...]) -> Value:
    """Return the call inside a call that makes a parameter, or a tensor of some class, of another's tensor."""
    match arguments:
        case (inner, *_) if call in _WRAPPERS:
            return inner
        case (Global() as inner_call, _, inner_arguments, *_) if call == _TYPED:
            return Made(inner_call.name, inner_arguments)
        case _:
            return None


def _plain_view(arguments: tuple[Value, ...]) -> _View | None:
    match arguments:
        case (Persistent(what=("storage", Global() as kind, str() as key, *_)), offset, lengths, strides, *_):
            dtype = _STORAGES.get(kind.name.rpartition(".")[2])
            return _view(key, dtype, offset, lengths, strides)
        case _:
            return None


def _view_with_dtype(arguments: tuple[Value, ...]) -> _View | None:
    match arguments:
        case (
            Persistent(what=("storage", _, str() as key, *_)), offset, lengths, strides, _, _, Global() as kind, *_
        ):  # fmt: skip
            name = kind.name.removeprefix("torch.")
            name = _ALIASES.get(name, name)
            return _view(key, name if name in ELEMENTS else None, offset, lengths, strides)
        case _:
            return None


def _view(key: str, dtype: str | None, offset: Value, lengths: Value, strides: Value) -> _View:
    (start,) = to_shape((offset,))
    shape, steps = to_lengths(lengths), to_lengths(strides)
    if len(shape) != len(steps):
        raise Unreadable
    return _View(key, dtype, start, shape, steps)


def to_lengths(value: Value) -> tuple[int, ...]:
    """Return the lengths of a tuple, or of a `torch.Size`.

    Raises:
        Unreadable: it is no such thing.
    """
    match value:
        case Made(call="torch.Size", arguments=(lengths,)):
            return to_shape(lengths)
        case _:
            return to_shape(value)
