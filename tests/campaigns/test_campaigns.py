"""Short forms of the campaigns under tools/, each as its user runs it. The long forms are commands of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool, *arguments):
    command = [sys.executable, TOOLS / tool, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "scenario",
    [
        "first-save",
        "incremental-save",
        "unchanged-save",
        "inline-save",
        "save-in-many-packs",
        "save-that-merges",
        "save-that-keeps",
        "save-in-parts",
        "first-save-in-parts",
        "forget",
        "collect",
        "collect-and-repack",
        "collect-unfinished",
        "collect-condemned",
        "save-deltas",
        "forget-bases",
        "collect-parts",
        "repair",
    ],
)
def test_a_crash_at_any_write_loses_nothing(scenario):
    assert ", 0 wrong" in run("crash_points.py", scenario)


def test_any_interleaving_loses_nothing():
    output = run("interleavings.py", "--schedules", "200", "--processes", "1")
    assert "200 schedules" in output
    assert "new deltas" in output
    assert "0 wrong" in output


def test_killed_processes_lose_nothing():
    output = run("thrash.py", "--seconds", "10", "--seed", "1")
    assert "lost or wrong: nothing" in output
    assert "'killed'" in output


def test_flipped_bits_are_found_and_never_passed_on():
    output = run("bit_rot.py", "--stride", "61", "--processes", "1")
    assert ", 0 unnoticed or wrong" in output
    assert "planes 1, delta 1" in output


@pytest.mark.parametrize(
    ("tool", "broken", "arguments"),
    [
        (
            "interleavings",
            "from cas_checkpoint import saving; saving.condemned_packs = lambda *_: frozenset()",
            ["--schedules", "100", "--processes", "1"],
        ),
        (
            "crash_points",
            "from cas_checkpoint import index, reading; reading.SnapshotReader.bases = lambda *_: index.ids_array(b'')",
            ["forget-bases"],
        ),
    ],
    ids=["saves that do not look at the marks", "collections that do not look for bases"],
)
def test_a_campaign_can_fail(tool, broken, arguments):
    """A tool that finds something says so."""
    program = f"import sys; sys.path.insert(0, sys.argv.pop(1)); {broken}; import {tool}; sys.exit({tool}.main())"
    command = [sys.executable, "-c", program, TOOLS, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "WRONG" in result.stdout
