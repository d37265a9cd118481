import io
import json

import numpy as np
import pytest

from cas_checkpoint.errors import DamagedObject


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def two(store):
    """Two snapshots: a path added, one removed, one changed, and a file of tensors changed."""
    weight = np.zeros((100, 100), np.float32)
    before = {"weight": weight.copy(), "same": np.ones(3), "gone": np.zeros(2), "kind": np.zeros(4)}
    weight[0, :4] = [0.5, -1.5, np.inf, np.nan]
    after = {"weight": weight, "same": np.ones(3), "kind": np.zeros(4, np.int64), "new": np.array(1)}
    one = store.save({"m.npz": npz(**before), "a": b"1", "b": b"2"})
    return one, store.save({"m.npz": npz(**after), "a": b"3", "c": b"4"})


def test_paths(cli, two):
    result = cli("diff", "default@1", "default@2")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["~ a  (content)", "- b", "+ c", "~ m.npz  (content)"]
    assert result.stderr == "1 path added, 1 path removed, 2 paths changed\n"
    assert cli("diff", "default@2", "default@1", "--quiet").stdout.splitlines()[1:3] == ["+ b", "- c"]


def test_nothing_differs(cli, two):
    result = cli("diff", "latest", "latest", "--tensors")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "0 paths added, 0 paths removed, 0 paths changed\n"


def test_tensors(cli, two):
    lines = cli("diff", "default@1", "default@2", "--tensors").stdout.splitlines()
    assert lines[:4] == ["~ a  (content)", "- b", "+ c", "~ m.npz  (content)"]
    rows = [line.split() for line in lines[5:-1]]
    size = ["float32", "[100,", "100]"]
    assert rows[0] == ["~", "weight", *size, *size, "0.04", "%", "inf", "inf", "1"]
    assert rows[1] == ["~", "kind", "float64", "[4]", "int64", "[4]", "-", "-", "-", "-"]
    assert rows[2] == ["+", "new", "-", "int64", "[]", "-", "-", "-", "-"]
    assert rows[3] == ["-", "gone", "float64", "[2]", "-", "-", "-", "-", "-"]
    assert lines[-1] == "    1 tensor identical"


def test_all_tensors_are_identical_or_none_is(cli, store):
    for other, value in ((b"1", 1), (b"2", 1), (b"2", 2)):
        store.save(
            {"m.npz": npz(a=np.full(3, value), comment=np.frombuffer(other, np.uint8)), "n.npz": npz(a=np.array(value))}
        )
    lines = cli("diff", "default@1", "default@2", "--tensors").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["~", "tensor", "~", "1"]
    lines = cli("diff", "default@2", "default@3", "--tensors").stdout.splitlines()
    assert lines[-3] == "~ n.npz  (content)"
    assert lines[-1].split()[:2] == ["~", "a"]


def test_a_file_whose_tensors_are_all_identical(cli, store):
    for shift in (0, 64):
        header = b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}' + b" " * shift
        store.save({"f": len(header).to_bytes(8, "little") + header + b"abc"})
    lines = cli("diff", "default@1", "default@2", "--tensors").stdout.splitlines()
    assert lines == ["~ f  (content)", "    1 tensor identical"]


def test_tensors_on_a_terminal(on_terminal, two):
    run = on_terminal("diff", "default@1", "default@2", "--tensors")
    assert run.finish() == 0
    assert b"weight" in run.seen
    assert b"1 tensor identical" in run.seen


def test_document(cli, two):
    document = json.loads(cli("diff", "default@1", "default@2", "--tensors", "--json").stdout)
    assert (document["before"], document["after"]) == (two[0].id, two[1].id)
    paths = {item["path"]: item for item in document["paths"]}
    assert {path: item["change"] for path, item in paths.items()} == {
        "a": "changed", "b": "removed", "c": "added", "m.npz": "changed"
    }  # fmt: skip
    assert (paths["a"]["what"], paths["a"]["before"]["size"], paths["c"]["after"]["size"]) == (["content"], 1, 1)
    assert "before" not in paths["c"]
    assert "after" not in paths["b"]
    assert "tensors" not in paths["a"]
    tensors = {tensor["name"]: tensor for tensor in paths["m.npz"]["tensors"]}
    weight = {"name": "weight", "dtype": "float32", "shape": [100, 100], "size": 40_000}
    assert tensors["weight"] == {
        "name": "weight", "change": "changed", "before": weight, "after": weight,
        "elements": 10_000, "changed": 4, "nans": 1, "share": 0.0004,
        "max_change": "Infinity", "mean_change": "Infinity",
    }  # fmt: skip
    assert tensors["same"]["change"] == "identical"
    assert tensors["new"].keys() == {"name", "change", "after"}
    assert "tensors" not in json.loads(cli("diff", "default@1", "default@2", "--json").stdout)["paths"][3]


def test_hostile_names(cli, store):
    store.save({})
    store.save({b"\xff\x1b[31m\nred": b"1"})
    assert cli("diff", "default@1", "default@2").stdout == "+ \\xff\\x1b[31m\\nred\n"


def test_a_snapshot_that_is_not_there(cli, two):
    for refs in (("default@1", "default@7"), ("default@7", "default@1")):
        assert cli("diff", *refs).exit_code == 11


def test_damage_on_the_way_is_told_in_a_document_that_stays_valid(cli, two, monkeypatch):
    def entries(self):
        yield next(real(self))
        raise DamagedObject("is torn", key="packs/x")

    from cas_checkpoint.reading import SnapshotReader

    real = SnapshotReader.entries
    monkeypatch.setattr(SnapshotReader, "entries", entries)
    result = cli("diff", "default@1", "default@2", "--json")
    assert result.exit_code == 12
    document = json.loads(result.stdout)
    assert document["error"]["exit_code"] == 12
    assert "is torn" in document["error"]["message"]
