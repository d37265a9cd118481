"""What an entry carries besides its content: owner, extended attributes, mode and time; read from and set on files.

Everything here works on an open file, or on a name below an open directory without following symlinks.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cas_checkpoint.manifests import Entry, Owner

__all__ = ["MetadataWriter", "Names", "read_xattrs", "write_xattrs", "xattr_path"]

_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class Names:
    """The names of users and groups on this machine, each looked up once."""

    def __init__(self) -> None:
        """Know no name yet."""
        self._owners: dict[tuple[int, int], Owner] = {}
        self._ids: dict[Owner, tuple[int, int]] = {}

    def owner(self, uid: int, gid: int) -> Owner:
        """Return the owner with these numbers; a name that the machine does not know is empty."""
        owner = self._owners.get((uid, gid))
        if owner is None:
            owner = self._owners[uid, gid] = Owner(uid, gid, _user_name(uid), _group_name(gid))
        return owner

    def ids(self, owner: Owner) -> tuple[int, int]:
        """Return the numbers of the user and the group here: by name where the name is known, else as saved."""
        ids = self._ids.get(owner)
        if ids is None:
            ids = self._ids[owner] = _user_id(owner), _group_id(owner)
        return ids


# The databases are imported where they are asked for: few saves and restores do.


def _user_name(uid: int) -> str:
    import pwd  # noqa: PLC0415

    try:
        return _clean(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return ""


def _group_name(gid: int) -> str:
    import grp  # noqa: PLC0415

    try:
        return _clean(grp.getgrgid(gid).gr_name)
    except KeyError:
        return ""


def _clean(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def _user_id(owner: Owner) -> int:
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwnam(owner.user).pw_uid if owner.user else owner.uid
    except (KeyError, ValueError):
        return owner.uid


def _group_id(owner: Owner) -> int:
    import grp  # noqa: PLC0415

    try:
        return grp.getgrnam(owner.group).gr_gid if owner.group else owner.gid
    except (KeyError, ValueError):
        return owner.gid


# --- extended attributes ------------------------------------------------------------------------


def xattr_path(directory: int, name: bytes) -> bytes:
    """Return a path to `name` below the open `directory`, for the calls on attributes: they know no `dir_fd`."""
    return b"/proc/self/fd/%d/%b" % (directory, name)


def read_xattrs(place: int | bytes) -> dict[bytes, bytes]:
    """Return the attributes of an open file or of a path (a symlink is not followed); none where there cannot be any.

    Raises:
        OSError: the system has them but does not give them.
    """
    if sys.platform != "linux":  # the only system for which Python has the calls
        return {}
    follow = isinstance(place, int)
    xattrs = {}
    try:
        for name in os.listxattr(place, follow_symlinks=follow):
            try:
                xattrs[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENODATA:  # removed since it was listed
                    raise
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
    return xattrs


def write_xattrs(place: int | bytes, xattrs: Mapping[bytes, bytes], *, present: Mapping[bytes, bytes]) -> list[str]:
    """Give an open file or a path these attributes, where `present` are those that it has; return what failed.

    Of those that it should not have, only the users' own (`user.*`) are removed: others belong to the system.
    """
    if sys.platform != "linux":
        return ["this system keeps no extended attributes"] if xattrs else []
    follow = isinstance(place, int)
    failures = []
    for name, value in xattrs.items():
        if present.get(name) != value:
            try:
                os.setxattr(place, name, value, follow_symlinks=follow)
            except (OSError, ValueError) as error:
                failures.append(f"extended attribute {_text(name)} not set ({_reason(error)})")
    for name in present.keys() - xattrs.keys():
        if name.startswith(b"user."):
            try:
                os.removexattr(place, name, follow_symlinks=follow)
            except OSError as error:
                failures.append(f"extended attribute {_text(name)} not removed ({_reason(error)})")
    return failures


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# --- all of it ----------------------------------------------------------------------------------

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class MetadataWriter:
    """Gives restored things what their entries say. What the system refuses becomes a notice, not an error."""

    def __init__(self, *, owner: bool, notice: Callable[[bytes, str], None]) -> None:
        """Prepare to set metadata, owners only if `owner`; `notice` is told an entry's path and what failed."""
        self._names = Names() if owner else None
        self._notice = notice

    def apply(self, fd: int, entry: Entry, now: os.stat_result | None = None) -> None:
        """Set the metadata of an open file or directory, where `now` is what it is like; None for one that is new.

        The order matters: a change of owner clears set-id bits and capabilities, a change of mode may forbid to set
        attributes, and nothing may come after the time.
        """
        own = self._own(fd, entry, now)
        self._write_xattrs(fd, entry, now)
        mode = entry.mode
        if own is False and mode & _SET_ID:
            mode &= ~_SET_ID
            self._notice(entry.path, "set-user-id and set-group-id bits not set: they would act for another owner")
        try:
            if now is None or own or stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                os.chmod(fd, mode)
        except OSError as error:
            self._notice(entry.path, f"mode {mode:o} not set ({error.strerror})")
        try:
            if now is None or now.st_mtime_ns != entry.mtime_ns:
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        except OSError as error:
            self._notice(entry.path, f"time not set ({error.strerror})")

    def apply_to_symlink(self, directory: int, name: bytes, entry: Entry) -> None:
        """Set the metadata of a symlink itself, found below an open directory; it has no mode of its own."""
        if self._names is not None and entry.owner is not None:
            try:
                os.chown(name, *self._names.ids(entry.owner), dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                self._notice(entry.path, f"owner not set ({error.strerror})")
        if entry.xattrs:
            self._report(entry, write_xattrs(xattr_path(directory, name), entry.xattrs, present={}))
        try:
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            self._notice(entry.path, f"time not set ({error.strerror})")

    def _own(self, fd: int, entry: Entry, now: os.stat_result | None) -> bool | None:
        """Set the owner: True if it was changed, False if that failed, None if nothing was to be done."""
        if self._names is None or entry.owner is None:
            return None
        ids = self._names.ids(entry.owner)
        if now is not None and (now.st_uid, now.st_gid) == ids:
            return None
        try:
            os.chown(fd, *ids)
        except OSError as error:
            self._notice(entry.path, f"owner not set ({error.strerror})")
            return False
        return True

    def _write_xattrs(self, fd: int, entry: Entry, now: os.stat_result | None) -> None:
        present: Mapping[bytes, bytes] = {}
        if now is not None:
            try:
                present = read_xattrs(fd)
                if present != entry.xattrs:  # a file that its owner may not write to takes no attributes either
                    os.chmod(fd, stat.S_IMODE(now.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
            except OSError as error:
                self._notice(entry.path, f"extended attributes not set ({error.strerror})")
                return
        if present or entry.xattrs:
            self._report(entry, write_xattrs(fd, entry.xattrs, present=present))

    def _report(self, entry: Entry, failures: Iterable[str]) -> None:
        for failure in failures:
            self._notice(entry.path, failure)
