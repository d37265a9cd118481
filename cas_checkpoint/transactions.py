"""The steps of the protocols, one function each: naming, base and marks, manifest, commit (SPEC.md, "Order of writes").

Each function is at most one kind of storage operation. What is written in which order, and why, stands in
`saving`; nothing here knows about chunks or files.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import (
    COMMITS_PREFIX,
    MAX_COMMIT_SIZE,
    MAX_SEQUENCE,
    Commit,
    CommitKey,
    State,
    parse_commit_key,
    parse_series_key,
    series_prefix,
)
from cas_checkpoint.errors import DamagedObject, InvalidArgument, ObjectNotFound, SaveAborted, UnsupportedStore
from cas_checkpoint.headers import HEADER_KEY, MAX_HEADER_SIZE, Header
from cas_checkpoint.ids import RANDOM_ID_SIZE, PackId, StoreId, is_hex_id
from cas_checkpoint.marks import MARKS_PREFIX, MAX_MARK_SIZE, Mark, mark_key, parse_mark_key

__all__ = [
    "MarkTable",
    "commit",
    "condemned_packs",
    "list_commits",
    "list_marks",
    "next_sequence",
    "random_id",
    "read_commit",
    "read_header",
]


def random_id() -> bytes:
    """Return a fresh random id of 16 bytes, as packs, transactions and stores have them."""
    return secrets.token_bytes(RANDOM_ID_SIZE)


def read_header(backend: Backend) -> Header:
    """Read the store's header; `ObjectNotFound` if there is none."""
    data = backend.get(HEADER_KEY, max_size=MAX_HEADER_SIZE)
    try:
        return Header.decode(data)
    except DamagedObject as error:
        raise type(error)(error.reason, key=HEADER_KEY) from error


# --- commits ------------------------------------------------------------------------------------


def list_commits(backend: Backend, series: str | None = None) -> Iterator[CommitKey]:
    """Yield the keys of all commits, or of those of one series, in any order; committed and aborted alike."""
    if series is None:
        found = (parse_commit_key(name) for name in backend.names(COMMITS_PREFIX))
    else:
        prefix = series_prefix(series)
        found = (parse_series_key(name, series, prefix) for name in backend.names(prefix))
    yield from (key for key in found if key is not None)


def next_sequence(keys: Iterable[CommitKey]) -> int:
    """Return the number for the next snapshot of a series with these commits."""
    sequence = max((key.sequence for key in keys), default=0) + 1
    if sequence > MAX_SEQUENCE:
        raise InvalidArgument("the series is full; choose another name")
    return sequence


def read_commit(backend: Backend, key: CommitKey, store: StoreId) -> Commit:
    """Read the commit at `key`, which must be one of the store's own.

    Raises:
        ObjectNotFound: there is none (any more).
        DamagedObject: it was altered, or does not belong there.
    """
    data = backend.get(str(key), max_size=MAX_COMMIT_SIZE)
    try:
        found = Commit.decode(data)
    except DamagedObject as error:
        raise DamagedObject(error.reason, key=str(key)) from error
    except UnsupportedStore as error:
        raise UnsupportedStore(f"{key}: {error}") from error
    if found.key != key:
        raise DamagedObject(f"is the commit {found.key}", key=str(key))
    if found.store != store:
        raise DamagedObject(f"belongs to the store {found.store.hex()}", key=str(key))
    return found


def commit(backend: Backend, record: Commit) -> None:
    """Make the snapshot exist. `SaveAborted` if a collector has given the transaction up before."""
    if record.state is not State.COMMITTED:
        raise InvalidArgument("only a committed record can commit")
    if not backend.put_if_absent(str(record.key), record.encode()):
        raise SaveAborted(
            f"the save {record.key.transaction.hex()} was given up by a collector because it took too long; "
            "no snapshot was made: save again"
        )


# --- marks --------------------------------------------------------------------------------------


class MarkTable(NamedTuple):
    """The marks of a store at one moment, by number."""

    open: tuple[int, ...]
    closed: tuple[int, ...]

    @property
    def base(self) -> int:
        """The date of whatever is learned from now on: lowest open mark - 1, else the latest mark."""
        return self.open[0] - 1 if self.open else max(self.closed, default=0)

    def hides_anything_after(self, base: int) -> bool:
        """Tell whether packs known at date `base` may have been deleted by marks that are closed or gone."""
        numbers = sorted({*self.open, *self.closed})
        return any(number > base for number in self.closed) or (bool(numbers) and numbers[0] > base + 1)


def list_marks(backend: Backend) -> MarkTable:
    """List the marks of the store."""
    parsed = [found for name in backend.names(MARKS_PREFIX) if (found := parse_mark_key(name))]
    closed = {number for number, is_closed in parsed if is_closed}
    opened = {number for number, is_closed in parsed if not is_closed} - closed
    return MarkTable(tuple(sorted(opened)), tuple(sorted(closed)))


def condemned_packs(backend: Backend, base: int, packs: Iterable[PackId]) -> frozenset[PackId]:
    """Return those of `packs`, known to exist at date `base`, that a collector condemned or deleted since.

    To be called after the manifest that names them was written, and before its commit: then either the
    collector sees the manifest, or this sees the collector's mark.
    """
    wanted = frozenset(packs)
    if not wanted:
        return frozenset()
    table = list_marks(backend)
    condemned: set[PackId] = set()
    look = table.hides_anything_after(base)
    for number in table.open:
        if number > base:
            mark = _read_mark(backend, number)
            condemned |= wanted & mark.packs if mark else frozenset()
            look = look or mark is None
    if look:
        condemned |= wanted - _existing_packs(backend)
    return frozenset(condemned)


def _read_mark(backend: Backend, number: int) -> Mark | None:
    key = mark_key(number)
    try:
        return Mark.decode(backend.get(key, max_size=MAX_MARK_SIZE))
    except ObjectNotFound:
        return None
    except DamagedObject as error:
        raise DamagedObject(error.reason, key=key) from error


def _existing_packs(backend: Backend) -> frozenset[PackId]:
    names = (key.removeprefix("packs/") for key in backend.names("packs/"))
    return frozenset(PackId(bytes.fromhex(name)) for name in names if is_hex_id(name))
