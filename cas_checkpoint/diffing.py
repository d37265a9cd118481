"""What differs between two snapshots: paths, and the tensors of files that hold any.

What lies in the same chunks is the same, and is not read. Both snapshots are gone through in the order of their
entries, and tensors piece by piece, so that memory stays bounded whatever their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cas_checkpoint.dtypes import item_size, raw_type, real_numbers
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import Entry, EntryType, order
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.tensorfiles import FileRanges, Piece, TensorFile, TensorInfo, sliced, span
from cas_checkpoint.tensors import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Change", "ChangedNumbers", "ChangedPath", "ChangedTensor", "SnapshotDiff"]

_WINDOW: Final = 8 * 2**20  # bytes of each side in memory
_BLOCK: Final = 2**17  # elements that are compared at once


class Change(str, Enum):
    """What became of something from one snapshot to another."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    IDENTICAL = "identical"


class ChangedNumbers(NamedTuple):
    """How the values of a tensor differ. Numbers are compared by their bits, and subtracted as float64.

    Attributes:
        elements: how many there are.
        changed: how many of them are not the same.
        nans: how many of these are NaN before or after, so that there is no difference to tell.
        max_change: the largest absolute difference of the others; 0 if there are none.
        mean_change: the mean absolute difference of the others; 0 if there are none.
    """

    elements: int
    changed: int
    nans: int
    max_change: float
    mean_change: float

    @property
    def share(self) -> float:
        """The share of elements that changed, from 0 to 1."""
        return self.changed / self.elements if self.elements else 0.0


class ChangedTensor(NamedTuple):
    """A tensor of a file that changed; it may be identical all the same.

    Attributes:
        name: its name.
        change: what became of it.
        before: what it was; None if it was added.
        after: what it is; None if it was removed.
        numbers: how its values differ; None if they cannot be compared, for it has another type or shape, or is new
            or gone.
    """

    name: str
    change: Change
    before: TensorInfo | None
    after: TensorInfo | None
    numbers: ChangedNumbers | None


class ChangedPath(NamedTuple):
    """A path at which two snapshots differ.

    Attributes:
        path: the path, as in `Entry`.
        change: what became of it; never `Change.IDENTICAL`.
        before: its entry in the first snapshot; None if it was added.
        after: its entry in the second snapshot; None if it was removed.
        what: if it changed, which of "type", "content", "target", "mode", "xattrs" and "owner" did.
        tensors: what became of its tensors, if that was asked for and its content changed from one container of tensors
            to another.
    """

    path: bytes
    change: Change
    before: Entry | None
    after: Entry | None
    what: tuple[str, ...] = ()
    tensors: tuple[ChangedTensor, ...] | None = None

    @property
    def name(self) -> str:
        """The path as text, undecodable bytes as surrogate escapes."""
        return self.path.decode("utf-8", "surrogateescape")


class SnapshotDiff:
    """The paths at which two snapshots differ, as an iterable of `ChangedPath` in the order of entries.

    Nothing is read before it is iterated over; each time it is, all is read again. Times of change do not count, nor do
    owners if one of the snapshots has none.
    """

    def __init__(
        self, before: Callable[[], SnapshotReader], after: Callable[[], SnapshotReader], *, tensors: bool
    ) -> None:
        """Take what makes readers of the snapshots; made by `Snapshot.diff` only."""
        self._before, self._after, self._tensors = before, after, tensors

    def __iter__(self) -> Iterator[ChangedPath]:
        """Compare the snapshots; yield each difference when it is found."""
        before, after = self._before(), self._after()
        for path, old, new in _pairs(before.entries(), after.entries()):
            if old is None or new is None:
                yield ChangedPath(path, Change.ADDED if old is None else Change.REMOVED, old, new)
            elif what := _what(before, old, after, new):
                tensors = _tensors(before, old, after, new) if self._tensors and "content" in what else None
                yield ChangedPath(path, Change.CHANGED, old, new, what, tensors)

    @property
    def added(self) -> list[bytes]:
        """The paths that only the second snapshot has."""
        return self._paths(Change.ADDED)

    @property
    def removed(self) -> list[bytes]:
        """The paths that only the first snapshot has."""
        return self._paths(Change.REMOVED)

    @property
    def changed(self) -> list[bytes]:
        """The paths that both have, but not the same at them."""
        return self._paths(Change.CHANGED)

    def _paths(self, change: Change) -> list[bytes]:
        return [item.path for item in SnapshotDiff(self._before, self._after, tensors=False) if item.change is change]


# --- paths --------------------------------------------------------------------------------------


def _pairs(before: Iterator[Entry], after: Iterator[Entry]) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """Yield the entries of two snapshots, those of the same path together."""
    old, new = next(before, None), next(after, None)
    while old or new:
        path = min((entry.path for entry in (old, new) if entry), key=order)
        left, right = (entry if entry and entry.path == path else None for entry in (old, new))
        yield path, left, right
        old = next(before, None) if left else old
        new = next(after, None) if right else new


def _what(before: SnapshotReader, old: Entry, after: SnapshotReader, new: Entry) -> tuple[str, ...]:
    """Return in what two entries differ."""
    if old.type is not new.type:
        return ("type",)
    differs = {
        "content": old.type is EntryType.FILE and not _same_content(before, old, after, new),
        "target": old.target != new.target,
        "mode": old.mode != new.mode,
        "xattrs": old.xattrs != new.xattrs,
        "owner": None not in (old.owner, new.owner) and old.owner != new.owner,
    }
    return tuple(name for name, is_different in differs.items() if is_different)


def _same_content(before: SnapshotReader, old: Entry, after: SnapshotReader, new: Entry) -> bool:
    if old.size != new.size:
        return False
    if (old.content, old.extents) == (new.content, new.extents):
        return True
    left, right = FileRanges(before, old), FileRanges(after, new)
    if any(_surely_differ(left, one, right, two) for _, _, one, two in _side_by_side(left, 0, right, 0, old.size)):
        return False
    for start, end in _windows(_doubtful(left, 0, right, 0, old.size), 1):
        first, second = bytearray(end - start), bytearray(end - start)
        left.fill(start, memoryview(first))
        right.fill(start, memoryview(second))
        if first != second:
            return False
    return True


def _surely_differ(before: FileRanges, old: Piece, after: FileRanges, new: Piece) -> bool:
    """Tell whether two pieces at the same place are whole chunks of one size, and not the same."""
    if (old.at, old.size) != (new.at, new.size) or not (before.is_whole(old) and after.is_whole(new)):
        return False
    return before.identity(old, old.at) != after.identity(new, new.at)


def _side_by_side(
    before: FileRanges, start: int, after: FileRanges, new_start: int, size: int
) -> Iterator[tuple[int, int, Piece, Piece]]:
    """Yield what lies at the same place in a range of each of two files.

    Args:
        before: the first file.
        start: where the range begins in it.
        after: the second file.
        new_start: where the range begins in it.
        size: bytes of the range.

    Yields:
        A beginning and an end, in bytes from the beginning of the range, and in which pieces these bytes lie.
    """
    if not size:
        return
    left, right = before.pieces(start, size), after.pieces(new_start, size)
    old, new = next(left), next(right)
    at = 0
    while True:
        old_end, new_end = old.at + old.size, new.at + new.size
        end = min(old_end, new_end)
        yield at, end, old, new
        if end == size:
            return
        old = next(left) if old_end == end else old
        new = next(right) if new_end == end else new
        at = end


def _doubtful(
    before: FileRanges, start: int, after: FileRanges, new_start: int, size: int
) -> Iterator[tuple[int, int]]:
    """Yield where ranges of two files may differ, as they lie in different chunks; see `_side_by_side`."""
    for at, end, old, new in _side_by_side(before, start, after, new_start, size):
        if before.identity(old, at) != after.identity(new, at):
            yield at, end


def _windows(ranges: Iterator[tuple[int, int]], width: int) -> Iterator[tuple[int, int]]:
    """Widen ranges to whole elements of `width` bytes, put those together that touch, and divide long ones."""
    start = end = 0
    for low, high in ranges:
        first = max(end, low - low % width)
        if first > end:
            if end > start:
                yield start, end
            start = first
        end = max(end, high + -high % width)
        while end - start > _WINDOW:
            yield start, start + _WINDOW
            start += _WINDOW
    if end > start:
        yield start, end


# --- tensors ------------------------------------------------------------------------------------


def _tensors(before: SnapshotReader, old: Entry, after: SnapshotReader, new: Entry) -> tuple[ChangedTensor, ...] | None:
    """Compare the tensors of two files; None if one of them is no container of tensors."""
    left = TensorFile.open(before, old)
    right = TensorFile.open(after, new) if left else None
    if left is None or right is None:
        return None
    found = [_compared(left, right, info) for info in right.tensors()]
    gone = [info for info in left.tensors() if right.info(info.name) is None]
    return (*found, *(ChangedTensor(info.name, Change.REMOVED, info, None, None) for info in gone))


def _compared(before: TensorFile, after: TensorFile, new: TensorInfo) -> ChangedTensor:
    old = before.info(new.name)
    if old is None:
        return ChangedTensor(new.name, Change.ADDED, None, new, None)
    if old != new:
        return ChangedTensor(new.name, Change.CHANGED, old, new, None)
    tally = _Tally(new.dtype)
    if new.size:
        _compare(tally, before.file, before.tensor(new.name), after.file, after.tensor(new.name))
    numbers = tally.numbers(prod(new.shape))
    return ChangedTensor(new.name, Change.CHANGED if numbers.changed else Change.IDENTICAL, old, new, numbers)


class _Tally:
    """Counts how numbers of one type differ."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._changed = self._nans = 0
        self._largest = self._total = 0.0

    def repeat(self, times: int) -> None:
        """Count everything that was counted so many times."""
        self._changed, self._nans, self._total = self._changed * times, self._nans * times, self._total * times

    def add(self, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Count; both have one axis, and the type that numpy alone has for the bits."""
        for start in range(0, len(before), _BLOCK):
            old, new = before[start : start + _BLOCK], after[start : start + _BLOCK]
            differs = _bits(old) != _bits(new)
            if differs.ndim > 1:
                differs = differs.any(axis=1)
            if differs.any():
                self._count(real_numbers(old[differs], self._dtype), real_numbers(new[differs], self._dtype))

    def _count(self, old: NDArray[Any], new: NDArray[Any]) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            changes = np.abs(new - old)
        changes = changes[~np.isnan(changes)]
        self._changed += len(old)
        self._nans += len(old) - len(changes)
        if len(changes):
            self._largest = max(self._largest, float(changes.max()))
            with np.errstate(over="ignore"):
                self._total += float(changes.sum())

    def numbers(self, elements: int) -> ChangedNumbers:
        """Return what was counted."""
        mean = self._total / max(1, self._changed - self._nans)
        return ChangedNumbers(elements, self._changed, self._nans, self._largest, mean)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as integers: one each, or a row of them for what is wider than any integer."""
    width = values.dtype.itemsize
    return values.view(np.uint64).reshape(len(values), -1) if width > 8 else values.view(f"<u{width}")  # noqa: PLR2004


def _compare(tally: _Tally, before: FileRanges, old: Tensor, after: FileRanges, new: Tensor) -> None:
    """Compare the elements of two tensors of the same type and shape, neither of them empty."""
    count = prod(new.shape)
    old, new = _once(old, new)
    if old.strides == new.strides and _is_dense(new):
        _tally_flat(tally, before, old, after, new)
    else:
        _tally_blocks(tally, before, old, after, new)
    tally.repeat(count // prod(new.shape))


def _once(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors of one shape without the axes along which both have the same elements all over."""
    axes = [
        axis
        for axis, (length, *strides) in enumerate(zip(new.shape, old.strides, new.strides, strict=True))
        if length > 1 and any(strides)
    ]
    shape = tuple(new.shape[axis] for axis in axes)
    left, right = (
        tensor._replace(shape=shape, strides=tuple(tensor.strides[axis] for axis in axes)) for tensor in (old, new)
    )
    return left, right


def _tally_flat(tally: _Tally, before: FileRanges, old: Tensor, after: FileRanges, new: Tensor) -> None:
    """Compare tensors whose elements lie together and in the same order."""
    dtype = raw_type(new.dtype)
    size = prod(new.shape) * dtype.itemsize
    doubtful = _doubtful(before, old.offset, after, new.offset, size)
    for start, end in _windows(doubtful, dtype.itemsize):
        first, second = (np.empty((end - start) // dtype.itemsize, dtype) for _ in range(2))
        before.fill(old.offset + start, first.view(np.uint8).data)
        after.fill(new.offset + start, second.view(np.uint8).data)
        tally.add(first, second)


def _tally_blocks(tally: _Tally, before: FileRanges, old: Tensor, after: FileRanges, new: Tensor) -> None:
    """Compare tensors whose elements lie anyhow."""
    dtype = raw_type(new.dtype)
    for left, right in zip(_blocks(old), _blocks(new), strict=True):
        size = span(right)[1] * dtype.itemsize
        if old.strides == new.strides and not any(_doubtful(before, left.offset, after, right.offset, size)):
            continue
        first, second = np.empty(left.shape, dtype), np.empty(right.shape, dtype)
        before.fill_array(left, first)
        after.fill_array(right, second)
        tally.add(first.reshape(-1), second.reshape(-1))


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Divide a tensor into parts that are small enough, in the order of their indexes."""
    width = item_size(tensor.dtype)
    row = prod(tensor.shape[1:]) * width
    if not tensor.shape or row * tensor.shape[0] <= _WINDOW:
        yield tensor
        return
    step = max(1, _WINDOW // row)
    for start in range(0, tensor.shape[0], step):
        part = sliced(tensor, (start, min(start + step, tensor.shape[0])))
        if row <= _WINDOW:
            yield part
        else:
            yield from _blocks(part._replace(shape=part.shape[1:], strides=part.strides[1:]))


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether elements lie together without gaps, in the order of some of their axes, each longer than 1."""
    expected = 1
    for stride, length in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if stride != expected:
            return False
        expected *= length
    return True
