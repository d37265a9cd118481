"""What a repair puts aside, what it heals, what it says is lost, and what is left of a store wherever it is stopped."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cas_checkpoint import packing, repairing
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import index_key, manifest_key, pack_key
from cas_checkpoint.copies import rows_of
from cas_checkpoint.copying import PackCopier
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, StorageError
from cas_checkpoint.footers import read_footer, read_index_footers
from cas_checkpoint.ids import PackId, TransactionId
from cas_checkpoint.marks import Mark, mark_key
from cas_checkpoint.merging import list_indexes
from cas_checkpoint.moves import closure
from cas_checkpoint.packs import PREFIX_SIZE
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import list_marks, list_moves, list_packs, publish_mark, put_move, read_moves
from cas_checkpoint.verifying import AffectedPath

KIB = 2**10


def noise(size, seed):
    return random.Random(seed).randbytes(size)


FILES = {"a": noise(200_000, 1), "b": noise(200_000, 2), "c": b"all work and no play\n" * 5000}


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree").mkdir()
    for name, data in FILES.items():
        (tmp_path / "tree" / name).write_bytes(data)
    return tmp_path / "tree"


@pytest.fixture
def snapshot(store, tree):
    """A snapshot of three files in one pack."""
    return store.save(tree)


@pytest.fixture
def save_again(store, tree):
    """Save the same content in a way that does not know of what the index does not list."""
    return lambda: Store.open(store.url, durable=False).save(tree, series="again", files_cache=False)


@pytest.fixture
def pack(snapshot):
    (ref,) = snapshot.reader().manifest().packs
    return ref.pack


def path_of(store, pack):
    return Path(store.url, pack_key(pack))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def spoil(path, at=40):
    """Alter a byte in more than one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x5A
    path.write_bytes(data)


def chunks_of(snapshot, name):
    reader = snapshot.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == name)
    return {ref.chunk for ref in reader.refs(entry.content)}


def damage(store, pack, snapshot, name):
    """Flip a bit in each chunk of a file."""
    footer = read_footer(store._backend, pack)
    for row, _ in rows_of(footer, chunks_of(snapshot, name)):
        flip(path_of(store, pack), int(footer.offsets[row]) + 1)


def moves_of(backend):
    return read_moves(backend, list_moves(backend))


def aside(backend):
    return {info.key for info in backend.list("quarantine/")}


def without_indexes(backend):
    for info in list(backend.list("index/")):
        backend.delete(info.key)


def paths(*pairs):
    return tuple(AffectedPath(snapshot.id, path) for snapshot, path in pairs)


def restored(store, snapshot, files=FILES):
    return {name: store.snapshot(snapshot.id).read_bytes(name) for name in files} == files


# --- nothing to do ------------------------------------------------------------------------------


def test_a_whole_store_is_left_as_it_is(store, backend, snapshot):
    before = {info.key: backend.get(info.key, max_size=2**26) for info in backend.list("")}
    report = store.repair()
    assert report.ok
    assert (report.problems, report.quarantined, report.packs_indexed) == ((), (), 0)
    assert {info.key: backend.get(info.key, max_size=2**26) for info in backend.list("")} == before


# --- damaged packs ------------------------------------------------------------------------------


def test_what_is_whole_of_a_damaged_pack_is_copied_and_the_pack_is_put_aside(store, backend, snapshot, pack):
    damage(store, pack, snapshot, "b")
    broken = path_of(store, pack).read_bytes()
    report = store.repair()
    assert not report.ok
    assert report.quarantined == (pack_key(pack),)
    assert backend.get(f"quarantine/{pack.hex()}", max_size=2**26) == broken
    assert report.lost == paths((snapshot, "b"))
    assert report.left == report.healed == ()
    assert report.chunks_copied > 0
    (targets,) = moves_of(backend).values()
    assert list_packs(backend) == targets
    assert list_marks(backend).open == ()
    for name in ("a", "c"):
        assert snapshot.read_bytes(name) == FILES[name]
    with pytest.raises(CasCheckpointError):
        snapshot.read_bytes("b")
    after = store.verify()
    assert after.lost == report.lost
    assert [problem.key for problem in after.problems] == [str(snapshot.reader().key)]
    assert (after.quarantined_objects, after.quarantined_size) == (1, len(broken))
    assert after.garbage_objects == 0


def test_the_index_lists_the_new_packs_and_no_more_the_old_one(store, backend, snapshot, pack):
    damage(store, pack, snapshot, "b")
    store.repair()
    listed = {footer.pack for name in list_indexes(backend) for footer in read_index_footers(backend, name)}
    assert listed == list_packs(backend)


def test_saving_the_same_again_and_repairing_once_more_heals(store, snapshot, pack):
    damage(store, pack, snapshot, "b")
    store.repair()
    again = Store.open(store.url, durable=False).save({"elsewhere": FILES["b"]}, series="again")
    assert again.stats.bytes_new > 0
    found = store.verify()
    assert found.lost == ()
    assert [problem.snapshots for problem in found.problems] == [(snapshot.id,)]
    report = store.repair()
    assert report.ok
    assert report.healed == paths((snapshot, "b"))
    assert report.quarantined == ()
    assert store.verify().ok
    store.forget(again)
    store.collect()
    assert restored(store, snapshot)
    assert store.verify().ok
    assert store.repair().problems == ()


def test_a_repair_heals_at_once_what_other_packs_hold(store, backend, snapshot, pack, save_again):
    without_indexes(backend)
    other = save_again()
    damage(store, pack, snapshot, "b")
    report = store.repair()
    assert report.ok
    assert report.healed == paths((snapshot, "b"))
    store.forget(other)
    store.collect()
    assert restored(store, snapshot)


def test_a_missing_pack_is_replaced_by_others(store, backend, snapshot, pack, save_again):
    path_of(store, pack).unlink()
    without_indexes(backend)
    assert store.repair().lost == paths((snapshot, ""))
    assert moves_of(backend) == {}
    other = save_again()
    assert [problem.key for problem in store.verify().problems] == [pack_key(pack)]
    report = store.repair()
    assert report.ok
    assert report.healed == paths(*((snapshot, path) for path in ("", *FILES)))
    store.forget(other)
    store.collect()
    assert restored(store, snapshot)
    assert store.verify().ok


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_pack_without_a_readable_footer(store, backend, snapshot, pack, is_indexed):
    spoil(path_of(store, pack), -20)
    if not is_indexed:
        without_indexes(backend)
    report = store.repair()
    assert report.quarantined == (pack_key(pack),)
    assert report.ok is is_indexed
    assert restored(store, snapshot) if is_indexed else report.lost == paths((snapshot, ""))
    assert moves_of(backend)[pack] == list_packs(backend)
    assert store.verify().ok is is_indexed


@pytest.mark.parametrize("at", [0, 9, 12, 20, -1, -6, -9])
def test_a_pack_damaged_outside_of_its_blobs_is_replaced_without_a_loss(store, snapshot, pack, at):
    flip(path_of(store, pack), at)
    assert not store.verify(depth="structure").ok
    assert store.repair().ok
    assert restored(store, snapshot)
    assert store.verify().ok


def test_a_pack_that_was_cut_short(store, snapshot, pack):
    path = path_of(store, pack)
    path.write_bytes(path.read_bytes()[: 250 * KIB])
    report = store.repair()
    assert {item.path for item in report.lost} >= {"b"} or report.lost == paths((snapshot, ""))
    assert report.chunks_copied > 0


def test_a_damaged_pack_that_nobody_needs_goes_too_so_that_no_save_relies_on_it(store, backend, snapshot, pack):
    damage(store, pack, snapshot, "b")
    store.forget(snapshot)
    assert not store.verify().ok
    report = store.repair()
    assert report.ok
    assert report.quarantined == (pack_key(pack),)
    again = Store.open(store.url, durable=False).save(FILES)
    assert restored(store, again)
    assert 0 < again.stats.bytes_new < 400_000  # the rest was found in the copy
    store.collect()
    assert store.verify().ok
    assert list_moves(backend) == []


def test_a_pack_of_a_newer_version_is_left_alone(store, backend, snapshot, pack):
    path = path_of(store, pack)
    data = bytearray(path.read_bytes())
    footer = len(read_footer(backend, pack).encoded)
    for at in (9, len(data) - 8 - footer + 9):
        data[at] = 7
    path.write_bytes(data)
    report = store.repair()
    assert [problem.key for problem in report.left] == [pack_key(pack)]
    assert path.read_bytes() == data


def test_a_report_says_where_to_look(store, snapshot, pack, monkeypatch):
    monkeypatch.setattr(packing, "PACK_SIZE", 256 * KIB)
    store.save({"more": noise(2_000_000, 9)}, series="more")
    damage(store, pack, snapshot, "a")
    report = store.verify()
    read = []
    monkeypatch.setattr(
        LocalBackend, "get_range", lambda self, key, at, size, old=LocalBackend.get_range: (
            read.append(size) or old(self, key, at, size)
        )
    )  # fmt: skip
    assert store.repair(report=report).quarantined == (pack_key(pack),)
    assert sum(read) < 3_000_000  # the damaged pack a few times; the other ones' footers
    assert store.verify().lost == report.lost == paths((snapshot, "a"))


def test_a_dry_run_says_the_same_and_does_nothing(store, backend, snapshot, pack):
    other = Store.open(store.url, durable=False).save({"x": noise(150_000, 5)}, series="other")
    damage(store, pack, snapshot, "b")
    (name,) = (name for name in list_indexes(backend) if name == TransactionId(bytes.fromhex(other.id)))
    flip(Path(store.url, index_key(name)), 60)
    publish_mark(backend, [])
    flip(Path(store.url, mark_key(1)), 30)
    before = {info.key: backend.get(info.key, max_size=2**26) for info in backend.list("")}
    forecast = store.repair(dry_run=True)
    assert {info.key: backend.get(info.key, max_size=2**26) for info in backend.list("")} == before
    report = store.repair()
    assert forecast.dry_run
    for field in ("problems", "left", "lost", "healed", "quarantined", "packs_indexed"):
        assert getattr(forecast, field) == getattr(report, field)


def test_a_pack_that_was_misread_once_stays(store, backend, snapshot, pack, monkeypatch):
    honest = LocalBackend.get_range
    seen = []

    def misread(self, key, at, size):
        data = honest(self, key, at, size)
        if key == pack_key(pack) and at == PREFIX_SIZE and not seen:
            seen.append(key)
            return bytes(size)
        return data

    monkeypatch.setattr(LocalBackend, "get_range", misread)
    report = store.repair()
    assert seen
    assert [problem.key for problem in report.left] == [pack_key(pack)]
    assert "a moment later" in report.left[0].message
    assert report.quarantined == ()
    assert list_packs(backend) == {pack}


# --- the index ----------------------------------------------------------------------------------


def test_damaged_index_objects_go_and_their_packs_are_indexed_anew(store, backend, snapshot, pack):
    key = index_key(TransactionId(bytes.fromhex(snapshot.id)))
    flip(Path(store.url, key), 60)
    report = store.repair()
    assert report.ok
    assert (report.packs_indexed, report.quarantined) == (1, ())
    (name,) = list_indexes(backend)
    assert index_key(name) != key
    assert [footer.pack for footer in read_index_footers(backend, name)] == [pack]
    assert store.verify().ok


def test_packs_without_an_index_object_are_indexed_if_a_snapshot_needs_them(store, backend, snapshot, pack):
    other = store.save({"x": noise(150_000, 5)})
    store.forget(other)
    without_indexes(backend)
    assert store.repair().packs_indexed == 1
    (name,) = list_indexes(backend)
    assert [footer.pack for footer in read_index_footers(backend, name)] == [pack]


# --- single bits --------------------------------------------------------------------------------


@pytest.fixture
def mixed(store, backend, snapshot, pack):
    """Objects of all kinds, a key of each."""
    small = store.save({"note": b"small"}, series="small")
    other = store.save({"x": noise(200_000, 5)}, series="other")
    mark = publish_mark(backend, [])
    (moved,) = list_packs(backend) - {pack}
    publish_mark(backend, [moved])
    store.collect()
    (move,) = list_moves(backend)
    assert restored(store, other, {"x": noise(200_000, 5)})
    return {
        "commit": str(snapshot.reader().key),
        "inline commit": str(small.reader().key),
        "manifest": f"manifests/{snapshot.id}",
        "mark": mark_key(mark),
        "mark's end": mark_key(mark, closed=True),
        "move": str(move),
    }


@pytest.mark.parametrize("kind", ["commit", "inline commit", "manifest", "mark", "mark's end", "move"])
@pytest.mark.parametrize("at", [3, 9, 18, 60, -1])
def test_a_flipped_bit_in_a_record_is_undone(store, backend, mixed, kind, at):
    key = mixed[kind]
    whole = backend.get(key, max_size=2**20)
    flip(Path(store.url, key), at)
    assert not store.verify(depth="structure").ok
    forecast = store.repair(dry_run=True)
    assert forecast.corrected == (key,)
    assert forecast.left == ()
    report = store.repair()
    assert report.ok
    assert report.corrected == (key,)
    assert key in {problem.key for problem in report.problems}
    assert report.quarantined == ()
    assert backend.get(key, max_size=2**20) == whole
    assert store.verify().ok


@pytest.mark.parametrize("at", [-9, -20, -1000])
def test_a_flipped_bit_in_the_only_footer_of_a_pack_loses_nothing(store, backend, snapshot, pack, at):
    without_indexes(backend)
    assert len(read_footer(backend, pack).encoded) < 1000
    flip(path_of(store, pack), max(at, -len(read_footer(backend, pack).encoded)))
    report = store.repair()
    assert report.ok
    assert report.corrected == report.quarantined == (pack_key(pack),)
    assert restored(store, snapshot)
    assert store.verify().ok


@pytest.mark.parametrize("kind", ["commit", "manifest"])
def test_worse_damage_of_a_record_is_left_and_told(store, backend, mixed, snapshot, kind):
    spoil(Path(store.url, mixed[kind]))
    report = store.repair()
    assert [(problem.key, problem.snapshots) for problem in report.left] == [(mixed[kind], (snapshot.id,))]
    assert report.quarantined == report.corrected == ()


# --- marks and moves ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_damaged_mark_no_longer_stops_saves(store, backend, snapshot, is_closed):
    number = publish_mark(backend, [PackId(b"p" * 16)])
    if is_closed:
        backend.put(mark_key(number, closed=True), [b"damaged"])
    spoil(Path(store.url, mark_key(number)))
    report = store.repair()
    assert report.ok
    assert len(report.problems) == 1 + is_closed
    mark = Mark.decode(backend.get(mark_key(number), max_size=2**20))
    assert mark.packs == (frozenset() if is_closed else list_packs(backend))
    later = Store.open(store.url, durable=False).save(FILES | {"d": noise(150_000, 7)})
    store.collect()
    assert list_marks(backend).open == ()
    assert restored(store, snapshot)
    assert restored(store, later)
    assert store.verify().ok


def moved(store, backend, snapshot, pack):
    """Replace the pack by copies, with a move."""
    mark = publish_mark(backend, [pack])
    store.collect()
    assert mark not in list_marks(backend).open
    assert list_packs(backend).isdisjoint({pack})


def test_a_damaged_move_is_replaced(store, backend, snapshot, pack):
    moved(store, backend, snapshot, pack)
    (key,) = list_moves(backend)
    spoil(Path(store.url, str(key)))
    assert not store.verify(depth="structure").ok
    report = store.repair()
    assert report.ok
    assert report.quarantined == (str(key),)
    assert aside(backend) == {f"quarantine/{key.collection.hex()}"}
    assert store.verify().ok
    store.collect()
    assert restored(store, snapshot)


def test_a_damaged_move_of_a_pack_that_is_still_there_is_replaced(store, backend, snapshot, pack, save_again):
    without_indexes(backend)
    save_again()
    (copy,) = list_packs(backend) - {pack}
    put_move(backend, pack, [copy])
    (key,) = list_moves(backend)
    spoil(Path(store.url, str(key)))
    assert store.repair().ok
    assert moves_of(backend) == {pack: frozenset({copy})}
    backend.delete(pack_key(pack))  # by the collection that was about to do so
    assert restored(store, snapshot)


def test_what_is_about_to_be_collected_is_copied_instead(store, backend, snapshot, pack, save_again):
    without_indexes(backend)
    other = save_again()
    (copy,) = list_packs(backend) - {pack}
    store.forget(other)
    publish_mark(backend, [copy])  # of a collection that is under way
    damage(store, pack, snapshot, "b")
    assert store.repair().ok
    backend.delete(pack_key(copy))
    assert restored(store, snapshot)


def test_what_cannot_be_copied_either_is_left(store, backend, snapshot, pack, save_again, monkeypatch):
    without_indexes(backend)
    other = save_again()
    (copy,) = list_packs(backend) - {pack}
    store.forget(other)
    publish_mark(backend, [copy])
    damage(store, pack, snapshot, "b")
    honest = repairing.condemned_packs

    def condemned(*arguments, **options):  # and now it is deleted as well
        found = honest(*arguments, **options)
        backend.delete(pack_key(copy))
        return found

    monkeypatch.setattr(repairing, "condemned_packs", condemned)
    report = store.repair()
    assert not report.ok
    assert report.healed == ()
    assert "not to be had" in report.left[0].message
    monkeypatch.undo()
    assert store.repair().lost == paths((snapshot, "b"))


def test_two_repairs_at_once(store, backend, snapshot, pack, monkeypatch):
    damage(store, pack, snapshot, "b")
    honest = PackCopier.finish
    others = []

    def finish(self):
        if not others:
            others.append(None)
            others.append(Store.open(store.url, durable=False).repair())
        return honest(self)

    monkeypatch.setattr(PackCopier, "finish", finish)
    reports = [store.repair(), others[1]]
    assert {report.lost for report in reports} == {paths((snapshot, "b"))}
    assert [report.left for report in reports] == [(), ()]
    assert snapshot.read_bytes("a") == FILES["a"]
    store.collect()
    assert snapshot.read_bytes("c") == FILES["c"]
    assert store.verify().lost == paths((snapshot, "b"))


def test_a_pack_that_cannot_be_read_is_left(store, backend, snapshot, pack, monkeypatch):
    honest = LocalBackend.get_range

    def get_range(self, key, at, size):
        if key == pack_key(pack) and at == PREFIX_SIZE:
            raise StorageError("a bad sector")
        return honest(self, key, at, size)

    monkeypatch.setattr(LocalBackend, "get_range", get_range)
    report = store.repair()
    assert {problem.key for problem in report.left} == {pack_key(pack)}
    assert report.quarantined == ()
    assert list_packs(backend) == {pack}


def test_a_repair_that_is_overtaken_by_a_collection_leaves_the_pack_as_it_is(
    store, backend, snapshot, pack, monkeypatch
):
    damage(store, pack, snapshot, "b")
    monkeypatch.setattr(repairing, "condemned_packs", lambda backend, base, packs, own=None: frozenset(packs))
    report = store.repair()
    assert [problem.key for problem in report.left] == [pack_key(pack)]
    assert report.quarantined == ()
    assert pack in list_packs(backend)
    monkeypatch.undo()
    assert store.repair().left == ()
    assert pack not in list_packs(backend)
    assert snapshot.read_bytes("a") == FILES["a"]


# --- stopped ------------------------------------------------------------------------------------


class Crash(Exception):
    pass


class Crashing(LocalBackend):
    """Stops at the n-th operation that changes something, before or after it."""

    steps = 0
    after = False

    def _step(self, work):
        self.steps -= 1
        if self.steps == 0 and not self.after:
            raise Crash
        result = work()
        if self.steps == 0:
            raise Crash
        return result

    def put(self, key, parts):
        return self._step(lambda: super(Crashing, self).put(key, parts))

    def put_if_absent(self, key, data):
        return self._step(lambda: super(Crashing, self).put_if_absent(key, data))

    def delete(self, key):
        return self._step(lambda: super(Crashing, self).delete(key))


@pytest.mark.parametrize("after", [False, True])
def test_a_repair_stopped_anywhere_costs_nothing_and_the_next_one_ends_it(store, tmp_path, after):
    damaged = store.save(FILES)
    (pack,) = list_packs(store._backend)
    whole = store.save({"x": noise(300_000, 5), "a": FILES["a"]}, series="whole")
    store.save({"same": FILES["b"]}, series="b")
    damage(store, pack, damaged, "c")
    (index,) = (name for name in list_indexes(store._backend) if name.hex() == whole.id)
    flip(Path(store.url, index_key(index)), 60)
    place = tmp_path / "copy"
    for steps in range(1, 40):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(store.url, place)
        opened = Store.open(place, durable=False, workers=1)
        opened._backend = backend = Crashing(str(place), durable=False)
        backend.steps, backend.after = steps, after
        try:
            opened.repair()
        except Crash:
            pass
        else:
            break
        opened = Store.open(place, durable=False, workers=1)
        assert restored(opened, whole, {"x": noise(300_000, 5), "a": FILES["a"]}), steps
        assert restored(opened, damaged, {"a": FILES["a"], "b": FILES["b"]}), steps
        if steps % 3 == 0:
            opened.collect()
        report = opened.repair()
        assert report.left == (), steps
        assert {item.path for item in opened.verify().lost} == {"c"}, steps
        opened.collect()
        assert list_marks(opened._backend).open == (), steps
        assert restored(opened, damaged, {"a": FILES["a"], "b": FILES["b"]}), steps
        assert restored(opened, whole, {"x": noise(300_000, 5), "a": FILES["a"]}), steps
        assert list(place.glob("quarantine/*")), steps
    assert steps > 8


def test_a_pack_that_cannot_be_put_aside_stays(store, backend, snapshot, pack, monkeypatch):
    damage(store, pack, snapshot, "b")
    honest = LocalBackend.put

    def put(self, key, parts):
        if key.startswith("quarantine/"):
            raise StorageError("no space left")
        honest(self, key, parts)

    monkeypatch.setattr(LocalBackend, "put", put)
    report = store.repair()
    assert [problem.key for problem in report.left] == [pack_key(pack)]
    assert "no space left" in report.left[0].message
    assert pack in list_packs(backend)
    assert list_marks(backend).open == ()
    assert snapshot.read_bytes("a") == FILES["a"]
    monkeypatch.undo()
    assert store.repair().left == ()
    assert pack not in list_packs(backend)
    assert closure([pack], moves_of(backend)) > {pack}


# --- manifests ----------------------------------------------------------------------------------


def test_a_damaged_manifest_of_no_snapshot_is_put_aside_and_stops_collections_no_more(store):
    kept, lost = (store.save({"a": noise(300_000, seed)}) for seed in (1, 2))
    store._backend.delete(str(lost.reader().key))
    key = manifest_key(TransactionId(bytes.fromhex(lost.id)))
    spoil(Path(store.url, key))
    with pytest.raises(DamagedObject, match=lost.id):
        store.collect()
    forecast = store.repair(dry_run=True)
    assert (forecast.quarantined, forecast.left) == ((key,), ())
    report = store.repair()
    assert (report.quarantined, report.left, report.ok) == ((key,), (), True)
    assert aside(store._backend) == {f"quarantine/{lost.id}"}
    assert store.collect().packs_deleted == 1
    assert store.verify().ok
    assert kept.read_bytes("a") == noise(300_000, 1)


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_damaged_manifest_of_a_snapshot_stays_until_that_is_forgotten(store, is_readable):
    lost = store.save({"a": noise(300_000, 2)})
    key = lost.reader().key
    if not is_readable:
        spoil(Path(store.url, str(key)))
    spoil(Path(store.url, manifest_key(key.transaction)))
    report = store.repair()
    assert report.quarantined == ()
    assert manifest_key(key.transaction) in {problem.key for problem in report.left}
    store.forget(lost.id)
    assert store.collect().packs_deleted == 1
    assert store.verify().ok


def test_a_manifest_that_is_committed_or_right_by_now_is_not_put_aside(store, monkeypatch):
    snapshot = store.save({"a": noise(300_000, 2)})
    key = snapshot.reader().key
    commit, manifest = Path(store.url, str(key)), Path(store.url, manifest_key(key.transaction))
    states = commit.read_bytes(), manifest.read_bytes()
    for meanwhile in (commit, manifest):
        commit.unlink()
        spoil(manifest)
        honest = repairing._Repair._remove_manifests

        def remove_manifests(self, meanwhile=meanwhile, honest=honest):
            meanwhile.write_bytes(states[meanwhile is manifest])
            honest(self)

        monkeypatch.setattr(repairing._Repair, "_remove_manifests", remove_manifests)
        assert store.repair().quarantined == ()
        monkeypatch.undo()
        commit.write_bytes(states[0])
        manifest.write_bytes(states[1])


def test_a_damaged_manifest_of_a_part_stays(store):
    store.save_part({"a": noise(300_000, 1)}, store.begin_parts(parts=2), part=0)
    (key,) = (info.key for info in store._backend.list("parts/"))
    spoil(Path(store.url, key))
    report = store.repair()
    assert report.quarantined == ()
    assert [problem.key for problem in report.left] == [key]
