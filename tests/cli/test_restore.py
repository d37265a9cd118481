import json

import pytest


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def test_restores(cli, saved, tree, target):
    result = cli("restore", "latest", target)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "restored default@1" in result.stderr
    assert "2 files, 0 of them there already" in result.stderr
    for path in ("a.txt", "sub/b.bin"):
        assert (target / path).read_bytes() == (tree / path).read_bytes()
    assert (target / "empty").is_dir()
    assert (target / "link").is_symlink()


def test_restores_some_paths(cli, saved, target):
    assert cli("restore", saved.id[:8], target, "--path", "sub", "--path", "link").exit_code == 0
    assert sorted(path.name for path in target.iterdir()) == ["link", "sub"]


def test_a_path_that_is_not_there(cli, saved, target):
    result = cli("restore", "latest", target, "--path", "sun")
    assert result.exit_code == 1
    assert "holds nothing at 'sun'" in result.stderr


def test_exact_removes_the_rest(cli, saved, target):
    target.mkdir()
    (target / "other").touch()
    assert cli("restore", "latest", target).exit_code == 0
    assert (target / "other").exists()
    assert cli("restore", "latest", target, "--exact").exit_code == 0
    assert not (target / "other").exists()


def test_exact_and_paths_exclude_one_another(cli, saved, target):
    result = cli("restore", "latest", target, "--exact", "--path", "sub", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "UsageError"
    assert not target.exists()


def test_document(cli, saved, target):
    cli("restore", "latest", target, "--path", "a.txt")
    document = json.loads(cli("restore", "latest", target, "--json").stdout)
    assert document == {
        "snapshot": saved.id,
        "target": str(target),
        "files": 2,
        "files_unchanged": 1,
        "bytes_written": 300_000,
        "lost": [],
        "warnings": [],
    }


def test_what_could_not_be_done_in_full_is_a_warning(cli, saved, target, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.utime", refuse)
    result = cli("restore", "latest", target, "--json", "--path", "a.txt")
    assert result.exit_code == 3
    assert "a.txt: time not set (Operation not permitted)" in result.stderr
    assert [warning["path"] for warning in json.loads(result.stdout)["warnings"]] == [f"{target}/a.txt"]


def test_damage(cli, saved, target, damage):
    damage()
    result = cli("restore", "latest", target)
    assert result.exit_code == 12
    assert "packs/" in result.stderr
    assert not (target / "sub" / "b.bin").exists()


def test_what_is_damaged_may_be_left_out(cli, saved, target, damage):
    damage()
    result = cli("restore", "latest", target, "--damaged", "skip", "--json")
    assert result.exit_code == 12
    assert "1 file left out, damaged in the store" in result.stderr
    document = json.loads(result.stdout)
    assert [item["path"] for item in document["lost"]] == ["sub/b.bin"]
    (warning,) = document["warnings"]
    assert warning["path"] == f"{target}/sub/b.bin"
    assert "packs/" in warning["message"]
    assert (target / "a.txt").exists()
    assert not (target / "sub" / "b.bin").exists()


def test_another_word_for_damage_is_refused(cli, saved, target):
    assert cli("restore", "latest", target, "--damaged", "ignore").exit_code == 2


def test_an_older_snapshot_in_place_of_a_damaged_one(cli, store, saved, tree, target):
    (tree / "a.txt").write_text("later")
    assert cli("save", tree).exit_code == 0
    (commit,) = (key for key in store._backend.names("commits/") if "0002-" in key)
    store._backend.put(commit, [b"damaged"])
    assert cli("restore", "latest", target).exit_code == 12
    result = cli("restore", "latest", target, "--fallback", "previous", "--json")
    assert result.exit_code == 3, result.output
    assert "restored default@1" in result.stderr
    assert "default@2: is damaged, default@1 was restored instead" in result.stderr
    document = json.loads(result.stdout)
    assert document["snapshot"] == saved.id
    assert len(document["warnings"]) == 1
    assert (target / "a.txt").read_text() != "later"


def test_a_fallback_restores_what_is_whole(cli, saved, target):
    result = cli("restore", "latest", target, "--fallback", "previous")
    assert result.exit_code == 0, result.output
    assert "restored default@1" in result.stderr
    assert cli("restore", "latest", target, "--fallback", "previous", "--damaged", "skip").exit_code == 2
    assert cli("restore", "latest", target, "--fallback", "next").exit_code == 2


def test_interrupted(cli, saved, target, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cas_checkpoint.targets.Target.put", interrupt)
    result = cli("restore", "latest", target)
    assert result.exit_code == 130
    assert result.stderr == (
        "cas-checkpoint: error: interrupted; files that are complete stay, nothing partial was left\n"
    )
    assert [path for path in target.rglob("*") if not path.is_dir()] == []


def test_progress_on_a_terminal(on_terminal, saved, target):
    run = on_terminal("restore", "latest", str(target))
    assert run.finish() == 0
    assert b"written" in run.seen
    assert b"restored default@1" in run.seen
