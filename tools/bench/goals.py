"""What this package is to reach beside its peers, and whether a run showed that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.results import Results, Row

__all__ = ["GOALS", "Goal", "Outcome", "Reading", "judge"]

_MIB = 2**20
_PEAK = 512 * _MIB
_BYTES_A_CORE = 1.5e9


class Reading(NamedTuple):
    """One figure, and the most that it may be (or the least, if `at_least`); None if it was not measured."""

    what: str
    measured: float | None
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class Goal(NamedTuple):
    """A goal: in words, and the readings that it consists of."""

    text: str
    readings: tuple[Callable[[Results], Reading], ...]


class Outcome(NamedTuple):
    """A goal and what was found; `holds` is None if something of it was not measured and the rest is well."""

    goal: Goal
    readings: tuple[Reading, ...]
    holds: bool | None


def _value(row: Row | None, metric: str) -> float | None:
    value = None if row is None else getattr(row, metric)
    return None if value is None else float(value)


def ratio(
    part: str, job: str, metric: str, peer: str, most: float, *, peer_job: str | None = None
) -> Callable[[Results], Reading]:
    """Return a reading of ours over a peer's."""

    def read(results: Results) -> Reading:
        ours = _value(results.row(part, job, "ours"), metric)
        theirs = _value(results.row(part, peer_job or job, peer), metric)
        measured = ours / theirs if ours is not None and theirs else None
        return Reading(f"{job}: {metric} / {peer}'s", measured, most)

    return read


def speed(part: str, job: str, least: float) -> Callable[[Results], Reading]:
    """Return a reading of bytes a second of CPU time."""

    def read(results: Results) -> Reading:
        row = results.row(part, job, "ours")
        measured = row.size / row.cpu if row and row.cpu else None
        return Reading(f"{job}: bytes a CPU second", measured, least, at_least=True)

    return read


def peak(part: str, job: str, most: float) -> Callable[[Results], Reading]:
    """Return a reading of peak memory."""

    def read(results: Results) -> Reading:
        return Reading(f"{job}: peak bytes", _value(results.row(part, job, "ours"), "peak"), most)

    return read


def beside_best(part: str, job: str, metric: str, most: float) -> Callable[[Results], Reading]:
    """Return a reading of ours over the best of all peers that did the job."""

    def read(results: Results) -> Reading:
        rows = [row for row in results.rows(part) if row.job == job]
        ours = next((_value(row, metric) for row in rows if row.tool == "ours"), None)
        theirs = {row.tool: _value(row, metric) for row in rows if not row.tool.startswith(("ours", "("))}
        found = {tool: value for tool, value in theirs.items() if value}
        best = min(found, key=lambda tool: found[tool]) if found else None
        measured = ours / found[best] if ours is not None and best else None
        return Reading(f"{job}: {metric} / the best peer's ({best})", measured, most)

    return read


def both(part: str, job: str, metric: str, most: float) -> tuple[Callable[[Results], Reading], ...]:
    """Return readings of ours over restic's and over borg's."""
    return tuple(ratio(part, job, metric, peer, most) for peer in ("restic", "borg"))


_BF16_RUNS = tuple(f"{name}, bf16 weights" for name in ("adam_walk", "tiny_gpt", "finetune_real", "rl_bf16"))
_FP32_RUNS = ("adam_walk, fp32 states", "tiny_gpt, fp32 states")
_OTHER_RUNS = (
    "finetune_real, fp32 weights",
    "finetune_lora, base and adapters",
    "finetune_rows, fp32 weights",
    "exp_avg, exp_avg",
    "random, bytes",
)
_MOVED_RUNS = tuple(
    f"churn, {track}"
    for track in (
        "log",
        "root folder renamed",
        "tensors inserted",
        "order shuffled",
        "2 and 4 shards",
        "safetensors, .pt, DCP",
    )
)
_FIRST = ("first-save", "random-file: first save")
_RESTORE = ("restore", "random-file: restore")

GOALS: Sequence[Goal] = (
    Goal(
        "first save, incompressible: CPU at most 1/3 of borg's and 1/8 of restic's, wall at most 1/3 of borg's",
        (
            ratio(*_FIRST, "cpu", "borg", 1 / 3),
            ratio(*_FIRST, "cpu", "restic", 1 / 8),
            ratio(*_FIRST, "wall", "borg", 1 / 3),
        ),
    ),
    Goal(
        "weights as plain bytes: CPU at most 0.8 of borg's, at no more bytes",
        tuple(
            ratio("weights", f"{name}: first save", metric, "borg", most)
            for name in ("bf16", "fp32")
            for metric, most in (("cpu", 0.8), ("stored", 1.0))
        ),
    ),
    Goal(
        "second save, nothing changed: wall at most 1/3 of restic's and borg's",
        tuple(
            reading
            for name in ("random-file", "random-files", "source-tree")
            for reading in both("unchanged", f"{name}: nothing changed", "wall", 1 / 3)
        ),
    ),
    Goal(
        "the same content in a new directory: at least 1.5 GB/s a core",
        (speed("new-directory", "random-file: the same in a new directory", _BYTES_A_CORE),),
    ),
    Goal(
        "restore: CPU at most 1/2 of borg's and 1/4 of restic's, wall at most 1.5 of cp's",
        (
            ratio(*_RESTORE, "cpu", "borg", 1 / 2),
            ratio(*_RESTORE, "cpu", "restic", 1 / 4),
            ratio(*_RESTORE, "wall", "cp", 1.5),
        ),
    ),
    Goal(
        "2 GiB on a real disk, 1 % changed: faster than cp and sync",
        (ratio("real-disk", "random-file: 1 % scattered", "wall", "cp", 1.0),),
    ),
    Goal(
        "20,000 small files, first save and restore: wall at most restic's and borg's",
        tuple(
            reading
            for verb in ("first save", "restore")
            for reading in both("small-files", f"random-files: {verb}", "wall", 1.0)
        ),
    ),
    Goal(
        "write of 1 KiB: at most 2 x the bare sequence",
        (ratio("write", "write 1 KiB, waiting for the disk", "wall", "bare", 2.0),),
    ),
    Goal(
        "write of 1 KiB, not durable: at most 2 x flytekit's own class",
        (ratio("write", "write 1 KiB, not durable", "wall", "flytekit", 2.0),),
    ),
    Goal(
        "peak memory: at most 512 MiB",
        tuple(
            peak("memory", f"{name}: {verb}", _PEAK)
            for name in ("huge-file", "tiny-files")
            for verb in ("first save", "restore")
        ),
    ),
    Goal(
        "ten checkpoints: stored bytes at most 0.8 of the best peer's on bf16 weights, 0.95 on dense fp32 states, "
        "and no more than the best peer's on all",
        tuple(
            beside_best("trajectories", f"{run}: 10 saves", "stored", most)
            for runs, most in ((_BF16_RUNS, 0.8), (_FP32_RUNS, 0.95), ((*_OTHER_RUNS, *_MOVED_RUNS), 1.0))
            for run in runs
        ),
    ),
    Goal(
        "frozen base, re-sharded, reordered: the second save stores at most 1.02 of the bytes that changed",
        tuple(
            ratio("trajectories", f"{run}: second save", "stored", "(what changed)", 1.02)
            for run in ("finetune_lora, base and adapters", *_MOVED_RUNS)
        ),
    ),
)


def judge(results: Results, goals: Sequence[Goal] = GOALS) -> list[Outcome]:
    """Return what became of each goal."""
    outcomes = []
    for goal in goals:
        readings = tuple(read(results) for read in goal.readings)
        missed = any(reading.measured is not None and not reading.holds for reading in readings)
        complete = all(reading.measured is not None for reading in readings)
        outcomes.append(Outcome(goal, readings, False if missed else True if complete else None))
    return outcomes
