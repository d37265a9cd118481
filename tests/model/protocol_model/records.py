"""The store of the model: what lies in it, and what can be told from a listing of it.

Everything is immutable, so that a whole store can be a key of a dictionary. A pack is its name, and its name ends in
the chunks that it holds: `w1.0/ab` holds the chunks a and b, and was the first that the writer w1 wrote. A capital is a
chunk stored as a delta of the one before it in the alphabet: `w1.0/B` holds b, which needs a whole copy of a.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import NamedTuple

Key = tuple[int, str]
"""A commit's key: the sequence, then the transaction."""
Packs = frozenset[str]
NO_PACKS: Packs = frozenset()
KEPT_MARKS = 1
"""So many of the newest closed marks are never removed; in a real store 64."""


class Manifest(NamedTuple):
    """A manifest, or that of a part; `key` is that of the commit which is to name it."""

    name: str
    key: Key
    packs: Packs
    chunks: frozenset[str]


class Commit(NamedTuple):
    """The outcome of a transaction: in state A, or in state C with the names of its manifests (none: inline)."""

    key: Key
    state: str
    manifests: frozenset[str]


class Mark(NamedTuple):
    """A mark, and what it condemns."""

    number: int
    packs: Packs


class Move(NamedTuple):
    """A move of a pack, with a name of its own."""

    name: str
    pack: str
    targets: Packs


class Index(NamedTuple):
    """An index object: packs that are known to exist as of its date."""

    name: str
    packs: Packs
    date: int


class Store(NamedTuple):
    """All objects of a store. `closings` are the numbers of the objects that close a mark."""

    packs: Packs = NO_PACKS
    manifests: frozenset[Manifest] = frozenset()
    parts: frozenset[Manifest] = frozenset()
    commits: frozenset[Commit] = frozenset()
    marks: frozenset[Mark] = frozenset()
    closings: frozenset[int] = frozenset()
    moves: frozenset[Move] = frozenset()
    indexes: frozenset[Index] = frozenset()


# --- what a listing tells -----------------------------------------------------------------------


@cache
def chunks_of(pack: str) -> frozenset[str]:
    """Return the chunks that a pack holds."""
    return frozenset(pack.partition("/")[2])


def chunks_in(packs: Iterable[str]) -> frozenset[str]:
    """Return the chunks that these packs hold together."""
    return frozenset().union(*map(chunks_of, packs))


def base_of(delta: str) -> str:
    """Return the base of a chunk that is stored as a delta."""
    return chr(ord(delta.lower()) - 1)


def deltas_in(packs: Iterable[str]) -> frozenset[str]:
    """Return the chunks that any of these packs holds as deltas, as capitals."""
    return frozenset(filter(str.isupper, chunks_in(packs)))


def readable(packs: Iterable[str]) -> frozenset[str]:
    """Return the chunks that can be read from these packs: whole ones, and deltas whose bases are there as a whole."""
    copies = chunks_in(packs)
    return frozenset(copy.lower() for copy in copies if copy.islower() or base_of(copy) in copies)


def closure(packs: Iterable[str], moves: Collection[Move]) -> Packs:
    """Return packs, and whatever they were moved to."""
    found = frozenset(packs)
    if not moves:
        return found
    while more := frozenset().union(*(move.targets for move in moves if move.pack in found)) - found:
        found |= more
    return found


def open_marks(store: Store) -> list[Mark]:
    """Return the marks that nobody closed."""
    return [mark for mark in store.marks if mark.number not in store.closings]


def numbers(store: Store) -> frozenset[int]:
    """Return the numbers of all marks, open or closed."""
    return store.closings.union(mark.number for mark in store.marks)


def latest(store: Store) -> int:
    """Return the number of the latest mark."""
    return max(numbers(store), default=0)


def base(store: Store, *, heeds_open: bool = True) -> int:
    """Return the date of what is learned from now on: lowest open mark - 1, else the latest mark."""
    lowest = min((mark.number for mark in open_marks(store)), default=0) if heeds_open else 0
    return lowest - 1 if lowest else latest(store)


def hides_anything_after(store: Store, date: int) -> bool:
    """Tell whether marks above a date are closed or gone."""
    found = numbers(store)
    return any(number > date for number in store.closings) or (bool(found) and min(found) > date + 1)


def keys_in_state(store: Store, state: str) -> frozenset[Key]:
    """Return the keys of the commits in a state."""
    return frozenset(commit.key for commit in store.commits if commit.state == state)


def outcome(store: Store, key: Key) -> Commit | None:
    """Return the commit at a key."""
    return next((commit for commit in store.commits if commit.key == key), None)


# --- single operations --------------------------------------------------------------------------


def put_commit(store: Store, commit: Commit, *, exclusive: bool = True) -> Store | None:
    """Put a commit; None if there is one, and creation is exclusive."""
    before = outcome(store, commit.key)
    if before is not None and exclusive:
        return None
    return store._replace(commits=(store.commits - {before}) | {commit})


def without_commit(store: Store, key: Key) -> Store:
    """Delete a commit."""
    return store._replace(commits=frozenset(commit for commit in store.commits if commit.key != key))


def without_manifest(store: Store, name: str) -> Store:
    """Delete a manifest."""
    return store._replace(manifests=frozenset(found for found in store.manifests if found.name != name))


def without_part(store: Store, name: str) -> Store:
    """Delete the manifest of a part."""
    return store._replace(parts=frozenset(found for found in store.parts if found.name != name))


# --- what must always be true -------------------------------------------------------------------


def damage(store: Store) -> str:
    """Return what is wrong with a committed snapshot; nothing, if all of them can be restored."""
    manifests = {manifest.name: manifest for manifest in store.manifests}
    for commit in store.commits:
        for name in commit.manifests:
            if name not in manifests:
                return f"the snapshot {commit.key} is committed without its manifest {name}"
            _, _, packs, chunks = manifests[name]
            lost = chunks - readable(closure(packs, store.moves) & store.packs)
            if lost:
                return f"the committed snapshot {commit.key} has lost the chunks {sorted(lost)}"
    return ""
