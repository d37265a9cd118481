"""What a checkpoint is resumed from: a snapshot, or plain files. Both are restored and read alike."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from cas_checkpoint.errors import DamagedStore, NotASingleFile, SnapshotForgotten
from cas_checkpoint.filereader import SnapshotFile
from cas_checkpoint.manifests import Entry, EntryType
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.plain import PlainFiles, write_items
from cas_checkpoint.snapshots import Snapshot
from cas_checkpoint.store import Store

__all__ = ["Fallback", "Previous", "PreviousFiles", "PreviousSnapshot"]

Fallback: TypeAlias = Literal["previous"] | None


class Previous(Protocol):
    """A checkpoint that can be resumed from."""

    def restore(self, directory: Path, monitor: Monitor, *, fallback: Fallback = None) -> None:
        """Write it into a directory, which is created if it is not there; what else is there stays.

        With `fallback`, a snapshot that is damaged is replaced by the next older one of its series that is not.

        Raises:
            DamagedStore: something that is needed is damaged or missing.
            SourceError: a plain file cannot be read, or changed while it was.
            RestoreError: the directory cannot be written.
        """

    def read(self, monitor: Monitor | None = None, *, fallback: Fallback = None) -> bytes | None:
        """Return the content of its only file, None if it is empty; nothing is written to disk.

        `fallback` is as for `restore`.

        Raises:
            NotASingleFile: it holds more, or something else than a file. Directories count, and hidden files do.
            DamagedStore: something that is needed is damaged or missing.
        """


class PreviousSnapshot(NamedTuple):
    """A snapshot to resume from; it stays the same, whatever is saved meanwhile."""

    store: Store
    snapshot: Snapshot

    def restore(self, directory: Path, monitor: Monitor, *, fallback: Fallback = None) -> None:
        """See `Previous`."""
        self.store.restore(self.snapshot, directory, fallback=fallback, monitor=monitor)

    def read(self, monitor: Monitor | None = None, *, fallback: Fallback = None) -> bytes | None:
        """See `Previous`."""
        monitor = monitor or Monitor()
        try:
            return _read_single(self.snapshot, monitor)
        except DamagedStore as error:
            for older in self._older() if fallback else ():
                with suppress(DamagedStore, SnapshotForgotten):
                    data = _read_single(older, monitor)
                    monitor.warning(_replaced(self.snapshot, older, error))
                    return data
            raise

    def _older(self) -> Iterator[Snapshot]:
        """Yield the snapshots before it in its series whose commits can be read, newest first."""
        rank = self.snapshot.sequence, self.snapshot.id
        for other in self.store.snapshots(self.snapshot.series, damaged=lambda _: None):
            if (other.sequence, other.id) < rank:
                yield other


def _replaced(damaged: Snapshot, other: Snapshot, error: DamagedStore) -> Notice:
    name = f"{damaged.series}@{damaged.sequence}"
    return Notice(name, f"is damaged, {other.series}@{other.sequence} was read instead: {error}")


def _read_single(snapshot: Snapshot, monitor: Monitor) -> bytes | None:
    """Return the content of a snapshot's only file; see `Previous.read`."""
    reader = snapshot.reader()
    reader.notice = monitor.warning
    top: dict[bytes, Entry | None] = {}  # None for a directory without an entry of its own
    for entry in reader.entries():
        name, below, _ = entry.path.partition(b"/")
        if name:
            top.setdefault(name, None if below else entry)
    files = {name: entry is not None and entry.type is EntryType.FILE for name, entry in top.items()}
    _check_single({os.fsdecode(name): is_file for name, is_file in files.items()})
    for file in top.values():
        if file is not None:
            with io.BufferedReader(SnapshotFile(reader, file)) as stream:
                return stream.read()
    return None


class PreviousFiles(NamedTuple):
    """Plain files to resume from, as they lie."""

    files: PlainFiles

    def restore(self, directory: Path, monitor: Monitor, *, fallback: Fallback = None) -> None:  # noqa: ARG002 -- these have no older ones
        """See `Previous`."""
        write_items(self.files.items(monitor.warning), directory, monitor.warning)

    def read(self, monitor: Monitor | None = None, *, fallback: Fallback = None) -> bytes | None:  # noqa: ARG002
        """See `Previous`."""
        top = self.files.top()
        _check_single(top)
        return next((self.files.read_bytes(name) for name in top), None)


def _check_single(top: Mapping[str, bool]) -> None:
    """Raise `NotASingleFile` if there are several names, or one that is not a file's."""
    if len(top) > 1:
        raise NotASingleFile(f"Expected exactly one checkpoint - found {len(top)}")
    if not all(top.values()):
        name = next(iter(top))
        raise NotASingleFile(f"Expected exactly one checkpoint - found {name!r}, which is no file; restore it instead")
