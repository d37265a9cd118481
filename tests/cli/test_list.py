import json

import pytest


@pytest.fixture
def three(store, saved):
    return [saved, store.save(b"1", series="other"), store.save(b"2", series="other", tags=["x", "y z"])]


def test_lists_newest_first(cli, three):
    result = cli("list")
    assert result.exit_code == 0
    titles, *rows = result.stdout.splitlines()
    assert titles.split() == ["id", "snapshot", "created", "step", "files", "size", "new", "tags", "metrics", "message"]
    assert [row.split()[:2] for row in rows] == [
        [three[2].id, "other@2"],
        [three[1].id, "other@1"],
        [three[0].id, "default@1"],
    ]
    assert rows[2].split()[3:] == ["7", "2", "300006", "300006", "best", "loss=0.5", "first"]
    assert rows[1].split()[3:] == ["-", "1", "1", "1", "-", "-", "-"]
    assert "x,y z" in rows[0]


def test_one_series(cli, three):
    assert len(cli("list", "--series", "other", "--quiet").stdout.splitlines()) == 2


def test_nothing_to_list(cli, store):
    result = cli("list", "--series", "none")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "there are no snapshots in the series none\n"
    assert cli("list", "--json").stdout == "[]\n"


def test_document(cli, three):
    documents = json.loads(cli("list", "--json").stdout)
    assert [document["id"] for document in documents] == [snapshot.id for snapshot in reversed(three)]
    first = documents[-1]
    assert (first["series"], first["sequence"], first["step"], first["tags"]) == ("default", 1, 7, ["best"])
    assert (first["metrics"], first["message"]) == ({"loss": 0.5}, "first")


def test_a_damaged_commit(cli, place, three):
    (commit,) = (place / "commits" / "default").iterdir()
    commit.chmod(0o600)
    commit.write_bytes(b"")
    result = cli("list")
    assert result.exit_code == 12
    assert len(result.stdout.splitlines()) == 3
    assert f"commits/default/{commit.name}" in result.stderr
    result = cli("list", "--json")
    assert result.exit_code == 12
    assert len(json.loads(result.stdout)) == 2


def test_on_a_terminal(on_terminal, three):
    run = on_terminal("list")
    assert run.finish() == 0
    assert three[0].id[:12].encode() in run.seen
    assert b"293.0 KiB" in run.seen


def test_on_a_terminal_control_characters_are_shown(on_terminal, store):
    store.save(b"", series="\x1b]0;owned\x07", message="\x1b[2Jgone [bold]markup[/bold]")
    run = on_terminal("list")
    assert run.finish() == 0
    assert b"\x1b]0" not in run.seen
    assert b"\x1b[2J" not in run.seen
    assert b"\x07" not in run.seen
    assert b"\\x1b" in run.seen
    assert b"[bold]" in run.seen
