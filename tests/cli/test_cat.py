import json
import os
import subprocess
from base64 import b64decode

import pytest


@pytest.mark.parametrize("path", ["a.txt", "sub/b.bin", "./sub/b.bin"])
def test_writes_the_bytes(cli, saved, tree, path):
    result = cli("cat", "latest", path)
    assert result.exit_code == 0
    assert result.stdout_bytes == (tree / path).read_bytes()
    assert result.stderr == ""


def test_an_undecodable_name(cli, store):
    store.save({b"\xff": b"data"})
    assert cli("cat", "latest", b"\xff").stdout_bytes == b"data"


def test_document(cli, saved, tree):
    document = json.loads(cli("cat", "default@1", "sub/b.bin", "--json").stdout)
    assert (document["snapshot"], document["path"]) == (saved.id, "sub/b.bin")
    assert b64decode(document["data_base64"]) == (tree / "sub" / "b.bin").read_bytes()


@pytest.mark.parametrize(("path", "reason"), [("c", "holds nothing"), ("sub", "is a directory"), ("link", "a symlink")])
def test_no_such_file(cli, saved, path, reason):
    result = cli("cat", "latest", path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert reason in result.stderr


def test_damage(cli, saved, damage):
    damage()
    assert cli("cat", "latest", "a.txt").exit_code == 0
    assert cli("cat", "latest", "sub/b.bin").exit_code == 12
    result = cli("cat", "latest", "sub/b.bin", "--json")
    assert result.exit_code == 12
    assert json.loads(result.stdout)["error"]["type"] == "DamagedObject"


def test_nobody_reads(spawn, saved):
    read, write = os.pipe()
    os.close(read)
    process = spawn("cat", "latest", "sub/b.bin", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_full_disk(spawn, saved):
    with open("/dev/full", "wb") as full:
        process = spawn("cat", "latest", "a.txt", stdout=full, stderr=subprocess.PIPE)
        stderr = process.stderr.read()
    assert process.wait() == 1
    assert b"No space left" in stderr
    assert b"Traceback" not in stderr
