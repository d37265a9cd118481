"""What was measured: samples, and what they come to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Failure", "Results", "Row", "Sample"]


class Sample(NamedTuple):
    """One run of one command, or the mean of many calls in one process.

    Attributes:
        part: the part of the benchmark.
        job: what was done.
        tool: by whom.
        repeat: 0 for the first time.
        wall: seconds.
        cpu: CPU seconds, user and system, of all processes.
        peak: bytes of memory of the largest process; 0 where that says nothing.
        stored: bytes by which the store grew; None for what stores nothing.
        size: plain bytes that were saved or restored.
        place: type of the file system.
    """

    part: str
    job: str
    tool: str
    repeat: int
    wall: float
    cpu: float
    peak: int
    stored: int | None
    size: int
    place: str


class Failure(NamedTuple):
    """A tool that is missing, cannot do a job, or failed at it."""

    part: str
    job: str
    tool: str
    reason: str


class Row(NamedTuple):
    """The medians of a tool's samples of one job."""

    job: str
    tool: str
    wall: float
    cpu: float
    peak: float
    stored: float | None
    size: int


class Results:
    """All samples and failures of a run."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []

    def fail(self, failure: Failure) -> None:
        """Take note of a failure, once."""
        if failure not in self.failures:
            self.failures.append(failure)

    def rows(self, part: str) -> Iterator[Row]:
        """Yield the medians of a part, in the order in which its jobs and tools first came."""
        found: dict[str, dict[str, list[Sample]]] = {}
        for sample in self.samples:
            if sample.part == part:
                found.setdefault(sample.job, {}).setdefault(sample.tool, []).append(sample)
        for tools in found.values():
            yield from map(_medians, tools.values())

    def row(self, part: str, job: str, tool: str) -> Row | None:
        """Return the medians of one tool at one job, None if it was not measured."""
        found = [sample for sample in self.samples if (sample.part, sample.job, sample.tool) == (part, job, tool)]
        return _medians(found) if found else None


def _medians(samples: Sequence[Sample]) -> Row:
    """Return the medians of one tool at one job."""
    stored = [sample.stored for sample in samples if sample.stored is not None]
    return Row(
        samples[0].job,
        samples[0].tool,
        statistics.median(sample.wall for sample in samples),
        statistics.median(sample.cpu for sample in samples),
        statistics.median(sample.peak for sample in samples),
        statistics.median(stored) if stored else None,
        samples[0].size,
    )
