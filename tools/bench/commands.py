"""A command, and what it used: a whole process with all its descendants, measured by `launcher`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Command", "CommandFailed", "Usage", "environment", "measure", "shell"]

_LAUNCHER = Path(__file__).with_name("launcher.py")
_TOOLS = ("BORG_", "RESTIC_", "XDG_", "HF_", "CAS_CHECKPOINT_", "FLYTE_")
_OURS_TO_SET = (*_TOOLS, "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR", "HOME")


class CommandFailed(Exception):
    """A command that did not do what it should; the text says what it wrote last."""


class Command(NamedTuple):
    """What is run.

    Attributes:
        arguments: program and arguments.
        environment: variables to set.
        directory: where it runs; anywhere if None.
        output: a file for what it writes to stdout; dropped if None.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = {}
    directory: Path | None = None
    output: Path | None = None


class Usage(NamedTuple):
    """What a command used. Times are seconds, `peak` is bytes."""

    wall: float
    user: float
    system: float
    peak: int

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes, in user and kernel mode."""
        return self.user + self.system


def shell(script: str, *arguments: str | Path) -> tuple[str, ...]:
    """Return a command line that runs a bash script with these arguments."""
    return ("bash", "-euo", "pipefail", "-c", script, "bash", *map(str, arguments))


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without whatever could lead a tool elsewhere, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS_TO_SET)}
    return kept | {"LC_ALL": "C.UTF-8"} | dict(extra)


def measure(command: Command) -> Usage:
    """Run a command to its end and return what it used; `CommandFailed` if it failed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        report, errors = Path(folder, "report"), Path(folder, "errors")
        with errors.open("wb") as stderr, open(command.output or os.devnull, "wb") as stdout:
            _run((sys.executable, "-I", "-S", str(_LAUNCHER), str(report), *command.arguments), command, stdout, stderr)
        found = json.loads(report.read_bytes()) if report.exists() else {"exit_code": 127}
        if found.pop("exit_code"):
            said = errors.read_text("utf-8", "replace").strip().splitlines() or ["failed"]
            raise CommandFailed(f"{Path(command.arguments[0]).name}: {said[-1][-200:]}")
    return Usage(**found)


def _run(arguments: Sequence[str], command: Command, stdout: object, stderr: object) -> None:
    """Run in a session of its own, so that an interruption ends all of its processes and no others."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=stdout,  # type: ignore[call-overload]
        stderr=stderr,
        cwd=command.directory,
        env=environment(command.environment),
        start_new_session=True,
    )
    try:
        process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
