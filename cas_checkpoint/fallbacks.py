"""Restoring an older snapshot where a newer one is damaged, and never a mixture of the two."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeAlias

from cas_checkpoint.commits import CommitKey
from cas_checkpoint.errors import DamagedStore, EntryNotFound, RestoreError, SnapshotForgotten
from cas_checkpoint.fetching import again
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.restoring import RestoreResult, restore
from cas_checkpoint.selections import Selection
from cas_checkpoint.targets import Target

__all__ = ["restore_intact"]

_CHUNKS_AT_ONCE = 2**14

_Attempt: TypeAlias = "Callable[[SnapshotReader, str | os.PathLike[str]], RestoreResult]"


def restore_intact(
    keys: Iterable[CommitKey],
    read: Callable[[CommitKey], SnapshotReader | None],
    target: str | os.PathLike[str],
    *,
    paths: Sequence[bytes] | None = None,
    exact: bool = False,
    owner: bool = False,
    workers: int,
    monitor: Monitor,
) -> RestoreResult | None:
    """Restore the first of several snapshots that is not damaged.

    `read` returns the reader of a commit's snapshot, None if there is no such snapshot (any more).

    Nothing of a damaged one stays beside what is restored in its place: where the target holds things of its own that
    may not be removed, nothing is written before all that is needed was read once. None if there is no snapshot at all.
    If all are damaged, the error tells of the first. All else is as for `restore`.
    """
    attempt = partial(restore, paths=paths, exact=exact, owner=owner, workers=workers, monitor=monitor)
    if not exact:
        attempt = partial(_restore_or_clear if _is_free(target) else _check_and_restore, attempt, paths, workers)
    damage: list[tuple[CommitKey, DamagedStore]] = []
    for key in keys:
        try:
            reader = read(key)
            result = None if reader is None else attempt(reader, target)
        except DamagedStore as error:
            damage.append((key, again(error)))
        except (EntryNotFound, SnapshotForgotten):
            if not damage:
                raise
            break
        else:
            if result is not None:
                return _told(result, key, damage, monitor)
    if damage:
        raise again(damage[0][1])
    return None


def _told(
    result: RestoreResult, key: CommitKey, damage: Sequence[tuple[CommitKey, DamagedStore]], monitor: Monitor
) -> RestoreResult:
    """Tell what was restored in place of what is damaged."""
    if not damage:
        return result
    wanted, error = damage[0]
    notice = Notice(_name(wanted), f"is damaged, {_name(key)} was restored instead: {error}")
    monitor.warning(notice)
    return result._replace(notices=(*result.notices, notice))


def _name(key: CommitKey) -> str:
    return f"{key.series}@{key.sequence}"


def _is_free(target: str | os.PathLike[str]) -> bool:
    """Tell whether nothing is in the target yet."""
    try:
        with os.scandir(target) as found:
            return next(found, None) is None
    except OSError as error:
        return isinstance(error, FileNotFoundError)


def _restore_or_clear(
    attempt: _Attempt, _paths: object, _workers: object, reader: SnapshotReader, target: str | os.PathLike[str]
) -> RestoreResult:
    """Restore into a target that was empty, which it is again if the snapshot is damaged."""
    was_there = os.path.lexists(target)
    try:
        return attempt(reader, target)
    except DamagedStore:
        if os.path.lexists(target):
            with Target(target, notice=lambda _: None) as place:
                place.remove_others(frozenset())
            if not was_there:
                os.rmdir(target)
        raise


def _check_and_restore(
    attempt: _Attempt,
    paths: Sequence[bytes] | None,
    workers: int,
    reader: SnapshotReader,
    target: str | os.PathLike[str],
) -> RestoreResult:
    """Restore when all that this needs was read once."""
    files = Selection(reader, paths).files()
    refs = (ref for entry in files if entry.content for ref in reader.refs(entry.content))
    with ThreadPoolExecutor(max(1, workers), "cas-checkpoint-check") as pool:
        while window := list(islice(refs, _CHUNKS_AT_ONCE)):
            for _ in pool.map(lambda request: deque(reader.fetch(request), 0), reader.plan(window)):
                pass
    try:
        return attempt(reader, target)
    except DamagedStore as error:
        raise RestoreError(f"{error} It was whole a moment ago: restore again") from error
