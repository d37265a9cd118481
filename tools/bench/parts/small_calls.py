"""Small calls in a training loop: `write` and `read`, many of them in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.commands import Command, CommandFailed, measure
from bench.corpora import GIB, MIB
from bench.parts.part import Bench, Part
from bench.results import Failure, Sample
from bench.tools import WORKERS

__all__ = ["PARTS"]

_CALLS = 500
_READ_SIZES = {"1 KiB": 1024, "64 MiB": 64 * MIB}


def _write(bench: Bench) -> None:
    for mode, job in (("durable", "write 1 KiB, waiting for the disk"), ("fast", "write 1 KiB, not durable")):
        _calls(bench, job, "write", mode, count=bench.scaled(_CALLS, least=20), size=1024)


def _read(bench: Bench) -> None:
    for text, size in _READ_SIZES.items():
        real = bench.scaled(size, least=1024) if size > MIB else size
        count = bench.scaled(_CALLS if size < MIB else 20, least=5)
        _calls(bench, f"read {text}", "read", str(real), count=count, size=real)


def _calls(bench: Bench, job: str, verb: str, option: str, *, count: int, size: int) -> None:
    """Let each tool do its calls in turn, and note what one call took; the process is measured for its memory only."""
    tools = ["ours", "bare", *(tool.name for tool in bench.tools if tool.name == "flytekit")]
    for repeat in range(bench.repeats):
        for tool in tools:
            if verb == "write" and tool == "flytekit" and option == "durable":
                bench.results.fail(Failure(bench.part, job, tool, "cannot: never waits for the disk"))
                continue
            print(f"  {bench.part}: {tool}: {job}", file=sys.stderr)
            with bench.workplace.folder("home") as home:
                try:
                    sample = _one(bench, home, (verb, tool, option), count)
                except CommandFailed as error:
                    bench.results.fail(Failure(bench.part, job, tool, f"failed: {error}"))
                else:
                    bench.results.samples.append(sample._replace(job=job, repeat=repeat, size=size))


def _one(bench: Bench, home: Path, call: tuple[str, str, str], count: int) -> Sample:
    verb, tool, option = call
    for name in ("user", "tmp"):
        (home / name).mkdir()
    output = home / "output"
    program = (sys.executable, str(WORKERS / "calls.py"), verb, tool, str(home / "store"), str(count), option)
    bench.workplace.settle()
    used = measure(Command(program, {"HOME": str(home / "user"), "TMPDIR": str(home / "tmp")}, output=output))
    found = json.loads(output.read_bytes().splitlines()[-1])
    place = bench.workplace.file_system
    return Sample(bench.part, "", tool, 0, found["wall"], found["cpu"], used.peak, None, 0, place)


_NOTE = "Times of one call of many in one process, without its start; `bare` is what one would write by hand."

PARTS = (
    Part("write", "SyncCheckpoint.write of 1 KiB", _write, ("flytekit",), room=GIB // 4, on_disk=True, note=_NOTE),
    Part("read", "SyncCheckpoint.read by a new object", _read, ("flytekit",), room=GIB // 2, note=_NOTE),
)
