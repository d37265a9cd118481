"""Objects as files below one directory of a local file system, written so that a crash loses none and tears none."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, is_key
from cas_checkpoint.backends.linking import link_exclusively
from cas_checkpoint.errors import DamagedObject, ObjectNotFound, StorageError

__all__ = ["LocalBackend"]

_MAX_VECTORS: Final = 1000  # IOV_MAX is 1024 wherever it is known
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MODE: Final = 0o666  # the user's umask decides
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_ADVICE: Final = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk may be failing",
    errno.EMFILE: "raise the limit of open files",
}


@contextmanager
def _told(operation: str, key: str) -> Iterator[None]:
    """Turn errors of the operating system into errors of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _ABSENT:
            raise ObjectNotFound(key) from error
        advice = _ADVICE.get(error.errno or 0)
        reason = f"{error.strerror or error}{f'; {advice}' if advice else ''}"
        raise StorageError(f"cannot {operation} {key or 'the store'}: {reason} ({error.filename!r})") from error


class LocalBackend(Backend):
    """A directory. An object is a file; its key is the file's path below the directory.

    Attributes:
        root: the directory's absolute path.
        durable: whether every write waits for the disk.
    """

    def __init__(self, root: str | os.PathLike[str], *, durable: bool = True) -> None:
        """Use the directory `root`, which is made by the first write."""
        self.root = os.path.abspath(os.fspath(root))
        self.url = self.root
        self.durable = durable

    def _path(self, key: str) -> str:
        return os.path.join(self.root, check_key(key))

    # --- writing ---

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object: temporary file, sync, rename, sync of the directory."""
        path = self._path(key)
        with _told("write", key), self._temporary(path, parts) as temporary:
            os.rename(temporary, path)
            self._sync_directory(os.path.dirname(path))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one: temporary file, sync, exclusive link, sync of the directory."""
        path = self._path(key)
        with _told("create", key), self._temporary(path, [data]) as temporary:
            created = link_exclusively(temporary, path)
            self._sync_directory(os.path.dirname(path))
        return created or self._holds(key, data)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key, max_size=len(data)) == data
        except (ObjectNotFound, DamagedObject):
            return False

    @contextmanager
    def _temporary(self, path: str, parts: Sequence[Buffer]) -> Iterator[str]:
        """Write a synced temporary file beside `path`; whatever happens, nothing of that name is left."""
        directory = os.path.dirname(path)
        self._make_directory(directory)
        temporary = os.path.join(directory, f".tmp-{secrets.token_hex(8)}")
        try:
            descriptor = os.open(temporary, _WRITE_FLAGS, _MODE)
            try:
                _write_all(descriptor, parts)
                if self.durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _make_directory(self, directory: str) -> None:
        """Make a directory and its parents, each made known to the disk before anything is put into it."""
        if os.path.isdir(directory):
            return
        parent = os.path.dirname(directory)
        self._make_directory(parent)
        with suppress(FileExistsError):
            os.mkdir(directory)
        self._sync_directory(parent)

    def _sync_directory(self, directory: str) -> None:
        if not self.durable:
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def delete(self, key: str) -> None:
        """Remove an object."""
        path = self._path(key)
        with suppress(ObjectNotFound), _told("delete", key):
            os.unlink(path)
            self._sync_directory(os.path.dirname(path))

    # --- reading ---

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open an object; yield its descriptor and size."""
        path = self._path(key)
        with _told("read", key):
            descriptor = os.open(path, _READ_FLAGS)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise DamagedObject("is not a regular file", key=key)
                yield descriptor, status.st_size
            finally:
                os.close(descriptor)

    def get(self, key: str, *, max_size: int) -> bytes:
        """Read a whole object."""
        with self._opened(key) as (descriptor, size):
            if size > max_size:
                raise DamagedObject(f"has {size} bytes; at most {max_size} are allowed", key=key)
            return _read_exactly(descriptor, 0, size, key)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Read a part of an object."""
        with self._opened(key) as (descriptor, object_size):
            if offset + size > object_size:
                raise _truncated(key, object_size, offset + size)
            return _read_exactly(descriptor, offset, size, key)

    def size(self, key: str) -> int:
        """Tell an object's size."""
        with self._opened(key) as (_, size):
            return size

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below a directory; temporary files, foreign names and links are not objects."""
        directories = [prefix.rstrip("/")]
        while directories:
            relative = directories.pop()
            for item, key in self._scan(relative):
                if item.is_dir(follow_symlinks=False):
                    directories.append(key)
                elif item.is_file(follow_symlinks=False):
                    with suppress(ObjectNotFound), _told("list", key):
                        yield ObjectInfo(key, item.stat(follow_symlinks=False).st_size)

    def _scan(self, relative: str) -> Sequence[tuple[os.DirEntry[str], str]]:
        """Return what one directory holds under valid keys."""
        with suppress(ObjectNotFound), _told("list", relative), os.scandir(os.path.join(self.root, relative)) as items:
            named = [(item, f"{relative}/{item.name}" if relative else item.name) for item in items]
            return [(item, key) for item, key in named if is_key(key)]
        return []


def _write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
    """Write all parts, few calls for many of them, going on where a call stopped short."""
    waiting = [view for part in parts if (view := memoryview(part).cast("B"))]
    while waiting:
        written = os.writev(descriptor, waiting[:_MAX_VECTORS])
        done = 0
        while done < len(waiting) and written >= len(waiting[done]):
            written -= len(waiting[done])
            done += 1
        del waiting[:done]
        if written:
            waiting[0] = waiting[0][written:]


def _read_exactly(descriptor: int, offset: int, size: int, key: str) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) == size:
        return data
    pieces = [data]  # a signal, or more than one call can read
    read = len(data)
    while read < size:
        data = os.pread(descriptor, size - read, offset + read)
        if not data:
            raise _truncated(key, offset + read, offset + size)
        pieces.append(data)
        read += len(data)
    return b"".join(pieces)


def _truncated(key: str, found: int, needed: int) -> DamagedObject:
    return DamagedObject(f"is truncated: has {found} bytes, {needed} are needed", key=key)
