"""Flytekit's own class beside this one: the same calls, and what each of them does. Skipped where flytekit is not."""

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import cas_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from flytekit.core.checkpointer import Checkpoint, SyncCheckpoint
    except ImportError as error:
        pytest.skip(f"flytekit cannot be imported: {error}", allow_module_level=True)

OURS = cas_checkpoint.SyncCheckpoint
BOTH = pytest.mark.parametrize("kind", [pytest.param(SyncCheckpoint, id="flytekit"), pytest.param(OURS, id="ours")])


@pytest.fixture
def make():
    """Make a checkpoint object; of flytekit's, which relies on its `__del__`, the temporary directory goes for sure."""
    made = []

    def new(kind, *places, **options):
        checkpoint = kind(*map(str, places), **options)
        if kind is SyncCheckpoint:
            made.append(checkpoint)
        return checkpoint

    yield new
    for checkpoint in made:
        checkpoint._td.cleanup()


@pytest.fixture
def resume(tmp_path, make):
    """Make a checkpoint object as attempt N of a task; each class has places of its own."""

    def new(kind, number, **options):
        places = [tmp_path / f"{kind.__module__}-{n}" for n in (number, number - 1)]
        return make(kind, *places[: number + 1], **options)

    return new


@pytest.fixture
def outcome(resume, tmp_path, contents):
    """Tell what comes of one operation: what was restored after it, or the error."""

    def tell(kind, operation, **options):
        case = SimpleNamespace(first=resume(kind, 0, **options), second=resume(kind, 1, **options), tmp=tmp_path)
        try:
            result = operation(case)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is compared
            return error
        if isinstance(result, Path):
            return contents(result)
        return result

    return tell


def then(*operations):
    """Return an operation that does these, and gives what the last of them gives."""

    def run(case):
        for operation in operations[:-1]:
            operation(case)
        return operations[-1](case)

    return run


def after(*operations):
    """Return an operation that does these, and restores what they saved."""
    return then(*operations, lambda case: case.second.restore())


def _file(case, name, data=b"data"):
    path = case.tmp / "files" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _data(case):
    case.first.write(b"data")


def _from_the_middle(case):
    reader = io.BytesIO(b"0123456789")
    reader.seek(3)
    case.first.save(reader)
    assert not reader.closed


def _open_file(case):
    with _file(case, "x").open("rb", buffering=0) as reader:
        case.first.save(reader)


def _hidden_and_nested(case):
    for name in (".hidden", "top", "sub/.hidden", "sub/deep/file"):
        path = case.tmp / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    case.first.save(case.tmp / "plain")


def _empty(case):
    (case.tmp / "nothing").mkdir(exist_ok=True)
    case.first.save(case.tmp / "nothing")


def _restore_into(case):
    case.first.write(b"data")
    out = case.tmp / case.first.__class__.__module__
    out.mkdir()
    (out / "_dst_cp").write_bytes(b"goes")
    (out / "other").write_bytes(b"stays")
    return case.second.restore(str(out))


def _restore_twice(case):
    case.first.write(b"data")
    path = case.second.restore()
    return (case.second.restore(case.tmp / "absent") == path, case.second._prev_download_path == path, path.name)


def _own_writes(case):
    case.first.write(b"before")
    case.second.write(b"own")
    return case.second.read()


SAME = {
    "a folder": after(_hidden_and_nested),
    "a folder as text": after(_hidden_and_nested, lambda case: case.first.save(str(case.tmp / "plain"))),
    "a file": after(lambda case: case.first.save(_file(case, "model.tar.gz"))),
    "a file as text": after(lambda case: case.first.save(str(_file(case, "weights")))),
    "an open file": after(_open_file),
    "a buffer": after(lambda case: case.first.save(io.BytesIO(b"data"))),
    "a reader from the middle": after(_from_the_middle),
    "write": after(lambda case: case.first.write(b"data")),
    "write nothing": after(lambda case: case.first.write(b"")),
    "write a bytearray": after(lambda case: case.first.write(bytearray(b"data"))),
    "write a memoryview": after(lambda case: case.first.write(memoryview(b"data"))),
    "write twice": after(lambda case: case.first.write(b"1"), lambda case: case.first.write(b"2")),
    "read": then(_data, lambda case: case.second.read()),
    "read a file": then(lambda case: case.first.save(_file(case, "x")), lambda case: case.second.read()),
    "read twice": then(_data, lambda case: [case.second.read(), case.second.read()]),
    "read, then where it was restored": then(
        _data, lambda case: case.second.read(), lambda case: case.second._prev_download_path
    ),
    "read an empty folder": then(_empty, lambda case: case.second.read()),
    "read without a source": lambda case: case.first.read(),
    "restore without a source": lambda case: case.first.restore(case.tmp / "absent"),
    "prev_exists without a source": lambda case: case.first.prev_exists(),
    "prev_exists": then(_data, lambda case: case.second.prev_exists()),
    "own writes": _own_writes,
    "restore into": _restore_into,
    "restore twice": _restore_twice,
}


@pytest.mark.parametrize("operation", SAME.values(), ids=SAME)
def test_both_do_the_same(outcome, operation):
    theirs = outcome(SyncCheckpoint, operation)
    assert not isinstance(theirs, Exception)
    assert outcome(OURS, operation) == theirs


SAME_ERRORS = {
    "restore into a file": then(_data, lambda case: case.second.restore(_file(case, "x"))),
    "restore into nothing": then(_data, lambda case: case.second.restore(case.tmp / "absent")),
    "read several": then(_hidden_and_nested, lambda case: case.second.read()),
    "save bytes": lambda case: case.first.save(b"data"),
    "save None": lambda case: case.first.save(None),
    "save a list": lambda case: case.first.save([]),
    "write text": lambda case: case.first.write("text"),
    "write a number": lambda case: case.first.write(3),
}


@pytest.mark.parametrize("operation", SAME_ERRORS.values(), ids=SAME_ERRORS)
def test_both_raise_the_same_types_and_messages(outcome, operation):
    theirs, ours = outcome(SyncCheckpoint, operation), outcome(OURS, operation)
    assert isinstance(theirs, (ValueError, TypeError))
    assert isinstance(ours, type(theirs))
    assert str(ours) == str(theirs)


def test_a_reader_of_text_has_the_same_type_of_error_and_a_message_that_says_more(outcome):
    theirs, ours = (outcome(kind, lambda case: case.first.save(io.StringIO("text"))) for kind in (SyncCheckpoint, OURS))
    assert isinstance(ours, type(theirs))
    assert str(ours).startswith(str(theirs))


def test_accumulate_does_what_flytekit_does_with_repeated_saves(outcome):
    def several(case):
        _hidden_and_nested(case)
        case.first.save(_file(case, "top", b"new"))
        case.first.save(io.BytesIO(b"reader"))
        case.first.write(b"written")
        (case.tmp / "plain" / "sub" / ".hidden").write_bytes(b"new")
        case.first.save(case.tmp / "plain" / "sub")
        return case.second.restore()

    theirs = outcome(SyncCheckpoint, several)
    assert len(theirs) > 5
    assert outcome(OURS, several, accumulate=True) == theirs


def test_the_interfaces_have_the_same_names():
    for theirs, ours in ((Checkpoint, cas_checkpoint.Checkpoint), (SyncCheckpoint, OURS)):
        names = {name for name in vars(theirs) if not name.startswith("_")}
        assert names <= set(dir(ours))
    for name in ("SRC_LOCAL_FOLDER", "TMP_DST_PATH"):
        assert getattr(OURS, name) == getattr(SyncCheckpoint, name)


@BOTH
def test_the_attributes_that_others_read_are_there(make, kind):
    checkpoint = make(kind, "/dest", "/src")
    assert (checkpoint._checkpoint_dest, checkpoint._checkpoint_src) == ("/dest", "/src")
    assert checkpoint._prev_download_path is None
    assert make(kind, "/dest", "")._checkpoint_src is None


# --- what differs -------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["restore", "read"])
def test_a_missing_source_is_their_value_error_and_our_none(resume, operation):
    with pytest.raises(ValueError, match="File not found"):
        getattr(resume(SyncCheckpoint, 1), operation)()
    assert getattr(resume(OURS, 1), operation)() is None


def test_prev_exists_is_theirs_without_a_look_and_ours_with_one(resume):
    assert resume(SyncCheckpoint, 1).prev_exists() is True
    assert resume(OURS, 1).prev_exists() is False


def test_names_no_longer_saved_stay_with_them_and_go_with_us(outcome):
    operation = after(lambda case: case.first.save(_file(case, "x")), lambda case: case.first.write(b"data"))
    assert set(outcome(SyncCheckpoint, operation)) == {"x", "_dst_cp"}
    assert set(outcome(OURS, operation)) == {"_dst_cp"}


def test_modes_times_and_links_are_lost_by_them_and_kept_by_us(resume, model, contents, metadata):
    restored = {}
    for kind in (SyncCheckpoint, OURS):
        resume(kind, 0).save(model)
        checkpoint = resume(kind, 1)
        path = checkpoint.restore()
        restored[kind] = (contents(path), metadata(path))
    theirs, ours = restored[SyncCheckpoint], restored[OURS]
    assert ours == (contents(model), metadata(model))
    assert theirs[0]["latest"] == (model / "layers" / "0" / "weights.bin").read_bytes()
    assert theirs[0]["all"] == "directory"
    assert theirs[1]["run.sh"][0] != ours[1]["run.sh"][0]
    assert theirs[1]["config.json"][1] != ours[1]["config.json"][1]


# --- decision 5: what their class wrote is our source -------------------------------------------


def test_a_checkpoint_of_theirs_is_restored_by_ours_as_theirs_would(tmp_path, make, model, contents):
    place = tmp_path / "attempt-0"
    make(SyncCheckpoint, place).save(model)
    theirs = make(SyncCheckpoint, tmp_path / "attempt-1", place)
    ours = make(OURS, tmp_path / "attempt-1", place)
    assert ours.prev_exists()
    assert contents(ours.restore()) == contents(theirs.restore()) == contents(place)


def test_a_checkpoint_of_theirs_is_read_by_ours(tmp_path, make):
    place = tmp_path / "attempt-0"
    make(SyncCheckpoint, place).write(b"written by them")
    assert make(OURS, tmp_path / "attempt-1", place).read() == b"written by them"


def test_several_files_of_theirs_are_the_same_error(tmp_path, make, model):
    place = tmp_path / "attempt-0"
    make(SyncCheckpoint, place).save(model)
    for kind in (SyncCheckpoint, OURS):
        with pytest.raises(ValueError, match=r"^Expected exactly one checkpoint - found 7$"):
            make(kind, tmp_path / "attempt-1", place).read()


def test_a_task_switches_to_ours_in_the_middle_of_its_retries(tmp_path, make):
    places = [tmp_path / f"attempt-{number}" for number in range(4)]
    make(SyncCheckpoint, places[0]).write(b"0")
    for number in (1, 2, 3):
        checkpoint = make(OURS, places[number], places[number - 1])
        checkpoint.write(checkpoint.read() + b"%d" % number)
    assert make(OURS, tmp_path / "last", places[3]).read() == b"0123"


def test_a_place_that_both_wrote_to_gives_what_ours_committed(tmp_path, make):
    place = tmp_path / "place"
    make(SyncCheckpoint, place).write(b"theirs")
    checkpoint = make(OURS, place, place)
    assert checkpoint.read() == b"theirs"
    checkpoint.write(b"ours")
    assert make(OURS, place, place).read() == b"ours"
