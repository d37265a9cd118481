"""What everyday commands cost as a store grows: in snapshots, in files, in bytes, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.corpora import GIB, MIB, random_file, random_files
from bench.parts.part import Bench, Part
from bench.scenario import Step, restore, save
from bench.tools import Ours

__all__ = ["PARTS"]

_SNAPSHOTS = (1, 100, 10_000)
_FILES = (100, 10_000, 100_000)
_SIZES = (64 * MIB, 512 * MIB, 4 * GIB)
_FILE_SIZE = 1024
_CHUNKS = (0, 1_000_000, 10_000_000)


def _listing(job: str) -> Step:
    return Step(job, lambda trial: trial.tool.listing())


def _ours_grown(worker: str, count: int) -> type[Ours]:
    """Return this package with stores that one of our programs has filled."""

    class OursGrown(Ours):
        def prepare(self) -> None:
            """Fill the store; not measured."""
            if count:
                self.worker(worker, count)

    return OursGrown


def _growth(bench: Bench) -> None:
    with bench.workplace.folder("small") as source:
        random_file(source, MIB, seed=8)
        for full in _SNAPSHOTS:
            count = bench.scaled(full)
            bench.compare(_snapshot_steps(f"{count:,} snapshots"), source, tools=[_ours_grown("many_snapshots", count)])
    for full in _FILES:
        count = bench.scaled(full, least=10)
        _sweep(bench, f"{count:,} files", partial(random_files, size=count * _FILE_SIZE, mean=_FILE_SIZE))
    for full in _SIZES:
        size = bench.scaled(full, least=MIB)
        _sweep(bench, f"{size / MIB:,.0f} MiB", partial(random_file, size=size, seed=9))


def _snapshot_steps(name: str) -> list[Step]:
    latest = Step(f"{name}: latest", lambda trial: trial.tool.latest())
    return [save(f"{name}: save 1 MiB"), _listing(f"{name}: list"), latest, restore(f"{name}: restore 1 MiB")]


def _sweep(bench: Bench, name: str, fill: Callable[[Path], None]) -> None:
    with bench.workplace.folder("swept") as source:
        fill(source)
        steps = [
            save(f"{name}: first save"),
            save(f"{name}: nothing changed"),
            _listing(f"{name}: list"),
            restore(f"{name}: restore"),
        ]
        bench.compare(steps, source)


def _index(bench: Bench) -> None:
    with bench.workplace.folder("small") as source:
        random_file(source, MIB, seed=8)
        for full in _CHUNKS:
            count = bench.scaled(full) if full else 0
            steps = [save(f"{count:,} chunks: save 1 MiB"), save(f"{count:,} chunks: the same again")]
            bench.compare(steps, source, tools=[_ours_grown("large_index", count)])


PARTS = (
    Part(
        "growth",
        "more snapshots, files and bytes in a store",
        _growth,
        ("restic", "borg"),
        room=14 * GIB,
        note="Snapshots are ours alone: ten thousand of them can be generated here, but would have to be made there.",
    ),
    Part(
        "index",
        "a save into a store of many chunks",
        _index,
        (),
        room=GIB,
        note="No peer: a store of ten million chunks can be generated here, but would have to be made there.",
    ),
)
