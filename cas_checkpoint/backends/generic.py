"""Objects on any file system that fsspec knows, and the one in memory.

fsspec itself is imported only when such a backend is opened. How a place becomes a backend stands in `__init__`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, check_prefix, check_range, is_key
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, InvalidArgument, ObjectNotFound, StorageError

__all__ = ["FsspecBackend", "MemoryBackend"]

_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.1  # seconds; doubled at each further attempt
_OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}


class _FileSystem(Protocol):
    """What is used of fsspec's file systems; fsspec has no types of its own."""

    def pipe_file(self, path: str, value: bytes, **options: str) -> object: ...
    def cat_file(self, path: str, *, start: int, end: int) -> bytes: ...
    def info(self, path: str) -> Mapping[str, Any]: ...
    def ls(self, path: str, *, detail: bool) -> Sequence[Mapping[str, Any]]: ...
    def find(self, path: str, *, detail: bool) -> Mapping[str, Mapping[str, Any]]: ...
    def rm_file(self, path: str) -> object: ...
    def makedirs(self, path: str, *, exist_ok: bool) -> object: ...
    def invalidate_cache(self) -> object: ...


class _Connection(NamedTuple):
    """A file system as one thread of one process uses it."""

    process: int
    file_system: _FileSystem
    top: str  # begins every path of an object: "bucket/prefix/", or "" where keys are paths
    made: set[str]  # directories known to be there


@contextmanager
def _refusals(operation: str, key: str) -> Iterator[None]:
    """Turn whatever a file system raises into errors of ours."""
    try:
        yield
    except CasCheckpointError:
        raise
    except FileNotFoundError as error:
        raise ObjectNotFound(key) from error
    except Exception as error:  # each file system of fsspec has exceptions of its own
        advice = "; check the credentials, and what they allow" if isinstance(error, PermissionError) else ""
        reason = f"{type(error).__name__}: {error}{advice}"
        raise StorageError(f"cannot {operation} {key or 'the store'}: {reason}") from error


class FsspecBackend(Backend):
    """A prefix on a file system of fsspec, opened when first needed: anew in each process, and where it is not safe
    to share between threads, in each thread.

    On object stores an object is whole as soon as it is to be seen. Elsewhere that is up to the file system: most write
    in place, so that a crash may leave a torn object under its key.

    Attributes:
        atomic_create: whether put-if-absent is one operation of the file system, so that of two writers only one can
            win. That is trusted of the object stores whose `pipe_file(mode="create")` is known to be one conditional
            request, until they say that they have none; everywhere else it is a look before the writing.
    """  # noqa: D205 -- the first sentence takes two lines

    _atomic: ClassVar[frozenset[str]] = _OBJECT_STORES
    _flat: ClassVar[frozenset[str]] = _OBJECT_STORES | {"memory"}  # no directories to be made, one listing for a tree

    def __init__(self, url: str, *, storage_options: Mapping[str, object] | None = None) -> None:
        """Use the prefix `url`.

        Raises:
            InvalidArgument: fsspec does not know the protocol, or lacks a package, or the options do not fit.
            StorageError: there is no connection.
        """
        self.url = url.rstrip("/") if url.partition("://")[2].strip("/") else url
        self._protocol = url.partition("://")[0]  # of a chain ("simplecache::s3"), the whole of it: nothing is trusted
        self._options = _without_caches(url, storage_options or {})
        self.atomic_create = self._protocol in self._atomic
        self._local = threading.local()
        self._connect()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"  # the options may be secret

    def _connect(self) -> _Connection:
        """Return the connection of this thread.

        fsspec itself gives all threads one file system if it is safe to share, and each its own if not.
        """
        found: _Connection | None = getattr(self._local, "connection", None)
        if found is None or found.process != os.getpid():
            # A parent's file system is kept: closing it waits for a thread that a fork has not taken along.
            self._local.inherited = found
            found = _Connection(os.getpid(), *self._open(), set())
            self._local.connection = found
        return found

    def _open(self) -> tuple[_FileSystem, str]:
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 -- heavy, and not needed for local disks

            file_system, root = url_to_fs(self.url, **self._options)
        except ImportError as error:
            extra = _EXTRAS.get(self._protocol)
            hint = f"; pip install 'cas-checkpoint[{extra}]'" if extra else ""
            raise InvalidArgument(f"cannot open {self.url}: {error}{hint}") from error
        except (TypeError, ValueError, LookupError) as error:
            raise InvalidArgument(f"cannot open {self.url}: {error}") from error
        except Exception as error:
            raise StorageError(f"cannot open {self.url}: {type(error).__name__}: {error}") from error
        return file_system, f"{root.rstrip('/')}/" if root else ""

    def _at(self, key: str) -> tuple[_FileSystem, str]:
        connection = self._connect()
        return connection.file_system, connection.top + check_key(key)

    # --- writing ---

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object in one piece."""
        file_system, path = self._at(key)
        data = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        with _refusals("write", key):
            self._make_directory(path)
            file_system.pipe_file(path, data)

    def _make_directory(self, path: str) -> None:
        """Make the directory of an object, where there are directories; elsewhere that might make a bucket."""
        directory = path.rpartition("/")[0]
        connection = self._connect()
        if self._protocol not in self._flat and directory not in connection.made:
            connection.file_system.makedirs(directory, exist_ok=True)
            connection.made.add(directory)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object; on any error look what is there, since a response may have been lost."""
        check_key(key)
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                with _refusals("create", key):
                    self._create(key, data)
                return True
            except StorageError as error:
                failure = error
            try:
                ours = self._holds(key, data)
            except StorageError:
                continue
            if ours is not None:
                return ours
        raise StorageError(str(failure.__cause__ or failure) if isinstance(failure, ObjectNotFound) else str(failure)) from failure

    def _create(self, key: str, data: bytes) -> None:
        file_system, path = self._at(key)
        self._make_directory(path)
        if not self.atomic_create:
            _refuse_existing(file_system, path)
        try:
            file_system.pipe_file(path, data, mode="create")
        except (TypeError, NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOSYS:
                raise
            self.atomic_create = False
            _refuse_existing(file_system, path)
            file_system.pipe_file(path, data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        file_system, path = self._at(key)
        try:
            with _refusals("delete", key):
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
        data = self._read(key, offset, offset + size) if size else b""
        if len(data) != size:
            raise DamagedObject(f"is truncated: has {offset + len(data)} bytes, {offset + size} are needed", key=key)
        return data

    def _read(self, key: str, start: int, end: int) -> bytes:
        """Read from `start` to `end`, or to the object's end."""
        file_system, path = self._at(key)
        try:
            with _refusals("read", key):
                return file_system.cat_file(path, start=start, end=end)
        except ObjectNotFound:
            raise
        except StorageError:
            if self.size(key) > start:
                raise
            return b""  # object stores refuse a range that begins at the end, even that of an empty object

    def size(self, key: str) -> int:
        """Tell an object's size."""
        file_system, path = self._at(key)
        with _refusals("look at", key):
            file_system.invalidate_cache()
            info = file_system.info(path)
            if info["type"] == "directory":  # as on an object store, where `a` and `a/b` have nothing to do with each other
                raise ObjectNotFound(key)
            return int(info["size"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below a directory."""
        return self._walk(check_prefix(prefix))

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        _, file_system, top, _ = self._connect()
        top = top.lstrip("/")
        with _refusals("list", prefix):
            file_system.invalidate_cache()
        waiting = [prefix]
        while waiting:
            directory = waiting.pop()
            for info in self._children(directory):
                key = info["name"].strip("/").removeprefix(top)
                if not key.startswith(directory) or not is_key(key):
                    continue
                if info["type"] == "directory":
                    waiting.append(f"{key}/")
                elif info["type"] == "file":
                    yield ObjectInfo(key, int(info["size"] or 0))
