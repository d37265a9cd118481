# ruff: noqa: D102 - the verbs are described in `Tool`
"""What is compared: one class a tool, one object for each of its stores. Each verb is one command."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench import corpora
from bench.commands import Command, measure
from bench.unable import Unable

__all__ = ["WORKERS", "Cut", "Ours", "Tool", "find_program", "program_version"]

WORKERS = Path(__file__).with_name("workers")


class Tool:
    """A tool and one store of it, in a directory that also is its home and holds all that it writes elsewhere.

    Attributes:
        name: as `--peers` and the tables name it.
        home: the directory.
        store: where the store is.
        saves: how many saves there were.
    """

    name: ClassVar[str]

    def __init__(self, home: Path) -> None:
        self.home, self.store, self.saves = home, home / "store", 0
        for name in ("user", "tmp"):
            (home / name).mkdir(parents=True)

    @classmethod
    def version(cls, *, install: bool) -> str:
        """Return the version, or raise `Unable`; a tool from PyPI may be installed first."""
        raise NotImplementedError

    def command(
        self,
        *arguments: str | Path,
        extra: Mapping[str, str] | None = None,
        directory: Path | None = None,
        output: Path | None = None,
    ) -> Command:
        """Return a command that keeps to this home."""
        places = {"HOME": str(self.home / "user"), "TMPDIR": str(self.home / "tmp")}
        return Command(tuple(map(str, arguments)), places | dict(extra or {}), directory, output)

    def run(self, command: Command) -> None:
        """Run a command that is not measured; `CommandFailed` if it fails."""
        measure(command)

    def prepare(self) -> None:
        """Do what comes before the first save, for a tool that has a command of its own for that; not measured."""

    def save(self, source: Path) -> Command:
        """Return the command that saves the contents of a directory."""
        raise NotImplementedError

    def saved(self) -> None:
        """Take note that a save is done; a tool that keeps whole copies drops all but the latest."""
        self.saves += 1

    def restore(self, target: Path) -> Command:
        """Return the command that writes what was saved last into an empty directory."""
        return self.restore_saved(self.saves - 1, target)

    def restore_saved(self, number: int, target: Path) -> Command:
        """Return the command that writes what the save of that number, from 0, saved into an empty directory."""
        del number, target
        raise Unable("has no way to restore an earlier save")

    def restored(self, source: Path, target: Path) -> Path:
        """Return where in `target` a restore puts the contents of `source`."""
        del source
        return target

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        """Return the command that writes one file of what was saved last, `path` within `source`, to `target`."""
        del source, path, target
        raise Unable("has no way to restore a single file")

    def listing(self) -> Command:
        """Return the command that lists all snapshots."""
        raise Unable("has no list of snapshots")

    def latest(self) -> Command:
        """Return the command that shows the latest snapshot."""
        raise Unable("has no command for the latest snapshot")

    def size(self) -> int:
        """Return the bytes stored."""
        return corpora.tree_size(self.store)


class Ours(Tool):
    """This package, as its users call it."""

    name = "ours"

    @classmethod
    def version(cls, *, install: bool) -> str:
        del install
        from cas_checkpoint import __version__  # noqa: PLC0415 -- only its version is wanted in this process

        return __version__

    def _verb(self, verb: str, *arguments: str | Path, output: Path | None = None) -> Command:
        parts = (sys.executable, "-m", "cas_checkpoint", verb, *arguments, "--store", self.store)
        return self.command(*parts, output=output)

    def save(self, source: Path) -> Command:
        return self._verb("save", source)

    def restore(self, target: Path) -> Command:
        return self._verb("restore", "latest", target)

    def restore_saved(self, number: int, target: Path) -> Command:
        return self._verb("restore", f"default@{number + 1}", target)

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        return self._verb("cat", "latest", path.relative_to(source), output=target)

    def listing(self) -> Command:
        return self._verb("list")

    def latest(self) -> Command:
        return self._verb("show", "latest")

    def worker(self, name: str, *arguments: str | Path | int) -> None:
        """Run one of our own programs that works on the store; not measured."""
        self.run(self.command(sys.executable, WORKERS / f"{name}.py", self.store, *map(str, arguments)))


def Cut(minimum: int, normal: int, maximum: int) -> type[Ours]:  # noqa: N802 -- makes a class
    """Return this package with stores that are cut into chunks of these sizes, in KiB."""

    class OursCut(Ours):
        name = f"{minimum}/{normal}/{maximum} KiB"

        def prepare(self) -> None:
            self.worker("new_store", minimum * 2**10, normal * 2**10, maximum * 2**10)

    return OursCut


def find_program(name: str, hint: str) -> str:
    """Return the path of a program, or raise `Unable` with a hint how to install it."""
    found = shutil.which(name)
    if found is None:
        raise Unable(f"{name} is not installed ({hint})")
    return found


def program_version(*command: str) -> str:
    """Return the first number that looks like a version in what a command writes, or raise `Unable`."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    if done.returncode or not found:
        raise Unable(f"{command[0]} does not run: {(done.stderr or done.stdout).strip()[-100:]}")
    return found[0].strip(",")
