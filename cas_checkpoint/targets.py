"""Writing a restored tree safely: inside the target, and each file whole or not at all.

How directories are reached so that nothing leads out of the target stands in `directories`; where files lie before
they are whole, in `staging`.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeAlias

from cas_checkpoint.directories import Directories, join_place, open_root, restore_error
from cas_checkpoint.errors import InvalidArgument, RestoreError, TargetObstructed
from cas_checkpoint.ids import Buffer
from cas_checkpoint.manifests import Entry, EntryType, check_path, order
from cas_checkpoint.metadata import MetadataWriter
from cas_checkpoint.monitor import Notice
from cas_checkpoint.removing import DIRECTORY_IN_THE_WAY, remove_below
from cas_checkpoint.staging import StagedFile, Staging, copy_file, open_limits, write_at

__all__ = ["StagedFile", "Target"]

_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_Make: TypeAlias = Callable[[int, bytes], None]
"""Makes something in an open directory, under the given name."""


class Target:
    """A directory into which entries are restored. A context manager; every method may be called from any thread.

    Attributes:
        created: whether it was not there before.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        owner: bool = False,
        exact: bool = False,
        notice: Callable[[Notice], None],
    ) -> None:
        """Open the target, making it and its parents if they are missing.

        Args:
            root: where to restore; may be a symlink to a directory.
            owner: whether to set owners: by name where this machine knows the name, else by number.
            exact: whether the target is to become what the snapshot is: directories in the way are removed, and the
                target itself gets the metadata of the saved directory even if it was there before.
            notice: told of metadata that could not be set.

        Raises:
            TargetObstructed: there is something else than a directory.
            RestoreError: the system refuses.
        """
        self._exact, self._notice = exact, notice
        self._place = os.fsdecode(root)
        self.created, fd = open_root(self._place)
        files, directories = open_limits()
        self._directories = Directories(fd, created=self.created, limit=directories)
        self._staging = Staging(fd, b".cas-checkpoint-" + secrets.token_hex(8).encode(), limit=files)
        self._metadata = MetadataWriter(owner=owner, notice=self._warn)
        self._lock = threading.RLock()

    def __enter__(self) -> Target:  # noqa: PYI034 -- Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what is not whole, and let go of the target."""
        with self._lock:
            self._staging.clear()
            self._directories.close()

    # --- what is there ---

    def open_existing(self, entry: Entry) -> int | None:
        """Return a descriptor, for the caller to read and close, of the file there, if it could be the entry's.

        It could be if it is a regular file of that size, and has no other name through which it might be changed.
        """
        with self._step(entry.path):
            try:
                parent, name = self._parent(entry.path, create=False)
                fd = os.open(name, _READ_FLAGS, dir_fd=parent)
            except OSError:  # whatever it is, it will be replaced
                return None
            if _is_plain(status := os.fstat(fd)) and status.st_size == entry.size:
                return fd
            os.close(fd)
            return None

    def apply_metadata(self, entry: Entry) -> None:
        """Set the metadata of a file or symlink whose content is right already."""
        with self._step(entry.path):
            parent, name = self._parent(entry.path, create=False)
            if entry.type is EntryType.SYMLINK:
                self._metadata.apply_to_symlink(parent, name, entry)
                return
            fd = os.open(name, _READ_FLAGS, dir_fd=parent)
            try:
                status = os.fstat(fd)
                if not _is_plain(status):
                    raise RestoreError(f"{self._shown(entry.path)}: replaced by somebody while restored; restore again")
                self._metadata.apply(fd, entry, status)
            finally:
                os.close(fd)

    # --- what is new ---

    def make_directory(self, path: bytes) -> None:
        """Make sure that there is a directory at `path`, as is each of its parents: other things there are replaced."""
        with self._step(path):
            if path:
                self._check(path)
                self._directories.open(path, create=True)

    def stage(self, entry: Entry) -> StagedFile:
        """Return a new file of the entry's size, all hole, that is nowhere to be seen."""
        with _Refusals(self._place, entry.path):
            return self._staging.create(entry.size, self._shown(entry.path))

    def place(self, staged: StagedFile, entry: Entry) -> None:
        """Put a file that is whole where it belongs, in place of what has that name; of a directory only if `exact`."""
        with _Refusals(self._place, entry.path):
            fd = staged.acquire()
            try:
                self._finish(fd, staged.name, entry)
            finally:
                staged.release()
            staged.close()

    def put(self, entry: Entry, pieces: Iterable[tuple[int, Buffer]]) -> None:
        """Write a file, all of which is at hand: pieces, each with its offset; and put it where it belongs."""
        with _Refusals(self._place, entry.path):
            name, fd = self._staging.open_new()
            try:
                if entry.extents is not None:
                    os.truncate(fd, entry.size)
                for offset, piece in pieces:
                    write_at(fd, offset, piece)
                self._finish(fd, name, entry)
            except BaseException:
                self._staging.remove(name)
                raise
            finally:
                os.close(fd)

    def make_symlink(self, entry: Entry) -> None:
        """Make a symlink, unless it is there already; set its metadata."""
        with self._step(entry.path):
            parent, name = self._parent(entry.path, create=True)
            target = None
            with suppress(OSError):  # nothing there, or no symlink
                target = os.readlink(name, dir_fd=parent)
            if target == entry.target:
                self._metadata.apply_to_symlink(parent, name, entry)
            else:
                self._put(entry.path, lambda directory, name: self._symlink(entry, directory, name))

    def make_hardlink(self, entry: Entry) -> None:
        """Give the file at `entry.target`, restored before, the entry's path as another name."""
        with self._step(entry.path):
            parent, file = self._parent(entry.target, create=False)
            linked = os.stat(file, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISREG(linked.st_mode):
                raise RestoreError(f"{self._shown(entry.path)}: is to be a link to {file!r}, which is not a file")
            source = os.dup(parent)
            try:
                if not self._is_at(entry.path, linked):
                    self._put(entry.path, lambda directory, name: _link(source, file, directory, name))
            finally:
                os.close(source)

    # --- the end ---

    def remove_others(self, keep: Container[bytes]) -> int:
        """Remove what is in the target and not in `keep`, all paths of a snapshot; return how many things that were.

        A directory that is not in `keep` stays if it holds something that is. Call it before `finish_directories`,
        which sets the times of directories.
        """
        with self._step(b""):
            return remove_below(self._directories, self._place, b"", keep, spare=self._staging.name)

    def finish_directories(self, entries: Sequence[Entry]) -> None:
        """Set the metadata of these directories, when all that they hold is in its place.

        That of the target itself (path empty) is set only if the target was created or is to be exact.
        """
        with self._step(b""):
            self._staging.clear()  # the root's time is to last
        for entry in sorted(entries, key=lambda entry: order(entry.path), reverse=True):
            if entry.path or self.created or self._exact:
                with self._step(entry.path):
                    if entry.path:
                        self._check(entry.path)
                    fd = self._directories.open(entry.path, create=True)
                    self._metadata.apply(fd, entry, os.fstat(fd))
                    self._directories.settled(entry.path)

    # --- steps ---

    def _finish(self, fd: int, name: bytes, entry: Entry) -> None:
        """Give a file that is whole its metadata, and then, instead of a name in the staging directory, its own."""
        self._metadata.apply(fd, entry)
        try:
            with self._lock:
                self._rename(self._staging.directory, name, entry.path)
        except OSError as error:
            if error.errno != errno.EXDEV:  # something is mounted within the target
                raise
            with self._lock:
                self._put_beside(entry.path, lambda parent, name: self._copy(fd, entry, parent, name))
            self._staging.remove(name)

    def _step(self, path: bytes) -> _Step:
        return _Step(self._lock, self._place, path)

    def _shown(self, path: bytes) -> str:
        return join_place(self._place, path)

    def _warn(self, path: bytes, message: str) -> None:
        with self._lock:
            self._notice(Notice(self._shown(path), message))

    def _check(self, path: bytes) -> None:
        """Raise `RestoreError` for a path that leads out of the target, or into what is not whole yet."""
        try:
            check_path(path)
        except InvalidArgument as error:
            raise RestoreError(f"{error}; run 'verify': the snapshot is not what was saved") from error
        if path.startswith(self._staging.name):
            raise RestoreError(f"{self._shown(path)}: has the name of the restore's own directory; restore again")

    def _parent(self, path: bytes, *, create: bool) -> tuple[int, bytes]:
        """Return the open directory for the last component of `path`, and that component."""
        self._check(path)
        parent, _, name = path.rpartition(b"/")
        return self._directories.open(parent, create=create), name

    def _is_at(self, path: bytes, file: os.stat_result) -> bool:
        parent, name = self._parent(path, create=True)
        try:
            return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), file)
        except FileNotFoundError:
            return False

    def _put(self, path: bytes, make: _Make) -> None:
        """Make something under a temporary name, then give it its own."""
        try:
            self._put_through(self._staging.directory, path, make)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._put_beside(path, make)

    def _put_beside(self, path: bytes, make: _Make) -> None:
        """Do the same within the directory where it belongs, which is on another file system than the target."""
        directory = os.dup(self._parent(path, create=True)[0])
        try:
            self._put_through(directory, path, make)
        finally:
            os.close(directory)

    def _put_through(self, directory: int, path: bytes, make: _Make) -> None:
        name = self._staging.new_name()
        try:
            make(directory, name)
            self._rename(directory, name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise

    def _rename(self, directory: int, name: bytes, path: bytes) -> None:
        parent, last = self._parent(path, create=True)
        try:
            os.rename(name, last, src_dir_fd=directory, dst_dir_fd=parent)
        except OSError as error:
            if error.errno not in DIRECTORY_IN_THE_WAY:
                raise
            if not self._exact:
                message = "a directory is in the way of a file; remove it, or restore with exact=True"
                raise TargetObstructed(f"{self._shown(path)}: {message}") from error
            remove_below(self._directories, self._place, path, frozenset())
            parent, last = self._parent(path, create=True)
            os.rename(name, last, src_dir_fd=directory, dst_dir_fd=parent)

    def _symlink(self, entry: Entry, directory: int, name: bytes) -> None:
        os.symlink(entry.target, name, dir_fd=directory)
        self._metadata.apply_to_symlink(directory, name, entry)

    def _copy(self, source: int, entry: Entry, directory: int, name: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            copy_file(source, fd, entry)
            self._metadata.apply(fd, entry)
        finally:
            os.close(fd)


class _Refusals:
    """Turns what the system refuses into a `RestoreError`."""

    __slots__ = ("_path", "_place")

    def __init__(self, place: str, path: bytes) -> None:
        self._place, self._path = place, path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise restore_error(join_place(self._place, self._path), error) from error


class _Step(_Refusals):
    """Holds the lock during one step as well."""

    __slots__ = ("_lock",)

    def __init__(self, lock: threading.RLock, place: str, path: bytes) -> None:
        super().__init__(place, path)
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
        super().__exit__(kind, error, traceback)


def _is_plain(status: os.stat_result) -> bool:
    """Tell whether it is a regular file that has no other name."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _link(source: int, file: bytes, directory: int, name: bytes) -> None:
    os.link(file, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
