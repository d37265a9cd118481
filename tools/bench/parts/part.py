"""What a part of the benchmark is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.results import Failure, Results
from bench.scenario import Scenario, Step
from bench.tools import Ours, Tool
from bench.workplace import Workplace

__all__ = ["Bench", "Part"]


class Bench:
    """What a part works with.

    Attributes:
        part: the part's name.
        results: takes what is measured.
        workplace: where it works.
        scale: what sizes and counts are multiplied by.
        repeats: how often everything is done.
        install: whether something may be installed that a corpus is made with.
    """

    def __init__(
        self,
        part: Part,
        results: Results,
        workplace: Workplace,
        *,
        scale: float,
        repeats: int,
        tools: Sequence[type[Tool]],
        missing: Sequence[tuple[str, str]],
        install: bool = True,
    ) -> None:
        """Get ready for a part; of the tools it takes those that it is about, and tells which of them are missing."""
        self.part, self.results, self.workplace = part.name, results, workplace
        self.scale, self.repeats, self.install = scale, repeats, install
        self._tools = [tool for tool in tools if tool.name in part.peers]
        for name, reason in missing:
            if name in part.peers:
                results.fail(Failure(part.name, "all", name, f"missing: {reason}"))

    @property
    def tools(self) -> list[type[Tool]]:
        """This package, and then the peers."""
        return [Ours, *self._tools]

    def scaled(self, value: float, *, least: int = 1) -> int:
        """Return a size or count at this scale."""
        return max(least, round(value * self.scale))

    def compare(self, steps: Sequence[Step], source: Path, *, tools: Sequence[type[Tool]] | None = None) -> None:
        """Let each tool take the steps in turn."""
        scenario = Scenario(self.part, self.results, self.workplace, repeats=self.repeats)
        scenario.run(self.tools if tools is None else tools, steps, source)


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
        name: as it is called for.
        title: what it shows.
        run: does it.
        peers: the tools that this package is compared with.
        corpora: the corpora that it uses.
        room: bytes that it needs at scale 1, all included.
        on_disk: whether a file system in memory would make no sense.
        note: what a reader of its table must know.
    """

    name: str
    title: str
    run: Callable[[Bench], None]
    peers: tuple[str, ...]
    corpora: tuple[str, ...] = ()
    room: int = 0
    on_disk: bool = False
    note: str = ""
