"""Readers follow packs that were moved, and read what is damaged or missing from other packs that hold it."""

from __future__ import annotations

import os
import random

import pytest

from cas_checkpoint import footers
from cas_checkpoint.commits import index_key, pack_key
from cas_checkpoint.copies import follow_moves, indexed_everywhere
from cas_checkpoint.errors import DamagedObject, MissingObject, SnapshotForgotten
from cas_checkpoint.fetching import Fetcher
from cas_checkpoint.footers import all_index_footers, read_footer, read_index_footers
from cas_checkpoint.ids import ChunkId, PackId, TransactionId
from cas_checkpoint.index import encode_index
from cas_checkpoint.packs import PackBuilder
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import list_moves, put_move

KIB = 2**10
DATA = random.Random(5).randbytes(3000 * KIB)


@pytest.fixture
def snapshot(store):
    """A snapshot whose chunks are all in one pack."""
    return store.save({"file": DATA, "other": b"small"})


@pytest.fixture
def pack(snapshot):
    (ref,) = snapshot.reader().manifest().packs
    return ref.pack


def path_of(store, pack):
    return os.path.join(store._backend.root, pack_key(pack))


def copied(backend, pack, rows=None, *, is_indexed=False):
    """Put a pack that holds copies of the blobs in some rows of another; return its id."""
    footer = read_footer(backend, pack)
    data = backend.get(pack_key(pack), max_size=2**26)
    builder = PackBuilder(PackId(os.urandom(16)))
    for row in range(len(footer.ids)) if rows is None else rows:
        blob = data[int(footer.offsets[row]) :][: int(footer.stored_sizes[row])]
        chunk = ChunkId(bytes(footer.ids[row]))
        builder.add(chunk, blob[0], blob[1:], int(footer.plain_sizes[row]), int(footer.checks[row]))
    copy, parts = builder.finish()
    backend.put(pack_key(copy.pack), parts)
    if is_indexed:
        name = TransactionId(copy.pack)
        backend.put(index_key(name), [encode_index(name, 0, [copy])])
    return copy.pack


def moved(backend, pack, *targets):
    put_move(backend, pack, targets)
    backend.delete(pack_key(pack))


def without_indexes(backend):
    for info in list(backend.list("index/")):
        backend.delete(info.key)


def flip(store, pack, row):
    """Alter the blob in a row of a pack."""
    footer = read_footer(store._backend, pack)
    with open(path_of(store, pack), "r+b") as file:
        file.seek(int(footer.offsets[row]) + int(footer.stored_sizes[row]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def rows_in(backend, pack):
    return range(len(read_footer(backend, pack).ids))


def read(snapshot):
    """Read all that a snapshot holds; return what was noticed."""
    reader, notices = snapshot.reader(), []
    reader.notice = notices.append
    contents = {entry.name: b"".join(map(bytes, reader.data(entry.content))) for entry in reader.entries()}
    assert contents == {"file": DATA, "other": b"small"}
    return notices


# --- moves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_pack_that_was_moved_is_read_where_it_went(store, backend, snapshot, pack, is_indexed):
    rows = rows_in(backend, pack)
    moved(backend, pack, copied(backend, pack, rows[:4]), copied(backend, pack, rows[4:]))
    if not is_indexed:
        without_indexes(backend)
    assert read(snapshot) == []
    assert snapshot.read_bytes("file") == DATA


def test_a_restore_and_an_open_file_follow_moves(store, backend, snapshot, pack, tmp_path):
    moved(backend, pack, copied(backend, pack))
    result = store.restore(snapshot, tmp_path / "target")
    assert (tmp_path / "target/file").read_bytes() == DATA
    assert result.notices == ()
    with snapshot.open("file") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == DATA[-10:]


def test_moves_of_moves_are_followed(backend, snapshot, pack):
    rows = rows_in(backend, pack)
    second, third = copied(backend, pack, rows[:5]), copied(backend, pack, rows[5:])
    fourth = copied(backend, second)
    moved(backend, pack, second, third)
    moved(backend, second, fourth)
    without_indexes(backend)
    assert read(snapshot) == []


def test_several_moves_of_a_pack_hold_together(backend, snapshot, pack):
    rows = rows_in(backend, pack)
    for part in (rows[:3], rows[2:6], rows[6:]):
        put_move(backend, pack, [copied(backend, pack, part)])
    backend.delete(pack_key(pack))
    assert read(snapshot) == []


def test_a_target_that_is_gone_matters_only_if_it_is_needed(backend, snapshot, pack):
    moved(backend, pack, PackId(os.urandom(16)), copied(backend, pack))
    without_indexes(backend)
    assert read(snapshot) == []


def test_moves_in_a_circle_come_to_an_end(backend, snapshot, pack):
    other = PackId(os.urandom(16))
    put_move(backend, other, [pack])
    moved(backend, pack, other)
    without_indexes(backend)
    found = follow_moves(backend, [pack])
    assert (found.footers, found.faults) == ([], [])
    with pytest.raises(MissingObject):
        read(snapshot)


def test_a_damaged_move_is_told_if_nothing_else_helps(backend, snapshot, pack):
    target = copied(backend, pack)
    moved(backend, pack, target)
    (key,) = list_moves(backend)
    whole = backend.get(str(key), max_size=2**20)
    backend.put(str(key), [whole[:-1]])
    without_indexes(backend)
    with pytest.raises(DamagedObject, match=str(key)):
        read(snapshot)
    put_move(backend, pack, [target])
    assert read(snapshot) == []


def test_a_damaged_target_is_told_if_nothing_else_helps(store, backend, snapshot, pack):
    target = copied(backend, pack)
    moved(backend, pack, target)
    without_indexes(backend)
    os.truncate(path_of(store, target), 500 * KIB)
    with pytest.raises(DamagedObject, match=target.hex()):
        read(snapshot)


def test_a_target_that_is_damaged_when_the_pack_goes_is_told(store, backend, snapshot, pack):
    target = copied(backend, pack)
    reader = snapshot.reader()
    entries = {entry.name: entry for entry in reader.entries()}
    moved(backend, pack, target)
    os.truncate(path_of(store, target), 500 * KIB)
    with pytest.raises(DamagedObject, match=target.hex()):
        list(reader.data(entries["file"].content))


def test_a_pack_that_goes_after_the_plan_is_found_where_it_went(backend, snapshot, pack):
    reader = snapshot.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == "file")
    refs = list(reader.refs(entry.content))
    requests = reader.plan(refs)
    second = copied(backend, pack)
    moved(backend, pack, second)
    found = {row.number: bytes(plain) for request in requests for row, plain in reader.fetch(request)}
    assert b"".join(found[number] for number in range(len(refs))) == DATA
    moved(backend, second, copied(backend, second))  # and again, after that was learned
    found = {row.number: bytes(plain) for request in requests for row, plain in reader.fetch(request)}
    assert b"".join(found[number] for number in range(len(refs))) == DATA


def test_a_pack_that_goes_within_a_request_gives_each_chunk_once(backend, snapshot, pack, monkeypatch):
    whole, read_into = Fetcher._read, []

    def move_meanwhile(self, request, workspace):
        read_into.append(request)
        if len(read_into) == 2:
            moved(backend, pack, copied(backend, pack))
        return whole(self, request, workspace)

    reader = snapshot.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == "file")
    refs = list(reader.refs(entry.content)) * 2
    monkeypatch.setattr(Fetcher, "_read", move_meanwhile)
    found = [(row.number, bytes(plain)) for request in reader.plan(refs) for row, plain in reader.fetch(request)]
    assert len(read_into) > 2
    assert sorted(number for number, _ in found) == list(range(len(refs)))
    assert b"".join(plain for _, plain in sorted(found)) == DATA * 2


def test_a_pack_of_a_forgotten_snapshot_is_no_damage(store, backend, snapshot, pack):
    reader = snapshot.reader()
    reader.manifest()
    later = snapshot.reader()
    entries = list(later.entries())
    store.forget(snapshot)
    backend.delete(pack_key(pack))
    with pytest.raises(SnapshotForgotten):
        list(later.data(entries[0].content))
    without_indexes(backend)
    with pytest.raises(SnapshotForgotten):
        reader.index()


def test_moves_cost_nothing_where_nothing_is_gone(backend, snapshot, monkeypatch):
    monkeypatch.setattr(type(backend), "names", lambda *_: pytest.fail("something was listed"))
    read(snapshot)


# --- other copies -------------------------------------------------------------------------------


def test_a_damaged_chunk_is_read_from_another_pack_of_the_store(store, backend, snapshot, pack):
    copy = copied(backend, pack, is_indexed=True)
    for row in rows_in(backend, pack):
        flip(store, pack, row)
    (notice,) = read(snapshot)
    assert notice.path == pack_key(pack)
    assert pack_key(copy) in notice.message


def test_a_damaged_chunk_is_read_from_another_pack_of_the_snapshot(store, backend, snapshot, pack):
    targets = [copied(backend, pack), copied(backend, pack)]
    moved(backend, pack, *targets)
    without_indexes(backend)
    flip(store, targets[0], 3)
    flip(store, targets[1], 4)
    assert len(read(snapshot)) == 1
    flip(store, targets[0], 4)
    with pytest.raises(DamagedObject):
        read(snapshot)


@pytest.mark.parametrize("is_near", [True, False])
def test_what_lies_before_a_cut_is_read_from_a_pack_that_was_cut_short(
    store, backend, snapshot, pack, monkeypatch, is_near
):
    monkeypatch.setattr(type(backend), "near", is_near)
    footer = read_footer(backend, pack)
    rows = rows_in(backend, pack)
    cut = rows[len(rows) // 2]
    copied(backend, pack, rows[cut:], is_indexed=True)
    os.truncate(path_of(store, pack), int(footer.offsets[cut]) + 10)
    assert len(read(snapshot)) == 1


def test_a_damaged_codec_is_damage(store, backend, snapshot, pack):
    """Not a sign of a newer version: the check tells."""
    footer = read_footer(backend, pack)
    with open(path_of(store, pack), "r+b") as file:
        file.seek(int(footer.offsets[3]))
        file.write(b"\x7f")
    with pytest.raises(DamagedObject, match="not those that were stored") as caught:
        read(snapshot)
    assert caught.value.key == pack_key(pack)


def test_a_chunk_within_a_commit_is_read_from_another_pack(store, backend, snapshot):
    """A commit is covered by its checksum: only who wrote it can have written something wrong into it."""
    small = store.save({"other": b"small"}, series="small")
    record = small._record
    altered = record.inline.pack.replace(b"small", b"smelt")
    assert altered != record.inline.pack
    reader = SnapshotReader(backend, record._replace(inline=record.inline._replace(pack=altered)))
    notices = []
    reader.notice = notices.append
    (entry,) = reader.entries()
    assert b"".join(reader.data(entry.content)) == b"small"
    assert len(notices) == 1


def test_copies_are_tried_until_one_is_right(store, backend, snapshot, pack):
    bad, short = (copied(backend, pack, is_indexed=True) for _ in range(2))
    for damaged in (bad, pack):
        for row in rows_in(backend, pack):
            flip(store, damaged, row)
    gone = copied(backend, pack, is_indexed=True)
    backend.delete(pack_key(gone))
    os.truncate(path_of(store, short), 40)
    with pytest.raises(DamagedObject, match=pack.hex()):
        read(snapshot)
    rows = rows_in(backend, pack)
    flipped_back(store, bad, rows[:6])
    flipped_back(store, pack, rows[6:])
    assert read(snapshot)


def flipped_back(store, pack, rows):
    for row in rows:
        flip(store, pack, row)


def test_a_pack_without_a_footer_is_replaced_by_copies(store, backend, snapshot, pack):
    copied(backend, pack, is_indexed=True)
    backend.delete(index_key(TransactionId(snapshot.reader().key.transaction)))
    os.truncate(path_of(store, pack), 1000)
    (notice,) = read(snapshot)
    assert notice.path == pack_key(pack)


def test_a_missing_pack_is_replaced_by_copies(backend, snapshot, pack):
    copied(backend, pack, is_indexed=True)
    backend.delete(pack_key(pack))
    (notice,) = read(snapshot)
    assert "is missing" in notice.message


def test_what_is_listed_and_gone_or_cut_short_is_no_copy(store, backend, snapshot, pack):
    gone, short, whole = (copied(backend, pack, is_indexed=True) for _ in range(3))
    kept = backend.get(pack_key(whole), max_size=2**26)
    backend.delete(index_key(TransactionId(snapshot.reader().key.transaction)))
    for name in (pack, gone, whole):
        backend.delete(pack_key(name))
    os.truncate(path_of(store, short), 2000 * KIB)
    with pytest.raises(MissingObject, match=pack.hex()):
        read(snapshot)
    backend.put(pack_key(whole), [kept])
    assert len(read(snapshot)) == 1


def test_chunks_that_no_pack_of_the_manifest_holds_are_looked_for(snapshot, pack):
    reader, notices = snapshot.reader(), []
    reader.notice = notices.append
    reader._manifest = reader.manifest()._replace(packs=())
    entries = {entry.name: entry for entry in reader.entries()}
    assert b"".join(map(bytes, reader.data(entries["file"].content))) == DATA
    (notice,) = notices
    assert notice.path == str(reader.key)
    assert pack_key(pack) in notice.message


def test_a_later_save_of_the_same_content_heals(store, backend, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(DATA)
    snapshot = store.save(tmp_path / "source")
    for info in [*backend.list("packs/"), *backend.list("index/")]:
        backend.delete(info.key)
    with pytest.raises(MissingObject):
        snapshot.read_bytes("file")
    Store.open(store.url, durable=False).save(tmp_path / "source", series="again", files_cache=False)
    assert snapshot.read_bytes("file") == DATA


def test_what_was_looked_for_in_vain_is_not_looked_for_again(store, backend, snapshot, pack, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "cas_checkpoint.reading.indexed_everywhere", lambda backend: looked.append(1) or indexed_everywhere(backend)
    )
    flip(store, pack, 0)
    reader = snapshot.reader()
    entries = {entry.name: entry for entry in reader.entries()}
    for _ in range(3):
        with pytest.raises(DamagedObject):
            list(reader.data(entries["file"].content))
    assert len(looked) == 1


def test_lost_chunks_may_be_told_instead_of_raised(store, backend, snapshot, pack):
    reader = snapshot.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == "file")
    refs = list(reader.refs(entry.content))
    flip(store, pack, 2)
    lost = []
    requests = reader.plan(refs, lost=lambda *told: lost.append(told))
    found = {
        row.number: bytes(plain)
        for request in requests
        for row, plain in reader.fetch(request, lost=lambda *told: lost.append(told))
    }
    ((number, error),) = lost
    assert pack.hex() in str(error)
    assert found.keys() == set(range(len(refs))) - {number}


def test_a_store_without_damage_is_read_without_a_search(snapshot, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.reading.indexed_everywhere", lambda _: pytest.fail("the store was searched"))
    assert read(snapshot) == []


# --- index objects ------------------------------------------------------------------------------


def test_all_footers_of_a_large_index_come_in_parts(store, backend, snapshot, pack, monkeypatch):
    packs = [copied(backend, pack, [row]) for row in range(5)]
    name = TransactionId(b"i" * 16)
    backend.put(index_key(name), [encode_index(name, 0, [read_footer(backend, pack) for pack in packs])])
    monkeypatch.setattr(footers, "_AT_ONCE", 300)
    found = list(all_index_footers(backend, name))
    assert [footer.pack for footer in found] == packs
    assert [footer.encoded for footer in found] == [footer.encoded for footer in read_index_footers(backend, name)]


def test_damaged_index_objects_are_passed_over(backend, snapshot, pack):
    backend.put(index_key(TransactionId(b"j" * 16)), [b"no index"])
    assert pack in {footer.pack for footer in indexed_everywhere(backend)}
