"""A committed snapshot, as users see it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, Union, cast

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import Commit, SaveStats
from cas_checkpoint.errors import DamagedObject, DamagedStore, EntryNotFound, InvalidArgument, InvalidArgumentType
from cas_checkpoint.filereader import SnapshotFile
from cas_checkpoint.manifests import Entry, EntryType
from cas_checkpoint.monitor import Notice
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.tensorfiles import TensorFile, TensorInfo, TensorSource, not_a_container, read_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cas_checkpoint.diffing import SnapshotDiff

__all__ = ["PathArgument", "Snapshot", "entry_path"]

PathArgument = Union[str, bytes, "os.PathLike[str]"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_READ_AHEAD = 2**20


def entry_path(path: PathArgument) -> bytes:
    """Return a path as entries have it: bytes, without a leading `./` or a trailing `/`."""
    try:
        return os.fsencode(path).removeprefix(b"./").rstrip(b"/")
    except TypeError as error:
        raise InvalidArgumentType(f"a path must be str, bytes or os.PathLike, not {path!r}") from error
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"not a path that a snapshot can hold: {path!r}") from error


class Snapshot:
    """One snapshot of a store. Knows its summary; reads the rest when asked. Safe to use from several threads."""

    def __init__(self, backend: Backend, record: Commit, *, warnings: tuple[Notice, ...] = ()) -> None:
        """Take a committed record; made by `Store` only."""
        self._backend, self._record = backend, record
        self.warnings = warnings
        """What was left out or not done in full, if this very object came from `Store.save`."""
        self._opened: tuple[bytes, TensorSource] | None = None  # the container of tensors that was last looked at

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": None}

    def __repr__(self) -> str:
        step = "" if self.step is None else f" step={self.step}"
        return f"<Snapshot {self.id} {self.series}@{self.sequence}{step} {self.created_at:%Y-%m-%d %H:%M:%S}Z>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and (self._record.store, self.id) == (other._record.store, other.id)

    def __hash__(self) -> int:
        return hash((self._record.store, self.id))

    # --- the summary ---

    @property
    def id(self) -> str:
        """The snapshot's id: 32 hexadecimal digits."""
        return self._record.key.transaction.hex()

    @property
    def series(self) -> str:
        """The series that it belongs to."""
        return self._record.key.series

    @property
    def sequence(self) -> int:
        """Its number in its series; two saves at once may get the same."""
        return self._record.key.sequence

    @property
    def step(self) -> int | None:
        """The training step, if one was given."""
        return self._record.step

    @property
    def created_at(self) -> datetime:
        """When the save began, by the saver's clock, in UTC; not used for order within a series."""
        try:
            return _EPOCH + timedelta(microseconds=self._record.created_at_ns // 1000)
        except OverflowError:
            return _EPOCH

    @property
    def metrics(self) -> Mapping[str, float]:
        """Named numbers given at the save."""
        return dict(self._record.metrics)

    @property
    def tags(self) -> tuple[str, ...]:
        """Words given at the save."""
        return self._record.tags

    @property
    def message(self) -> str:
        """Text given at the save."""
        return self._record.message

    @property
    def stats(self) -> SaveStats:
        """What the save did."""
        return self._record.stats

    # --- the content ---

    def reader(self) -> SnapshotReader:
        """Return a new reader of the snapshot's content."""
        return SnapshotReader(self._backend, self._record)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, ordered by path, component by component."""
        return self.reader().entries()

    def open(self, path: PathArgument) -> BinaryIO:
        """Open a file of the snapshot for reading; seekable, and fetches only the chunks that are read.

        Raises:
            EntryNotFound: there is no file at that path.
            DamagedStore: something that it needs is damaged or missing; also raised while reading.
        """
        reader = self.reader()
        raw = SnapshotFile(reader, _find_file(reader, entry_path(path)))
        return cast("BinaryIO", io.BufferedReader(raw, _READ_AHEAD))

    def read_bytes(self, path: PathArgument) -> bytes:
        """Return the whole content of a file; errors as for `open`."""
        with self.open(path) as file:
            return file.read()

    def diff(self, other: Snapshot, *, tensors: bool = False) -> SnapshotDiff:
        """Return what became of this snapshot in another one; the result is an iterable that reads as it goes.

        Args:
            other: the other snapshot, of any store: the later one, if what it has more is to be called added.
            tensors: tell for each file that changed, and is a container of tensors in both, what became of each tensor.
        """
        if not isinstance(other, Snapshot):
            raise InvalidArgumentType(f"only a snapshot can be compared with, not {other!r}")
        from cas_checkpoint.diffing import SnapshotDiff  # noqa: PLC0415 -- few need it, and all would wait for it

        return SnapshotDiff(self.reader, other.reader, tensors=tensors)

    # --- tensors ---

    def tensors(self, path: PathArgument) -> tuple[TensorInfo, ...]:
        """Return the tensors of a file, in the order in which they are stored; their values are not read.

        Args:
            path: a file in the format of safetensors, `torch.save`, numpy (`.npy`, `.npz`), GGUF or HDF5, whatever its
                name; or a directory that torch.distributed.checkpoint wrote, "." for the saved directory itself: its
                tensors are put together from the pieces in its files. Nothing is ever unpickled.

        Raises:
            EntryNotFound: there is no such file or directory, or it is no container of tensors.
            DamagedStore: something that it needs is damaged or missing.
        """
        return self._tensor_source(entry_path(path)).tensors()

    def read_tensor(
        self,
        path: PathArgument,
        name: str,
        *,
        start: int | None = None,
        stop: int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return a tensor of a file, or a slice of it along its first axis; only the chunks that hold it are read.

        Types that numpy does not have, bfloat16 and those of eight bits, come as arrays of the types that ml_dtypes has
        for them if it can be imported, else as their bits: arrays of uint16 and uint8. `TensorInfo.dtype` always names
        the type.

        Args:
            path: a file or a directory as for `tensors`.
            name: the name of one of its tensors.
            start: the first index along the first axis, at least 0; by default 0.
            stop: the index after the last one, at most the length of the axis, which is the default.
            out: an array to fill and return: C-contiguous, writable, of the type and shape of what is read; a type that
                numpy does not have may also be the unsigned integer of its width.

        Raises:
            EntryNotFound: as for `tensors`, or there is no tensor of that name.
            InvalidArgument: the slice is none of the tensor, or `out` does not fit.
            DamagedStore: something that it needs is damaged or missing.
        """
        wanted = entry_path(path)
        source = self._tensor_source(wanted)
        try:
            return read_from(source, os.fsdecode(wanted), name, start=start, stop=stop, out=out)
        except DamagedStore:
            self._opened = None  # it would not notice that the store was repaired
            raise

    def _tensor_source(self, path: bytes) -> TensorSource:
        path = b"" if path == b"." else path
        opened = self._opened
        if opened is not None and opened[0] == path:
            return opened[1]
        reader = self.reader()
        entry = _find_container(reader, path)
        source: TensorSource | None
        if entry is None:
            from cas_checkpoint.shards import TensorDirectory  # noqa: PLC0415 -- as above

            source = TensorDirectory.open(reader, path)
        else:
            source = TensorFile.open(reader, _as_file(reader, entry))
        if source is None:
            raise not_a_container(os.fsdecode(path))
        self._opened = path, source
        return source


def _find_file(reader: SnapshotReader, path: bytes) -> Entry:
    return _as_file(reader, _find_entry(reader, path))


def _find_entry(reader: SnapshotReader, path: bytes) -> Entry:
    for entry in reader.entries():
        if entry.path == path:
            return entry
    raise _nothing_at(path)


def _find_container(reader: SnapshotReader, path: bytes) -> Entry | None:
    """Return what is at a path, None for a directory: it may be there only by what is in it, or be the saved one."""
    below = path and path + b"/"
    for entry in reader.entries():
        if entry.path == path and entry.type is not EntryType.DIRECTORY:
            return entry
        if entry.path == path or entry.path.startswith(below):
            return None
    raise _nothing_at(path)


def _nothing_at(path: bytes) -> EntryNotFound:
    return EntryNotFound(f"the snapshot holds nothing at {os.fsdecode(path)!r}; 'show' lists what it holds")


def _as_file(reader: SnapshotReader, entry: Entry, *, follow: bool = True) -> Entry:
    if entry.type is EntryType.HARDLINK:
        if not follow:
            raise DamagedObject(f"{entry.name} is a hard link to a hard link", key=str(reader.key))
        return _as_file(reader, _find_entry(reader, entry.target), follow=False)
    if entry.type is not EntryType.FILE:
        kind = "directory" if entry.type is EntryType.DIRECTORY else "symlink"
        raise EntryNotFound(f"{entry.name!r} is a {kind} in the snapshot, not a file")
    return entry
