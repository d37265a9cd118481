"""The save protocol on real stores: what is written in which order, what is stored only once, what goes wrong."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import tempfile
import threading
import traceback
from itertools import pairwise
from pathlib import Path

import pytest

from cas_checkpoint import packing
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.commits import MAX_INLINE_SIZE
from cas_checkpoint.errors import (
    InvalidArgument,
    SaveAborted,
    SnapshotForgotten,
    SourceChanged,
    SourceError,
    SourceNotFound,
    SourceUnreadable,
    StorageError,
    StoreNotFound,
)
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import PackId, StoreId, TransactionId
from cas_checkpoint.manifests import INLINE_REFS, REF_SIZE, EntryType
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packing import MAX_BATCH_CHUNKS
from cas_checkpoint.store import Store

KIB, MIB = 2**10, 2**20
BIG = os.urandom(300_000)  # more than a commit carries
TINY = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)


class Recorder(LocalBackend):
    """Keeps the names of the operations, in the order in which they were finished."""

    def __init__(self, root):
        super().__init__(root, durable=False)
        self.done = []
        self.lock = threading.Lock()

    def _note(self, operation, key):
        with self.lock:
            self.done.append((operation, key.partition("/")[0]))

    def put(self, key, parts):
        super().put(key, parts)
        self._note("put", key)

    def put_if_absent(self, key, data):
        done = super().put_if_absent(key, data)
        self._note("put-if-absent", key)
        return done

    def delete(self, key):
        super().delete(key)
        self._note("delete", key)

    def list(self, prefix):
        found = list(super().list(prefix))
        self._note("list", prefix)
        return iter(found)

    def names(self, prefix):
        return (info.key for info in self.list(prefix))

    def written(self):
        return [kind for operation, kind in self.done if operation.startswith("put")]


@pytest.fixture
def place(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(place):
    return Store.open(place, create=True, durable=False, workers=2)


@pytest.fixture
def recorder(store):
    store._backend = Recorder(store.url)
    return store._backend


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    return root


def fill(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def contents(snapshot):
    return {entry.name: snapshot.read_bytes(entry.path) for entry in snapshot.entries() if entry.content is not None}


def objects(store):
    return sorted(item.key for item in store._backend.list(""))


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


# --- the order of writes ------------------------------------------------------------------------


def test_a_small_save_writes_one_object(store, recorder):
    snapshot = store.save({"a": b"x" * 1000, "b": noise(1000)})
    assert recorder.written() == ["commits"]
    assert snapshot.stats.objects_written == 1
    assert snapshot.stats.bytes_written == 0


def test_a_large_save_writes_packs_then_index_then_manifest_then_commit(store, recorder, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", MIB)
    snapshot = store.save(noise(9 * MIB))
    written = recorder.written()
    packs = len(written) - 3
    assert packs >= 8
    assert written == ["packs"] * packs + ["index", "manifests", "commits"]
    assert snapshot.stats.objects_written == len(written)
    assert len(snapshot.reader().manifest().packs) == packs
    assert ("list", "marks") in recorder.done[recorder.done.index(("put", "manifests")) :]  # for its own packs


def test_a_save_that_relies_on_old_packs_looks_at_the_marks_between_manifest_and_commit(store, recorder):
    store.save(BIG)
    recorder.done.clear()
    store.save({"old": BIG, "new": noise(200_000)})
    order = [step for step in recorder.done if step[1] in ("marks", "packs", "index", "manifests", "commits")]
    after = order[order.index(("put", "manifests")) :]
    assert after == [("put", "manifests"), ("list", "marks"), ("put-if-absent", "commits")]
    assert order.index(("list", "marks")) < order.index(("put", "packs"))  # the base comes first of all


def test_a_save_of_what_is_there_already_writes_manifest_and_commit_only(store, recorder, tree):
    fill(tree, {"a": BIG, "sub/b": b"small"})
    store.save(tree)
    recorder.done.clear()
    stats = store.save(tree).stats
    assert recorder.written() == ["manifests", "commits"]
    assert (stats.chunks_new, stats.bytes_new, stats.bytes_reused) == (0, 0, 300_005)
    assert stats.objects_written == 2


class Stopping(Recorder):
    """Fails at one of the writes, before or after it was done."""

    error: BaseException
    at = -1
    after = False

    def _stop(self, key, write):
        with self.lock:
            number, self.count = getattr(self, "count", 0), getattr(self, "count", 0) + 1
        if number == self.at:
            self.stopped = key.partition("/")[0]
        if number == self.at and not self.after:
            raise self.error
        result = write()
        if number == self.at:
            raise self.error
        return result

    def put(self, key, parts):
        return self._stop(key, lambda: super(Stopping, self).put(key, parts))

    def put_if_absent(self, key, data):
        return self._stop(key, lambda: super(Stopping, self).put_if_absent(key, data))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("no space"), MemoryError()])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(6))
def test_a_save_that_stops_at_any_write_leaves_whole_snapshots_only(store, monkeypatch, error, after, at):
    monkeypatch.setattr(packing, "PACK_SIZE", 256 * KIB)
    before = store.save(BIG)
    data = noise(700_000, 5)
    stopping = Store.open(store.url, durable=False, workers=2)
    stopping._backend = Stopping(store.url)
    stopping._backend.error, stopping._backend.at, stopping._backend.after = error, at, after
    with pytest.raises(type(error)):
        stopping.save({"old": BIG, "new": data})
    found = store.snapshots()
    stopped = stopping._backend.stopped
    committed = stopped == "commits" and after  # the answer was lost, not the commit
    assert len(found) == (2 if committed else 1)
    assert before.read_bytes("_dst_cp") == BIG
    report = store.verify()
    assert report.ok, report.problems
    if stopped == "packs":  # no index yet: what was written is taken away again
        assert report.garbage_objects == 0
    again = stopping.save({"old": BIG, "new": data})
    assert contents(again) == {"old": BIG, "new": data}
    assert store.verify().ok


class Interrupting(Monitor):
    def __init__(self, after):
        self.left = after

    def read(self, size):
        self.left -= size
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 5 * MIB, 17 * MIB])
def test_an_interrupt_while_reading_leaves_no_commit_and_no_pack(store, monkeypatch, after):
    monkeypatch.setattr(packing, "PACK_SIZE", MIB)
    data = noise(20 * MIB)
    with pytest.raises(KeyboardInterrupt):
        store.save({"a": data[: 9 * MIB], "b": data[9 * MIB :]}, monitor=Interrupting(after))
    assert objects(store) == [HEADER_KEY]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cas-checkpoint")]
    snapshot = store.save(data)
    assert snapshot.sequence == 1
    assert snapshot.read_bytes("_dst_cp") == data


def test_no_temporary_file_is_left(store, place):
    store.save(BIG)
    assert not list(place.rglob(".tmp-*"))


def test_a_save_is_given_up_when_ever_more_of_what_it_relies_on_is_condemned(store):
    """Six copies of the same chunks, all condemned: each attempt finds another one."""
    kept, packs = {}, []
    backend = store._backend
    for _ in range(6):
        snapshot = Store.open(store.url, durable=False).save(BIG)
        packs += [ref.pack for ref in snapshot.reader().manifest().packs]
        for item in list(backend.list("index/")):
            kept[item.key] = backend.get(item.key, max_size=MIB)
            backend.delete(item.key)
    for key, data in kept.items():
        backend.put(key, [data])
    assert backend.put_if_absent(mark_key(1), Mark(TransactionId(b"g" * 16), frozenset(packs)).encode())
    before = objects(store)
    with pytest.raises(SaveAborted, match="save again"):
        store.save(BIG)
    assert [key for key in objects(store) if not key.startswith(("packs/", "index/"))] == [
        key for key in before if not key.startswith(("packs/", "index/"))
    ]
    assert store.verify().ok


def test_a_collection_that_begins_later_does_not_make_a_save_read_twice(store):
    backend = store._backend
    store.save(BIG)
    assert backend.put_if_absent(mark_key(1), Mark(TransactionId(b"g" * 16), frozenset([PackId(b"x" * 16)])).encode())
    reads = Counting()
    snapshot = store.save(BIG, monitor=reads)
    assert reads.totals["read"] == len(BIG)
    assert snapshot.reader().manifest().base == 0


# --- stored once --------------------------------------------------------------------------------


def test_the_same_content_under_other_names_stores_nothing_new(store, tree, tmp_path):
    fill(tree, {"a": BIG, "b/c": noise(100_000)})
    store.save(tree)
    shutil.copytree(tree, tmp_path / "copy" / "deeper")
    moved = store.save(tmp_path / "copy", series="other")
    assert (moved.stats.chunks_new, moved.stats.bytes_new, moved.stats.bytes_reused) == (0, 0, 400_000)


def test_the_same_content_twice_in_one_save_is_stored_once(store):
    data = noise(3 * MIB)
    stats = store.save({f"copy-{number}": data for number in range(5)}).stats
    assert stats.bytes_new == 3 * MIB
    assert stats.bytes_reused == 12 * MIB
    assert stats.bytes_written < 3.1 * MIB


def test_a_repetition_is_found_though_the_pack_that_holds_it_was_closed_meanwhile(store, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", MIB)
    data = noise(9 * MIB)
    stats = store.save({f"copy-{number}": data for number in range(4)}).stats
    assert stats.bytes_new == 9 * MIB
    assert stats.bytes_written < 9.1 * MIB


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("at", [0, 1, 70_000, 5 * MIB, 8 * MIB, 12 * MIB - 1, 12 * MIB])
def test_an_inserted_byte_stores_few_new_chunks(store, at, fresh):
    """The chunk that holds it, and until the cuts are those of before again: at most three, of at most 1 MiB each."""
    data = noise(12 * MIB, 5)
    store.save(data)
    changed = data[:at] + b"!" + data[at:]
    other = Store.open(store.url, durable=False) if fresh else store
    stats = other.save(changed).stats
    assert 1 <= stats.chunks_new <= 3
    assert stats.bytes_new <= 3 * MIB
    assert stats.bytes_new + stats.bytes_reused == len(changed)
    assert other.latest().read_bytes("_dst_cp") == changed


def test_zeros_are_stored_once(store):
    stats = store.save(bytes(20 * MIB)).stats
    assert stats.chunks_new == 1
    assert stats.chunks == 20
    assert stats.bytes_written < 10_000


def test_small_snapshots_are_not_learned_from_but_large_ones_are(store):
    data = noise(100_000)
    store.save(data)
    assert store.save({"a": data, "b": BIG}).stats.bytes_new == 400_000
    assert store.save({"a": data, "c": BIG}).stats.bytes_new == 0


# --- what a save says of itself -----------------------------------------------------------------


class Counting(Monitor):
    def __init__(self):
        self.totals = {"read": 0, "wrote": 0}
        self.warnings = []

    def read(self, size):
        self.totals["read"] += size

    def wrote(self, size):
        self.totals["wrote"] += size

    def warning(self, notice):
        self.warnings.append(notice)


def test_stats(store, tree):
    fill(tree, {"a": BIG, "sub/b": b"12345", "empty": b""})
    os.link(tree / "a", tree / "z")
    os.symlink("a", tree / "link")
    monitor = Counting()
    stats = store.save(tree, monitor=monitor).stats
    assert (stats.files, stats.entries, stats.logical_size) == (3, 7, 300_005)
    assert (stats.bytes_new, stats.bytes_reused) == (300_005, 0)
    assert stats.chunks == stats.chunks_new >= 2
    assert monitor.totals == {"read": 300_005, "wrote": stats.bytes_written}
    sizes = {kind: size for kind, (_, size) in store.info().objects.items()}
    assert stats.bytes_written == sizes["packs"] + sizes["index"] + sizes["manifests"]
    assert stats.objects_written == 4
    assert stats.seconds >= 0


def test_stats_of_a_sparse_file_count_its_size_and_its_data(store, tree):
    with (tree / "sparse").open("wb") as file:
        file.seek(50 * MIB)
        file.write(noise(MIB))
    stats = store.save(tree).stats
    assert stats.logical_size == 51 * MIB
    assert stats.bytes_new <= 2 * MIB


def test_monitor_is_never_told_of_two_packs_at_once(store, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 128 * KIB)

    class Watching(Counting):
        inside = 0
        most = 0

        def wrote(self, size):
            self.inside += 1
            self.most = max(self.most, self.inside)
            super().wrote(size)
            self.inside -= 1

    monitor = Watching()
    stats = store.save(noise(6 * MIB), monitor=monitor).stats
    assert monitor.most == 1
    assert monitor.totals["wrote"] == stats.bytes_written


# --- sizes around every boundary ----------------------------------------------------------------

EDGES = [64 * KIB, 128 * KIB, 256 * KIB, MIB, 8 * MIB, 16 * MIB]
SIZES = [0, 1, 2, *(edge + delta for edge in EDGES for delta in (-1, 0, 1))]


@pytest.mark.parametrize("kind", ["noise", "zeros"])
def test_files_of_every_awkward_size(store, tmp_path, kind):
    data = noise(16 * MIB + 1) if kind == "noise" else bytes(16 * MIB + 1)
    source = {f"{size:09d}": data[:size] for size in SIZES}
    snapshot = store.save(source)
    assert snapshot.stats.logical_size == sum(SIZES)
    store.restore(snapshot, tmp_path / "target")
    for name, expected in source.items():
        assert (tmp_path / "target" / name).read_bytes() == expected
    for size in SIZES:
        alone = store.save(data[:size])
        assert alone.stats.bytes_new == (size if size and alone.reader().inline_size() else 0)
        assert alone.read_bytes("_dst_cp") == data[:size]


def test_cuts_do_not_depend_on_what_is_saved_before_in_the_same_buffer(store):
    data = noise(9 * MIB, 3)
    store.save(data)
    for before in (1, 63 * KIB, 5 * MIB, 8 * MIB - 1):
        stats = store.save({"a": noise(before, before), "b": data}).stats
        assert stats.bytes_new == before


@pytest.mark.parametrize("delta", range(-300, 200, 37))
def test_around_the_limit_of_what_a_commit_carries(store, delta):
    data = noise(MAX_INLINE_SIZE + delta)
    snapshot = store.save(data)
    inline = snapshot.reader().inline_size()
    assert (inline is None) == (len(data) + 64 + len("_dst_cp") > MAX_INLINE_SIZE)
    assert snapshot.read_bytes("_dst_cp") == data
    assert store.verify().ok


@pytest.mark.parametrize("count", [MAX_BATCH_CHUNKS - 1, MAX_BATCH_CHUNKS, MAX_BATCH_CHUNKS + 1])
def test_around_the_most_chunks_of_a_batch(store, tmp_path, count):
    source = {f"{number:05d}": b"%d" % number for number in range(count)}
    snapshot = store.save(source)
    store.restore(snapshot, tmp_path / "target")
    assert {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()} == source
    assert snapshot.stats.chunks == snapshot.stats.chunks_new == count
    assert store.verify().ok


def test_many_small_entries_are_not_carried_by_a_commit(store):
    source = {f"{number:04d}-{'x' * 100}": b"" for number in range(1500)}
    snapshot = store.save(source)
    assert snapshot.reader().inline_size() is None
    assert [entry.name for entry in snapshot.entries()] == list(source)


@pytest.fixture
def tiny(place):
    """A store that cuts everything so small that lists of chunks grow deep."""
    place.mkdir()
    (place / HEADER_KEY).write_bytes(Header(StoreId(b"s" * 16), chunker=TINY, metadata_chunker=TINY).encode())
    return Store.open(place, durable=False, workers=2)


@pytest.mark.parametrize(("size", "depth"), [(150_000, 0), (400_000, 1), (1_700_000, 2)])
def test_long_lists_of_chunks_are_stored_as_chunks_themselves(tiny, tmp_path, size, depth):
    data = noise(size, depth)
    snapshot = tiny.save({"file": data})
    (entry,) = snapshot.entries()
    assert entry.content.depth == depth
    assert len(entry.content.refs) <= INLINE_REFS * REF_SIZE
    assert snapshot.read_bytes("file") == data
    tiny.restore(snapshot, tmp_path / "target")
    assert (tmp_path / "target" / "file").read_bytes() == data
    changed = tiny.save({"file": data[: size // 2] + b"!" + data[size // 2 :]})
    assert changed.stats.chunks_new <= 3
    assert changed.stats.bytes_written < 40_000 + size // 100  # not the whole list again
    assert tiny.verify().ok


def test_around_the_most_chunks_that_an_entry_lists_itself(tiny):
    data = noise(400_000)
    refs = list(tiny.save({"file": data}).reader().refs(next(iter(tiny.latest().entries())).content))
    for count in (INLINE_REFS - 1, INLINE_REFS, INLINE_REFS + 1):
        size = sum(ref.size for ref in refs[:count])
        snapshot = tiny.save({"file": data[:size]})
        (entry,) = snapshot.entries()
        assert entry.content.depth == (1 if count > INLINE_REFS else 0)
        assert snapshot.read_bytes("file") == data[:size]


def test_entries_longer_than_their_buffer(store, tmp_path):
    source = {f"{number:05d}/{'n' * 200}": b"" for number in range(7000)}  # 1.6 MB of entries
    snapshot = store.save(source)
    assert [entry.name for entry in snapshot.entries()] == list(source)
    again = store.save(source | {"zz": b""})
    assert again.stats.bytes_written < 700_000  # the times of bytes are new, so not all is found again
    assert store.verify().ok


# --- what cannot be saved -----------------------------------------------------------------------


class Meddling(Monitor):
    """Does something once, as soon as the first bytes were read."""

    def __init__(self, action):
        self.action = action

    def read(self, size):
        action, self.action = self.action, None
        if action:
            action()


def grow(path):
    with path.open("ab") as file:
        file.write(b"more")


CHANGES = {
    "grows": (grow, SourceChanged),
    "shrinks": (lambda path: os.truncate(path, 100), SourceChanged),
    "is touched": (lambda path: os.utime(path, ns=(1, 1)), SourceChanged),
    "is deleted": (lambda path: path.unlink(), SourceError),
    "is replaced": (lambda path: (path.unlink(), path.write_bytes(b"other")), SourceError),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("large", [False, True])
def test_a_file_that_changes_while_it_is_saved(store, tree, change, large):
    fill(tree, {"a": noise(9 * MIB if large else 1000), "b": BIG, "c": b"small"})
    action, error = CHANGES[change]
    kept = store.save(b"before")
    with pytest.raises(error, match="/a: "):
        store.save(tree, monitor=Meddling(lambda: action(tree / "a")))
    assert store.snapshots() == [kept]
    assert [key for key in objects(store) if not key.startswith("commits/")] == [HEADER_KEY]

    (tree / "a").write_bytes(noise(9 * MIB if large else 1000, 1))
    snapshot = store.save(tree, on_error="skip", monitor=Meddling(lambda: action(tree / "a")))
    assert contents(snapshot) == {"b": BIG, "c": b"small"}
    (warning,) = snapshot.warnings
    assert "/a: " in str(warning)
    assert "left out" in str(warning)
    assert snapshot.stats.files == 2
    assert snapshot.stats.logical_size == 300_005
    assert store.verify().ok


def test_a_file_that_vanishes_before_its_turn(store, tree):
    fill(tree, {"a": b"1", "b": b"2", "c/d": b"3"})

    def vanish():
        (tree / "b").unlink()
        shutil.rmtree(tree / "c")

    with pytest.raises(SourceNotFound, match="/b"):
        store.save(tree, monitor=Meddling(vanish))
    fill(tree, {"b": b"2", "c/d": b"3"})
    snapshot = store.save(tree, on_error="skip", monitor=Meddling(vanish))
    assert [entry.name for entry in snapshot.entries()] == ["", "a"]
    assert len(snapshot.warnings) == 2


def test_a_hard_link_to_a_file_that_was_left_out_becomes_the_file(store, tree):
    fill(tree, {"a": noise(9 * MIB)})
    os.link(tree / "a", tree / "b")
    os.link(tree / "a", tree / "c")

    snapshot = store.save(tree, on_error="skip", monitor=Meddling(lambda: os.utime(tree / "a", ns=(1, 1))))
    kinds = {entry.name: (entry.type, entry.target) for entry in snapshot.entries()}
    assert kinds == {
        "": (EntryType.DIRECTORY, b""),
        "b": (EntryType.FILE, b""),
        "c": (EntryType.HARDLINK, b"b"),
    }
    assert snapshot.read_bytes("c") == (tree / "a").read_bytes()


def test_a_reader_that_fails_is_left_out_on_request(store):
    class Failing(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError(5, "no more")

    with pytest.raises(SourceUnreadable):
        store.save({"a": Failing(), "b": b"x"})
    assert store.snapshots() == []
    snapshot = store.save({"a": Failing(), "b": b"x"}, on_error="skip")
    assert contents(snapshot) == {"b": b"x"}
    assert len(snapshot.warnings) == 1


def test_special_files_are_skipped_with_a_warning_even_if_errors_fail(store, tree):
    fill(tree, {"a": b"1"})
    os.mkfifo(tree / "fifo")
    monitor = Counting()
    with socket.socket(socket.AF_UNIX) as listener:
        previous = os.getcwd()
        os.chdir(tree)  # names of sockets are short
        try:
            listener.bind("socket")
        finally:
            os.chdir(previous)
        snapshot = store.save(tree, on_error="fail", monitor=monitor)
    assert [entry.name for entry in snapshot.entries()] == ["", "a"]
    assert sorted(os.path.basename(notice.path) for notice in snapshot.warnings) == ["fifo", "socket"]
    assert list(snapshot.warnings) == monitor.warnings
    assert store.snapshot(snapshot.id).warnings == ()  # they are the save's, not the snapshot's


def test_a_file_that_may_not_be_read():
    place = Path(tempfile.mkdtemp())
    try:
        tree = fill(place / "tree", {"a": b"1", "b": b"2", "closed/x": b"3"})
        (tree / "b").chmod(0)
        (tree / "closed").chmod(0)
        if os.geteuid() == 0:
            for path in (place, tree, tree / "a", tree / "b", tree / "closed"):
                os.chown(path, 65534, 65534)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                store = Store.open(place / "store", create=True, durable=False)
                with pytest.raises(SourceUnreadable, match="/b: "):
                    store.save(tree)
                assert store.snapshots() == []
                snapshot = store.save(tree, on_error="skip")
                assert [entry.name for entry in snapshot.entries()] == ["", "a"]
                assert len(snapshot.warnings) == 2
                status = 0
            except BaseException:  # noqa: BLE001 -- the parent fails the test
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        (place / "tree" / "closed").chmod(0o700)
        shutil.rmtree(place)


def test_a_mapping_whose_file_changes_names_it(store, tree):
    fill(tree, {"x": noise(9 * MIB)})
    with pytest.raises(SourceChanged, match="/x: "):
        store.save({"a": tree / "x", "b": b"1"}, monitor=Meddling(lambda: grow(tree / "x")))


# --- laid over another snapshot -----------------------------------------------------------------


@pytest.mark.parametrize("low", [b"low", noise(200_000, 1)])
@pytest.mark.parametrize("high", [b"high", noise(200_000, 2)])
def test_what_the_source_has_not_is_kept(store, low, high):
    lower = store.save({"a": low, "both": low, "dir/x": b"x"})
    upper = store.save({"both": high, "dir/y": b"y", "z": high}, onto=lower)
    assert contents(upper) == {"a": low, "both": high, "dir/x": b"x", "dir/y": b"y", "z": high}
    assert contents(lower) == {"a": low, "both": low, "dir/x": b"x"}
    assert upper.stats.files == upper.stats.entries == 5
    paths = [entry.path for entry in upper.entries()]
    assert all(a < b for a, b in pairwise(path.replace(b"/", b"\0") for path in paths))
    assert store.verify().ok


def test_a_chain_of_overlays_stays_whole_when_what_is_below_is_forgotten(store):
    snapshot = store.save({"0": noise(150_000, 0)})
    expected = {"0": noise(150_000, 0)}
    for number in range(1, 5):
        expected[str(number)] = noise(150_000, number)
        snapshot = store.save({str(number): expected[str(number)]}, onto=snapshot)
        assert snapshot.stats.bytes_new == 150_000
    for old in store.snapshots()[1:]:
        store._backend.delete(str(old._record.key))
        store._backend.delete(f"manifests/{old.id}")
    assert contents(snapshot) == expected
    assert store.verify().ok
    assert store.verify().garbage_objects == 0


def test_an_overlay_writes_only_what_is_new(store):
    lower = store.save({"big": noise(5 * MIB)})
    stats = store.save({"small": b"x"}, onto=lower).stats
    assert stats.bytes_written < 20_000
    assert stats.logical_size == 5 * MIB + 1
    assert stats.bytes_reused == 5 * MIB


def test_an_overlay_of_a_small_snapshot_is_small(store, recorder):
    lower = store.save({"a": b"1"})
    recorder.done.clear()
    assert contents(store.save({"b": b"2"}, onto=lower)) == {"a": b"1", "b": b"2"}
    assert recorder.written() == ["commits"]


def test_an_overlay_that_outgrows_a_commit(store):
    snapshot = store.save({"0": noise(50_000, 0)})
    for number in range(1, 5):
        snapshot = store.save({str(number): noise(50_000, number)}, onto=snapshot)
    assert contents(snapshot) == {str(number): noise(50_000, number) for number in range(5)}
    assert snapshot.reader().inline_size() is None


def test_a_file_in_the_place_of_a_directory_and_the_reverse(store):
    lower = store.save({"a/x": b"1", "a/y": b"2", "b": b"3", "c": b"4"})
    upper = store.save({"a": b"file", "b/z": b"below"}, onto=lower)
    assert contents(upper) == {"a": b"file", "b/z": b"below", "c": b"4"}


def test_hard_links_to_a_file_that_is_replaced(store, tree, tmp_path):
    fill(tree, {"a": BIG})
    for name in ("b", "c"):
        os.link(tree / "a", tree / name)
    lower = store.save(tree)
    upper = store.save({"a": b"new"}, onto=lower)
    assert [(entry.name, entry.type.value, entry.target) for entry in upper.entries()] == [
        ("", "d", b""),
        ("a", "f", b""),
        ("b", "f", b""),
        ("c", "h", b"b"),
    ]
    store.restore(upper, tmp_path / "target")
    assert (tmp_path / "target" / "a").read_bytes() == b"new"
    assert (tmp_path / "target" / "b").read_bytes() == BIG
    assert os.path.samefile(tmp_path / "target" / "b", tmp_path / "target" / "c")


@pytest.mark.parametrize("data", [b"small", BIG])
def test_a_snapshot_of_another_store_may_lie_below(store, tmp_path, data):
    other = Store.open(tmp_path / "other", create=True, durable=False)
    lower = other.save({"a": data, "b": b"x"})
    upper = store.save({"b": BIG}, onto=lower)
    shutil.rmtree(tmp_path / "other")
    assert contents(upper) == {"a": data, "b": BIG}
    assert store.verify().ok


def test_long_lists_are_kept_too(tiny, tmp_path):
    data = noise(1_700_000)
    lower = tiny.save({"a": data})
    index = list(tiny._backend.list("index/"))
    upper = tiny.save({"b": b"x"}, onto=lower)
    assert contents(upper) == {"a": data, "b": b"x"}
    for item in index:  # nothing known: all is copied, the lists as well
        tiny._backend.delete(item.key)
    copied = Store.open(tiny.url, durable=False).save({"c": b"x"}, onto=lower)
    tiny._backend.delete(str(lower._record.key))
    for ref in lower.reader().manifest().packs:
        tiny._backend.delete(f"packs/{ref.pack.hex()}")
    assert contents(copied) == {"a": data, "c": b"x"}


def test_a_snapshot_below_that_was_forgotten(store):
    lower = store.save(BIG)
    store._backend.delete(str(lower._record.key))
    store._backend.delete(f"manifests/{lower.id}")
    with pytest.raises(SnapshotForgotten):
        store.save(b"x", onto=lower)
    assert store.snapshots() == []


def test_a_record_that_grows_too_large_is_refused(store):
    with pytest.raises(InvalidArgument, match="save less"):
        store.save(BIG, tags=["x" * 65_000] * 40)
    assert store.snapshots() == []


# --- a store that is removed while it is open ---------------------------------------------------


def test_a_store_that_is_gone_takes_no_snapshot(tmp_path):
    store = Store.open(tmp_path / "store", create=True, durable=False)
    store.save(b"first")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreNotFound, match="is gone"):
        store.save(b"second")
    assert not (tmp_path / "store").exists()


def test_a_store_that_was_replaced_takes_no_snapshot(tmp_path):
    store = Store.open(tmp_path / "store", create=True, durable=False)
    shutil.rmtree(tmp_path / "store")
    other = Store.open(tmp_path / "store", create=True, durable=False)
    with pytest.raises(StoreNotFound, match="another store"):
        store.save(b"mine")
    assert other.snapshots() == []
