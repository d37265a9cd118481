"""The restore: manifest → chunks → files, verified; nothing appears under its name before it is whole.

Files are restored in windows. Within one, the chunks are fetched in the order in which they lie in packs and
written wherever they belong. How a target is kept safe stands in `targets`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cas_checkpoint.backends.descriptors import fill
from cas_checkpoint.buffers import anonymous_memory
from cas_checkpoint.codecs import MAX_CHUNK_SIZE
from cas_checkpoint.directories import join_place
from cas_checkpoint.errors import DamagedStore
from cas_checkpoint.ids import Buffer, chunk_id
from cas_checkpoint.manifests import ChunkRef, Content, Entry, EntryType
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.reading import Lost, Request, SnapshotReader
from cas_checkpoint.selections import Selection
from cas_checkpoint.targets import StagedFile, Target

__all__ = ["RestoreResult", "restore"]

_WINDOW_CHUNKS = 2**14
_SMALL_CHUNK = 2**15  # below that, most of the work is Python's, of which several threads do less than one
_LARGE_FILE = 2**24  # which several threads compare with what it should be, so many chunks at once:
_COMPARED_CHUNKS = 32
_NOTHING = Content(0, 0, b"")


class RestoreResult(NamedTuple):
    """What a restore did.

    Attributes:
        path: the target.
        files: files that the target now holds from the snapshot (hard links not counted).
        files_unchanged: those of them whose content was there already.
        bytes_written: plain bytes written.
        notices: what could not be done in full.
        lost: paths in the snapshot of files, and of hard links to them, that were left out because they are damaged.
        snapshot: the id of the snapshot that was restored.
    """

    path: Path
    files: int
    files_unchanged: int
    bytes_written: int
    notices: tuple[Notice, ...]
    lost: tuple[str, ...]
    snapshot: str


def restore(
    reader: SnapshotReader,
    target: str | os.PathLike[str],
    *,
    paths: Sequence[bytes] | None = None,
    exact: bool = False,
    owner: bool = False,
    skip: bool = False,
    workers: int,
    monitor: Monitor,
) -> RestoreResult:
    """Write a snapshot, or the parts of it under `paths`, into the directory `target`; see `Store.restore`.

    With `skip`, files that are damaged in the store are left out.
    """
    report = _Report(os.fsdecode(target), monitor)
    reader.notice = report.notice
    selection = _select(reader, paths, skip=skip)
    with Target(target, owner=owner, exact=exact, notice=report.notice) as place:
        job = _Job(reader, place, skip=skip, workers=workers, report=report)
        job.run(selection)
        if exact:
            place.remove_others({entry.path for entry in selection.entries()})
        place.finish_directories(selection.directories)
    return RestoreResult(
        Path(target),
        job.files,
        job.files_unchanged,
        job.bytes_written,
        tuple(report.notices),
        tuple(sorted(os.fsdecode(path) for path in job.lost)),
        reader.key.transaction.hex(),
    )


def _select(reader: SnapshotReader, paths: Sequence[bytes] | None, *, skip: bool) -> Selection:
    try:
        return Selection(reader, paths)
    except DamagedStore as error:
        if not skip:
            raise
        raise DamagedStore(
            f"the list of what the snapshot holds is damaged, so nothing can be restored: {error}"
        ) from error


class _Report:
    """What a restore into `place` tells, from any thread."""

    def __init__(self, place: str, monitor: Monitor) -> None:
        self.place, self.monitor = place, monitor
        self.notices: list[Notice] = []
        self._lock = threading.Lock()

    def notice(self, item: Notice) -> None:
        with self._lock:
            self.notices.append(item)
            self.monitor.warning(item)


class _File:
    """A file being restored. Its chunks come in any order, from several threads.

    Attributes:
        entry: what it is to become.
        chunks: how many chunks were asked for.
        complete: whether these are all.
        lost: whether one of them is nowhere to be had.
    """

    __slots__ = ("_lock", "_staged", "_target", "_written", "chunks", "complete", "entry", "lost")

    def __init__(self, entry: Entry, target: Target) -> None:
        self.entry, self.chunks, self.complete, self.lost = entry, 0, False, False
        self._target = target
        self._lock = threading.Lock()
        self._staged: StagedFile | None = None
        self._written = 0

    def add(self, offset: int, data: Buffer) -> bool:
        """Write the chunk at `offset` of the content; tell whether the file is whole, and in its place, with that."""
        pieces = _placed(self.entry.extents, offset, memoryview(data))
        if self.complete and self.chunks == 1:
            self._target.put(self.entry, pieces)
            return True
        # Of several writers to one file all but one have to wait: here that costs less than in the system.
        with self._lock:
            if self.lost:
                return False
            if self._staged is None:
                self._staged = self._target.stage(self.entry)
            staged = self._staged
            for at, piece in pieces:
                staged.write(at, piece)
            self._written += 1
            whole = self.complete and self._written == self.chunks
        if whole:
            self._target.place(staged, self.entry)
        return whole

    def lose(self) -> bool:
        """Give the file up, which never appears then; tell whether it was not given up before."""
        with self._lock:
            is_first, self.lost = not self.lost, True
            if self._staged is not None:
                self._staged.discard()
                self._staged = None
            return is_first


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


class _Window:
    """Chunks that are fetched together, and where each belongs."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.refs: list[ChunkRef] = []
        self.places: list[tuple[_File, int]] = []  # for each, the file and the offset in its content

    def add(self, ref: ChunkRef, file: _File, offset: int) -> None:
        self.refs.append(ref)
        self.places.append((file, offset))
        file.chunks += 1


class _Job:
    """One restore: everything between the list of entries and the finished tree."""

    def __init__(
        self,
        reader: SnapshotReader,
        target: Target,
        *,
        skip: bool,
        workers: int,
        report: _Report,
    ) -> None:
        self.files = self.files_unchanged = self.bytes_written = 0
        self.lost: set[bytes] = set()
        self._reader, self._target, self._report = reader, target, report
        self._skip = skip
        self._workers = max(1, workers)
        self._spare: list[memoryview] = []  # memory to compare in

    def run(self, selection: Selection) -> None:
        self._report.monitor.total(selection.size)
        for entry in selection.directories:
            self._target.make_directory(entry.path)
        with ThreadPoolExecutor(self._workers, "cas-checkpoint-restore") as pool:
            try:
                self._restore_files(selection.files(), pool)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for entry in selection.links:
            if entry.type is EntryType.SYMLINK:
                self._target.make_symlink(entry)
            elif entry.target in self.lost:
                self._lose(entry, f"is a link to {os.fsdecode(entry.target)!r}")
            else:
                self._target.make_hardlink(entry)

    def _restore_files(self, entries: Iterable[Entry], pool: ThreadPoolExecutor) -> None:
        window = _Window()
        for entry in entries:
            self.files += 1
            file = _File(entry, self._target)
            try:
                self._restore_file(file, window, pool)
            except DamagedStore as error:
                if not self._skip:
                    raise
                self._give_up(file, error)
        self._restore_window(window, pool)
        self.files -= len(self.lost)

    def _restore_file(self, file: _File, window: _Window, pool: ThreadPoolExecutor) -> None:
        """Restore a file if that needs no chunks; else add them to the window, which is restored when it is full."""
        entry, content = file.entry, file.entry.content or _NOTHING
        if self._is_there(entry, content, pool):
            self.files_unchanged += 1
            self._target.apply_metadata(entry)
        elif not content.size:
            self._target.put(entry, ())
        else:
            for ref, offset in _with_offsets(self._reader.refs(content)):
                if len(window.refs) == _WINDOW_CHUNKS:
                    self._restore_window(window, pool)
                    window.clear()
                if file.lost:
                    return
                window.add(ref, file, offset)
            file.complete = True

    def _give_up(self, file: _File, error: DamagedStore) -> None:
        """Leave a file out that is damaged in the store."""
        if file.lose():
            self._lose(file.entry, str(error))

    def _lose(self, entry: Entry, reason: str) -> None:
        self.lost.add(entry.path)
        self._report.notice(Notice(join_place(self._report.place, entry.path), f"left out: {reason}"))

    def _restore_window(self, window: _Window, pool: ThreadPoolExecutor) -> None:
        running: deque[Future[int]] = deque()
        lost = self._teller(window.places)
        for request in self._reader.plan(window.refs, lost=lost):
            if self._reader.near and sum(row.plain_size for row in request.rows) < len(request.rows) * _SMALL_CHUNK:
                self._count(self._fetch(request, window.places, lost))
                continue
            running.append(pool.submit(self._fetch, request, window.places, lost))
            while len(running) > self._workers:
                self._count(running.popleft().result())
        while running:
            self._count(running.popleft().result())

    def _teller(self, places: Sequence[tuple[_File, int]]) -> Lost | None:
        """Return what to call for chunks that are nowhere to be had; None where that is an error."""
        return (lambda number, error: self._give_up(places[number][0], error)) if self._skip else None

    def _fetch(self, request: Request, places: Sequence[tuple[_File, int]], lost: Lost | None) -> int:
        """Write the chunks of a request where they belong; return the bytes of the files that are whole with that."""
        size = 0
        for row, plain in self._reader.fetch(request, lost=lost):
            file, offset = places[row.number]
            if file.add(offset, plain) and file.entry.content:
                size += file.entry.content.size
        return size

    def _count(self, size: int) -> None:
        self.bytes_written += size
        self._report.monitor.wrote(size)

    def _is_there(self, entry: Entry, content: Content, pool: ThreadPoolExecutor) -> bool:
        """Tell whether the target holds a file of that path with that very content."""
        descriptor = None if self._target.created else self._target.open_existing(entry)
        if descriptor is None:
            return False
        try:
            # Holes are part of what is restored, and comparing them is no cheaper than writing.
            return entry.extents is None and self._holds(descriptor, content, pool)
        finally:
            os.close(descriptor)

    def _holds(self, descriptor: int, content: Content, pool: ThreadPoolExecutor) -> bool:
        """Compare a file on disk with the chunks of a content."""
        refs = _with_offsets(self._reader.refs(content))
        if content.size < _LARGE_FILE:
            return self._same(descriptor, list(refs))
        running: deque[Future[bool]] = deque()
        same = True
        try:
            while same and (run := list(islice(refs, _COMPARED_CHUNKS))):
                running.append(pool.submit(self._same, descriptor, run))
                if len(running) > self._workers:
                    same = running.popleft().result()
        finally:
            wait(running)  # they use the descriptor
        return same and all(future.result() for future in running)

    def _same(self, descriptor: int, refs: Sequence[tuple[ChunkRef, int]]) -> bool:
        """Compare a part of a file with chunks, by their ids."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = anonymous_memory(MAX_CHUNK_SIZE)
        try:
            return all(
                fill(descriptor, offset, memory[: ref.size]) == ref.size and chunk_id(memory[: ref.size]) == ref.chunk
                for ref, offset in refs
            )
        finally:
            self._spare.append(memory)


def _with_offsets(refs: Iterable[ChunkRef]) -> Iterator[tuple[ChunkRef, int]]:
    offset = 0
    for ref in refs:
        yield ref, offset
        offset += ref.size
