"""One snapshot's entries laid over another's: what an accumulating checkpoint holds after a save. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cas_checkpoint.manifests import Entry, EntryType, order

__all__ = ["Merged", "overlay"]


class Merged(NamedTuple):
    """An entry of the result, and whether it was kept from the lower snapshot."""

    entry: Entry
    kept: bool


def overlay(lower: Iterable[Entry], upper: Sequence[Entry]) -> list[Merged]:
    """Return the entries of `lower` with those of `upper` laid over them, in order.

    Of one path the upper entry wins. A lower entry goes if an upper one has taken the place of its parent
    (a file where there was a directory), or needs its place as a parent. A lower hard link whose file goes
    becomes that file.
    """
    taken = {entry.path for entry in upper}
    parents = {parent for entry in upper for parent in _parents(entry.path)}
    blocked = {entry.path for entry in upper if entry.type is not EntryType.DIRECTORY}
    files: dict[bytes, Entry] = {}
    heirs: dict[bytes, bytes] = {}
    result = [Merged(entry, kept=False) for entry in upper]
    for entry in sorted(lower, key=lambda entry: entry.type is EntryType.HARDLINK):  # files before links to them
        if entry.type is EntryType.FILE:
            files[entry.path] = entry
        goes = entry.path in taken or any(parent in blocked for parent in _parents(entry.path))
        if goes or (entry.path in parents and entry.type is not EntryType.DIRECTORY):
            if entry.type is EntryType.FILE:
                heirs[entry.path] = b""
            continue
        result.append(Merged(_relinked(entry, files, heirs), kept=True))
    return sorted(result, key=lambda merged: order(merged.entry.path))


def _relinked(entry: Entry, files: dict[bytes, Entry], heirs: dict[bytes, bytes]) -> Entry:
    """Return a hard link as it must be once its file may have gone: the first of them takes the file's place."""
    if entry.type is not EntryType.HARDLINK or entry.target not in heirs:
        return entry
    if heirs[entry.target]:
        return entry._replace(target=heirs[entry.target])
    heirs[entry.target] = entry.path
    return files[entry.target]._replace(path=entry.path)


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]
