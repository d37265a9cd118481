"""Which snapshots of a series are superseded, and forgetting them (SPEC.md, "Order of writes").

What a forgotten snapshot alone needed stays in the store until it is collected.
"""

from __future__ import annotations

from collections.abc import Iterator

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import Commit, State, parse_commit_key, series_prefix
from cas_checkpoint.errors import DamagedStore, ObjectNotFound, UnsupportedStore
from cas_checkpoint.ids import StoreId
from cas_checkpoint.transactions import forget, read_commit

__all__ = ["forget_superseded"]


def forget_superseded(backend: Backend, store: StoreId, series: str, keep: int) -> list[Commit]:
    """Forget all snapshots of a series but the newest; return their commits.

    To be called after a commit in that series: so of several that do so at once, each leaves the newest alone.
    A commit that cannot be read, or is of a newer version, counts as one of the newest, and stays.

    Args:
        backend: the store's backend.
        store: the store's id.
        series: the series.
        keep: how many to keep.
    """
    superseded = list(_superseded(backend, store, series, keep))
    for record in superseded:
        forget(backend, record.key)
    return superseded


def _superseded(backend: Backend, store: StoreId, series: str, keep: int) -> Iterator[Commit]:
    listed = ((parse_commit_key(info.key), info.size) for info in backend.list(series_prefix(series)))
    keys = {key: size for key, size in listed if key is not None}
    for key in sorted(keys, key=lambda key: (key.sequence, key.transaction), reverse=True):
        may_be_aborted = keys[key] == len(Commit(State.ABORTED, store, key).encode())
        if keep > 0 and not may_be_aborted:
            keep -= 1
            continue
        try:
            record = read_commit(backend, key, store)
        except (ObjectNotFound, DamagedStore, UnsupportedStore):
            continue
        if record.state is not State.COMMITTED:
            continue
        if keep > 0:
            keep -= 1
        else:
            yield record
