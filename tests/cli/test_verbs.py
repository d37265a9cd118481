"""What all verbs have in common: the store, the help, and how they end."""

import json
import os
import signal
import subprocess

import pytest

import cas_checkpoint.errors
from cas_checkpoint import Store
from cas_checkpoint.cli import commands
from cas_checkpoint.cli.interrupts import Interrupted, handle_interrupts
from cas_checkpoint.errors import CasCheckpointError

EXISTING = {
    "restore": ["latest", "target"],
    "list": [],
    "show": ["latest"],
    "cat": ["latest", "a"],
    "tensors": ["latest", "a"],
    "diff": ["latest", "latest"],
    "forget": ["latest"],
    "collect": [],
    "verify": [],
    "repair": [],
    "info": [],
}
ALL = {"save": ["."], **EXISTING}
each_verb = pytest.mark.parametrize(("verb", "arguments"), ALL.items(), ids=list(ALL))
each_existing_verb = pytest.mark.parametrize(("verb", "arguments"), EXISTING.items(), ids=list(EXISTING))


def test_help_tells_every_verb_and_exit_code(cli):
    result = cli("--help")
    assert result.exit_code == 0
    shown = result.stdout.split("Commands:")[1]
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")][: len(ALL)] == list(ALL)
    for name in cas_checkpoint.errors.__all__:
        assert f" {getattr(cas_checkpoint.errors, name).exit_code}  " in shown
    for code in (0, 3, 130, 141):
        assert f" {code}  " in shown


@each_verb
def test_help_of_a_verb(cli, verb, arguments):
    result = cli(verb, "--help")
    assert result.exit_code == 0
    for option in ("--store", "--json", "--quiet", "CAS_CHECKPOINT_STORE"):
        assert option in result.stdout


def test_version(cli):
    assert cli("--version").stdout.startswith("cas-checkpoint, version ")


def test_an_unknown_verb(cli):
    assert cli("destroy").exit_code == 2


@each_verb
def test_no_store_given(cli, verb, arguments):
    result = cli(verb, *arguments, "--json", CAS_CHECKPOINT_STORE=None)
    assert result.exit_code == 2
    assert "use --store URL, or set CAS_CHECKPOINT_STORE" in result.stderr
    assert json.loads(result.stdout)["error"]["exit_code"] == 2


@each_existing_verb
def test_no_store_there(cli, place, verb, arguments):
    result = cli(verb, *arguments)
    assert result.exit_code == 10
    assert result.stderr.startswith(f"cas-checkpoint: error: there is no store at {place}")
    assert result.stdout == ""
    assert not place.exists()


def test_the_option_goes_before_the_environment(cli, store, tmp_path):
    assert cli("list", "--store", tmp_path / "other").exit_code == 10
    assert cli("list", "--store", store.url, CAS_CHECKPOINT_STORE=str(tmp_path)).exit_code == 0


def test_something_else_in_its_place(cli, place):
    place.mkdir()
    (place / "cas-checkpoint").write_text("my notes")
    result = cli("list", "--json")
    assert result.exit_code == 10
    assert json.loads(result.stdout)["error"]["type"] == "NotAStore"


def test_a_lost_header(cli, place, saved):
    (place / "cas-checkpoint").unlink()
    assert cli("list").exit_code == 12
    assert cli("save", ".").exit_code == 12


def test_a_store_of_the_future(cli, place, store):
    header = place / "cas-checkpoint"
    data = bytearray(header.read_bytes())
    data[9] = 2
    header.chmod(0o600)
    header.write_bytes(data)
    result = cli("list", "--json")
    assert result.exit_code == 13
    assert json.loads(result.stdout)["error"]["type"] == "UnsupportedStore"


def test_each_error_ends_with_its_code(cli, store, monkeypatch):
    for name in cas_checkpoint.errors.__all__:
        kind = getattr(cas_checkpoint.errors, name)

        def fail(*_, kind=kind):
            raise kind("it\nfailed")

        monkeypatch.setattr(Store, "info", fail)
        result = cli("info", "--json")
        assert result.exit_code == kind.exit_code
        assert len(result.stderr.splitlines()) == 1
        assert json.loads(result.stdout)["error"]["type"] == name


@pytest.mark.parametrize("error", [RuntimeError("boom"), CasCheckpointError("boom")])
def test_no_traceback_unless_asked_for(cli, store, monkeypatch, error):
    def fail(_store):
        raise error

    monkeypatch.setattr(Store, "info", fail)
    result = cli("info")
    assert result.exit_code == 1
    assert "boom" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in cli("info", CAS_CHECKPOINT_TRACEBACK="1").stderr


def test_out_of_memory(cli, store, monkeypatch):
    def fail(_store):
        raise MemoryError

    monkeypatch.setattr(Store, "info", fail)
    result = cli("info")
    assert (result.exit_code, result.stderr) == (1, "cas-checkpoint: error: out of memory\n")


def test_interrupted(cli, store, monkeypatch):
    def interrupt(_store):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "info", interrupt)
    result = cli("info")
    assert (result.exit_code, result.stderr) == (130, "cas-checkpoint: error: interrupted\n")


def test_nobody_listens(spawn, tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = spawn("list", stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    assert process.stdout.read() == b""
    assert process.wait() == 10


@pytest.fixture
def _handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_only_the_first_signal_interrupts_and_the_third_ends():
    handle_interrupts()
    with pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.usefixtures("_handlers")
def test_signals_that_are_ignored_stay_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handle_interrupts()
    signal.raise_signal(signal.SIGHUP)


def test_every_verb_has_a_summary_that_fits():
    assert all(len(command.short_help) < 60 for command in commands.commands.values())


@pytest.mark.parametrize(("verb", "arguments"), [("save", ["."]), ("restore", ["latest", "target"]), ("verify", [])])
def test_the_number_of_threads_is_an_option(cli, store, saved, tmp_path, monkeypatch, verb, arguments):
    monkeypatch.chdir(tmp_path / "tree")
    real, opened = Store.open, []
    monkeypatch.setattr(
        Store, "open", lambda *args, **options: opened.append(options["workers"]) or real(*args, **options)
    )
    assert cli(verb, *arguments, "--workers", "3").exit_code == 0
    assert cli(verb, *arguments).exit_code == 0
    assert opened == [3, None]
    assert cli(verb, *arguments, "--workers", "0").exit_code == 2
