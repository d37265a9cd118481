import json

import pytest
from click.testing import CliRunner

from cas_checkpoint.cli.repair import repair_command


@pytest.fixture
def repair(environment):
    return lambda *arguments: CliRunner(env=environment).invoke(repair_command, arguments)


def test_there_is_nothing_to_repair(repair, saved):
    result = repair()
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing to repair" in result.stderr


def test_a_flipped_bit(cli, repair, place, saved, damage):
    damage()
    result = repair()
    assert result.exit_code == 12
    assert result.stdout == f"lost     {saved.id}  sub/b.bin\n"
    assert "1 problem found: 1 object put aside, " in result.stderr
    assert "0 problems left, 1 file lost" in result.stderr
    assert len(list((place / "quarantine").iterdir())) == 1
    assert "in quarantine" in cli("verify").stderr


def test_what_was_saved_again_is_healed(cli, repair, saved, tree, damage):
    damage()
    repair()
    cli("save", tree, "--series", "again", "--no-files-cache")
    result = repair()
    assert result.exit_code == 0
    assert result.stdout == f"healed   {saved.id}  sub/b.bin\n"
    assert "1 file healed" in result.stderr
    assert "all is well" in cli("verify").stderr


def test_a_dry_run(repair, place, saved, damage):
    damage()
    result = repair("--dry-run")
    assert result.exit_code == 12
    assert "1 object would be put aside" in result.stderr
    assert not (place / "quarantine").exists()


def test_document(repair, saved, damage):
    damage()
    document = json.loads(repair("--json", "--quiet").stdout)
    assert not document["ok"]
    assert document["lost"] == [{"snapshot": saved.id, "path": "sub/b.bin", "tensors": []}]
    assert [problem["snapshots"] for problem in document["problems"]] == [[saved.id]]
    assert (document["left"], document["healed"], document["dry_run"]) == ([], [], False)
    assert [key.partition("/")[0] for key in document["quarantined"]] == ["packs"]


def test_what_cannot_be_repaired_is_told(repair, place, saved):
    (manifest,) = (place / "manifests").iterdir()
    manifest.unlink()
    result = repair()
    assert result.exit_code == 12
    assert result.stdout.startswith(f"problem  manifests/{saved.id}: ")


@pytest.mark.parametrize("at", [3, 9, 60])
def test_a_flipped_bit_in_the_header(cli, repair, place, saved, at):
    header = place / "cas-checkpoint"
    whole = header.read_bytes()
    header.write_bytes(bytes([*whole[:at], whole[at] ^ 4, *whole[at + 1 :]]))
    assert cli("verify").exit_code in {12, 13}
    assert repair("--dry-run").exit_code in {12, 13}
    result = repair()
    assert result.exit_code == 0
    assert "header had a flipped bit" in result.stderr
    assert header.read_bytes() == whole


def test_a_header_that_is_damaged_worse(repair, place, saved):
    (place / "cas-checkpoint").write_bytes(b"nothing of the kind")
    assert repair().exit_code == 12
    assert (place / "cas-checkpoint").read_bytes() == b"nothing of the kind"


def test_flipped_bits_that_were_undone_are_told(repair, place, saved):
    (manifest,) = (place / "manifests").iterdir()
    whole = manifest.read_bytes()
    manifest.write_bytes(bytes([*whole[:50], whole[50] ^ 1, *whole[51:]]))
    result = repair()
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 flipped bit undone" in result.stderr
    assert manifest.read_bytes() == whole
