"""Which of a snapshot's entries are to be restored, in bounded memory however many they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from cas_checkpoint.errors import DamagedObject, EntryNotFound
from cas_checkpoint.manifests import Entry, EntryType
from cas_checkpoint.reading import SnapshotReader

__all__ = ["Selection"]

_KEPT_SIZE = 64 * 2**20  # bytes of files' entries in memory; if they are more, they are read again each time
_ENTRY_SIZE = 512  # about what Python takes for one, without its variable parts
_PAIR_SIZE = 128


class Selection:
    """The entries to restore. All are read, and found right, before anything else happens.

    Attributes:
        size: bytes of all files.
        directories: in order.
        links: symlinks and hard links, in order.
    """

    def __init__(self, reader: SnapshotReader, paths: Sequence[bytes] | None) -> None:
        """Read the snapshot's entries, and select those at or below one of `paths`, all if that is None.

        The empty path is that of the saved directory itself, and so fits all.

        Raises:
            EntryNotFound: one of the paths fits none.
            DamagedStore: an entry is not what it should be.
        """
        self.size = 0
        self.directories: list[Entry] = []
        self.links: list[Entry] = []
        self._reader, self._paths = reader, paths
        self._kept: list[Entry] | None = []  # files; None if they are too many
        self._heirs: list[Entry] = []  # files that only links led to
        room = _KEPT_SIZE
        for entry in self._read():
            self.size += entry.size
            if entry.type is EntryType.DIRECTORY:
                self.directories.append(entry)
            elif entry.type is not EntryType.FILE:
                self.links.append(entry)
            elif self._kept is not None:
                self._kept.append(entry)
                room -= _memory(entry)
                if room < 0:
                    self._kept = None
        self._adopt()

    def files(self) -> Iterator[Entry]:
        """Yield the files, in order but for those that stand for links to files that are not selected."""
        if self._kept is None:
            yield from (entry for entry in self._read() if entry.type is EntryType.FILE)
        else:
            yield from self._kept
        yield from self._heirs

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, in no order."""
        yield from self.directories
        yield from self.files()
        yield from self.links

    def _read(self) -> Iterator[Entry]:
        if self._paths is None:
            yield from self._reader.entries()
            return
        wanted = frozenset(self._paths)
        below = tuple(path and path + b"/" for path in wanted)
        missing = wanted
        for entry in self._reader.entries():
            if entry.path in wanted or entry.path.startswith(below):
                missing = missing and frozenset(path for path in missing if not _is_within(entry.path, path))
                yield entry
        for path in missing:
            raise EntryNotFound(f"the snapshot holds nothing at {os.fsdecode(path)!r}; 'show' lists what it holds")

    def _adopt(self) -> None:
        """Turn hard links to files that are not selected into files, the first of each; later ones link to it."""
        orphans = {link.target for link in self.links if link.type is EntryType.HARDLINK}
        if orphans:
            orphans.difference_update([entry.path for entry in self.files() if entry.path in orphans])
        if not orphans:
            return
        files = {
            entry.path: entry
            for entry in self._reader.entries()
            if entry.type is EntryType.FILE and entry.path in orphans
        }
        heirs: dict[bytes, bytes] = {}
        links = []
        for link in self.links:
            if link.type is not EntryType.HARDLINK or link.target not in orphans:
                links.append(link)
                continue
            file = files.get(link.target)
            if file is None:
                raise DamagedObject(f"{link.name} is linked to a file that the snapshot does not hold")
            heir = heirs.setdefault(link.target, link.path)
            if heir == link.path:
                self._heirs.append(file._replace(path=link.path))
                self.size += file.size
            else:
                links.append(link._replace(target=heir))
        self.links = links


def _is_within(path: bytes, top: bytes) -> bool:
    return not top or path == top or path.startswith(top + b"/")


def _memory(entry: Entry) -> int:
    """Estimate how many bytes an entry takes in memory."""
    size = _ENTRY_SIZE + len(entry.path) + len(entry.content.refs if entry.content else b"")
    size += _PAIR_SIZE * (len(entry.extents or ()) + len(entry.xattrs))
    return size + sum(map(len, entry.xattrs.values()))
