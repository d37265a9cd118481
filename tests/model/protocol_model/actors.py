"""What an actor is, and the small ones: forgetters, those who tidy up after others, readers.

Each step of an actor is one operation on the store. Objects never change, so that listing a few of them and reading
them counts as one. An actor that crashed is one that makes no further step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from protocol_model.records import (
    KEPT_MARKS,
    Commit,
    Index,
    Key,
    Mark,
    Packs,
    Store,
    base,
    chunks_of,
    keys_in_state,
    latest,
    open_marks,
    without_commit,
    without_manifest,
)
from protocol_model.rules import Rules

Steps = Iterator[tuple[Store, Any]]


class Actor(Protocol):
    """One of those that work on a store at once."""

    @property
    def name(self) -> str:
        """The actor's own name."""

    def start(self) -> Any:
        """Return the actor's state before its first step."""

    def steps(self, rules: Rules, store: Store, state: Any) -> Steps:
        """Yield whatever may come of the next step: the store, and the actor's state."""

    def saved(self, state: Any) -> Key | None:
        """Return the snapshot that the actor has reported as saved."""


class Unsaving:
    """An actor that saves nothing."""

    def saved(self, _state: object) -> Key | None:
        """Return None."""
        return None


class Stage(NamedTuple):
    """How far an actor has come that remembers little else."""

    at: str
    todo: tuple[Any, ...] = ()


# --- forgetting ---------------------------------------------------------------------------------


def forget(store: Store, record: Commit, state: Stage) -> tuple[Store, Stage]:
    """Forget a snapshot: the commit goes first, then the manifests; `state.todo` tells what is left of them."""
    if not state.todo:
        return without_commit(store, record.key), state._replace(todo=tuple(sorted(record.manifests)) or ("",))
    left = state.todo[1:]
    return without_manifest(store, state.todo[0]), state._replace(at=state.at if left else "end", todo=left)


@dataclass(frozen=True)
class Forgetter(Unsaving):
    """Forgets one snapshot."""

    name: str
    record: Commit

    def start(self) -> Stage:
        """Begin with the commit."""
        return Stage("forget")

    def steps(self, _rules: Rules, store: Store, state: Stage) -> Steps:
        """Forget the commit, which must be there, then the manifests."""
        if state.at == "forget" and (state.todo or self.record.key in keys_in_state(store, "C")):
            yield forget(store, self.record, state)


# --- tidying up after others --------------------------------------------------------------------


class Closing(NamedTuple):
    """The state of a closer: what it listed."""

    at: str
    marks: frozenset[Mark] = frozenset()
    packs: Packs = frozenset()


@dataclass(frozen=True)
class Closer(Unsaving):
    """Closes a mark of somebody else if nothing of what it condemns exists."""

    name: str

    def start(self) -> Closing:
        """Begin with the marks."""
        return Closing("look")

    def steps(self, rules: Rules, store: Store, state: Closing) -> Steps:
        """List the marks, then the packs; then close one."""
        first = "marks" if rules.marks_before_packs else "packs"
        if state.at == "look":
            yield store, self._looked(store, state._replace(at=first))
        elif state.at == "look again":
            state = self._looked(store, state._replace(at="packs" if first == "marks" else "marks"))
            for mark in state.marks:
                if not rules.closes_empty or not mark.packs & state.packs:
                    yield store, Closing("close", frozenset({mark}))
        elif state.at == "close":
            yield store._replace(closings=store.closings.union(mark.number for mark in state.marks)), Closing("end")

    def _looked(self, store: Store, state: Closing) -> Closing:
        if state.at == "marks":
            return state._replace(at="look again", marks=frozenset(open_marks(store)))
        return state._replace(at="look again", packs=store.packs)


@dataclass(frozen=True)
class Bystander(Unsaving):
    """Stands for any number of collections that delete what nobody here cares for, and then remove all old marks."""

    name: str
    rounds: int = 1

    def start(self) -> Stage:
        """Begin with a mark."""
        return Stage("mark", (self.rounds,))

    def steps(self, _rules: Rules, store: Store, state: Stage) -> Steps:
        """Publish a mark, close it, remove older ones: each before what closes it."""
        at, todo = state
        if at == "mark":
            number = latest(store) + 1
            yield (
                store._replace(marks=store.marks | {Mark(number, frozenset({"junk/"}))}),
                Stage("close", (*todo, number)),
            )
        elif at == "close":
            yield store._replace(closings=store.closings | {todo[1]}), Stage("list", todo[:1])
        elif at == "list":
            old = [number for number in sorted(store.closings)[:-KEPT_MARKS] if number != latest(store)]
            yield store, Stage("remove mark", (*todo, *old)) if old else self._next(todo)
        elif at == "remove mark":
            marks = frozenset(mark for mark in store.marks if mark.number != todo[1])
            yield store._replace(marks=marks), Stage("remove closing", todo)
        elif at == "remove closing":
            after = (todo[0], *todo[2:])
            yield (
                store._replace(closings=store.closings - {todo[1]}),
                Stage("remove mark", after) if todo[2:] else self._next(after),
            )

    def _next(self, todo: tuple[int, ...]) -> Stage:
        return Stage("mark", (todo[0] - 1,)) if todo[0] > 1 else Stage("end")


class Merging(NamedTuple):
    """The state of a merger."""

    at: str
    date: int = 0
    parts: frozenset[Index] = frozenset()


@dataclass(frozen=True)
class Merger(Unsaving):
    """Merges all index objects into one."""

    name: str

    def start(self) -> Merging:
        """Begin with the base."""
        return Merging("base")

    def steps(self, rules: Rules, store: Store, state: Merging) -> Steps:
        """Read the base, then the index objects; write one, and delete its parts."""
        if state.at == "base":
            yield store, Merging("read", base(store))
        elif state.at == "read":
            date = min([state.date, *(part.date for part in store.indexes)])
            yield store, Merging("write", date, store.indexes)
        elif state.at == "write":
            packs = frozenset().union(*(part.packs for part in state.parts))
            date = state.date if rules.merges_by_lowest else latest(store)
            merged = Index(self.name, packs, date)
            yield store._replace(indexes=store.indexes | {merged}), state._replace(at="delete")
        elif state.at == "delete" and state.parts:
            first = min(state.parts)
            yield store._replace(indexes=store.indexes - {first}), state._replace(parts=state.parts - {first})


# --- reading ------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """The state of a reader: packs to read, packs that are gone, those that were heard of, chunks still needed."""

    at: str
    todo: Packs = frozenset()
    gone: Packs = frozenset()
    known: Packs = frozenset()
    chunks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reader(Unsaving):
    """Restores one snapshot; ends at `restored`, `forgotten` or `damage`."""

    name: str
    key: Key

    def start(self) -> Reading:
        """Begin with the commit."""
        return Reading("commit")

    def steps(self, _rules: Rules, store: Store, state: Reading) -> Steps:
        """Read commit, manifest and packs; where a pack is gone, follow its moves."""
        if state.at == "commit" and self.key in keys_in_state(store, "C"):
            yield store, Reading("manifest")
        elif state.at == "manifest":
            yield store, self._manifest(store)
        elif state.at == "packs":
            yield store, self._pack(store, state)
        elif state.at == "moves":
            yield store, self._moves(store, state)
        elif state.at == "look again":
            yield store, Reading("damage" if self.key in keys_in_state(store, "C") else "forgotten")

    def _manifest(self, store: Store) -> Reading:
        found = [manifest for manifest in store.manifests if manifest.key == self.key]
        if not found:
            return Reading("look again")
        packs = frozenset().union(*(manifest.packs for manifest in found))
        return Reading("packs", packs, known=packs, chunks=frozenset().union(*(manifest.chunks for manifest in found)))

    def _pack(self, store: Store, state: Reading) -> Reading:
        pack = min(state.todo)
        left = state._replace(todo=state.todo - {pack})
        if pack in store.packs:
            left = left._replace(chunks=left.chunks - chunks_of(pack))
        else:
            left = left._replace(gone=left.gone | {pack})
        if not left.chunks:
            return Reading("restored")
        return left if left.todo else left._replace(at="moves" if left.gone else "look again")

    def _moves(self, store: Store, state: Reading) -> Reading:
        targets = frozenset().union(*(move.targets for move in store.moves if move.pack in state.gone)) - state.known
        if not targets:
            return Reading("look again")
        return Reading("packs", targets, known=state.known | targets, chunks=state.chunks)
