"""Plain checkpoints: folders of files that no store made, restored as they lie."""

import os
import socket
import stat
import sys
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from cas_checkpoint.errors import (
    CasCheckpointError,
    InvalidArgument,
    SourceChanged,
    SourceError,
    SourceNotFound,
    SourceUnreadable,
    StorageError,
    TargetObstructed,
)
from cas_checkpoint.plain import open_plain, write_items


@pytest.fixture
def root(tmp_path):
    place = tmp_path / "plain"
    place.mkdir()
    return place


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def memory():
    """A file system in memory that is empty again afterwards."""
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory"])
def put(request, root, memory):
    """Make files, given by name, in an empty folder; return its URL."""

    def fill(files):
        for name, data in files.items():
            if request.param == "memory":
                memory.pipe_file(f"/plain/{name}", data)
            else:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data)
        return "memory://plain" if request.param == "memory" else str(root)

    return fill


def everything(name):
    return True


def restore(url, out, keep=everything):
    notices = []
    write_items(open_plain(str(url), keep).items(notices.append), out, notices.append)
    return notices


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- on any file system -------------------------------------------------------------------------


def test_files_are_restored_at_any_depth(put, out):
    data = {"a": b"a", "sub/b": b"b", "sub/deep/c": bytes(3_000_001), ".hidden": b"", "Ünï cöde": b"u"}
    assert restore(put(data), out) == []
    assert files(out) == data


def test_many_files_are_restored(put, out):
    data = {f"{number % 7}/{number}": b"%d" % number for number in range(100)}
    restore(put(data), out)
    assert files(out) == data


def test_the_names_at_the_top_are_told_and_which_are_files(put):
    url = put({"a": b"a", "sub/b": b"b", ".hidden": b""})
    assert open_plain(url, everything).top() == {"a": True, "sub": False, ".hidden": True}


def test_a_file_at_the_top_is_read(put):
    assert open_plain(put({"a": b"data", "b": b""}), everything).read_bytes("a") == b"data"


@pytest.mark.parametrize("name", ["packs", "left/over"])
def test_what_is_not_to_be_kept_is_not_there_however_deep(put, out, name):
    top = name.partition("/")[0]
    url = put({name: b"", "kept": b"1", f"kept-too/{top}": b"2"})
    assert set(open_plain(url, top.__ne__).top()) == {"kept", "kept-too"}
    restore(url, out, top.__ne__)
    assert files(out) == {"kept": b"1", f"kept-too/{top}": b"2"}


def test_a_folder_that_does_not_exist_holds_nothing(put, out):
    url = f"{put({})}/absent"
    assert open_plain(url, everything).top() == {}


def test_a_file_that_cannot_be_read_is_a_storage_error_that_names_it(put):
    plain = open_plain(put({"sub/a": b""}), everything)
    with pytest.raises(StorageError, match="absent"):
        plain.read_bytes("absent")


# --- on a local disk ----------------------------------------------------------------------------


def test_modes_times_empty_directories_and_links_are_kept(root, out):
    (root / "empty").mkdir(mode=0o700)
    (root / "run").write_bytes(b"x")
    (root / "run").chmod(0o751)
    (root / "link").symlink_to("run")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "sub").mkdir()
    (root / "sub" / "same").hardlink_to(root / "run")
    for name in ("run", "empty", "sub"):
        os.utime(root / name, ns=(1, 1_234_567_890_123_456_789))
    assert restore(root, out) == []
    for name in ("run", "empty", "sub"):
        ours, theirs = (out / name).stat(), (root / name).stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)
    assert os.readlink(out / "link") == "run"
    assert os.readlink(out / "dangling") == "/nowhere/at/all"
    assert (out / "sub" / "same").samefile(out / "run")


def test_holes_stay_holes(root, out):
    with (root / "sparse").open("wb") as file:
        file.truncate(20_000_000)
        for offset in (0, 9_999_999, 15_000_000):
            file.seek(offset)
            file.write(bytes(range(1, 200)) * 10_000)
        file.truncate(30_000_000)
    restore(root, out)
    assert (out / "sparse").read_bytes() == (root / "sparse").read_bytes()
    if (root / "sparse").stat().st_blocks * 512 < 10_000_000:  # the file system has holes
        assert (out / "sparse").stat().st_blocks * 512 < 10_000_000


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_may_be_any_bytes(root, out):
    name = os.fsdecode(b"\xff\xfe name\n")
    (root / name).write_bytes(b"x")
    assert open_plain(str(root), everything).top() == {name: True}
    restore(root, out)
    assert os.listdir(os.fsencode(out)) == [b"\xff\xfe name\n"]


def test_what_is_no_file_is_left_out_and_told(root, out, monkeypatch):
    monkeypatch.chdir(root)  # the path of a socket must be short
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        notices = restore(root, out)
    assert [Path(notice.path).name for notice in notices] == ["fifo", "s"]
    assert list(out.iterdir()) == []
    assert open_plain(str(root), everything).top() == {"fifo": False, "s": False}


def test_a_symlink_to_a_file_is_read_through(root):
    (root / "link").symlink_to(__file__)
    plain = open_plain(str(root), everything)
    assert plain.top() == {"link": True}
    assert plain.read_bytes("link") == Path(__file__).read_bytes()


def test_a_place_that_is_a_file_is_a_folder_of_that_file(root, out):
    (root / "a").write_bytes(b"data")
    plain = open_plain(str(root / "a"), everything)
    assert plain.top() == {"a": True}
    assert plain.read_bytes("a") == b"data"
    restore(root / "a", out)
    assert files(out) == {"a": b"data"}


def test_a_folder_below_a_file_holds_nothing(root):
    (root / "file").write_bytes(b"")
    assert open_plain(str(root / "file" / "below"), everything).top() == {}


def test_a_folder_that_cannot_be_reached_is_a_storage_error(root):
    (root / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match=r"cannot read .*/loop"):
        open_plain(str(root / "loop"), everything).top()


def test_a_folder_that_may_not_be_listed_is_a_storage_error(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        open_plain(str(root), everything).top()


def test_a_directory_cannot_be_read_as_a_file(root):
    (root / "sub").mkdir()
    with pytest.raises(StorageError, match="sub"):
        open_plain(str(root), everything).read_bytes("sub")


@pytest.mark.parametrize("change", ["grow", "shrink", "replace", "remove"])
def test_a_file_that_is_not_what_it_was_when_it_was_listed_is_an_error_and_not_restored(root, out, change):
    (root / "a").write_bytes(bytes(100))
    (root / "b").write_bytes(bytes(2_000_000))
    items = list(open_plain(str(root), everything).items(lambda notice: None))
    if change == "replace":
        (root / "b").rename(root / "other")
        (root / "b").symlink_to("other")
    elif change == "remove":
        (root / "b").unlink()
    else:
        os.truncate(root / "b", 3_000_000 if change == "grow" else 1_000_000)
    with pytest.raises(SourceNotFound if change == "remove" else SourceChanged, match="b"):
        write_items(items, out, lambda notice: None)
    assert set(files(out)) <= {"a"}


def test_a_directory_that_vanishes_in_the_middle_is_an_error(root, out):
    (root / "a").write_bytes(b"")
    (root / "b").mkdir()

    def items():
        for item in open_plain(str(root), everything).items(lambda notice: None):
            if item.entry.path == b"a":
                (root / "b").rmdir()
            yield item

    with pytest.raises(SourceNotFound, match="b"):
        write_items(items(), out, lambda notice: None)
    assert files(out) == {}


def test_a_folder_that_vanishes_is_an_error(root, out):
    plain = open_plain(str(root), everything)
    root.rmdir()
    with pytest.raises(SourceError):
        write_items(plain.items(lambda notice: None), out, lambda notice: None)


# --- on a file system of fsspec -----------------------------------------------------------------


class Odd(MemoryFileSystem):
    """A file system in memory of which single answers can be replaced."""

    protocol = "odd"
    cachable = False
    answers: ClassVar = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("odd://", "memory://"))

    def find(self, path, **options):
        found = super().find(path, **options)
        return {**found, **self.answers.get("find", {})}

    def _open(self, path, **options):
        file = super()._open(path, **options)
        return self.answers["open"](file) if "open" in self.answers else file


@pytest.fixture
def odd(memory):
    fsspec.register_implementation("odd", Odd, clobber=True)
    memory.pipe_file("/plain/a", bytes(1000))
    yield Odd.answers
    Odd.answers.clear()


def test_files_get_a_mode_that_all_may_read(memory, out):
    memory.pipe_file("/plain/a", b"")
    memory.pipe_file("/plain/sub/b", b"b")
    restore("memory://plain", out)
    assert (
        stat.filemode((out / "a").stat().st_mode) == stat.filemode((out / "sub" / "b").stat().st_mode) == "-rw-r--r--"
    )


@pytest.mark.parametrize("size", [999, 1001, 0])
def test_a_file_of_another_size_than_listed_is_an_error_and_not_restored(odd, out, size):
    odd["find"] = {"/plain/a": {"name": "/plain/a", "size": size, "type": "file"}}
    with pytest.raises(SourceChanged, match=f"a: 1000 bytes instead of {size}; restore again"):
        restore("odd://plain", out)
    assert files(out) == {}


def test_a_file_that_is_listed_but_not_there_is_an_error_that_names_it(odd, out):
    odd["find"] = {"/plain/b": {"name": "/plain/b", "size": 1, "type": "file"}}
    with pytest.raises(StorageError, match="cannot read 'b' in odd://plain"):
        restore("odd://plain", out)
    assert set(files(out)) <= {"a"}


def test_a_file_whose_reading_fails_is_an_error_that_names_it(odd, out):
    class Failing(MemoryFile):
        def __init__(self, file):
            super().__init__(None, "x", b"")

        def read(self, *size):
            raise ConnectionError("the network is gone")

    odd["open"] = Failing
    with pytest.raises(SourceUnreadable, match=r"a: cannot be read .*the network is gone"):
        restore("odd://plain", out)
    assert files(out) == {}
    with pytest.raises(StorageError, match="cannot read 'a' in odd://plain: the network is gone"):
        open_plain("odd://plain", everything).read_bytes("a")


@pytest.mark.parametrize("name", ["../outside", "sub/../../outside", "sub//x", "./x", "nul\0"])
def test_a_name_that_leads_elsewhere_is_refused(odd, out, name):
    odd["find"] = {f"/plain/{name}": {"name": f"/plain/{name}", "size": 0, "type": "file"}}
    with pytest.raises(CasCheckpointError):
        restore("odd://plain", out)
    assert not (out.parent / "outside").exists()
    assert set(files(out)) <= {"a"}


def test_an_unknown_protocol_is_refused():
    with pytest.raises(InvalidArgument, match="nonsense"):
        open_plain("nonsense://x", everything)


# --- writing them -------------------------------------------------------------------------------


def test_what_else_is_in_the_target_stays_and_the_same_names_are_replaced(put, out):
    (out / "sub").mkdir(parents=True)
    for name in ("mine", "sub/mine", "sub/b"):
        (out / name).write_bytes(b"mine")
    restore(put({"a": b"a", "sub/b": b"b"}), out)
    assert files(out) == {"mine": b"mine", "sub/mine": b"mine", "a": b"a", "sub/b": b"b"}


def test_no_link_in_the_target_leads_out_of_it(put, out, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"outside")
    out.mkdir()
    (out / "a").symlink_to(outside / "a")
    (out / "sub").symlink_to(outside)
    restore(put({"a": b"a", "sub/b": b"b"}), out)
    assert files(outside) == {"a": b"outside"}
    assert files(out) == {"a": b"a", "sub/b": b"b"}


def test_a_directory_in_the_way_of_a_file_is_an_error_and_nothing_temporary_is_left(put, out):
    (out / "a" / "full").mkdir(parents=True)
    with pytest.raises(TargetObstructed):
        restore(put({"a": b"a"}), out)
    assert [path.name for path in out.rglob("*")] == ["a", "full"]


def test_a_target_that_is_a_file_is_an_error(put, out):
    out.write_bytes(b"")
    with pytest.raises(CasCheckpointError):
        restore(put({"a": b"a"}), out)
    assert out.read_bytes() == b""
