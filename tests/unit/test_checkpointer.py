"""The checkpoint class under threads, pickles, forks and many processes; accumulating; shared stores; refusals."""

import copy
import io
import logging
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cas_checkpoint.checkpointer import SyncCheckpoint
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedStore,
    InvalidArgument,
    InvalidArgumentType,
    NotASingleFile,
    SnapshotForgotten,
    SourceUnreadable,
    StorageError,
    StoreNotFound,
    TargetObstructed,
)
from cas_checkpoint.store import Store


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary directories are made; no shared store is in the environment."""
    monkeypatch.delenv("CAS_CHECKPOINT_STORE", raising=False)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


@pytest.fixture
def src(tmp_path):
    """A source that holds one file, too large to lie within a commit."""
    place = tmp_path / "src"
    checkpoint(place).write(DATA)
    return place


@pytest.fixture
def folder(tmp_path):
    """A directory of a few files, one of them too large to lie within a commit."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "large").write_bytes(DATA)
    (root / "sub" / "small").write_bytes(b"small")
    return root


@pytest.fixture
def memory():
    """Fsspec's file system in memory, empty again afterwards."""
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]


DATA = np.random.default_rng(1).bytes(400_000)
LARGE = np.random.default_rng(2).bytes(3_000_000)


def checkpoint(*places, **options):
    return SyncCheckpoint(*places, **{"durable": False, **options})


def names(path):
    return sorted(str(item.relative_to(path)) for item in Path(path).rglob("*"))


def resumed(path):
    """Tell the names that a restore from `path` gives."""
    checkpoint_ = checkpoint("unused", path)
    return names(checkpoint_.restore())


def at_once(count, function):
    """Run `function` in several threads that begin together; return what each gave."""
    gate = threading.Barrier(count)

    def run(number):
        gate.wait()
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def in_a_fork(function):
    """Run `function` in a child process, which ends as a process does; tell whether it returned true."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(0 if function() else 1))
    process.start()
    process.join()
    return process.exitcode == 0


# --- threads ------------------------------------------------------------------------------------


def test_threads_restore_once_and_get_the_same_directory(dest, src, temporary):
    shared = checkpoint(dest, src)
    paths = at_once(8, lambda number: shared.restore())
    assert set(paths) == {shared.restore()}
    assert len(list(temporary.iterdir())) == 1
    assert (paths[0] / "_dst_cp").read_bytes() == DATA


def test_threads_read_restore_look_and_save_at_once(dest, src):
    shared = checkpoint(dest, src)

    def use(number):
        return [shared.read, lambda: shared.restore().name, shared.prev_exists, lambda: shared.write(b"%d" % number)][
            number % 4
        ]()

    results = at_once(12, use)
    assert results[0::4] == [DATA] * 3
    assert results[1::4] == ["prev_cp"] * 3
    assert results[2::4] == [True] * 3
    assert len({snapshot.id for snapshot in results[3::4]}) == 3
    assert Store.open(dest).verify().ok


def test_threads_that_save_first_make_one_store_and_a_snapshot_each(dest, tmp_path):
    shared = checkpoint(dest, store=tmp_path / "shared")
    snapshots = at_once(8, lambda number: shared.write(b"%d" % number))
    assert len({snapshot.id for snapshot in snapshots}) == 8
    assert sorted(snapshot.read_bytes("_dst_cp") for snapshot in snapshots) == [b"%d" % n for n in range(8)]
    assert list(Store.open(tmp_path / "shared").info().series.values()) == [8]


def test_threads_that_accumulate_lose_nothing(dest, tmp_path):
    shared = checkpoint(dest, accumulate=True)
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(b"%d" % number)
    at_once(8, lambda number: shared.save(tmp_path / f"{number}"))
    assert resumed(dest) == [f"{number}" for number in range(8)]


# --- pickles and copies -------------------------------------------------------------------------

DUPLICATES = pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))],
    ids=["copy", "deep", "pickle"],
)


@DUPLICATES
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_reads_restores_and_saves(dest, src, tmp_path, duplicate, used):
    original = checkpoint(dest, src, accumulate=True, store=tmp_path / "shared")
    if used:
        original.restore()
        original.read()
        original.write(b"1")
    other = duplicate(original)
    del original
    assert other.read() == DATA
    assert names(other.restore()) == ["_dst_cp"]
    (tmp_path / "x").write_bytes(b"x")
    other.save(tmp_path / "x")
    assert resumed(dest) == (["_dst_cp", "x"] if used else ["x"])
    assert Store.open(tmp_path / "shared").latest(other.write(b"").series) is not None


@DUPLICATES
def test_a_copy_resumes_from_what_the_original_found(dest, src, duplicate):
    original = checkpoint(dest, src)
    assert original.prev_exists()
    checkpoint(src).write(b"later")
    assert duplicate(original).read() == DATA


@DUPLICATES
def test_a_copy_knows_a_directory_of_the_callers_and_no_temporary_one_that_is_gone(dest, src, tmp_path, duplicate):
    original = checkpoint(dest, src)
    (tmp_path / "out").mkdir()
    original.restore(tmp_path / "out")
    assert duplicate(original).restore() == tmp_path / "out"
    original = checkpoint(dest, src)
    original.restore()
    other = duplicate(original)
    del original
    assert (other.restore() / "_dst_cp").read_bytes() == DATA


def test_a_pickle_carries_an_open_store_and_the_environment_of_its_making(dest, tmp_path, monkeypatch):
    monkeypatch.setenv("CAS_CHECKPOINT_STORE", str(tmp_path / "shared"))
    first, second = checkpoint(dest), checkpoint(dest, store=Store.open(tmp_path / "open", create=True))
    monkeypatch.delenv("CAS_CHECKPOINT_STORE")
    for original, place in ((first, "shared"), (second, "open")):
        pickle.loads(pickle.dumps(original)).write(b"1")
        assert Store.open(tmp_path / place).info().series
        shutil.rmtree(dest)


# --- processes ----------------------------------------------------------------------------------


def test_a_forked_child_restores_and_saves_and_leaves_the_parents_directory(dest, src, temporary):
    original = checkpoint(dest, src)
    original.write(b"of the parent")
    path = original.restore()

    def use():
        own = original.restore()
        original.write(b"of the child")
        original.__dict__.clear()
        return own != path and not own.exists()

    assert in_a_fork(use)
    assert original.restore() == path
    assert (path / "_dst_cp").read_bytes() == DATA
    assert list(temporary.iterdir()) == [path.parent]
    assert checkpoint(dest, dest).read() == b"of the child"


def test_a_forked_child_is_not_stopped_by_locks_that_a_thread_of_the_parent_holds(dest, src):
    original = checkpoint(dest, src, accumulate=True)
    with original._session.resuming, original._session.saving:
        assert in_a_fork(lambda: original.read() == DATA and original.restore() and original.write(b"1"))
    assert checkpoint(dest, dest).read() == b"1"


def test_a_forked_child_works_in_the_callers_directory(dest, src, tmp_path):
    (tmp_path / "out").mkdir()
    original = checkpoint(dest, src)
    original.restore(tmp_path / "out")
    assert in_a_fork(lambda: original.restore() == tmp_path / "out")


@pytest.mark.parametrize("shared", [False, True])
def test_processes_save_to_one_destination_at_once(dest, tmp_path, shared):
    context = multiprocessing.get_context("fork")
    options = {"store": tmp_path / "shared"} if shared else {}
    gate = context.Barrier(4)

    def save(number):
        mine = checkpoint(dest, **options)
        gate.wait()
        for step in range(3):
            mine.write(b"%d %d" % (number, step))
        mine.save(io.BytesIO(LARGE))

    processes = [context.Process(target=save, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    store = Store.open(tmp_path / "shared" if shared else dest)
    assert list(store.info().series.values()) == [16]
    assert store.verify().ok
    assert checkpoint("unused", dest).read() == LARGE


# --- accumulating -------------------------------------------------------------------------------


def test_accumulate_lays_each_save_over_what_is_there(dest, folder, tmp_path):
    mine = checkpoint(dest, accumulate=True)
    mine.save(folder)
    mine.write(b"1")
    (tmp_path / "large").write_bytes(b"new")
    mine.save(tmp_path / "large")
    assert resumed(dest) == ["_dst_cp", "large", "sub", "sub/small"]
    latest = Store.open(dest).latest()
    assert latest.read_bytes("large") == b"new"
    assert latest.read_bytes("sub/small") == b"small"


def test_accumulate_goes_on_where_another_object_left_off(dest, folder):
    checkpoint(dest, accumulate=True).save(folder)
    checkpoint(dest, accumulate=True).write(b"1")
    assert resumed(dest) == ["_dst_cp", "large", "sub", "sub/small"]
    checkpoint(dest).write(b"2")
    assert resumed(dest) == ["_dst_cp"]


def test_accumulate_keeps_to_its_destination(dest, folder, tmp_path):
    checkpoint(dest, accumulate=True, store=tmp_path / "shared").save(folder)
    checkpoint(tmp_path / "next", dest, accumulate=True, store=tmp_path / "shared").write(b"1")
    assert resumed(tmp_path / "next") == ["_dst_cp"]


def test_accumulate_copies_nothing(dest, folder):
    mine = checkpoint(dest, accumulate=True)
    mine.save(folder)
    before = Store.open(dest).info()
    for step in range(5):
        assert mine.write(b"%d" % step).stats.bytes_new < 1000
    after = Store.open(dest).info()
    assert after.objects["commits"][0] == before.objects["commits"][0] + 5
    assert after.size - before.size < 20_000 < len(DATA)
    assert Store.open(dest).verify().ok


def test_accumulate_is_all_or_nothing(dest, folder, tmp_path):
    mine = checkpoint(dest, accumulate=True)
    mine.save(folder)

    class Failing(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError("broken")

    with pytest.raises(SourceUnreadable, match="broken"):
        mine.save(Failing())
    assert resumed(dest) == ["large", "sub", "sub/small"]
    mine.write(b"1")
    assert resumed(dest) == ["_dst_cp", "large", "sub", "sub/small"]


def test_accumulate_over_damage_is_an_error_and_saves_nothing(dest, folder):
    mine = checkpoint(dest, accumulate=True)
    mine.save(folder)
    shutil.rmtree(dest / "manifests")
    with pytest.raises(DamagedStore):
        mine.write(b"1")
    assert len(Store.open(dest).snapshots()) == 1
    checkpoint(dest).write(b"2")
    assert checkpoint("unused", dest).read() == b"2"


# --- shared stores ------------------------------------------------------------------------------


def test_the_environment_is_asked_when_the_object_is_made(dest, tmp_path, monkeypatch):
    mine = checkpoint(dest)
    monkeypatch.setenv("CAS_CHECKPOINT_STORE", str(tmp_path / "shared"))
    mine.write(b"1")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("store", ["", "argument", "open"])
def test_the_argument_overrides_the_environment(dest, tmp_path, monkeypatch, store):
    monkeypatch.setenv("CAS_CHECKPOINT_STORE", str(tmp_path / "shared"))
    place = {"": dest, "argument": tmp_path / "argument", "open": tmp_path / "open"}[store]
    value = {"": "", "argument": place, "open": None}[store]
    checkpoint(dest, store=Store.open(place, create=True) if value is None else value).write(b"1")
    assert Store.open(place).snapshots()
    assert not (tmp_path / "shared").exists()


def test_an_empty_variable_means_no_shared_store(dest, monkeypatch):
    monkeypatch.setenv("CAS_CHECKPOINT_STORE", "")
    checkpoint(dest).write(b"1")
    assert Store.open(dest).snapshots()


def test_attempts_share_chunks_through_the_store(tmp_path, folder):
    new = []
    for number in range(3):
        mine = checkpoint(tmp_path / f"{number}", tmp_path / f"{number - 1}", store=tmp_path / "shared")
        assert mine.prev_exists() == (number > 0)
        new.append(mine.save(folder).stats.bytes_new)
    assert new[0] >= len(DATA)
    assert new[1:] == [0, 0]


def test_a_shared_store_that_is_gone_is_the_same_error_each_time_and_found_again_when_it_is_back(dest, tmp_path):
    checkpoint(dest, store=tmp_path / "shared").write(b"1")
    (tmp_path / "shared").rename(tmp_path / "moved")
    mine = checkpoint("unused", dest)
    for call in (mine.prev_exists, mine.read, mine.restore, mine.read):
        with pytest.raises(ValueError, match="which is gone"):
            call()
    assert checkpoint("unused", dest, store=tmp_path / "moved").read() == b"1"
    (tmp_path / "moved").rename(tmp_path / "shared")
    assert mine.read() == b"1"


# --- sources ------------------------------------------------------------------------------------


def test_a_source_that_holds_nothing_is_told_in_the_log_by_read_and_restore_only(dest, tmp_path, caplog):
    mine = checkpoint(dest, tmp_path / "nothing")
    assert not mine.prev_exists()
    assert caplog.records == []
    assert (mine.read(), mine.restore(), mine._prev_download_path) == (None, None, None)
    assert {(record.name, record.levelno) for record in caplog.records} == {("cas_checkpoint", logging.WARNING)}
    assert {record.getMessage() for record in caplog.records} == {
        f"no checkpoint at {tmp_path}/nothing: starting without one"
    }


def test_no_source_is_not_worth_a_word(dest, caplog):
    mine = checkpoint(dest)
    assert (mine.read(), mine.restore(), mine.prev_exists()) == (None, None, False)
    assert caplog.records == []


def test_a_source_is_looked_for_until_it_holds_something_and_then_stays(dest, tmp_path):
    mine = checkpoint(dest, tmp_path / "src")
    assert mine.read() is None
    checkpoint(tmp_path / "src").write(b"1")
    assert mine.read() == b"1"
    checkpoint(tmp_path / "src").write(b"2")
    assert mine.read() == b"1"
    assert (mine.restore() / "_dst_cp").read_bytes() == b"1"


def test_the_destination_as_source_stays_what_it_was_before_ones_own_saves(dest):
    checkpoint(dest).write(b"1")
    mine = checkpoint(dest, dest)
    assert mine.prev_exists()
    mine.write(b"2")
    assert mine.read() == b"1"
    assert checkpoint(dest, dest).read() == b"2"


@pytest.mark.parametrize("used", [copy.copy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["itself", "pickle"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_plain_files_at_the_destination_stay_what_they_were_before_ones_own_saves(dest, memory, place, used):
    url = {"local": str(dest), "memory": "memory://dest"}[place]
    file_system = fsspec.filesystem("file") if place == "local" else memory
    path = str(dest) if place == "local" else "/dest"
    file_system.makedirs(path)
    file_system.pipe_file(f"{path}/_dst_cp", b"plain")
    mine = checkpoint(url, url)
    assert mine.prev_exists()
    mine.save(io.BytesIO(DATA))
    mine = used(mine)
    assert mine.read() == b"plain"
    assert names(mine.restore()) == ["_dst_cp"]
    assert checkpoint(url, url).read() == DATA


def test_reading_restores_nothing_until_somebody_asks_where_it_is(dest, src, temporary):
    mine = checkpoint(dest, src)
    assert mine.read() == DATA
    assert list(temporary.iterdir()) == []
    path = mine._prev_download_path
    assert (path / "_dst_cp").read_bytes() == DATA
    assert mine.restore() == path == mine._prev_download_path


def test_a_restore_after_read_may_still_say_where(dest, src, tmp_path):
    (tmp_path / "out").mkdir()
    mine = checkpoint(dest, src)
    mine.read()
    assert mine.restore(tmp_path / "out") == tmp_path / "out" == mine._prev_download_path


def test_a_forgotten_snapshot_is_an_error_once_and_then_the_one_before_it_is_found(dest, src):
    checkpoint(src).write(LARGE)
    mine = checkpoint(dest, src)
    assert mine.prev_exists()
    (latest, _) = Store.open(src).snapshots()
    for path in [*src.glob(f"commits/default/*{latest.id}"), *src.glob(f"manifests/{latest.id}")]:
        path.unlink()
    with pytest.raises(SnapshotForgotten):
        mine.read()
    assert mine.read() == DATA


@pytest.mark.parametrize("operation", ["read", "restore"])
def test_damage_at_the_source_is_the_same_error_each_time_until_it_is_repaired(dest, src, temporary, operation):
    (pack,) = (src / "packs").iterdir()
    kept = pack.read_bytes()
    pack.unlink()
    pack.write_bytes(kept[:1000] + bytes(1000) + kept[2000:])
    mine = checkpoint(dest, src)
    messages = set()
    for _ in range(3):
        with pytest.raises(DamagedStore) as caught:
            getattr(mine, operation)()
        messages.add(str(caught.value))
        del caught
    assert len(messages) == 1
    assert mine._prev_download_path is None
    assert list(temporary.iterdir()) == []
    pack.write_bytes(kept)
    assert mine.read() == DATA
    assert (mine.restore() / "_dst_cp").read_bytes() == DATA


def test_a_pack_that_is_gone_is_damage_until_it_is_back(dest, src):
    (pack,) = (src / "packs").iterdir()
    pack.rename(src / "elsewhere")
    mine = checkpoint(dest, src)
    for _ in range(2):
        with pytest.raises(DamagedStore):
            mine.read()
    (src / "elsewhere").rename(pack)
    assert mine.read() == DATA


def test_a_header_that_is_damaged_is_an_error_of_every_call(dest, src):
    kept = (src / "cas-checkpoint").read_bytes()
    (src / "cas-checkpoint").unlink()
    (src / "cas-checkpoint").write_bytes(kept[:-1] + b"?")
    mine = checkpoint(src, src)
    for call in (mine.prev_exists, mine.read, mine.restore, lambda: mine.write(b""), lambda: mine.save(dest.parent)):
        with pytest.raises(CasCheckpointError):
            call()


def test_a_target_that_is_in_the_way_is_an_error_and_another_may_be_named(dest, src, tmp_path):
    (tmp_path / "bad" / "_dst_cp" / "in the way").mkdir(parents=True)
    (tmp_path / "good").mkdir()
    mine = checkpoint(dest, src)
    with pytest.raises(TargetObstructed):
        mine.restore(tmp_path / "bad")
    assert mine.restore(tmp_path / "good") == tmp_path / "good"


def test_what_a_restore_could_not_do_is_told_in_the_log(dest, tmp_path, caplog):
    source = tmp_path / "plain"
    source.mkdir()
    os.mkfifo(source / "fifo")
    (source / "file").write_bytes(b"")
    mine = checkpoint(dest, source)
    assert names(mine.restore()) == ["file"]
    assert [record.getMessage() for record in caplog.records if "fifo" in record.getMessage()]


def test_what_a_save_left_out_is_told_in_the_log(dest, folder, caplog):
    os.mkfifo(folder / "fifo")
    snapshot = checkpoint(dest).save(folder)
    assert len(snapshot.warnings) == 1
    assert [record.getMessage() for record in caplog.records] == [str(snapshot.warnings[0])]


def test_a_symlink_alone_is_not_a_single_file(dest, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to("/etc/hostname")
    checkpoint(dest).save(tmp_path / "links")
    with pytest.raises(NotASingleFile, match="found 'link', which is no file; restore it instead"):
        checkpoint("unused", dest).read()


# --- series, URLs and paths ---------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_series_at_one_destination_are_kept_apart(dest, tmp_path, shared):
    options = {"store": tmp_path / "shared"} if shared else {}
    for series in ("default", "rank-0", "rank-1"):
        checkpoint(dest, series=series, **options).write(series.encode())
    for series in ("default", "rank-0", "rank-1"):
        assert checkpoint("unused", dest, series=series).read() == series.encode()
    assert checkpoint("unused", dest, series="rank-2").read() is None


def test_everything_works_on_a_file_system_of_fsspec(folder, memory):
    first = checkpoint("memory://run/0", "memory://run/none", accumulate=True)
    assert first.read() is None
    first.save(folder)
    first.write(b"1")
    second = checkpoint("memory://run/1", "memory://run/0", store="memory://run/shared")
    assert names(second.restore()) == ["_dst_cp", "large", "sub", "sub/small"]
    second.save(io.BytesIO(DATA))
    assert checkpoint("memory://run/2", "memory://run/1").read() == DATA


def test_a_plain_folder_on_a_file_system_of_fsspec_is_a_source(dest, memory):
    memory.pipe({"/plain/a": b"a", "/plain/sub/b": b"b"})
    mine = checkpoint(dest, "memory://plain")
    assert mine.prev_exists()
    assert names(mine.restore()) == ["a", "sub", "sub/b"]


def test_relative_places_stay_where_they_were_when_the_directory_is_changed(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoint("src").write(b"1")
    mine = checkpoint("dest", Path("src"), store="shared")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert mine.read() == b"1"
    mine.write(b"2")
    assert names(tmp_path / "elsewhere") == []
    assert checkpoint("unused", tmp_path / "dest").read() == b"2"
    assert (mine._checkpoint_dest, mine._checkpoint_src) == ("dest", Path("src"))


def test_a_relative_directory_to_restore_into_is_given_back_as_it_was(dest, src, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    assert checkpoint(dest, src).restore("out") == Path("out")
    assert names(tmp_path / "out") == ["_dst_cp"]


@pytest.mark.parametrize("name", ["with space", "Ünïcode", "100%", "a#b?c", "-", "~", "a:b", "new\nline"])
def test_places_may_have_any_name_a_file_has(tmp_path, name):
    checkpoint(tmp_path / name).write(b"data")
    assert checkpoint("unused", tmp_path / name).read() == b"data"
    assert (tmp_path / name).is_dir()


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_places_may_have_names_that_are_no_unicode(tmp_path):
    place = tmp_path / os.fsdecode(b"\xff")
    checkpoint(place).write(b"data")
    assert checkpoint("unused", place).read() == b"data"


def test_repr_tells_both_places(tmp_path):
    assert repr(checkpoint("dest", "src")) == "<SyncCheckpoint dest from src>"
    assert repr(checkpoint(tmp_path)) == f"<SyncCheckpoint {tmp_path} from None>"


# --- what is refused ----------------------------------------------------------------------------


class BytesPath(os.PathLike):
    def __fspath__(self):
        return b"bytes"


@pytest.mark.parametrize("name", ["checkpoint_dest", "checkpoint_src", "store"])
@pytest.mark.parametrize(
    "value", [7, b"bytes", ["list"], BytesPath(), object()], ids=lambda value: type(value).__name__
)
def test_a_place_of_the_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(InvalidArgumentType, match=f"^{name} must be"):
        checkpoint(**{"checkpoint_dest": "dest", name: value})


@pytest.mark.parametrize("name", ["checkpoint_dest", "checkpoint_src", "store"])
def test_a_place_with_a_nul_is_refused_by_name(name):
    with pytest.raises(InvalidArgument, match=f"^{name} is no path and no URL: "):
        checkpoint(**{"checkpoint_dest": "dest", name: "a\0b"})


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
@pytest.mark.parametrize("opened", [False, True])
def test_a_shared_store_that_no_pointer_could_name_is_refused_at_once(dest, tmp_path, opened):
    place = tmp_path / os.fsdecode(b"\xff")
    store = Store.open(place, create=True) if opened else place
    with pytest.raises(InvalidArgument, match="store must be valid Unicode"):
        checkpoint(dest, store=store)


def test_no_destination_is_refused():
    with pytest.raises(InvalidArgument, match=r"^checkpoint_dest is no path"):
        checkpoint("")
    with pytest.raises(InvalidArgumentType, match=r"^checkpoint_dest must be"):
        checkpoint(None)


@pytest.mark.parametrize("series", [None, 7, b"x"])
def test_a_series_of_the_wrong_type_is_refused(series):
    with pytest.raises(InvalidArgumentType, match="series must be a text"):
        checkpoint("dest", series=series)


@pytest.mark.parametrize("series", ["", "x" * 201, "\ud800"])
def test_a_series_that_cannot_be_is_refused_at_once(series):
    with pytest.raises(InvalidArgument, match="not a name for a series"):
        checkpoint("dest", series=series)


@pytest.mark.parametrize(
    "path", ["", "absent", "a\0b", 7, b".", BytesPath(), object()], ids=lambda value: type(value).__name__
)
def test_a_restore_into_what_is_no_directory_is_refused(dest, src, path):
    with pytest.raises(InvalidArgument, match="directory only"):
        checkpoint(dest, src).restore(path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_save_of_what_is_no_path_is_refused(dest, path):
    with pytest.raises(CasCheckpointError) as caught:
        checkpoint(dest).save(path)
    assert isinstance(caught.value, ValueError)


def test_a_closed_reader_is_refused_as_flytekit_does(dest):
    reader = io.BytesIO(b"data")
    reader.close()
    with pytest.raises(ValueError, match=r"^I/O operation on closed file"):
        checkpoint(dest).save(reader)


def test_a_reader_that_is_open_for_writing_is_refused(dest, tmp_path):
    with (tmp_path / "out").open("wb") as writer, pytest.raises(SourceUnreadable):
        checkpoint(dest).save(writer)


@pytest.mark.parametrize(
    "data",
    [np.arange(12, dtype=np.float32).reshape(3, 4), memoryview(b"abcdef")[::2], memoryview(b"").toreadonly()],
    ids=["array", "strided", "empty"],
)
def test_write_takes_whatever_has_the_buffer_protocol(dest, data):
    checkpoint(dest).write(data)
    assert checkpoint("unused", dest).read() == memoryview(data).tobytes()


def test_a_destination_that_cannot_be_written_is_a_storage_error_and_works_once_it_can(dest):
    dest.write_bytes(b"a file is in the way")
    mine = checkpoint(dest)
    for _ in range(2):
        with pytest.raises(StorageError):
            mine.write(b"1")
    dest.unlink()
    mine.write(b"1")
    assert checkpoint("unused", dest).read() == b"1"


def test_a_subclass_may_name_things_otherwise(dest):
    class Named(SyncCheckpoint):
        TMP_DST_PATH = "state"
        SRC_LOCAL_FOLDER = "restored"

    Named(dest, durable=False).write(b"1")
    mine = Named("unused", dest)
    path = mine.restore()
    assert path.name == "restored"
    assert names(path) == ["state"]


def test_a_destination_that_is_removed_is_made_again_by_the_save_after_the_one_that_tells(tmp_path):
    checkpoint = SyncCheckpoint(tmp_path / "dest", durable=False)
    checkpoint.write(b"1")
    shutil.rmtree(tmp_path / "dest")
    with pytest.raises(StoreNotFound, match="is gone"):
        checkpoint.write(b"2")
    checkpoint.write(b"3")
    assert SyncCheckpoint(tmp_path / "other", tmp_path / "dest").read() == b"3"


# --- keeping few ---


def test_keep_forgets_all_but_the_newest(tmp_path):
    checkpoint = SyncCheckpoint(str(tmp_path / "dest"), keep=2)
    for number in range(4):
        checkpoint.write(b"step %d" % number)
    snapshots = Store.open(tmp_path / "dest").snapshots()
    assert [snapshot.sequence for snapshot in snapshots] == [4, 3]
    assert SyncCheckpoint(str(tmp_path / "next"), str(tmp_path / "dest")).read() == b"step 3"


@pytest.mark.parametrize("keep", [0, -1, 1.5, "2"])
def test_an_impossible_number_to_keep_is_refused(tmp_path, keep):
    with pytest.raises(InvalidArgument, match="keep"):
        SyncCheckpoint(str(tmp_path / "dest"), keep=keep)
