import json
import os
import re

import pytest


@pytest.fixture
def garbage(store, saved):
    """A store with 400,000 bytes that no snapshot needs."""
    store.forget(store.save(os.urandom(400_000)))
    return store


def test_frees_what_nobody_needs_and_says_how_much(cli, place, garbage):
    assert len(list((place / "packs").iterdir())) == 2
    result = cli("collect")
    assert result.exit_code == 0
    assert re.search(r"39[01]\.\d KiB freed: 1 pack deleted", result.stderr)
    assert len(list((place / "packs").iterdir())) == 1
    assert cli("verify").exit_code == 0


def test_a_dry_run_only_tells(cli, place, garbage):
    document = json.loads(cli("collect", "--dry-run", "--json").stdout)
    assert document["dry_run"]
    assert document["packs_deleted"] == 1
    assert document["bytes_freed"] > 400_000
    assert len(list((place / "packs").iterdir())) == 2
    assert "would be freed" in cli("collect", "-n").stderr


@pytest.mark.parametrize("duration", ["600", "10m", "1h", "0.5d"])
def test_a_grace_period_is_kept(cli, place, garbage, duration):
    result = cli("collect", "--grace", duration)
    assert "wait for the grace period" in result.stderr
    assert len(list((place / "packs").iterdir())) == 2


@pytest.mark.parametrize(
    "arguments", [["--grace", "soon"], ["--grace", "-1"], ["--grace", "1y"], ["--repack", "0"], ["--repack", "2"]]
)
def test_a_mistake_is_told(cli, store, arguments):
    assert cli("collect", *arguments).exit_code == 2


def test_repacking_can_be_left_out(cli, store):
    files = {f"f{number}": os.urandom(300_000) for number in range(5)}
    first = store.save(files)
    store.save({"f1": files["f1"]})
    store.forget(first)
    assert json.loads(cli("collect", "--no-repack", "--json").stdout)["packs_repacked"] == 0
    assert json.loads(cli("collect", "--repack", "0.95", "--json").stdout)["packs_repacked"] == 0
    assert json.loads(cli("collect", "--json").stdout)["packs_repacked"] == 1


def test_a_save_that_keeps_collects_before_it_ends(cli, place, store, tree):
    for number in range(3):
        (tree / "sub" / "b.bin").write_bytes(os.urandom(300_000))
        assert cli("save", str(tree), "--keep", "1").exit_code == 0, number
    assert len(store.snapshots()) == 1
