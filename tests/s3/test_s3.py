"""The store on a real S3 server: as a backend, as flytekit's checkpoints, from the shell, and under attack."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from containers import safetensors

from cas_checkpoint import Store, SyncCheckpoint
from cas_checkpoint.backends import FsspecBackend, generic, open_backend
from cas_checkpoint.testing import BackendConformance

TOOLS = Path(__file__).parents[2] / "tools"


def noise(size, seed):
    return random.Random(seed).randbytes(size)


def command(*arguments):
    program = [sys.executable, "-m", "cas_checkpoint", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


class TestConformance(BackendConformance):
    """What every backend must do."""

    writers = 4
    rounds = 5

    @pytest.fixture(autouse=True)
    def _place(self, url, monkeypatch):
        monkeypatch.setattr(generic, "_PAUSES", (0, 0))
        self._url, self._count = url, 0

    def make_backend(self):
        self._count += 1
        return FsspecBackend(f"{self._url}/{self._count}")


def test_a_store_is_used_from_the_shell(url, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "large").write_bytes(noise(40 * 2**20, 1))  # more than one pack
    (source / "sub" / "small").write_bytes(b"x")
    first = command("save", "--store", url, source)
    assert first.returncode == 0, first.stderr
    (source / "sub" / "small").write_bytes(b"y")
    second = command("save", "--store", url, source, "--no-files-cache")
    assert "40.0 MiB known already" in second.stderr, second.stderr
    assert "put-if-absent  yes" in command("info", "--store", url).stdout
    for name, content in ((first, b"x"), (second, b"y")):
        target = tmp_path / name.stdout.strip()
        restored = command("restore", "--store", url, name.stdout.strip(), target)
        assert restored.returncode == 0, restored.stderr
        assert (target / "large").read_bytes() == noise(40 * 2**20, 1)
        assert (target / "sub" / "small").read_bytes() == content
    assert command("forget", "--store", url, first.stdout.strip()).returncode == 0
    assert command("collect", "--store", url).returncode == 0
    assert "all is well" in command("verify", "--store", url).stderr


def test_attempts_of_a_task_share_a_store(url, tmp_path):
    first = SyncCheckpoint(checkpoint_dest=f"{url}/attempt-0")
    assert not first.prev_exists()
    first.write(b"state of the first")
    second = SyncCheckpoint(checkpoint_dest=f"{url}/attempt-1", checkpoint_src=f"{url}/attempt-0")
    assert second.prev_exists()
    assert second.read() == b"state of the first"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(noise(3_000_000, 2))
    second.save(tmp_path / "model")
    third = SyncCheckpoint(checkpoint_dest=f"{url}/attempt-2", checkpoint_src=f"{url}/attempt-1")
    (tmp_path / "restored").mkdir()
    third.restore(tmp_path / "restored")
    assert (tmp_path / "restored" / "weights").read_bytes() == noise(3_000_000, 2)


def test_tensors_are_stored_as_differences_and_read_in_slices(url):
    generator = np.random.default_rng(1)
    store, states = Store.open(url, create=True), []
    values = generator.normal(0, 0.05, (1024, 512)).astype(np.float32)
    for _ in range(3):
        states.append(values)
        store.save({"model.safetensors": safetensors({"weight": values})})
        values = values + generator.normal(0, 1e-5, values.shape).astype(np.float32)
    sizes = [snapshot.stats.bytes_written for snapshot in store.snapshots()]
    assert len(sizes) == 3
    assert sorted(sizes)[1] < 0.8 * max(sizes)
    for number, state in enumerate(states, 1):
        tensor = store.snapshot(f"default@{number}").read_tensor("model.safetensors", "weight", start=700, stop=900)
        assert np.array_equal(tensor, state[700:900])
    store.forget("default@1")
    store.collect()
    assert store.verify().ok
    assert store.snapshot("default@3").read_bytes("model.safetensors") == safetensors({"weight": states[2]})


def test_ranks_save_their_own_files(url):
    store = Store.open(url, create=True)
    plan = store.begin_parts(parts=2)
    parts = [Store.open(url).save_part({f"rank{n}": noise(300_000, n)}, plan, part=n) for n in range(2)]
    snapshot = store.commit_parts(plan, parts)
    assert {f"rank{n}": snapshot.read_bytes(f"rank{n}") for n in range(2)} == {
        f"rank{n}": noise(300_000, n) for n in range(2)
    }
    assert not list(open_backend(url).list("parts/"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "check the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}, "could not connect"),
    ],
    ids=["the key", "the server"],
)
def test_what_is_wrong_is_told_without_a_traceback(url, monkeypatch, wrong, says):
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    result = command("list", "--store", url)
    assert result.returncode == 1
    assert result.stderr.startswith("cas-checkpoint: error:")
    assert "Traceback" not in result.stderr
    assert re.search(says, result.stderr, re.IGNORECASE), result.stderr


def test_killed_processes_lose_nothing(url):
    program = [sys.executable, TOOLS / "thrash.py", "--seconds", "10", "--seed", "1", "--url", url]
    result = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "lost or wrong: nothing" in result.stdout
