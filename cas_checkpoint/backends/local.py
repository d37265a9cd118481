"""Objects as files below one directory of a local file system, written so that a crash loses none and tears none.

How a file gets its name only if nobody has it stands in `linking`; how it is written, synced and read in full, in
`descriptors`.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, Final

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, check_prefix, check_range, is_key
from cas_checkpoint.backends.descriptors import fill, read_up_to, sync, write_all
from cas_checkpoint.backends.linking import link_exclusively
from cas_checkpoint.backends.temporaries import TEMPORARY_PREFIX, claim, sweep_temporaries
from cas_checkpoint.errors import DamagedObject, ObjectNotFound, StorageError

__all__ = ["LocalBackend"]

_ATTEMPTS: Final = 4
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # nobody waits for a FIFO's writer
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MODE: Final = 0o666  # the user's umask decides
_ABSENT: Final = (FileNotFoundError, NotADirectoryError)
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP})
_ADVICE: Final = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space in the quota and try again",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "mount it for writing, or use another place",
    errno.EIO: "the disk may be failing: check the system's log, and verify the store",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ELOOP: "an object is no symlink: put the file itself in its place",
}


@contextmanager
def _refusals(operation: str, key: str, path: str) -> Iterator[None]:
    """Turn errors of the operating system into `StorageError`."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        reason = f"{error.strerror or error}{f'; {advice}' if advice else ''}"
        raise StorageError(f"cannot {operation} {key or 'the store'} ({path}): {reason}") from error


class LocalBackend(Backend):
    """A directory. An object is a file; its key is the file's path below the directory.

    Attributes:
        root: the directory's absolute path; it may be a symlink, and so may the directories in it.
        durable: whether every write waits for the disk.
        atomic_create: True: of two writers only one can win.
    """

    atomic_create: Final = True
    near: ClassVar[bool] = True
    parallel_puts: ClassVar[int] = 1

    def __init__(self, root: str | os.PathLike[str], *, durable: bool = True) -> None:
        """Use the directory `root`, which is made by the first write."""
        self.root = os.path.abspath(root)
        self.url = self.root
        self.durable = durable
        self._made: set[str] = set()  # directories known to be there, and to stay there when the power fails

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made": set()}

    def __repr__(self) -> str:
        return f"LocalBackend({self.root!r}, durable={self.durable})"

    def _path(self, key: str) -> str:
        return os.path.join(self.root, check_key(key))

    # --- writing ---

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object: temporary file, sync, rename, sync of the directory."""
        path = self._path(key)
        with _refusals("write", key, path):
            with self._temporary(path, parts) as temporary:
                os.rename(temporary, path)
            self._sync_directory(os.path.dirname(path))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one: temporary file, sync, exclusive link, sync of the directory.

        The directory is synced even if the object was there: whoever wrote it may not have got that far.
        """
        path = self._path(key)
        with _refusals("create", key, path):
            with self._temporary(path, [data]) as temporary:
                ours = self._create(temporary, key, path, data)
            self._sync_directory(os.path.dirname(path))
        return ours

    def _create(self, temporary: str, key: str, path: str, data: bytes) -> bool:
        for _ in range(_ATTEMPTS):
            if link_exclusively(temporary, path):
                return True
            ours = self._holds(key, data)
            if ours is not None:
                return ours
        raise StorageError(f"cannot create {key}: {path} is taken by something that is no object; move it away")

    @contextmanager
    def _temporary(self, path: str, parts: Sequence[Buffer]) -> Iterator[str]:
        """Write a synced temporary file beside `path`; whatever happens, nothing of that name is left.

        It is claimed until it has its name, so that a sweep takes it for nobody's only after its writer has died.
        """
        temporary = os.path.join(os.path.dirname(path), f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        try:
            descriptor = self._open_new(temporary)
            while not claim(descriptor):  # it was swept away before it could be claimed
                os.close(descriptor)
                descriptor = self._open_new(temporary)
            try:
                write_all(descriptor, parts, early=self.durable)
                if self.durable:
                    sync(descriptor)
                yield temporary
            finally:
                os.close(descriptor)
        finally:
            with suppress(OSError):  # renamed; or it must not hide why the write failed
                os.unlink(temporary)

    def _open_new(self, path: str) -> int:
        """Open a new file; its directory is made if need be."""
        directory = os.path.dirname(path)
        self._make_directory(directory)
        try:
            return os.open(path, _WRITE_FLAGS, _MODE)
        except FileNotFoundError:  # somebody removed the directory since we made it
            self._made.clear()
            self._make_directory(directory)
            return os.open(path, _WRITE_FLAGS, _MODE)

    def _make_directory(self, directory: str) -> None:
        """Make a directory and, before, its parents; each is made durable before anything is put into it.

        That it is there does not say that it is durable: another process may have made it just now. So its parent
        is synced once by each process that writes into it.
        """
        if directory in self._made:
            return
        parent = os.path.dirname(directory)
        inside = len(directory) > len(self.root)
        if inside or not os.path.isdir(parent):
            self._make_directory(parent)
        with suppress(FileExistsError):
            os.mkdir(directory)
        try:
            self._sync_directory(parent)
        except PermissionError:  # who may not read a directory cannot sync it; around the store that is no fault
            if inside:
                raise
        self._made.add(directory)

    def _sync_directory(self, directory: str) -> None:
        if not self.durable:
            return
        descriptor = os.open(directory, _DIRECTORY_FLAGS)
        try:
            sync(descriptor)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(descriptor)

    def delete(self, key: str) -> None:
        """Remove an object; when this returns it stays removed, whoever has removed it."""
        path = self._path(key)
        with _refusals("delete", key, path):
            with suppress(*_ABSENT, IsADirectoryError):
                os.unlink(path)
            with suppress(*_ABSENT):
                self._sync_directory(os.path.dirname(path))

    def sweep(self, grace: float) -> int:
        """Remove temporary files whose writers have died."""
        with _refusals("sweep", "", self.root):
            return sweep_temporaries(self.root, grace)

    # --- reading ---

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open an object; yield its descriptor and size."""
        path = self._path(key)
        with _refusals("read", key, path):
            try:
                descriptor = os.open(path, _READ_FLAGS)
            except _ABSENT as error:
                raise ObjectNotFound(key) from error
            try:
                yield descriptor, _object_size(os.fstat(descriptor), key, path)
            finally:
                os.close(descriptor)

    def get(self, key: str, *, max_size: int) -> bytes:
        """Read a whole object."""
        with self._opened(key) as (descriptor, size):
            if size > max_size:
                raise DamagedObject(f"has {size} bytes; at most {max_size} are allowed", key=key)
            return _read(descriptor, 0, size, key)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Read a part of an object."""
        check_range(offset, size)
        with self._opened(key) as (descriptor, object_size):
            if offset + size > object_size:  # before anything is allocated
                raise _truncated(key, object_size, offset + size)
            return _read(descriptor, offset, size, key)

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Read a part of an object into memory that is there already."""
        check_range(offset, len(buffer))
        with self._opened(key) as (descriptor, object_size):
            end = offset + len(buffer)
            if end > object_size:
                raise _truncated(key, object_size, end)
            read = fill(descriptor, offset, buffer)
            if read < len(buffer):  # it was cut off after we looked
                raise _truncated(key, offset + read, end)

    def size(self, key: str) -> int:
        """Tell an object's size."""
        path = self._path(key)
        with _refusals("look at", key, path):
            try:
                status = os.lstat(path)
            except _ABSENT as error:
                raise ObjectNotFound(key) from error
            return _object_size(status, key, path)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below a directory; temporary files, foreign names and links are not objects."""
        return self._sized(self._walk(check_prefix(prefix).rstrip("/")))

    def names(self, prefix: str) -> Iterator[str]:
        """List the keys alone: no file is looked at."""
        return (key for key, _ in self._walk(check_prefix(prefix).rstrip("/")))

    def _sized(self, files: Iterator[tuple[str, os.DirEntry[str]]]) -> Iterator[ObjectInfo]:
        for key, entry in files:
            with _refusals("list", key, entry.path):
                status = _listed_status(entry)
            if status is not None:
                yield ObjectInfo(key, status.st_size, status.st_mtime)

    def _walk(self, top: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield the files below a directory.

        A kind of objects may lie on another disk, with a symlink for its directory at the top level; further down
        symlinks are not followed, so that they can make no loops.
        """
        directories = [top]
        while directories:
            directory = directories.pop()
            with _refusals("list", directory, os.path.join(self.root, directory)):
                entries = _scan(self.root, directory)
                found = [(key, entry) for key, entry in entries if not entry.is_dir(follow_symlinks=not directory)]
                files = [(key, entry) for key, entry in found if entry.is_file(follow_symlinks=False)]
            if len(found) < len(entries):
                named = {key for key, _ in found}
                directories += [key for key, _ in entries if key not in named]
            yield from files


def _scan(root: str, directory: str) -> list[tuple[str, os.DirEntry[str]]]:
    """Return what one directory below `root` holds under valid keys."""
    try:
        with os.scandir(os.path.join(root, directory)) as entries:
            named = ((f"{directory}/{entry.name}" if directory else entry.name, entry) for entry in entries)
            return [(key, entry) for key, entry in named if is_key(key)]
    except _ABSENT:
        return []


def _listed_status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # deleted since it was listed
        return None


def _object_size(status: os.stat_result, key: str, path: str) -> int:
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if stat.S_ISDIR(status.st_mode):  # as on an object store, where `a` and `a/b` have nothing to do with each other
        raise ObjectNotFound(key)
    raise StorageError(f"cannot read {key}: {path} is no regular file; put the object itself in its place")


def _read(descriptor: int, offset: int, size: int, key: str) -> bytes:
    data = read_up_to(descriptor, offset, size)
    if len(data) < size:  # it was cut off after we looked
        raise _truncated(key, offset + len(data), offset + size)
    return data


def _truncated(key: str, found: int, needed: int) -> DamagedObject:
    return DamagedObject(f"is truncated: has {found} bytes, {needed} are needed", key=key)
