"""Steps that each tool takes in turn: what is measured, and what is done around it."""

from __future__ import annotations

import filecmp
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import corpora
from bench.commands import Command, CommandFailed, measure
from bench.edits import Edit
from bench.results import Failure, Results, Sample
from bench.tools import Tool
from bench.unable import Unable
from bench.workplace import Workplace, remove, warm

__all__ = ["Scenario", "Step", "Trial", "nothing", "restore", "same_file", "save", "save_after"]


class Trial(NamedTuple):
    """One tool in one repeat.

    Attributes:
        tool: the tool, with a store of its own.
        source: what it saves.
        scratch: a new directory for what it restores.
    """

    tool: Tool
    source: Path
    scratch: Path


def nothing(trial: Trial) -> None:
    """Do nothing before or after a step."""
    del trial


class Step(NamedTuple):
    """One thing that a tool does.

    Attributes:
        job: its name in the table; None if it is not measured.
        command: the command.
        before: done before it.
        after: done after it, whatever happened.
        is_save: whether the store may grow.
        source: what is saved, if it is not the trial's source.
        check: compares what was restored, in the first repeat; raises `CommandFailed`.
    """

    job: str | None
    command: Callable[[Trial], Command]
    before: Callable[[Trial], None] = nothing
    after: Callable[[Trial], None] = nothing
    is_save: bool = False
    source: Path | None = None
    check: Callable[[Trial], None] = nothing


def save(
    job: str | None,
    *,
    source: Path | None = None,
    before: Callable[[Trial], None] = nothing,
    after: Callable[[Trial], None] = nothing,
) -> Step:
    """Return the step that saves the source, or another directory."""
    return Step(job, lambda trial: trial.tool.save(source or trial.source), before, after, is_save=True, source=source)


def save_after(job: str, edit: Edit) -> Step:
    """Return the step that saves the source while it is changed."""
    return save(job, before=lambda trial: edit.do(trial.source), after=lambda trial: edit.undo(trial.source))


def restore(job: str | None) -> Step:
    """Return the step that restores everything into an empty directory."""

    def same_files(trial: Trial) -> None:
        root = trial.tool.restored(trial.source, trial.scratch)
        for path in corpora.tree_files(trial.source):
            same_file(path, root / path.relative_to(trial.source))

    return Step(job, lambda trial: trial.tool.restore(trial.scratch), check=same_files)


def same_file(one: Path, other: Path) -> None:
    """Raise `CommandFailed` unless two files hold the same bytes."""
    if not other.is_file() or not filecmp.cmp(one, other, shallow=False):
        raise CommandFailed(f"{other.name} was not restored as it was")


class Scenario:
    """Lets tools take the same steps in turn, several times, and notes what they used."""

    def __init__(self, part: str, results: Results, workplace: Workplace, *, repeats: int) -> None:
        self.part, self.results, self.workplace, self.repeats = part, results, workplace, repeats

    def run(self, tools: Sequence[type[Tool]], steps: Sequence[Step], source: Path) -> None:
        """Run the steps with every tool: first of all one repeat, then the next."""
        failed: set[type[Tool]] = set()
        for repeat in range(self.repeats):
            for kind in tools:
                if kind not in failed and not self._run_one(kind, steps, source, repeat):
                    failed.add(kind)

    def _run_one(self, kind: type[Tool], steps: Sequence[Step], source: Path, repeat: int) -> bool:
        """Run all steps with one tool; tell whether it may go on with the next repeat."""
        job = "all"
        with self.workplace.folder("home") as home:
            try:
                trial = Trial(kind(home), source, home / "scratch")
                trial.tool.prepare()
                for step in steps:
                    job = step.job or job
                    print(f"  {self.part}: {kind.name}: {step.job or '(getting ready)'}", file=sys.stderr)
                    try:
                        self._take(step, trial, repeat)
                    except Unable as reason:
                        self.results.fail(Failure(self.part, job, kind.name, f"cannot: {reason}"))
            except CommandFailed as error:
                self.results.fail(Failure(self.part, job, kind.name, f"failed: {error}"))
                return False
        return True

    def _take(self, step: Step, trial: Trial, repeat: int) -> None:
        tool = trial.tool
        trial.scratch.mkdir()
        try:
            step.before(trial)
            command = step.command(trial)
            before = tool.size() if step.is_save and tool.store.exists() else 0
            warm((step.source or trial.source) if step.is_save else tool.store)
            self.workplace.settle()
            used = measure(command)
            stored = None
            if step.is_save:
                stored = tool.size() - before
                tool.saved()
            if repeat == 0:
                step.check(trial)
            if step.job is not None:
                size, place = corpora.tree_size(trial.source), self.workplace.file_system
                self.results.samples.append(
                    Sample(self.part, step.job, tool.name, repeat, used.wall, used.cpu, used.peak, stored, size, place)
                )
        finally:
            step.after(trial)
            remove(trial.scratch)
