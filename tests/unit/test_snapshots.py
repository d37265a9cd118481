"""A snapshot as users see it: its summary, its entries, its files."""

from __future__ import annotations

import io
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from cas_checkpoint.errors import DamagedObject, EntryNotFound, InvalidArgument, InvalidArgumentType, SnapshotForgotten
from cas_checkpoint.manifests import Content, Entry, EntryType, Manifest, encode_entry
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.snapshots import Snapshot, entry_path
from cas_checkpoint.store import Store

BIG = os.urandom(300_000)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "sub" / "big").write_bytes(BIG)
    (root / "a").write_bytes(b"small")
    os.link(root / "a", root / "sub" / "same")
    os.symlink("a", root / "link")
    (root / "nothing").touch()
    return root


def with_entries(store, *entries):
    """Return a snapshot with these entries, as only a forger would write them."""
    record = store.save(b"".join(encode_entry(entry) for entry in entries))._record
    (file,) = Snapshot(store._backend, record).entries()
    manifest = Manifest.decode(record.inline.manifest)
    assert file.content is not None
    forged = manifest._replace(entries=file.content, entry_count=len(entries)).encode()
    from cas_checkpoint.ids import digest

    record = record._replace(
        manifest_digest=digest((forged,)), manifest_size=len(forged), inline=record.inline._replace(manifest=forged)
    )
    return Snapshot(store._backend, record)


def test_entries_come_in_order_with_all_that_is_known(store, tree):
    entries = list(store.save(tree).entries())
    assert [(entry.name, entry.type.value, entry.size, entry.target) for entry in entries] == [
        ("", "d", 0, b""),
        ("a", "f", 5, b""),
        ("link", "l", 0, b"a"),
        ("nothing", "f", 0, b""),
        ("sub", "d", 0, b""),
        ("sub/big", "f", 300_000, b""),
        ("sub/empty", "d", 0, b""),
        ("sub/same", "h", 0, b"a"),
    ]
    assert all(entry.owner is None for entry in entries)
    assert entries[1].mtime_ns == (tree / "a").stat().st_mtime_ns


def test_owners_are_recorded_on_request(store, tree):
    for entry in store.save(tree, owner=True).entries():
        assert (entry.owner.uid, entry.owner.gid) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("path", ["sub/big", b"sub/big", Path("sub/big"), "./sub/big", "sub/big/"])
def test_a_path_may_be_given_in_many_ways(store, tree, path):
    snapshot = store.save(tree)
    assert snapshot.read_bytes(path) == BIG
    with snapshot.open(path) as file:
        assert file.read(10) == BIG[:10]


def test_a_hard_link_is_read_as_its_file(store, tree):
    assert store.save(tree).read_bytes("sub/same") == b"small"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "directory"),
        ("sub", "directory"),
        ("link", "symlink"),
        ("missing", "nothing"),
        ("a/b", "nothing"),
        ("sub/bi", "nothing"),
        ("sub/big2", "nothing"),
        ("\udcff", "nothing"),
        ("..", "nothing"),
        ("/a", "nothing"),
        ("A", "nothing"),
    ],
)
def test_what_is_no_file_cannot_be_opened(store, tree, path, message):
    snapshot = store.save(tree)
    with pytest.raises(EntryNotFound, match=message):
        snapshot.open(path)
    with pytest.raises(EntryNotFound):
        snapshot.read_bytes(path)


@pytest.mark.parametrize(
    ("path", "error"), [(5, InvalidArgumentType), (None, InvalidArgumentType), ("\ud800", InvalidArgument)]
)
def test_what_is_no_path_is_refused(store, path, error):
    with pytest.raises(error):
        store.save(b"x").open(path)


def test_paths_are_taken_as_entries_have_them():
    assert entry_path("./a/b/") == b"a/b"
    assert entry_path(Path("a")) == b"a"
    assert entry_path(b"\xff") == entry_path("\udcff") == b"\xff"
    assert entry_path("a/./b") == b"a/./b"  # no entry has such a path


def test_a_chain_of_hard_links_is_refused(store):
    snapshot = with_entries(
        store,
        Entry(b"a", EntryType.HARDLINK, target=b"b"),
        Entry(b"b", EntryType.HARDLINK, target=b"a"),
    )
    with pytest.raises(DamagedObject, match="hard link"):
        snapshot.open("a")


def test_a_hard_link_to_nothing_is_not_found(store):
    snapshot = with_entries(store, Entry(b"a", EntryType.HARDLINK, target=b"b"))
    with pytest.raises(EntryNotFound):
        snapshot.open("a")


@pytest.mark.parametrize("path", [b"../up", b"/etc/x", b"a/../b", b"a//b", b"a\0b", b"."])
def test_entries_with_forbidden_paths_are_damage(store, path):
    snapshot = with_entries(store, Entry(path, EntryType.FILE, content=Content(0, 0, b"")))
    with pytest.raises(DamagedObject, match="forbidden"):
        list(snapshot.entries())


def test_entries_out_of_order_or_twice_are_damage(store):
    for names in ([b"b", b"a"], [b"a", b"a"], [b"a!", b"a/b"]):
        snapshot = with_entries(store, *(Entry(name, EntryType.FILE, content=Content(0, 0, b"")) for name in names))
        with pytest.raises(DamagedObject, match="out of order"):
            list(snapshot.entries())


def test_equality_and_hash_go_by_store_and_id(store, tmp_path):
    first, second = store.save(b"1"), store.save(b"1")
    assert first == store.snapshot(first.id)
    assert len({first, store.snapshot(first.id), second}) == 2
    assert first != second
    assert first != first.id
    other = Store.open(tmp_path / "other", create=True, durable=False)
    assert first != Snapshot(other._backend, first._record._replace(store=b"o" * 16))


def test_repr_tells_what_it_is(store):
    text = repr(store.save(b"", series="run", step=5))
    assert text.startswith("<Snapshot ")
    assert "run@1 step=5 20" in text
    assert "step" not in repr(store.save(b""))


def test_created_at_is_when_the_save_began(store):
    before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    snapshot = store.save(b"")
    assert before <= snapshot.created_at <= datetime.now(timezone.utc)
    assert store.snapshot(snapshot.id).created_at == snapshot.created_at


@pytest.mark.parametrize("time_ns", [-(2**63), -1, 0, 2**63 - 1])
def test_absurd_clocks_do_no_harm(store, time_ns):
    snapshot = Snapshot(store._backend, store.save(b"")._record._replace(created_at_ns=time_ns))
    assert isinstance(snapshot.created_at, datetime)
    assert repr(snapshot)


def test_what_is_returned_cannot_change_the_snapshot(store):
    snapshot = store.save(b"", metrics={"x": 1.0})
    snapshot.metrics["x"] = 2.0
    assert snapshot.metrics == {"x": 1.0}


@pytest.mark.parametrize("data", [b"small", BIG])
def test_a_snapshot_that_was_forgotten_meanwhile(store, data):
    snapshot = store.save(data)
    fresh = store.snapshot(snapshot.id)
    backend = store._backend
    backend.delete(str(snapshot._record.key))
    if data is BIG:
        backend.delete(f"manifests/{snapshot.id}")
        with pytest.raises(SnapshotForgotten):
            fresh.read_bytes("_dst_cp")
    else:  # the commit was read already, and it carries all
        assert fresh.read_bytes("_dst_cp") == data


def test_a_snapshot_whose_packs_were_collected_meanwhile(store):
    snapshot = store.save(BIG)
    file = snapshot.open("_dst_cp")
    backend = store._backend
    backend.delete(str(snapshot._record.key))
    for item in list(backend.list("packs/")):
        backend.delete(item.key)
    with pytest.raises(SnapshotForgotten):
        file.read()


def test_a_file_is_a_binary_reader(store):
    with store.save(BIG).open("_dst_cp") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.raw.name == "_dst_cp"
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_notice_can_always_be_printed():
    assert str(Notice("\udcff.txt", "is odd")) == "\\udcff.txt: is odd"
    assert str(Notice("", "is odd")) == "is odd"
    monitor = Monitor()
    monitor.total(1)
    monitor.read(1)
    monitor.wrote(1)
    monitor.warning(Notice("a", "b"))
