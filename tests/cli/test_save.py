import json
import os
import signal
import subprocess
from functools import partial

import pytest

import cas_checkpoint.saving
from cas_checkpoint import Store


def test_creates_the_store_and_writes_the_id(cli, place, tree):
    result = cli("save", tree)
    assert result.exit_code == 0, result.output
    snapshot = Store.open(place).latest()
    assert result.stdout == f"{snapshot.id}\n"
    assert "saved default@1: 2 files" in result.stderr


def test_saves_what_is_said_about_a_snapshot(cli, place, tree):
    result = cli("save", tree, "--series", "run", "--step", "-3", "--tag", "a", "--tag", "b c", "--message", "m",
                 "--metric", "loss=0.25", "--metric", "x=y=nan")  # fmt: skip
    assert result.exit_code == 0, result.output
    snapshot = Store.open(place).latest("run")
    assert (snapshot.step, snapshot.tags, snapshot.message) == (-3, ("a", "b c"), "m")
    assert snapshot.metrics["loss"] == 0.25
    assert str(snapshot.metrics["x=y"]) == "nan"


def test_owners_are_recorded_only_if_asked_for(cli, place, tree):
    cli("save", tree)
    assert all(entry.owner is None for entry in Store.open(place).latest().entries())
    cli("save", tree, "--owner")
    assert all(entry.owner.uid == os.getuid() for entry in Store.open(place).latest().entries())


def test_saves_stdin(cli, place):
    assert cli("save", "-", stdin=b"\0bytes").exit_code == 0
    assert Store.open(place).latest().read_bytes("_dst_cp") == b"\0bytes"


def test_quiet_writes_the_id_only(cli, tree):
    result = cli("save", tree, "--quiet")
    assert result.stderr == ""
    assert len(result.stdout) == 33


def test_document(cli, tree):
    result = cli("save", tree, "--json", "--metric", "a=nan", "--metric", "b=-inf", "--metric", "c=1")
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    assert document["metrics"] == {"a": "NaN", "b": "-Infinity", "c": 1.0}
    assert document["created_at"].endswith("Z")
    assert document["stats"]["files"] == 2
    assert document["warnings"] == []


@pytest.mark.parametrize("metric", ["loss", "loss=", "loss=much", "=="])
def test_a_metric_that_is_none(cli, place, tree, metric):
    result = cli("save", tree, "--metric", metric)
    assert result.exit_code == 2
    assert not place.exists()


def test_a_metric_given_twice(cli, tree):
    assert cli("save", tree, "--metric", "a=1", "--metric", "a=2").exit_code == 2


@pytest.mark.parametrize("options", [["--series", ""], ["--step", "x"], ["--step", 2**63], ["--on-error", "hope"]])
def test_options_that_cannot_be_used(cli, tree, options):
    result = cli("save", tree, *map(str, options))
    assert result.exit_code == 2
    assert result.stdout == ""


def test_what_is_skipped_is_a_warning(cli, tree):
    os.mkfifo(tree / "fifo")
    result = cli("save", tree, "--json", "--quiet")
    assert result.exit_code == 3
    assert "warning: " in result.stderr
    assert "fifo: is a FIFO; not saved" in result.stderr
    (warning,) = json.loads(result.stdout)["warnings"]
    assert warning["path"].endswith("fifo")


def test_a_source_that_is_not_there(cli, place, tmp_path):
    result = cli("save", tmp_path / "nothing", "--json")
    assert result.exit_code == 1
    assert "nothing: not there" in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "SourceNotFound"
    assert Store.open(place).snapshots() == []


def test_a_file_that_cannot_be_read(cli, place, tree, monkeypatch):
    def refuse(_reader, _buffer):
        raise cas_checkpoint.SourceUnreadable("a.txt: cannot be read")

    monkeypatch.setattr("cas_checkpoint.readers.FileReader.readinto", refuse)
    assert cli("save", tree).exit_code == 1
    assert Store.open(place).snapshots() == []
    result = cli("save", tree, "--on-error", "skip")
    assert result.exit_code == 3
    assert "(left out)" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(spawn, place, number):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    heard = partial(signal.signal, number, signal.SIG_DFL)  # under nohup, say, it would be ignored
    process = spawn("save", "-", preexec_fn=heard, **pipes)
    process.stdin.write(bytes(2**21))  # more than pipes hold: when this is done, the save is under way
    process.stdin.flush()
    process.send_signal(number)
    stdout, stderr = process.stdout.read(), process.stderr.read()
    assert process.wait() == 128 + number
    assert stdout == b""
    assert stderr.decode().splitlines() == ["cas-checkpoint: error: interrupted; nothing was committed"]
    assert Store.open(place).snapshots() == []


def test_interrupted_after_the_commit(cli, store, tree, monkeypatch):
    def commit(backend, record):
        real(backend, record)
        raise KeyboardInterrupt

    real = cas_checkpoint.saving.commit
    monkeypatch.setattr(cas_checkpoint.saving, "commit", commit)
    result = cli("save", tree, "--json", "--tag", "x")
    assert result.exit_code == 130
    message = f"interrupted; the snapshot {store.latest().id} was made"
    assert result.stderr == f"cas-checkpoint: error: {message}\n"
    assert json.loads(result.stdout)["error"]["message"] == message


def test_interrupted_before_a_store_is_there(cli, place, tree, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cas_checkpoint.store._create", interrupt)
    result = cli("save", tree)
    assert result.exit_code == 130
    assert "nothing was committed" in result.stderr


def test_interrupted_and_then_the_store_cannot_be_read(cli, store, tree, monkeypatch):
    def interrupt(*_):
        monkeypatch.setattr("cas_checkpoint.store.list_commits", fail)
        raise KeyboardInterrupt

    def fail(*_):
        raise cas_checkpoint.StorageError("no network")

    monkeypatch.setattr("cas_checkpoint.saving.commit", interrupt)
    result = cli("save", tree)
    assert result.exit_code == 130
    assert "could not be found out: no network" in result.stderr


def test_progress_on_a_terminal(on_terminal, place):
    run = on_terminal("save", "-")
    run.process.stdin.write(os.urandom(2**21))
    run.process.stdin.flush()
    run.read_until(b"read", b"new in the store", b"2.0/? MiB")
    assert run.finish() == 0
    snapshot = Store.open(place).latest()
    assert snapshot.stats.logical_size == 2**21
    assert snapshot.id.encode() in run.seen


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_no_progress_if_unwanted(on_terminal, option):
    run = on_terminal("save", "-", option)
    assert run.finish() == 0
    assert b"\x1b" not in run.seen
    assert b"new in the store" not in run.seen
