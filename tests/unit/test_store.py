"""The store's face: opening, every kind of source and argument, references, listing; what is refused, and how."""

from __future__ import annotations

import io
import os
import pickle
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import Commit, CommitKey, State, manifest_key
from cas_checkpoint.errors import (
    AmbiguousReference,
    CasCheckpointError,
    DamagedObject,
    InvalidArgument,
    InvalidArgumentType,
    MissingObject,
    NotAStore,
    SnapshotNotFound,
    StoreNotFound,
    UnsupportedStore,
)
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import StoreId, TransactionId
from cas_checkpoint.store import Store

BIG = os.urandom(300_000)  # more than a commit carries


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else f"memory://store-{uuid.uuid4().hex}"


@pytest.fixture
def store(url):
    return Store.open(url, create=True, durable=False, workers=2)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def local(place):
    return Store.open(place, create=True, durable=False, workers=2)


def in_child(action) -> None:
    """Run `action` in a forked process, which must end well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001 -- the parent fails the test
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def contents(snapshot):
    return {entry.name: snapshot.read_bytes(entry.path) for entry in snapshot.entries() if entry.content is not None}


# --- opening ------------------------------------------------------------------------------------


def test_a_store_is_made_only_if_asked_for(url):
    with pytest.raises(StoreNotFound, match="create=True"):
        Store.open(url)
    made = Store.open(url, create=True, durable=False)
    again = Store.open(url, create=True, durable=False)
    assert made.id == again.id == Store.open(url).id
    assert len(bytes.fromhex(made.id)) == 16
    assert made.url in repr(made)
    assert made.snapshots() == []
    assert made.info().objects.keys() == {"header"}


def test_looking_for_a_store_makes_nothing(place):
    with pytest.raises(StoreNotFound):
        Store.open(place)
    assert not place.exists()


def test_a_directory_that_holds_other_things_becomes_a_store_beside_them(place):
    place.mkdir()
    (place / "README").write_bytes(b"mine")
    store = Store.open(place, create=True, durable=False)
    store.save(BIG)
    assert (place / "README").read_bytes() == b"mine"
    assert store.verify().ok


@pytest.mark.parametrize("name", ["packs/readme", "manifests/list.txt", "commits/notes/today", "commits/log"])
def test_folders_of_somebody_else_are_not_taken_for_a_store_without_its_header(place, name):
    (place / name).parent.mkdir(parents=True)
    (place / name).write_bytes(b"mine")
    with pytest.raises(StoreNotFound):
        Store.open(place)
    assert Store.open(place, create=True, durable=False).save(BIG).sequence == 1


def test_something_else_under_the_name_of_the_header_is_no_store(place):
    place.mkdir()
    (place / HEADER_KEY).write_bytes(b"a note of mine, longer than any head of an object")
    for create in (False, True):
        with pytest.raises(NotAStore):
            Store.open(place, create=create, durable=False)
    assert (place / HEADER_KEY).read_bytes().startswith(b"a note")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: data + b"\0",
        lambda data: b"x" + data[1:],
    ],
)
def test_a_damaged_header_is_told_and_never_written_anew(local, place, change):
    local.save(BIG)
    header = place / HEADER_KEY
    damaged = change(header.read_bytes())
    header.write_bytes(damaged)
    for create in (False, True):
        with pytest.raises(DamagedObject, match=HEADER_KEY):
            Store.open(place, create=create, durable=False)
    assert header.read_bytes() == damaged


def test_objects_without_a_header_are_a_damaged_store(local, place):
    local.save(b"x")
    (place / HEADER_KEY).unlink()
    for create in (False, True):
        with pytest.raises(MissingObject, match="header"):
            Store.open(place, create=create, durable=False)
    assert not (place / HEADER_KEY).exists()


def test_a_newer_format_is_refused(local, place):
    header = place / HEADER_KEY
    data = header.read_bytes()
    header.write_bytes(data[:9] + b"\x02" + data[10:])
    with pytest.raises(UnsupportedStore, match="update"):
        Store.open(place, create=True, durable=False)


def test_unknown_features_are_refused_for_their_operation_only(local, place):
    def demand(operation):
        features = tuple((name, ("quantum",) if name == operation else ()) for name in ("read", "write", "collect"))
        (place / HEADER_KEY).write_bytes(Header(StoreId(bytes.fromhex(local.id)), features=features).encode())

    snapshot = local.save(b"x")
    demand("read")
    with pytest.raises(UnsupportedStore, match="quantum"):
        Store.open(place)
    demand("write")
    reading = Store.open(place, durable=False)
    assert reading.snapshot(snapshot.id).read_bytes("_dst_cp") == b"x"
    with pytest.raises(UnsupportedStore, match="quantum"):
        reading.save(b"y")
    assert len(reading.snapshots()) == 1
    demand("collect")
    assert Store.open(place, durable=False).save(b"y").sequence == 2


def test_of_many_who_create_a_store_at_once_all_open_the_same(url):
    barrier = threading.Barrier(8)

    def create(_):
        barrier.wait()
        store = Store.open(url, create=True, durable=False)
        store.save(b"x")
        return store.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 1
    assert len(Store.open(url).snapshots()) == 8
    assert Store.open(url).verify().ok


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"workers": 0}, InvalidArgument),
        ({"workers": "two"}, InvalidArgumentType),
        ({"workers": 1.5}, InvalidArgumentType),
        ({"level": 20}, InvalidArgument),
        ({"level": -51}, InvalidArgument),
    ],
)
def test_options_that_cannot_be_used(local, place, options, error):
    with pytest.raises(error, match=next(iter(options))):
        Store.open(place, **options)


@pytest.mark.parametrize("url", ["", "a\0b", 5, None, b"bytes", "nosuchprotocol://x"])
def test_places_that_cannot_be_a_store(url):
    with pytest.raises(InvalidArgument):
        Store.open(url, create=True)


@pytest.mark.parametrize("level", [-50, 1, 19])
def test_levels_change_the_size_and_not_the_content(place, level):
    data = bytes(range(256)) * 2000
    store = Store.open(place, create=True, durable=False, level=level)
    snapshot = store.save(data)
    assert snapshot.read_bytes("_dst_cp") == data
    assert snapshot.stats.bytes_written < len(data)


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"small", BIG])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_readers(store, data, kind):
    assert contents(store.save(kind(data))) == {"_dst_cp": data}


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_files_and_directories(store, tmp_path, kind):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"one")
    (tree / "other").write_bytes(BIG)
    assert contents(store.save(kind(tree))) == {"other": BIG, "sub/file": b"one"}
    assert contents(store.save(kind(tree / "sub" / "file"))) == {"file": b"one"}
    with (tree / "other").open("rb") as reader:
        assert contents(store.save(reader)) == {"_dst_cp": BIG}


def test_a_mapping_of_everything(store, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"one")
    source = {
        "a/deep/er": tree,
        "a/b": b"bytes",
        "c": io.BytesIO(BIG),
        b"\xff": memoryview(b"x"),
        "f": tree / "sub/file",
    }
    assert contents(store.save(source)) == {
        "a/deep/er/sub/file": b"one",
        "a/b": b"bytes",
        "c": BIG,
        "\udcff": b"x",
        "f": b"one",
    }


def test_a_mapping_of_nothing_is_an_empty_snapshot(store):
    snapshot = store.save({})
    assert list(snapshot.entries()) == []
    assert snapshot.stats.entries == 0
    assert store.verify().ok


@pytest.mark.parametrize("source", [5, None, ["a"], {"a": 5}, {5: b"x"}, io.StringIO("text"), {"a": {"b": b""}}])
def test_sources_of_other_types(store, source):
    with pytest.raises(InvalidArgumentType):
        store.save(source)
    assert store.snapshots() == []


@pytest.mark.parametrize(
    "source", ["a\0b", "\ud800", "/no/such/thing", "", {"../x": b""}, {"/x": b""}, {"a": b"", "a/b": b""}, {"": b""}]
)
def test_sources_that_cannot_be_saved(store, source):
    with pytest.raises(CasCheckpointError):
        store.save(source)
    assert store.snapshots() == []


@pytest.mark.parametrize("where", ["inside", "itself", "by a link", "in a mapping"])
def test_a_tree_that_holds_the_store_is_refused(tmp_path, where):
    tree = tmp_path / "tree"
    place = tree if where == "itself" else tree / "deep" / "store"
    store = Store.open(place, create=True, durable=False)
    source = tree
    if where == "by a link":
        source = tmp_path / "link"
        source.symlink_to(tree)
    with pytest.raises(InvalidArgument, match="lies within"):
        store.save({"a": str(source)} if where == "in a mapping" else source)
    assert store.snapshots() == []


def test_a_tree_beside_the_store_whose_name_begins_alike_is_no_danger(tmp_path):
    store = Store.open(tmp_path / "tree-store", create=True, durable=False)
    (tmp_path / "tree").mkdir()
    assert store.save(tmp_path / "tree").stats.entries == 1


# --- what is said of a snapshot -----------------------------------------------------------------


@pytest.mark.parametrize("data", [b"small", BIG])
def test_what_was_said_comes_back(store, data):
    metrics = {"loss": 0.25, "": -0.0, "näme\n": float("inf"), "count": 7}
    saved = store.save(
        data, series="Run 7/ä", step=-5, metrics=metrics, tags=["best", "", "x" * 1000], message="Grüße\0\n"
    )
    for snapshot in (saved, Store.open(store.url).snapshot(saved.id)):
        assert (snapshot.series, snapshot.sequence, snapshot.step) == ("Run 7/ä", 1, -5)
        assert snapshot.metrics == metrics
        assert snapshot.tags == ("best", "", "x" * 1000)
        assert snapshot.message == "Grüße\0\n"
        assert snapshot.warnings == ()
    assert saved == store.snapshot(saved.id)


@pytest.mark.parametrize("step", [0, -(2**63), 2**63 - 1, True])
def test_steps(store, step):
    assert store.save(b"", step=step).step == step


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"step": 2**63}, InvalidArgument),
        ({"step": -(2**63) - 1}, InvalidArgument),
        ({"step": 1.0}, InvalidArgumentType),
        ({"step": "1"}, InvalidArgumentType),
        ({"metrics": {"x": "much"}}, InvalidArgumentType),
        ({"metrics": {"x": None}}, InvalidArgumentType),
        ({"metrics": {"x": 10**400}}, InvalidArgument),
        ({"metrics": {5: 1.0}}, InvalidArgumentType),
        ({"metrics": {"\ud800": 1.0}}, InvalidArgument),
        ({"metrics": [("x", 1.0)]}, InvalidArgumentType),
        ({"metrics": {str(number): 0.0 for number in range(4097)}}, InvalidArgument),
        ({"tags": "best"}, InvalidArgumentType),
        ({"tags": b"best"}, InvalidArgumentType),
        ({"tags": 5}, InvalidArgumentType),
        ({"tags": [5]}, InvalidArgumentType),
        ({"tags": ["\ud800"]}, InvalidArgument),
        ({"tags": ["x"] * 4097}, InvalidArgument),
        ({"message": 5}, InvalidArgumentType),
        ({"message": b"x"}, InvalidArgumentType),
        ({"message": "x" * 65_537}, InvalidArgument),
        ({"message": "ä" * 32_769}, InvalidArgument),
        ({"tags": ["x" * 65_000] * 100}, InvalidArgument),  # each may be, all together may not
        ({"series": ""}, InvalidArgument),
        ({"series": 5}, InvalidArgumentType),
        ({"series": b"x"}, InvalidArgumentType),
        ({"series": "x" * 201}, InvalidArgument),
        ({"series": "ä" * 34}, InvalidArgument),
        ({"series": "\ud800"}, InvalidArgument),
        ({"on_error": "ignore"}, InvalidArgument),
        ({"on_error": None}, InvalidArgument),
        ({"onto": "latest"}, InvalidArgumentType),
    ],
)
@pytest.mark.parametrize("data", [b"small", BIG])
def test_arguments_that_cannot_be_used_leave_no_snapshot(local, data, options, error):
    with pytest.raises(error):
        local.save(data, **options)
    assert local.snapshots() == []
    assert local.verify().ok


@pytest.mark.parametrize(
    "series",
    ["a", "x" * 200, "ä" * 33, ".", "..", ".hidden", "a/b", "../up", "A", "con", "%41", "a@b", "\n", " ", "🙂"],
)
def test_names_of_series(store, series):
    snapshot = store.save(b"1", series=series)
    store.save(b"other", series="another")
    second = store.save(b"2", series=series)
    assert [found.sequence for found in store.snapshots(series)] == [2, 1]
    assert store.latest(series) == second == store.snapshot(f"{series}@latest") == store.snapshot(f"{series}@2")
    assert store.snapshot(f"{series}@1") == snapshot
    assert store.info().series == {series: 2, "another": 1}


def test_series_that_differ_in_case_or_normal_form_are_different(store):
    names = ["\u00e9", "e\u0301", "E", "e"]
    for name in names:
        assert store.save(b"", series=name).sequence == 1
    assert sorted(store.info().series) == sorted(names)


# --- finding ------------------------------------------------------------------------------------


def test_snapshots_are_listed_newest_first(store):
    saved = [store.save(b"x", series=f"s{number % 2}", step=number) for number in range(12)]
    assert [snapshot.step for snapshot in store.snapshots()] == list(range(11, -1, -1))
    assert store.snapshots("s0") == saved[10::-2]
    assert store.latest("s1") == saved[11]
    assert store.snapshots("none") == []
    assert store.latest("none") is None


def test_more_snapshots_than_are_read_at_once(store):
    for number in range(40):
        store.save(b"x", step=number)
    assert [snapshot.step for snapshot in store.snapshots("default")] == list(range(39, -1, -1))


def test_order_within_a_series_does_not_depend_on_clocks(local, monkeypatch):
    for number, now in enumerate([3_000_000_000, -7_000_000_000, 1_000_000_000]):
        monkeypatch.setattr("cas_checkpoint.saving.time.time_ns", lambda now=now: now)
        local.save(b"", step=number)
    monkeypatch.undo()
    assert [snapshot.step for snapshot in local.snapshots("default")] == [2, 1, 0]
    assert local.latest().step == 2
    assert [snapshot.created_at.timestamp() for snapshot in local.snapshots()] == [1, -7, 3]


@pytest.fixture
def twins(local, place):
    """Two snapshots with the same number, as two saves at once make them; and ids that begin alike."""
    made = []
    for last in (b"\x01", b"\x02"):
        key = CommitKey("default", 1, TransactionId(b"\xab\xcd" + bytes(13) + last))
        record = local.save(b"x", series="template")._record
        manifest = record.inline.manifest  # of another key: such a snapshot can be found, if not read
        commit = record._replace(key=key, manifest_size=len(manifest))
        assert local._backend.put_if_absent(str(key), commit.encode())
        made.append(key.transaction.hex())
    return made


def test_of_two_snapshots_with_one_number_the_higher_id_is_the_latest(local, twins):
    assert [snapshot.id for snapshot in local.snapshots("default")] == twins[::-1]
    assert local.latest().id == twins[1]
    assert local.save(b"").sequence == 2


def test_references_that_fit_several_snapshots(local, twins):
    for ref in ("default@1", "abcd", twins[0][:31]):
        with pytest.raises(AmbiguousReference, match=twins[0]):
            local.snapshot(ref)
    for snapshot_id in twins:
        assert local.snapshot(snapshot_id).id == snapshot_id


def test_every_kind_of_reference(store):
    first, second = store.save(b"1"), store.save(b"2")
    other = store.save(b"3", series="a@b")
    for ref in ("latest", "default@latest", "default@2", "default@0002", second.id, second.id[:12], second):
        assert store.snapshot(ref) == second
    assert store.snapshot("default@1") == first
    assert store.snapshot("a@b@latest") == store.snapshot("a@b@1") == other


@pytest.mark.parametrize(
    "ref",
    [
        "", "lates", "abc", "ABCDEF", "g" * 32, "0" * 32, "0" * 33, "default@3", "default@0", "default@-1", "default@x",
        "default@", "default@1.0", "default@²", "default@" + "9" * 16, "default@" + "9" * 5000,
        "other@latest", "other@1",
    ],
)  # fmt: skip
def test_references_that_fit_nothing(local, ref):
    local.save(b"1")
    local.save(b"2")
    with pytest.raises(SnapshotNotFound):
        local.snapshot(ref)


@pytest.mark.parametrize("ref", [5, None, b"latest", "@latest", "x" * 201 + "@1", "\ud800", "ä" * 40_000])
def test_references_that_cannot_be_one(local, ref):
    with pytest.raises(InvalidArgument):
        local.snapshot(ref)


def test_latest_of_an_empty_store_says_what_there_is(local):
    with pytest.raises(SnapshotNotFound, match="empty"):
        local.snapshot("latest")
    local.save(b"", series="run")
    with pytest.raises(SnapshotNotFound, match="run@latest"):
        local.snapshot("latest")


def test_aborted_transactions_are_no_snapshots(local):
    local.save(b"x")
    key = CommitKey("default", 9, TransactionId(b"\xab" * 16))
    assert local._backend.put_if_absent(str(key), Commit(State.ABORTED, StoreId(bytes.fromhex(local.id)), key).encode())
    assert [snapshot.sequence for snapshot in local.snapshots()] == [1]
    assert local.latest().sequence == 1
    for ref in ("default@9", "abababab"):
        with pytest.raises(SnapshotNotFound):
            local.snapshot(ref)
    assert local.save(b"y").sequence == 10


def test_a_damaged_commit_is_raised_or_reported_and_hides_no_other(local, place):
    good, bad = local.save(b"1"), local.save(b"2")
    path = place / str(bad._record.key)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedObject, match=bad.id):
        local.snapshots()
    told = []
    assert local.snapshots(damaged=told.append) == [good]
    assert [error.key for error in told] == [str(bad._record.key)]
    assert local.snapshot("default@1") == good
    with pytest.raises(DamagedObject):
        local.latest()
    with pytest.raises(DamagedObject):
        local.snapshot(bad.id)


def test_info_counts_objects(store):
    store.save(b"small")
    store.save(BIG)
    info = store.info()
    assert (info.url, info.id, info.put_if_absent, info.series) == (store.url, store.id, True, {"default": 2})
    assert {kind: count for kind, (count, _) in info.objects.items()} == {
        "header": 1, "commits": 2, "packs": 1, "index": 1, "manifests": 1,
    }  # fmt: skip
    assert info.size == sum(item.size for item in store._backend.list(""))


# --- threads, processes, pickles ----------------------------------------------------------------


def test_a_pickled_store_is_the_same_store(store):
    snapshot = store.save(BIG)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.id, copy.url) == (store.id, store.url)
    assert copy.latest() == snapshot
    again = copy.save(BIG)
    assert (again.sequence, again.stats.bytes_new) == (2, 0)


def test_a_store_works_on_after_a_fork(local):
    local.save(BIG)

    def save():
        assert local.save(BIG, series="child").stats.bytes_new == 0

    in_child(save)
    assert local.latest("child").read_bytes("_dst_cp") == BIG
    assert local.save(BIG).stats.bytes_new == 0


def test_a_fork_while_another_thread_learns_does_not_hang(local):
    local.save(BIG)
    with local._lock:
        in_child(lambda: local.save(BIG))
    assert local.latest().sequence == 2


@pytest.mark.parametrize("shared", [True, False])
def test_threads_save_to_one_series_at_once(url, shared):
    store = Store.open(url, create=True, durable=False, workers=1)
    parts = [os.urandom(200_000) for _ in range(3)]
    sources = [{"own": bytes([number]) * 300_000, "shared": parts[number % 3]} for number in range(8)]

    def save(number):
        mine = store if shared else Store.open(url, durable=False, workers=1)
        return mine.save(sources[number], step=number)

    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(save, range(8)))
    assert len({snapshot.id for snapshot in saved}) == 8
    assert {snapshot.id for snapshot in store.snapshots("default")} == {snapshot.id for snapshot in saved}
    for snapshot in store.snapshots():
        assert contents(snapshot) == sources[snapshot.step]
    assert store.verify().ok
    assert store.save(b"").sequence == max(snapshot.sequence for snapshot in saved) + 1


def test_processes_save_to_one_series_at_once(local):
    local.save(BIG)
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for step in range(3):
                    local.save({"shared": BIG, "own": bytes([number, step]) * 70_000}, step=10 * number + step)
                status = 0
            except BaseException:  # noqa: BLE001 -- the parent fails the test
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    snapshots = local.snapshots("default")
    assert len(snapshots) == 13
    for snapshot in snapshots[:-1]:
        number, step = divmod(snapshot.step, 10)
        assert contents(snapshot) == {"shared": BIG, "own": bytes([number, step]) * 70_000}
        assert snapshot.stats.bytes_new <= 140_000
    assert local.verify().ok


# --- restoring: the arguments -------------------------------------------------------------------


def test_arguments_of_restore_that_cannot_be_used(local, tmp_path):
    local.save({"a": b"x"})
    target = tmp_path / "target"
    with pytest.raises(InvalidArgument, match="exact"):
        local.restore("latest", target, paths=["a"], exact=True)
    for paths in ("a", b"a", Path("a"), [5], [None]):
        with pytest.raises(InvalidArgumentType):
            local.restore("latest", target, paths=paths)
    with pytest.raises(InvalidArgument):
        local.restore("latest", target, paths=["\ud800"])
    for bad in (5, None, b"bytes"):
        with pytest.raises(InvalidArgumentType, match="target"):
            local.restore("latest", bad)
    with pytest.raises(InvalidArgument):
        local.restore("latest", str(target) + "\0")
    with pytest.raises(SnapshotNotFound):
        local.restore("default@7", target)
    assert not target.exists()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_refused_by_an_error_of_ours(text):
    store = Store.open("memory://references-of-any-text", create=True)
    with pytest.raises((SnapshotNotFound, InvalidArgument)):
        store.snapshot(text)


def test_forgotten_manifest_of_another_snapshot_does_not_stop_a_save(local):
    """What the parent needs is only an order of preference."""
    first = local.save(BIG)
    local._backend.delete(manifest_key(TransactionId(bytes.fromhex(first.id))))
    again = Store.open(local.url, durable=False)
    assert again.save(BIG).stats.bytes_new == 0
    assert isinstance(again._backend, LocalBackend)
