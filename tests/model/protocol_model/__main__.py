"""Searches through all scenarios; with words, only through those whose names hold one of them."""

from __future__ import annotations

import sys
from itertools import chain, repeat

from protocol_model.explorer import Result
from protocol_model.scenarios import SAFE, WEAK, Scenario


def main(words: list[str]) -> int:
    """Print what was found; return the exit code."""
    states, seconds, bad = 0, 0.0, 0
    for scenario, is_safe in chain(zip(SAFE, repeat(True)), zip(WEAK, repeat(False))):
        if words and not any(word in scenario.name for word in words):
            continue
        result = scenario.explore()
        is_good = _report(scenario, result, is_safe=is_safe)
        states, seconds, bad = states + result.states, seconds + result.seconds, bad + (not is_good)
    _say(f"{states:>11,} states  {seconds:7.1f} s  in total; {bad} scenarios did not go as they should")
    return 1 if bad else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _report(scenario: Scenario, result: Result, *, is_safe: bool) -> bool:
    """Print what became of a scenario; return whether that is as it should be."""
    if is_safe:
        missed = "" if result.is_complete else "NOT ALL STATES WERE REACHED"
        missed = missed or ", ".join(f"NEVER {actor}: {at}" for actor, at in sorted(scenario.ends - result.ends))
        is_good = not result.violation and not missed
        said = result.violation or missed or "safe"
    else:
        is_good = bool(result.violation)
        said = f"caught: {result.violation}" if is_good else "NOT CAUGHT"
    _say(f"{result.states:>11,} states  {result.seconds:7.1f} s  {scenario.name:50s} {said}")
    for step in result.trace if is_safe else ():
        _say(f"{'':36}{step}")
    return is_good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
