"""The files cache: what it remembers, and saves that read only what has changed."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import filescache, readers, saving
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.commits import CommitKey
from cas_checkpoint.errors import MissingObject, SnapshotForgotten, SourceError, SourceUnreadable
from cas_checkpoint.filescache import FilesCache, FilesCacheWriter, Row, cache_directory, stamp_of
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import PackId, StoreId, TransactionId, digest
from cas_checkpoint.manifests import Entry, EntryType, encode_entry
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.store import Store

KIB, MIB = 2**10, 2**20
SECOND = 10**9
KEY = CommitKey("series", 7, TransactionId(b"t" * 16))
NOW = 1_700_000_000 * SECOND
OLD = NOW - 10 * SECOND


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def encoded_entry(path, **fields):
    return encode_entry(Entry(path, EntryType.SYMLINK, target=b"x", **fields))


def made(rows, *, now_ns=NOW):
    """Return the cache of rows of a path and a stamp."""
    writer = FilesCacheWriter(now_ns)
    for path, stamp in rows:
        writer.add(encoded_entry(path), stamp)
    return writer.finish(KEY)


ROWS = [(b"a", (5, OLD, OLD + 1, 12)), (b"b", None), (b"c" * 300, (0, -OLD, OLD, 2**63 - 1))]


# --- the file -----------------------------------------------------------------------------------


def test_what_was_stored_is_loaded(tmp_path):
    path = tmp_path / "deep" / "down" / "cache"
    made(ROWS).store(path)
    loaded = FilesCache.load(path, "series")
    assert (loaded.key, loaded.size) == (KEY, 3)
    assert [(row.path, row.stamp) for row in loaded.rows()] == [(path, stamp or (-1, 0, 0, 0)) for path, stamp in ROWS]
    assert [row.encoded for row in loaded.rows()] == [encoded_entry(path)[4:] for path, _ in ROWS]
    assert [item.name for item in path.parent.iterdir()] == ["cache"]


stamps = st.none() | st.tuples(
    st.integers(0, 2**63 - 1),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
)
paths = st.binary(min_size=1, max_size=400).map(lambda path: path.replace(b"\0", b"_"))


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(paths, stamps), max_size=8), sequence=st.integers(1, 10**16 - 1))
def test_any_rows_are_loaded_as_they_were_stored(tmp_path_factory, rows, sequence):
    path = tmp_path_factory.getbasetemp() / "any-rows"
    cache = made(rows, now_ns=2**64).renamed(KEY._replace(sequence=sequence))
    cache.store(path)
    loaded = FilesCache.load(path, "series")
    assert loaded.key == cache.key
    assert list(loaded.rows()) == list(cache.rows())
    assert [(row.path, row.stamp) for row in loaded.rows()] == [(path, stamp or (-1, 0, 0, 0)) for path, stamp in rows]


def test_a_cache_without_rows(tmp_path):
    made([]).store(tmp_path / "cache")
    loaded = FilesCache.load(tmp_path / "cache", "series")
    assert loaded.size == 0
    assert list(loaded.rows()) == []


def test_renamed_is_the_same_for_another_snapshot():
    cache = made(ROWS)
    other = cache.renamed(KEY._replace(sequence=8))
    assert (other.key.sequence, other.size) == (8, 3)
    assert list(other.rows()) == list(cache.rows())


def test_the_last_one_stored_counts(tmp_path):
    made(ROWS).store(tmp_path / "cache")
    made(ROWS[:1]).store(tmp_path / "cache")
    assert FilesCache.load(tmp_path / "cache", "series").size == 1


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "cache"
    made(ROWS[:2]).store(path)
    return path


def test_any_changed_byte_is_no_cache(stored):
    data = stored.read_bytes()
    for at in range(len(data)):
        for flip in (0x01, 0x80):
            changed = bytearray(data)
            changed[at] ^= flip
            stored.write_bytes(changed)
            assert FilesCache.load(stored, "series") is None, at


def test_any_truncation_is_no_cache(stored):
    data = stored.read_bytes()
    for size in range(len(data)):
        stored.write_bytes(data[:size])
        assert FilesCache.load(stored, "series") is None, size


@pytest.mark.parametrize("extra", [b"x", bytes(32), bytes(100)])
def test_more_bytes_are_no_cache(stored, extra):
    stored.write_bytes(stored.read_bytes() + extra)
    assert FilesCache.load(stored, "series") is None


MAGIC = b"cas-checkpoint files cache 1\n"
FRAME = struct.Struct("<Q16sQQ")


def sealed(content):
    return content + digest((content,))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"something else",
        bytes(10_000),
        noise(10_000),
        MAGIC,
        sealed(b""),
        sealed(MAGIC),
        sealed(MAGIC + bytes(39)),
        sealed(b"cas-checkpoint files cache 2\n" + bytes(40)),
        sealed(MAGIC + FRAME.pack(1, b"t" * 16, 2**64 - 1, 0)),
        sealed(MAGIC + FRAME.pack(1, b"t" * 16, 0, 2**64 - 1)),
        sealed(MAGIC + FRAME.pack(1, b"t" * 16, 1, 0) + bytes(31)),
        sealed(MAGIC + FRAME.pack(1, b"t" * 16, 2, 0) + bytes(32)),
        sealed(MAGIC + FRAME.pack(1, b"t" * 16, 1, 7) + bytes(32) + bytes(6)),
        sealed(MAGIC + FRAME.pack(1, b"t" * 16, 1, 7) + bytes(32) + bytes(8)),
    ],
)
def test_a_foreign_file_is_no_cache(tmp_path, data):
    (tmp_path / "cache").write_bytes(data)
    assert FilesCache.load(tmp_path / "cache", "series") is None


def test_nothing_and_a_directory_are_no_cache(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file" / "below"):
        assert FilesCache.load(path, "series") is None


def test_a_place_where_nothing_can_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    made(ROWS).store(tmp_path / "file" / "cache")
    made(ROWS).store(Path("/proc/none/of/this/cache"))
    (tmp_path / "cache").mkdir()
    made(ROWS).store(tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "file"]


def test_a_disk_that_is_full_leaves_the_old_cache_and_no_temporary_file(stored, monkeypatch):
    class Full(io.BytesIO):
        def writelines(self, lines):
            raise OSError(28, "No space left on device")

    original = Path.open

    def opened(self, mode="r", *rest):
        original(self, mode, *rest).close()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    made(ROWS).store(stored)
    monkeypatch.undo()
    assert [path.name for path in stored.parent.iterdir()] == ["cache"]
    assert FilesCache.load(stored, "series").size == 2


def test_the_64_caches_written_last_are_kept(tmp_path):
    for number in range(70):
        path = tmp_path / f"{number:02d}"
        made(ROWS).store(path)
        os.utime(path, ns=(0, (number * 7 % 71) * SECOND))
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 64
    assert "69" in kept
    made(ROWS[:1]).store(tmp_path / "new")
    now = {path.name for path in tmp_path.iterdir()}
    assert len(now) == 64
    assert "new" in now


# --- stamps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtime", "ctime", "certain"),
    [
        (NOW - 3 * SECOND, NOW - 3 * SECOND, True),
        (-5, NOW - 3 * SECOND, True),
        (NOW - 2 * SECOND - 1, NOW - 2 * SECOND - 1, True),
        (NOW - 2 * SECOND, NOW - 3 * SECOND, False),
        (NOW - 3 * SECOND, NOW - 2 * SECOND, False),
        (NOW - 1, NOW - 1, False),
        (NOW, NOW, False),
        (NOW - 3 * SECOND, NOW + SECOND, False),
        (2**63 - 1, NOW - 3 * SECOND, False),
        (2**70, NOW - 3 * SECOND, False),
    ],
)
def test_a_file_that_was_changed_just_before_is_never_recognized(monkeypatch, mtime, ctime, certain):
    monkeypatch.setattr(filescache, "_RACY", 2 * SECOND)
    stamp = (5, mtime, ctime, 9)
    (row,) = made([(b"a", stamp)]).rows()
    assert (row.stamp == stamp) == certain
    if not certain:
        assert row.stamp[0] < 0  # no file has that size


def status(**fields):
    values = {"st_size": 3, "st_mtime_ns": 5, "st_ctime_ns": 6, "st_ino": 7} | fields
    return type("Status", (), values)()


def test_stamps_tell_size_times_and_inode():
    assert stamp_of(status()) == (3, 5, 6, 7)
    stamps = {stamp_of(status(**{name: 99})) for name in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")}
    assert len(stamps | {stamp_of(status())}) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"st_ino": 2**64 - 1},
        {"st_ino": 2**63 + 5},
        {"st_mtime_ns": -1},
        {"st_mtime_ns": -(2**31) * SECOND},
        {"st_mtime_ns": -62_135_596_800 * SECOND},  # the year 1
        {"st_mtime_ns": -(2**63)},
        {"st_mtime_ns": 2**66},
        {"st_ctime_ns": 2**66},
        {"st_size": 2**63 - 1},
    ],
)
def test_any_stamp_can_be_stored(tmp_path, fields):
    stamp = stamp_of(status(**fields))
    cache = made([(b"a", stamp)], now_ns=2**68)
    cache.store(tmp_path / "cache")
    assert next(FilesCache.load(tmp_path / "cache", "series").rows()) == Row(b"a", encoded_entry(b"a")[4:], stamp)


# --- where it lies ------------------------------------------------------------------------------


def test_where_caches_lie(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    monkeypatch.setenv("CAS_CHECKPOINT_CACHE", "/fast/caches")
    assert cache_directory() == Path("/fast/caches")
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("CAS_CHECKPOINT_CACHE")
        else:
            monkeypatch.setenv("CAS_CHECKPOINT_CACHE", nothing)
        assert cache_directory() == Path("/var/mine/cas-checkpoint")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path("/home/me/.cache/cas-checkpoint")


def test_a_user_without_a_home_has_no_caches(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CAS_CHECKPOINT_CACHE")
    assert cache_directory() is None
    store = Store.open(tmp_path / "store", create=True, durable=False)
    assert store.save(fill(tmp_path / "tree", {"a": noise(300_000)})).stats.files == 1


# --- saves --------------------------------------------------------------------------------------


class Recorder(LocalBackend):
    """Keeps the kinds of the objects written, in order."""

    def __init__(self, root):
        super().__init__(root, durable=False)
        self.written = []

    def put(self, key, parts):
        super().put(key, parts)
        self.written.append(key.partition("/")[0])

    def put_if_absent(self, key, data):
        self.written.append(key.partition("/")[0])
        return super().put_if_absent(key, data)


class Reads(Monitor):
    """Counts the bytes read of sources."""

    def __init__(self):
        self.total = 0

    def read(self, size):
        self.total += size


def fill(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


BIG, MIDDLE, SMALL = noise(700_000, 1), noise(90_000, 2), b"small"
FILES = {"a/big": BIG, "a/middle": MIDDLE, "b": SMALL, "c/d/deep": noise(5000, 3), "empty": b"", "z": noise(2000, 4)}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def tree(tmp_path):
    root = fill(tmp_path / "tree", FILES)
    os.symlink("a/big", root / "link")
    (root / "hollow").mkdir()
    (root / "c").chmod(0o750)
    return root


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """What is a few hundredths of a second old is old enough."""
    monkeypatch.setattr(filescache, "_RACY", 0)


def settle():
    time.sleep(0.012)  # longer than any tick of a clock of files


def caches():
    return [path for path in cache_directory().rglob("*") if path.is_file()]


def save(store, source, **options):
    """Save; return the snapshot and how many bytes were read for it."""
    settle()
    reads = Reads()
    snapshot = store.save(source, monitor=reads, **options)
    return snapshot, reads.total


def entries(snapshot):
    return {entry.name: entry for entry in snapshot.entries()}


def listing(root):
    """Return what is to be seen of a tree."""
    found = {}
    for path in [root, *root.rglob("*")]:
        info = path.lstat()
        data = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mode = info.st_mode if not path.is_symlink() else stat.S_IFMT(info.st_mode)
        found[str(path.relative_to(root))] = (mode, info.st_mtime_ns, data, path.is_file() and info.st_nlink)
    return found


def check(store, snapshot, tree, target):
    """Make sure that the snapshot holds the tree as it is, and that the store is whole."""
    store.restore(snapshot, target)
    assert listing(target) == listing(tree)
    shutil.rmtree(target)
    report = store.verify()
    assert report.ok, report.problems


@pytest.fixture
def no_file_is_opened(monkeypatch):
    def begin():
        def refuse(*_):
            raise AssertionError("a file is opened")

        monkeypatch.setattr(readers.FileReader, "__init__", refuse)

    return begin


def test_an_unchanged_tree_is_not_read_again(store, tree, tmp_path, no_file_is_opened):
    first, read = save(store, tree)
    assert read == TOTAL
    store._backend = Recorder(store.url)
    no_file_is_opened()
    for _ in range(3):
        store._backend.written.clear()
        again, read = save(store, tree)
        assert read == 0
        assert store._backend.written == ["manifests", "commits"]
        assert list(again.entries()) == list(first.entries())
        before, stats = first.stats, again.stats
        assert (stats.files, stats.entries, stats.logical_size, stats.chunks) == (
            (before.files, before.entries, before.logical_size, before.chunks)
        )
        assert (stats.chunks_new, stats.bytes_new, stats.bytes_reused) == (0, 0, TOTAL)
        assert stats.objects_written == 2
        assert stats.bytes_written == store._backend.size(f"manifests/{again.id}")
        check(store, again, tree, tmp_path / "target")
    assert [snapshot.sequence for snapshot in store.snapshots()] == [4, 3, 2, 1]


def test_another_process_needs_no_knowledge_of_the_store_for_an_unchanged_tree(store, tree, no_file_is_opened):
    save(store, tree)
    no_file_is_opened()
    other = Store.open(store.url, durable=False)
    other._learn = None  # would fail
    assert save(other, tree)[1] == 0


def test_a_snapshot_of_an_unchanged_tree_does_not_need_the_one_before(store, tree, tmp_path):
    first, _ = save(store, tree)
    again, _ = save(store, tree)
    store._backend.delete(str(first._record.key))
    store._backend.delete(f"manifests/{first.id}")
    check(store, again, tree, tmp_path / "target")
    assert store.verify().garbage_objects == 0
    assert save(store, tree)[1] == 0


def test_tags_and_the_like_are_those_of_the_save(store, tree):
    save(store, tree, step=1, tags=["old"], message="old", metrics={"loss": 1.0})
    again, read = save(store, tree, step=2, tags=["new"], metrics={"loss": 0.5})
    assert read == 0
    assert (again.step, tuple(again.tags), again.message, dict(again.metrics)) == (2, ("new",), "", {"loss": 0.5})


@pytest.mark.parametrize("text", [False, True])
def test_a_single_file_is_not_read_again(store, tree, text, no_file_is_opened):
    source = str(tree / "a" / "big") if text else tree / "a" / "big"
    first, read = save(store, source)
    assert read == len(BIG)
    no_file_is_opened()
    again, read = save(store, source)
    assert read == 0
    assert list(again.entries()) == list(first.entries())
    assert again.read_bytes("big") == BIG


def test_a_file_under_the_name_of_a_link_to_it(store, tree):
    """Both names have the same place on the disk."""
    for name in ("one", "two"):
        os.symlink("a/big", tree / name)
    for name in ("one", "two", "one", "one"):
        snapshot, _ = save(store, tree / name)
        assert {entry: snapshot.read_bytes(entry) for entry in entries(snapshot)} == {name: BIG}


def test_a_mapping_of_paths_is_not_read_again(store, tree, no_file_is_opened):
    source = {"x/tree": tree / "a", "w": tree / "z", "y": tree / "c"}
    first, read = save(store, source)
    assert read == len(BIG) + len(MIDDLE) + 7000
    no_file_is_opened()
    again, read = save(store, dict(reversed(source.items())))
    assert read == 0
    assert list(again.entries()) == list(first.entries())


def test_what_is_given_as_bytes_is_read_and_the_files_beside_it_are_not(store, tree):
    save(store, {"a": b"first", "f": tree / "a" / "big", "z": b"last"})
    snapshot, read = save(store, {"a": b"other", "f": tree / "a" / "big", "z": io.BytesIO(b"more")})
    assert read == 9
    found = {entry: snapshot.read_bytes(entry) for entry in entries(snapshot)}
    assert found == {"a": b"other", "f": BIG, "z": b"more"}


@pytest.mark.parametrize("gone", ["a", "g", "z"])
def test_what_was_given_as_bytes_and_is_given_no_more_is_gone(store, tree, gone):
    given_ = {"a": b"1", "f": tree / "a" / "big", "g": b"2", "h": tree / "a" / "middle", "z": b"3"}
    save(store, given_)
    del given_[gone]
    snapshot, _ = save(store, given_)
    assert list(entries(snapshot)) == list(given_)
    assert snapshot.read_bytes("f") == BIG


# --- changes ------------------------------------------------------------------------------------


def overwrite_in_disguise(tree):
    """Change a file's data, and put its size and time back."""
    path = tree / "a" / "big"
    time_ns = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(b"!!!")
    os.utime(path, ns=(0, time_ns))


def remove_in_disguise(tree):
    time_ns = (tree / "a").stat().st_mtime_ns
    (tree / "a" / "big").unlink()
    os.utime(tree / "a", ns=(0, time_ns))


def add_in_disguise(tree):
    time_ns = tree.stat().st_mtime_ns
    (tree / "a0").write_bytes(b"new")
    os.utime(tree, ns=(0, time_ns))


def swap(tree):
    """Let two files change places; their directory keeps its time."""
    time_ns = (tree / "a").stat().st_mtime_ns
    (tree / "a" / "big").rename(tree / "a" / "other")
    (tree / "a" / "middle").rename(tree / "a" / "big")
    (tree / "a" / "other").rename(tree / "a" / "middle")
    os.utime(tree / "a", ns=(0, time_ns))


def replace(tree):
    """Put another file of the same size and time in a file's place."""
    time_ns = (tree / "a" / "big").stat().st_mtime_ns
    (tree / "new").write_bytes(noise(len(BIG), 9))
    os.utime(tree / "new", ns=(0, time_ns))
    (tree / "new").replace(tree / "a" / "big")


def retarget(tree):
    info = (tree / "link").lstat()
    (tree / "link").unlink()
    os.symlink("a/bug", tree / "link")
    os.utime(tree / "link", ns=(0, info.st_mtime_ns), follow_symlinks=False)


def append(tree):
    with (tree / "a" / "middle").open("ab") as file:
        file.write(b"more")


def file_to_directory(tree):
    (tree / "b").unlink()
    fill(tree, {"b/inner": b"x"})


def directory_to_file(tree):
    shutil.rmtree(tree / "a")
    (tree / "a").write_bytes(b"file")


def rename_directory(tree):
    (tree / "a").rename(tree / "moved")


CHANGES = {
    "nothing but the data": overwrite_in_disguise,
    "replaced": replace,
    "appended to": append,
    "cut short": lambda tree: os.truncate(tree / "a" / "big", 1000),
    "emptied": lambda tree: (tree / "a" / "big").write_bytes(b""),
    "touched": lambda tree: os.utime(tree / "a" / "big", ns=(0, -5)),
    "mode of a file": lambda tree: (tree / "b").chmod(0o600),
    "mode of a directory": lambda tree: (tree / "c").chmod(0o711),
    "mode of the top": lambda tree: tree.chmod(0o711),
    "time of a directory": lambda tree: os.utime(tree / "hollow", ns=(0, 5)),
    "removed": lambda tree: (tree / "a" / "big").unlink(),
    "removed, the directory has its old time": remove_in_disguise,
    "last one removed": lambda tree: (tree / "z").unlink(),
    "directory removed": lambda tree: shutil.rmtree(tree / "c"),
    "all removed": lambda tree: [shutil.rmtree(tree), tree.mkdir()],
    "added in front": lambda tree: (tree / "0").write_bytes(b"new"),
    "added last": lambda tree: (tree / "zz").write_bytes(b"new"),
    "added, the directory has its old time": add_in_disguise,
    "renamed": lambda tree: (tree / "b").rename(tree / "y"),
    "renamed directory": rename_directory,
    "swapped": swap,
    "symlink leads elsewhere": retarget,
    "symlink in place of a file": lambda tree: ((tree / "b").unlink(), os.symlink("z", tree / "b")),
    "file in place of a symlink": lambda tree: ((tree / "link").unlink(), (tree / "link").write_bytes(b"x")),
    "directory in place of a file": file_to_directory,
    "file in place of a directory": directory_to_file,
    "hard link added": lambda tree: os.link(tree / "a" / "big", tree / "hard"),
    "hard link added in front": lambda tree: os.link(tree / "z", tree / "0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen(store, tree, tmp_path, change):
    save(store, tree)
    settle()
    CHANGES[change](tree)
    snapshot, read = save(store, tree)
    check(store, snapshot, tree, tmp_path / "target")
    assert read <= len(BIG) + len(MIDDLE)  # never all
    again, read = save(store, tree)
    assert list(again.entries()) == list(snapshot.entries())
    check(store, again, tree, tmp_path / "target")
    if change != "all removed":  # too little for a cache
        assert read == 0


@pytest.mark.parametrize("change", CHANGES)
def test_the_result_is_that_of_a_save_without_a_cache(store, tree, change):
    save(store, tree)
    settle()
    CHANGES[change](tree)
    with_cache, _ = save(store, tree)
    without, _ = save(store, tree, files_cache=False)
    assert list(with_cache.entries()) == list(without.entries())
    for name in ("files", "entries", "logical_size", "chunks"):
        assert getattr(with_cache.stats, name) == getattr(without.stats, name)


def test_only_what_has_changed_is_read(store, tree):
    save(store, tree)
    append(tree)
    snapshot, read = save(store, tree)
    assert read == len(MIDDLE) + 4
    assert snapshot.stats.bytes_reused >= TOTAL - len(MIDDLE)
    assert snapshot.stats.bytes_new + snapshot.stats.bytes_reused == TOTAL + 4
    assert snapshot.stats.bytes_written < len(MIDDLE) + 10_000


def test_a_file_with_its_old_size_and_time_is_read_for_its_change_time(store, tree):
    save(store, tree)
    before = (tree / "a" / "big").stat()
    overwrite_in_disguise(tree)
    after = (tree / "a" / "big").stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
    snapshot, read = save(store, tree)
    assert read == len(BIG)
    assert snapshot.read_bytes("a/big") == b"!!!" + BIG[3:]


def test_a_file_that_was_changed_just_before_it_was_saved_is_read_again(store, tree, monkeypatch):
    monkeypatch.setattr(filescache, "_RACY", 3600 * SECOND)
    first, _ = save(store, tree)
    again, read = save(store, tree)
    assert read == TOTAL
    assert again.stats.bytes_new == 0
    assert list(again.entries()) == list(first.entries())


def test_the_real_limit_of_two_seconds_holds(store, tree, monkeypatch):
    monkeypatch.undo()
    assert filescache._RACY == 2 * SECOND
    monkeypatch.setenv("CAS_CHECKPOINT_CACHE", str(tree.parent / "caches"))
    save(store, tree)
    assert save(store, tree)[1] == TOTAL


def test_a_change_within_the_same_tick_is_seen(store, tree, monkeypatch):
    """The file has the very stamp of before: only that it was so new told to read it again."""
    monkeypatch.setattr(filescache, "_RACY", 3600 * SECOND)
    frozen = stamp_of((tree / "a" / "big").stat())
    save(store, tree)
    overwrite_in_disguise(tree)
    original = stamp_of

    def same_tick(info):
        return frozen if info.st_size == len(BIG) else original(info)

    monkeypatch.setattr("cas_checkpoint.trees.stamp_of", same_tick)
    snapshot, _ = save(store, tree)
    assert snapshot.read_bytes("a/big") == b"!!!" + BIG[3:]


def test_files_of_any_time_can_be_saved(store, tmp_path):
    shared = Path("/dev/shm")  # a file system that knows all years
    root = (shared if shared.is_dir() else tmp_path) / f"years-{os.getpid()}"
    try:
        fill(root, {"a": BIG, "b": MIDDLE})
        for year in (-62_135_596_800, -(2**34), -1, 0, 2**34, 253_402_300_799):
            os.utime(root / "b", ns=(0, year * SECOND))
            first, _ = save(store, root)
            again, _ = save(store, root)
            assert list(first.entries()) == list(again.entries())
            assert again.read_bytes("b") == MIDDLE
    finally:
        shutil.rmtree(root)


# --- hard links ---------------------------------------------------------------------------------


@pytest.fixture
def linked(tree):
    os.link(tree / "a" / "big", tree / "a" / "twin")
    os.link(tree / "a" / "big", tree / "y")
    return tree


def test_hard_links_are_not_read_again(store, linked, tmp_path):
    first, read = save(store, linked)
    assert read == TOTAL
    again, read = save(store, linked)
    assert read == 0
    assert list(again.entries()) == list(first.entries())
    assert entries(again)["y"].target == b"a/big"
    check(store, again, linked, tmp_path / "target")


@pytest.mark.parametrize("gone", ["a/big", "a/twin", "y"])
def test_a_hard_link_that_is_removed(store, linked, tmp_path, gone):
    save(store, linked)
    (linked / gone).unlink()
    snapshot, _ = save(store, linked)
    check(store, snapshot, linked, tmp_path / "target")
    assert [entry.type for name, entry in entries(snapshot).items() if name in ("a/big", "a/twin", "y")].count(
        EntryType.FILE
    ) == 1


def test_hard_links_in_a_directory_that_moves_in_front_of_the_file(store, tmp_path):
    """No file's change time tells of it: what was the file becomes a link, and the reverse."""
    root = fill(tmp_path / "root", {"m/f": BIG, "z/x": b"x"})
    os.link(root / "m" / "f", root / "z" / "f")
    save(store, root)
    (root / "z").rename(root / "a")
    snapshot, _ = save(store, root)
    assert (entries(snapshot)["a/f"].type, entries(snapshot)["m/f"].target) == (EntryType.FILE, b"a/f")
    check(store, snapshot, root, tmp_path / "target")
    (root / "a").rename(root / "z")
    snapshot, _ = save(store, root)
    assert (entries(snapshot)["m/f"].type, entries(snapshot)["z/f"].target) == (EntryType.FILE, b"m/f")
    check(store, snapshot, root, tmp_path / "target")


# --- who shares a cache -------------------------------------------------------------------------


def test_without_the_files_cache_all_is_read_and_none_is_written(store, tree):
    for _ in range(2):
        assert save(store, tree, files_cache=False)[1] == TOTAL
    assert caches() == []
    save(store, tree)
    assert len(caches()) == 1
    assert save(store, tree, files_cache=False)[1] == TOTAL
    assert save(store, tree)[1] == 0


def test_with_and_without_owners_are_two_caches(store, tree):
    save(store, tree)
    owned, read = save(store, tree, owner=True)
    assert read == TOTAL
    assert all(entry.owner for entry in owned.entries())
    plain, read = save(store, tree)
    assert read == 0
    assert not any(entry.owner for entry in plain.entries())
    owned, read = save(store, tree, owner=True)
    assert read == 0
    assert all(entry.owner for entry in owned.entries())


def test_two_sources_in_one_series(store, tree, tmp_path, no_file_is_opened):
    other = fill(tmp_path / "other", {"a/big": noise(700_000, 8), "b": b"other"})
    for source in (tree, other):
        save(store, source)
    no_file_is_opened()
    for source in (tree, other, other, tree):
        snapshot, read = save(store, source)
        assert read == 0
        check(store, snapshot, source, tmp_path / "target")


def test_two_series_of_one_source(store, tree):
    save(store, tree, series="one")
    assert save(store, tree, series="two")[1] == TOTAL
    assert save(store, tree, series="one")[1] == save(store, tree, series="two")[1] == 0
    assert [snapshot.sequence for snapshot in store.snapshots("one")] == [2, 1]


def test_two_stores_of_one_source(store, tree, tmp_path):
    save(store, tree)
    other = Store.open(tmp_path / "second", create=True, durable=False)
    snapshot, read = save(other, tree)
    assert read == TOTAL
    assert save(other, tree)[1] == 0
    check(other, snapshot, tree, tmp_path / "target")


def test_a_copy_of_a_store_that_went_its_own_way(store, tree, tmp_path):
    """Both have the same id, so they share caches; what a cache tells of is in only one of them."""
    save(store, tree)
    shutil.copytree(store.url, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy", durable=False)
    assert save(copy, tree)[1] == 0
    append(tree)
    save(copy, tree)
    snapshot, read = save(store, tree)
    assert read == TOTAL + 4
    check(store, snapshot, tree, tmp_path / "target")


def test_a_small_snapshot_has_no_cache_and_leaves_the_one_there_is(store, tree, tmp_path):
    save(store, tree)
    before = [path.read_bytes() for path in caches()]
    shutil.move(tree / "a", tmp_path / "aside")
    for name in ("b", "c/d/deep", "z"):
        os.utime(tree / name, ns=(0, 5))  # what is kept would lie in packs
    small, _ = save(store, tree)
    assert small.reader().inline_size() is not None
    assert [path.read_bytes() for path in caches()] == before
    shutil.move(tmp_path / "aside", tree / "a")
    back, read = save(store, tree)
    assert read <= 7005 + len(BIG) + len(MIDDLE)
    check(store, back, tree, tmp_path / "target")


def test_a_tree_that_shrinks_to_what_a_commit_carries(store, tree, tmp_path):
    """What is kept lies in packs, so the commit does not carry it."""
    save(store, tree)
    (tree / "a" / "big").unlink()
    (tree / "a" / "middle").unlink()
    snapshot, _ = save(store, tree)
    check(store, snapshot, tree, tmp_path / "target")


def test_a_save_onto_another_snapshot_uses_no_cache(store, tree):
    lower = store.save({"lower": b"x"})
    save(store, tree)
    before = [path.read_bytes() for path in caches()]
    snapshot, read = save(store, tree, onto=lower)
    assert read == TOTAL
    assert "lower" in entries(snapshot)
    assert [path.read_bytes() for path in caches()] == before


def test_a_reader_that_cannot_be_read_again_is_saved_whatever_the_parent_is(store, tree):
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.data.readinto(buffer)

    first, _ = save(store, {"a": tree, "z": b"bytes"})
    for path in packs_of(store, first):
        path.unlink()
    remove_indexes(store)
    append(tree)
    fresh = Store.open(store.url, durable=False)  # knows no chunks, and cannot copy those of the parent
    snapshot, _ = save(fresh, {"a": tree, "z": Pipe(b"only once")})
    assert snapshot.read_bytes("z") == b"only once"
    assert snapshot.read_bytes("a/a/big") == BIG


# --- left out -----------------------------------------------------------------------------------


@pytest.fixture
def unreadable(monkeypatch):
    """Names of files that cannot be opened, as if their modes forbade it."""
    names = set()
    opened = readers.FileReader.__init__

    def init(reader, path, listed):
        if os.path.basename(path) in names:
            raise SourceUnreadable(f"{path!r}: cannot be read")
        opened(reader, path, listed)

    monkeypatch.setattr(readers.FileReader, "__init__", init)
    return names


def test_a_file_that_is_left_out_is_tried_again(store, tree, tmp_path, unreadable):
    unreadable.add(b"middle")
    for _ in range(2):
        snapshot, _ = save(store, tree, on_error="skip")
        assert "a/middle" not in entries(snapshot)
        assert len(snapshot.warnings) == 1
    with pytest.raises(SourceUnreadable):
        save(store, tree)
    unreadable.clear()
    snapshot, read = save(store, tree, on_error="skip")
    assert read == len(MIDDLE)
    assert snapshot.warnings == ()
    check(store, snapshot, tree, tmp_path / "target")


def test_a_file_that_was_saved_is_left_out_when_it_has_changed_and_cannot_be_read(store, tree, unreadable):
    save(store, tree)
    append(tree)
    unreadable.add(b"middle")
    snapshot, _ = save(store, tree, on_error="skip")
    assert list(entries(snapshot)) == [name for name in entries(store.snapshot("default@1")) if name != "a/middle"]
    assert len(snapshot.warnings) == 1


def test_a_hard_link_to_a_file_that_is_left_out_becomes_the_file(store, linked, unreadable):
    save(store, linked)
    overwrite_in_disguise(linked)
    unreadable.add(b"big")
    snapshot, _ = save(store, linked, on_error="skip")
    found = entries(snapshot)
    assert "a/big" not in found
    assert found["a/twin"].type is EntryType.FILE
    assert found["y"].target == b"a/twin"
    assert snapshot.read_bytes("y") == b"!!!" + BIG[3:]


def test_a_directory_that_cannot_be_listed_any_more(store, tree, monkeypatch):
    """Nothing before or after it has changed: its entries are gone, those after it are as they were."""
    save(store, tree)
    listdir = os.listdir
    refused = (tree / "a").stat().st_ino

    def refuse(where):
        if isinstance(where, int) and os.fstat(where).st_ino == refused:
            raise PermissionError(13, "Permission denied")
        return listdir(where)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SourceError):
        save(store, tree)
    for _ in range(2):
        snapshot, _ = save(store, tree, on_error="skip")
        assert list(entries(snapshot)) == ["", "b", "c", "c/d", "c/d/deep", "empty", "hollow", "link", "z"]
        assert snapshot.read_bytes("z") == FILES["z"]
        assert len(snapshot.warnings) == 1


def test_special_files_are_told_of_at_every_save(store, tree):
    os.mkfifo(tree / "fifo")
    for _ in range(3):
        snapshot, _ = save(store, tree)
        assert [os.path.basename(notice.path) for notice in snapshot.warnings] == ["fifo"]


# --- what is wrong with the cache or the parent -------------------------------------------------


@pytest.mark.parametrize("damage", ["changed", "cut short", "removed", "foreign", "directory"])
def test_with_a_damaged_cache_all_is_read(store, tree, tmp_path, damage):
    save(store, tree)
    (path,) = caches()
    data = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "cut short":
        path.write_bytes(data[:-1])
    elif damage == "foreign":
        path.write_bytes(noise(1000))
    elif damage == "directory":
        path.mkdir()
    snapshot, read = save(store, tree)
    assert read == TOTAL
    assert snapshot.stats.bytes_new == 0
    check(store, snapshot, tree, tmp_path / "target")
    assert save(store, tree)[1] == (TOTAL if damage == "directory" else 0)


def test_a_cache_that_cannot_be_written_is_no_error(store, tree, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setenv("CAS_CHECKPOINT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert save(store, tree)[1] == TOTAL


def packs_of(store, snapshot):
    return [Path(store.url, "packs", ref.pack.hex()) for ref in snapshot.reader().manifest().packs]


def remove_indexes(store):
    for item in list(store._backend.list("index/")):
        store._backend.delete(item.key)


def change_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def commit_path(store, snapshot):
    return Path(store.url, str(snapshot._record.key))


def manifest_path(store, snapshot):
    return Path(store.url, "manifests", snapshot.id)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "harm",
    {
        "commit gone": lambda store, first: commit_path(store, first).unlink(),
        "commit damaged": lambda store, first: change_byte(commit_path(store, first)),
        "commit empty": lambda store, first: commit_path(store, first).write_bytes(b""),
        "manifest gone": lambda store, first: manifest_path(store, first).unlink(),
        "manifest damaged": lambda store, first: change_byte(manifest_path(store, first)),
        "manifest cut short": lambda store, first: os.truncate(manifest_path(store, first), 100),
    }.items(),
    ids=lambda item: item[0],
)
def test_without_a_parent_all_is_read(store, tree, tmp_path, harm, changed, fresh):
    first, _ = save(store, tree)
    harm[1](store, first)
    if changed:
        append(tree)
    saver = Store.open(store.url, durable=False) if fresh else store
    snapshot, read = save(saver, tree)
    kept = changed and harm[0].startswith("manifest")  # what is kept is known to be in the store all the same
    assert read == (len(MIDDLE) + 4 if kept else TOTAL + 4 * changed)
    store.restore(snapshot, tmp_path / "target")
    assert listing(tmp_path / "target") == listing(tree)
    assert not list(Path(store.url).rglob(".tmp-*"))


@pytest.mark.parametrize("first_only", [True, False])
def test_what_is_kept_and_not_known_to_be_in_the_store_is_copied(store, tree, tmp_path, first_only):
    first, _ = save(store, tree)
    remove_indexes(store)
    append(tree) if first_only else (tree / "zz").write_bytes(b"new")
    fresh = Store.open(store.url, durable=False)
    snapshot, read = save(fresh, tree)
    assert read == (len(MIDDLE) + 4 if first_only else 3)
    assert not set(packs_of(store, first)) & set(packs_of(store, snapshot))
    check(store, snapshot, tree, tmp_path / "target")
    for path in packs_of(store, first):
        path.unlink()
    store.restore(snapshot, tmp_path / "target")
    assert listing(tmp_path / "target") == listing(tree)


def test_what_is_kept_and_cannot_be_copied_is_read(store, tree, tmp_path):
    """Neither index nor packs are left of the first snapshot."""
    first, _ = save(store, tree)
    remove_indexes(store)
    packs = packs_of(store, first)
    for path in packs:
        path.unlink()
    append(tree)
    snapshot, read = save(Store.open(store.url, durable=False), tree)
    assert read >= TOTAL + 4
    store.restore(snapshot, tmp_path / "target")
    assert listing(tmp_path / "target") == listing(tree)
    with pytest.raises((MissingObject, SnapshotForgotten)):
        first.read_bytes("a/big")
    report = store.verify()
    assert not report.ok
    assert {path.name for path in Path(store.url, "packs").iterdir()} == {
        path.name for path in packs_of(store, snapshot)
    }  # the first attempt left nothing


def condemn(store, packs, number=1):
    """Begin a collection that will delete these packs."""
    mark = Mark(TransactionId(b"g" * 16), frozenset(PackId(bytes.fromhex(path.name)) for path in packs))
    assert store._backend.put_if_absent(mark_key(number), mark.encode())


@pytest.mark.parametrize("changed", [False, True])
def test_what_a_collector_is_about_to_delete_is_stored_again(store, tree, tmp_path, changed):
    first, _ = save(store, tree)
    condemn(store, packs_of(store, first))
    if changed:
        append(tree)
    fresh = Store.open(store.url, durable=False)
    snapshot, read = save(fresh, tree)
    assert read >= TOTAL
    assert not set(packs_of(store, first)) & set(packs_of(store, snapshot))
    assert snapshot.stats.bytes_new >= TOTAL - len(MIDDLE)  # that was stored by the first attempt
    assert len(list(Path(store.url, "manifests").iterdir())) == 2
    check(store, snapshot, tree, tmp_path / "target")
    again, read = save(Store.open(store.url, durable=False), tree)  # the cache is of the new snapshot
    assert read == 0
    assert packs_of(store, again) == packs_of(store, snapshot)


def test_the_base_of_another_snapshot_of_the_same_is_of_before_its_parent_was_read(store, tree):
    first, _ = save(store, tree)
    store._backend.put(mark_key(3, closed=True), [b""])
    snapshot, read = save(store, tree)
    assert read == 0
    assert snapshot.reader().manifest().base == 3
    assert packs_of(store, snapshot) == packs_of(store, first)


def test_a_collection_of_other_packs_disturbs_nothing(store, tree):
    first, _ = save(store, tree)
    condemn(store, [Path("packs", "00" * 16)])
    snapshot, read = save(store, tree)
    assert read == 0
    assert packs_of(store, snapshot) == packs_of(store, first)
    assert snapshot.reader().manifest().base == 0


def test_more_chunks_than_are_looked_up_at_once(tmp_path, monkeypatch):
    """Also long lists of chunks, which are chunks themselves."""
    monkeypatch.setattr(saving, "_KEPT_CHUNKS", 50)
    place = tmp_path / "store"
    place.mkdir()
    tiny = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
    (place / HEADER_KEY).write_bytes(Header(StoreId(b"s" * 16), chunker=tiny, metadata_chunker=tiny).encode())
    store = Store.open(place, durable=False, workers=2)
    root = fill(tmp_path / "root", {"a": noise(400_000), **{f"b{number}": noise(3000, number) for number in range(40)}})
    save(store, root)
    for index_too in (False, True):
        with (root / "z").open("ab") as file:
            file.write(b"more")
        if index_too:
            remove_indexes(store)
        snapshot, read = save(Store.open(place, durable=False), root)
        assert read == (root / "z").stat().st_size
        check(store, snapshot, root, tmp_path / "target")
