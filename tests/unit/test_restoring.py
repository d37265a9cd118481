"""Restoring from real stores into real directories: what is written, what is left alone, what never happens."""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path

import pytest

from cas_checkpoint import fallbacks, restoring, selections
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.checkpointer import SyncCheckpoint
from cas_checkpoint.commits import pack_key
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedObject,
    DamagedStore,
    EntryNotFound,
    InvalidArgument,
    MissingObject,
    RestoreError,
    SnapshotNotFound,
    StorageError,
    TargetObstructed,
)
from cas_checkpoint.ids import digest
from cas_checkpoint.manifests import Content, Entry, EntryType, Manifest, encode_entry
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.snapshots import Snapshot
from cas_checkpoint.store import Store

MIB = 2**20
EMPTY = Content(0, 0, b"")
NOT_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="owners are given away by root only")


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


BIG = noise(300_000, 99)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


@pytest.fixture
def outside(tmp_path):
    """A directory beside the target that must stay as it is."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_bytes(b"precious")
    before = listing(place)
    yield place
    assert listing(place) == before


def listing(root, *, times=True):
    """Return all that is to be seen of a tree: types, modes, times, contents."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(bytes(path))
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (status.st_mode, times and status.st_mtime_ns, content)
    return found


def fill(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def forged(store, *entries):
    """Return a snapshot with these entries, as only a forger would write them."""
    record = store.save(b"".join(encode_entry(entry) for entry in entries))._record
    (file,) = Snapshot(store._backend, record).entries()
    manifest = Manifest.decode(record.inline.manifest)._replace(entries=file.content, entry_count=len(entries)).encode()
    inline = record.inline._replace(manifest=manifest)
    return Snapshot(
        store._backend,
        record._replace(manifest_digest=digest((manifest,)), manifest_size=len(manifest), inline=inline),
    )


class Failing(LocalBackend):
    """Gives out so many parts of packs, then fails."""

    def __init__(self, root, left, error):
        super().__init__(root, durable=False)
        self.left, self.error, self.lock = left, error, threading.Lock()
        self.requests = []

    def read_into(self, key, offset, buffer):
        if key.startswith("packs/"):
            with self.lock:
                self.requests.append((offset, len(buffer)))
                self.left -= 1
                if self.left < 0:
                    raise self.error
        super().read_into(key, offset, buffer)


def failing(store, left, error=None):
    other = Store.open(store.url, durable=False, workers=1)
    other._backend = Failing(store.url, left, error)
    return other


# --- the whole tree -----------------------------------------------------------------------------


def test_everything_comes_back(store, tmp_path, target):
    tree = fill(tmp_path / "tree", {"a": BIG, "sub/b": b"1", "sub/deep/er/c": b"", "e/x": noise(2 * MIB)})
    (tree / "empty").mkdir(mode=0o711)
    (tree / "sub").chmod(0o2750)
    (tree / "a").chmod(0o4755)
    for name, to in {"l1": "a", "l2": "/nowhere", "l3": "sub", "sub/l4": "../l5", "l5": "sub/l4"}.items():
        (tree / name).symlink_to(to)
    os.link(tree / "a", tree / "sub" / "same")
    for number, path in enumerate(sorted(tree.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, number * 1_000_000_007 - 5_000_000_000), follow_symlinks=False)
    os.utime(tree, ns=(0, -1))
    result = store.restore(store.save(tree), target)
    assert listing(target) == listing(tree)
    assert os.path.samefile(target / "a", target / "sub" / "same")
    assert result.path == target
    assert (result.files, result.files_unchanged, result.notices) == (4, 0, ())
    assert result.bytes_written == 300_001 + 2 * MIB
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cas-checkpoint")]


def test_directories_that_may_not_be_written_to():
    """As somebody who is not root: the directory gets its mode when all is in it."""
    place = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            tree = fill(place / "tree", {"closed/inner/file": BIG, "closed/other": b"1"})
            (tree / "closed" / "other").chmod(0o400)
            (tree / "closed" / "inner").chmod(0o500)
            (tree / "closed").chmod(0o500)
            store = Store.open(place / "store", create=True, durable=False)
            snapshot = store.save(tree)
            store.restore(snapshot, place / "target")
            assert listing(place / "target") == listing(tree)
            store.restore(snapshot, place / "target", exact=True)
            assert listing(place / "target") == listing(tree)
            (place / "no").mkdir(mode=0o500)
            with pytest.raises(RestoreError, match="no/target"):
                store.restore(snapshot, place / "no" / "target")
            assert list((place / "no").iterdir()) == []
            status = 0
        except BaseException:  # noqa: BLE001 -- the parent fails the test
            traceback.print_exc()
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for path in place.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(place)
    assert code == 0


def test_holes_stay_holes(store, tmp_path, target):
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as file:
        for offset in (0, 5 * MIB, 40 * MIB):
            file.seek(offset)
            file.write(noise(200_000, offset))
        file.truncate(80 * MIB)
    with (tree / "hole").open("wb") as file:
        file.truncate(30 * MIB)
    snapshot = store.save(tree)
    for _ in range(2):
        store.restore(snapshot, target)
        for name in ("sparse", "hole"):
            assert (target / name).stat().st_blocks <= (tree / name).stat().st_blocks + 8
            assert (target / name).read_bytes() == (tree / name).read_bytes()
    (target / "sparse").write_bytes(b"\1" * 80 * MIB)
    store.restore(snapshot, target)
    assert (target / "sparse").read_bytes() == (tree / "sparse").read_bytes()
    assert (target / "sparse").stat().st_blocks <= (tree / "sparse").stat().st_blocks + 8


@NOT_ROOT
@pytest.mark.parametrize("wanted", [True, False])
def test_owners_are_set_on_request(store, tmp_path, target, wanted):
    tree = fill(tmp_path / "tree", {"a": b"1", "sub/b": b"2"})
    (tree / "link").symlink_to("a")
    for name in ("a", "sub", "link"):
        os.chown(tree / name, 54321, 54322, follow_symlinks=False)
    store.restore(store.save(tree, owner=True), target, owner=wanted)
    for name in ("a", "sub", "link"):
        status = (target / name).lstat()
        assert (status.st_uid, status.st_gid) == ((54321, 54322) if wanted else (os.getuid(), os.getgid()))
    assert (target / "sub" / "b").stat().st_uid == os.getuid()


def test_more_files_than_a_window_holds(store, target, monkeypatch):
    source = {f"{number % 7}/{number:03d}": noise(number * 10, number) for number in range(300)}
    snapshot = store.save(source)
    monkeypatch.setattr(restoring, "_WINDOW_CHUNKS", 16)
    assert store.restore(snapshot, target).files == 300
    assert all((target / name).read_bytes() == data for name, data in source.items())


def test_a_large_file_is_a_window_of_its_own(store, target, monkeypatch):
    source = {f"{number}": noise(5 * MIB, number) for number in range(4)}
    snapshot = store.save(source)
    monkeypatch.setattr(restoring, "_WINDOW_CHUNKS", 3)
    assert store.restore(snapshot, target).bytes_written == 20 * MIB
    assert all((target / name).read_bytes() == data for name, data in source.items())


def test_a_file_whose_chunks_fill_windows(store, target, monkeypatch):
    data = noise(5 * MIB)
    snapshot = store.save({"a": data, "b": b"1"})
    (entry,) = (entry for entry in snapshot.entries() if entry.path == b"a")
    count = len(list(snapshot.reader().refs(entry.content)))
    for size in {1, 2, count - 1, count, count + 1}:
        monkeypatch.setattr(restoring, "_WINDOW_CHUNKS", size)
        shutil.rmtree(target, ignore_errors=True)
        assert store.restore(snapshot, target).bytes_written == 5 * MIB + 1
        assert (target / "a").read_bytes() == data


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("small", [0, 2**20])
def test_large_and_small_requests_wherever_the_store_lies(store, tmp_path, target, monkeypatch, near, small):
    tree = fill(tmp_path / "tree", {f"{number % 5}/{number}": noise(number**3, number) for number in range(130)})
    fill(tree, {"large": noise(20 * MIB), "again": noise(20 * MIB), "zeros": bytes(4 * MIB)})
    snapshot = store.save(tree)
    monkeypatch.setattr(restoring, "_SMALL_CHUNK", small)
    monkeypatch.setattr(LocalBackend, "near", near)
    store.restore(snapshot, target)
    assert listing(target) == listing(tree)


def test_entries_that_are_too_many_to_keep(store, tmp_path, target, monkeypatch):
    tree = fill(tmp_path / "tree", {"a": BIG, "b/x": b"1", "b/y": b"", "c/z": b"2"})
    (tree / "b" / "link").symlink_to("x")
    for name in ("b/l1", "b/l2", "c/l"):
        os.link(tree / "a", tree / name)
    snapshot = store.save(tree)
    monkeypatch.setattr(selections, "_KEPT_SIZE", 0)
    fill(target, {"mine": b"mine", "b/mine": b"mine"})
    assert store.restore(snapshot, target, exact=True).files == 4
    assert listing(target) == listing(tree)
    assert store.restore(snapshot, tmp_path / "part", paths=["b", "c/l"]).files == 3
    assert names(tmp_path / "part") == ["b", "b/l1", "b/l2", "b/link", "b/x", "b/y", "c", "c/l"]
    assert (tmp_path / "part" / "c" / "l").read_bytes() == BIG
    with pytest.raises(EntryNotFound, match="nothing"):
        store.restore(snapshot, tmp_path / "none", paths=["b", "nothing"])
    assert not (tmp_path / "none").exists()


def test_monitor_is_told_of_everything(store, tmp_path, target):
    class Totals(Monitor):
        ahead = written = 0

        def total(self, size):
            self.ahead = size

        def wrote(self, size):
            self.written += size

    monitor = Totals()
    snapshot = store.save({"a": BIG, "b": b"1", "c": b""})
    result = store.restore(snapshot, target, monitor=monitor)
    assert monitor.ahead == monitor.written == result.bytes_written == 300_001
    again = Totals()
    assert store.restore(snapshot, target, monitor=again).files_unchanged == 3
    assert again.written == 0


def test_a_repeated_chunk_is_fetched_once_and_written_everywhere(store, target):
    snapshot = store.save({"a": bytes(9 * MIB), "b": bytes(5 * MIB), "c": noise(200_000)})
    counting = failing(store, 1000)
    counting.restore(snapshot.id, target)
    assert len(counting._backend.requests) <= 3
    assert (target / "a").read_bytes() == bytes(9 * MIB)
    assert (target / "b").read_bytes() == bytes(5 * MIB)


# --- over an existing tree ----------------------------------------------------------------------


def test_only_what_differs_is_written(store, target):
    snapshot = store.save({"same": BIG, "other": BIG[:-1] + b"!", "shorter": BIG, "gone": b"1"})
    store.restore(snapshot, target)
    inodes = {path.name: path.stat().st_ino for path in target.iterdir()}
    (target / "other").write_bytes(BIG)
    (target / "shorter").write_bytes(BIG[:-1])
    (target / "gone").unlink()
    (target / "extra").write_bytes(b"mine")
    result = store.restore(snapshot, target)
    assert (result.files, result.files_unchanged, result.bytes_written) == (4, 1, 600_001)
    assert (target / "same").stat().st_ino == inodes["same"]
    assert (target / "other").stat().st_ino != inodes["other"]
    assert (target / "other").read_bytes() == BIG[:-1] + b"!"
    assert (target / "extra").read_bytes() == b"mine"


def test_a_large_file_is_compared_in_parts(store, target, monkeypatch):
    monkeypatch.setattr(restoring, "_LARGE_FILE", MIB)
    monkeypatch.setattr(restoring, "_COMPARED_CHUNKS", 2)
    data = noise(9 * MIB)
    snapshot = store.save({"a": data})
    store.restore(snapshot, target)
    assert store.restore(snapshot, target).files_unchanged == 1
    for at in (0, 5 * MIB, 9 * MIB - 1):
        (target / "a").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert store.restore(snapshot, target).files_unchanged == 0
        assert (target / "a").read_bytes() == data


def test_a_file_that_is_right_gets_its_mode_and_time_only(store, tmp_path, target):
    tree = fill(tmp_path / "tree", {"a": BIG})
    (tree / "a").chmod(0o640)
    snapshot = store.save(tree)
    store.restore(snapshot, target)
    inode = (target / "a").stat().st_ino
    (target / "a").chmod(0o777)
    os.utime(target / "a", ns=(1, 1))
    assert store.restore(snapshot, target).bytes_written == 0
    assert (target / "a").stat().st_ino == inode
    assert listing(target)["a"] == listing(tree)["a"]


def test_a_file_that_has_another_name_elsewhere_is_not_written_through(store, target, outside):
    snapshot = store.save({"a": b"restored"})
    target.mkdir()
    os.link(outside / "file", target / "a")
    store.restore(snapshot, target)
    assert (target / "a").read_bytes() == b"restored"
    (target / "a").unlink()


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_in_the_way(store, tmp_path, target, exact):
    tree = fill(tmp_path / "tree", {"file": b"1", "dir/x": b"2"})
    (tree / "link").symlink_to("file")
    snapshot = store.save(tree)
    fill(target, {"dir": b"a file"})
    os.mkfifo(target / "file")
    (target / "link").write_bytes(b"no link")
    store.restore(snapshot, target, exact=exact)
    assert listing(target / "dir") == listing(tree / "dir")
    assert (target / "file").read_bytes() == b"1"
    assert os.readlink(target / "link") == "file"


@pytest.mark.parametrize("name", ["file", "link", "same"])
def test_a_directory_in_the_way_goes_only_if_exact(store, tmp_path, target, name):
    tree = fill(tmp_path / "tree", {"file": b"1"})
    (tree / "link").symlink_to("file")
    os.link(tree / "file", tree / "same")
    snapshot = store.save(tree)
    fill(target, {f"{name}/inner/precious": b"x"})
    with pytest.raises(TargetObstructed, match="exact"):
        store.restore(snapshot, target)
    assert (target / name / "inner" / "precious").read_bytes() == b"x"
    store.restore(snapshot, target, exact=True)
    assert listing(target) == listing(tree)


def test_exact_removes_all_else(store, tmp_path, target, outside):
    tree = fill(tmp_path / "tree", {"a": b"1", "sub/b": b"2"})
    snapshot = store.save(tree)
    fill(target, {"z": b"", "sub/y": b"", "other/deep/x": b"", "a/b/c": b""})
    (target / "link").symlink_to(outside)
    (target / "sub" / "link").symlink_to(outside / "file")
    os.mkfifo(target / "fifo")
    store.restore(snapshot, target, exact=True)
    assert listing(target) == listing(tree)


def test_exact_keeps_directories_that_have_no_entry_of_their_own(store, target):
    snapshot = store.save({"a/b/c": b"1"})
    fill(target, {"a/b/x": b"", "a/y": b"", "z": b""})
    store.restore(snapshot, target, exact=True)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == ["a", "a/b", "a/b/c"]


def test_exact_of_an_empty_snapshot_empties_the_target(store, target):
    fill(target, {"a/b": b"1", "c": b"2"})
    store.restore(store.save({}), target, exact=True)
    assert list(target.iterdir()) == []


# --- some paths only ----------------------------------------------------------------------------


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a"], ["a"]),
        (["sub"], ["sub", "sub/b", "sub/deep", "sub/deep/c"]),
        (["./sub/deep/"], ["sub", "sub/deep", "sub/deep/c"]),
        ([b"sub/deep/c", Path("a")], ["a", "sub", "sub/deep", "sub/deep/c"]),
        (["sub/b", "sub"], ["sub", "sub/b", "sub/deep", "sub/deep/c"]),
        ([""], ["a", "sub", "sub-other", "sub/b", "sub/deep", "sub/deep/c"]),
        ([], []),
    ],
)
def test_only_what_lies_at_or_below_the_paths(store, tmp_path, target, paths, expected):
    tree = fill(tmp_path / "tree", {"a": b"1", "sub/b": b"2", "sub/deep/c": BIG, "sub-other": b"3"})
    store.restore(store.save(tree), target, paths=paths)
    assert names(target) == expected
    assert all(
        (target / name).read_bytes() == (tree / name).read_bytes() for name in expected if (tree / name).is_file()
    )


@pytest.mark.parametrize("path", ["b", "sub/x", "su", "a//b", "a/b", "..", "/a", "*", "\udcff"])
def test_a_path_that_is_not_there_restores_nothing(store, target, path):
    snapshot = store.save({"a": b"1", "sub/b": b"2"})
    with pytest.raises(EntryNotFound):
        store.restore(snapshot, target, paths=["a", path])
    assert not target.exists()


def test_hard_links_to_a_file_outside_of_the_selection(store, tmp_path, target):
    tree = fill(tmp_path / "tree", {"a": BIG, "b/x": b"1"})
    for name in ("b/l1", "b/l2", "c"):
        os.link(tree / "a", tree / name)
    snapshot = store.save(tree)
    result = store.restore(snapshot, target, paths=["b"])
    assert names(target) == ["b", "b/l1", "b/l2", "b/x"]
    assert (target / "b" / "l1").read_bytes() == BIG
    assert os.path.samefile(target / "b" / "l1", target / "b" / "l2")
    assert result.files == 2
    store.restore(snapshot, target, paths=["c"])
    assert (target / "c").read_bytes() == BIG
    store.restore(snapshot, target)
    assert (target / "a").stat().st_nlink == 4
    assert listing(target) == listing(tree) | {".": listing(target)["."]}


# --- nothing leaves the target ------------------------------------------------------------------


def test_links_planted_in_the_target_lead_nowhere(store, tmp_path, target, outside):
    tree = fill(tmp_path / "tree", {"dir/file": BIG, "dir/sub/file": b"1", "file": b"2"})
    (tree / "link").symlink_to("dir")
    os.link(tree / "file", tree / "hard")
    snapshot = store.save(tree)
    for exact in (False, True):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        (target / "dir").symlink_to(outside)
        (target / "file").symlink_to(outside / "file")
        (target / "link").symlink_to(outside)
        (target / "hard").symlink_to(outside / "new")
        store.restore(snapshot, target, exact=exact)
        assert listing(target, times=False) == listing(tree, times=False)


def file_at(path, **fields):
    return Entry(path, EntryType.FILE, 0o644, 0, 0, EMPTY)._replace(**fields)


FORGERIES = {
    "up": [file_at(b"../outside/new")],
    "up within": [file_at(b"a/../../outside/new")],
    "absolute": [file_at(b"/tmp/absolutely-not")],
    "nul": [file_at(b"a\0b")],
    "dot": [file_at(b"./a")],
    "directory up": [Entry(b"..", EntryType.DIRECTORY, 0o777)],
    "link up": [Entry(b"../outside/new", EntryType.SYMLINK, 0o777, target=b"x")],
    "hard link up": [Entry(b"a", EntryType.HARDLINK, target=b"../outside/file")],
    "hard link to nothing": [Entry(b"a", EntryType.HARDLINK, target=b"b")],
    "hard link to a directory": [Entry(b"a", EntryType.DIRECTORY, 0o755), Entry(b"b", EntryType.HARDLINK, target=b"a")],
    "twice": [file_at(b"a"), file_at(b"a")],
    "out of order": [file_at(b"b"), file_at(b"a")],
    "mode": [file_at(b"a", mode=0o10000)],
    "size": [file_at(b"a", size=5)],
    "nameless file": [file_at(b"")],
    "link without a target": [Entry(b"a", EntryType.SYMLINK)],
    "link with a nul": [Entry(b"a", EntryType.SYMLINK, target=b"a\0b")],
    "overlapping extents": [file_at(b"a", size=9, extents=((0, 5), (3, 5)))],
    "extents beyond the end": [file_at(b"a", size=9, extents=((8, 5),))],
    "no such chunk": [file_at(b"a", size=5, content=Content(5, 0, b"x" * 32 + b"\5\0\0\0"))],
    "list of no such chunk": [file_at(b"a", size=5, content=Content(5, 4, b"x" * 32 + b"\5\0\0\0"))],
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("exact", [False, True])
def test_forged_snapshots_are_damage_and_write_nothing(store, target, outside, forgery, exact):
    snapshot = forged(store, *FORGERIES[forgery])
    with pytest.raises(DamagedStore):
        store.restore(snapshot, target, exact=exact)
    assert not target.exists() or list(target.iterdir()) == []
    assert not Path("/tmp/absolutely-not").exists()


@pytest.mark.parametrize("exact", [False, True])
def test_a_symlink_in_the_snapshot_that_is_also_a_directory_leads_nowhere(store, target, outside, exact):
    snapshot = forged(
        store,
        Entry(b"a", EntryType.SYMLINK, 0o777, target=os.fsencode(outside)),
        file_at(b"a/file"),
        file_at(b"a/new"),
        Entry(b"a/sub", EntryType.DIRECTORY, 0o755),
    )
    with suppress(CasCheckpointError):
        store.restore(snapshot, target, exact=exact)
    assert not (outside / "new").exists()


def test_hard_links_to_a_symlink_are_refused(store, target, outside):
    snapshot = forged(
        store,
        Entry(b"a", EntryType.SYMLINK, 0o777, target=os.fsencode(outside / "file")),
        Entry(b"b", EntryType.HARDLINK, target=b"a"),
    )
    with pytest.raises(DamagedStore):
        store.restore(snapshot, target)
    assert not (target / "b").exists()


def test_a_target_that_is_a_file(store, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RestoreError):
            store.restore(store.save(b"x"), place)
    assert (tmp_path / "file").read_bytes() == b"mine"


# --- whole or not at all ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("the network is down"), MemoryError()])
@pytest.mark.parametrize("left", [1, 5, 9, 30, 50])
def test_a_restore_that_stops_leaves_whole_files_only(store, target, error, left):
    new = {"a": noise(6 * MIB, 1), "b": noise(40 * MIB, 2), "c": noise(6 * MIB, 3)}
    snapshot = store.save(new)
    old = {"a": b"old a", "b": b"old b", "c": b"old c", "d": b"old d"}
    fill(target, old)
    stopping = failing(store, left, error)  # the first one gives the entries
    with pytest.raises(type(error)):
        stopping.restore(snapshot.id, target, exact=True)
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert found.keys() == old.keys()  # nothing was removed yet, and no temporary file is left
    assert all(found[name] in (old[name], new.get(name)) for name in old)
    assert found["b"] == old["b"]
    store.restore(snapshot, target, exact=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == new
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cas-checkpoint")]


def test_what_is_damaged_does_not_appear(store, target):
    snapshot = store.save({"a": noise(MIB, 1), "b": noise(MIB, 2)})
    (pack,) = store._backend.list("packs/")
    path = Path(store.url, pack.key)
    data = bytearray(path.read_bytes())
    data[1_500_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedObject, match=pack.key):
        store.restore(snapshot, target)
    assert not (target / "b").exists()
    assert not (target / "a").exists() or (target / "a").read_bytes() == noise(MIB, 1)
    store.restore(snapshot, target, paths=["a"])
    assert names(target) == ["a"]


def test_a_missing_pack_is_told_by_name(store, target):
    snapshot = store.save(BIG)
    (pack,) = store._backend.list("packs/")
    store._backend.delete(pack.key)
    with pytest.raises(MissingObject, match=pack.key):
        store.restore(snapshot, target)


def test_a_file_that_is_there_is_right_even_if_its_chunks_are_gone(store, target):
    """What the target has needs not be fetched."""
    snapshot = store.save({"a": noise(MIB, 1)})
    store.restore(snapshot, target)
    blind = failing(store, 1, StorageError("gone"))  # only the entries
    assert blind.restore(snapshot.id, target).files_unchanged == 1


# --- what is lost -------------------------------------------------------------------------------


def pack_paths(store):
    return sorted((path for path in Path(store.url, "packs").iterdir()), key=lambda path: path.stat().st_size)


def damage_request(store, request):
    """Alter a chunk in the store; the request is one for it alone."""
    path = Path(store.url, pack_key(request.pack))
    data = bytearray(path.read_bytes())
    data[request.offset + request.size // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def damage_chunk(store, snapshot, name, number=0):
    """Alter a chunk of a file in the store."""
    reader = snapshot.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == name)
    damage_request(store, reader.plan(list(reader.refs(entry.content))[number:][:1])[0])


def damage_list(store, snapshot):
    """Alter the stream of entries in the store."""
    reader = snapshot.reader()
    damage_request(store, reader.plan(list(reader.refs(reader.manifest().entries))[:1])[0])


@pytest.fixture
def source(tmp_path):
    """A tree with a large file, small ones, and links."""
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    (root / "big").write_bytes(noise(6 * MIB, 1))
    (root / "sub/one").write_bytes(noise(200_000, 2))
    (root / "sub/two").write_bytes(noise(200_000, 3))
    (root / "same").hardlink_to(root / "big")
    (root / "link").symlink_to("big")
    return root


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("window", [2**14, 5])
def test_files_with_lost_chunks_may_be_left_out(store, source, target, monkeypatch, near, window):
    monkeypatch.setattr(restoring, "_WINDOW_CHUNKS", window)
    snapshot = store.save(source)
    damage_chunk(store, snapshot, "big", 7)
    monkeypatch.setattr(LocalBackend, "near", near)
    with pytest.raises(DamagedObject):
        store.restore(snapshot, target)
    result = store.restore(snapshot, target, damaged="skip")
    assert result.lost == ("big", "same")
    assert result.files == 2
    assert {path.name for path in target.rglob("*")} == {"link", "sub", "one", "two"}
    assert (target / "sub/two").read_bytes() == noise(200_000, 3)
    big, same = result.notices
    assert big.path == f"{target}/big"
    assert "packs/" in big.message
    assert same.path == f"{target}/same"


@pytest.mark.parametrize("is_indexed", [True, False])
def test_of_a_file_that_is_lost_in_part_nothing_is_left(store, source, target, monkeypatch, is_indexed):
    monkeypatch.setattr("cas_checkpoint.packing.PACK_SIZE", MIB)
    snapshot = store.save({"big": noise(6 * MIB, 1), "small": noise(200_000, 2)})
    packs = {request.pack for request in planned(snapshot, "big")} - {planned(snapshot, "small")[0].pack}
    Path(store.url, pack_key(sorted(packs)[1])).unlink()
    if not is_indexed:
        for path in Path(store.url, "index").iterdir():
            path.unlink()
    result = store.restore(snapshot, target, damaged="skip")
    assert (result.lost, result.files, len(result.notices)) == (("big",), 1, 1)
    assert names(target) == ["small"]


def planned(snapshot, name):
    reader = snapshot.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == name)
    return reader.plan(list(reader.refs(entry.content)))


def test_damage_between_the_check_and_the_restore_is_an_error(store, series, target, monkeypatch):
    """What was written then is of that snapshot: falling back now could make a mixture."""
    checked = fallbacks._check_and_restore
    target.mkdir()
    (target / "own").touch()

    def damage_meanwhile(attempt, *arguments):
        def late(*given):
            damage_chunk(store, series[2], "sub/one")
            return attempt(*given)

        return checked(late, *arguments)

    monkeypatch.setattr(fallbacks, "_check_and_restore", damage_meanwhile)
    with pytest.raises(RestoreError, match="whole a moment ago"):
        store.restore("latest", target, fallback="previous")


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_lost_stays_as_it_is_in_the_target(store, source, target, exact):
    snapshot = store.save(source)
    damage_chunk(store, snapshot, "sub/one")
    damage_chunk(store, snapshot, "sub/two")
    (target / "sub").mkdir(parents=True)
    (target / "sub/one").write_bytes(b"older")
    (target / "sub/two").write_bytes(noise(200_000, 3))
    result = store.restore(snapshot, target, damaged="skip", exact=exact)
    assert result.lost == ("sub/one",)
    assert (target / "sub/one").read_bytes() == b"older"
    assert result.files_unchanged == 1  # what is right in the target needs nothing from the store


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_whose_list_of_chunks_is_lost_may_be_left_out(store, target, monkeypatch, is_there):
    monkeypatch.setattr("cas_checkpoint.streams.INLINE_REFS", 4)
    snapshot = store.save({"big": noise(4 * MIB, 1), "small": noise(200_000, 2)})
    reader = snapshot.reader()
    big = next(entry for entry in reader.entries() if entry.name == "big")
    assert big.content.depth
    damage_request(store, reader.plan(list(reader.refs(big.content, lists=True))[:1])[0])
    if is_there:
        target.mkdir()
        (target / "big").write_bytes(bytes(4 * MIB))
    result = store.restore(snapshot, target, damaged="skip")
    assert (result.lost, result.files) == (("big",), 1)
    assert (target / "big").exists() == is_there


def test_if_the_list_of_entries_is_damaged_nothing_can_be_left_out(store, source, target):
    snapshot = store.save(source)
    damage_list(store, snapshot)
    with pytest.raises(DamagedStore, match=r"list of what the snapshot holds.*packs/"):
        store.restore(snapshot, target, damaged="skip")
    assert not target.exists()


def test_a_missing_pack_loses_only_what_is_in_it(store, tmp_path, target):
    first = store.save({"one": noise(200_000, 1)})
    second = store.save({"one": noise(200_000, 1), "two": noise(200_000, 2)})
    (request,) = first.reader().plan(list(first.reader().refs(next(iter(first.entries())).content))[:1])
    Path(store.url, pack_key(request.pack)).unlink()
    result = store.restore(second, target, damaged="skip")
    assert result.lost == ("one",)
    assert (target / "two").read_bytes() == noise(200_000, 2)
    assert request.pack.hex() in result.notices[0].message


def test_what_is_damaged_is_restored_from_a_copy_with_a_warning(store, source, target):
    snapshot = store.save(source)
    indexes = [(path, path.read_bytes()) for path in Path(store.url, "index").iterdir()]
    for path, _ in indexes:
        path.unlink()
    Store.open(store.url, durable=False).save(source, series="again", files_cache=False)  # knows of no copy
    for path, data in indexes:
        path.write_bytes(data)
    damage_chunk(store, snapshot, "big", 3)
    heard = Listener()
    result = store.restore(snapshot, target, monitor=heard)
    assert (target / "big").read_bytes() == noise(6 * MIB, 1)
    assert result.lost == ()
    assert result.notices == tuple(heard.notices)
    (notice,) = heard.notices
    assert "a copy was read from packs/" in notice.message


class Listener(Monitor):
    def __init__(self):
        self.notices = []

    def warning(self, notice):
        self.notices.append(notice)


@pytest.mark.parametrize(
    "options", [{"damaged": "ignore"}, {"fallback": "next"}, {"damaged": "skip", "fallback": "previous"}]
)
def test_words_for_damage_are_checked(store, target, options):
    snapshot = store.save(b"x")
    with pytest.raises(InvalidArgument):
        store.restore(snapshot, target, **options)


# --- an older one instead -----------------------------------------------------------------------


@pytest.fixture
def series(store, source):
    """Three snapshots; the second has a file that the others have not, the last a changed one."""
    first = store.save(source)
    (source / "extra").write_bytes(noise(200_000, 4))
    second = store.save(source)
    (source / "extra").unlink()
    (source / "new").mkdir()
    (source / "new/deep").write_bytes(noise(200_000, 5))
    (source / "sub/one").write_bytes(noise(300_000, 6))
    return [first, second, store.save(source)]


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ref", ["latest", "default@latest", "default@3", "object"])
@pytest.mark.parametrize("state", ["absent", "empty"])
def test_the_next_older_snapshot_takes_the_place_of_a_damaged_one(store, series, target, tmp_path, ref, state):
    damage_chunk(store, series[2], "sub/one")
    if state == "empty":
        target.mkdir()
    heard = Listener()
    with pytest.raises(DamagedObject):
        store.restore("latest", tmp_path / "other")
    wanted = series[2] if ref == "object" else ref
    result = store.restore(wanted, target, fallback="previous", monitor=heard)
    assert result.snapshot == series[1].id
    (notice,) = heard.notices
    assert result.notices == (notice,)
    assert (notice.path, "default@2" in notice.message, "packs/" in notice.message) == ("default@3", True, True)
    store.restore(series[1], tmp_path / "expected")
    assert content(target) == content(tmp_path / "expected")
    assert not (target / "new").exists()


@pytest.mark.parametrize("exact", [True, False])
def test_a_target_that_holds_something_becomes_no_mixture(store, series, target, tmp_path, exact):
    damage_chunk(store, series[2], "sub/one")
    (target / "sub").mkdir(parents=True)
    (target / "sub/one").write_bytes(b"older")
    (target / "own").write_bytes(b"mine")
    result = store.restore("latest", target, fallback="previous", exact=exact)
    assert result.snapshot == series[1].id
    store.restore(series[1], tmp_path / "expected")
    own = {} if exact else {"own": b"mine"}
    assert content(target) == content(tmp_path / "expected") | own
    assert not (target / "new").exists()


def test_what_is_whole_is_restored_without_a_word(store, series, target):
    result = store.restore("latest", target, fallback="previous")
    assert (result.snapshot, result.notices) == (series[2].id, ())


def test_several_damaged_ones_are_passed_over(store, series, target):
    damage_chunk(store, series[2], "sub/one")
    damage_chunk(store, series[1], "extra")
    assert store.restore("latest", target, fallback="previous").snapshot == series[0].id


@pytest.mark.parametrize("state", ["absent", "empty", "full"])
def test_if_all_are_damaged_the_newest_is_told(store, series, target, state):
    for snapshot in series:
        damage_list(store, snapshot)
    newest = pack_key(series[2].reader().manifest().packs[-1].pack)
    if state != "absent":
        target.mkdir()
    if state == "full":
        (target / "own").touch()
    with pytest.raises(DamagedObject, match="packs/"):
        store.restore("latest", target, fallback="previous")
    assert Path(store.url, newest).exists()
    assert target.exists() == (state != "absent")
    assert [path.name for path in target.glob("*")] == (["own"] if state == "full" else [])


def test_a_damaged_commit_is_passed_over(store, series, target):
    path = Path(store.url, str(series[2].reader().key))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedObject):
        store.restore("latest", target)
    assert store.restore("latest", target, fallback="previous").snapshot == series[1].id


def test_a_snapshot_that_was_forgotten_is_not_replaced(store, series, target):
    store.forget(series[2])
    for pack in pack_paths(store):
        pack.unlink()
    with pytest.raises(SnapshotNotFound):
        store.restore(series[2], target, fallback="previous")
    with pytest.raises(SnapshotNotFound):
        store.restore("nothing@latest", target, fallback="previous")


def test_a_path_that_only_the_damaged_snapshot_has_is_damage(store, series, target):
    damage_chunk(store, series[2], "new/deep")
    with pytest.raises(DamagedObject):
        store.restore("latest", target, fallback="previous", paths=["new"])


def test_a_checkpoint_may_be_resumed_from_an_older_snapshot(store, tmp_path, caplog):
    for number in range(2):
        last = SyncCheckpoint(store.url, durable=False).write(noise(300_000, 20 + number))
    damage_chunk(store, last, "_dst_cp")
    strict = SyncCheckpoint(store.url, store.url)
    with pytest.raises(DamagedObject):
        strict.read()
    with pytest.raises(DamagedObject):
        strict.restore()
    resumed = SyncCheckpoint(store.url, store.url, fallback="previous")
    assert resumed.read() == noise(300_000, 20)
    assert (resumed.restore() / "_dst_cp").read_bytes() == noise(300_000, 20)
    assert caplog.text.count("default@2: is damaged") == 2
    with pytest.raises(InvalidArgument):
        SyncCheckpoint(store.url, fallback="next")


def test_a_checkpoint_without_an_intact_older_snapshot_is_damaged(store):
    last = SyncCheckpoint(store.url, durable=False).write(noise(300_000, 20))
    damage_chunk(store, last, "_dst_cp")
    resumed = SyncCheckpoint(store.url, store.url, fallback="previous")
    with pytest.raises(DamagedObject):
        resumed.read()
    with pytest.raises(DamagedObject):
        resumed.restore()
