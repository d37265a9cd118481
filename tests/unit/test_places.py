"""Where checkpoints go and come from: stores, pointers to a shared store, plain files."""

import shutil
import threading
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.errors import (
    CasCheckpointError,
    DamagedObject,
    DamagedStore,
    InvalidArgument,
    MissingObject,
    NotAStore,
    StorageError,
    StoreNotFound,
    UnsupportedStore,
)
from cas_checkpoint.headers import HEADER_KEY
from cas_checkpoint.ids import StoreId
from cas_checkpoint.places import Place, StoreAccess, _new_series
from cas_checkpoint.plain import write_items
from cas_checkpoint.pointers import POINTER_KEY, Pointer
from cas_checkpoint.previous import PreviousFiles, PreviousSnapshot
from cas_checkpoint.store import Store

ACCESS = StoreAccess(durable=False, storage_options={})


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def empty_memory():
    """Leave nothing in fsspec's memory."""
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def place(path, shared=None, series="default"):
    return Place(str(path), ACCESS, shared=shared if shared is None else str(shared), series=series)


def write(path, shared=None, data=b"data", **options):
    """Save at a place, as a checkpoint object does."""
    home = place(path, shared, **options).settle()
    return home.store.save(data, series=home.series)


def read(path, shared=None, **options):
    previous = place(path, shared, **options).previous()
    return previous and previous.read()


def names(path):
    return sorted(item.name for item in Path(path).iterdir())


# --- a place that is nothing yet ----------------------------------------------------------------


def test_looking_at_a_place_that_is_not_there_makes_nothing(root):
    assert place(root / "dest").find() is None
    assert place(root / "dest").previous() is None
    assert place(root / "dest", root / "shared").previous() is None
    assert not root.exists()


def test_a_place_becomes_a_store_when_it_is_settled(root):
    home = place(root / "dest").settle()
    assert names(root / "dest") == [HEADER_KEY]
    assert home.series == "default"
    assert place(root / "dest").find().store.id == home.store.id


def test_settling_again_gives_the_same_home(root):
    assert len({place(root / "dest").settle().store.id for _ in range(3)}) == 1
    homes = {place(root / "other", root / "shared").settle().series for _ in range(3)}
    assert len(homes) == 1


def test_threads_that_settle_at_once_agree(root):
    homes = []
    gate = threading.Barrier(8)

    def settle():
        gate.wait()
        homes.append(place(root / "dest", root / "shared").settle())

    threads = [threading.Thread(target=settle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(home.store.id, home.series) for home in homes}) == 1
    assert len(homes) == 8


def test_who_is_late_with_a_pointer_takes_the_one_that_is_there(root, monkeypatch):
    put = LocalBackend.put_if_absent

    def after_another(backend, key, data):
        if key == POINTER_KEY and not (root / "dest" / POINTER_KEY).exists():
            pointer = Pointer(str(root / "shared"), Pointer.decode(data).store, "of-the-other")
            assert put(backend, key, pointer.encode())
        return put(backend, key, data)

    monkeypatch.setattr(LocalBackend, "put_if_absent", after_another)
    assert place(root / "dest", root / "shared").settle().series == "of-the-other"


# --- a shared store -----------------------------------------------------------------------------


def test_with_a_shared_store_the_place_holds_a_pointer_and_nothing_else(root):
    snapshot = write(root / "dest", root / "shared")
    assert names(root / "dest") == [POINTER_KEY]
    pointer = Pointer.decode((root / "dest" / POINTER_KEY).read_bytes())
    shared = Store.open(root / "shared")
    assert (pointer.url, pointer.store.hex()) == (str(root / "shared"), shared.id)
    assert shared.latest(pointer.series) == snapshot


def test_the_pointer_is_enough_to_find_the_snapshots(root):
    write(root / "dest", root / "shared")
    assert read(root / "dest") == b"data"


def test_each_place_has_a_series_of_its_own_in_the_shared_store(root):
    for number in range(3):
        write(root / f"dest-{number}", root / "shared", b"%d" % number)
    assert [read(root / f"dest-{number}") for number in range(3)] == [b"0", b"1", b"2"]
    assert set(Store.open(root / "shared").info().series.values()) == {1}


def test_a_place_of_the_same_url_begins_anew_after_it_was_removed(root):
    write(root / "dest", root / "shared", b"old")
    shutil.rmtree(root / "dest")
    assert read(root / "dest", root / "shared") is None
    write(root / "dest", root / "shared", b"new")
    assert len(Store.open(root / "shared").info().series) == 2


def test_places_share_what_they_store(root, tmp_path):
    data = bytes(range(256)) * 2000
    assert write(root / "a", root / "shared", data).stats.bytes_new > 0
    assert write(root / "b", root / "shared", data).stats.bytes_new == 0


def test_an_open_store_can_be_the_shared_one(root):
    store = Store.open(root / "shared", create=True)
    home = Place(str(root / "dest"), ACCESS, shared=store, series="default").settle()
    assert home.store is store
    assert Place(str(root / "dest"), ACCESS, shared=store, series="default").find().store is store


def test_a_place_that_is_the_shared_store_itself_stays_a_store(root):
    write(root / "shared", root / "shared")
    write(root / "shared", root / "shared", b"next")
    assert not (root / "shared" / POINTER_KEY).exists()
    assert Store.open(root / "shared").info().series == {"default": 2}
    assert read(root / "shared", root / "shared") == b"next"


def test_a_place_that_is_a_store_already_stays_one(root):
    write(root / "dest")
    write(root / "dest", root / "shared", b"next")
    assert not (root / "dest" / POINTER_KEY).exists()
    assert not (root / "shared").exists()
    assert read(root / "dest", root / "shared") == b"next"


@pytest.mark.parametrize("shared", [None, "another"])
def test_a_place_with_a_pointer_keeps_it_whatever_is_shared_now(root, shared):
    write(root / "dest", root / "shared")
    pointer = (root / "dest" / POINTER_KEY).read_bytes()
    write(root / "dest", shared and root / shared, b"next")
    assert names(root / "dest") == [POINTER_KEY]
    assert (root / "dest" / POINTER_KEY).read_bytes() == pointer
    assert not (root / "another").exists()
    assert read(root / "dest") == b"next"


def test_series_of_a_place_are_kept_apart_in_the_shared_store(root):
    for series in ("default", "other", "Größe/1"):
        write(root / "dest", root / "shared", series.encode(), series=series)
    for series in ("default", "other", "Größe/1"):
        assert read(root / "dest", series=series) == series.encode()
    pointer = Pointer.decode((root / "dest" / POINTER_KEY).read_bytes())
    found = Store.open(root / "shared").info().series
    assert set(found) == {pointer.series, f"{pointer.series}/other", f"{pointer.series}/Größe/1"}


def test_series_of_a_place_that_is_a_store_are_the_stores(root):
    write(root / "dest", series="one")
    assert read(root / "dest") is None
    assert read(root / "dest", series="one") == b"data"


# --- a shared store that is not where it was -----------------------------------------------------


def test_a_moved_store_is_found_by_its_id_when_its_place_is_told(root):
    write(root / "dest", root / "shared")
    (root / "shared").rename(root / "moved")
    assert read(root / "dest", root / "moved") == b"data"
    store = Store.open(root / "moved")
    assert Place(str(root / "dest"), ACCESS, shared=store, series="default").previous().read() == b"data"
    write(root / "dest", root / "moved", b"next")
    assert read(root / "dest", root / "moved") == b"next"


@pytest.mark.parametrize("shared", [None, "absent", "another"])
def test_a_store_that_is_gone_is_an_error_that_says_what_to_do(root, shared):
    write(root / "dest", root / "shared")
    write(root / "x", root / "another")
    shutil.rmtree(root / "shared")
    for use in (read, write):
        with pytest.raises(
            StoreNotFound, match="which is gone; make it available again, or say where it is now"
        ) as error:
            use(root / "dest", shared and root / shared)
        assert str(root / "dest") in str(error.value)
        assert str(root / "shared") in str(error.value)
    assert names(root / "dest") == [POINTER_KEY]


def test_another_store_in_its_place_is_an_error_that_names_both(root):
    write(root / "dest", root / "shared")
    old = Store.open(root / "shared").id
    shutil.rmtree(root / "shared")
    new = Store.open(root / "shared", create=True).id
    for use in (read, write):
        with pytest.raises(StoreNotFound, match="there is another store now") as error:
            use(root / "dest")
        assert old in str(error.value)
        assert new in str(error.value)
    assert Store.open(root / "shared").info().series == {}


def test_something_else_in_its_place_is_an_error_and_the_pointer_is_no_checkpoint(root):
    write(root / "dest", root / "shared")
    shutil.rmtree(root / "shared")
    (root / "shared").mkdir()
    (root / "shared" / HEADER_KEY).write_bytes(b"somebody's notes")
    for use in (read, write):
        with pytest.raises(NotAStore, match="is not the header of a store"):
            use(root / "dest")
        with pytest.raises(NotAStore, match="is not the header of a store"):
            use(root / "dest", root / "shared")


def test_a_shared_store_that_is_something_else_is_an_error(root):
    (root / "shared").mkdir(parents=True)
    (root / "shared" / HEADER_KEY).write_bytes(b"somebody's notes")
    with pytest.raises(NotAStore):
        write(root / "dest", root / "shared")
    assert not (root / "dest").exists()


# --- what is damaged ----------------------------------------------------------------------------


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_a_damaged_pointer_is_an_error_that_names_it_whatever_is_done(root):
    write(root / "dest", root / "shared")
    _flip(root / "dest" / POINTER_KEY)
    for use in (read, write, lambda path: write(path, root / "shared")):
        with pytest.raises(DamagedObject, match=f"{root}/dest/{POINTER_KEY}"):
            use(root / "dest")


def test_a_damaged_header_is_an_error_whatever_is_done(root):
    write(root / "dest")
    _flip(root / "dest" / HEADER_KEY)
    for use in (read, write):
        with pytest.raises(DamagedStore):
            use(root / "dest")


def test_a_store_without_its_header_is_an_error_and_no_plain_folder(root):
    write(root / "dest")
    (root / "dest" / HEADER_KEY).unlink()
    for use in (read, write):
        with pytest.raises(MissingObject, match="the header"):
            use(root / "dest")


@pytest.mark.parametrize("key", [HEADER_KEY, POINTER_KEY])
def test_what_a_newer_version_wrote_is_refused(root, key):
    write(root / "dest", root / "shared" if key == POINTER_KEY else None)
    data = bytearray((root / "dest" / key).read_bytes())
    data[9] = 2  # the format version
    (root / "dest" / key).unlink()
    (root / "dest" / key).write_bytes(data)
    for use in (read, write):
        with pytest.raises(UnsupportedStore):
            use(root / "dest")


def test_a_place_that_cannot_be_reached_is_a_storage_error(root):
    root.mkdir()
    (root / "loop").symlink_to("loop")
    for use in (read, write):
        with pytest.raises(StorageError):
            use(root / "loop")


def test_a_pointer_with_a_series_that_cannot_be_is_refused(root):
    store = Store.open(root / "shared", create=True)
    (root / "dest").mkdir()
    pointer = Pointer(store.url, StoreId(bytes.fromhex(store.id)), "")
    (root / "dest" / POINTER_KEY).write_bytes(pointer.encode())
    with pytest.raises(CasCheckpointError, match="series"):
        read(root / "dest")


# --- what to resume from ------------------------------------------------------------------------


def test_a_snapshot_comes_before_plain_files(root):
    (root / "dest").mkdir(parents=True)
    (root / "dest" / "plain").write_bytes(b"plain")
    assert isinstance(place(root / "dest").previous(), PreviousFiles)
    write(root / "dest")
    assert isinstance(place(root / "dest").previous(), PreviousSnapshot)


@pytest.mark.parametrize("shared", [None, "shared"])
def test_plain_files_are_told_from_a_store_that_has_no_snapshot_yet(root, shared):
    (root / "dest").mkdir(parents=True)
    (root / "dest" / "plain").write_bytes(b"plain")
    place(root / "dest", shared and root / shared).settle()
    assert read(root / "dest") == b"plain"


@pytest.mark.parametrize("shared", [None, "shared"])
def test_a_store_without_a_snapshot_holds_nothing(root, shared):
    place(root / "dest", shared and root / shared).settle()
    assert place(root / "dest").previous() is None


@pytest.mark.parametrize("name", [".tmp-0123456789abcdef", f"probe-{'0' * 32}"])
def test_leftovers_of_a_store_that_was_never_finished_are_nothing(root, name):
    (root / "dest").mkdir(parents=True)
    (root / "dest" / name).write_bytes(b"left over")
    assert place(root / "dest").previous() is None
    (root / "dest" / "plain").write_bytes(b"plain")
    assert read(root / "dest") == b"plain"


@pytest.mark.parametrize("name", [".tmp-", ".tmp-xyz", "probe-1", "packs", "index", "marks", "manifests", "commits"])
def test_plain_files_may_have_names_that_a_store_uses(root, name):
    (root / "dest").mkdir(parents=True)
    (root / "dest" / name).write_bytes(b"plain")
    assert read(root / "dest") == b"plain"


def test_a_plain_file_may_have_the_name_of_a_header(root, tmp_path):
    (root / "dest").mkdir(parents=True)
    (root / "dest" / HEADER_KEY).write_bytes(b"plain")
    assert read(root / "dest") == b"plain"
    with pytest.raises(NotAStore):
        write(root / "dest")
    previous = place(root / "dest").previous()
    write_items(previous.files.items(lambda notice: None), tmp_path / "out", lambda notice: None)
    assert names(tmp_path / "out") == [HEADER_KEY]


# --- on other file systems ----------------------------------------------------------------------


def test_places_may_lie_in_memory(root):
    assert read("memory://dest") is None
    write("memory://dest", data=b"1")
    assert read("memory://dest") == b"1"


def test_a_place_and_its_shared_store_may_lie_on_different_file_systems(root):
    write("memory://dest", root / "shared", b"1")
    assert read("memory://dest") == b"1"
    assert fsspec.filesystem("memory").find("/dest") == [f"/dest/{POINTER_KEY}"]
    write(root / "other", "memory://shared", b"2")
    assert read(root / "other") == b"2"


def test_an_unknown_protocol_is_told(root):
    for use in (read, write):
        with pytest.raises(InvalidArgument, match="nonsense"):
            use("nonsense://dest")


def test_storage_options_reach_stores_pointers_and_plain_files():
    class Recorded(MemoryFileSystem):
        protocol = "recorded"
        cachable = False
        seen: ClassVar = []

        def __init__(self, **options):
            super().__init__()
            self.seen.append(options.get("token"))

    fsspec.register_implementation("recorded", Recorded, clobber=True)
    access = StoreAccess(durable=False, storage_options={"token": "secret"})
    home = Place("recorded://dest", access, shared="recorded://shared", series="default").settle()
    home.store.save(b"data", series=home.series)
    assert Place("recorded://dest", access, shared=None, series="default").previous().read() == b"data"
    assert Place("recorded://plain", access, shared=None, series="default").previous() is None
    assert set(Recorded.seen) == {"secret"}


# --- names of series ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "slug"),
    [
        ("s3://bucket/run/Attempt-1", "s3-bucket-run-attempt-1"),
        ("/", "place"),
        ("/Ünï/ç", "n"),
        (f"/{'x' * 100}/end", f"{'x' * 44}-end"),
        (f"/{'x' * 10}-{'y' * 48}", "y" * 48),
        (f"/{'x' * 10}-{'y' * 47}", "y" * 47),
    ],
)
def test_a_series_is_named_after_its_place_and_like_no_other(url, slug):
    first, second = _new_series(url), _new_series(url)
    assert first != second
    assert first.rpartition("-")[0] == slug
    assert len(first) <= 48 + 17
