"""Writing into a target, on real file systems: what it holds afterwards, what never, and who cannot break out."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import directories as directories_module
from cas_checkpoint import metadata as metadata_module
from cas_checkpoint.errors import InvalidArgument, RestoreError, TargetObstructed
from cas_checkpoint.manifests import Entry, EntryType, Owner
from cas_checkpoint.monitor import Notice
from cas_checkpoint.targets import Target

ROOT = os.geteuid() == 0
TIME = 1_234_567_890_123_456_789


def file_entry(path: bytes, size: int = 4, **fields: object) -> Entry:
    return Entry(path, EntryType.FILE, 0o640, TIME, size)._replace(**fields)


def directory_entry(path: bytes, mode: int = 0o750, **fields: object) -> Entry:
    return Entry(path, EntryType.DIRECTORY, mode, TIME)._replace(**fields)


def symlink_entry(path: bytes, target: bytes) -> Entry:
    return Entry(path, EntryType.SYMLINK, 0o777, TIME, target=target)


def hardlink_entry(path: bytes, target: bytes) -> Entry:
    return Entry(path, EntryType.HARDLINK, 0o640, TIME, target=target)


def put(target: Target, path: bytes, data: bytes = b"data", **fields: object) -> None:
    entry = file_entry(path, len(data), **fields)
    staged = target.stage(entry)
    staged.write(0, data)
    target.place(staged, entry)


@pytest.fixture
def notices() -> list[Notice]:
    return []


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Give a directory beside the target that must stay as it is."""
    place = tmp_path / "outside"
    (place / "sub").mkdir(parents=True)
    (place / "file").write_bytes(b"precious")
    (place / "file").chmod(0o604)
    os.utime(place / "file", ns=(1, 1))
    before = listing(place)
    yield place
    assert listing(place) == before


def listing(place: Path) -> dict[str, tuple[int, int, bytes | str | None]]:
    found: dict[str, tuple[int, int, bytes | str | None]] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content: bytes | str | None = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(place))] = (status.st_mode, status.st_nlink, content)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def target(place: Path) -> Iterator[Target]:
    with Target(place, notice=lambda notice: pytest.fail(str(notice))) as opened:
        yield opened


@pytest.fixture
def exact(place: Path, notices: list[Notice]) -> Iterator[Target]:
    with Target(place, exact=True, notice=notices.append) as opened:
        yield opened


def run_as_nobody(action: Callable[[], None]) -> None:
    """Run `action` without the privileges of root: they would let it write anywhere."""
    if not ROOT:
        action()
        return
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            action()
            status = 0
        except BaseException:  # noqa: BLE001 -- the parent fails the test
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Give a directory that nobody can reach and owns."""
    place = Path(tempfile.mkdtemp())
    if ROOT:
        os.chown(place, 65534, 65534)
    yield place
    for parent, names, _ in os.walk(place):
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                os.chmod(os.path.join(parent, name), 0o700)
    shutil.rmtree(place)


# --- the target itself --------------------------------------------------------------------------


def test_target_is_created_with_its_parents(tmp_path: Path, notices: list[Notice]) -> None:
    with Target(tmp_path / "a" / "b", notice=notices.append) as target:
        assert target.created
    usual = tmp_path / "usual"
    usual.mkdir()
    assert (tmp_path / "a" / "b").stat().st_mode == usual.stat().st_mode
    with Target(str(tmp_path / "a" / "b"), notice=notices.append) as target:
        assert not target.created
    assert os.listdir(tmp_path / "a" / "b") == []
    target.close()


def test_relative_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[Notice]) -> None:
    monkeypatch.chdir(tmp_path)
    with Target("here", notice=notices.append) as target:
        monkeypatch.chdir("/")
        put(target, b"f")
    assert (tmp_path / "here" / "f").read_bytes() == b"data"


def test_target_may_be_a_symlink_to_a_directory(tmp_path: Path, notices: list[Notice]) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Target(tmp_path / "link", notice=notices.append) as target:
        assert not target.created
        put(target, b"f")
    assert (tmp_path / "real" / "f").read_bytes() == b"data"


def test_target_that_cannot_be_one(tmp_path: Path, notices: list[Notice]) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "file/below", "file/far/below", "dangling"):
        with pytest.raises(TargetObstructed, match="somewhere else"):
            Target(tmp_path / name, notice=notices.append)
    with pytest.raises(RestoreError):
        Target(tmp_path / ("n" * 300), notice=notices.append)
    with pytest.raises(InvalidArgument):
        Target("nul\0", notice=notices.append)


# --- files --------------------------------------------------------------------------------------


def test_file_is_whole_or_not_there(target: Target, place: Path) -> None:
    entry = file_entry(b"dir/f", 10, mode=0o4751)
    staged = target.stage(entry)
    staged.write(5, b"world")
    staged.write(0, memoryview(b"hello"))
    (staging,) = place.iterdir()
    assert staging.name.startswith(".cas-checkpoint-")
    assert stat.S_IMODE(staging.stat().st_mode) == 0o700
    assert stat.S_IMODE(next(staging.iterdir()).stat().st_mode) == 0o600
    target.place(staged, entry)
    assert (place / "dir" / "f").read_bytes() == b"helloworld"
    status = (place / "dir" / "f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o4751, TIME)
    target.close()
    assert os.listdir(place) == ["dir"]


def test_file_that_is_at_hand_is_put_in_one_step(target: Target, place: Path) -> None:
    target.put(file_entry(b"d/f", 10), [(5, b"world"), (0, memoryview(b"hello"))])
    assert (place / "d" / "f").read_bytes() == b"helloworld"
    status = (place / "d" / "f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, TIME)
    target.put(file_entry(b"d/f"), ())
    assert (place / "d" / "f").read_bytes() == b""
    target.put(file_entry(b"sparse", 2**30, extents=((2**20, 4),)), [(2**20, b"data")])
    status = (place / "sparse").stat()
    assert status.st_size == 2**30
    assert status.st_blocks * 512 < 2**20


def test_file_that_cannot_be_put_leaves_nothing(target: Target, place: Path) -> None:
    def pieces() -> Iterator[tuple[int, bytes]]:
        yield 0, b"some"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/dev/fd"))
    put(target, b"f", b"old")
    opened = len(os.listdir("/dev/fd"))
    with pytest.raises(RestoreError, match=r"f: cannot be restored .*make room"):
        target.put(file_entry(b"f", 10), pieces())
    target.make_directory(b"d")
    with pytest.raises(RestoreError, match="a directory is in the way"):
        target.put(file_entry(b"d", 4), [(0, b"data")])
    assert (place / "f").read_bytes() == b"old"
    (staging,) = (path for path in place.iterdir() if path.name.startswith(".cas-checkpoint"))
    assert os.listdir(staging) == []
    assert len(os.listdir("/dev/fd")) <= opened + 1 <= before + 3  # the staging directory and d


def test_file_replaces_whatever_is_no_directory(target: Target, place: Path, outside: Path) -> None:
    (place / "file").write_bytes(b"old")
    (place / "link").symlink_to(outside / "file")
    os.link(outside / "file", place / "hard")
    os.mkfifo(place / "fifo")
    for name in (b"file", b"link", b"hard", b"fifo"):
        put(target, name)
        assert stat.S_ISREG((place / name.decode()).lstat().st_mode)
        assert (place / name.decode()).read_bytes() == b"data"


def test_staged_files_that_are_never_placed_are_removed(place: Path, notices: list[Notice]) -> None:
    def fail() -> None:
        with Target(place, notice=notices.append) as target:
            target.stage(file_entry(b"a", 100)).write(0, b"part")
            target.stage(file_entry(b"b", 100))
            target.stage(file_entry(b"c", 100)).discard()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(place) == []


def test_holes_stay_holes(target: Target, place: Path) -> None:
    entry = file_entry(b"f", 2**30, extents=((2**20, 4),))
    staged = target.stage(entry)
    staged.write(2**20, b"data")
    target.place(staged, entry)
    status = (place / "f").stat()
    assert status.st_size == 2**30
    assert status.st_blocks * 512 < 2**20
    whole = file_entry(b"g", 2**30, extents=())
    target.place(target.stage(whole), whole)
    assert (place / "g").stat().st_blocks == 0


def test_threads_write_to_one_file(target: Target, place: Path) -> None:
    data = os.urandom(2**20)
    entry = file_entry(b"f", len(data))
    staged = target.stage(entry)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: staged.write(at, data[at : at + 1024]), range(0, len(data), 1024)))
    target.place(staged, entry)
    assert (place / "f").read_bytes() == data


@pytest.mark.parametrize("at_once", [False, True])
def test_threads_place_files(target: Target, place: Path, *, at_once: bool) -> None:
    def write(number: int) -> None:
        path, data = b"%d/f%d" % (number % 7, number), b"%d" % number
        if at_once:
            target.put(file_entry(path, len(data)), [(0, data)])
        else:
            put(target, path, data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(300)))
    found = {path.name: path.read_bytes() for path in place.rglob("f*") if path.is_file()}
    assert found == {f"f{number}": b"%d" % number for number in range(300)}


def test_few_files_are_open_however_many_are_staged(place: Path, notices: list[Notice]) -> None:
    def check() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        with Target(place, notice=notices.append) as target:
            entries = [file_entry(b"%d/%d" % (number % 90, number), 8) for number in range(2000)]
            staged = [target.stage(entry) for entry in entries]
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda file: file.write(4, b"half"), staged))
                list(pool.map(lambda file: file.write(0, b"this"), staged))
            for file, entry in zip(staged, entries, strict=True):
                target.place(file, entry)
            assert len(os.listdir("/dev/fd")) < 300
        assert {path.read_bytes() for path in place.rglob("*") if path.is_file()} == {b"thishalf"}

    child = os.fork()  # the limit cannot be raised again
    if child == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:  # noqa: BLE001 -- the parent fails the test
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sum(path.is_file() for path in place.rglob("*")) == 2000


def test_no_descriptor_is_left_open(place: Path, notices: list[Notice]) -> None:
    before = len(os.listdir("/dev/fd"))
    with Target(place, notice=notices.append) as target:
        for number in range(200):
            put(target, b"%d/a/b" % number)
            target.stage(file_entry(b"x"))
        put(target, b"f")
        target.make_hardlink(hardlink_entry(b"h", b"f"))
        target.apply_metadata(file_entry(b"0/a/b"))
        target.open_existing(file_entry(b"0/a/b", 99))
    assert len(os.listdir("/dev/fd")) == before


def test_large_writes_may_be_short(target: Target, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    put(target, b"f", b"0123456789")
    assert (place / "f").read_bytes() == b"0123456789"


# --- what is there already ----------------------------------------------------------------------


def test_open_existing(target: Target, place: Path, outside: Path) -> None:
    put(target, b"d/f", b"data")
    fd = target.open_existing(file_entry(b"d/f"))
    assert fd is not None
    assert os.read(fd, 10) == b"data"
    os.close(fd)
    os.mkfifo(place / "fifo")
    (place / "link").symlink_to(place / "d" / "f")
    (place / "out").symlink_to(outside)
    os.link(place / "d" / "f", place / "hard")
    paths = (b"d/f", b"hard", b"link", b"fifo", b"d", b"missing", b"missing/f", b"d/f/x", b"out/file")
    for path in paths:
        assert target.open_existing(file_entry(path, 8 if path == b"out/file" else 4)) is None
    os.unlink(place / "hard")
    assert target.open_existing(file_entry(b"d/f", 5)) is None
    assert not (place / "missing").exists()


def test_metadata_of_an_existing_file(target: Target, place: Path) -> None:
    (place / "f").write_bytes(b"data")
    inode = (place / "f").stat().st_ino
    target.apply_metadata(file_entry(b"f", mode=0o600))
    status = (place / "f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_ino) == (0o600, TIME, inode)
    target.apply_metadata(file_entry(b"f", mode=0o600))
    assert (place / "f").stat().st_ctime_ns == status.st_ctime_ns  # nothing to do, nothing done


def test_metadata_of_something_else(target: Target, place: Path, outside: Path) -> None:
    (place / "link").symlink_to(outside / "file")
    os.link(outside / "file", place / "hard")
    os.mkfifo(place / "fifo")
    for path in (b"link", b"hard", b"fifo", b"missing"):
        with pytest.raises(RestoreError):
            target.apply_metadata(file_entry(path, mode=0o777))
    (place / "hard").unlink()


# --- metadata -----------------------------------------------------------------------------------


@pytest.fixture
def takes_xattrs(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.probe", b"")
        os.removexattr(tmp_path, "user.probe")
    except (AttributeError, OSError):
        pytest.skip("no extended attributes on the file system of the tests")


@pytest.mark.usefixtures("takes_xattrs")
def test_extended_attributes(target: Target, place: Path) -> None:
    xattrs = {b"user.\xffa": b"\0value", b"user.empty": b""}
    put(target, b"f", mode=0o444, xattrs=xattrs)
    assert metadata_module.read_xattrs(bytes(place / "f")) == xattrs
    target.apply_metadata(file_entry(b"f", mode=0o444, xattrs={b"user.b": b"new"}))
    assert metadata_module.read_xattrs(bytes(place / "f")) == {b"user.b": b"new"}
    target.finish_directories([directory_entry(b"", xattrs={b"user.root": b"r"})])
    assert metadata_module.read_xattrs(bytes(place)) == {b"user.root": b"r"}
    if ROOT:
        target.make_symlink(symlink_entry(b"l", b"f")._replace(xattrs={b"trusted.l": b"link"}))
        assert os.getxattr(place / "l", "trusted.l", follow_symlinks=False) == b"link"


@pytest.mark.usefixtures("takes_xattrs")
def test_extended_attributes_of_a_read_only_file(open_place: Path, notices: list[Notice]) -> None:
    def check() -> None:
        with Target(open_place, notice=notices.append) as target:
            put(target, b"f", mode=0o444, xattrs={b"user.a": b"1"})
            target.apply_metadata(file_entry(b"f", mode=0o444, xattrs={b"user.a": b"2"}))
            assert os.getxattr(open_place / "f", "user.a") == b"2"
            assert stat.S_IMODE((open_place / "f").stat().st_mode) == 0o444
            assert not notices

    run_as_nobody(check)


@pytest.mark.usefixtures("takes_xattrs")
def test_extended_attributes_that_cannot_be_set(
    exact: Target, place: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(exact, b"f", xattrs={b"nonsense.a": b"1", b"user.b": b"2"})
    assert [notice.path for notice in notices] == [str(place / "f")]
    assert "nonsense.a not set" in notices[0].message
    assert os.getxattr(place / "f", "user.b") == b"2"
    monkeypatch.setattr(os, "removexattr", refuse(errno.EPERM))
    exact.apply_metadata(file_entry(b"f"))
    assert "user.b not removed" in notices[-1].message
    monkeypatch.setattr(os, "listxattr", refuse(errno.EIO))
    exact.apply_metadata(file_entry(b"f"))
    assert "extended attributes not set" in notices[-1].message


def refuse(code: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_owner_by_name_else_by_number(place: Path, notices: list[Notice]) -> None:
    with Target(place, owner=True, notice=notices.append) as target:
        put(target, b"number", owner=Owner(4000, 5000, "", ""), mode=0o6755)
        put(target, b"name", owner=Owner(4000, 5000, "root", "root"))
        put(target, b"unknown", owner=Owner(4000, 5000, "no such user", "no such group"))
        put(target, b"again", owner=Owner(0, 0, "", ""), mode=0o6755)
        target.apply_metadata(file_entry(b"again", owner=Owner(4000, 5000, "", ""), mode=0o6755))
        put(target, b"none")
        target.make_symlink(symlink_entry(b"link", b"x")._replace(owner=Owner(4000, 5000, "", "")))
        target.finish_directories([directory_entry(b"dir", owner=Owner(4000, 5000, "", ""))])
    found = {name: (status.st_uid, status.st_gid) for name in os.listdir(place) if (status := (place / name).lstat())}
    given = (4000, 5000)
    expected = {"number": given, "name": (0, 0), "unknown": given, "again": given, "none": (0, 0), "link": given}
    assert found == {**expected, "dir": given}
    assert {stat.S_IMODE((place / name).stat().st_mode) for name in ("number", "again")} == {0o6755}
    with Target(place, notice=notices.append) as target:
        put(target, b"number", owner=Owner(4000, 5000, "", ""))
    assert (place / "number").stat().st_uid == 0
    assert not notices


def test_owner_that_cannot_be_set_takes_the_set_id_bits_along(open_place: Path, notices: list[Notice]) -> None:
    def check() -> None:
        with Target(open_place, owner=True, notice=notices.append) as target:
            put(target, b"f", owner=Owner(0, 0, "", ""), mode=0o4755)
            target.make_symlink(symlink_entry(b"l", b"x")._replace(owner=Owner(0, 0, "", "")))
        assert stat.S_IMODE((open_place / "f").stat().st_mode) == 0o755
        assert (open_place / "f").stat().st_mtime_ns == TIME
        messages = [notice.message for notice in notices]
        assert len(messages) == 3
        assert messages[0] == messages[2] == "owner not set (Operation not permitted)"

    run_as_nobody(check)


def test_mode_and_time_that_cannot_be_set(
    exact: Target, place: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    monkeypatch.setattr(os, "utime", refuse(errno.EPERM))
    put(exact, b"f")
    exact.make_symlink(symlink_entry(b"l", b"x"))
    assert [notice.message.split(" not ")[0] for notice in notices] == ["mode 640", "time", "time"]
    assert (place / "f").read_bytes() == b"data"


def test_files_are_never_open_to_others_before_they_have_their_mode(target: Target, place: Path) -> None:
    umask = os.umask(0)
    try:
        target.make_directory(b"private")
        put(target, b"private/f", mode=0o666)
        assert stat.S_IMODE((place / "private").stat().st_mode) == 0o700
    finally:
        os.umask(umask)


# --- directories --------------------------------------------------------------------------------


def test_directories_get_their_metadata_at_the_end(place: Path, notices: list[Notice]) -> None:
    with Target(place, notice=notices.append) as target:
        entries = [directory_entry(path) for path in (b"", b"a", b"a/b", b"empty")]
        target.make_directory(b"")
        target.make_directory(b"a/b")
        put(target, b"a/b/f")
        put(target, b"c/f")
        target.finish_directories([*entries, directory_entry(b"sealed", 0o000)])
    for path in ("", "a", "a/b", "empty"):
        status = (place / path).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o750, TIME)
    assert stat.S_IMODE((place / "sealed").stat().st_mode) == 0
    usual = place / "usual"
    usual.mkdir()
    assert (place / "c").stat().st_mode == usual.stat().st_mode  # not in the snapshot: as any new directory


def test_root_that_was_there_keeps_its_metadata_unless_exact(place: Path, notices: list[Notice]) -> None:
    place.mkdir(mode=0o711)
    with Target(place, notice=notices.append) as target:
        target.finish_directories([directory_entry(b"")])
    assert stat.S_IMODE(place.stat().st_mode) == 0o711
    with Target(place, exact=True, notice=notices.append) as target:
        target.finish_directories([directory_entry(b"")])
    assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_mtime_ns) == (0o750, TIME)


def test_directory_replaces_what_is_none(target: Target, place: Path, outside: Path) -> None:
    (place / "file").write_bytes(b"")
    (place / "link").symlink_to(outside)
    os.mkfifo(place / "fifo")
    for path in (b"file", b"link/sub", b"fifo/a/b"):
        target.make_directory(path)
        assert (place / path.decode()).is_dir()
    assert not (place / "link").is_symlink()


def test_directory_in_the_way_of_a_file(target: Target, place: Path) -> None:
    (place / "d" / "inner").mkdir(parents=True)
    (place / "empty").mkdir()
    for path in (b"d", b"empty"):
        with pytest.raises(TargetObstructed, match=rf"{path.decode()}: a directory is in the way .* exact=True"):
            put(target, path)
        with pytest.raises(TargetObstructed):
            target.make_symlink(symlink_entry(path, b"x"))
    put(target, b"f")
    with pytest.raises(TargetObstructed):
        target.make_hardlink(hardlink_entry(b"d", b"f"))
    assert (place / "d" / "inner").is_dir()
    target.close()
    assert sorted(os.listdir(place)) == ["d", "empty", "f"]


def test_directory_in_the_way_is_removed_if_exact(exact: Target, place: Path, outside: Path) -> None:
    for name in ("file", "symlink", "hardlink"):
        (place / name / "a" / "b").mkdir(parents=True)
        (place / name / "a" / "out").symlink_to(outside)
        os.link(outside / "file", place / name / "precious")
        exact.make_directory(name.encode() + b"/a/b")  # known to the cache of directories
    put(exact, b"file")
    exact.make_symlink(symlink_entry(b"symlink", b"file"))
    exact.make_hardlink(hardlink_entry(b"hardlink", b"file"))
    assert (place / "file").read_bytes() == b"data"
    assert os.readlink(place / "symlink") == "file"
    assert (place / "hardlink").stat().st_ino == (place / "file").stat().st_ino
    exact.make_directory(b"file/a/b")
    assert (place / "file" / "a" / "b").is_dir()


def test_read_only_directories(open_place: Path, notices: list[Notice]) -> None:
    entries = [directory_entry(b"a", 0o555), directory_entry(b"a/b", 0o000), directory_entry(b"a/b/c", 0o311)]

    def restore(data: bytes) -> None:
        with Target(open_place / "t", exact=True, notice=notices.append) as target:
            put(target, b"a/f", data)
            put(target, b"a/b/f", data)
            put(target, b"a/b/c/f", data)
            target.make_symlink(symlink_entry(b"a/b/l", data))
            target.remove_others({b"a", b"a/b", b"a/b/c", b"a/f", b"a/b/f", b"a/b/c/f", b"a/b/l"})
            target.finish_directories([directory_entry(b"", 0o500), *entries])

    def check() -> None:
        for data in (b"first", b"again"):
            restore(data)
            assert stat.S_IMODE((open_place / "t").stat().st_mode) == 0o500
            assert stat.S_IMODE((open_place / "t" / "a").stat().st_mode) == 0o555
            assert (open_place / "t" / "a" / "f").read_bytes() == data
            assert stat.S_IMODE((open_place / "t" / "a" / "b").stat().st_mode) == 0
        (open_place / "t" / "a" / "b").chmod(0o700)
        assert stat.S_IMODE((open_place / "t" / "a" / "b" / "c").stat().st_mode) == 0o311
        assert (open_place / "t" / "a" / "b" / "c" / "f").read_bytes() == b"again"
        assert not notices

    run_as_nobody(check)


def test_read_only_directories_that_are_not_in_the_snapshot_get_their_modes_back(
    open_place: Path, notices: list[Notice]
) -> None:
    def check() -> None:
        (open_place / "a" / "b").mkdir(parents=True)
        (open_place / "a" / "b").chmod(0o000)
        (open_place / "a").chmod(0o555)
        open_place.chmod(0o500)
        with Target(open_place, notice=notices.append) as target:
            put(target, b"a/b/f")
            put(target, b"f")
        assert stat.S_IMODE(open_place.stat().st_mode) == 0o500
        open_place.chmod(0o700)
        assert stat.S_IMODE((open_place / "a").stat().st_mode) == 0o555
        assert stat.S_IMODE((open_place / "a" / "b").stat().st_mode) == 0
        (open_place / "a" / "b").chmod(0o700)
        assert (open_place / "a" / "b" / "f").read_bytes() == b"data"

    run_as_nobody(check)


@pytest.mark.skipif(not ROOT, reason="needs a directory of another user")
def test_directories_of_others_are_refused(open_place: Path, notices: list[Notice]) -> None:
    (open_place / "readable").mkdir(mode=0o755)
    (open_place / "closed").mkdir(mode=0o700)

    def check() -> None:
        with Target(open_place, notice=notices.append) as target:
            for name in (b"readable", b"closed"):
                with pytest.raises(RestoreError, match="that you may write to"):
                    put(target, name + b"/f")
            with pytest.raises(RestoreError, match="that you may write to"):
                target.remove_others({b"readable"})
        with pytest.raises(RestoreError):
            Target(open_place / "closed", notice=notices.append)
        with pytest.raises(RestoreError):
            Target(open_place / "readable" / "new", notice=notices.append)

    run_as_nobody(check)


def test_deep_and_wide_trees(exact: Target, place: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    path = b"/".join([b"d"] * 1500)
    put(exact, path + b"/f")
    for number in range(150):
        put(exact, b"wide/%d/f" % number)
    assert len(os.listdir("/dev/fd")) < before + 80
    exact.finish_directories([directory_entry(path[:end]) for end in range(1, len(path) + 1, 2)])
    assert stat.S_IMODE((place / "d" / "d").stat().st_mode) == 0o750
    assert exact.remove_others({b"wide", b"wide/7", b"wide/7/f"}) == 1501 + 149 * 2
    assert sorted(os.listdir(place / "wide")) == ["7"]


# --- links --------------------------------------------------------------------------------------


def test_symlinks(target: Target, place: Path) -> None:
    target.make_symlink(symlink_entry(b"d/l", b"no\xff\nwhere"))
    path = bytes(place) + b"/d/l"
    assert os.readlink(path) == b"no\xff\nwhere"
    assert os.lstat(path).st_mtime_ns == TIME
    inode = os.lstat(path).st_ino
    os.utime(path, ns=(1, 1), follow_symlinks=False)
    target.make_symlink(symlink_entry(b"d/l", b"no\xff\nwhere"))
    assert (os.lstat(path).st_ino, os.lstat(path).st_mtime_ns) == (inode, TIME)
    os.utime(path, ns=(1, 1), follow_symlinks=False)
    target.apply_metadata(symlink_entry(b"d/l", b"no\xff\nwhere"))
    assert os.lstat(path).st_mtime_ns == TIME
    target.make_symlink(symlink_entry(b"d/l", b"other"))
    assert os.readlink(path) == b"other"
    put(target, b"d/f")
    target.make_symlink(symlink_entry(b"d/f", b"instead"))
    assert os.readlink(place / "d" / "f") == "instead"
    with pytest.raises(RestoreError):
        target.make_symlink(symlink_entry(b"long", b"x" * 5000))


def test_hardlinks(target: Target, place: Path) -> None:
    put(target, b"a/f")
    (place / "old").write_bytes(b"old")
    for path in (b"b/h", b"old", b"b/h"):
        target.make_hardlink(hardlink_entry(path, b"a/f"))
    inode = (place / "a" / "f").stat().st_ino
    assert {(place / path).stat().st_ino for path in ("b/h", "old")} == {inode}
    assert (place / "a" / "f").stat().st_nlink == 3


def test_hardlinks_to_what_is_no_file(target: Target, place: Path, outside: Path) -> None:
    (place / "link").symlink_to(outside / "file")
    (place / "out").symlink_to(outside)
    (place / "dir").mkdir()
    for path in (b"missing", b"link", b"dir", b"out/file", b"../outside/file", b"/etc/passwd"):
        with pytest.raises(RestoreError):
            target.make_hardlink(hardlink_entry(b"h", path))
    assert not (place / "h").exists()


# --- exact --------------------------------------------------------------------------------------


def test_remove_others(exact: Target, place: Path, outside: Path) -> None:
    put(exact, b"keep/f")
    put(exact, b"implied/f")
    staged = exact.stage(file_entry(b"late"))
    (place / "gone" / "deep" / "er").mkdir(parents=True)
    (place / "gone" / "out").symlink_to(outside)
    (place / "keep" / "out").symlink_to(outside)
    os.mkfifo(place / "keep" / "fifo")
    Path(os.fsdecode(bytes(place) + b"/\xff\n")).write_bytes(b"")
    assert exact.remove_others({b"keep", b"keep/f", b"implied/f"}) == 7
    exact.place(staged, file_entry(b"late"))
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == [
        "implied/f",
        "keep/f",
        "late",
    ]
    assert not (place / "gone").exists()


# --- attacks ------------------------------------------------------------------------------------

LEADING_OUT = [b"..", b"../x", b"a/../../x", b"/etc/x", b"/", b"a//b", b"./a", b"a/.", b"a/", b"a\0b", b"x" * 40000]


@pytest.mark.parametrize("path", LEADING_OUT)
def test_paths_that_lead_out(target: Target, tmp_path: Path, path: bytes) -> None:
    staged = target.stage(file_entry(b"f"))
    for action in (
        lambda: target.make_directory(path),
        lambda: target.place(staged, file_entry(path)),
        lambda: target.open_existing(file_entry(path)),
        lambda: target.apply_metadata(file_entry(path)),
        lambda: target.make_symlink(symlink_entry(path, b"x")),
        lambda: target.make_hardlink(hardlink_entry(path, b"f")),
        lambda: target.finish_directories([directory_entry(path)]),
    ):
        with pytest.raises(RestoreError):
            action()
    target.close()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert os.listdir(tmp_path / "target") == []


def test_empty_path_is_only_a_directory(target: Target) -> None:
    for entry in (file_entry(b""), symlink_entry(b"", b"x"), hardlink_entry(b"", b"x")):
        with pytest.raises(RestoreError):
            target.make_symlink(entry)


def test_symlinks_in_the_target_do_not_lead_out(target: Target, place: Path, outside: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        (place / name).symlink_to(outside)
    put(target, b"a/file", b"evil")
    target.make_directory(b"b/sub/new")
    target.make_symlink(symlink_entry(b"c/file", b"evil"))
    put(target, b"f", b"evil")
    target.make_hardlink(hardlink_entry(b"d/file", b"f"))
    target.finish_directories([directory_entry(b"e", 0o777), directory_entry(b"e/sub", 0o777)])
    assert not any((place / name).is_symlink() for name in "abcde")
    assert target.open_existing(file_entry(b"a/file")) is not None


def test_symlinks_planted_by_the_manifest_do_not_lead_out(target: Target, place: Path, outside: Path) -> None:
    target.make_symlink(symlink_entry(b"a", bytes(outside)))
    put(target, b"a/file", b"evil")
    assert (place / "a" / "file").read_bytes() == b"evil"
    target.make_directory(b"x/y")
    put(target, b"x/y/known", b"fine")
    with pytest.raises(TargetObstructed):
        target.make_symlink(symlink_entry(b"x", bytes(outside)))


def test_exact_restore_with_a_symlink_over_a_known_directory(exact: Target, place: Path, outside: Path) -> None:
    put(exact, b"x/y/file")
    exact.make_symlink(symlink_entry(b"x", bytes(outside)))
    put(exact, b"x/y/file", b"evil")
    put(exact, b"x/file", b"evil")
    assert (place / "x" / "file").read_bytes() == b"evil"


def test_directory_moved_away_by_another_process(target: Target, place: Path, outside: Path) -> None:
    put(target, b"a/b/one")
    (place / "a").rename(place / "moved")
    (place / "a").symlink_to(outside)
    put(target, b"a/b/file", b"evil")  # goes where the directory that was opened is now, or into a new one
    put(target, b"a/file", b"evil")


def test_swapping_while_restoring(place: Path, outside: Path, notices: list[Notice]) -> None:
    """Another process replaces a directory by a symlink, again and again."""
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for action in (
                lambda: os.rename(place / "a", place / "hidden"),
                lambda: os.symlink(outside, place / "a"),
                lambda: os.unlink(place / "a"),
                lambda: os.rename(place / "hidden", place / "a"),
            ):
                try:
                    action()
                except OSError:  # the other side was faster
                    continue

    place.mkdir()
    (place / "a").mkdir()
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(100):
            with Target(place, notice=notices.append) as target:
                try:
                    put(target, b"a/file", b"evil")
                    target.make_directory(b"a/new%d" % number)
                    target.finish_directories([directory_entry(b"a", 0o700)])
                except RestoreError:
                    continue
    finally:
        stop.set()
        thread.join()


def test_somebody_has_the_name_of_the_staging_directory(
    place: Path, outside: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    place.mkdir()
    (place / ".cas-checkpoint-known").symlink_to(outside)
    with Target(place, notice=notices.append) as target:
        with pytest.raises(RestoreError):
            put(target, b"f")
        for path in (b".cas-checkpoint-known", b".cas-checkpoint-known/x"):
            with pytest.raises(RestoreError, match="own directory"):
                target.make_directory(path)
    assert os.listdir(place) == [".cas-checkpoint-known"]


# --- hostile names ------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name) and name.strip(b"."))


@settings(max_examples=50, deadline=None)
@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=4).map(b"/".join), max_size=6, unique=True))
def test_any_names(paths: list[bytes]) -> None:
    files = [path for path in paths if not any(other.startswith(path + b"/") for other in paths)]
    with tempfile.TemporaryDirectory() as root:
        with Target(root, notice=lambda notice: pytest.fail(str(notice))) as target:
            for path in files:
                put(target, path, path)
        found = {}
        for parent, _, names in os.walk(os.fsencode(root)):
            for name in names:
                path = os.path.join(parent, name)
                found[os.path.relpath(path, os.fsencode(root))] = Path(os.fsdecode(path)).read_bytes()
        assert found == {path: path for path in files}


def test_component_that_is_too_long(target: Target) -> None:
    for action in (lambda: put(target, b"x" * 256), lambda: target.make_directory(b"x" * 256)):
        with pytest.raises(RestoreError, match="takes longer names"):
            action()


# --- what the system refuses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "code", "advice"),
    [
        ("pwrite", errno.ENOSPC, "make room"),
        ("truncate", errno.EFBIG, "takes files of that size"),
        ("rename", errno.EROFS, "can be written to"),
        ("mkdir", errno.EACCES, "may write to"),
        ("rename", errno.EIO, "restore again"),
    ],
)
def test_refusals_name_the_path_and_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, advice: str
) -> None:
    def attempt() -> None:
        with Target(place, notice=pytest.fail) as target:
            monkeypatch.setattr(os, call, refuse(code))
            put(target, b"some/f\xff")

    with pytest.raises(RestoreError, match=advice) as caught:
        attempt()
    assert f"{place}/some/f" in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    str(caught.value).encode()
    assert not [path for path in place.rglob("*") if path.is_file()]
    assert not [path for path in place.iterdir() if path.name.startswith(".cas")]


def test_directory_that_comes_back_while_it_is_removed(
    exact: Target, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "d").mkdir()
    monkeypatch.setattr(os, "rmdir", refuse(errno.ENOTEMPTY))
    with pytest.raises(RestoreError):
        put(exact, b"d")
    monkeypatch.setattr(os, "rmdir", refuse(errno.EBUSY))
    with pytest.raises(RestoreError, match="unmount"):
        put(exact, b"d")
    monkeypatch.setattr(os, "unlink", refuse(errno.ENOENT))
    (place / "d" / "f").write_bytes(b"")
    assert exact.remove_others({b"d"}) == 0
    monkeypatch.setattr(os, "scandir", refuse(errno.EIO))
    with pytest.raises(RestoreError):
        exact.remove_others(set())


def test_name_that_is_taken_again_and_again(target: Target, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "d").write_bytes(b"")
    monkeypatch.setattr(os, "unlink", refuse(errno.ENOENT))
    with pytest.raises(RestoreError, match="see that nothing else changes the target"):
        target.make_directory(b"d")


# --- other file systems within the target -------------------------------------------------------


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every move out of the staging directory be one to another file system."""
    calls = {"rename": os.rename, "link": os.link}

    def guard(name: str) -> Callable[..., None]:
        def call(source: bytes, to: bytes, *, src_dir_fd: int, dst_dir_fd: int, **options: bool) -> None:
            inside = [
                os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).startswith(".cas-checkpoint-")
                for fd in (src_dir_fd, dst_dir_fd)
            ]
            if any(inside):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            calls[name](source, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **options)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, guard(name))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the guard needs /proc")
@pytest.mark.usefixtures("mounted")
def test_file_system_mounted_in_the_target(target: Target, place: Path) -> None:
    data = os.urandom(3 * 2**20 + 17)
    put(target, b"m/f", data, mode=0o4711)
    assert (place / "m" / "f").read_bytes() == data
    assert stat.S_IMODE((place / "m" / "f").stat().st_mode) == 0o4711
    assert (place / "m" / "f").stat().st_mtime_ns == TIME
    put(target, b"m/f", b"")
    entry = file_entry(b"m/sparse", 2**30, extents=((2**20, 4),))
    staged = target.stage(entry)
    staged.write(2**20, b"data")
    target.place(staged, entry)
    assert (place / "m" / "sparse").stat().st_blocks * 512 < 2**20
    target.put(file_entry(b"m/whole", 4), [(0, b"data")])
    assert (place / "m" / "whole").read_bytes() == b"data"
    target.make_symlink(symlink_entry(b"m/l", b"f"))
    target.make_hardlink(hardlink_entry(b"m/h", b"m/f"))
    assert (place / "m" / "h").stat().st_ino == (place / "m" / "f").stat().st_ino
    target.close()
    assert sorted(os.listdir(place / "m")) == ["f", "h", "l", "sparse", "whole"]
    assert os.listdir(place) == ["m"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the guard needs /proc")
@pytest.mark.usefixtures("mounted")
def test_failure_on_a_mounted_file_system_leaves_nothing(
    target: Target, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = file_entry(b"m/f")
    staged = target.stage(entry)
    staged.write(0, b"data")
    monkeypatch.setattr(os, "pwrite", refuse(errno.ENOSPC))
    with pytest.raises(RestoreError, match="make room"):
        target.place(staged, entry)
    assert os.listdir(place / "m") == []


def test_hard_link_to_another_file_system(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    put(target, b"f")
    monkeypatch.setattr(os, "link", refuse(errno.EXDEV))
    with pytest.raises(RestoreError, match="no hard link leads to another file system"):
        target.make_hardlink(hardlink_entry(b"h", b"f"))


def test_messages_of_places() -> None:
    assert directories_module.join_place("/t", b"") == "/t"
    assert directories_module.join_place("/t", b"a\xff") == "/t/a\udcff"
