"""What a verification finds, what it says is lost, and what it holds to be no damage at all."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from cas_checkpoint import losses, packing
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import Commit, CommitKey, State, index_key, pack_key
from cas_checkpoint.errors import InvalidArgument, StorageError
from cas_checkpoint.footers import read_footer
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import ChunkId, PackId, StoreId, TransactionId, digest
from cas_checkpoint.index import encode_index
from cas_checkpoint.manifests import Content, Entry, EntryType, Manifest, encode_entry
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packs import PREFIX_SIZE, PackBuilder
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import list_moves, publish_mark, put_move
from cas_checkpoint.verifying import AffectedPath, VerifyReport

MIB = 2**20
DEPTHS = ["structure", "sample", "data"]


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


def only(store, kind):
    (found,) = store._backend.list(f"{kind}/")
    return Path(store.url, found.key), found.key


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def copied(backend, pack):
    """Put a copy of a pack's blobs under another id; return that."""
    footer = read_footer(backend, pack)
    data = backend.get(pack_key(pack), max_size=2**26)
    builder = PackBuilder(PackId(os.urandom(16)))
    for row in range(len(footer.ids)):
        blob = data[int(footer.offsets[row]) :][: int(footer.stored_sizes[row])]
        sizes = int(footer.plain_sizes[row]), int(footer.checks[row])
        builder.add(ChunkId(bytes(footer.ids[row])), blob[0], blob[1:], *sizes)
    copy, parts = builder.finish()
    backend.put(pack_key(copy.pack), parts)
    return copy.pack


# --- all is well --------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_empty_store_is_well(store, depth):
    assert store.verify(depth=depth) == VerifyReport((), (), 0, 0, 0, 0, 0, 0)


def test_counts(store, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", MIB)
    store.save({"a": noise(5 * MIB)})
    store.save(b"small")
    report = store.verify()
    assert report.ok
    assert report.snapshots == 2
    assert report.packs == store.info().objects["packs"][0] >= 4
    assert report.chunks >= 6
    assert 5 * MIB < report.bytes_read < 5.1 * MIB
    structure = store.verify(depth="structure")
    assert structure == report._replace(bytes_read=0)


def test_monitor_is_told_of_progress_by_one_thread_at_a_time(store, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 256 * 1024)

    class Watching(Monitor):
        ahead = done = inside = most = 0

        def total(self, size):
            self.ahead = size

        def read(self, size):
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.done += size
            self.inside -= 1

    store.save(noise(9 * MIB))
    monitor = Watching()
    report = store.verify(monitor=monitor)
    assert monitor.most == 1
    assert monitor.done == report.bytes_read <= monitor.ahead
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cas-checkpoint")]


def test_packs_larger_than_a_request_are_read_in_parts(store):
    store.save(noise(40 * MIB))
    report = store.verify()
    assert report.ok
    assert report.packs == 1
    assert report.bytes_read > 40 * MIB


def test_foreign_files_aborted_commits_and_marks_are_no_problem(store):
    store.save(noise(200_000))
    key = CommitKey("default", 9, TransactionId(b"\xab" * 16))
    store._backend.put_if_absent(str(key), Commit(State.ABORTED, StoreId(bytes.fromhex(store.id)), key).encode())
    store._backend.put_if_absent(mark_key(1), Mark(TransactionId(b"g" * 16), frozenset()).encode())
    for name in ("README", "packs/readme", "index/readme", "notes/x", "packs/.tmp-0123"):
        path = Path(store.url, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    report = store.verify()
    assert report.ok
    assert (report.snapshots, report.garbage_objects) == (1, 0)


# --- garbage ------------------------------------------------------------------------------------


def test_what_no_snapshot_needs_is_garbage_and_no_problem(store):
    snapshot = store.save(noise(200_000))
    store.save(b"small")
    store._backend.delete(str(snapshot._record.key))
    report = store.verify()
    assert report.ok
    assert report.garbage_objects == 2
    sizes = store.info().objects
    assert report.garbage_size == sizes["packs"][1] + sizes["manifests"][1]
    again = store.save(noise(200_000))
    assert again.stats.bytes_new == 0  # what was left is used
    assert store.verify().garbage_objects == 1


# --- damage -------------------------------------------------------------------------------------


def test_a_missing_index_is_no_damage_and_a_damaged_one_loses_nothing(store, tmp_path):
    data = noise(200_000)
    snapshot = store.save(data)
    path, key = only(store, "index")
    flip(path, 60)
    for depth in DEPTHS:
        report = store.verify(depth=depth)
        assert [problem.key for problem in report.problems] == [key]
        assert report.problems[0].snapshots == ()
        assert report.lost == ()
    assert snapshot.read_bytes("_dst_cp") == data
    path.unlink()
    assert store.verify().ok
    assert store.latest().read_bytes("_dst_cp") == data


def test_an_index_that_contradicts_a_pack_is_told(store, tmp_path):
    snapshot = store.save(noise(200_000))
    _, name = only(store, "packs")
    path, key = only(store, "index")
    pack = PackId(bytes.fromhex(name.partition("/")[2]))
    real = read_footer(store._backend, pack)
    builder = PackBuilder(pack)
    builder.add(bytes(real.ids[0]), 0, b"x" * int(real.plain_sizes[0]), int(real.plain_sizes[0]), 0)
    path.write_bytes(encode_index(TransactionId(bytes.fromhex(snapshot.id)), 0, [builder.finish()[0]]))
    report = store.verify()
    assert [(problem.key, "contradicts" in problem.message) for problem in report.problems] == [(key, True)]


def test_one_flipped_bit_names_the_chunk_the_snapshots_and_the_files(store):
    first = store.save({"a": noise(200_000, 1), "b": noise(200_000, 2), "c": b"small"})
    second = store.save({"same": noise(200_000, 2)})
    third = store.save({"other": noise(200_000, 3)})
    packs = {ref.pack.hex() for ref in first.reader().manifest().packs}
    (pack,) = packs
    flip(Path(store.url, "packs", pack), 300_000)
    assert store.verify(depth="structure").ok
    report = store.verify()
    (problem,) = report.problems
    assert problem.key == f"packs/{pack}"
    assert set(problem.snapshots) == {first.id, second.id}
    assert set(report.lost) == {AffectedPath(first.id, "b"), AffectedPath(second.id, "same")}
    assert third.read_bytes("other") == noise(200_000, 3)


def test_of_two_copies_a_damaged_one_loses_nothing_but_is_told(store):
    data = noise(200_000)
    first = store.save({"a": data})
    for item in list(store._backend.list("index/")):  # so that the second one cannot know of it
        store._backend.delete(item.key)
    second = Store.open(store.url, durable=False).save({"a": data})
    (pack,) = {ref.pack for ref in first.reader().manifest().packs}
    flip(Path(store.url, "packs", pack.hex()), 1000)
    report = store.verify()
    assert [problem.snapshots for problem in report.problems] == [(first.id,)]
    assert report.lost == ()
    assert first.read_bytes("a") == second.read_bytes("a") == data


def test_chunks_that_only_others_packs_hold_are_told(store):
    data = noise(200_000)
    first = store.save({"a": data})
    (pack,) = {ref.pack for ref in first.reader().manifest().packs}
    copy = copied(store._backend, pack)
    key = index_key(TransactionId(copy))
    store._backend.put(key, [encode_index(TransactionId(copy), 0, [read_footer(store._backend, copy)])])
    put_move(store._backend, pack, [])
    store._backend.delete(pack_key(pack))
    report = store.verify()
    assert report.lost == ()
    assert [problem.key for problem in report.problems] == [str(first.reader().key)]
    assert "run 'repair'" in report.problems[0].message
    assert first.read_bytes("a") == data


def test_a_missing_pack(store, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 128 * 1024)
    good = store.save({"other": noise(200_000, 9)})
    snapshot = store.save({"a": noise(200_000, 1), "b": noise(200_000, 2), "c": noise(200_000, 3)})
    gone = snapshot.reader().manifest().packs[0].pack.hex()
    Path(store.url, "packs", gone).unlink()
    for depth in DEPTHS:
        report = store.verify(depth=depth)
        assert [(problem.key, problem.snapshots) for problem in report.problems] == [(f"packs/{gone}", (snapshot.id,))]
        assert report.problems[0].message == "is missing"
    assert store.verify().lost == (AffectedPath(snapshot.id, "a"),)
    assert snapshot.read_bytes("c") == noise(200_000, 3)
    for item in list(store._backend.list("index/")):  # now nobody knows what lay in the pack
        store._backend.delete(item.key)
    assert store.verify().lost == (AffectedPath(snapshot.id, "a"),)
    assert good.read_bytes("other") == noise(200_000, 9)


@pytest.mark.parametrize("kind", ["deleted", "altered", "exchanged"])
def test_a_manifest_that_is_not_the_one_committed(store, kind):
    good, snapshot = store.save(noise(200_000, 1)), store.save(noise(200_000, 2))
    path = Path(store.url, "manifests", snapshot.id)
    if kind == "deleted":
        path.unlink()
    elif kind == "altered":
        flip(path, 60)
    else:
        path.write_bytes(Path(store.url, "manifests", good.id).read_bytes())
    for depth in DEPTHS:
        report = store.verify(depth=depth)
        assert [(problem.key, problem.snapshots) for problem in report.problems] == [
            (f"manifests/{snapshot.id}", (snapshot.id,))
        ]
        assert report.snapshots == 1
    assert good.read_bytes("_dst_cp") == noise(200_000, 1)


def test_a_file_among_the_commits_that_is_no_commit(store):
    store.save(b"x")
    Path(store.url, "commits", "default", "note").write_bytes(b"mine")
    for depth in DEPTHS:
        report = store.verify(depth=depth)
        assert [problem.key for problem in report.problems] == ["commits/default/note"]


def test_a_commit_of_another_store(store, tmp_path):
    snapshot = store.save(b"x")
    other = Store.open(tmp_path / "other", create=True, durable=False)
    key = str(other.save(b"y")._record.key)
    Path(store.url, key).write_bytes(Path(other.url, key).read_bytes())
    report = store.verify()
    assert [problem.key for problem in report.problems] == [key]
    assert "belongs to the store" in report.problems[0].message
    assert report.snapshots == 1
    assert snapshot.read_bytes("_dst_cp") == b"x"


@pytest.mark.parametrize("change", ["missing", "damaged", "another", "newer"])
def test_the_header(store, change):
    store.save(b"x")
    path = Path(store.url, HEADER_KEY)
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        other = Header(StoreId(b"o" * 16)).encode()
        path.write_bytes({"damaged": data[:-1], "another": other, "newer": data[:9] + b"\7" + data[10:]}[change])
    report = store.verify()
    assert [problem.key for problem in report.problems] == [HEADER_KEY]
    assert report.snapshots == 1


def committed(store, *entries, count=None):
    """Put a small snapshot with these entries into the store, as only a forger would write it."""
    record = store.save(b"".join(encode_entry(entry) for entry in entries))._record
    content = next(iter(store.snapshot(record.key.transaction.hex()).entries())).content
    forged = Manifest.decode(record.inline.manifest)._replace(
        entries=content, entry_count=len(entries) if count is None else count
    )
    manifest = forged.encode()
    inline = record.inline._replace(manifest=manifest)
    record = record._replace(manifest_digest=digest((manifest,)), manifest_size=len(manifest), inline=inline)
    store._backend.put(str(record.key), [record.encode()])
    return str(record.key), record.key.transaction.hex()


EMPTY = Content(0, 0, b"")
NO_CHUNK = b"x" * 32 + b"\5\0\0\0"


@pytest.mark.parametrize(
    ("entries", "lost"),
    [
        ([Entry(b"../up", EntryType.FILE, content=EMPTY)], ""),
        ([Entry(b"b", EntryType.FILE, content=EMPTY), Entry(b"a", EntryType.FILE, content=EMPTY)], ""),
        ([Entry(b"a", EntryType.FILE, size=5, content=Content(5, 0, NO_CHUNK))], "a"),
        ([Entry(b"a", EntryType.FILE, size=5, content=Content(5, 2, NO_CHUNK))], "a"),
        ([Entry(b"a", EntryType.FILE, size=6, content=Content(6, 0, NO_CHUNK))], "a"),
        ([Entry(b"a", EntryType.HARDLINK, target=b"b")], "a"),
        ([Entry(b"a", EntryType.DIRECTORY), Entry(b"b", EntryType.HARDLINK, target=b"a")], "b"),
    ],
)
@pytest.mark.parametrize("beside_other_damage", [False, True])
def test_a_snapshot_that_contradicts_itself_is_found(store, entries, lost, beside_other_damage):
    other = store.save({"other": noise(200_000)})
    if beside_other_damage:
        path, _ = only(store, "packs")
        flip(path, 1000)
    key, snapshot = committed(store, *entries)
    report = store.verify()
    assert (key, (snapshot,)) in [(problem.key, problem.snapshots) for problem in report.problems]
    assert AffectedPath(snapshot, lost) in report.lost
    assert (AffectedPath(other.id, "other") in report.lost) is beside_other_damage


def test_fewer_entries_than_the_manifest_says(store):
    key, snapshot = committed(store, Entry(b"a", EntryType.FILE, content=EMPTY), count=2)
    report = store.verify()
    assert [(problem.key, problem.snapshots) for problem in report.problems] == [(key, (snapshot,))]


def test_a_pack_that_cannot_be_read_is_reported_and_the_rest_is_checked(store, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 256 * 1024)
    snapshot = store.save({"a": noise(MIB, 1)})
    packs = [ref.pack.hex() for ref in snapshot.reader().manifest().packs]
    for pack in packs[:2]:
        path = Path(store.url, "packs", pack)
        size = path.stat().st_size
        os.truncate(path, size - 1)
    report = store.verify()
    assert {problem.key for problem in report.problems} == {f"packs/{pack}" for pack in packs[:2]}
    assert report.packs == len(packs)


@pytest.mark.parametrize("damage", [0, 1])
def test_a_pack_with_a_damaged_end_is_checked_by_the_copy_of_its_footer(store, damage):
    snapshot = store.save({"a": noise(200_000, 1), "b": noise(200_000, 2)})
    path, key = only(store, "packs")
    flip(path, -1)
    if damage:
        flip(path, 300_000)
    report = store.verify()
    assert [problem.key for problem in report.problems] == [key]
    assert report.lost == ((AffectedPath(snapshot.id, "b"),) if damage else ())
    assert snapshot.read_bytes("a") == noise(200_000, 1)


def test_a_snapshot_that_is_forgotten_meanwhile_is_no_problem(store):
    snapshot = store.save(noise(200_000))

    class Forgetting(type(store._backend)):
        def list(self, prefix):
            found = list(super().list(prefix))
            self.delete(str(snapshot._record.key))
            self.delete(f"manifests/{snapshot.id}")
            return iter(found)

    store._backend = Forgetting(store.url, durable=False)
    report = store.verify()
    assert report.ok
    assert report.snapshots == 0


def test_what_a_damaged_commit_needs_is_no_garbage(store):
    snapshot = store.save(noise(200_000))
    flip(Path(store.url, str(snapshot._record.key)), 60)
    report = store.verify()
    assert [problem.snapshots for problem in report.problems] == [(snapshot.id,)]
    assert (report.snapshots, report.garbage_objects) == (0, 0)


def test_damage_that_no_snapshot_suffers_from_is_told_too(store):
    snapshot = store.save(noise(200_000))
    publish_mark(store._backend, [])
    flip(Path(store.url, "marks/0000000000000001"), 30)
    store._backend.delete(str(snapshot._record.key))  # as if it was not committed yet
    path, pack = only(store, "packs")
    flip(path, 1000)
    path, manifest = only(store, "manifests")
    flip(path, 60)
    report = store.verify()
    assert {(problem.key, problem.snapshots) for problem in report.problems} == {
        ("marks/0000000000000001", ()),
        (manifest, ()),
        (pack, ()),
    }
    assert report.lost == ()


def test_what_is_in_quarantine_is_counted_apart(store):
    store._backend.put("quarantine/" + "ab" * 16, [b"what was a pack"])
    report = store.verify()
    assert report.ok
    assert (report.quarantined_objects, report.quarantined_size, report.garbage_objects) == (1, 15, 0)


@pytest.mark.parametrize(
    "options",
    [{"depth": "all"}, {"depth": "sample", "sample": 0}, {"depth": "sample", "sample": 2}],
)
def test_options_are_checked(store, options):
    with pytest.raises(InvalidArgument):
        store.verify(**options)


@pytest.mark.parametrize("at_once", [1, 2**14])
def test_files_are_looked_at_in_parts(store, monkeypatch, at_once):
    monkeypatch.setattr(losses, "_CHUNKS_AT_ONCE", at_once)
    snapshot = store.save({f"{number}": noise(70_000, number) for number in range(8)})
    path, _ = only(store, "packs")
    flip(path, 100_000)
    flip(path, 400_000)
    report = store.verify()
    assert report.lost == (AffectedPath(snapshot.id, "1"), AffectedPath(snapshot.id, "5"))


def test_data_that_cannot_be_read_is_told(store, monkeypatch):
    snapshot = store.save({"a": noise(200_000)})
    honest = LocalBackend.get_range

    def get_range(self, key, at, size):
        if at == PREFIX_SIZE:
            raise StorageError("a bad sector")
        return honest(self, key, at, size)

    monkeypatch.setattr(LocalBackend, "get_range", get_range)
    report = store.verify()
    assert {problem.message.partition(": ")[2] for problem in report.problems} == {"a bad sector"}
    assert report.lost[0].snapshot == snapshot.id


def test_entries_are_read_a_few_times_however_many_files_are_lost(store, monkeypatch):
    snapshot = store.save({f"{number}": noise(5000, number) for number in range(50)})
    (ref,) = snapshot.reader().manifest().packs
    path = Path(store.url, pack_key(ref.pack))
    footer, data = read_footer(store._backend, ref.pack), bytearray(path.read_bytes())
    for offset, size in zip(footer.offsets.tolist(), footer.plain_sizes.tolist(), strict=True):
        data[offset + 100] ^= int(size == 5000)
    path.write_bytes(data)
    honest, times = SnapshotReader.entries, []
    monkeypatch.setattr(SnapshotReader, "entries", lambda self: times.append(self) or honest(self))
    assert len(store.verify().lost) == 50
    assert len(times) <= 2


# --- moves --------------------------------------------------------------------------------------


@pytest.fixture
def moved(store):
    """A snapshot whose only pack was replaced by a copy of a copy, and which the index still lists."""
    snapshot = store.save({"a": noise(200_000)})
    backend = store._backend
    (ref,) = snapshot.reader().manifest().packs
    first = copied(backend, ref.pack)
    second = copied(backend, first)
    for pack, target in ((ref.pack, first), (first, second)):
        put_move(backend, pack, [target])
        backend.delete(pack_key(pack))
    return snapshot, second


def test_a_pack_that_was_moved_is_no_loss(store, moved):
    for depth in DEPTHS:
        report = store.verify(depth=depth)
        assert report.problems == report.lost == ()
        assert (report.packs, report.garbage_objects) == (1, 0)


def test_damage_where_a_pack_was_moved_to_is_told_of_who_needs_it(store, moved):
    snapshot, target = moved
    flip(Path(store.url, pack_key(target)), 1000)
    report = store.verify()
    assert [(problem.key, problem.snapshots) for problem in report.problems] == [(pack_key(target), (snapshot.id,))]
    assert report.lost == (AffectedPath(snapshot.id, "a"),)


def test_a_damaged_move_is_told_of_who_needs_it(store, moved):
    snapshot, _ = moved
    (pack,) = {ref.pack for ref in snapshot.reader().manifest().packs}
    (key,) = list_moves(store._backend, pack)
    flip(Path(store.url, str(key)), 40)
    problems = store.verify(depth="structure").problems
    assert {problem.key for problem in problems} == {str(key), pack_key(pack)}
    assert {problem.snapshots for problem in problems} == {(snapshot.id,)}


def test_a_move_that_lacks_chunks_loses_files(store):
    snapshot = store.save({"a": noise(200_000)})
    (ref,) = snapshot.reader().manifest().packs
    put_move(store._backend, ref.pack, [])
    store._backend.delete(pack_key(ref.pack))
    report = store.verify()
    assert report.lost == (AffectedPath(snapshot.id, ""),)
    assert [problem.snapshots for problem in report.problems] == [(snapshot.id,)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_an_overtaken_collection_left_is_no_loss(store, depth):
    """Its move names a pack that is gone; others say where all that is needed went, by however many steps."""
    (ref,) = store.save({"a": noise(200_000)}).reader().manifest().packs
    backend = store._backend
    put_move(backend, ref.pack, [PackId(b"gone" * 4)])
    assert store.verify(depth=depth).problems == ()  # the pack itself is there
    steps = [ref.pack]
    for _ in range(3):
        steps.append(copied(backend, steps[-1]))
        put_move(backend, steps[-2], [steps[-1]])
        backend.delete(pack_key(steps[-2]))
        assert store.verify(depth=depth).problems == ()
    backend.delete(pack_key(steps[-1]))
    missing = {problem.key for problem in store.verify(depth="structure").problems}
    assert missing == {pack_key(PackId(b"gone" * 4)), pack_key(steps[-1])}


def test_a_move_of_which_one_pack_is_gone_is_a_loss_already_in_the_structure(store):
    snapshot = store.save({"a": noise(200_000)})
    (ref,) = snapshot.reader().manifest().packs
    lost = PackId(b"gone" * 4)
    put_move(store._backend, ref.pack, [copied(store._backend, ref.pack), lost])
    store._backend.delete(pack_key(ref.pack))
    problems = store.verify(depth="structure").problems
    assert [(problem.key, problem.snapshots) for problem in problems] == [(pack_key(lost), (snapshot.id,))]


def test_moves_of_packs_that_nobody_needs_are_garbage(store):
    put_move(store._backend, PackId(b"p" * 16), [])
    (key,) = list_moves(store._backend)
    report = store.verify()
    assert report.ok
    assert report.garbage_objects == 1
    flip(Path(store.url, str(key)), 40)
    assert [problem.key for problem in store.verify().problems] == [str(key)]


@pytest.mark.parametrize("moment", ["footer", "data"])
def test_packs_that_are_collected_meanwhile_are_no_problem(store, monkeypatch, moment):
    kept, dropped = store.save({"a": noise(200_000, 1)}), store.save({"a": noise(200_000, 2)})
    backend = store._backend
    packs = {
        name: ref.pack
        for name, each in (("kept", kept), ("dropped", dropped))
        for ref in each.reader().manifest().packs
    }
    honest = LocalBackend.get_range
    done = []

    def get_range(self, key, at, size):
        if not done and (moment == "footer") == (at == 0) and key.startswith("packs/"):
            done.append(key)
            put_move(backend, packs["kept"], [copied(backend, packs["kept"])])
            for pack in packs.values():
                backend.delete(pack_key(pack))
            store.forget(dropped)
        return honest(self, key, at, size)

    monkeypatch.setattr(LocalBackend, "get_range", get_range)
    report = store.verify()
    assert done
    assert report.problems == report.lost == ()


# --- samples ------------------------------------------------------------------------------------


def test_a_sample_reads_a_share_of_the_chunks_and_the_same_ones_for_the_same_seed(store):
    store.save({"a": noise(30 * MIB)})
    sizes = {
        seed: [store.verify(depth="sample", sample=0.3, seed=seed).bytes_read for _ in range(2)] for seed in range(4)
    }
    assert all(first == again for first, again in sizes.values())
    assert len({first for first, _ in sizes.values()}) > 1
    assert all(3 * MIB < first < 18 * MIB for first, _ in sizes.values())
    assert store.verify(depth="sample", sample=1).bytes_read == store.verify().bytes_read


def test_samples_find_damage_sooner_or_later(store):
    snapshot = store.save({"a": noise(4 * MIB)})
    path, _key = only(store, "packs")
    flip(path, MIB)
    reports = [store.verify(depth="sample", sample=0.2, seed=seed) for seed in range(30)]
    assert {report.ok for report in reports} == {True, False}
    (lost,) = {report.lost for report in reports if not report.ok}
    assert lost == (AffectedPath(snapshot.id, "a"),)


# --- interruptions ------------------------------------------------------------------------------


@pytest.fixture
def many(store, monkeypatch):
    """A store of some ten packs."""
    monkeypatch.setattr(packing, "PACK_SIZE", 256 * 1024)
    store.save({"a": noise(3 * MIB)})
    return Store.open(store.url, durable=False, workers=1)


class Interrupting(Monitor):
    left = 4

    def read(self, size):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_verification_goes_on_where_it_stopped(many, tmp_path):
    whole = many.verify()
    notes = tmp_path / "notes"
    with pytest.raises(KeyboardInterrupt):
        many.verify(resume=notes, monitor=Interrupting())
    assert notes.exists()
    rest = many.verify(resume=notes)
    assert 0 < rest.bytes_read < whole.bytes_read
    assert rest._replace(bytes_read=0) == whole._replace(bytes_read=0)
    assert list(tmp_path.iterdir()) == [Path(many.url)]  # it has come to its end
    assert many.verify(resume=notes) == whole


def test_what_is_damaged_is_told_again(many, tmp_path):
    first = min(Path(many.url, "packs").iterdir())
    flip(first, 1000)
    with pytest.raises(KeyboardInterrupt):
        many.verify(resume=tmp_path / "notes", monitor=Interrupting())
    report = many.verify(resume=tmp_path / "notes")
    assert [problem.key for problem in report.problems] == [f"packs/{first.name}"]
    assert report == many.verify()._replace(bytes_read=report.bytes_read)


@pytest.mark.parametrize("change", ["foreign", "flipped", "cut", "empty", "other"])
def test_a_file_that_is_no_note_of_this_store_is_refused_and_left_alone(many, tmp_path, change):
    notes = tmp_path / "notes"
    with pytest.raises(KeyboardInterrupt):
        many.verify(resume=notes, monitor=Interrupting())
    data = notes.read_bytes()
    store = Store.open(tmp_path / "another", create=True, durable=False) if change == "foreign" else many
    changed = {
        "flipped": bytes([*data[:50], data[50] ^ 1, *data[51:]]),
        "cut": data[:-16],
        "empty": b"",
        "other": b"my letter",
    }
    notes.write_bytes(changed.get(change, data))
    with pytest.raises(InvalidArgument, match="notes"):
        store.verify(resume=notes)
    assert notes.read_bytes() == changed.get(change, data)


def test_notes_that_cannot_be_read_or_written(many, tmp_path):
    with pytest.raises(StorageError):
        many.verify(resume=tmp_path)
    with pytest.raises(StorageError):
        many.verify(resume=tmp_path / "nowhere" / "notes")
    with pytest.raises(InvalidArgument):
        many.verify(depth="sample", resume=tmp_path / "notes")
