"""Temporary files of dead writers go; those of living ones stay."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from cas_checkpoint.backends import LocalBackend, temporaries
from cas_checkpoint.backends.temporaries import claim, sweep_temporaries

WRITER = """
import os, sys, time
from cas_checkpoint.backends import LocalBackend
backend = LocalBackend(sys.argv[1], durable=False)
with backend._temporary(backend._path("packs/00"), [b"half of it"]):
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def writer(root):
    process = subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def temporary_files(root):
    return list(root.rglob(".tmp-*"))


def test_the_file_of_a_living_writer_stays_and_that_of_a_dead_one_goes(root, writer):
    assert sweep_temporaries(str(root), 0) == 0
    assert len(temporary_files(root)) == 1
    writer.kill()
    writer.wait()
    assert LocalBackend(root).sweep(3600) == 0
    assert LocalBackend(root).sweep(0) == len(b"half of it")
    assert temporary_files(root) == []


def test_objects_and_other_files_are_not_swept(root):
    backend = LocalBackend(root, durable=False)
    backend.put("packs/00", [b"x"])
    (root / "packs" / "note").write_bytes(b"mine")
    assert backend.sweep(0) == 0
    assert sorted(os.listdir(root / "packs")) == ["00", "note"]


def test_a_writer_whose_file_was_swept_away_before_it_was_claimed_makes_another(root, monkeypatch):
    backend = LocalBackend(root, durable=False)
    claims = []

    def claim_late(descriptor):
        if not claims:
            sweep_temporaries(str(root), 0)
        claims.append(claim(descriptor))
        return claims[-1]

    monkeypatch.setattr("cas_checkpoint.backends.local.claim", claim_late)
    backend.put("packs/00", [b"whole"])
    assert claims == [False, True]
    assert backend.get("packs/00", max_size=9) == b"whole"
    assert temporary_files(root) == []


def test_without_locks_age_protects(root, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(temporaries.fcntl, "flock", no_locks)
    backend = LocalBackend(root, durable=False)
    backend.put("packs/00", [b"x"])
    left = root / "packs" / ".tmp-0123456789abcdef"
    left.write_bytes(b"left")
    assert backend.sweep(0) == 0
    old = time.time() - 2 * 86_400
    os.utime(left, (old, old))
    assert backend.sweep(0) == 4


def test_other_errors_of_locks_are_told(root, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    (root / ".tmp-0123456789abcdef").write_bytes(b"left")
    monkeypatch.setattr(temporaries.fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"):
        sweep_temporaries(str(root), 0)
