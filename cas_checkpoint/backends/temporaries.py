"""The files that objects are written into before they get their names, and what dead writers have left of them.

A writer holds a lock on its file, which goes when the process does, however it ends. That says nothing to other
writers; it only tells who sweeps up what nobody is going to finish.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from typing import Final

__all__ = ["TEMPORARY_PREFIX", "claim", "sweep_temporaries"]

TEMPORARY_PREFIX: Final = ".tmp-"

_DAY: Final = 86_400.0
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def claim(descriptor: int) -> bool:
    """Hold a new temporary file as long as it is open; False if it was swept away before.

    Where the file system has no locks nothing is held, and age alone protects the file.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True
    return os.fstat(descriptor).st_nlink > 0


def sweep_temporaries(root: str, grace: float) -> int:
    """Remove the temporary files below `root` whose writers have died; return their size in bytes.

    Args:
        root: the directory of a store.
        grace: seconds; files that were changed within them are left alone.
    """
    freed = 0
    for directory, _, names in os.walk(root):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                with suppress(FileNotFoundError):
                    freed += _sweep(os.path.join(directory, name), grace)
    return freed


def _sweep(path: str, grace: float) -> int:
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        age = time.time() - status.st_mtime
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            grace = max(grace, _DAY)
        if age < grace:
            return 0
        os.unlink(path)
    finally:
        os.close(descriptor)
    return status.st_size
