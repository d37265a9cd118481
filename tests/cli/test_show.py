import json
import os
import subprocess
import sys
from base64 import b64decode

import pytest

from cas_checkpoint.errors import DamagedObject

HOSTILE = b"\xff\x1b[31m\nred"


def test_summary_and_entries(cli, saved):
    result = cli("show", "latest")
    assert result.exit_code == 0
    summary, entries = result.stdout.split("\n\n")
    assert saved.id in summary
    assert "default@1" in summary
    assert "2 files, 6 entries, 293.0 KiB" in summary
    lines = entries.splitlines()
    assert [line.split()[0] for line in lines] == ["d", "f", "d", "l", "d", "f"]
    assert lines[0].endswith("Z .")
    assert lines[3].endswith("Z link -> a.txt")
    assert lines[5].split()[2] == "300000"
    assert lines[5].endswith("Z sub/b.bin")


def test_quiet_shows_entries_only(cli, saved):
    assert len(cli("show", "latest", "--quiet").stdout.splitlines()) == 6


def test_an_empty_snapshot(cli, store):
    store.save({})
    assert cli("show", "latest", "--quiet").stdout == ""
    assert json.loads(cli("show", "latest", "--json").stdout)["entries"] == []


def test_document(cli, saved, tree):
    document = json.loads(cli("show", "latest", "--json").stdout)
    assert document["summary"]["id"] == saved.id
    entries = {entry["path"]: entry for entry in document["entries"]}
    assert entries["link"]["target"] == "a.txt"
    assert entries[""]["type"] == "directory"
    file = entries["sub/b.bin"]
    status = (tree / "sub" / "b.bin").stat()
    assert (file["type"], file["size"], file["mode"]) == ("file", 300_000, f"{status.st_mode & 0o7777:04o}")
    assert file["mtime"].rstrip("Z").rpartition(".")[2] == f"{status.st_mtime_ns % 10**9:09d}"


def test_what_only_some_entries_have(cli, store, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"data")
    os.link(tree / "file", tree / "other")
    with (tree / "sparse").open("wb") as file:
        file.truncate(2**22)
    store.save(tree, owner=True)
    assert "Z other = file" in cli("show", "latest").stdout
    entries = {entry["path"]: entry for entry in json.loads(cli("show", "latest", "--json").stdout)["entries"]}
    assert (entries["other"]["type"], entries["other"]["target"]) == ("hardlink", "file")
    assert entries["file"]["owner"]["uid"] == os.getuid()
    assert entries["sparse"]["size"] == 2**22
    assert entries["sparse"].get("data_size", 2**22) <= 2**22


def test_hostile_names(cli, store):
    store.save({HOSTILE: b"1", b"plain \xc3\xa9": b"2"})
    lines = cli("show", "latest", "--quiet").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(" plain é")
    assert lines[1].endswith(r" \xff\x1b[31m\nred")
    plain, hostile = json.loads(cli("show", "latest", "--json").stdout)["entries"]
    assert plain["path"] == "plain é"
    assert "path_base64" not in plain
    assert hostile["path"] == "\\xff\x1b[31m\nred"
    assert b64decode(hostile["path_base64"]) == HOSTILE


def test_hostile_names_on_a_terminal(on_terminal, store):
    store.save({HOSTILE: b"1"})
    run = on_terminal("show", "latest")
    assert run.finish() == 0
    assert b"\x1b[31m" not in run.seen
    assert rb"\xff\x1b[31m\nred" in run.seen


def test_a_terminal_that_knows_ascii_only(environment, store):
    store.save({"é": b""})
    environment |= {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "cas_checkpoint", "show", "latest", "-q"]
    result = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert result.stdout.endswith(b" \\xe9\n")


def test_nobody_reads(spawn, saved):
    read, write = os.pipe()
    os.close(read)
    process = spawn("show", "latest", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize("ref", ["other@latest", "default@2", "default@x", "abcdef", "no such"])
def test_a_snapshot_that_is_not_there(cli, saved, ref):
    result = cli("show", ref, "--json")
    assert result.exit_code == 11
    assert result.stderr.startswith("cas-checkpoint: error: ")
    assert json.loads(result.stdout)["error"]["type"] == "SnapshotNotFound"


def test_an_ambiguous_reference(cli, store, monkeypatch):
    names = iter([b"\xab" * 15 + b"1", b"\xab" * 15 + b"2"])
    monkeypatch.setattr("cas_checkpoint.saving.random_id", lambda: next(names))
    ids = [store.save(b"").id, store.save(b"").id]
    result = cli("show", "abab")
    assert result.exit_code == 2
    assert all(name in result.stderr for name in ids)
    assert cli("show", ids[0]).exit_code == 0


def test_damage_on_the_way_is_told_in_a_document_that_stays_valid(cli, saved, monkeypatch):
    def entries(self):
        yield next(real(self))
        raise DamagedObject("is torn", key="packs/x")

    real = type(saved).entries
    monkeypatch.setattr(type(saved), "entries", entries)
    result = cli("show", "latest", "--json")
    assert result.exit_code == 12
    document = json.loads(result.stdout)
    assert len(document["entries"]) == 1
    assert document["error"]["exit_code"] == 12
    assert "is torn" in document["error"]["message"]
    assert "is torn" in result.stderr
