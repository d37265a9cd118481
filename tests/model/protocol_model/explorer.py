"""The search through all interleavings.

What comes of an actor's step depends on the store and on the actor's own state alone. So stores and states are
numbered, each step is worked out once, and a state of the whole is a few small numbers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from protocol_model.actors import Actor
from protocol_model.records import Key, Store, damage, keys_in_state
from protocol_model.rules import Rules

DAMAGE: Key = (-1, "damage")
"""Stands for what a reader saw that met damage."""
Whole = tuple[int, ...]  # the number of the store, then those of the actors' states


class Promise(NamedTuple):
    """What must be there in the end, besides every committed snapshot being whole.

    Attributes:
        forgettable: the snapshots that a forgetter may forget.
        keep: how many of the newest there must be; 0 for all.
    """

    forgettable: frozenset[Key] = frozenset()
    keep: int = 0


class Result(NamedTuple):
    """What a search found.

    Attributes:
        states: how many states were reached.
        violation: what is wrong in the first bad one, if any.
        trace: the steps that lead there: actor, and what it did.
        seconds: how long it took.
        is_complete: whether all states were reached, rather than as many as were allowed.
        ends: the final states of actors that were seen, for those that have several.
    """

    states: int
    violation: str
    trace: tuple[str, ...]
    seconds: float
    is_complete: bool
    ends: frozenset[tuple[str, str]]


class Numbers:
    """Gives things numbers, in the order in which they come."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.things: list[Any] = []
        self._numbers: dict[Hashable, int] = {}

    def number(self, thing: Hashable) -> int:
        """Return the number of a thing."""
        found = self._numbers.setdefault(thing, len(self.things))
        if found == len(self.things):
            self.things.append(thing)
        return found


class Explorer:
    """A search, breadth first: the first violation that it finds is one of the shortest."""

    def __init__(self, start: Store, actors: Sequence[Actor], rules: Rules, promise: Promise) -> None:
        """Begin with a store, and with actors that have done nothing yet."""
        self._actors, self._rules, self._promise = actors, rules, promise
        self._initial = keys_in_state(start, "C")
        self._stores = Numbers()
        self._states = [Numbers() for _ in actors]
        self._steps: list[dict[tuple[int, int], list[tuple[int, int]]]] = [{} for _ in actors]
        self._saved: list[list[Key | None]] = [[] for _ in actors]  # by each actor in each of its states
        self._faults: dict[tuple[int, tuple[Key | None, ...]], str] = {}
        first = (self._stores.number(start), *(self._number(at, actor.start()) for at, actor in enumerate(actors)))
        self._came_from: dict[Whole, Whole | None] = {first: None}

    def run(self, limit: int) -> Result:
        """Search until a violation is found, everything was reached, or `limit` states were."""
        started = time.perf_counter()
        waiting = deque(self._came_from)
        violation, whole = "", waiting[0]
        while waiting and not violation and len(self._came_from) < limit:
            whole = waiting.popleft()
            violation = self._fault(whole)
            for after in self._after(whole):
                if after not in self._came_from:
                    self._came_from[after] = whole
                    waiting.append(after)
        seconds = time.perf_counter() - started
        trace = self._trace(whole) if violation else ()
        return Result(len(self._came_from), violation, trace, seconds, not waiting, self._ends())

    def _number(self, actor: int, state: Any) -> int:
        number = self._states[actor].number(state)
        if number == len(self._saved[actor]):
            self._saved[actor].append(DAMAGE if state.at == "damage" else self._actors[actor].saved(state))
        return number

    def _after(self, whole: Whole) -> list[Whole]:
        found = []
        store = whole[0]
        for actor, steps in enumerate(self._steps):
            at = actor + 1
            pair = (store, whole[at])
            results = steps.get(pair)
            if results is None:
                results = steps[pair] = self._work_out(actor, *pair)
            found += [(new, *whole[1:at], state, *whole[at + 1 :]) for new, state in results]
        return found

    def _work_out(self, actor: int, store: int, state: int) -> list[tuple[int, int]]:
        steps = self._actors[actor].steps(self._rules, self._stores.things[store], self._states[actor].things[state])
        return [(self._stores.number(after), self._number(actor, new)) for after, new in steps]

    # --- what must be true ---

    def _fault(self, whole: Whole) -> str:
        saved = tuple(keys[number] for keys, number in zip(self._saved, whole[1:], strict=True))
        pair = (whole[0], saved)
        fault = self._faults.get(pair)
        if fault is None:
            fault = self._faults[pair] = self._fault_of_store(*pair)
        return fault

    def _fault_of_store(self, number: int, saved: tuple[Key | None, ...]) -> str:
        store = self._stores.things[number]
        if DAMAGE in saved:
            return f"{self._actors[saved.index(DAMAGE)].name} met damage"
        newest = sorted({key for key in saved if key} | self._initial, reverse=True)
        promised = frozenset(newest[: self._promise.keep or None]) - self._promise.forgettable
        lost = promised - keys_in_state(store, "C")
        return f"nobody forgot the snapshots {sorted(lost)}, and they are gone" if lost else damage(store)

    # --- what is told of it ---

    def _ends(self) -> frozenset[tuple[str, str]]:
        pairs = zip(self._actors, self._states, strict=True)
        return frozenset((actor.name, state.at) for actor, numbers in pairs for state in numbers.things)

    def _trace(self, whole: Whole) -> tuple[str, ...]:
        steps: list[str] = []
        while (before := self._came_from[whole]) is not None:
            steps.append(self._step(before, whole))
            whole = before
        return tuple(reversed(steps))

    def _step(self, before: Whole, after: Whole) -> str:
        for at, actor in enumerate(self._actors, start=1):
            if (after[0], after[at]) in self._steps[at - 1].get((before[0], before[at]), ()):
                return f"{actor.name}: {self._states[at - 1].things[before[at]].at}"
        return "?"
