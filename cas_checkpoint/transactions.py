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
    manifest_key,
    parse_commit_key,
    parse_series_key,
    series_prefix,
)
from cas_checkpoint.errors import (
    DamagedObject,
    InvalidArgument,
    ObjectNotFound,
    SaveAborted,
    StorageError,
    UnsupportedStore,
)
from cas_checkpoint.headers import HEADER_KEY, MAX_HEADER_SIZE, Header
from cas_checkpoint.ids import RANDOM_ID_SIZE, SAVE_ID_SIZE, PackId, StoreId, TransactionId, is_hex_id
from cas_checkpoint.marks import MARKS_PREFIX, MAX_MARK_SIZE, Mark, mark_key, parse_mark_key
from cas_checkpoint.moves import MAX_MOVE_SIZE, MOVES_PREFIX, Move, MoveKey, parse_move_key

__all__ = [
    "MarkTable",
    "abort",
    "close_mark",
    "commit",
    "condemned_packs",
    "forget",
    "forget_damaged",
    "list_commits",
    "list_marks",
    "list_moves",
    "list_packs",
    "new_pack_id",
    "next_sequence",
    "publish_mark",
    "put_move",
    "random_id",
    "read_commit",
    "read_header",
    "read_mark",
    "read_moves",
    "remove_marks",
]

_MARK_ATTEMPTS = 1000


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


def forget(backend: Backend, key: CommitKey) -> None:
    """Let a snapshot not exist any more: its commit goes first, then its manifest."""
    backend.delete(str(key))
    backend.delete(manifest_key(key.transaction))


def forget_damaged(backend: Backend, key: CommitKey, store: StoreId) -> None:
    """Let a snapshot not exist any more whose commit cannot be read; this is the only record that is ever replaced.

    In its place comes that of an aborted transaction. For perhaps it was one, and who was given up must find it.
    """
    backend.put(str(key), [Commit(State.ABORTED, store, key).encode()])
    backend.delete(manifest_key(key.transaction))


def abort(backend: Backend, key: CommitKey, store: StoreId) -> bool:
    """Make sure that a transaction is never committed; tell whether it was not, and never will be.

    The record stays for ever: who was given up may wake up after years, and must find it.
    """
    record = Commit(State.ABORTED, store, key)
    if backend.put_if_absent(str(key), record.encode()):
        return True
    try:
        return read_commit(backend, key, store).state is State.ABORTED
    except ObjectNotFound:  # committed, and forgotten meanwhile
        return False


# --- marks --------------------------------------------------------------------------------------


class MarkTable(NamedTuple):
    """The marks of a store at one moment, by number."""

    open: tuple[int, ...]
    closed: tuple[int, ...]

    @property
    def base(self) -> int:
        """The date of whatever is learned from now on: lowest open mark - 1, else the latest mark."""
        return self.open[0] - 1 if self.open else max(self.closed, default=0)

    @property
    def latest(self) -> int:
        """The number of the latest mark, 0 if there is none."""
        return max((*self.open, *self.closed), default=0)

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


def condemned_packs(
    backend: Backend, base: int, packs: Iterable[PackId], *, own: int | None = None
) -> frozenset[PackId]:
    """Return those of `packs`, known to exist at date `base`, that a collector condemned or deleted since.

    To be called after the manifest that names them was written, and before its commit: then either the
    collector sees the manifest, or this sees the collector's mark.

    Args:
        backend: the store's backend.
        base: a date at which all of the packs are known to exist.
        packs: the packs.
        own: the number of the caller's own mark, which is passed over.
    """
    wanted = frozenset(packs)
    if not wanted:
        return frozenset()
    table = list_marks(backend)
    condemned: set[PackId] = set()
    look = table.hides_anything_after(base)
    for number in table.open:
        if number > base and number != own:
            mark = read_mark(backend, number)
            condemned |= wanted & mark.packs if mark else frozenset()
            look = look or mark is None
    if look:
        condemned |= wanted - list_packs(backend)
    return frozenset(condemned)


def read_mark(backend: Backend, number: int) -> Mark | None:
    """Read a mark; None if there is none (any more)."""
    key = mark_key(number)
    try:
        return Mark.decode(backend.get(key, max_size=MAX_MARK_SIZE))
    except ObjectNotFound:
        return None
    except DamagedObject as error:
        raise DamagedObject(error.reason, key=key) from error


def new_pack_id(transaction: TransactionId) -> PackId:
    """Return a random id for a pack, which begins as that of the transaction which writes it."""
    return PackId(transaction[:SAVE_ID_SIZE] + random_id()[SAVE_ID_SIZE:])


def list_packs(backend: Backend) -> frozenset[PackId]:
    """Return the names of all packs."""
    names = (key.removeprefix("packs/") for key in backend.names("packs/"))
    return frozenset(PackId(bytes.fromhex(name)) for name in names if is_hex_id(name))


def publish_mark(backend: Backend, packs: Iterable[PackId]) -> int:
    """Announce that packs are to be deleted; return the number of the mark, which is the latest when it is there.

    If it is not, then whoever knew the later ones already would not look for it: so it is closed, and another one made.
    """
    data = Mark(TransactionId(random_id()), frozenset(packs)).encode()
    number = list_marks(backend).latest
    for _ in range(_MARK_ATTEMPTS):
        number += 1
        if backend.put_if_absent(mark_key(number), data):
            latest = list_marks(backend).latest
            if latest == number:
                return number
            close_mark(backend, number)
            number = latest
    raise StorageError("no number was left for the mark of a collection: too many others were at work; try again")


def close_mark(backend: Backend, number: int) -> None:
    """Tell that a mark condemns nothing any more; to be called when what it condemns is deleted or spared."""
    backend.put_if_absent(mark_key(number, closed=True), Mark(TransactionId(random_id()), frozenset()).encode())


def remove_marks(backend: Backend, numbers: Iterable[int]) -> None:
    """Remove closed marks, each before what closes it, so that none seems to be open again."""
    for number in numbers:
        backend.delete(mark_key(number))
        backend.delete(mark_key(number, closed=True))


# --- moves --------------------------------------------------------------------------------------


def list_moves(backend: Backend, pack: PackId | None = None) -> list[MoveKey]:
    """Return the keys of all moves, or of those of one pack."""
    keys = (parse_move_key(name) for name in backend.names(MOVES_PREFIX))
    return [key for key in keys if key is not None and pack in {None, key.pack}]


def put_move(backend: Backend, pack: PackId, targets: Iterable[PackId]) -> int:
    """Record that chunks of a pack are in others now; return the size of the record in bytes."""
    move = Move(MoveKey(pack, TransactionId(random_id())), frozenset(targets))
    data = move.encode()
    if not backend.put_if_absent(str(move.key), data):
        raise StorageError(f"somebody else has written {move.key}, whose name was drawn at random just now")
    return len(data)


def read_moves(backend: Backend, keys: Iterable[MoveKey]) -> dict[PackId, frozenset[PackId]]:
    """Read moves, except those that are gone; return for each pack that is moved where its chunks went."""
    moves: dict[PackId, frozenset[PackId]] = {}
    for key in keys:
        try:
            move = Move.decode(backend.get(str(key), max_size=MAX_MOVE_SIZE))
        except ObjectNotFound:
            continue
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=str(key)) from error
        if move.key != key:
            raise DamagedObject(f"is the move {move.key}", key=str(key))
        moves[key.pack] = moves.get(key.pack, frozenset()) | move.targets
    return moves
