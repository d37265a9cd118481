"""What a writer knows to be in the store already, and since when (SPEC.md, "Base and dates").

Knowledge is a cache: missing a duplicate costs space, never correctness. It is dated, because a pack that was
there once may have been collected since; whoever relies on it checks the marks before the commit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import index_key
from cas_checkpoint.errors import DamagedObject, ObjectNotFound, UnsupportedStore
from cas_checkpoint.ids import PackId, TransactionId, is_hex_id
from cas_checkpoint.index import ChunkIndex, parse_index
from cas_checkpoint.packs import Footer

__all__ = ["Knowledge"]

_INDEX_PREFIX = "index/"
MAX_INDEX_SIZE = 2**30


class Knowledge:
    """Chunks known to be in the store. Safe to share between the saves of one process.

    Attributes:
        now: the base that was read before anything was learned.
        index: where the chunks lie.
    """

    def __init__(self, now: int, *, limit: int, without: frozenset[PackId] = frozenset()) -> None:
        """Begin knowing nothing.

        Args:
            now: the store's base, read just now.
            limit: learn no more index objects once this many chunks are known.
            without: packs not to rely on.
        """
        self.now = now
        self.index = ChunkIndex()
        self._without = without
        self._limit = limit
        self._homes: dict[PackId, tuple[TransactionId, int]] = {}
        self._learned: set[TransactionId] = set()
        self._lock = threading.Lock()

    def home(self, pack: PackId) -> tuple[TransactionId, int]:
        """Return the index object that lists the pack, and the date at which it is known to exist."""
        return self._homes[pack]

    def add(self, home: TransactionId, date: int, footers: Iterable[Footer]) -> None:
        """Learn the packs listed by the index object `home`, known to exist at `date`."""
        with self._lock:
            self._learned.add(home)
            passed_over = self._homes.keys() | self._without
            fresh = [footer for footer in footers if footer.pack not in passed_over]
            for footer in fresh:
                self._homes[footer.pack] = (home, date)
            self.index.add(fresh)

    def learn(self, backend: Backend, first: Iterable[TransactionId] = ()) -> None:
        """Read index objects that are not known yet, those of `first` before all others.

        An index object that is gone, damaged or too new is passed over.
        """
        listed = {
            TransactionId(bytes.fromhex(text)): info.size
            for info in backend.list(_INDEX_PREFIX)
            if is_hex_id(text := info.key.removeprefix(_INDEX_PREFIX))
        }
        ordered = [name for name in dict.fromkeys(first) if name in listed]
        ordered += sorted(listed.keys() - set(ordered))
        for name in ordered:
            if name not in self._learned and listed[name] <= MAX_INDEX_SIZE and len(self.index) < self._limit:
                try:
                    date, footers = parse_index(backend.get(index_key(name), max_size=MAX_INDEX_SIZE), name=name)
                except (ObjectNotFound, DamagedObject, UnsupportedStore):
                    continue
                self.add(name, date, footers)
