"""The machine for checkpoint classes: ours in both modes, flytekit's as far as its contract goes, its torn restore."""

import io
import os
import re
import tempfile
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from cas_checkpoint import SyncCheckpoint
from cas_checkpoint.testing import CheckpointMachine, kill_during

searching = settings(
    deadline=None,
    max_examples=200,
    stateful_step_count=10,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
quick = settings(deadline=None, max_examples=15, stateful_step_count=12, suppress_health_check=[HealthCheck.too_slow])


class Ours(CheckpointMachine):
    def make(self, dest, src):
        return SyncCheckpoint(dest, src, durable=False)


class OursThatAccumulates(CheckpointMachine):
    accumulates = True

    def make(self, dest, src):
        return SyncCheckpoint(dest, src, accumulate=True, durable=False)


class OursInASharedStore(CheckpointMachine):
    def make(self, dest, src):
        return SyncCheckpoint(dest, src, store=str(self._place / "store"), durable=False, keep=3)


def theirs(made):
    """Return how to make flytekit's own objects; they are noted, for their temporary directories have to go."""
    flytekit = pytest.importorskip("flytekit.core.checkpointer")

    def make(dest, src):
        os.makedirs(dest, exist_ok=True)
        made.append(flytekit.SyncCheckpoint(dest, src))
        return made[-1]

    return make


def remove(made):
    for checkpoint in made:
        checkpoint._td.cleanup()


class Theirs(CheckpointMachine):
    """Flytekit's own class, not killed: it promises nothing then."""

    accumulates = True
    kills = False
    replaces_kinds = False

    def __init__(self):
        super().__init__()
        self.made = []

    def make(self, dest, src):
        return theirs(self.made)(dest, src)

    def teardown(self):
        remove(self.made)
        super().teardown()


TestOurs = Ours.TestCase
TestOursThatAccumulates = OursThatAccumulates.TestCase
TestOursInASharedStore = OursInASharedStore.TestCase
TestTheirs = Theirs.TestCase
for _case in (TestOurs, TestOursThatAccumulates, TestOursInASharedStore, TestTheirs):
    _case.settings = quick
del _case


def slow_files(root, count):
    root.mkdir()
    for number in range(count):
        (root / f"layer{number}").write_bytes(b"old" * 1000)
    return root


def restored(make, tmp_path, name):
    target = tmp_path / name
    target.mkdir()
    assert make(str(tmp_path / "next"), str(tmp_path / "dest")).restore(target) is not None
    return {path.name: path.read_bytes()[:3] for path in target.rglob("*") if path.is_file()}


def kill_halfway(make, tmp_path, count=300):
    """Save a checkpoint; be killed while saving the next, when a part of it has come; return what is restored then."""
    model = slow_files(tmp_path / "model", count)
    make(str(tmp_path / "dest"), None).save(str(model))
    for path in model.iterdir():
        path.write_bytes(b"new" * 1000)
    dest = tmp_path / "dest"

    def is_halfway():
        changed = [path for path in dest.rglob("layer*") if path.stat().st_size and path.read_bytes()[:3] == b"new"]
        return len(changed) > count // 4

    started = time.monotonic()
    killed = kill_during(
        lambda: make(str(dest), None).save(str(model)),
        when=lambda: is_halfway() or time.monotonic() > started + 20,
    )
    return killed, restored(make, tmp_path, "target")


def test_flytekits_own_class_restores_a_mixture_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what is killed leaves something there
    made = []
    killed, found = kill_halfway(theirs(made), tmp_path)
    remove(made)
    assert killed
    assert {b"old", b"new"} <= set(found.values())  # and perhaps files that were cut short


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_ours_restores_the_old_or_the_new_one_after_a_kill(tmp_path, delay):
    def make(dest, src):
        return SyncCheckpoint(dest, src, durable=False)

    model = slow_files(tmp_path / "model", 300)
    make(str(tmp_path / "dest"), None).save(str(model))
    for path in model.iterdir():
        path.write_bytes(b"new" * 1000)
    kill_during(lambda: make(str(tmp_path / "dest"), None).save(str(model)), after=delay)
    assert len(set(restored(make, tmp_path, "target").values())) == 1


class NeverThere(SyncCheckpoint):
    def prev_exists(self):
        return False


class LosesFiles(SyncCheckpoint):
    def restore(self, path=None):
        restored = super().restore(path)
        if restored:
            for file in sorted(restored.rglob("*"))[1:]:
                file.is_file() and file.unlink()
        return restored


class ReadsAnything(SyncCheckpoint):
    def read(self):
        try:
            return super().read()
        except ValueError:
            return b""


class StartsOver(SyncCheckpoint):
    def save(self, cp):
        if isinstance(cp, io.IOBase):
            cp.seek(0)
        return super().save(cp)


class SavesInTwoSteps(SyncCheckpoint):
    def save(self, cp):
        if os.getpid() != PARENT:  # it will be killed
            super().write(b"half of it")
            time.sleep(5)
        return super().save(cp)


class RestoresInTwoSteps(SyncCheckpoint):
    def restore(self, path):
        if any(Path(path).iterdir()):
            return Path(path)  # so it is there already
        if os.getpid() != PARENT:  # it will be killed
            (Path(path) / "beginning").touch()
            time.sleep(5)
        return super().restore(path)


PARENT = os.getpid()


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (NeverThere, "prev_exists\\(\\) is false"),
        (LosesFiles, "restored {.*}, where it should be {.*}"),
        (ReadsAnything, "read b'' where there are several files"),
        (StartsOver, "restored {'_dst_cp': .*}, where it should be {'_dst_cp': .*}|read .*, not .*"),
        (SavesInTwoSteps, "restored {'_dst_cp': 10}, where it should be"),
        (RestoresInTwoSteps, "where it should be"),
    ],
)
def test_a_class_that_is_wrong_is_found(kind, complaint):
    class Machine(CheckpointMachine):
        kills = "TwoSteps" in kind.__name__
        kill_within = 0.2

        def make(self, dest, src):
            return kind(dest, src, durable=False)

    with pytest.raises((AssertionError, Flaky)) as caught:
        run_state_machine_as_test(Machine, settings=searching)
    assert re.search(complaint, "".join(traceback.format_exception(caught.value)))


def test_what_is_killed_must_not_fail_by_itself():
    with pytest.raises(RuntimeError, match="failed by itself"):
        kill_during(lambda: 1 / 0, after=5)
    assert kill_during(lambda: None, after=5) is False
    assert kill_during(lambda: time.sleep(5)) is True
