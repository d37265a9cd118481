"""The state of a checkpoint object, and temporary directories that die with it."""

import copy
import os
import pickle
import tempfile
from pathlib import Path

import pytest

from cas_checkpoint.errors import DamagedObject, MissingObject, SnapshotForgotten, SourceChanged, StorageError
from cas_checkpoint.places import Home
from cas_checkpoint.sessions import Session, TemporaryFolder, _remove
from cas_checkpoint.store import Store


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary directories are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def in_a_fork(function):
    """Run `function` in a child process; tell whether it returned true."""
    child = os.fork()
    if child == 0:
        result = False
        try:
            result = function()
        finally:
            os._exit(0 if result else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- temporary directories ----------------------------------------------------------------------


def test_a_temporary_folder_is_there_and_ones_own():
    first, second = TemporaryFolder(), TemporaryFolder()
    assert first.path.is_dir()
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_goes_with_the_object_and_all_it_holds(temporary):
    folder = TemporaryFolder()
    (folder.path / "sub").mkdir()
    (folder.path / "sub" / "file").write_bytes(b"")
    del folder
    assert list(temporary.iterdir()) == []


def test_a_temporary_folder_goes_even_if_modes_forbid_it_and_what_links_lead_to_stays(temporary, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    folder = TemporaryFolder()
    (folder.path / "a" / "b").mkdir(parents=True)
    (folder.path / "a" / "b" / "file").write_bytes(b"")
    (folder.path / "a" / "link").symlink_to(outside)
    (folder.path / "a" / "b").chmod(0)
    (folder.path / "a").chmod(0o100)
    del folder
    assert list(temporary.iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o500


def test_a_temporary_folder_that_somebody_removed_is_no_trouble(temporary):
    folder = TemporaryFolder()
    folder.path.rmdir()
    del folder
    assert list(temporary.iterdir()) == []


def test_a_temporary_folder_is_removed_by_the_process_that_made_it_only(temporary):
    folder = TemporaryFolder()

    def end():
        folder._finalizer()
        return folder.path.is_dir()

    assert in_a_fork(end)
    assert folder.path.is_dir()
    _remove(folder.path, os.getpid() + 1)
    assert folder.path.is_dir()
    _remove(folder.path, os.getpid())
    assert not folder.path.exists()


# --- sessions -----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    return Home(Store.open(tmp_path / "store", create=True, durable=False), "series")


DUPLICATES = [copy.copy, copy.deepcopy, lambda session: pickle.loads(pickle.dumps(session))]


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_a_copy_knows_the_same_and_has_locks_of_its_own(home, tmp_path, duplicate):
    session = Session()
    session.home, session.restored, session.was_read = home, tmp_path, True
    with session.resuming, session.saving:
        other = duplicate(session)
        assert not other.resuming.locked()
        assert not other.saving.locked()
    assert (other.home.store.id, other.home.series) == (home.store.id, "series")
    assert (other.restored, other.was_read, other.process) == (tmp_path, True, os.getpid())


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_a_copy_has_not_the_temporary_directory(duplicate):
    session = Session()
    session.folder = TemporaryFolder()
    session.restored = session.folder.path
    other = duplicate(session)
    assert (other.folder, other.restored) == (None, None)


def test_a_copy_that_comes_where_the_directory_is_not_has_restored_nothing(tmp_path):
    session = Session()
    session.restored = tmp_path / "elsewhere"
    session.restored.mkdir()
    data = pickle.dumps(session)
    assert pickle.loads(data).restored == tmp_path / "elsewhere"
    session.restored.rmdir()
    assert pickle.loads(data).restored is None


def test_a_session_is_itself_in_its_process_and_a_copy_in_another(home):
    session = Session()
    session.home = home
    assert session.here() is session

    def check():
        other = session.here()
        return other is not session and other.here() is other and other.home == home and not other.saving.locked()

    with session.saving:
        assert in_a_fork(check)


@pytest.mark.parametrize("error", [DamagedObject("x"), MissingObject("x"), SnapshotForgotten("x")])
def test_what_cannot_be_used_is_forgotten(error):
    session = Session()
    session.previous = object()
    with pytest.raises(type(error)), session.forgetting_what_is_gone():
        raise error
    assert session.previous is None


@pytest.mark.parametrize("error", [StorageError("x"), SourceChanged("x"), KeyboardInterrupt()])
def test_what_may_be_used_later_is_kept(error):
    session = Session()
    session.previous = previous = object()
    with session.forgetting_what_is_gone():
        pass
    with pytest.raises(type(error)), session.forgetting_what_is_gone():
        raise error
    assert session.previous is previous


def test_a_folder_lies_where_temporary_files_do(temporary):
    folder = TemporaryFolder()
    assert Path(temporary) == folder.path.parent
