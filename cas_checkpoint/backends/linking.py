"""Giving a finished file its name only if nobody has that name: on a local disk the heart of put-if-absent."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

__all__ = ["link_exclusively"]

_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_AT_FDCWD: Final = -100 if sys.platform == "linux" else -2
_LINUX_NO_REPLACE: Final = 1  # RENAME_NOREPLACE of renameat2(2)
_DARWIN_EXCLUSIVE: Final = 4  # RENAME_EXCL of renameatx_np(2)


def link_exclusively(temporary: str, path: str) -> bool:
    """Give the file `temporary` the name `path` as well, or instead; tell whether the name was free.

    Raises:
        OSError: the file system can neither make hard links nor rename without replacing.
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
    library = ctypes.CDLL(None, use_errno=True)
    name, flag = ("renameatx_np", _DARWIN_EXCLUSIVE) if sys.platform == "darwin" else ("renameat2", _LINUX_NO_REPLACE)
    function = getattr(library, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, "the file system has no hard links, and the system no exclusive rename", path)
    old, new = os.fsencode(temporary), os.fsencode(path)
    if function(_AT_FDCWD, ctypes.c_char_p(old), _AT_FDCWD, ctypes.c_char_p(new), ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    raise OSError(code, f"no hard links, and renaming without replacing fails: {os.strerror(code)}", path)
