"""Objects on any file system that fsspec knows, and the one in memory.

fsspec itself is imported only when such a backend is opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, is_key
from cas_checkpoint.errors import DamagedObject, InvalidArgument, ObjectNotFound, StorageError

__all__ = ["FsspecBackend", "MemoryBackend"]

_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.1  # seconds; doubled at each further attempt
_ATOMIC_CREATE: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Protocols whose `pipe_file(mode="create")` is one conditional request."""


@contextmanager
def _told(operation: str, key: str) -> Iterator[None]:
    """Turn whatever a file system raises into errors of ours."""
    try:
        yield
    except (StorageError, DamagedObject, InvalidArgument):
        raise
    except FileNotFoundError as error:
        raise ObjectNotFound(key) from error
    except Exception as error:  # each file system of fsspec has exceptions of its own
        raise StorageError(f"cannot {operation} {key or 'the store'}: {type(error).__name__}: {error}") from error


class FsspecBackend(Backend):
    """A prefix on an fsspec file system. Connections are opened when first needed, anew in each process."""

    def __init__(self, url: str, *, storage_options: Mapping[str, object] | None = None) -> None:
        """Use the prefix `url`; a protocol that fsspec does not know, or cannot import, is `InvalidArgument`."""
        self.url = url.rstrip("/")
        self._options = dict(storage_options or {})
        self._connection: tuple[int, Any, str] | None = None
        self._connect()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_connection": None}

    def _connect(self) -> tuple[Any, str]:
        """Return the file system and the prefix on it."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = (os.getpid(), *self._open())
        return self._connection[1:]

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # noqa: PLC0415 -- heavy, and not needed for local disks

        options = {"use_listings_cache": False, **self._options}
        try:
            file_system, root = url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise InvalidArgument(f"cannot open {self.url}: {error}") from error
        except TypeError as error:
            raise InvalidArgument(f"cannot open {self.url}: unusable storage options ({error})") from error
        return file_system, root.rstrip("/")

    def _at(self, key: str) -> tuple[Any, str]:
        file_system, root = self._connect()
        return file_system, f"{root}/{check_key(key)}"

    @property
    def atomic_create(self) -> bool:
        """Whether put-if-absent is one operation of the file system, so that of two writers only one can win."""
        return self.url.partition("://")[0].rpartition("::")[2] in _ATOMIC_CREATE

    # --- writing ---

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object in one piece."""
        file_system, path = self._at(key)
        with _told("write", key):
            self._prepare(file_system, path)
            file_system.pipe_file(path, _joined(parts))

    def _prepare(self, file_system: Any, path: str) -> None:  # noqa: ANN401 -- fsspec has no types
        """Make the directory of an object, where the file system has directories."""
        file_system.makedirs(path.rpartition("/")[0], exist_ok=True)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object; on any error look what is there, since a response may have been lost."""
        file_system, path = self._at(key)
        pause = _FIRST_PAUSE
        for attempt in range(_ATTEMPTS):
            try:
                with _told("create", key):
                    self._prepare(file_system, path)
                    self._create(file_system, path, data)
                return True
            except StorageError as error:
                found = self._find(key, len(data))
                if found is not None:
                    return found == data
                if attempt == _ATTEMPTS - 1:
                    raise StorageError(f"cannot create {key}: {error.__cause__ or error}") from error
            time.sleep(pause)
            pause *= 2
        return False

    def _create(self, file_system: Any, path: str, data: bytes) -> None:  # noqa: ANN401 -- fsspec has no types
        file_system.pipe_file(path, data, mode="create")

    def _find(self, key: str, size: int) -> bytes | None:
        """Return the object that is there (or something else than any data of that size), None if there is none."""
        try:
            return self.get(key, max_size=size)
        except ObjectNotFound:
            return None
        except DamagedObject:
            return b""

    def delete(self, key: str) -> None:
        """Remove an object."""
        file_system, path = self._at(key)
        try:
            with _told("delete", key):
                file_system.rm_file(path)
        except ObjectNotFound:
            return

    # --- reading ---

    def get(self, key: str, *, max_size: int) -> bytes:
        """Read a whole object, or refuse it after one byte too many."""
        file_system, path = self._at(key)
        with _told("read", key):
            data: bytes = file_system.cat_file(path, start=0, end=max_size + 1)
        if len(data) > max_size:
            raise DamagedObject(f"has more than the {max_size} bytes that are allowed", key=key)
        return data

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Read a part of an object."""
        if size == 0:
            return b""
        file_system, path = self._at(key)
        with _told("read", key):
            data: bytes = file_system.cat_file(path, start=offset, end=offset + size)
        if len(data) != size:
            raise DamagedObject(f"is truncated: has {offset + len(data)} bytes, {offset + size} are needed", key=key)
        return data

    def size(self, key: str) -> int:
        """Tell an object's size."""
        file_system, path = self._at(key)
        with _told("look at", key):
            return int(file_system.info(path)["size"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below a directory."""
        file_system, root = self._connect()
        place = f"{root}/{prefix}".rstrip("/")
        try:
            with _told("list", prefix):
                file_system.invalidate_cache()
                found = file_system.find(place, detail=True)
        except ObjectNotFound:
            return
        start = len(root) + 1
        for path, info in found.items():
            key = path[start:]
            if is_key(key) and info.get("type") == "file":
                yield ObjectInfo(key, int(info["size"] or 0))


class MemoryBackend(FsspecBackend):
    """fsspec's file system in memory, shared by all of one process, with put-if-absent made atomic by a lock."""

    _lock: Final = threading.Lock()

    atomic_create = True

    def _create(self, file_system: Any, path: str, data: bytes) -> None:  # noqa: ANN401 -- fsspec has no types
        with self._lock:
            super()._create(file_system, path, data)

    def _prepare(self, file_system: Any, path: str) -> None:  # noqa: ANN401 -- fsspec has no types
        """Do nothing: directories in memory are made by what lies in them."""


def _joined(parts: Sequence[Buffer]) -> bytes:
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    return b"".join(parts)
