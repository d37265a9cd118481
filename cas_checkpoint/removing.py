"""Removing what a target holds and should not, without following a symlink out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Container
from contextlib import suppress
from typing import Final

from cas_checkpoint.directories import Directories, join_place, restore_error

__all__ = ["DIRECTORY_IN_THE_WAY", "remove_below"]

DIRECTORY_IN_THE_WAY: Final = frozenset({errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
"""The errors of a call that would have to remove a directory with something in it."""


def remove_below(
    directories: Directories, place: str, top: bytes, keep: Container[bytes], *, spare: bytes | None = None
) -> int:
    """Remove what is at and below `top` and not in `keep`; return how many things that were.

    Args:
        directories: the directories of the target.
        place: what errors call the target.
        top: the path of a directory; empty for the root, which itself is not removed.
        keep: paths. A directory that is not among them stays if it holds something that is.
        spare: a name in `top` to leave alone.

    Raises:
        RestoreError: the system refuses.
    """
    removed = 0
    stack = [(top, [item for item in _list(directories, place, top) if item[0] != spare])]
    while stack:
        path, names = stack[-1]
        if not names:
            stack.pop()
            if path and path not in keep:
                removed += _remove_directory(directories, place, path)
            continue
        name, is_directory = names.pop()
        child = b"%b/%b" % (path, name) if path else name
        if is_directory:
            stack.append((child, _list(directories, place, child)))
        elif child not in keep:
            removed += _remove_file(directories, place, child)
    return removed


def _list(directories: Directories, place: str, path: bytes) -> list[tuple[bytes, bool]]:
    """Return the names in a directory, and whether each is a directory itself."""
    try:
        with os.scandir(directories.open(path, create=False)) as found:
            return [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in found]
    except OSError as error:
        raise restore_error(join_place(place, path), error) from error


def _remove_file(directories: Directories, place: str, path: bytes) -> int:
    parent, _, name = path.rpartition(b"/")
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directories.open(parent, create=False))
            return 1
    except OSError as error:
        raise restore_error(join_place(place, path), error) from error
    return 0


def _remove_directory(directories: Directories, place: str, path: bytes) -> int:
    parent, _, name = path.rpartition(b"/")
    try:
        os.rmdir(name, dir_fd=directories.open(parent, create=False))
    except OSError as error:
        if error.errno in DIRECTORY_IN_THE_WAY:
            return 0
        raise restore_error(join_place(place, path), error) from error
    directories.forget(path)
    return 1
