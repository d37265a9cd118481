"""The one interface between the store and the place where its objects lie, and what every backend shares.

Keys are relative, `/`-separated and lower-case (`a-z 0-9 . _ - %`). Nothing else gets in and nothing else comes
out: a file in a store's directory whose name is no valid key is not listed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from cas_checkpoint.errors import DamagedObject, InvalidArgument, ObjectNotFound

__all__ = ["MAX_KEY_SIZE", "Backend", "Buffer", "ObjectInfo", "check_key", "check_prefix", "check_range", "is_key"]

Buffer = bytes | bytearray | memoryview

MAX_KEY_SIZE = 512
_COMPONENT = r"(?!\.)[a-z0-9._%-]{1,255}"
_KEY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


class ObjectInfo(NamedTuple):
    """One line of a listing.

    Attributes:
        key: the object's key.
        size: its size in bytes.
        modified: when it was written, by the storage's own clock, in seconds since 1970; None where that is not told.
    """

    key: str
    size: int
    modified: float | None = None


def is_key(text: str) -> bool:
    """Tell whether `text` can be the key of an object."""
    return len(text) <= MAX_KEY_SIZE and _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Return `key`, or raise `InvalidArgument` if it cannot be the key of an object."""
    if not is_key(key):
        raise InvalidArgument(f"not a valid object key: {key!r} (lower-case a-z 0-9 . _ - % and / only)")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`, or raise `InvalidArgument` if it is neither empty nor a directory of keys ("packs/")."""
    if prefix and not (prefix.endswith("/") and is_key(prefix[:-1])):
        raise InvalidArgument(f'not a valid prefix of keys: {prefix!r} (a directory such as "packs/", or "" for all)')
    return prefix


def check_range(offset: int, size: int) -> None:
    """Raise `InvalidArgument` unless `offset` and `size` can be those of a part of an object."""
    if offset < 0 or size < 0:
        raise InvalidArgument(f"no part of an object begins at {offset} and has {size} bytes")


class Backend(ABC):
    """A flat set of objects under one prefix.

    Every method may be called from several threads at once. An absent object is `ObjectNotFound`; anything
    else that the file system refuses is `StorageError`, naming the key and the operation.

    Attributes:
        url: where the objects lie, as given by the user.
        parallel_puts: how many large objects are best written at once; each is held in memory meanwhile.
        near: whether reading a part of an object in several pieces costs hardly more than reading it at once.
    """

    url: str
    parallel_puts: ClassVar[int] = 2
    near: ClassVar[bool] = False

    @abstractmethod
    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write the object `key`, the concatenation of `parts`, replacing any object of that name.

        When this returns, the object is complete and as durable as the backend can make it; until then
        nothing is to be seen under its key.
        """

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object `key` unless there is one; tell whether the object there is now made of `data`.

        Of several callers with different data at most one is told True. True is also the answer where an
        earlier attempt of ours arrived although its response was lost, so `data` should hold something
        that no other writer's has.
        """

    @abstractmethod
    def get(self, key: str, *, max_size: int) -> bytes:
        """Return the whole object; one larger than `max_size` bytes is `DamagedObject`, and is not read."""

    @abstractmethod
    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`; an object that ends before is `DamagedObject`."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of bytes, with those from `offset`; an object that ends before is `DamagedObject`."""
        buffer[:] = self.get_range(key, offset, len(buffer))

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the object's size in bytes."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with the directory `prefix` ("packs/", or "" for all), in any order."""

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the keys of what `list` yields; cheaper where sizes have to be asked for."""
        return (info.key for info in self.list(prefix))

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; that there is none is no error."""

    def sweep(self, grace: float) -> int:  # noqa: ARG002 -- for those that have something to sweep
        """Remove what writes that never came to their end have left, if it is no object and older than `grace` seconds.

        Returns:
            The bytes that were freed.
        """
        return 0

    def _holds(self, key: str, data: bytes) -> bool | None:
        """Tell whether the object `key` is made of `data`; None if there is no such object."""
        try:
            return self.get(key, max_size=len(data)) == data
        except ObjectNotFound:
            return None
        except DamagedObject:  # it is larger
            return False
