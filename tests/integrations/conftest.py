"""A checkpoint to save, and ways to look at what was restored."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from cas_checkpoint import SyncCheckpoint


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary directories are made; no shared store is in the environment."""
    monkeypatch.delenv("CAS_CHECKPOINT_STORE", raising=False)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def model(tmp_path):
    """A directory with nested, hidden and empty things, links, modes, and times in nanoseconds."""
    root = tmp_path / "model"
    (root / "layers" / "0").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / ".hidden").write_bytes(b"h")
    (root / "config.json").write_bytes(b"{}")
    (root / "layers" / "0" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o750)
    (root / "latest").symlink_to("layers/0/weights.bin")
    (root / "all").symlink_to("layers")
    os.utime(root / "config.json", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    os.utime(root / "layers" / "0", ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_001))
    return root


def _content(path):
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return "directory" if path.is_dir() else path.read_bytes()


@pytest.fixture
def contents():
    """Tell what lies below a directory: each file's bytes, each symlink's target, and the directories."""
    return lambda root: {str(path.relative_to(root)): _content(path) for path in sorted(Path(root).rglob("*"))}


@pytest.fixture
def metadata():
    """Tell the mode of all that lies below a directory, and its time of modification in nanoseconds."""

    def tell(root):
        states = {path.relative_to(root): path.lstat() for path in sorted(Path(root).rglob("*"))}
        return {str(path): (stat.filemode(state.st_mode), state.st_mtime_ns) for path, state in states.items()}

    return tell


@pytest.fixture
def attempt(tmp_path):
    """Make the checkpoint object of attempt N of a task: its own destination, and that of the attempt before."""

    def make(number, **options):
        source = tmp_path / f"attempt-{number - 1}" if number else None
        return SyncCheckpoint(str(tmp_path / f"attempt-{number}"), source and str(source), **options)

    return make


@pytest.fixture
def after(tmp_path, attempt, contents):
    """Tell what the attempt after N restores, with these options."""

    def tell(number, **options):
        path = Path(tempfile.mkdtemp(dir=tmp_path))
        assert attempt(number + 1, **options).restore(path) in (path, None)
        return contents(path)

    return tell
