"""A store, a tree to save, and three ways to run the command line: in this process, in another, and on a terminal."""

import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cas_checkpoint import Store
from cas_checkpoint.cli import commands

PROGRAM = [sys.executable, "-m", "cas_checkpoint"]


@pytest.fixture
def place(tmp_path):
    """Where the store is, or will be."""
    return tmp_path / "store"


@pytest.fixture
def environment(place):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAS_CHECKPOINT", "COLUMNS"))}
    root = str(Path(__file__).parents[2])
    return kept | {"CAS_CHECKPOINT_STORE": str(place), "PYTHONPATH": root, "TERM": "xterm", "COLUMNS": "100"}


@pytest.fixture
def tree(tmp_path):
    """A directory with a small file, one too large for a commit, an empty directory and a symlink."""
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_bytes(b"hello\n")
    (root / "sub" / "b.bin").write_bytes(random.Random(1).randbytes(300_000))
    (root / "link").symlink_to("a.txt")
    return root


@pytest.fixture
def store(place):
    return Store.open(place, create=True, durable=False)


@pytest.fixture
def saved(store, tree):
    """The one snapshot of the store, of the tree."""
    return store.save(tree, step=7, tags=["best"], message="first", metrics={"loss": 0.5})


@pytest.fixture
def cli(environment):
    """Run the command line in this process."""

    def run(*arguments, stdin=None, **environ):
        runner = CliRunner(env={**environment, **environ})
        return runner.invoke(commands, [os.fsdecode(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture
def spawn(environment):
    """Start the command line in another process."""
    started = []

    def start(*arguments, **options):
        process = subprocess.Popen([*PROGRAM, *arguments], env=environment, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


class OnTerminal:
    """A running command whose stdout and stderr are a terminal."""

    def __init__(self, spawn, arguments):
        self._master, slave = pty.openpty()
        self.process = spawn(*arguments, stdin=subprocess.PIPE, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = b""

    def read_until(self, *wanted):
        while not all(text in self.seen for text in wanted):
            assert self._read(), self.seen

    def finish(self):
        """Close stdin, wait for the end, and return the exit code."""
        self.process.stdin.close()
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait()

    def _read(self):
        try:
            piece = os.read(self._master, 2**16)
        except OSError:  # how Linux tells that nobody has the terminal open any more
            piece = b""
        self.seen += piece
        return piece


@pytest.fixture
def on_terminal(spawn):
    """Start the command line on a terminal."""
    return lambda *arguments: OnTerminal(spawn, arguments)


@pytest.fixture
def damage(place):
    """Flip one bit of the data in the only pack of the store."""

    def flip():
        (pack,) = (place / "packs").iterdir()
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)

    return flip
