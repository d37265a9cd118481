#!/usr/bin/env python3
# ruff: noqa: PLR2004, S311 - the numbers are probabilities and sizes of this run; a seed must give the same run
"""Thrashes a store: savers, forgetters, collectors and readers as processes, killed and stopped at random.

Usage: thrash.py [--seconds N] [--seed N] [--url URL] [--savers N] [--forgetters N] [--collectors N] [--readers N]

Some of what is saved are tensors that change a little, so that there are deltas. What a saver was told to be stored it
writes into a log, and so does a forgetter what it is about to forget. In the end
everything that was acknowledged and not forgotten must be restored byte for byte, a verification must find nothing
wrong, and after collections in quiet there must be nothing left that no snapshot needs. Exit code 1 if it is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tensors_that_move import deltas_of, weights

from cas_checkpoint import CasCheckpointError, SaveAborted, SnapshotNotFound, Store, packing
from cas_checkpoint.backends import open_backend

BLOCKS = 48
BLOCK_SIZE = 150_000
_STEPS, _MODEL_SIZE = 30, 400_000  # of the tensors of all savers
_SAVES_WITH_DELTAS = 40  # among so many there must be some
ROLES = ("saver", "forgetter", "collector", "reader")


class Place(NamedTuple):
    """Where a run takes place: the store, and a directory for logs."""

    url: str
    logs: Path

    def open(self) -> Store:
        """Open the store; with small packs, so that there are many."""
        packing.PACK_SIZE = 2**20
        return Store.open(self.url, create=True)

    def log(self, kind: str, **fields: object) -> None:
        """Add a line to the log of a kind, in one write."""
        line = json.dumps(fields) + "\n"
        descriptor = os.open(self.logs / kind, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def read(self, kind: str) -> list[dict[str, object]]:
        """Return the lines of a log."""
        try:
            return [json.loads(line) for line in (self.logs / kind).read_text().splitlines()]
        except FileNotFoundError:
            return []


def make_files(seed: int) -> dict[str, bytes]:
    """Return the files of a snapshot: few blocks in many combinations, so that snapshots share packs in part."""
    choice = random.Random(seed)
    if choice.random() < 0.2:
        return {"small": choice.randbytes(choice.randrange(5_000))}
    files = {}
    for number in range(choice.randrange(1, 12)):
        blocks = [choice.randrange(BLOCKS) for _ in range(choice.randrange(1, 4))]
        files[f"file{number}"] = b"".join(random.Random(block).randbytes(BLOCK_SIZE) for block in blocks)
    files["own"] = choice.randbytes(100_000)
    if choice.random() < 0.7:
        files["file5m"] = weights(1, choice.randrange(_STEPS), _MODEL_SIZE)
    return files


# --- what the processes do ----------------------------------------------------------------------


def save(place: Place, store: Store, choice: random.Random) -> None:
    """Save, and log what was acknowledged."""
    seed = choice.randrange(2**40)
    keep = choice.choice([None, None, 20])
    series = f"s{choice.randrange(3)}"
    if keep is not None:
        place.log("keeping", series=series)
    try:
        snapshot = store.save(make_files(seed), series=f"{series}-kept" if keep else series, keep=keep)
    except SaveAborted:
        place.log("aborted", seed=seed)
        return
    place.log("saved", id=snapshot.id, seed=seed, kept=keep is not None)
    with contextlib.suppress(CasCheckpointError):  # it may have been forgotten
        if not snapshot.reader().inline_size():
            place.log("deltas", count=deltas_of(open_backend(place.url), snapshot))


def forget(place: Place, store: Store, choice: random.Random) -> None:
    """Log what is to be forgotten, and forget it."""
    saved = [line["id"] for line in place.read("saved")]
    gone = {line["id"] for line in place.read("forgetting")}
    waiting = [name for name in saved if name not in gone]
    if len(waiting) < 12:
        time.sleep(0.05)
        return
    name = str(choice.choice(waiting[:-6]))
    place.log("forgetting", id=name)
    with contextlib.suppress(SnapshotNotFound):
        store.forget(name)


def collect(place: Place, store: Store, choice: random.Random) -> None:
    """Collect."""
    report = store.collect(repack=choice.choice([0.2, 0.5, None]))
    place.log("collected", **report._asdict())
    time.sleep(choice.random() * 0.2)


def read(place: Place, store: Store, choice: random.Random) -> None:
    """Read a snapshot; it must be right, or have been forgotten."""
    saved = place.read("saved")
    if not saved:
        time.sleep(0.05)
        return
    line = choice.choice(saved)
    try:
        is_right = restored(store, str(line["id"])) == make_files(int(str(line["seed"])))
    except SnapshotNotFound:
        gone = line["kept"] or line["id"] in {other["id"] for other in place.read("forgetting")}
        if not gone:
            place.log("wrong", what=f"{line['id']} is not found")
        return
    except CasCheckpointError as error:
        place.log("wrong", what=f"{line['id']}: {type(error).__name__}: {error}")
        return
    place.log("read" if is_right else "wrong", what=f"{line['id']} is read")


def restored(store: Store, name: str) -> dict[str, bytes]:
    """Return the files of a snapshot as they are restored."""
    with tempfile.TemporaryDirectory(prefix="cas-checkpoint-thrash-") as target:
        store.restore(name, target)
        return {path.name: path.read_bytes() for path in Path(target).iterdir()}


def work(place: Place, role: str, seed: int) -> None:
    """Do what a role does, for ever."""
    choice = random.Random(seed)
    action = {"saver": save, "forgetter": forget, "collector": collect, "reader": read}[role]
    store = place.open()
    while True:
        try:
            action(place, store, choice)
        except CasCheckpointError as error:
            place.log("errors", role=role, what=f"{type(error).__name__}: {error}")
        if choice.random() < 0.05:
            store = place.open()


# --- the run ------------------------------------------------------------------------------------


class Worker:
    """A process with a role, started anew when it was killed."""

    def __init__(self, place: Place, role: str, choice: random.Random) -> None:
        self._place, self._role, self._choice = place, role, choice
        self.start()

    def start(self) -> None:
        """Start the process."""
        command = [sys.executable, __file__, "--work", self._role, "--seed", str(self._choice.randrange(2**40))]
        self.process = subprocess.Popen([*command, "--url", self._place.url, "--logs", str(self._place.logs)])

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def thrash(place: Place, counts: dict[str, int], seconds: float, seed: int) -> Counter[str]:
    """Let processes work, and kill or stop them at random."""
    choice = random.Random(seed)
    workers = [Worker(place, role, choice) for role in ROLES for _ in range(counts[role])]
    done: Counter[str] = Counter()
    stopped: dict[int, float] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(choice.random() * 0.3)
        for number in [number for number, until in stopped.items() if until < time.monotonic()]:
            del stopped[number]
            workers[number].process.send_signal(signal.SIGCONT)
        number = choice.randrange(len(workers))
        if workers[number].process.poll() is not None:
            done["died"] += 1
            workers[number].start()
        elif number not in stopped and choice.random() < 0.3:
            done["stopped"] += 1
            workers[number].process.send_signal(signal.SIGSTOP)
            stopped[number] = time.monotonic() + choice.random() * 4
        elif number not in stopped and choice.random() < 0.4:
            done["killed"] += 1
            workers[number].kill()
            workers[number].start()
    for worker in workers:
        worker.kill()
    return done


def judge(place: Place) -> Iterator[str]:
    """Yield what is wrong when all is quiet."""
    yield from (str(line["what"]) for line in place.read("wrong"))
    store = place.open()
    gone = {line["id"] for line in place.read("forgetting")}
    there = {snapshot.id for snapshot in store.snapshots()}
    for line in place.read("saved"):
        if line["id"] not in there:
            if line["id"] not in gone and not line["kept"]:
                yield f"{line['id']} was acknowledged and is lost"
            continue
        try:
            if restored(store, str(line["id"])) != make_files(int(str(line["seed"]))):
                yield f"{line['id']} has other content than was saved"
        except CasCheckpointError as error:
            yield f"{line['id']} cannot be restored: {error}"
    for _ in range(2):
        store.collect()
    report = store.verify()
    yield from (f"{problem.key}: {problem.message}" for problem in report.problems)
    if report.garbage_objects:
        yield f"{report.garbage_objects} objects ({report.garbage_size} bytes) are left that no snapshot needs"
    if "://" not in place.url:
        loose = [str(path) for path in Path(place.url).rglob(".tmp-*")]
        if loose:
            yield f"{len(loose)} temporary files are left, such as {loose[0]}"


def run(options: argparse.Namespace) -> int:
    """Thrash a store, and tell what came of it."""
    with tempfile.TemporaryDirectory(prefix="cas-checkpoint-thrash-") as folder:
        logs = Path(folder, "logs")
        logs.mkdir()
        place = Place(options.url or str(Path(folder, "store")), logs)
        place.open()
        counts = {role: getattr(options, f"{role}s") for role in ROLES}
        done = thrash(place, counts, options.seconds, options.seed)
        deltas = sum(int(str(line["count"])) for line in place.read("deltas"))
        wrong = list(judge(place))
        if not deltas and len(place.read("saved")) > _SAVES_WITH_DELTAS:
            wrong.append("there are no deltas")
        lines = {
            kind: len(place.read(kind)) for kind in ("saved", "aborted", "forgetting", "collected", "read", "errors")
        }
        repacked = sum(int(str(line["packs_repacked"])) for line in place.read("collected"))
        deleted = sum(int(str(line["packs_deleted"])) for line in place.read("collected"))
        print(f"seed {options.seed}, {options.seconds:g} s, processes {counts}: {dict(done)}")
        print(f"{lines}; packs deleted {deleted}, of them repacked {repacked}; deltas made {deltas}")
        for line in place.read("errors")[:10]:
            print(f"error of a {line['role']}: {line['what']}")
        for text in wrong:
            print(f"WRONG: {text}")
        print("lost or wrong: " + (str(len(wrong)) if wrong else "nothing"))
        if options.keep_failed and wrong:
            shutil.copytree(folder, options.keep_failed)
    return 1 if wrong else 0


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--url", help="an empty place; by default a temporary directory")
    for role, count in zip(ROLES, (3, 1, 2, 1), strict=True):
        parser.add_argument(f"--{role}s", type=int, default=count)
    parser.add_argument("--keep-failed", help="copy store and logs there if anything is wrong")
    parser.add_argument("--work", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Place(options.url, options.logs), options.work, options.seed)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
