"""The machine for checkpoint classes: ours in both modes, flytekit's as far as its contract goes, its torn restore."""

import io
import os
import re
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from cas_checkpoint import SyncCheckpoint
from cas_checkpoint.testing import CheckpointMachine, Node, kill_during

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


def two_models(root):
    """Return two models, each of many files, and a set that tells them apart."""
    for kind in ("old", "new"):
        (root / kind).mkdir()
        for number in range(100):
            (root / kind / f"layer{number}").write_bytes(kind.encode() * 1000)
    return str(root / "old"), str(root / "new")


def kinds_restored(make, root, source):
    target = root / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    assert make(str(root / "next"), source).restore(target) is not None
    return {path.read_bytes()[:3] for path in target.rglob("layer*")}


def test_flytekits_own_class_restores_a_mixture_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what is killed leaves something there
    made = []
    make, dest = theirs(made), str(tmp_path / "dest")
    old, new = two_models(tmp_path)
    make(dest, None).save(old)
    assert kill_during(lambda: make(dest, None).save(new), at_file=50)
    kinds = kinds_restored(make, tmp_path, dest)
    remove(made)
    assert {b"old", b"new"} <= kinds  # and perhaps a file that was cut short


def test_ours_restores_the_old_or_the_new_one_whenever_it_was_killed(tmp_path):
    def make(dest, src):
        return SyncCheckpoint(dest, src, durable=False)

    old, new = two_models(tmp_path)
    make(str(tmp_path / "before"), None).save(old)
    kinds, killed, number = [], True, 0
    while killed:
        number += 1
        dest = str(tmp_path / f"dest{number}")
        shutil.copytree(tmp_path / "before", dest)
        killed = kill_during(lambda dest=dest: make(dest, None).save(new), at_file=number)
        kinds.append(kinds_restored(make, tmp_path, dest))
    assert number > 3  # a pack, a manifest, a commit at least
    assert kinds[0] == {b"old"}
    assert kinds[-1] == {b"new"}
    assert all(len(found) == 1 for found in kinds)


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
        (SavesInTwoSteps, "restored {'_dst_cp': 10}, where it should be"),
        (RestoresInTwoSteps, "restored {'beginning': 0}, where it should be"),
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


@pytest.fixture
def machine(request):
    class Machine(CheckpointMachine):
        def make(self, dest, src):
            return request.param(dest, src, durable=False)

    made = Machine()
    made.begin()
    yield made
    made.teardown()


@pytest.mark.parametrize("machine", [ReadsAnything], indirect=True)
def test_reading_one_of_several_files_is_wrong(machine):
    machine.save_a_directory(tree={b"a": Node("file"), b"b": Node("file")})
    with pytest.raises(AssertionError, match="read b'' where there are several files"):
        machine.retry()


@pytest.mark.parametrize("machine", [StartsOver], indirect=True)
def test_saving_all_that_a_reader_had_is_wrong(machine):
    machine.save_what_a_reader_gives(data=b"skipped, saved", skipped=9)
    with pytest.raises(AssertionError, match=r"restored {'_dst_cp': 14}, where it should be {'_dst_cp': 5}"):
        machine.retry()


def test_what_is_killed_must_not_fail_by_itself():
    with pytest.raises(RuntimeError, match="failed by itself"):
        kill_during(lambda: 1 / 0, after=5)
    assert kill_during(lambda: None, after=5) is False
    assert kill_during(lambda: time.sleep(5)) is True


def test_a_process_is_killed_at_one_file(tmp_path):
    def write():
        for name in "abc":
            (tmp_path / name).write_bytes(b"x")

    assert kill_during(write, at_file=3) is True
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert kill_during(write, at_file=4) is False
