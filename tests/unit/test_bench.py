"""The benchmark under tools/bench: that it measures what it says. How fast anything is, is no test."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
from bench import corpora  # noqa: E402
from bench.__main__ import PEERS, find_tools  # noqa: E402
from bench.commands import Command, CommandFailed, measure, shell  # noqa: E402
from bench.edits import EDITS  # noqa: E402
from bench.goals import GOALS, Goal, judge, peak, ratio, speed  # noqa: E402
from bench.parts import PARTS  # noqa: E402
from bench.results import Results, Sample  # noqa: E402
from bench.unable import Unable  # noqa: E402
from bench.workplace import choose  # noqa: E402

sys.path.remove(str(TOOLS))
MIB = 2**20


def content(root):
    """Every file below a directory, by name, with a digest of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def run(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(TOOLS)}
    command = [sys.executable, "-m", "bench", "--no-install", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# --- corpora and changes ---


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_a_corpus_is_the_same_in_every_run(tmp_path, name):
    for target in ("one", "two"):
        corpora.make(name, tmp_path / target, scale=1e-4)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert 0.7 * MIB < corpora.tree_size(tmp_path / "one") < 2.5 * MIB


def test_the_scale_multiplies_the_size(tmp_path):
    corpora.make("random-file", tmp_path / "corpus", scale=1 / 512)
    assert (tmp_path / "corpus" / "data.bin").stat().st_size == 4 * MIB


@pytest.mark.parametrize("name", ["random-file", "random-files", "source-tree"])
def test_one_file_is_younger_than_all_that_count(tmp_path, name):
    root = tmp_path / "corpus"
    corpora.make(name, root, scale=1e-4)
    youngest = max((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.stat().st_ctime_ns)
    assert youngest not in corpora.tree_files(root)
    assert len(corpora.tree_files(root)) == len(content(root)) - 1


@pytest.mark.parametrize("name", ["random-file", "random-files", "bf16", "source-tree"])
@pytest.mark.parametrize("kind", EDITS)
def test_a_change_can_be_taken_back(tmp_path, name, kind):
    root = tmp_path / "corpus"
    corpora.make(name, root, scale=1e-4)
    before = content(root)
    EDITS[kind].do(root)
    assert content(root) != before
    EDITS[kind].undo(root)
    assert content(root) == before


def changed(tmp_path, kind):
    root = tmp_path / "corpus"
    corpora.make("random-file", root, scale=1 / 128)
    before = (root / "data.bin").read_bytes()
    EDITS[kind].do(root)
    return before, (root / "data.bin").read_bytes()


def test_scattered_changes_touch_one_block_in_a_hundred(tmp_path):
    before, after = changed(tmp_path, "scattered")
    blocks = range(0, len(before), 4096)
    touched = sum(before[at : at + 4096] != after[at : at + 4096] for at in blocks)
    assert len(after) == len(before)
    assert 0.005 < touched / len(blocks) < 0.02


def test_an_insertion_moves_all_that_follows(tmp_path):
    before, after = changed(tmp_path, "inserted")
    assert (after[:1000], after[1100:]) == (before[:1000], before[1000:])
    assert after[1000:1100] != before[1000:1100]


def test_a_full_change_leaves_no_chunk_and_no_simple_difference(tmp_path):
    before, after = changed(tmp_path, "all")
    differences = {a ^ b for a, b in zip(before[: 2**16], after[: 2**16], strict=True)}
    assert before[: 2**16] != after[: 2**16]
    assert len(differences) > 64


# --- measuring ---


def test_descendants_are_measured_too():
    spin = "import time; x = bytearray(60 * 2**20); [None for _ in iter(lambda: time.process_time() < 0.3, False)]"
    used = measure(Command(shell('"$1" -c "$2"; true', sys.executable, spin)))
    assert used.cpu >= 0.3
    assert used.wall >= 0.3
    assert used.peak > 60 * MIB


def test_the_memory_of_the_one_who_measures_does_not_count():
    ballast = bytearray(os.urandom(2**20)) * 200
    assert 0 < measure(Command(("true",))).peak < 50 * MIB < len(ballast)


def test_a_command_that_fails_is_told_with_its_last_words():
    with pytest.raises(CommandFailed, match="bash: no such thing"):
        measure(Command(shell("echo first >&2; echo no such thing >&2; exit 3")))


def test_a_program_that_is_not_there_is_a_failure():
    with pytest.raises(CommandFailed):
        measure(Command(("/no/such/program",)))


def test_commands_do_not_see_where_else_tools_would_work(monkeypatch, tmp_path):
    monkeypatch.setenv("RESTIC_REPOSITORY", "elsewhere")
    monkeypatch.setenv("CAS_CHECKPOINT_STORE", "elsewhere")
    output = tmp_path / "output"
    measure(Command(("env",), {"HOME": "/given"}, output=output))
    assert "elsewhere" not in output.read_text()
    assert "HOME=/given\n" in output.read_text()


# --- results and goals ---


def results(*samples):
    found = Results()
    for tool, wall, cpu, stored in samples:
        found.samples.append(Sample("part", "job", tool, 0, wall, cpu, 100 * MIB, stored, 3_000_000_000, "tmpfs"))
    return found


def test_medians_are_taken_over_the_samples_of_one_tool():
    found = results(("ours", 1.0, 5.0, 10), ("ours", 9.0, 6.0, 10), ("ours", 2.0, 7.0, 40), ("borg", 70.0, 70.0, 70))
    row = found.row("part", "job", "ours")
    assert (row.wall, row.cpu, row.stored) == (2.0, 6.0, 10)
    assert [row.tool for row in found.rows("part")] == ["ours", "borg"]
    assert found.row("part", "another job", "ours") is None


@pytest.mark.parametrize(("most", "holds"), [(0.5, True), (0.49, False), (0.51, True)])
def test_a_ratio_is_ours_over_theirs(most, holds):
    found = results(("ours", 2.0, 1.0, 1), ("borg", 4.0, 1.0, 1))
    (outcome,) = judge(found, [Goal("", (ratio("part", "job", "wall", "borg", most),))])
    assert outcome.readings[0].measured == 0.5
    assert outcome.holds is holds


@pytest.mark.parametrize(("least", "holds"), [(1.5e9, True), (1.6e9, False)])
def test_speed_is_bytes_a_cpu_second_and_must_be_reached(least, holds):
    (outcome,) = judge(results(("ours", 1.0, 2.0, 0)), [Goal("", (speed("part", "job", least),))])
    assert outcome.holds is holds


@pytest.mark.parametrize(("most", "holds"), [(100 * MIB, True), (100 * MIB - 1, False)])
def test_peak_memory_must_not_be_passed(most, holds):
    (outcome,) = judge(results(("ours", 1.0, 2.0, 0)), [Goal("", (peak("part", "job", most),))])
    assert outcome.holds is holds


def test_a_goal_is_open_until_all_of_it_was_measured_but_missed_at_once():
    found = results(("ours", 2.0, 1.0, 1), ("borg", 4.0, 1.0, 1))
    well, missed, absent = (
        ratio("part", "job", metric, peer, 0.5)
        for metric, peer in (("wall", "borg"), ("cpu", "borg"), ("wall", "restic"))
    )
    outcomes = judge(found, [Goal("", readings) for readings in ((well,), (well, absent), (missed, absent), (absent,))])
    assert [outcome.holds for outcome in outcomes] == [True, None, False, None]


def test_nothing_measured_means_that_no_goal_holds():
    outcomes = judge(Results())
    assert len(outcomes) == len(GOALS)
    assert {outcome.holds for outcome in outcomes} == {None}


def test_parts_name_corpora_and_peers_that_there_are():
    for part in PARTS.values():
        assert set(part.corpora) <= set(corpora.CORPORA)
        assert set(part.peers) <= set(PEERS)


# --- the command ---


def test_a_peer_that_is_not_there_is_missing_for_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    versions, missing = find_tools(["restic"], install=False)
    assert list(versions) == ["ours"]
    assert missing == [("restic", "restic is not installed (Debian: apt-get install restic)")]


def test_a_place_without_room_is_refused(tmp_path):
    with pytest.raises(Unable, match=r"needed; .* has room for"):
        choose([tmp_path], 2**60, held=lambda _: 0)
    assert choose([tmp_path], 2**60, held=lambda _: 2**60) == tmp_path


def test_a_part_measures_both_sides_and_leaves_nothing_behind(tmp_path):
    report, place = tmp_path / "report.json", tmp_path / "place"
    place.mkdir()
    arguments = ("real-disk", "--peers", "cp", "--size-scale", "0.0005", "--dir", place, "--json", report)
    process = run(*arguments, "--repeat", "1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = json.loads(report.read_bytes())
    measured = {(sample["tool"], sample["job"].partition(": ")[2]) for sample in found["samples"]}
    assert measured == {(tool, job) for tool in ("ours", "cp") for job in ("first save", "1 % scattered")}
    assert all(sample["wall"] > 0 and sample["peak"] > 0 and sample["stored"] > 0 for sample in found["samples"])
    assert found["failures"] == []
    assert "real-disk: 2 GiB on a disk" in output
    assert "faster than cp and sync" in output
    assert list(place.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path):
    process = run("restore", "--peers", "none", "--size-scale", "0.01", "--dir", tmp_path)
    with process:
        while "restore: ours" not in process.stderr.readline():
            assert process.poll() is None
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["no-such-part"], ["--peers", "no-such-peer"], ["--repeat", "0"], ["--dir", "/no/such/directory"]]
)
def test_what_cannot_be_asked_for_is_refused(arguments):
    process = run(*arguments)
    process.communicate(timeout=60)
    assert process.returncode == 2
