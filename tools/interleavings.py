#!/usr/bin/env python3
"""Interleaves savers, ranks, a forgetter, two collectors and a reader, one storage operation at a time, at random.

Usage: interleavings.py [--schedules N] [--seed N] [--processes N]

Each seed is a schedule: it decides who goes on at each operation, and in every second one who is stopped for ever on
the way. The same seed is the same schedule again. Some of what is saved are tensors that change a little, so that there
are deltas, and two of every four schedules have a saver that keeps only its last snapshot. In the end what was
acknowledged and not forgotten must be restored byte for byte, the reader must have read the right bytes or found the
snapshot forgotten, a verification must find nothing wrong, and after collections in quiet nothing must be left that no
snapshot needs. Exit code 1 if it is not so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from crash_points import FILES, OTHERS, SOME, TENSORS, Files, World, noise, recover, small
from tensors_that_move import count_deltas, weights

from cas_checkpoint import CasCheckpointError, PartPlan, PartReceipt, SaveAborted, SnapshotNotFound, Store
from cas_checkpoint.backends import Backend
from cas_checkpoint.testing import Actor, Scheduler, SimulatedBackend, in_one_thread, seeded_ids
from cas_checkpoint.transactions import list_packs

_BATCH = 100
_KEPT = "kept"  # a series of which only the last snapshot is kept
RANKS: tuple[Files, Files] = ({**SOME, "rank0": noise(400, 9_000)}, {"g5": OTHERS["g5"], "rank1": noise(401, 9_000)})


class Tried(NamedTuple):
    """What some schedules came to."""

    counts: Counter[str]
    wrong: list[str]


def prepare() -> World:
    """Return a store of some snapshots, that share packs in part; the second has deltas of what is in the first."""
    with seeded_ids(2**64):  # no schedule's
        world = World(SimulatedBackend(), {}, set())
        world.save({**FILES, TENSORS: weights(1)})
        world.save({**SOME, "own": noise(200, 9_000), TENSORS: weights(1, 1)})
        world.save({"own": noise(201, 9_000), TENSORS: weights(1, 2)}, series=_KEPT)
        world.forget(world.save(OTHERS))
    return world


class Trial:
    """One schedule.

    Attributes:
        wrong: what was not as it must be.
        counts: what happened.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._before, self._seed = world, seed
        self._world = World(SimulatedBackend(world.backend.objects), world.saved, world.leaving)
        self._first, self._second, self._kept = list(world.saved)[:3]
        self.wrong: list[str] = []
        self.counts = Counter({"schedules": 1})
        self._plan: PartPlan | None = None
        self._receipts: dict[int, PartReceipt] = {}

    def _saver(self, files: Files, *, keeps: bool = False) -> Actor:
        def save(backend: Backend) -> None:
            store = Store.open(backend, workers=1)
            if keeps:
                self._world.leaving.add(self._kept)
            snapshot = store.save(files, series=_KEPT, keep=1) if keeps else store.save(files)
            self._world.saved[snapshot.id] = files
            self.counts["acknowledged"] += 1

        return save

    def _rank(self, part: int) -> Actor:
        def save(backend: Backend) -> None:
            store = Store.open(backend, workers=1)
            plan = store.begin_parts(parts=len(RANKS))
            self._plan = self._plan or plan  # of the rank that was first
            self._receipts[part] = store.save_part(RANKS[part], self._plan, part=part)
            if len(self._receipts) == len(RANKS):  # the last one commits
                snapshot = store.commit_parts(self._plan, self._receipts.values())
                self._world.saved[snapshot.id] = RANKS[0] | RANKS[1]
                self.counts["acknowledged in parts"] += 1

        return save

    def _forget(self, backend: Backend) -> None:
        self._world.leaving.add(self._first)
        Store.open(backend, workers=1).forget(self._first)

    def _read(self, backend: Backend) -> None:
        store = Store.open(backend, workers=1)
        for name in (self._first, self._second):
            try:
                snapshot = store.snapshot(name)
                found = {path: snapshot.read_bytes(path) for path in self._before.saved[name]}
            except SnapshotNotFound:
                self.counts["found forgotten"] += 1
                if name != self._first:
                    self.wrong.append(f"the reader does not find {name}")
            else:
                if found != self._before.saved[name]:
                    self.wrong.append(f"the reader finds other content in {name}")

    def run(self) -> None:
        """Run it, and look at what is left."""
        scheduler = Scheduler(self._world.backend, seed=self._seed, crash_share=0.01 if self._seed % 2 else 0.0)
        outcomes = scheduler.run(
            {
                "saver 1": self._saver({**FILES, "new": noise(300, 9_000), TENSORS: weights(1, 1)}),
                "saver 2": self._saver(
                    {"f3": FILES["f3"], "g2": OTHERS["g2"], "new": noise(301, 9_000), TENSORS: weights(1, 3)},
                    keeps=self._seed // 2 % 2 == 1,
                ),
                "rank 0": self._rank(0),
                "rank 1": self._rank(1),
                "forgetter": self._forget,
                "collector 1": lambda backend: Store.open(backend, workers=1).collect(repack=0.1),
                "collector 2": lambda backend: Store.open(backend, workers=1).collect(repack=0.5),
                "reader": self._read,
            }
        )
        self.counts["operations"] += len(scheduler.schedule)
        self.counts["new deltas"] += count_deltas(self._world.backend, without=list_packs(self._before.backend))
        for name, outcome in outcomes.items():
            self.counts["crashed actors"] += outcome.crashed
            if isinstance(outcome.error, SaveAborted):
                self.counts["saves given up"] += 1
            elif outcome.error is not None:
                self.wrong.append(f"{name}: {type(outcome.error).__name__}: {outcome.error}")
        with in_one_thread():
            try:
                self.wrong += recover(self._world)
            except CasCheckpointError as error:
                self.wrong.append(f"recovery failed: {error}")


def run_some(first: int, count: int) -> Tried:
    """Run the schedules of some seeds, one after another."""
    small()
    world = prepare()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for seed in range(first, first + count):
        trial = Trial(world, seed)
        trial.run()
        counts += trial.counts
        wrong += [f"schedule {seed}: {text}" for text in trial.wrong]
    return Tried(counts, wrong)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others follow")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    began = time.monotonic()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with ProcessPoolExecutor(options.processes) as pool:
        end = options.seed + options.schedules
        jobs = [pool.submit(run_some, first, min(_BATCH, end - first)) for first in range(options.seed, end, _BATCH)]
        for job in jobs:
            tried = job.result()
            counts += tried.counts
            wrong += tried.wrong
    if not counts["new deltas"]:
        wrong.append("no deltas were made")
    for text in wrong[:20]:
        print(f"WRONG: {text}")
    done = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"seeds from {options.seed}: {done}, in {time.monotonic() - began:.0f} s; {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
