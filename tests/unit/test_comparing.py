"""What a save is compared with: the snapshot before, whatever has become of it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from cas_checkpoint import comparing, filescache, packing, streams
from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.commits import CommitKey
from cas_checkpoint.comparing import Comparison, Parent
from cas_checkpoint.errors import DamagedObject, ObjectNotFound
from cas_checkpoint.filescache import FilesCacheWriter
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import StoreId, TransactionId
from cas_checkpoint.manifests import decode_entry, encode_entry
from cas_checkpoint.store import Store

KIB, MIB = 2**10, 2**20
TINY = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def fill(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A store that cuts so small that lists of chunks are chunks themselves, and takes small files for large ones."""
    monkeypatch.setattr(comparing, "_MIN_FORECAST", 10_000)
    monkeypatch.setattr(comparing, "_MIN_SIMILAR", 20_000)
    place = tmp_path / "tiny"
    place.mkdir()
    (place / HEADER_KEY).write_bytes(Header(StoreId(b"s" * 16), chunker=TINY, metadata_chunker=TINY).encode())
    return Store.open(place, durable=False, workers=2)


FILES = {"a": noise(300_000, 1), "d/b": noise(400_000, 2), "d/c": b"small", "e": b"", "z": noise(1_200_000, 3)}


@pytest.fixture
def tree(tmp_path):
    root = fill(tmp_path / "tree", FILES)
    os.symlink("a", root / "link")
    return root


def comparison_of(store, snapshot, *, cache=None):
    key = snapshot._record.key if snapshot is not None else None
    return Comparison(store._backend, StoreId(bytes.fromhex(store.id)), cache, key)


def cache_of(snapshot, key=None):
    writer = FilesCacheWriter(2**62)
    for number, entry in enumerate(snapshot.entries()):
        writer.add(encode_entry(entry), (number, 1, 1, number))
    return writer.finish(key or snapshot._record.key)


# --- the parent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [True, False])
def test_rows_are_the_entries_of_the_parent(store, tree, small):
    snapshot = store.save({"a": b"x", "b": b""} if small else tree)
    assert (snapshot.reader().inline_size() is not None) == small
    parent = Parent(store._backend, StoreId(bytes.fromhex(store.id)), snapshot._record.key)
    rows = list(parent.rows())
    assert [decode_entry(row.encoded) for row in rows] == list(snapshot.entries())
    assert [row.path for row in rows] == [entry.path for entry in snapshot.entries()]
    assert {row.stamp for row in rows} == {None}
    assert parent.record == snapshot._record


def test_a_parent_that_is_not_there_or_of_another_store(store):
    snapshot = store.save(b"x")
    with pytest.raises(ObjectNotFound):
        Parent(store._backend, StoreId(bytes.fromhex(store.id)), CommitKey("default", 9, TransactionId(b"t" * 16)))
    with pytest.raises(DamagedObject):
        Parent(store._backend, StoreId(b"o" * 16), snapshot._record.key)


def test_without_a_snapshot_there_is_nothing_to_compare_with(store):
    comparison = comparison_of(store, None)
    assert comparison.parent() is None
    assert comparison.row(b"a", 10 * MIB) is None
    assert comparison.forecast(None, 10 * MIB) is None


def test_a_parent_that_cannot_be_used_is_asked_for_once(store):
    snapshot = store.save(b"x")
    comparison = comparison_of(store, snapshot)
    path = Path(store.url, str(snapshot._record.key))
    data = path.read_bytes()
    path.unlink()
    assert comparison.parent() is None
    path.write_bytes(data)
    assert comparison.parent() is None
    assert comparison_of(store, snapshot).parent().record == snapshot._record


def test_nothing_is_read_before_it_is_needed(store, tree):
    snapshot = store.save(tree)
    shutil.rmtree(store.url)
    comparison = comparison_of(store, snapshot)
    assert comparison.row(b"d/c", 5) is None  # too small for a forecast
    assert comparison.row(b"d") is None
    assert comparison.forecast(None, 5) is None
    assert comparison._key is not None


# --- rows by path -------------------------------------------------------------------------------


def test_rows_are_found_in_order(store, tree):
    snapshot = store.save(tree)
    for comparison in (comparison_of(store, snapshot), comparison_of(store, snapshot, cache=cache_of(snapshot))):
        wanted = [b"", b"0", b"a", b"a", b"a/x", b"d/a", b"d/b", b"d/bb", b"e", b"z", b"z", b"zz", b"zzz"]
        found = [comparison.row(path, MIB) for path in wanted]
        assert [row and row.path for row in found] == [
            b"", None, b"a", b"a", None, None, b"d/b", None, b"e", b"z", b"z", None, None,
        ]  # fmt: skip


def test_a_row_has_a_number_that_tells_of_rows_passed_over(store, tree):
    snapshot = store.save(tree)
    names = [entry.path for entry in snapshot.entries()]
    comparison = comparison_of(store, snapshot, cache=cache_of(snapshot))
    for path in (b"", b"d", b"d/c", b"z"):
        assert comparison.row(path).path == path
        assert comparison.number == names.index(path)


def test_rows_of_a_cache_have_stamps_and_those_of_a_snapshot_have_none(store, tree):
    snapshot = store.save(tree)
    assert comparison_of(store, snapshot, cache=cache_of(snapshot)).row(b"a", 1).stamp == (1, 1, 1, 1)
    assert comparison_of(store, snapshot).row(b"a", MIB).stamp is None


def test_a_cache_counts_more_than_the_latest_snapshot_and_nothing_without_its_own(store, tree):
    first = store.save(tree)
    latest = store.save({"other": noise(300_000, 9)})
    comparison = comparison_of(store, latest, cache=cache_of(first))
    assert comparison.parent().record == first._record
    store._backend.delete(str(first._record.key))
    comparison = comparison_of(store, latest, cache=cache_of(first))
    assert comparison.parent() is None
    assert comparison.row(b"a", MIB) is None


@pytest.mark.parametrize("folders", [["packs"], ["manifests"], ["packs", "index"]])
def test_there_are_no_rows_where_entries_cannot_be_read(store, tree, folders):
    snapshot = store.save(tree)
    for folder in folders:
        shutil.rmtree(Path(store.url, folder))
    comparison = comparison_of(store, snapshot)
    assert comparison.row(b"a", MIB) is None
    assert comparison.row(b"z", MIB) is None
    assert comparison.forecast(None, 1_200_000) is None


# --- forecasts ----------------------------------------------------------------------------------


def first_chunks(forecast):
    return [candidate.first.chunk for candidate in forecast._candidates]


def refs_of(snapshot, name):
    (entry,) = (entry for entry in snapshot.entries() if entry.name == name)
    return list(snapshot.reader().refs(entry.content))


def test_the_row_of_a_file_is_its_forecast(store, tree):
    snapshot = store.save(tree)
    comparison = comparison_of(store, snapshot)
    row = comparison.row(b"a", 300_000)
    forecast = comparison.forecast(row, 300_000)
    assert first_chunks(forecast) == [refs_of(snapshot, "a")[0].chunk]
    assert list(forecast._candidates[0].refs()) == refs_of(snapshot, "a")


@pytest.mark.parametrize("name", ["", "d", "e", "link"])
def test_what_has_no_data_gives_no_forecast(store, tree, name):
    snapshot = store.save(tree)
    comparison = comparison_of(store, snapshot)
    row = comparison.row(os.fsencode(name), MIB)
    assert row.path == os.fsencode(name)
    assert comparison.forecast(row, MIB) is None


def test_files_of_the_same_size_are_expected_where_there_is_no_row(store):
    contents = {f"{number}": noise(MIB + 5, number) for number in range(10)} | {"other": noise(MIB + 6)}
    snapshot = store.save(contents)
    comparison = comparison_of(store, snapshot)
    forecast = comparison.forecast(None, MIB + 5)
    assert first_chunks(forecast) == [refs_of(snapshot, f"{number}")[0].chunk for number in range(8)]
    assert comparison.forecast(None, MIB + 7) is None
    assert first_chunks(comparison.forecast(None, MIB + 6)) == [refs_of(snapshot, "other")[0].chunk]


def test_small_files_are_not_looked_for(store):
    contents = {"a": noise(MIB - 1, 1), "b": noise(256 * KIB - 1, 2)}
    comparison = comparison_of(store, store.save(contents))
    assert comparison.forecast(None, MIB - 1) is None
    row = comparison.row(b"a", MIB - 1)
    assert comparison.forecast(row, MIB - 1) is not None
    assert comparison.forecast(row, 256 * KIB) is not None
    assert comparison.forecast(row, 256 * KIB - 1) is None


def test_only_so_many_rows_are_looked_at(store, tree, monkeypatch):
    monkeypatch.setattr(comparing, "_MAX_ROWS", 6)
    comparison = comparison_of(store, store.save(tree))
    assert comparison.forecast(None, 1_200_000) is None


def test_a_damaged_list_of_chunks_gives_no_forecast(tiny):
    snapshot = tiny.save({"a": noise(400_000)})
    comparison = comparison_of(tiny, snapshot)
    row = comparison.row(b"a", 400_000)
    for ref in snapshot.reader().manifest().packs:
        Path(tiny.url, "packs", ref.pack.hex()).unlink()
    assert comparison.forecast(row, 400_000) is None
    assert comparison.forecast(None, 400_000) is None


def test_a_list_of_chunks_whose_end_is_gone_gives_an_empty_forecast(tiny, tmp_path):
    """The list lies in two packs, of which the second is gone."""
    first = noise(400_000)
    tiny.save({"a": first})
    longer = first + noise(400_000, 1)
    snapshot = tiny.save({"a": longer})
    packs = {ref.pack.hex() for ref in snapshot.reader().manifest().packs}
    (new,) = packs - {ref.pack.hex() for ref in tiny.snapshots()[-1].reader().manifest().packs}
    comparison = comparison_of(tiny, snapshot)
    row = comparison.row(b"a", len(longer))
    forecast = comparison.forecast(row, len(longer))
    Path(tiny.url, "packs", new).unlink()
    assert forecast._candidates[0].first == refs_of(tiny.snapshots()[-1], "a")[0]
    assert forecast._candidates[0].refs() == []
    # and a save goes on without it
    source = fill(tmp_path / "source", {"a": longer})
    shutil.rmtree(Path(tiny.url, "index"))
    saved = Store.open(tiny.url, durable=False).save(source, files_cache=False)
    assert saved.read_bytes("a") == longer


def test_an_entry_that_cannot_be_read_gives_no_forecast(store, tree, monkeypatch):
    comparison = comparison_of(store, store.save(tree))

    def refuse(_):
        raise DamagedObject("not an entry")

    monkeypatch.setattr(comparing, "decode_entry", refuse)
    assert comparison.forecast(None, 1_200_000) is None
    assert comparison.forecast(comparison.row(b"z", MIB), 1_200_000) is None


# --- saves without a cache ----------------------------------------------------------------------


@pytest.fixture
def cuts(monkeypatch):
    """Counts the bytes among which cuts of files were looked for."""

    class Counting(streams.Cutter):
        total = 0

        def cuts(self, data, *, final):
            if self.parameters.max_size >= MIB:
                Counting.total += len(data)
            return super().cuts(data, final=final)

    monkeypatch.setattr(streams, "Cutter", Counting)
    return Counting


def check(store, snapshot, tree):
    found = {entry.name: snapshot.read_bytes(entry.path) for entry in snapshot.entries() if entry.content is not None}
    assert found == {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    report = store.verify()
    assert report.ok, report.problems


@pytest.mark.parametrize("files_cache", [True, False])
def test_another_directory_with_the_same_content_is_cut_as_before(store, tree, tmp_path, cuts, files_cache):
    first = store.save(tree)
    shutil.copytree(tree, tmp_path / "copy", symlinks=True)
    before, cuts.total = cuts.total, 0
    again = store.save(tmp_path / "copy", files_cache=files_cache)
    assert before >= 1_900_000
    assert cuts.total < 10_000
    assert again.stats.bytes_new == 0
    for entry, other in zip(first.entries(), again.entries(), strict=True):
        assert (entry.path, entry.content) == (other.path, other.content)
    check(store, again, tmp_path / "copy")


def test_a_large_file_under_another_name_is_cut_as_before(store, tree, cuts):
    first = store.save(tree)
    (tree / "z").rename(tree / "b")
    cuts.total = 0
    again = store.save(tree, files_cache=False)
    assert cuts.total < 10_000
    assert again.stats.bytes_new == 0
    assert refs_of(again, "b") == refs_of(first, "z")
    check(store, again, tree)


def test_of_several_files_of_one_size_each_finds_its_own(store, tmp_path, cuts):
    contents = {f"old-{number}": noise(MIB + 5, number) for number in range(5)}
    root = fill(tmp_path / "root", contents)
    store.save(root)
    for number in range(5):
        (root / f"old-{number}").rename(root / f"new-{4 - number}")
    cuts.total = 0
    again = store.save(root, files_cache=False)
    assert cuts.total < 10_000
    assert again.stats.bytes_new == 0
    check(store, again, root)


def test_of_more_files_of_one_size_than_are_tried_all_are_saved(store, tmp_path):
    root = fill(tmp_path / "root", {f"old-{number}": noise(MIB + 5, number) for number in range(10)})
    store.save(root)
    for number in range(10):
        (root / f"old-{number}").rename(root / f"new-{number}")
    again = store.save(root, files_cache=False)
    assert again.stats.bytes_new == 0
    check(store, again, root)


CHANGES = {
    "inserted": lambda data: data[:500_000] + b"!" + data[500_000:],
    "in front": lambda data: b"!" + data,
    "appended": lambda data: data + b"!",
    "removed": lambda data: data[:400_000] + data[500_000:],
    "replaced": lambda data: data[:400_000] + noise(1000, 7) + data[401_000:],
    "cut short": lambda data: data[:700_001],
    "halves swapped": lambda data: data[600_000:] + data[:600_000],
    "other": lambda data: noise(len(data), 8),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("files_cache", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_stores_what_has_changed(store, tree, monkeypatch, change, files_cache):
    monkeypatch.setattr(filescache, "_RACY", -(2**62))
    store.save(tree)
    data = CHANGES[change](FILES["z"])
    (tree / "z").write_bytes(data)
    snapshot = store.save(tree, files_cache=files_cache)
    check(store, snapshot, tree)
    if change not in ("other", "halves swapped"):
        assert snapshot.stats.bytes_new <= 3 * MIB // 4 + (MIB if change == "zeros" else 0)


@pytest.mark.parametrize("size", [0, 5_000, 100_000, 400_000, 900_000])
def test_large_lists_are_compared_too(tiny, tmp_path, size):
    data = noise(900_000)
    root = fill(tmp_path / "root", {"a": data})
    first = tiny.save(root)
    (root / "a").write_bytes(data[:size] + b"!!!" + data[size:])
    snapshot = tiny.save(root, files_cache=False)
    assert snapshot.stats.chunks_new <= 4
    assert snapshot.stats.chunks >= first.stats.chunks - 4
    check(tiny, snapshot, root)


@pytest.mark.parametrize("name", ["a", "z"])
def test_a_file_where_there_was_something_else(store, tree, name):
    store.save(tree)
    (tree / "link").unlink()
    (tree / "link").write_bytes(FILES["z"])
    shutil.rmtree(tree / "d")
    (tree / "d").write_bytes(FILES[name])
    snapshot = store.save(tree, files_cache=False)
    assert snapshot.stats.bytes_new == 0
    check(store, snapshot, tree)


# --- a parent that is damaged -------------------------------------------------------------------


def change_bytes(path):
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 0x55
    path.write_bytes(data)


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


HARMS = {
    "gone": Path.unlink,
    "changed": change_bytes,
    "cut short": cut_short,
    "empty": empty,
    "foreign": lambda path: path.write_bytes(noise(5000)),
}


@pytest.mark.parametrize("files_cache", [True, False])
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", ["commits", "manifests", "packs", "index", "all"])
def test_whatever_is_wrong_with_the_parent_a_save_goes_on(store, tree, monkeypatch, kind, harm, files_cache):
    monkeypatch.setattr(filescache, "_RACY", -(2**62))
    monkeypatch.setattr(packing, "PACK_SIZE", 256 * KIB)  # several packs
    store.save(tree)
    for folder in ("commits", "manifests", "packs", "index") if kind == "all" else (kind,):
        for path in [path for path in Path(store.url, folder).rglob("*") if path.is_file()]:
            HARMS[harm](path)
    if kind == "packs":  # they must not be known to be there
        shutil.rmtree(Path(store.url, "index"))
    (tree / "a").write_bytes(FILES["a"] + b"more")
    (tree / "z").rename(tree / "y")
    fresh = Store.open(store.url, durable=False, workers=2)
    snapshot = fresh.save(tree, files_cache=files_cache)
    found = {entry.name: snapshot.read_bytes(entry.path) for entry in snapshot.entries() if entry.content is not None}
    assert found == {
        "a": FILES["a"] + b"more",
        "d/b": FILES["d/b"],
        "d/c": FILES["d/c"],
        "e": b"",
        "y": FILES["z"],
    }
