"""Walking a directory tree on the local disk, in the order of a manifest.

Nothing here holds a whole tree, or more than a few open directories however deep the tree is, and nothing follows a
symlink. The files that are found are read by `readers`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from cas_checkpoint.errors import SourceChanged, SourceError, SourceUnreadable
from cas_checkpoint.filescache import Row, Stamp, stamp_of
from cas_checkpoint.manifests import MAX_ENTRY_SIZE, MAX_PATH_SIZE, Entry, EntryType
from cas_checkpoint.metadata import Names, read_xattrs, xattr_path
from cas_checkpoint.monitor import Notice
from cas_checkpoint.readers import FileReader, SourceReader, open_path, shown, source_error
from cas_checkpoint.records import MAX_ITEMS

__all__ = ["SourceItem", "TreeWalker"]

_OPEN_FOLDERS: Final = 32
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOM_FOR_THE_REST: Final = 128 * 2**10  # an entry's target, extents, chunks and owner take less
_XATTR_FRAME: Final = 16  # at most so many bytes around a name and its value
_TIME_LIMIT: Final = 2**63  # of an entry's time, in nanoseconds
_NO_XATTRS: Final[Mapping[bytes, bytes]] = {}
_NOT_SAVED: Final = {
    stat.S_IFSOCK: "is a socket; not saved",
    stat.S_IFIFO: "is a FIFO; not saved",
    stat.S_IFCHR: "is a device; not saved",
    stat.S_IFBLK: "is a device; not saved",
}


class SourceItem(NamedTuple):
    """Something to be saved.

    Attributes:
        entry: what it is, without `content`; its `size` as listed, 0 for a stream.
        open: opens a file for reading, now or later, in any thread; raises a `SourceError`. None for all but files.
        stamp: what a file on the disk is recognized by.
        row: what a snapshot has at the path of a file on the disk, if there is one to compare with.
    """

    entry: Entry
    open: Callable[[], SourceReader] | None = None
    stamp: Stamp | None = None
    row: Row | None = None

    @property
    def is_unchanged(self) -> bool:
        """Whether it is what the snapshot has. Its entry is then not filled in: that of the row holds."""
        return self.row is not None and self.stamp is not None and self.row.stamp == self.stamp


class _Folder:
    """A directory on the way from the top to where the walk is."""

    def __init__(self, path: bytes, place: bytes, fd: int) -> None:
        """List the open directory `fd`, which is ours from now on."""
        self.path, self.place, self.fd = path, place, fd
        try:
            self.status = os.fstat(fd)
            # The order of names is that of `manifests.order`: no name has a byte below the separator's.
            self.names = sorted(map(os.fsencode, os.listdir(fd)), reverse=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def reopen(self) -> None:
        """Make sure that it is open; raise `SourceChanged` if another directory has its place by now."""
        if self.fd >= 0:
            return
        self.fd = open_path(self.place, _FOLDER_FLAGS)
        if not os.path.samestat(os.fstat(self.fd), self.status):
            self.close()
            raise SourceChanged(f"{shown(self.place)}: replaced while it was saved; save again when nobody moves it")


class _Spot(NamedTuple):
    """Where something was met: `name` in an open directory, `place` on the disk, `path` in the snapshot."""

    directory: int | None
    name: bytes
    place: bytes
    path: bytes
    file_path: bytes  # the same, unless it is the top


class TreeWalker:
    """Walks trees, one after the other."""

    def __init__(
        self,
        *,
        owner: bool,
        xattrs: bool,
        problem: Callable[[SourceError], None],
        notice: Callable[[Notice], None],
    ) -> None:
        """See `sources.Walker`."""
        self._names = Names() if owner else None
        self._with_xattrs, self._problem, self._notice = xattrs, problem, notice
        self._rows: Callable[[bytes, int], Row | None] = lambda *_: None
        self._links: dict[tuple[int, int], tuple[bytes, int]] = {}  # file → its first path, how many more are to come

    def reset(self, rows: Callable[[bytes, int], Row | None]) -> None:
        """Begin another snapshot; `rows` gives what there is to compare a file with, by its path and size."""
        self._rows = rows
        self._links.clear()

    def forget(self, entry: Entry) -> None:
        """See `sources.Walker`."""
        self._links = {file: link for file, link in self._links.items() if link[0] != entry.path}

    def walk(self, place: bytes, path: bytes, file_path: bytes) -> Iterator[SourceItem]:
        """Yield what lies at and below `place`, an absolute path on the disk.

        The entry at the top has the path `path` if it is a directory, else `file_path`.
        """
        stack: list[_Folder] = []
        try:
            top = self._look(stack, _Spot(None, place, place, path, file_path))
            if top is not None:
                yield top if stack else top._replace(entry=top.entry._replace(path=file_path))
            while stack:
                item = self._step(stack)
                if item is not None:
                    yield item
        finally:
            for folder in stack:
                folder.close()

    def _step(self, stack: list[_Folder]) -> SourceItem | None:
        """Go on to the next name; None if it gives no item."""
        folder = stack[-1]
        if not folder.names:
            stack.pop().close()
            return None
        try:
            folder.reopen()
        except (OSError, SourceError) as error:
            folder.names.clear()
            self._problem(source_error(folder.place, error) if isinstance(error, OSError) else error)
            return None
        name = folder.names.pop()
        path = b"%b/%b" % (folder.path, name) if folder.path else name
        return self._look(stack, _Spot(folder.fd, name, os.path.join(folder.place, name), path, path))

    def _look(self, stack: list[_Folder], spot: _Spot) -> SourceItem | None:
        """Return the item there, None if it cannot or should not be saved; a directory goes onto the stack."""
        try:
            return self._item(stack, spot, os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False))
        except OSError as error:
            self._problem(source_error(spot.place, error))
        except SourceError as error:
            self._problem(error)
        return None

    def _item(self, stack: list[_Folder], spot: _Spot, status: os.stat_result) -> SourceItem | None:
        kind = stat.S_IFMT(status.st_mode)
        if len(spot.path) > MAX_PATH_SIZE:
            raise SourceUnreadable(f"{shown(spot.place)}: its path is longer than {MAX_PATH_SIZE} bytes; move it up")
        if kind == stat.S_IFREG:
            return self._file(spot, status)
        if kind == stat.S_IFDIR:
            return self._directory(stack, spot)
        if kind == stat.S_IFLNK:
            target = os.readlink(spot.name, dir_fd=spot.directory)
            return SourceItem(self._entry(spot, status, EntryType.SYMLINK)._replace(target=target))
        self._notice(Notice(os.fsdecode(spot.place), _NOT_SAVED.get(kind, "is of an unknown kind; not saved")))
        return None

    def _file(self, spot: _Spot, status: os.stat_result) -> SourceItem:
        if status.st_nlink > 1:
            file = status.st_dev, status.st_ino
            first, left = self._links.pop(file, (None, status.st_nlink))
            if left > 1:
                self._links[file] = spot.path if first is None else first, left - 1
            if first is not None:
                return SourceItem(self._entry(spot, status, EntryType.HARDLINK)._replace(target=first))
        row, stamp = self._rows(spot.file_path, status.st_size), stamp_of(status)
        reader = partial(FileReader, spot.place, status)
        if row is not None and row.stamp == stamp:
            return SourceItem(Entry(spot.path, EntryType.FILE, size=status.st_size), reader, stamp, row)
        return SourceItem(self._entry(spot, status, EntryType.FILE), reader, stamp, row)

    def _directory(self, stack: list[_Folder], spot: _Spot) -> SourceItem:
        """List a directory before its entry is made: one that cannot be listed is left out as a whole."""
        folder = _Folder(spot.path, spot.place, os.open(spot.name, _FOLDER_FLAGS, dir_fd=spot.directory))
        try:
            entry = self._entry(spot, folder.status, EntryType.DIRECTORY)
        except BaseException:
            folder.close()
            raise
        stack.append(folder)
        if len(stack) > _OPEN_FOLDERS:
            stack[-_OPEN_FOLDERS - 1].close()
        return SourceItem(entry)

    def _entry(self, spot: _Spot, status: os.stat_result, kind: EntryType) -> Entry:
        return Entry(
            spot.path,
            kind,
            stat.S_IMODE(status.st_mode),
            max(-_TIME_LIMIT, min(status.st_mtime_ns, _TIME_LIMIT - 1)),
            status.st_size if kind is EntryType.FILE else 0,
            xattrs=self._xattrs(spot) if self._with_xattrs else _NO_XATTRS,
            owner=None if self._names is None else self._names.owner(status.st_uid, status.st_gid),
        )

    def _xattrs(self, spot: _Spot) -> Mapping[bytes, bytes]:
        try:
            xattrs = read_xattrs(spot.place if spot.directory is None else xattr_path(spot.directory, spot.name))
        except OSError as error:
            self._notice(Notice(os.fsdecode(spot.place), f"extended attributes not saved ({error.strerror})"))
            return _NO_XATTRS
        size = sum(len(name) + len(value) + _XATTR_FRAME for name, value in xattrs.items())
        if size > MAX_ENTRY_SIZE - _ROOM_FOR_THE_REST or len(xattrs) > MAX_ITEMS:
            raise SourceUnreadable(f"{shown(spot.place)}: {size} bytes of extended attributes; remove some of them")
        return xattrs
