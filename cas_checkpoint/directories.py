"""Opening directories below a root, so that nothing can lead out of it.

A directory is reached from the root's own descriptor, one component at a time, never through a symlink. Whatever is
done in it is done through its descriptor then. So neither what lay in the tree before, nor what a manifest says, nor
another process that swaps names meanwhile can make it another one.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from cas_checkpoint.errors import InvalidArgument, RestoreError, TargetObstructed

__all__ = ["Directories", "join_place", "open_root", "restore_error"]

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # it may be a symlink
_ATTEMPTS: Final = 8
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_ADVICE: Final = {
    errno.ENOSPC: "make room there and restore again",
    errno.EDQUOT: "make room in the quota and restore again",
    errno.EACCES: "restore to a directory that you may write to",
    errno.EPERM: "restore to a directory that you may write to",
    errno.EROFS: "restore to a directory that can be written to",
    errno.EFBIG: "restore to a file system that takes files of that size",
    errno.EILSEQ: "restore to a file system that takes any name, such as those of Linux",
    errno.EINVAL: "restore to a file system that takes such names and files",
    errno.ENAMETOOLONG: "restore to a file system that takes longer names",
    errno.EMLINK: "restore to a file system that takes more links to one file",
    errno.EMFILE: "raise the limit of open files (ulimit -n) and restore again",
    errno.EBUSY: "unmount what is mounted there",
    errno.EXDEV: "no hard link leads to another file system: unmount what is mounted within the target",
}


def restore_error(place: str, error: OSError) -> RestoreError:
    """Return the error to raise where the system refused to write at `place`."""
    advice = _ADVICE.get(error.errno or 0, "see that nothing else changes the target, and restore again")
    shown = place.encode("utf-8", "backslashreplace").decode("utf-8")
    return RestoreError(f"{shown}: cannot be restored ({error.strerror or error}); {advice}")


def join_place(place: str, path: bytes) -> str:
    """Return what messages call `path` below the target at `place`."""
    return f"{place}/{os.fsdecode(path)}" if path else place


def open_root(place: str) -> tuple[bool, int]:
    """Open the root of a target, making it and its parents if need be; tell whether it was made, and its descriptor.

    Raises:
        TargetObstructed: there is something else than a directory.
        RestoreError: the system refuses.
        InvalidArgument: no path at all.
    """
    try:
        with suppress(FileNotFoundError):
            return False, os.open(place, _ROOT_FLAGS)
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        os.mkdir(place)
        return True, os.open(place, _ROOT_FLAGS)
    except (NotADirectoryError, FileExistsError) as error:
        message = f"{place}: is not a directory, or lies below something that is not; restore somewhere else"
        raise TargetObstructed(message) from error
    except OSError as error:
        raise restore_error(place, error) from error
    except ValueError as error:
        raise InvalidArgument(f"not a path: {place!r} ({error})") from error


class Directories:
    """Directories below a root, kept open while they are in use. Belongs to one thread at a time.

    New ones are closed to other users, and those that their owner may not write to are opened to the owner, until
    `close` gives them the mode that they should have: the one that is usual, or that they had.
    """

    def __init__(self, root: int, *, created: bool, limit: int) -> None:
        """Take over the descriptor of the root, new if `created`; keep at most `limit` others open."""
        self._root, self._limit = root, limit
        self._user = os.geteuid()
        self._open: OrderedDict[bytes, int] = OrderedDict()  # path → descriptor, least recently used first
        self._modes: dict[bytes, int] = {}  # path → mode to be given at the end
        self._prepare(root, b"", created=created)

    def open(self, path: bytes, *, create: bool) -> int:
        """Return the descriptor of a directory; it stays ours, and is good until the next call.

        Args:
            path: relative to the root, without `.` and `..`; empty for the root.
            create: whether to make what is missing, and to replace what is not a directory.

        Raises:
            OSError: missing or not a directory, unless `create`; or the system refused.
        """
        if not path:
            return self._root
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        reached, fd = self._nearest(path)
        for name in path[len(reached) + 1 if reached else 0 :].split(b"/"):
            reached = b"%b/%b" % (reached, name) if reached else name
            fd = self._enter(fd, name, reached, create=create)
            self._open[reached] = fd
            if len(self._open) > self._limit:
                os.close(self._open.popitem(last=False)[1])
        return fd

    def forget(self, path: bytes) -> None:
        """Take note that the directory at `path`, empty before, was removed."""
        self._modes.pop(path, None)
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)

    def settled(self, path: bytes) -> None:
        """Take note that the directory at `path` has its final mode."""
        self._modes.pop(path, None)

    def close(self) -> None:
        """Give the directories their modes and close them."""
        try:
            for path in sorted(self._modes, key=len, reverse=True):  # a parent's mode may close the way to its children
                with suppress(OSError):  # somebody removed it
                    os.chmod(self.open(path, create=False), self._modes[path])
        finally:
            self._modes.clear()
            while self._open:
                os.close(self._open.popitem()[1])
            if self._root >= 0:
                os.close(self._root)
                self._root = -1

    def _nearest(self, path: bytes) -> tuple[bytes, int]:
        """Return the closest open directory above `path`."""
        while path:
            path = path.rpartition(b"/")[0]
            fd = self._open.get(path)
            if fd is not None:
                self._open.move_to_end(path)
                return path, fd
        return b"", self._root

    def _enter(self, parent: int, name: bytes, path: bytes, *, create: bool) -> int:
        """Open the directory `name`; another process may undo each step, so each may take another attempt."""
        created = False
        for _ in range(_ATTEMPTS):
            try:
                return self._prepare(os.open(name, _FLAGS, dir_fd=parent), path, created=created)
            except OSError as error:
                created |= self._overcome(error, parent, name, path, create=create)
        return self._prepare(os.open(name, _FLAGS, dir_fd=parent), path, created=created)

    def _overcome(self, error: OSError, parent: int, name: bytes, path: bytes, *, create: bool) -> bool:
        """Remove the cause of `error`, if we may; tell whether a directory was made."""
        if error.errno == errno.ENOENT and create:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
                return True
        elif error.errno in (errno.ENOTDIR, errno.ELOOP) and create:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
        elif error.errno == errno.EACCES:
            self._unlock(error, parent, name, path)
        else:
            raise error
        return False

    def _unlock(self, error: OSError, parent: int, name: bytes, path: bytes) -> None:
        """Let the owner into a directory that cannot even be opened; raise `error` if it is not ours."""
        if sys.platform == "linux":  # it changes no mode by name without following symlinks
            handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                mode = self._locked_mode(error, os.fstat(handle))
                os.chmod(f"/proc/self/fd/{handle}", mode | stat.S_IRWXU)
            finally:
                os.close(handle)
        else:
            mode = self._locked_mode(error, os.stat(name, dir_fd=parent, follow_symlinks=False))
            os.chmod(name, mode | stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)
        self._modes.setdefault(path, mode)

    def _locked_mode(self, error: OSError, status: os.stat_result) -> int:
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != self._user or mode & stat.S_IRWXU == stat.S_IRWXU:
            raise error
        return mode

    def _prepare(self, fd: int, path: bytes, *, created: bool) -> int:
        """Give an open directory the mode that it needs while we work; return its descriptor."""
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        working = (mode & ~_OTHERS if created else mode) | stat.S_IRWXU
        if working != mode and (created or status.st_uid == self._user != 0):  # root needs no permission
            with suppress(OSError):  # a file system without modes; if it matters, the next call says so
                os.chmod(fd, working)
                self._modes.setdefault(path, mode)
        return fd
