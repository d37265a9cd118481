import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from cas_checkpoint import Store
from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import StoreId

VECTORS = Path(__file__).parent
READER = VECTORS.parent.parent / "tools" / "independent_reader.py"
SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)


def run(*arguments):
    command = [sys.executable, "-W", "error", READER, *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=120)


def restore(*arguments):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")


def refuse(*arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, b"", 1)
    return done.stderr.decode()


def load(name):
    return json.loads((VECTORS / name).read_bytes())


# --- it stands on its own ---


def test_it_imports_neither_the_library_nor_what_only_the_library_needs():
    imported = set()
    for node in ast.walk(ast.parse(READER.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"blake3", "msgpack", "zstandard"}
    assert not imported & {"importlib", "runpy"}


def test_it_runs_where_the_library_cannot_be_imported(tmp_path):
    (tmp_path / "cas_checkpoint.py").write_text("raise ImportError\n")
    (tmp_path / "numpy.py").write_text("raise ImportError\n")
    command = [sys.executable, READER, VECTORS / "store", tmp_path / "target", "main@1"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})


def test_usage():
    assert run().returncode == 2


# --- golden stores ---

TREES = load("trees.json")
UNAMBIGUOUS = [tree for tree in TREES if (tree["series"], tree["sequence"]) != ("Zwei/ß.x", 1)]


@pytest.mark.parametrize("tree", UNAMBIGUOUS, ids=lambda tree: f"{tree['series']}-{tree['sequence']}")
def test_golden_snapshots(tree, enclosed, check_restored):
    restore(VECTORS / "store", enclosed, f"{tree['series']}@{tree['sequence']}")
    check_restored(tree["entries"], enclosed)


def test_of_one_number_it_takes_the_highest_id(enclosed, check_restored):
    tree = max((tree for tree in TREES if tree not in UNAMBIGUOUS), key=lambda tree: tree["id"])
    restore(VECTORS / "store", enclosed, "Zwei/ß.x@1")
    check_restored(tree["entries"], enclosed)


@pytest.mark.parametrize("reference", ["main", "main@latest"])
def test_the_latest_is_not_an_aborted_one(reference, enclosed, check_restored):
    restore(VECTORS / "store", enclosed, reference)
    (tree,) = (tree for tree in TREES if (tree["series"], tree["sequence"]) == ("main", 6))
    check_restored(tree["entries"], enclosed)


@pytest.mark.parametrize("reference", ["main@7", "main@99", "nothing", "main@x", "default@latest", "../main"])
def test_what_is_not_there_is_an_error(reference, enclosed):
    refuse(VECTORS / "store", enclosed, reference)
    assert not enclosed.exists()


@pytest.fixture(scope="module")
def main():
    """The reader within this process: there are many broken stores, and starting it takes longer than what it does."""
    spec = importlib.util.spec_from_file_location("independent_reader", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("name", load("broken/stores.json"))
def test_broken_stores_are_refused(name, enclosed, main, capsys):
    assert main([str(VECTORS / "broken" / "stores" / name), str(enclosed), "s@1"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not enclosed.exists()


@pytest.mark.parametrize("name", ["entry-path-traversal", "entry-file-in-a-symlink", "blob-frame-is-a-bomb"])
def test_broken_stores_are_refused_by_the_command(name, enclosed):
    refuse(VECTORS / "broken" / "stores" / name, enclosed, "s@1")
    assert not enclosed.exists()


def test_an_existing_target_is_left_as_it_is(enclosed):
    enclosed.mkdir()
    (enclosed / "mine").write_bytes(b"mine")
    refuse(VECTORS / "store", enclosed, "main")
    assert os.listdir(enclosed) == ["mine"]


# --- stores that the library wrote ---


@pytest.fixture
def tree(tmp_path, keeps_xattrs):
    """A directory with everything that a snapshot can hold."""
    root = tmp_path / "source"
    root.mkdir()
    place = os.fsencode(root)
    names = [b"plain", b"\xff\xfe not UTF-8", "größe".encode(), b"new\nline", b"-rf *", b"a.b", b"a-b", b"x" * 255]
    for number, name in enumerate(names):
        with open(os.path.join(place, name), "wb") as file:
            file.write(b"data %d\n" % number * number)
        os.chmod(os.path.join(place, name), 0o400 + number)
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "empty").mkdir(mode=0o711)
    (root / "a" / "b" / "c" / "deep").write_bytes(b"deep")
    (root / "compresses").write_bytes(b"line of text\n" * 50_000)
    (root / "random").write_bytes(blake3(b"random").digest(length=400_000))
    (root / "zeros").write_bytes(bytes(700_000))
    with open(root / "sparse", "wb") as file:
        file.seek(1_000_000)
        file.write(b"middle")
        file.truncate(3_000_001)
    with open(root / "all hole", "wb") as file:
        file.truncate(500_000)
    os.link(root / "random", root / "a" / "linked")
    os.link(root / "random", root / "z")
    os.symlink("a/b", root / "inside")
    os.symlink(b"/etc/\xff/passwd", os.path.join(place, b"absolute"))
    os.symlink("inside/../../..", root / "loop")
    if keeps_xattrs:
        os.setxattr(root / "plain", "user.note", b"\0\xff")
        os.setxattr(root / "a", "user.on a directory", b"")
    os.utime(root / "plain", ns=(1, -1))
    os.utime(root / "inside", ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.chmod(root / "a", 0o2750)
    os.utime(root / "a", ns=(0, 1_000_000_000))
    return root


def new_store(path, *, small_chunks):
    if small_chunks:
        path.mkdir()
        (path / "cas-checkpoint").write_bytes(Header(StoreId(bytes(range(16))), SMALL, SMALL).encode())
    return Store.open(path, create=True)


@pytest.mark.parametrize("small_chunks", [False, True])
def test_a_tree_saved_by_the_library(tree, small_chunks, tmp_path, check_same):
    store = new_store(tmp_path / "store", small_chunks=small_chunks)
    store.save(tree, owner=True)
    restore(tmp_path / "store", tmp_path / "restored")
    check_same(tree, tmp_path / "restored")


def test_several_packs_and_snapshots_that_share_them(tree, tmp_path, monkeypatch, check_same):
    monkeypatch.setattr("cas_checkpoint.packing.PACK_SIZE", 50_000)
    store = new_store(tmp_path / "store", small_chunks=True)
    store.save(tree, series="s")
    shutil.copytree(tree, tmp_path / "as it was", symlinks=True)
    with open(tree / "random", "r+b") as file:
        file.seek(200_000)
        file.write(b"changed")
    store.save(tree, series="s")
    assert len(list((tmp_path / "store" / "packs").iterdir())) > 8
    restore(tmp_path / "store", tmp_path / "first", "s@1")
    assert (tmp_path / "first" / "random").read_bytes() == (tmp_path / "as it was" / "random").read_bytes()
    restore(tmp_path / "store", tmp_path / "second", "s")
    check_same(tree, tmp_path / "second")


def test_a_snapshot_within_its_commit(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    store.save({"a/b": b"small", b"\xff": b""}, series="Größe/1@2")
    assert not (tmp_path / "store" / "packs").exists()
    restore(tmp_path / "store", tmp_path / "target", "Größe/1@2@latest")
    assert (tmp_path / "target" / "a" / "b").read_bytes() == b"small"


@pytest.fixture
def packed(tmp_path):
    """A store with one snapshot that has packs."""
    store = tmp_path / "store"
    Store.open(store, create=True).save({"f": blake3(b"f").digest(length=200_000), "g": b"g" * 100_000})
    return store


def only(directory):
    (path,) = (path for path in directory.rglob("*") if path.is_file())
    return path


def test_without_its_index_a_store_is_read_from_the_packs(packed, tmp_path):
    shutil.rmtree(packed / "index")
    restore(packed, tmp_path / "target")
    assert (tmp_path / "target" / "f").read_bytes() == blake3(b"f").digest(length=200_000)


@pytest.mark.parametrize("at", [0, 9, 20, 45, 100, -1])
def test_with_a_damaged_index_a_store_is_read_from_the_packs(packed, at, tmp_path):
    index = only(packed / "index")
    data = bytearray(index.read_bytes())
    data[at] ^= 1
    index.write_bytes(data)
    restore(packed, tmp_path / "target")
    assert (tmp_path / "target" / "g").read_bytes() == b"g" * 100_000


@pytest.mark.parametrize("kind", ["packs", "manifests", "commits", "cas-checkpoint"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_flipped_bit_is_found(packed, kind, share, tmp_path):
    path = packed / kind if (packed / kind).is_file() else only(packed / kind)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 16
    path.write_bytes(data)
    shutil.rmtree(packed / "index")
    refuse(packed, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_missing_pack_is_told_apart_from_a_forgotten_snapshot(packed, tmp_path):
    only(packed / "packs").unlink()
    assert "the store is damaged" in refuse(packed, tmp_path / "target")
