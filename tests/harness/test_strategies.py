"""Trees that are drawn can be written, read and compared, and come back from a store."""

import os
import shutil
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from cas_checkpoint import Store
from cas_checkpoint.footers import read_footer
from cas_checkpoint.tensors import find_tensors
from cas_checkpoint.testing import Node, SimulatedBackend, assert_same_tree, edits, read_tree, trees, write_tree
from cas_checkpoint.testing.strategies import moved_tensors, tensor_file
from cas_checkpoint.transactions import list_packs

quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
any_example = settings(quick, max_examples=2000, phases=[Phase.generate], database=None)


@pytest.fixture(scope="module")
def place():
    root = tempfile.mkdtemp()
    yield root
    write_tree(root, {})
    os.rmdir(root)


@quick
@given(tree=trees())
def test_a_tree_is_read_as_it_was_written(place, tree):
    write_tree(place, tree)
    assert_same_tree(read_tree(place), tree)


@quick
@given(data=st.data())
def test_a_tree_and_what_became_of_it_come_back_from_a_store(place, data):
    store = Store.open(SimulatedBackend(), create=True, workers=1)
    source, target = os.path.join(place, "source"), os.path.join(place, "target")
    tree = data.draw(trees(max_nodes=6))
    for _ in range(2):
        write_tree(source, tree)
        snapshot = store.save(source, files_cache=False)
        shutil.rmtree(target, ignore_errors=True)
        store.restore(snapshot, target)
        assert_same_tree(read_tree(target), tree)
        tree = data.draw(edits(tree))


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "hardlink"])
def test_there_is_every_kind_of_node(kind):
    find(trees(), lambda tree: any(node.kind == kind for node in tree.values()), settings=any_example)


def layout(data):
    return find_tensors(lambda offset, size: data[offset : offset + size], len(data))


def test_there_are_files_of_tensors_and_edits_that_move_them():
    tree = find(
        trees(),
        lambda tree: any(node.kind == "file" and layout(node.data) for node in tree.values()),
        settings=any_example,
    )
    path = next(path for path, node in tree.items() if node.kind == "file" and layout(node.data))
    data = tree[path].data
    find(
        edits({path: tree[path]}),
        lambda edited: path in edited and edited[path].data != data and layout(edited[path].data) == layout(data),
        settings=any_example,
    )


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_tensors_move_a_little_and_a_store_makes_deltas_of_that(tmp_path, kind):
    data = tensor_file(kind, 300 * 2**10, 1)
    (region,) = layout(data).regions
    assert region.size == 300 * 2**10
    moved = moved_tensors(data, 1)
    assert moved[: region.offset] == data[: region.offset]
    before, after = (np.frombuffer(one, "<f4", offset=region.offset) for one in (data, moved))
    assert np.mean(before != after) > 0.9
    assert np.abs(after - before).max() < 1e-4
    backend = SimulatedBackend()
    store = Store.open(backend, create=True, workers=1)
    snapshots = [store.save({"x": one}) for one in (data, moved)]
    assert sum(len(read_footer(backend, pack).delta_rows) for pack in list_packs(backend)) == 1
    assert [snapshot.read_bytes("x") for snapshot in snapshots] == [data, moved]


def test_what_holds_no_tensors_does_not_move():
    assert moved_tensors(b"no tensors, whatever", 1) == b"no tensors, whatever"


def test_long_runs_of_zeros_are_holes(tmp_path):
    write_tree(tmp_path / "tree", {b"sparse": Node("file", bytes(2**20) + b"x")})
    status = os.stat(tmp_path / "tree" / "sparse")
    assert status.st_size == 2**20 + 1
    assert status.st_blocks * 512 < 2**19


def test_a_node_shows_what_it_is_and_never_at_length():
    node = Node("file", b"data", 0o600, 5)
    assert repr(node) == "Node('file', b'data', 0o600, 5)"
    assert eval(repr(node)) == node
    assert len(repr(Node("file", bytes(10**6)))) < 600


def test_edits_change_something_and_leave_the_tree_alone():
    tree = {b"d": Node("directory", mode=0o755), b"d/f": Node("file", b"data")}
    kept = dict(tree)
    wanted = {
        "removed": lambda edited: b"d/f" not in edited,
        "renamed": lambda edited: any(path != b"d/f" and node == kept[b"d/f"] for path, node in edited.items()),
        "became something else": lambda edited: b"d" in edited and edited[b"d"].kind != "directory",
        "appended": lambda edited: (
            b"d/f" in edited and len(edited[b"d/f"].data) > 4 and edited[b"d/f"].data[:4] == b"data"
        ),
        "truncated": lambda edited: b"d/f" in edited and edited[b"d/f"].data in (b"", b"d", b"da", b"dat"),
        "added": lambda edited: edited.keys() > kept.keys(),
    }
    for is_wanted in wanted.values():
        find(edits(tree), is_wanted, settings=any_example)
    assert tree == kept


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({}, "b'a' is missing"),
        ({b"a": Node("file", b"x"), b"b": Node("file")}, "b'b' should not be there"),
        ({b"a": Node("file", b"y")}, "data is b'y', not b'x'"),
        ({b"a": Node("file", b"x", 0o600)}, "mode is 384, not 420"),
        ({b"a": Node("symlink", b"x")}, "kind is 'symlink', not 'file'"),
    ],
)
def test_a_difference_is_told(found, complaint):
    with pytest.raises(AssertionError, match=complaint):
        assert_same_tree(found, {b"a": Node("file", b"x")})
