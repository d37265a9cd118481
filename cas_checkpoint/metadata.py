"""What an entry carries besides its content: owner, extended attributes, mode and time; read from and set on files.

Everything here works on an open file, or on a name below an open directory without following symlinks.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import Final

from cas_checkpoint.manifests import Owner

__all__ = ["Names", "read_xattrs", "write_xattrs", "xattr_path"]

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
                failures.append(f"extended attribute {os.fsdecode(name)} not set ({error})")
    for name in present.keys() - xattrs.keys():
        if name.startswith(b"user."):
            try:
                os.removexattr(place, name, follow_symlinks=follow)
            except OSError as error:
                failures.append(f"extended attribute {os.fsdecode(name)} not removed ({error})")
    return failures
