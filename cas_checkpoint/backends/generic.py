"""Objects on any file system that fsspec knows, and the one in memory. How it is opened stands in `connections`."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any, ClassVar, Final

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, check_prefix, check_range, is_key
from cas_checkpoint.backends.connections import Connections, FileSystem
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, ObjectNotFound, StorageError

__all__ = ["FsspecBackend", "MemoryBackend"]

_PAUSES: Final = (0.1, 0.2, 0.4, 0.8)  # seconds between the attempts to create an object
_ABSENT: Final = (FileNotFoundError, NotADirectoryError)
_OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})


@contextmanager
def _refusals(operation: str, key: str) -> Iterator[None]:
    """Turn whatever a file system raises into `StorageError`."""
    try:
        yield
    except CasCheckpointError:
        raise
    except Exception as error:  # each file system of fsspec has exceptions of its own
        advice = "; check the credentials and what they allow" if isinstance(error, PermissionError) else ""
        reason = f"{type(error).__name__}: {error}{advice}"
        raise StorageError(f"cannot {operation} {key or 'the store'}: {reason}") from error


@contextmanager
def _absence(key: str) -> Iterator[None]:
    """Turn "no such file" into `ObjectNotFound`."""
    try:
        yield
    except _ABSENT as error:
        raise ObjectNotFound(key) from error


class FsspecBackend(Backend):
    """A prefix on a file system of fsspec.

    On an object store an object is whole as soon as it is to be seen. Elsewhere that is up to the file system: most
    write in place, so that a crash may leave a torn object under its key.

    Attributes:
        atomic_create: whether put-if-absent is one operation of the file system, so that of two writers only one can
            win. This is trusted of the object stores whose `pipe_file(mode="create")` is known to be a conditional
            request, until one answers that it has none; everywhere else it is a look before the writing.
    """

    _atomic: ClassVar[frozenset[str]] = _OBJECT_STORES
    _flat: ClassVar[frozenset[str]] = _OBJECT_STORES | {"memory"}  # no directories to make; one listing tells all

    def __init__(self, url: str, *, storage_options: Mapping[str, object] | None = None) -> None:
        """Use the prefix `url`; `storage_options` are passed on to fsspec.

        Raises:
            InvalidArgument: fsspec does not know the protocol, or lacks a package, or the options do not fit.
            StorageError: connecting failed.
        """
        self.url = url
        self._connections = Connections(url, storage_options or {})
        self._connections.get()
        self._is_flat = self._connections.protocol in self._flat
        self.atomic_create = self._connections.protocol in self._atomic
        self._made: set[str] = set()  # directories known to be there

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _at(self, key: str) -> tuple[FileSystem, str]:
        _, file_system, top = self._connections.get()
        return file_system, top + check_key(key)

    # --- writing ---

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object in one piece."""
        file_system, path = self._at(key)
        data = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        with _refusals("write", key):
            self._write(file_system, path, data)

    def _write(self, file_system: FileSystem, path: str, data: bytes, **options: str) -> None:
        """Write a file, in a directory that is made where there are any; elsewhere that could make a bucket."""
        directory = path.rpartition("/")[0]
        if not self._is_flat and directory not in self._made:
            file_system.makedirs(directory, exist_ok=True)
            self._made.add(directory)
        try:
            file_system.pipe_file(path, data, **options)
        except FileNotFoundError:
            self._made.clear()  # somebody removed the directory since
            raise

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object; after any error look what is there, since a response may have been lost."""
        file_system, path = self._at(key)
        pauses = iter(_PAUSES)
        while True:
            try:
                with _refusals("create", key):
                    self._create(file_system, path, data)
                return True
            except StorageError:
                ours = self._outcome(key, data)
                if ours is not None:
                    return ours
                pause = next(pauses, None)
                if pause is None:
                    raise
            time.sleep(pause)

    def _create(self, file_system: FileSystem, path: str, data: bytes) -> None:
        if not self.atomic_create:
            _refuse_existing(file_system, path)
        try:
            self._write(file_system, path, data, mode="create")
        except (TypeError, NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOSYS:
                raise
            self.atomic_create = False  # it does not know that mode, or the server no conditional request
            _refuse_existing(file_system, path)
            self._write(file_system, path, data)

    def _outcome(self, key: str, data: bytes) -> bool | None:
        """Tell whether an attempt to create an object arrived, None if nothing did or that cannot be learned."""
        try:
            return self._holds(key, data)
        except StorageError:
            return None

    def delete(self, key: str) -> None:
        """Remove an object."""
        file_system, path = self._at(key)
        try:
            with _refusals("delete", key), _absence(key):
                file_system.rm_file(path)
        except ObjectNotFound:
            return

    # --- reading ---

    def get(self, key: str, *, max_size: int) -> bytes:
        """Read a whole object in one request, or refuse it after one byte too many."""
        data = self._read(key, 0, max_size + 1)
        if len(data) > max_size:
            raise DamagedObject(f"has more than the {max_size} bytes that are allowed", key=key)
        return data

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Read a part of an object."""
        check_range(offset, size)
        if not size:  # no request can ask for nothing
            return b""
        data = self._read(key, offset, offset + size)
        if len(data) != size:
            raise DamagedObject(f"is truncated: {len(data)} of {size} bytes are left at {offset}", key=key)
        return data

    def _read(self, key: str, start: int, end: int) -> bytes:
        """Read from `start` to `end`, or to the object's end."""
        file_system, path = self._at(key)
        try:
            with _refusals("read", key), _absence(key):
                return file_system.cat_file(path, start=start, end=end)
        except ObjectNotFound:
            raise
        except StorageError:
            if self.size(key) > start:
                raise
            return b""  # object stores refuse a part that begins at the end, be it that of an empty object

    def size(self, key: str) -> int:
        """Tell an object's size."""
        file_system, path = self._at(key)
        with _refusals("look at", key), _absence(key):
            file_system.invalidate_cache()
            info = file_system.info(path)
            if info["type"] == "directory":  # on an object store `a` and `a/b` have nothing to do with each other
                raise ObjectNotFound(key)
            return int(info["size"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below a directory."""
        return self._walk(check_prefix(prefix))

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        _, file_system, top = self._connections.get()
        directories = [prefix]
        while directories:
            directory = directories.pop()
            with _refusals("list", directory):
                found = self._look_into(file_system, f"{top}{directory}".rstrip("/") or top)
            for info in found:
                name = _name_below(top, info["name"])
                key = name.rstrip("/")
                if not key.startswith(directory) or not is_key(key):
                    continue
                if info["type"] == "directory":
                    directories.append(f"{key}/")
                elif info["type"] == "file" and key == name:  # a slash ends what marks a directory on object stores
                    yield ObjectInfo(key, int(info["size"] or 0), _modified(info))

    def _look_into(self, file_system: FileSystem, path: str) -> Iterator[Mapping[str, Any]]:
        """Return what lies in a directory, or, where one request can tell, at any depth below.

        Elsewhere fsspec's own `find` would leave out without a word whatever it cannot list.
        """
        file_system.invalidate_cache()
        try:
            if self._is_flat:
                return iter(file_system.find(path, detail=True).values())
            return iter(file_system.ls(path, detail=True))
        except _ABSENT:
            return iter(())


class MemoryBackend(FsspecBackend):
    """fsspec's file system in memory, which all of one process shares; a lock makes put-if-absent atomic."""

    _atomic = frozenset({"memory"})
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def _create(self, file_system: FileSystem, path: str, data: bytes) -> None:
        with MemoryBackend._lock:
            super()._create(file_system, path, data)

    @classmethod
    def _renew_lock(cls) -> None:
        cls._lock = threading.Lock()


os.register_at_fork(after_in_child=MemoryBackend._renew_lock)  # noqa: SLF001 -- the thread that held it is not there


def _refuse_existing(file_system: FileSystem, path: str) -> None:
    """Raise `FileExistsError` if there is such a file; fsspec's `exists` says no also if it cannot tell."""
    try:
        file_system.info(path)
    except _ABSENT:
        return
    raise FileExistsError(path)


def _modified(info: Mapping[str, Any]) -> float | None:
    """Return the time at which a file was written; each file system has its own name for it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "modified", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _name_below(top: str, path: str) -> str:
    """Return what a listed path is called below `top`; some file systems leave out the leading slash."""
    path, start = path.lstrip("/"), top.lstrip("/")
    if path.startswith(start) or f"{path}/" == start:
        return path[len(start) :]
    raise StorageError(f"cannot list the store: the file system gives {path!r} for something in {top!r}")
