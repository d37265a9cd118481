"""The contract of flytekit's checkpointer row by row, and the decisions where ours differs. Needs no flytekit."""

import copy
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cas_checkpoint import CasCheckpointError, Checkpoint, Snapshot, Store, SyncCheckpoint

# --- rows: the constructor ----------------------------------------------------------------------


def test_init_does_no_io_and_makes_not_even_a_temporary_directory(tmp_path, temporary):
    SyncCheckpoint(str(tmp_path / "dest"), str(tmp_path / "src"))
    assert not (tmp_path / "dest").exists()
    assert not (tmp_path / "src").exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("nothing", [None, ""])
def test_init_none_and_the_empty_text_mean_no_source(tmp_path, nothing):
    checkpoint = SyncCheckpoint(str(tmp_path / "dest"), nothing)
    assert checkpoint._checkpoint_src is None
    assert not checkpoint.prev_exists()


def test_init_takes_the_places_by_position_and_by_flytekits_names(tmp_path):
    dest, src = str(tmp_path / "dest"), str(tmp_path / "src")
    for checkpoint in (SyncCheckpoint(dest, src), SyncCheckpoint(checkpoint_dest=dest, checkpoint_src=src)):
        assert (checkpoint._checkpoint_dest, checkpoint._checkpoint_src) == (dest, src)
    assert SyncCheckpoint(dest)._checkpoint_src is None


def test_init_keeps_the_attributes_that_others_read_as_they_were_given(tmp_path):
    dest, src = tmp_path / "dest", tmp_path / "src"
    checkpoint = SyncCheckpoint(dest, src)
    assert checkpoint._checkpoint_dest is dest
    assert checkpoint._checkpoint_src is src
    assert checkpoint._prev_download_path is None


def test_class_constants_are_flytekits():
    assert SyncCheckpoint.TMP_DST_PATH == "_dst_cp"
    assert SyncCheckpoint.SRC_LOCAL_FOLDER == "prev_cp"


@pytest.mark.parametrize("kind", ["text", "path", "py.path", "url"])
def test_places_may_be_texts_paths_py_path_objects_and_urls(kind, tmpdir):
    place = {
        "text": str(tmpdir / "dest"),
        "path": Path(tmpdir / "dest"),
        "py.path": tmpdir / "dest",
        "url": f"file://{tmpdir}/dest",
    }[kind]
    SyncCheckpoint(place).write(b"1")
    assert SyncCheckpoint(str(tmpdir / "next"), place).read() == b"1"


def test_the_base_class_is_an_interface():
    assert issubclass(SyncCheckpoint, Checkpoint)
    base = Checkpoint()
    for call in (
        base.prev_exists,
        base.read,
        lambda: base.restore("x"),
        lambda: base.save("x"),
        lambda: base.write(b""),
    ):
        with pytest.raises(NotImplementedError, match="Use one of the derived classes"):
            call()


# --- rows: restore ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "not-a-directory", 7])
def test_restore_without_a_source_gives_none_whatever_the_argument(attempt, path):
    assert attempt(0).restore(path) is None


def test_restore_none_goes_into_a_temporary_directory_that_dies_with_the_object(attempt, temporary):
    attempt(0).write(b"1")
    checkpoint = attempt(1)
    path = checkpoint.restore()
    assert isinstance(path, Path)
    assert path.name == "prev_cp"
    assert temporary in path.parents
    assert (path / "_dst_cp").read_bytes() == b"1"
    del checkpoint
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_restore_into_an_existing_directory_returns_it_as_a_path(attempt, tmp_path, kind):
    attempt(0).write(b"1")
    (tmp_path / "out").mkdir()
    assert attempt(1).restore(kind(tmp_path / "out")) == tmp_path / "out"
    assert (tmp_path / "out" / "_dst_cp").read_bytes() == b"1"


@pytest.mark.parametrize("path", ["absent", "file", ""])
def test_restore_into_what_is_no_directory_is_a_value_error_with_flytekits_message(attempt, tmp_path, path):
    attempt(0).write(b"1")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^Checkpoints can be restored to a directory only\.$"):
        attempt(1).restore(path and str(tmp_path / path))


def test_restore_merges_into_the_directory_and_overwrites_the_same_names(attempt, model, tmp_path, contents):
    attempt(0).save(model)
    out = tmp_path / "out"
    (out / "layers").mkdir(parents=True)
    (out / "layers" / "mine").write_bytes(b"stays")
    (out / "other").write_bytes(b"stays")
    (out / "config.json").write_bytes(b"goes")
    attempt(1).restore(out)
    assert contents(out) == contents(model) | {"layers/mine": b"stays", "other": b"stays"}


def test_a_second_restore_returns_the_same_path_unchecked_and_ignores_its_argument(attempt, tmp_path):
    attempt(0).write(b"1")
    checkpoint = attempt(1)
    path = checkpoint.restore()
    (path / "_dst_cp").unlink()
    assert checkpoint.restore(tmp_path / "absent") == path
    assert checkpoint.restore() == path
    assert checkpoint._prev_download_path == path
    assert list(path.iterdir()) == []


def test_a_failed_restore_is_not_remembered(attempt, tmp_path):
    attempt(0).write(b"1")
    checkpoint = attempt(1)
    with pytest.raises(ValueError, match="directory only"):
        checkpoint.restore(tmp_path / "out")
    assert checkpoint._prev_download_path is None
    (tmp_path / "out").mkdir()
    assert checkpoint.restore(tmp_path / "out") == tmp_path / "out"


# --- rows: read ---------------------------------------------------------------------------------


def test_read_without_a_source_gives_none(attempt):
    assert attempt(0).read() is None


def test_read_of_an_empty_checkpoint_gives_none(attempt, tmp_path):
    (tmp_path / "nothing").mkdir()
    attempt(0).save(tmp_path / "nothing")
    checkpoint = attempt(1)
    assert checkpoint.read() is None
    assert checkpoint.prev_exists()


@pytest.mark.parametrize("data", [b"", b"1", bytes(300_000)])
def test_read_of_one_file_gives_its_bytes(attempt, data):
    attempt(0).write(data)
    assert attempt(1).read() == data


def test_read_of_one_file_gives_its_bytes_whatever_its_name(attempt, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"m")
    attempt(0).save(tmp_path / "model.pt")
    assert attempt(1).read() == b"m"


@pytest.mark.parametrize(
    ("names", "found"), [(["a", "b"], 2), (["a", ".hidden"], 2), (["a", "sub/x", "sub/y"], 2), (["a", "b/x", "c"], 3)]
)
def test_read_of_several_counts_files_hidden_ones_and_subdirectories(attempt, tmp_path, names, found):
    for name in names:
        (tmp_path / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / name).write_bytes(b"")
    attempt(0).save(tmp_path / "many")
    with pytest.raises(ValueError, match=f"^Expected exactly one checkpoint - found {found}$"):
        attempt(1).read()


def test_read_of_a_single_subdirectory_is_an_error_too(attempt, tmp_path):
    (tmp_path / "many" / "sub").mkdir(parents=True)
    attempt(0).save(tmp_path / "many")
    with pytest.raises(ValueError, match="Expected exactly one checkpoint - found 'sub', which is no file"):
        attempt(1).read()


def test_read_never_sees_what_this_object_wrote(attempt):
    attempt(0).write(b"of attempt 0")
    checkpoint = attempt(1)
    checkpoint.write(b"of attempt 1")
    assert checkpoint.read() == b"of attempt 0"


# --- rows: save and write -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_save_of_a_directory_stores_its_contents_and_not_the_folder(attempt, model, contents, kind, after):
    attempt(0).save(kind(model))
    assert after(0) == contents(model)


def test_save_of_a_file_stores_it_under_its_own_name(attempt, tmp_path, after):
    (tmp_path / "model.tar.gz").write_bytes(b"m")
    attempt(0).save(str(tmp_path / "model.tar.gz"))
    assert after(0) == {"model.tar.gz": b"m"}


def test_save_of_a_missing_file_is_an_error_and_saves_nothing(attempt, tmp_path):
    with pytest.raises(ValueError, match="absent"):
        attempt(0).save(tmp_path / "absent")
    assert not attempt(1).prev_exists()


class Reader(io.RawIOBase):
    """A reader of somebody's own making, which cannot seek and gives one byte at a time."""

    def __init__(self, data):
        self._data = iter(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        byte = next(self._data, None)
        if byte is None:
            return 0
        buffer[0] = byte
        return 1


@pytest.mark.parametrize("kind", ["buffered file", "raw file", "BytesIO", "raw of one's own", "buffered of one's own"])
def test_save_of_any_reader_of_bytes_stores_it_as_dst_cp_from_where_it_stands(attempt, tmp_path, kind, after):
    path = tmp_path / "input"
    path.write_bytes(b"0123456789")
    with {
        "buffered file": lambda: path.open("rb"),
        "raw file": lambda: path.open("rb", buffering=0),
        "BytesIO": lambda: io.BytesIO(b"0123456789"),
        "raw of one's own": lambda: Reader(b"0123456789"),
        "buffered of one's own": lambda: io.BufferedReader(Reader(b"0123456789")),
    }[kind]() as reader:
        assert reader.read(2) == b"01" or kind == "raw of one's own"
        attempt(0).save(reader)
        assert not reader.closed
        assert reader.read() == b""
    restored = after(0)
    assert list(restored) == ["_dst_cp"]
    assert restored["_dst_cp"] in (b"23456789", b"123456789")


def test_save_of_a_reader_of_text_is_a_type_error(attempt, tmp_path):
    with pytest.raises(TypeError, match=r"^a bytes-like object is required, not 'str'"):
        attempt(0).save(io.StringIO("text"))
    assert not (tmp_path / "attempt-0").exists()


@pytest.mark.parametrize("thing", [b"bytes", bytearray(b""), 42, None, {"a": b""}, ["a"], object])
def test_save_of_anything_else_is_a_value_error_with_flytekits_message(attempt, tmp_path, thing):
    with pytest.raises(ValueError, match="Only a valid path or IOBase type") as caught:
        attempt(0).save(thing)
    assert str(caught.value) == f"Only a valid path or IOBase type (reader) should be provided, received {type(thing)}"
    assert not (tmp_path / "attempt-0").exists()


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_write_of_bytes_like_objects_stores_dst_cp(attempt, data, after):
    attempt(0).write(data)
    assert after(0) == {"_dst_cp": bytes(data)}


def test_write_overwrites(attempt):
    checkpoint = attempt(0)
    for step in range(3):
        checkpoint.write(b"%d" % step)
    assert attempt(1).read() == b"2"


@pytest.mark.parametrize("data", ["text", 3, None, [1]])
def test_write_of_anything_else_is_a_type_error_with_flytekits_message(attempt, data):
    with pytest.raises(TypeError, match=f"^a bytes-like object is required, not '{type(data).__name__}'$"):
        attempt(0).write(data)


# --- rows where this differs: sources, atomicity, costs -----------------------------------------


def test_a_missing_source_is_no_error_here_but_none_and_a_warning(attempt, tmp_path, caplog):
    checkpoint = attempt(1)
    with caplog.at_level(logging.WARNING, "cas_checkpoint"):
        assert checkpoint.restore() is None
        assert checkpoint.read() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"no checkpoint at {tmp_path}/attempt-0: starting without one"
    ] * 2


KILLED = """
import io, sys, time
from cas_checkpoint import SyncCheckpoint

class Endless(io.RawIOBase):
    given = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.given > 2**25:
            print("most of it is read", flush=True)
            time.sleep(600)
        self.given += len(buffer)
        return len(buffer)

checkpoint = SyncCheckpoint(sys.argv[1])
checkpoint.write(b"whole")
checkpoint.save(Endless())
"""


def test_a_kill_in_the_middle_of_a_save_leaves_here_the_snapshot_before_it(attempt, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "attempt-0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"most of it is read\n"
        process.send_signal(signal.SIGKILL)
    assert attempt(1).read() == b"whole"


def test_a_save_that_fails_in_the_middle_leaves_here_the_snapshot_before_it(attempt):
    class Failing(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            if self.given:
                raise OSError("the disk is gone")
            self.given = len(buffer)
            return self.given

    checkpoint = attempt(0)
    checkpoint.write(b"whole")
    with pytest.raises(CasCheckpointError, match="the disk is gone"):
        checkpoint.save(Failing())
    assert attempt(1).read() == b"whole"


def test_the_cost_of_a_small_save_is_here_one_object(attempt, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(20):
        (many / f"{number}").write_bytes(b"%d" % number)
    checkpoint = attempt(0)
    checkpoint.save(many)
    objects = Store.open(tmp_path / "attempt-0").info().objects
    assert {kind: count for kind, (count, _) in objects.items()} == {"header": 1, "commits": 1}
    checkpoint.write(b"next")
    assert Store.open(tmp_path / "attempt-0").info().objects["commits"][0] == 2


# --- decision 1: a save is a snapshot -----------------------------------------------------------


def test_decision_1_a_save_is_a_snapshot_and_the_latest_one_is_restored(attempt, model, tmp_path, after):
    checkpoint = attempt(0)
    first, second = checkpoint.save(model), checkpoint.write(b"2")
    assert isinstance(first, Snapshot)
    assert after(0) == {"_dst_cp": b"2"}
    assert Store.open(tmp_path / "attempt-0").snapshots() == [second, first]


def test_decision_1_names_no_longer_saved_are_gone_by_default(attempt, tmp_path, after):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    checkpoint = attempt(0)
    checkpoint.save(tmp_path / "a")
    checkpoint.save(tmp_path / "b")
    assert after(0) == {"b": b"b"}


def test_decision_1_accumulate_merges_as_flytekit_does(attempt, model, tmp_path, contents, after):
    (tmp_path / "config.json").write_bytes(b"new")
    checkpoint = attempt(0, accumulate=True)
    checkpoint.save(model)
    checkpoint.save(tmp_path / "config.json")
    checkpoint.write(b"2")
    assert after(0) == contents(model) | {"config.json": b"new", "_dst_cp": b"2"}


def test_decision_1_accumulate_copies_nothing(attempt, model):
    checkpoint = attempt(0, accumulate=True)
    checkpoint.save(model)
    assert checkpoint.write(b"2").stats.bytes_new < 1000


# --- decision 2 is in the rows of save and write. Decision 3: prev_exists() ----------------------


def test_decision_3_prev_exists_is_false_for_a_source_that_does_not_exist_or_is_empty(attempt, tmp_path):
    checkpoint = attempt(1)
    assert not checkpoint.prev_exists()
    (tmp_path / "attempt-0").mkdir()
    assert not checkpoint.prev_exists()
    Store.open(tmp_path / "attempt-0", create=True)
    assert not checkpoint.prev_exists()
    attempt(0).write(b"1")
    assert checkpoint.prev_exists()


def test_decision_3_prev_exists_asks_and_restores_nothing(attempt, temporary):
    attempt(0).write(b"1")
    checkpoint = attempt(1)
    assert checkpoint.prev_exists()
    assert list(temporary.iterdir()) == []
    assert checkpoint._prev_download_path is None


def test_decision_3_the_documented_pattern_works_on_the_first_attempt_too(attempt, caplog):
    steps = []
    for number in (1, 2, 3):
        checkpoint = attempt(number)
        previous = checkpoint.read()
        steps.append(int(previous) + 1 if previous else 0)
        checkpoint.write(b"%d" % steps[-1])
    assert steps == [0, 1, 2]
    assert len(caplog.records) == 1


def test_decision_3_the_destination_as_its_own_source_resumes_from_the_last_save(tmp_path):
    place = str(tmp_path / "place")
    for number in range(3):
        checkpoint = SyncCheckpoint(place, place)
        assert checkpoint.read() == (b"%d" % (number - 1) if number else None)
        checkpoint.write(b"%d" % number)


# --- decision 4: threads, pickles, copies, processes --------------------------------------------


def test_decision_4_threads_may_share_an_object(attempt):
    attempt(0).write(b"1")
    checkpoint = attempt(1)
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(checkpoint.restore())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [checkpoint.restore()] * 8


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_decision_4_a_copy_is_as_good(attempt, duplicate):
    attempt(0).write(b"1")
    checkpoint = duplicate(attempt(1))
    assert checkpoint.read() == b"1"
    duplicate(checkpoint).write(b"2")
    assert attempt(2).read() == b"2"


def test_decision_4_several_objects_may_save_to_one_destination(attempt):
    checkpoints = [attempt(0) for _ in range(4)]
    threads = [threading.Thread(target=checkpoint.write, args=(b"same",)) for checkpoint in checkpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert attempt(1).read() == b"same"
    store = Store.open(checkpoints[0]._checkpoint_dest)
    assert len(store.snapshots()) == 4
    assert store.verify().ok


# --- decision 5: plain checkpoints --------------------------------------------------------------


def test_decision_5_a_plain_folder_is_restored_as_it_lies(attempt, model, tmp_path, contents, metadata):
    model.rename(tmp_path / "attempt-0")
    checkpoint = attempt(1)
    assert checkpoint.prev_exists()
    path = checkpoint.restore()
    assert contents(path) == contents(tmp_path / "attempt-0")
    assert metadata(path) == metadata(tmp_path / "attempt-0")


def test_decision_5_a_plain_file_is_read(attempt, tmp_path):
    (tmp_path / "attempt-0").mkdir()
    (tmp_path / "attempt-0" / "_dst_cp").write_bytes(b"plain")
    assert attempt(1).read() == b"plain"


def test_decision_5_a_task_switches_in_the_middle_of_its_retries(attempt, tmp_path):
    (tmp_path / "attempt-0").mkdir()
    (tmp_path / "attempt-0" / "_dst_cp").write_bytes(b"1")
    checkpoint = attempt(1)
    checkpoint.write(checkpoint.read() + b"2")
    assert attempt(2).read() == b"12"


# --- decision 6: errors -------------------------------------------------------------------------


def test_decision_6_every_error_is_a_value_error_as_in_flytekit_and_one_of_ours(attempt, model, tmp_path):
    attempt(0).save(model)
    checkpoint = attempt(1)
    for call in (
        lambda: checkpoint.restore(tmp_path / "absent"),
        checkpoint.read,
        lambda: checkpoint.save(42),
        lambda: checkpoint.save(io.StringIO("")),
        lambda: checkpoint.save(tmp_path / "absent"),
        lambda: checkpoint.write("text"),
    ):
        with pytest.raises(CasCheckpointError) as caught:
            call()
        assert isinstance(caught.value, ValueError)


# --- decision 7: what flytekit loses ------------------------------------------------------------


def test_decision_7_modes_times_empty_directories_and_symlinks_are_kept(attempt, model, contents, metadata):
    attempt(0).save(model)
    checkpoint = attempt(1)
    path = checkpoint.restore()
    assert contents(path) == contents(model)
    assert metadata(path) == metadata(model)


# --- decision 8: a shared store -----------------------------------------------------------------


@pytest.mark.parametrize("given", ["environment", "argument"])
def test_decision_8_attempts_share_chunks_and_the_destination_holds_a_pointer(
    attempt, model, tmp_path, monkeypatch, given
):
    options = {"store": tmp_path / "shared"}
    if given == "environment":
        monkeypatch.setenv("CAS_CHECKPOINT_STORE", str(options.pop("store")))
    first = attempt(0, **options).save(model)
    assert first.stats.bytes_new > 200_000
    assert attempt(1, **options).save(model).stats.bytes_new == 0
    for number in (0, 1):
        (pointer,) = (tmp_path / f"attempt-{number}").iterdir()
        assert pointer.name == "cas-checkpoint-pointer"
        assert pointer.stat().st_size < 500
    assert len(Store.open(tmp_path / "shared").info().series) == 2


def test_decision_8_a_source_that_points_to_a_shared_store_is_found_without_being_told_of_it(attempt, tmp_path):
    attempt(0, store=tmp_path / "shared").write(b"1")
    assert attempt(1).read() == b"1"
