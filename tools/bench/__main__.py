"""The command: see `--help`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from bench import machine
from bench.corpora import random_file
from bench.goals import judge
from bench.parts import PARTS, Part
from bench.parts.part import Bench
from bench.peers import PEERS as PLAIN_PEERS
from bench.results import Failure, Results
from bench.runs import RUN_PEERS
from bench.scenario import Scenario, restore, save
from bench.tables import show_goals, show_part
from bench.tools import Ours, Tool
from bench.unable import Unable
from bench.workplace import Workplace, candidates, choose

PEERS: dict[str, type[Tool]] = {**PLAIN_PEERS, **RUN_PEERS}
_WIDTH = 150
_NOT_OURS = (*PEERS, "corpora")  # whose failures do not count as this package's


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parts = "\n".join(f"  {part.name:<14} {part.title}" for part in PARTS.values())
    parser = argparse.ArgumentParser(
        prog="tools/bench/run",
        description="Measures this package and its peers in turn, on one file system, in one run.",
        epilog=f"parts (all of them if none is named):\n{parts}\n\npeers: {', '.join(PEERS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--size-scale", type=float, default=1.0, metavar="X", help="multiply sizes and counts (1)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="do everything N times (3)")
    parser.add_argument("--dir", type=Path, help="work in this directory, instead of memory or the system's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to a file")
    parser.add_argument("--peers", default="all", metavar="a,b,...", help="compare with these only; 'none' for none")
    parser.add_argument("--no-install", action="store_true", help="install nothing; what is missing is told")
    options = parser.parse_args(given)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    options.peers = {"all": list(PEERS), "none": []}.get(options.peers, options.peers.split(","))
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if options.dir and not options.dir.is_dir():
        parser.error(f"no such directory: {options.dir}")
    if options.size_scale <= 0 or options.repeat < 1:
        parser.error("--size-scale must be above 0, and --repeat at least 1")
    return options


def find_tools(names: Sequence[str], *, install: bool) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the versions of the tools that are there, and the reasons why others are not."""
    versions = {Ours.name: Ours.version(install=install)}
    missing = []
    for name in names:
        try:
            versions[name] = PEERS[name].version(install=install)
        except Unable as reason:
            missing.append((name, str(reason)))
    return versions, missing


class Run:
    """One run: the parts one after the other, each in a place with room for it."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.results = Results()
        self._options, self._console = options, console
        self._places: dict[Path, Workplace] = {}
        names = [name for name in options.peers if any(name in PARTS[part].peers for part in self._names())]
        self.versions, self.missing = find_tools(names, install=not options.no_install)
        self._tools: list[type[Tool]] = [PEERS[name] for name in self.versions if name in PEERS]

    def _names(self) -> list[str]:
        return self._options.parts or list(PARTS)

    def parts(self) -> None:
        """Run the parts that were asked for."""
        parts = [PARTS[name] for name in self._names()]
        try:
            for number, part in enumerate(parts):
                self._part(part)
                later = {name for other in parts[number + 1 :] for name in other.corpora}
                for place in self._places.values():
                    place.keep_only(later)
        finally:
            for place in self._places.values():
                place.close()

    def _part(self, part: Part) -> None:
        options = self._options
        try:
            place = self._place(part)
        except Unable as reason:
            self.results.fail(Failure(part.name, "all", Ours.name, f"not run: {reason}"))
            show_part(self._console, part, self.results, "nothing")
            return
        bench = Bench(
            part,
            self.results,
            place,
            scale=options.size_scale,
            repeats=options.repeat,
            tools=self._tools,
            missing=self.missing,
            install=not options.no_install,
        )
        part.run(bench)
        show_part(self._console, part, self.results, place.file_system)

    def _place(self, part: Part) -> Workplace:
        """Return a workplace with room for a part; what lies there already counts."""
        options = self._options
        places = [options.dir] if options.dir else candidates(on_disk=part.on_disk)

        def held(directory: Path) -> int:
            return self._places[directory].held(part.corpora) if directory in self._places else 0

        directory = choose(places, round(part.room * options.size_scale), held=held)
        if directory not in self._places:
            place = self._places[directory] = Workplace(directory, scale=options.size_scale)
            self._warm_up(place)
        return self._places[directory]

    def _warm_up(self, place: Workplace) -> None:
        """Let every tool work once unmeasured, so that programs and modules are in memory, and compiled."""
        with place.folder("warm-up") as source:
            random_file(source, 2**20)
            steps = [save(None), restore(None)]
            Scenario("warm-up", Results(), place, repeats=1).run([Ours, *self._tools], steps, source)


def document(run: Run, options: argparse.Namespace, facts: dict[str, object]) -> dict[str, object]:
    """Return all that is known of a run, for `--json`."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": facts,
        "options": {"size_scale": options.size_scale, "repeat": options.repeat},
        "versions": run.versions,
        "missing": dict(run.missing),
        "samples": [sample._asdict() for sample in run.results.samples],
        "failures": [failure._asdict() for failure in run.results.failures],
        "goals": [
            {
                "goal": outcome.goal.text,
                "holds": outcome.holds,
                "readings": [reading._asdict() | {"holds": reading.holds} for reading in outcome.readings],
            }
            for outcome in judge(run.results)
        ],
    }


def stop(number: int, _frame: object) -> NoReturn:
    """End as if by Ctrl-C, so that everything is removed."""
    raise KeyboardInterrupt(f"signal {number}")


def main() -> int:
    """Do it all; return the exit code: 1 if this package failed at anything, whatever the goals say."""
    options = arguments(sys.argv[1:])
    os.environ.pop("PYTHONPATH", None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    facts = machine.facts()
    run = Run(options, console)
    console.print(f"{facts['processor']}, {facts['cores']} cores, {facts['system']}, Python {facts['python']}")
    console.print(f"{', '.join(f'{name} {version}' for name, version in run.versions.items())}", markup=False)
    console.print(f"scale {options.size_scale}, medians of {options.repeat}; whole processes, their start included")
    try:
        run.parts()
    except KeyboardInterrupt:
        print("interrupted; everything was removed", file=sys.stderr)
        return 130
    finally:
        if options.json:
            options.json.write_text(json.dumps(document(run, options, facts), indent=1) + "\n", "utf-8")
    show_goals(console, judge(run.results), scale=options.size_scale)
    return int(any(failure.tool not in _NOT_OURS for failure in run.results.failures))


if __name__ == "__main__":
    sys.exit(main())
