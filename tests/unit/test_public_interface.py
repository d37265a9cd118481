import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import cas_checkpoint
import cas_checkpoint.errors

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "blake3", "zstandard", "pyfastcdc", "fsspec", "msgpack", "click", "rich")


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_what_is_exported():
    assert set(cas_checkpoint.__all__) == {
        "Checkpoint", "SyncCheckpoint",
        "Store", "StoreInfo", "Snapshot", "SaveStats", "RestoreResult",
        "Entry", "EntryType", "Owner", "PartPlan", "PartReceipt",
        "VerifyReport", "Problem", "AffectedPath", "CollectReport", "RepairReport",
        "Monitor", "Notice",
        "TensorInfo",
        "SnapshotDiff", "Change", "ChangedPath", "ChangedTensor", "ChangedNumbers",
        "__version__",
        *cas_checkpoint.errors.__all__,
    }  # fmt: skip
    assert len(cas_checkpoint.__all__) == len(set(cas_checkpoint.__all__))
    assert dir(cas_checkpoint) == sorted(cas_checkpoint.__all__)


@pytest.mark.parametrize("name", cas_checkpoint.__all__)
def test_every_name_is_there(name):
    value = getattr(cas_checkpoint, name)
    assert value is getattr(cas_checkpoint, name)
    assert name in ("__version__", getattr(value, "__name__", ""))


def test_star_import():
    names = {}
    exec("from cas_checkpoint import *", names)
    assert set(cas_checkpoint.__all__) <= set(names)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cas_checkpoint.nothing


def test_type_checkers_see_the_names_where_they_are_found_at_run_time():
    (block,) = (node for node in ast.parse(Path(cas_checkpoint.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    homes = {name: f"cas_checkpoint.{cas_checkpoint._HOMES.get(name, 'errors')}" for name in cas_checkpoint.__all__}
    assert seen == homes


@pytest.mark.parametrize("module", ["cas_checkpoint", "cas_checkpoint.errors"])
def test_importing_loads_nothing_heavy(module):
    loaded = run(f"import {module}, sys; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_the_command_line_loads_nothing_but_click():
    loaded = run("import cas_checkpoint.cli, sys; print(*sys.modules)").split()
    assert set(HEAVY) & set(loaded) == {"click"}
    assert [name for name in loaded if name in ("cas_checkpoint.store", "asyncio")] == []


def test_help_starts_quickly():
    """The aim is 200 ms of CPU; three times that leaves room for slow machines and coverage."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run("import sys; from cas_checkpoint.cli import main; sys.argv[1:] = ['--help']; main()")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3 * 0.2
