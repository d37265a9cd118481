"""What a writer knows to be in the store already, and since when (SPEC.md, "Base and dates").

Knowledge is a cache: missing a duplicate costs space, never correctness. It is dated, because a pack that was
there once may have been collected since; whoever relies on it checks the marks before the commit.

Memory and requests are bounded, so that a save costs the same in a large store as in a small one: first comes what the
parent snapshot needs, then what else there is, the newest first, as long as there is room.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, takewhile
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import index_key
from cas_checkpoint.ids import PackId, TransactionId
from cas_checkpoint.index import ChunkIndex, IndexDirectory, Section, parse_directory
from cas_checkpoint.manifests import PackRef
from cas_checkpoint.merging import PASSED_OVER, list_indexes, merge_indexes, worth_merging
from cas_checkpoint.packs import Footer
from cas_checkpoint.rows import ROW_SIZE, ChunkRows

__all__ = ["Knowledge"]

_PACK_COST = 32  # a pack takes as much time as so many chunks, and the memory of eight
_SHARE_LEARNED = 0.875  # of the memory; the rest is for what the process itself will save
_CHUNK_SIZE = 44  # bytes of an index object for each chunk
_LEAST_SIZE = 112 // _PACK_COST  # the same for what counts as a chunk, if its packs were empty
_MAX_READ = 256  # index objects looked into at a time, besides the homes of the parent's packs
_FIRST_READ = 2**20  # all of most index objects, and the directory of nearly every one
_MAX_REQUEST = 16 * 2**20
_MAX_GAP = 2**18
_MAX_DIRECTORY_SIZE = 8 * 2**20  # 260,000 packs, as of a save of 16 TB
_REQUESTS = 8  # at once


class Knowledge:
    """Chunks known to be in the store. Safe to share between the saves of one process.

    Attributes:
        now: the base that was read before anything was learned.
        index: where the chunks lie.
        full: whether something that was saved did not fit any more: it is time to begin anew.
    """

    def __init__(self, now: int, *, limit: int, without: Container[PackId] = frozenset()) -> None:
        """Begin knowing nothing.

        Args:
            now: the store's base, read just now.
            limit: bytes of memory that may be taken.
            without: packs not to rely on.
        """
        self.now = now
        self.index = ChunkIndex()
        self.full = False
        self._without = without
        self._limit = limit // ROW_SIZE
        self._homes: dict[PackId, tuple[TransactionId, int]] = {}
        self._learned: set[TransactionId] = set()
        self._crowded = False
        self._lock = threading.Lock()

    def home(self, pack: PackId) -> tuple[TransactionId, int]:
        """Return the index object that lists the pack, and the date at which it is known to exist."""
        return self._homes[pack]

    def _is_fresh(self, pack: PackId) -> bool:
        return pack not in self._homes and pack not in self._without

    def _cost(self) -> int:
        return len(self.index) + self.index.deltas + _PACK_COST * len(self.index.packs)

    def add(self, home: TransactionId, date: int, footers: Iterable[Footer]) -> None:
        """Learn the packs listed by the index object `home`, known to exist at `date`, as far as there is room."""
        with self._lock:
            self._learned.add(home)
            fresh = []
            cost = self._cost()
            for footer in footers:
                if self._is_fresh(footer.pack):
                    cost += len(footer.ids) + _PACK_COST
                    if cost > self._limit:
                        self.full = True
                        break
                    fresh.append(footer)
            self._homes.update((footer.pack, (home, date)) for footer in fresh)
            self.index.add(fresh)

    def tidy(self, backend: Backend) -> None:
        """Merge index objects if there were too many small ones when they were listed; never fails."""
        if self._crowded:
            self._crowded = False
            merge_indexes(backend)

    # --- learning ---

    def learn(
        self,
        backend: Backend,
        *,
        parent: Callable[[], Iterable[PackRef]] = tuple,
        newest: Callable[[], Iterable[TransactionId]] = tuple,
    ) -> None:
        """Read index objects that have not been looked at yet, as far as there is room.

        One that is gone, damaged or too new is passed over.

        Args:
            backend: the store's backend.
            parent: gives the packs to learn before all others; asked only if there is anything new.
            newest: gives transactions, the newest first; asked only if there is too much to read it all.
        """
        listed = list_indexes(backend)
        with self._lock:
            self._crowded = bool(worth_merging(listed))
            fresh = {name: size for name, size in listed.items() if name not in self._learned}
            room = int(self._limit * _SHARE_LEARNED) - self._cost()
            if fresh and room > 0:
                chunks = sum(fresh.values()) // _CHUNK_SIZE  # at most
                rows = ChunkRows(min(room, chunks), limit=room, pack_cost=_PACK_COST)
                lesson = _Lesson(backend, listed, fresh, rows)
                try:
                    self._take(lesson, room, parent, newest)
                finally:
                    self.index.adopt(lesson.rows)
            self._learned.update(fresh)  # what does not fit now will not fit later

    def _take(
        self,
        lesson: _Lesson,
        room: int,
        parent: Callable[[], Iterable[PackRef]],
        newest: Callable[[], Iterable[TransactionId]],
    ) -> None:
        refs = tuple(parent())
        homes = dict.fromkeys(ref.home for ref in refs)
        most, size = len(homes) + _MAX_READ, sum(lesson.fresh.values())
        is_many = len(lesson.fresh) > most
        if is_many or size // _LEAST_SIZE > room:  # it may be too much: first of all the parent's packs alone
            packs = {ref.pack for ref in refs if self._is_fresh(ref.pack)}
            needed = takewhile(lambda _: not packs <= self._homes.keys(), islice(lesson.ordered(homes), most))
            self._read(lesson, needed, lambda pack: pack in packs and self._is_fresh(pack))
        is_too_much = is_many or size // _CHUNK_SIZE > room
        names = islice(lesson.ordered(newest()), _MAX_READ) if is_too_much else lesson.ordered(homes)
        self._read(lesson, names, self._is_fresh)

    def _read(self, lesson: _Lesson, names: Iterable[TransactionId], wanted: Callable[[PackId], bool]) -> None:
        """Learn the wanted packs of these index objects, until there is no more room."""
        for name, directory, data in lesson.directories(names):
            self._rehome(name, directory, lesson.listed)
            sections = [section for section in directory.sections if wanted(section.pack)]
            try:
                for copies in lesson.copies(name, sections, data):
                    lesson.rows.add_copies(copies)
                    place = (name, directory.base)
                    self._homes.update((pack, place) for pack, _ in copies if pack in lesson.rows.packs)
            except PASSED_OVER:
                continue
            if lesson.rows.full:
                break

    def _rehome(self, name: TransactionId, directory: IndexDirectory, listed: Container[TransactionId]) -> None:
        """Let packs that are known have this index object for a home, where theirs was merged into it."""
        for pack, _, _ in directory.sections:
            if pack in self._homes and self._homes[pack][0] not in listed:
                self._homes[pack] = (name, self._homes[pack][1])


class _Lesson(NamedTuple):
    """Reads parts of index objects.

    Attributes:
        backend: the store's backend.
        listed: all index objects, and their sizes.
        fresh: those of them to read.
        rows: what was read.
    """

    backend: Backend
    listed: Mapping[TransactionId, int]
    fresh: Mapping[TransactionId, int]
    rows: ChunkRows

    def ordered(self, first: Iterable[TransactionId]) -> Iterator[TransactionId]:
        """Yield the fresh names, those of `first` before all others, then the largest."""
        waiting = dict(self.fresh)
        for name in first:
            if waiting.pop(name, None) is not None:
                yield name
        yield from sorted(waiting, key=lambda name: (-waiting[name], name))

    def directories(self, names: Iterable[TransactionId]) -> Iterator[tuple[TransactionId, IndexDirectory, bytes]]:
        """Yield the directories of index objects, and the first bytes of each; far away several are fetched at once."""
        if self.backend.near:
            for name in names:
                yield from _if_found(name, self._directory(name))
            return
        waiting: deque[tuple[TransactionId, Future[tuple[IndexDirectory, bytes] | None]]] = deque()
        pool = ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-learn")
        try:
            for name in names:
                waiting.append((name, pool.submit(self._directory, name)))
                if len(waiting) >= _REQUESTS:
                    first, future = waiting.popleft()
                    yield from _if_found(first, future.result())
            for name, future in waiting:
                yield from _if_found(name, future.result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _directory(self, name: TransactionId) -> tuple[IndexDirectory, bytes] | None:
        key, size = index_key(name), self.fresh[name]
        try:
            data = self.backend.get_range(key, 0, min(size, _FIRST_READ))
            found = parse_directory(data, name=name, object_size=size)
            if isinstance(found, int) and found <= _MAX_DIRECTORY_SIZE:
                data = self.backend.get_range(key, 0, found)
                found = parse_directory(data, name=name, object_size=size)
        except PASSED_OVER:
            return None
        return None if isinstance(found, int) else (found, data)

    def copies(
        self, name: TransactionId, sections: Iterable[Section], data: bytes
    ) -> Iterator[list[tuple[PackId, memoryview]]]:
        """Yield the footers in sections of an index object, as they stand there; `data` are its first bytes."""
        for run in _runs(sections):
            start, end = run[0].offset, run[-1].offset + run[-1].size
            if end <= len(data):
                view = memoryview(data)[start:end]
            else:
                view = memoryview(self.backend.get_range(index_key(name), start, end - start))
            yield [(section.pack, view[section.offset - start :][: section.size]) for section in run]


def _if_found(
    name: TransactionId, found: tuple[IndexDirectory, bytes] | None
) -> Iterator[tuple[TransactionId, IndexDirectory, bytes]]:
    if found is not None:
        yield name, *found


def _runs(sections: Iterable[Section]) -> Iterator[list[Section]]:
    """Put together sections that are to be read in one request."""
    run: list[Section] = []
    for section in sections:
        end = section.offset + section.size
        if run and (section.offset - run[-1].offset - run[-1].size > _MAX_GAP or end - run[0].offset > _MAX_REQUEST):
            yield run
            run = []
        if section.size <= _MAX_REQUEST:
            run.append(section)
    if run:
        yield run
