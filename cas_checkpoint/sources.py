"""What is saved: walking a source in the order of a manifest.

Here it is found out what the caller gave: a path, bytes, a reader, or a mapping of these. Trees on the disk are walked
by `trees`, files and readers are read by `readers`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import TextIOBase
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from cas_checkpoint.errors import InvalidArgument, InvalidArgumentType, SourceError, SourceUnreadable
from cas_checkpoint.filescache import Row
from cas_checkpoint.ids import Buffer
from cas_checkpoint.manifests import Entry, EntryType, check_path, order
from cas_checkpoint.monitor import Notice
from cas_checkpoint.readers import BufferReader, GivenStream, SourceReader, shown, source_error
from cas_checkpoint.trees import SourceItem, TreeWalker

__all__ = ["Source", "SourceItem", "SourceReader", "Walker", "is_rereadable"]


class SupportsRead(Protocol):
    """A reader with `read`."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


class SupportsReadinto(Protocol):
    """A reader with `readinto`."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer` and return how far; 0 at the end."""


Single: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead | SupportsReadinto
Source: TypeAlias = Single | Mapping[str, Single] | Mapping[bytes, Single]
"""A path (a `str` is always a path) of a file or directory, bytes, a reader, or any of these by relative path."""

_MODE_OF_DATA: Final = 0o644


def is_rereadable(source: Source) -> bool:
    """Tell whether `source` can be read again: false if a reader in it cannot seek."""
    values = source.values() if isinstance(source, Mapping) else [source]
    return all(GivenStream(value).rereadable for value in values if _is_reader(value))


def _is_reader(value: object) -> bool:
    return not isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, Mapping, TextIOBase)) and (
        callable(getattr(value, "readinto", None)) or callable(getattr(value, "read", None))
    )


# --- what the caller gave -----------------------------------------------------------------------


class _Disk(NamedTuple):
    """A file or directory named by the caller: its name there, and where it really is."""

    name: bytes
    place: bytes


class _Top(NamedTuple):
    """One thing named by the caller, and the path of its entry; empty for what has a name of its own on the disk."""

    path: bytes
    value: _Disk | GivenStream | Buffer


def _tops(source: Source, default_name: bytes) -> list[_Top]:
    if not isinstance(source, Mapping):
        value = _resolve(source)
        return [_Top(b"" if isinstance(value, _Disk) else check_path(default_name), value)]
    items: Mapping[Any, Single] = source
    paths = {_key(key): value for key, value in items.items()}
    ordered = sorted(paths, key=order)
    for before, after in pairwise(ordered):
        if after.startswith(before + b"/"):
            raise InvalidArgument(f"{shown(after)} lies within {shown(before)}, for which there is a source too")
    if len(paths) < len(items):
        raise InvalidArgument("two keys of the mapping are the same path, once as text and once as bytes")
    return [_Top(path, _resolve(paths[path])) for path in ordered]


def _key(key: object) -> bytes:
    if isinstance(key, str):
        try:
            key = key.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"not a path that a snapshot can hold: {key!r}") from error
    if not isinstance(key, bytes):
        raise InvalidArgumentType(f"the keys of a mapping are paths, as str or bytes; received {type(key)}")
    return check_path(key)


def _resolve(source: Single) -> _Disk | GivenStream | Buffer:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _locate(source)
    if _is_reader(source):
        return GivenStream(source)
    message = f"Only a valid path or IOBase type (reader) should be provided, received {type(source)}"
    raise InvalidArgumentType(message)


def _locate(source: str | os.PathLike[str]) -> _Disk:
    """Follow symlinks now, once: what lies below is walked without following any."""
    try:
        path = os.fsencode(source)
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except ValueError as error:  # a NUL, or a character that no file name has
        raise InvalidArgument(f"not a path: {source!r} ({error})") from error
    except OSError as error:
        raise source_error(path, error) from error
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise SourceUnreadable(f"{shown(path)}: neither a file nor a directory; pass an open reader to save its data")
    return _Disk(os.path.basename(path), os.path.realpath(path))


# --- the walk -----------------------------------------------------------------------------------


class Walker:
    """Walks a source: iterate over it for the items to be saved, in the order of a manifest.

    It may be iterated again to save again; readers that can seek are then read again from where they stood when the
    walker was made.
    """

    def __init__(
        self,
        source: Source,
        *,
        now_ns: int,
        default_name: bytes = b"_dst_cp",
        owner: bool = False,
        xattrs: bool = True,
        problem: Callable[[SourceError], None],
        notice: Callable[[Notice], None],
    ) -> None:
        """Check what there is to save; nothing is read yet.

        Args:
            source: what to save. A directory gives an entry for itself (path empty) and for all that it holds; a file
                one under its own name; bytes and readers one under `default_name`; a mapping what each of its values
                gives, under its key. A symlink is followed if it is the source itself, saved as a symlink otherwise.
            now_ns: the time of what has none, in nanoseconds since 1970.
            default_name: the path of what has no name.
            owner: whether to record who owns what.
            xattrs: whether to record extended attributes.
            problem: told of what cannot be saved; unless it raises, the walk goes on without it.
            notice: told of what is left out by rule, and of metadata that could not be had.

        Raises:
            InvalidArgument: a key that cannot be a path, or lies within another.
            InvalidArgumentType: neither path, bytes, reader nor mapping of those.
            SourceNotFound: a path where nothing is.
            SourceUnreadable: a path that cannot be reached.
        """
        self._tops = _tops(source, default_name)
        self._now_ns = now_ns
        self.rows: Callable[[bytes, int], Row | None] = lambda *_: None
        """Gives what there is to compare a file on the disk with, by path and size; asked in the order of the items."""
        self._trees = TreeWalker(owner=owner, xattrs=xattrs, problem=problem, notice=notice)

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield the items; a hard link's target is the first path of its file that was not forgotten."""
        self._trees.reset(self.rows)
        for path, value in self._tops:
            if isinstance(value, _Disk):
                yield from self._trees.walk(value.place, path, path or value.name)
            else:
                yield self._given(path, value)

    def places(self) -> list[tuple[bytes, bytes]]:
        """Return what comes from the disk: the path of each top in the snapshot, and its place on the disk."""
        return [(path, value.place) for path, value in self._tops if isinstance(value, _Disk)]

    def forget(self, entry: Entry) -> None:
        """Take note, before the next item is asked for, that this one is not saved: no hard link may refer to it."""
        self._trees.forget(entry)

    def _given(self, path: bytes, value: GivenStream | Buffer) -> SourceItem:
        entry = Entry(path, EntryType.FILE, _MODE_OF_DATA, self._now_ns)
        if isinstance(value, GivenStream):
            return SourceItem(entry, value.open)
        return SourceItem(entry._replace(size=memoryview(value).nbytes), partial(BufferReader, value))
