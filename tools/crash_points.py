#!/usr/bin/env python3
"""Crashes saves, forgetters, collections and repairs at every write that they make, and looks at what is left.

Usage: crash_points.py [--deep] [--seed N] [SCENARIO...]

Each scenario runs once to count its writes; then again for each of them, with a crash before the write, while it is
visible but not durable (with both outcomes), and after it. Each time what was acknowledged and not forgotten must be
restored byte for byte, a verification must find nothing but garbage, the next save and collections must succeed, and
garbage must reach zero; after a repair, the next repair is run first. With --deep the collection that comes after each
crash is crashed at each of its writes, too.
Exit code 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import NamedTuple

from tensors_that_move import TENSOR_SIZE, count_deltas, weights

from cas_checkpoint import CasCheckpointError, Snapshot, SnapshotNotFound, Store, comparing, merging, packing, saving
from cas_checkpoint.testing import Crash, SimulatedBackend, SimulatedCrash, in_one_thread
from cas_checkpoint.transactions import list_marks, publish_mark

Files = dict[str, bytes]
_SMALL_PACK = 30_000
_SMALL_INLINE = 2_000
_WRITES_OF_PARTS = 11  # of two small parts: pack, index and manifest of each, the same of the whole; whole, commit


class World:
    """A store, and what it must hold.

    Attributes:
        saved: what was acknowledged, by the ids of the snapshots.
        leaving: ids of those that somebody began to forget.
    """

    def __init__(self, backend: SimulatedBackend, saved: dict[str, Files], leaving: set[str]) -> None:
        self.backend, self.saved, self.leaving = backend, dict(saved), set(leaving)

    def store(self) -> Store:
        """Open the store."""
        return Store.open(self.backend, create=True, workers=1)

    def save(self, files: Files, *, series: str = "default", keep: int | None = None) -> Snapshot:
        """Save, and note what was acknowledged."""
        if keep is not None:
            self.leaving |= self.saved.keys()
        snapshot = self.store().save(files, series=series, keep=keep)
        self.saved[snapshot.id] = files
        return snapshot

    def save_parts(self, ranks: Sequence[Files]) -> Snapshot:
        """Save in parts, one after another, and note what was acknowledged."""
        plan = self.store().begin_parts(parts=len(ranks))
        receipts = [self.store().save_part(files, plan, part=part) for part, files in enumerate(ranks)]
        snapshot = self.store().commit_parts(plan, receipts)
        self.saved[snapshot.id] = {name: data for files in ranks for name, data in files.items()}
        return snapshot

    def forget(self, snapshot: Snapshot) -> None:
        """Forget a snapshot."""
        self.leaving.add(snapshot.id)
        self.store().forget(snapshot)

    def tensors(self) -> Files:
        """Return the tensors of the last snapshot that has any."""
        return next(({TENSORS: files[TENSORS]} for files in reversed(self.saved.values()) if TENSORS in files), {})

    def wrong(self) -> Iterator[str]:
        """Yield what is not as it must be."""
        yield from self.lost()
        yield from (f"{problem.key}: {problem.message}" for problem in self.store().verify().problems)

    def lost(self) -> Iterator[str]:
        """Yield what cannot be restored as it was saved."""
        store = self.store()
        for name, files in self.saved.items():
            try:
                snapshot = store.snapshot(name)
                found = {path: snapshot.read_bytes(path) for path in files}
            except SnapshotNotFound:
                if name not in self.leaving:
                    yield f"{name} is lost"
            except CasCheckpointError as error:
                yield f"{name}: {error}"
            else:
                if found != files:
                    yield f"{name} has other content"


def small() -> None:
    """Let packs, inline snapshots and files with deltas be small, and index objects be merged soon, in this process."""
    packing.PACK_SIZE = _SMALL_PACK
    saving.__dict__["MAX_INLINE_SIZE"] = _SMALL_INLINE
    merging.__dict__["_MERGE_ABOVE"] = 2
    comparing.__dict__["_MIN_FORECAST"] = TENSOR_SIZE


def noise(seed: int, size: int) -> bytes:
    """Return random bytes."""
    return Random(seed).randbytes(size)  # noqa: S311 -- a seed must give the same bytes


TENSORS = "f0m"  # among others, so that there are other things in its packs
FILES = {f"f{number}": noise(number, 9_000) for number in range(8)}
SOME = {name: FILES[name] for name in ("f1", "f6")}
OTHERS = {f"g{number}": noise(100 + number, 9_000) for number in range(8)}


# --- scenarios: what is there, and what is crashed --------------------------------------------------


class Scenario(NamedTuple):
    """What comes before, undisturbed; what is crashed; what is done after a crash before all is well.

    Attributes:
        prepare: comes before.
        act: is crashed.
        heal: is done after a crash.
        deltas: whether deltas must be there in the end.
    """

    prepare: Callable[[World], object]
    act: Callable[[World], object]
    heal: Callable[[World], object] | None = None
    deltas: bool = False


def nothing(_: World) -> None:
    """Prepare nothing."""


def one(world: World) -> Snapshot:
    """Make one snapshot."""
    return world.save(FILES)


def forgotten(world: World) -> None:
    """Leave a forgotten snapshot and another one, which shares nothing with it."""
    first = world.save(FILES)
    world.save(OTHERS)
    world.forget(first)


def partly_dead(world: World) -> None:
    """Leave packs of which little is needed."""
    first = world.save(FILES | OTHERS)
    world.save(SOME)
    world.save({"own": noise(7, 9_000), "f1": FILES["f1"]})
    world.forget(first)


def unfinished(world: World) -> None:
    """Leave a save that died before its commit, and one that died before its manifest."""
    world.save(SOME)
    for at in (3, 1):
        backend = SimulatedBackend(world.backend.objects)
        before = backend.writes
        backend = SimulatedBackend(world.backend.objects, crash=Crash(before + 2 + at))
        try:
            Store.open(backend, workers=1).save(FILES)
        except SimulatedCrash:
            world.backend = next(backend.restarts())


def condemned(world: World) -> None:
    """Leave the open mark of a dead collector, which condemns a pack that is needed."""
    snapshot = world.save(FILES)
    publish_mark(world.backend, [ref.pack for ref in snapshot.reader().manifest().packs][:1])


def many(world: World) -> None:
    """Leave so many index objects that the next save merges them."""
    for number in range(3):
        world.save({"x": noise(number + 50, 9_000)})


def damaged(world: World) -> None:
    """Leave a snapshot one of whose packs is damaged, and copies of what is in it."""
    first = world.save(FILES)
    for key in list(world.backend.names("index/")):  # so that the next save knows of nothing
        world.backend.delete(key)
    world.save(FILES | {"new": noise(9, 9_000)})
    key = f"packs/{first.reader().manifest().packs[0].pack.hex()}"
    data = bytearray(world.backend.get(key, max_size=2**20))
    data[100:110] = bytes(10)
    world.backend.put(key, [bytes(data)])


def save_parts(world: World) -> None:
    """Save in two parts, of which one relies on what is there."""
    world.save_parts([FILES, {"new": noise(9, 9_000), **OTHERS}])


def repair(world: World) -> None:
    """Repair."""
    world.store().repair()


def unfinished_parts(world: World) -> None:
    """Leave parts that were never committed, and a commit whose parts are still there."""
    store = world.store()
    store.save_part(FILES, store.begin_parts(parts=2), part=1)
    crashing = World(SimulatedBackend(world.backend.objects, crash=Crash(_WRITES_OF_PARTS, "after")), {}, set())
    with suppress(SimulatedCrash):
        crashing.save_parts([SOME, {"new": noise(9, 9_000)}])
    world.backend = next(crashing.backend.restarts())
    (snapshot,) = world.store().snapshots()
    world.saved[snapshot.id] = SOME | {"new": noise(9, 9_000)}


def forget_second(world: World) -> None:
    """Forget the second snapshot."""
    world.forget(world.store().snapshot("default@2"))


def bases(world: World) -> None:
    """Leave tensors, beside other things in their packs."""
    world.save({**FILES, TENSORS: weights(1)})


def save_deltas(world: World) -> None:
    """Save what the tensors have become, and once more with other things."""
    world.save({**SOME, TENSORS: weights(1, 1)})
    world.save({"own": noise(7, 9_000), TENSORS: weights(1, 2)})


def deltas(world: World) -> None:
    """Leave tensors that others are stored as deltas of, with other things in the packs of both."""
    bases(world)
    world.save({"before": noise(8, 9_000), TENSORS: weights(1, 1)})
    world.save({"own": noise(7, 9_000), TENSORS: weights(1, 1)})


def forget_bases(world: World) -> None:
    """Forget the tensors, and one of the snapshots of deltas; collect and repack."""
    for name in ("default@1", "default@2"):
        with suppress(SnapshotNotFound):
            world.forget(world.store().snapshot(name))
    world.store().collect(repack=0.1)


SCENARIOS = {
    "first-save": Scenario(nothing, one),
    "incremental-save": Scenario(one, lambda world: world.save(FILES | {"new": noise(9, 9_000)})),
    "unchanged-save": Scenario(one, one),
    "inline-save": Scenario(one, lambda world: world.save({"small": b"carried by the commit"})),
    "save-in-many-packs": Scenario(one, lambda world: world.save(FILES | OTHERS)),
    "save-that-merges": Scenario(many, lambda world: world.save({"y": noise(60, 9_000)})),
    "save-that-keeps": Scenario(partly_dead, lambda world: world.save(OTHERS, keep=1)),
    "save-in-parts": Scenario(one, save_parts),
    "first-save-in-parts": Scenario(nothing, save_parts),
    "forget": Scenario(partly_dead, forget_second),
    "collect": Scenario(forgotten, lambda world: world.store().collect()),
    "collect-and-repack": Scenario(partly_dead, lambda world: world.store().collect(repack=0.1)),
    "collect-unfinished": Scenario(unfinished, lambda world: world.store().collect()),
    "collect-condemned": Scenario(condemned, lambda world: world.store().collect()),
    "save-deltas": Scenario(bases, save_deltas, deltas=True),
    "forget-bases": Scenario(deltas, forget_bases, deltas=True),
    "collect-parts": Scenario(unfinished_parts, lambda world: world.store().collect()),
    "repair": Scenario(damaged, repair, repair),
}


# --- the campaign -----------------------------------------------------------------------------------


class Counts:
    """What was tried, and what was found."""

    def __init__(self) -> None:
        self.crashes = self.states = 0
        self.wrong: list[str] = []


def recover(world: World, heal: Callable[[World], object] | None = None) -> Iterator[str]:
    """Yield what is wrong now, or after another save and collections; if there is something to heal, after that."""
    if heal is not None:
        yield from world.lost()
        heal(world)
    yield from world.wrong()
    world.save({"after": noise(70, 9_000), "f1": FILES["f1"], **world.tensors()})
    world.store().collect(repack=0.1)
    world.store().collect(repack=0.1)
    yield from world.wrong()
    report = world.store().verify()
    if report.garbage_objects:
        yield f"{report.garbage_objects} objects are left that no snapshot needs"
    if list_marks(world.backend).open:
        yield "a mark is left open"


def crash_everywhere(
    world: World, act: Callable[[World], object], counts: Counts, seed: int, check: Callable[[World, str], None]
) -> None:
    """Crash an action at every write, and check each state that a restart may find."""
    trial = World(SimulatedBackend(world.backend.objects), world.saved, world.leaving)
    act(trial)
    for at in range(1, trial.backend.writes + 1):
        for when in ("before", "during", "after"):
            crashed = World(SimulatedBackend(world.backend.objects, crash=Crash(at, when)), world.saved, world.leaving)
            with suppress(SimulatedCrash):
                act(crashed)
            counts.crashes += 1
            for number, backend in enumerate(crashed.backend.restarts(seed=seed)):
                counts.states += 1
                check(World(backend, crashed.saved, crashed.leaving), f"crash {when} write {at}, outcome {number}")


def campaign(name: str, *, deep: bool, seed: int) -> Counts:
    """Crash one scenario everywhere."""
    counts = Counts()
    world = World(SimulatedBackend(), {}, set())
    world.store()
    SCENARIOS[name].prepare(world)

    def check(found: World, label: str) -> None:
        if deep:
            again = Counts()
            crash_everywhere(found, lambda world: world.store().collect(repack=0.1), again, seed, check_flat)
            counts.crashes += again.crashes
            counts.states += again.states
        check_flat(found, label)

    def check_flat(found: World, label: str) -> None:
        try:
            counts.wrong += [f"{name}: {label}: {text}" for text in recover(found, SCENARIOS[name].heal)]
        except CasCheckpointError as error:
            counts.wrong.append(f"{name}: {label}: recovery failed: {type(error).__name__}: {error}")

    crash_everywhere(world, SCENARIOS[name].act, counts, seed, check)
    if SCENARIOS[name].deltas:
        SCENARIOS[name].act(world)
        if not count_deltas(world.backend):
            counts.wrong.append(f"{name}: there are no deltas")
    return counts


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--deep", action="store_true", help="crash the collection after each crash as well")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}")
    options = parser.parse_args()
    unknown = set(options.scenarios) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    small()
    crashes = states = 0
    wrong: list[str] = []
    with in_one_thread():
        for name in options.scenarios or SCENARIOS:
            began = time.monotonic()
            counts = campaign(name, deep=options.deep, seed=options.seed)
            crashes, states, wrong = crashes + counts.crashes, states + counts.states, wrong + counts.wrong
            print(
                f"{name:20} {counts.crashes:7,} crashes {counts.states:7,} states {time.monotonic() - began:6.1f} s  "
                f"{len(counts.wrong)} wrong",
                flush=True,
            )
    for text in wrong[:20]:
        print(f"WRONG: {text}")
    print(f"seed {options.seed}: {crashes:,} crashes, {states:,} states looked at, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
