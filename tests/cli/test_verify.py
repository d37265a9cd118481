import json

import numpy as np
import pytest
from containers import safetensors

from cas_checkpoint import Store
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import PackId


def test_all_is_well(cli, saved):
    result = cli("verify")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("1 snapshot, 1 pack, ")
    assert "all is well" in result.stderr


def test_the_structure_alone_needs_no_data(cli, saved, damage):
    damage()
    result = cli("verify", "--depth", "structure", "--json")
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
    assert document["lost"] == [{"snapshot": saved.id, "path": "sub/b.bin", "tensors": []}]


def test_tensors_of_a_lost_file_are_named(cli, place):
    arrays = {f"layer.{number}": np.random.default_rng(number).normal(size=(128, 128)) for number in range(5)}
    store = Store.open(place, create=True)
    store.save({"model.safetensors": safetensors(arrays)})
    (pack,) = (place / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    footer = read_footer(store._backend, PackId(bytes.fromhex(pack.name)))
    for offset, size in zip(footer.offsets.tolist(), footer.plain_sizes.tolist(), strict=True):
        if size == 128 * 128 * 8:
            data[offset + 1000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    names = sorted(arrays)
    (lost,) = [line for line in cli("verify").stdout.splitlines() if line.startswith("lost")]
    assert lost.endswith(f"  model.safetensors  (tensors: {', '.join(names[:3])} and 2 more)")
    assert json.loads(cli("verify", "--json").stdout)["lost"][0]["tensors"] == names


@pytest.mark.parametrize("kind", ["packs", "manifests"])
def test_a_missing_object(cli, place, saved, kind):
    (item,) = (place / kind).iterdir()
    item.unlink()
    result = cli("verify", "--depth", "structure")
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


def test_a_sample(cli, saved, damage):
    assert cli("verify", "--sample", "1").exit_code == 0
    damage()
    result = cli("verify", "--sample", "1", "--seed", "3")
    assert result.exit_code == 12
    assert f"lost     {saved.id}  sub/b.bin" in result.stdout
    some = [json.loads(cli("verify", "--depth", "sample", "--json", "--seed", "5").stdout)["bytes_read"] for _ in "12"]
    assert some[0] == some[1] < 300_000


def test_notes_of_an_interrupted_verification(cli, saved, tmp_path):
    notes = tmp_path / "notes"
    assert cli("verify", "--resume", notes).exit_code == 0
    assert not notes.exists()
    notes.write_bytes(b"something else")
    result = cli("verify", "--resume", notes)
    assert result.exit_code == 2
    assert "is not the file of an interrupted verification" in result.stderr
    assert notes.read_bytes() == b"something else"


@pytest.mark.parametrize(
    "options",
    [
        ("--depth", "data", "--sample", "0.5"),
        ("--depth", "structure", "--seed", "1"),
        ("--seed", "1"),
        ("--depth", "sample", "--resume", "notes"),
        ("--sample", "0"),
        ("--depth", "all"),
    ],
)
def test_options_that_do_not_go_together(cli, saved, options):
    assert cli("verify", *options).exit_code == 2
