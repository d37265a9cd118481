import json

import pytest


def test_all_is_well(cli, saved):
    result = cli("verify")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("1 snapshot, 1 pack, ")
    assert "all is well" in result.stderr


def test_structure_only_reads_no_data(cli, saved, damage):
    damage()
    result = cli("verify", "--structure-only", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["bytes_read"] == 0


def test_a_flipped_bit(cli, saved, damage):
    damage()
    result = cli("verify")
    assert result.exit_code == 12
    problem, lost = result.stdout.splitlines()
    assert problem.startswith("problem  packs/")
    assert problem.endswith(f"; needed by {saved.id}")
    assert lost == f"lost     {saved.id}  sub/b.bin"
    assert "1 problem, 1 file lost" in result.stderr


def test_document(cli, saved, damage):
    document = json.loads(cli("verify", "--json").stdout)
    assert (document["ok"], document["problems"], document["lost"], document["snapshots"]) == (True, [], [], 1)
    damage()
    document = json.loads(cli("verify", "--json", "--quiet").stdout)
    assert not document["ok"]
    assert [problem["snapshots"] for problem in document["problems"]] == [[saved.id]]
    assert document["lost"] == [{"snapshot": saved.id, "path": "sub/b.bin"}]


@pytest.mark.parametrize("kind", ["packs", "manifests"])
def test_a_missing_object(cli, place, saved, kind):
    (item,) = (place / kind).iterdir()
    item.unlink()
    result = cli("verify", "--structure-only")
    assert result.exit_code == 12
    assert f"problem  {kind}/{item.name}: " in result.stdout
    assert saved.id in result.stdout


def test_garbage_is_told(cli, place, saved):
    (commit,) = (place / "commits" / "default").iterdir()
    commit.unlink()
    result = cli("verify")
    assert result.exit_code == 0
    assert "2 objects (" in result.stderr
    assert "of no snapshot" in result.stderr


def test_progress_on_a_terminal(on_terminal, saved):
    run = on_terminal("verify")
    assert run.finish() == 0
    assert b"verified" in run.seen
    assert b"all is well" in run.seen
