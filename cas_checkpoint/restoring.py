"""The restore: manifest → chunks → files, verified; nothing appears under its name before it is whole.

Files are restored in windows. Within one, the chunks are fetched in the order in which they lie in packs and
written wherever they belong. How a target is kept safe stands in `targets`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cas_checkpoint.errors import DamagedObject, EntryNotFound
from cas_checkpoint.ids import Buffer, chunk_id
from cas_checkpoint.manifests import ChunkRef, Content, Entry, EntryType
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.reading import Request, SnapshotReader
from cas_checkpoint.targets import StagedFile, Target

__all__ = ["RestoreResult", "restore"]

_WINDOW_CHUNKS = 2**16
_WINDOW_FILES = 2**12


class RestoreResult(NamedTuple):
    """What a restore did.

    Attributes:
        path: the target.
        files: files that the target now holds from the snapshot (hard links not counted).
        files_unchanged: those of them whose content was there already.
        bytes_written: plain bytes written.
        notices: what could not be done in full.
    """

    path: Path
    files: int
    files_unchanged: int
    bytes_written: int
    notices: tuple[Notice, ...]


def restore(
    reader: SnapshotReader,
    target: str | os.PathLike[str],
    *,
    paths: Sequence[bytes] | None = None,
    exact: bool = False,
    owner: bool = False,
    workers: int,
    monitor: Monitor,
) -> RestoreResult:
    """Write a snapshot, or the parts of it under `paths`, into the directory `target`; see `Store.restore`."""
    entries = _linked(_selected(reader.entries(), paths), reader)
    notices: list[Notice] = []

    def notice(item: Notice) -> None:
        notices.append(item)
        monitor.warning(item)

    with Target(target, owner=owner, exact=exact, notice=notice) as place:
        job = _Job(reader, place, workers=workers, monitor=monitor)
        job.run(entries)
        if exact:
            place.remove_others({entry.path for entry in entries})
        place.finish_directories([entry for entry in entries if entry.type is EntryType.DIRECTORY])
    return RestoreResult(Path(target), job.files, job.files_unchanged, job.bytes_written, tuple(notices))


def _selected(entries: Iterable[Entry], paths: Sequence[bytes] | None) -> list[Entry]:
    """Return the entries at or below one of `paths`, all if that is None; a path that fits none is an error.

    The empty path is that of the saved directory itself, and so fits all.
    """
    if paths is None:
        return list(entries)
    found: dict[bytes, bool] = dict.fromkeys(paths, False)
    selected = []
    for entry in entries:
        fitting = [path for path in found if not path or entry.path == path or entry.path.startswith(path + b"/")]
        found.update(dict.fromkeys(fitting, True))
        if fitting:
            selected.append(entry)
    for path, was_found in found.items():
        if not was_found:
            raise EntryNotFound(f"the snapshot holds nothing at {os.fsdecode(path)!r}; 'show' lists what it holds")
    return selected


def _linked(entries: list[Entry], reader: SnapshotReader) -> list[Entry]:
    """Turn hard links to files that are not among the entries into files, the first of each; later ones link to it."""
    present = {entry.path for entry in entries if entry.type is EntryType.FILE}
    orphans = {entry.target for entry in entries if entry.type is EntryType.HARDLINK} - present
    if not orphans:
        return entries
    files = {entry.path: entry for entry in reader.entries() if entry.path in orphans and entry.type is EntryType.FILE}
    heirs: dict[bytes, bytes] = {}
    result = []
    for entry in entries:
        if entry.type is EntryType.HARDLINK and entry.target in orphans:
            file = files.get(entry.target)
            if file is None:
                raise DamagedObject(f"{entry.name} is linked to a file that the snapshot does not hold")
            heir = heirs.setdefault(entry.target, entry.path)
            entry = file._replace(path=entry.path) if heir == entry.path else entry._replace(target=heir)  # noqa: PLW2901
        result.append(entry)
    return result


class _File:
    """A file being restored."""

    def __init__(self, entry: Entry, refs: list[ChunkRef]) -> None:
        self.entry = entry
        self.refs = refs
        self.remaining = len(refs)
        self.staged: StagedFile | None = None

    def write(self, offset: int, data: Buffer) -> None:
        """Write data of the content at `offset`, where the file's extents put it."""
        if self.staged is None:
            raise DamagedObject("a chunk for a file that is not being restored")
        for at, piece in _placed(self.entry.extents, offset, memoryview(data)):
            self.staged.write(at, piece)


def _placed(
    extents: tuple[tuple[int, int], ...] | None, offset: int, data: memoryview
) -> Iterator[tuple[int, memoryview]]:
    """Yield where in the file the bytes go that begin at `offset` of the content."""
    if extents is None:
        yield offset, data
        return
    begin = 0  # of the extent, within the content
    for start, size in extents:
        low, high = max(begin, offset), min(begin + size, offset + len(data))
        if low < high:
            yield start + low - begin, data[low - offset : high - offset]
        begin += size


class _Job:
    """One restore: everything between the list of entries and the finished tree."""

    def __init__(self, reader: SnapshotReader, target: Target, *, workers: int, monitor: Monitor) -> None:
        self.files = self.files_unchanged = self.bytes_written = 0
        self._reader, self._target, self._monitor = reader, target, monitor
        self._workers = max(1, workers)

    def run(self, entries: Sequence[Entry]) -> None:
        self._monitor.total(sum(entry.size for entry in entries))
        for entry in entries:
            if entry.type is EntryType.DIRECTORY:
                self._target.make_directory(entry.path)
        with ThreadPoolExecutor(self._workers, "cas-checkpoint-restore") as pool:
            try:
                self._restore_files((entry for entry in entries if entry.type is EntryType.FILE), pool)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for entry in entries:
            if entry.type is EntryType.SYMLINK:
                self._target.make_symlink(entry)
            elif entry.type is EntryType.HARDLINK:
                self._target.make_hardlink(entry)

    def _restore_files(self, entries: Iterable[Entry], pool: ThreadPoolExecutor) -> None:
        window: list[_File] = []
        chunks = 0
        for entry in entries:
            file = _File(entry, list(self._reader.refs(entry.content or Content(0, 0, b""))))
            window.append(file)
            chunks += len(file.refs)
            if chunks >= _WINDOW_CHUNKS or len(window) >= _WINDOW_FILES:
                self._restore_window(window, pool)
                window, chunks = [], 0
        self._restore_window(window, pool)

    def _restore_window(self, window: Sequence[_File], pool: ThreadPoolExecutor) -> None:
        differing = []
        for file in window:
            self.files += 1
            if self._is_there(file):
                self.files_unchanged += 1
                self._target.apply_metadata(file.entry)
            elif file.refs:
                differing.append(file)
            else:
                self._target.place(self._target.stage(file.entry), file.entry)
        places = [(file, offset) for file in differing for offset in _offsets(file.refs)]
        requests = self._reader.plan([ref for file in differing for ref in file.refs])
        running: deque[Future[list[_File]]] = deque()
        for request in requests:
            for row in request.rows:
                file = places[row.number][0]
                if file.staged is None:
                    file.staged = self._target.stage(file.entry)
            running.append(pool.submit(self._fetch, request, places))
            while len(running) > self._workers:
                self._place(running.popleft().result())
        while running:
            self._place(running.popleft().result())

    def _fetch(self, request: Request, places: Sequence[tuple[_File, int]]) -> list[_File]:
        """Write the chunks of a request where they belong; return the file of each."""
        files = []
        for row, plain in self._reader.fetch(request):
            file, offset = places[row.number]
            file.write(offset, plain)
            files.append(file)
        return files

    def _place(self, written: Sequence[_File]) -> None:
        """Count chunks that were written, and put files that are complete where they belong."""
        for file in written:
            file.remaining -= 1
            if file.remaining == 0 and file.staged is not None:
                self._target.place(file.staged, file.entry)
                size = file.entry.content.size if file.entry.content else 0
                self.bytes_written += size
                self._monitor.wrote(size)
                file.staged = None

    def _is_there(self, file: _File) -> bool:
        """Tell whether the target holds a file of that path with that very content."""
        descriptor = self._target.open_existing(file.entry)
        if descriptor is None:
            return False
        try:
            return _same_content(descriptor, file)
        finally:
            os.close(descriptor)


def _offsets(refs: Iterable[ChunkRef]) -> Iterator[int]:
    offset = 0
    for ref in refs:
        yield offset
        offset += ref.size


def _same_content(descriptor: int, file: _File) -> bool:
    """Compare a file on disk with chunks, by their ids."""
    if file.entry.extents is not None:
        return False  # holes are part of what is restored, and comparing them is no cheaper than writing
    for ref, offset in zip(file.refs, _offsets(file.refs), strict=True):
        data = bytearray()
        while len(data) < ref.size and (piece := os.pread(descriptor, ref.size - len(data), offset + len(data))):
            data += piece
        if len(data) != ref.size or chunk_id(data) != ref.chunk:
            return False
    return True
