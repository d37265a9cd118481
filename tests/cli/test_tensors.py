import io
import json

import numpy as np
import pytest


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def model(store):
    return store.save({"m.npz": npz(weight=np.zeros((300, 1000), np.float32), step=np.array(7)), "text": b"text"})


def test_table(cli, model):
    result = cli("tensors", "latest", "m.npz")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["tensor", "type", "shape", "size"],
        ["weight", "float32", "[300,", "1000]", "1.1", "MiB"],
        ["step", "int64", "[]", "8", "B"],
    ]
    assert result.stderr == "2 tensors, 1.1 MiB\n"


def test_quiet(cli, model):
    result = cli("tensors", "latest", "m.npz", "--quiet")
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == ""


def test_on_a_terminal(on_terminal, model):
    run = on_terminal("tensors", "latest", "m.npz")
    assert run.finish() == 0
    assert b"[300, 1000]" in run.seen


def test_document(cli, model):
    assert json.loads(cli("tensors", "latest", "m.npz", "--json").stdout) == {
        "snapshot": model.id,
        "path": "m.npz",
        "tensors": [
            {"name": "weight", "dtype": "float32", "shape": [300, 1000], "size": 1_200_000},
            {"name": "step", "dtype": "int64", "shape": [], "size": 8},
        ],
    }


def test_a_directory_without_metadata(cli, store):
    store.save({"ckpt/a": b"1"})
    for path in ("ckpt", "."):
        result = cli("tensors", "latest", path)
        assert result.exit_code == 1
        assert "no container of tensors" in result.stderr


@pytest.mark.parametrize(("path", "reason"), [("text", "no container of tensors"), ("c", "holds nothing")])
def test_no_such_container(cli, model, path, reason):
    result = cli("tensors", "latest", path, "--json")
    assert result.exit_code == 1
    assert reason in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "EntryNotFound"


def test_hostile_names(cli, store):
    store.save({"m.npz": npz(**{"a\x1b[31m\nb": np.zeros(1)})})
    result = cli("tensors", "latest", "m.npz", "--quiet")
    assert len(result.stdout.splitlines()) == 1
    assert "\x1b" not in result.stdout
    (tensor,) = json.loads(cli("tensors", "latest", "m.npz", "--json").stdout)["tensors"]
    assert tensor["name"] == "a\x1b[31m\nb"
