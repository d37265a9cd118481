"""Giving a finished file its name only if nobody has that name: on a local disk the heart of put-if-absent."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

__all__ = ["link_exclusively"]

_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_EXCLUSIVE_RENAME: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_CALL, _FLAG, _CURRENT_DIRECTORY = (
    ("renameatx_np", 4, -2)  # RENAME_EXCL and AT_FDCWD of macOS
    if sys.platform == "darwin"
    else ("renameat2", 1, -100)  # RENAME_NOREPLACE and AT_FDCWD of Linux
)


def link_exclusively(temporary: str, path: str) -> bool:
    """Give the file `temporary` the name `path` as well, or instead; tell whether the name was free.

    Raises:
        OSError: the system refuses, or can neither make hard links there nor rename without replacing.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_exclusively(temporary, path)
    return True


def _rename_exclusively(temporary: str, path: str) -> bool:
    """Rename without replacing, by the system call that Python does not offer."""
    code = _call_rename(os.fsencode(temporary), os.fsencode(path))
    if code in _NO_EXCLUSIVE_RENAME:
        raise OSError(
            code,
            "this file system has no hard links and no renaming without replacing, so that two writers could not "
            "be told apart; move the store to a file system that has either",
            path,
        )
    if code not in (0, errno.EEXIST):
        raise OSError(code, os.strerror(code), path)
    return code == 0


def _call_rename(old: bytes, new: bytes) -> int:
    """Return 0, or the number of the error."""
    function = getattr(ctypes.CDLL(None, use_errno=True), _CALL, None)
    if function is None:
        return errno.ENOSYS
    done = function(_CURRENT_DIRECTORY, ctypes.c_char_p(old), _CURRENT_DIRECTORY, ctypes.c_char_p(new), _FLAG)
    return 0 if done == 0 else ctypes.get_errno()
