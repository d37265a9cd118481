"""The snapshot that a save is compared with, so that what has not changed is neither read nor cut anew.

It is the one that the files cache knows; without one, the latest of the series, which tells nothing of times and inodes
but where files were cut. Whatever is wrong with it, a save goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import Commit, CommitKey, State
from cas_checkpoint.errors import CasCheckpointError, DamagedStore
from cas_checkpoint.filescache import FilesCache, Row
from cas_checkpoint.forecasts import Candidate, Forecast
from cas_checkpoint.ids import StoreId
from cas_checkpoint.manifests import ChunkRef, Content, Entry, EntrySplitter, EntryType, decode_entry, order, peek_path
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.transactions import list_marks, read_commit

__all__ = ["Comparison", "Parent", "file_kind"]

_MIN_FORECAST = 256 * 2**10  # smaller files are cut so fast that nothing is to be gained
_MIN_SIMILAR = 2**20  # files that are looked for by their size, wherever they lie
_MAX_ROWS = 100_000  # looked at for that
_MAX_CANDIDATES = 8


class Parent:
    """A snapshot to compare with.

    Attributes:
        base: the store's base, read before the snapshot was known to be there.
        record: the snapshot's commit.
        reader: its reader.
    """

    def __init__(self, backend: Backend, store: StoreId, key: CommitKey) -> None:
        """Read the commit; errors as for `read_commit`."""
        self.base = list_marks(backend).base
        self.record: Commit = read_commit(backend, key, store)
        self.reader = SnapshotReader(backend, self.record)

    def rows(self) -> Iterator[Row]:
        """Yield the snapshot's entries as rows without stamps."""
        splitter = EntrySplitter()
        for piece in self.reader.data(self.reader.manifest().entries):
            for encoded in splitter.feed(piece):
                yield Row(peek_path(encoded), encoded)


class Comparison:
    """Holds a source against a snapshot, path by path, in the order of entries.

    Attributes:
        cache: the files cache of the snapshot, if there is one.
        number: which of the snapshot's rows was looked at last, counted from 0.
    """

    def __init__(self, backend: Backend, store: StoreId, cache: FilesCache | None, latest: CommitKey | None) -> None:
        """Prepare a comparison; nothing is read yet.

        Args:
            backend: the store's backend.
            store: its id.
            cache: the files cache of the source, if there is one.
            latest: the latest snapshot of the series, if there is one.
        """
        self.cache = cache
        self.number = -1
        self._backend, self._store = backend, store
        self._key = latest if cache is None else cache.key
        self._parent: Parent | None = None
        self._rows: Iterator[Row] | None = None
        self._row: Row | None = None
        self._similar: _Similar | None = None

    def parent(self) -> Parent | None:
        """Return the snapshot, None if there is none that can be used."""
        if self._parent is None and self._key is not None:
            key, self._key = self._key, None
            try:
                parent = Parent(self._backend, self._store, key)
            except CasCheckpointError:  # forgotten, or damaged: others will tell
                return None
            if parent.record.state is State.COMMITTED:
                self._parent = parent
        return self._parent

    def row(self, path: bytes, size: int | None = None) -> Row | None:
        """Return the row at `path`; to be asked in the order of entries.

        Args:
            path: the path of an entry.
            size: the size of a file, of which a row without a stamp may be of no use.
        """
        if self.cache is None and (size is None or size < _MIN_FORECAST):
            return None
        if self._rows is None:
            self._rows = self._all_rows()
        wanted = order(path)
        while self._row is None or order(self._row.path) < wanted:
            self._row = next(self._rows, None)
            self.number += 1
            if self._row is None:
                return None
        return self._row if self._row.path == path else None

    def _all_rows(self) -> Iterator[Row]:
        """Yield all rows, as far as they can be read; none if the snapshot cannot be used."""
        parent = self.parent()
        if parent is None:
            return
        try:
            yield from parent.rows() if self.cache is None else self.cache.rows()
        except CasCheckpointError:
            return

    def reader(self) -> SnapshotReader:
        """Return the reader of the snapshot, which there must be."""
        parent = self.parent()
        if parent is None:
            raise DamagedStore("the snapshot to compare with cannot be read")
        return parent.reader

    def earlier(self, row: Row | None, entry: Entry) -> Entry | None:
        """Return what is perhaps an earlier version of a file: that of the same path, else one of the same size."""
        try:
            if row is None:
                row = self.row(entry.path, max(entry.size, _MIN_FORECAST))  # tensors gain in smaller files, too
            rows = [row] if row is not None else self._files().of_size(entry.size)
            found = (decode_entry(one.encoded) for one in rows)
            return next((one for one in found if one.type is EntryType.FILE), None)
        except CasCheckpointError:
            return None

    def neighbours(self, path: bytes) -> list[Entry]:
        """Return the larger files with a suffix like that of `path` in its directory, in the order of entries."""
        try:
            return [decode_entry(row.encoded) for row in self._files().of_kind.get(file_kind(path), ())]
        except CasCheckpointError:
            return []

    def forecast(self, row: Row | None, size: int) -> Forecast | None:
        """Return what chunks to expect in a file of `size` bytes that has that row, or is perhaps a moved one."""
        if size < _MIN_FORECAST:
            return None
        try:
            rows = [row] if row is not None else self._files().of_size(size) if size >= _MIN_SIMILAR else []
            candidates = [candidate for row in rows if (candidate := self._candidate(row))]
        except CasCheckpointError:
            return None
        return Forecast(candidates) if candidates else None

    def _candidate(self, row: Row) -> Candidate | None:
        parent, content = self.parent(), decode_entry(row.encoded).content
        if parent is None or content is None or not content.size:
            return None
        return _candidate(parent.reader, content)

    def _files(self) -> _Similar:
        """Return the larger files of the snapshot."""
        if self._similar is None:
            self._similar = _Similar(islice(self._all_rows(), _MAX_ROWS))
        return self._similar


class _Similar:
    """Files among which there may be earlier versions of others.

    Attributes:
        of_kind: those of each kind; see `file_kind`.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        """Take what there is, in the order of entries."""
        self.of_kind: dict[tuple[bytes, bytes], list[Row]] = {}
        self._of_size: dict[int, list[Row]] = {}
        for row in rows:
            entry = decode_entry(row.encoded)
            if entry.type is not EntryType.FILE or entry.size < _MIN_FORECAST:
                continue
            self.of_kind.setdefault(file_kind(entry.path), []).append(row)
            if entry.size >= _MIN_SIMILAR:
                self._of_size.setdefault(entry.size, []).append(row)

    def of_size(self, size: int) -> Sequence[Row]:
        """Return a few files of that size."""
        return self._of_size.get(size, [])[:_MAX_CANDIDATES]


def file_kind(path: bytes) -> tuple[bytes, bytes]:
    """Return the directory and the suffix of a path, which the files of one checkpoint mostly have in common."""
    directory, _, name = path.rpartition(b"/")
    return directory, name.rpartition(b".")[2]


def _candidate(reader: SnapshotReader, content: Content) -> Candidate:
    def refs() -> list[ChunkRef]:
        try:
            return list(reader.refs(content))
        except CasCheckpointError:
            return []

    return Candidate(next(reader.refs(content)), refs)
