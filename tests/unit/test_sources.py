"""What a source gives, on real file systems: entries in order, data, and everything that can go wrong on the way."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import extents as extents_module
from cas_checkpoint import readers as readers_module
from cas_checkpoint import trees as trees_module
from cas_checkpoint.errors import (
    InvalidArgument,
    InvalidArgumentType,
    SourceChanged,
    SourceError,
    SourceNotFound,
    SourceUnreadable,
)
from cas_checkpoint.manifests import MAX_EXTENTS, MAX_PATH_SIZE, Entry, EntryType, encode_entry, order
from cas_checkpoint.monitor import Notice
from cas_checkpoint.sources import Source, SourceItem, SourceReader, Walker, is_rereadable

NOW = 1_700_000_000_000_000_007
LINUX = pytest.mark.skipif(not hasattr(os, "listxattr"), reason="extended attributes are read on Linux only")


class Walk:
    """A walk that keeps what it is told."""

    def __init__(self, source: Source, *, fail: bool = False, **options: object) -> None:
        self.problems: list[SourceError] = []
        self.notices: list[Notice] = []
        problem = self._raise if fail else self.problems.append
        self.walker = Walker(source, now_ns=NOW, problem=problem, notice=self.notices.append, **options)
        self.items = list(self.walker)
        self.entries = {item.entry.path: item.entry for item in self.items}

    @staticmethod
    def _raise(error: SourceError) -> None:
        raise error

    def read(self, path: bytes) -> bytes:
        return read(next(item for item in self.items if item.entry.path == path))


def walk(source: Source, **options: object) -> dict[bytes, Entry]:
    return Walk(source, fail=True, **options).entries


def pieces(reader: SourceReader, size: int = 1000) -> Iterator[bytes]:
    buffer = memoryview(bytearray(size))
    while filled := reader.readinto(buffer):
        yield bytes(buffer[:filled])


def read(item: SourceItem) -> bytes:
    assert item.open is not None
    reader = item.open()
    try:
        data = b"".join(pieces(reader))
        size = reader.finish()
        assert size == (len(data) if reader.extents is None else item.entry.size)
        return data
    finally:
        reader.close()


def run_as_nobody(action: Callable[[], None]) -> None:
    """Run `action` without the privileges of root: they would let it read anything."""
    if os.geteuid() != 0:
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
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    yield place
    shutil.rmtree(place)


# --- kinds of sources ---------------------------------------------------------------------------


def test_directory_gives_a_root_entry_and_its_contents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir(mode=0o750)
    (tmp_path / "b" / "inner").write_bytes(b"inner")
    (tmp_path / "a").write_bytes(b"xyz")
    os.chmod(tmp_path / "a", 0o4741)
    os.utime(tmp_path / "a", ns=(5, 123_456_789_012_345_678))
    os.utime(tmp_path, ns=(5, -7))
    found = Walk(tmp_path)
    assert list(found.entries) == [b"", b"a", b"b", b"b/inner"]
    root = found.entries[b""]
    assert (root.type, root.mtime_ns, root.mode) == (EntryType.DIRECTORY, -7, stat.S_IMODE(tmp_path.stat().st_mode))
    assert found.entries[b"a"] == Entry(b"a", EntryType.FILE, 0o4741, 123_456_789_012_345_678, 3)
    assert found.entries[b"b"].type is EntryType.DIRECTORY
    assert (found.entries[b"b"].mode, found.entries[b"b"].size) == (0o750, 0)
    assert found.read(b"b/inner") == b"inner"
    assert not found.problems
    assert not found.notices


def test_single_file_is_stored_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    found = Walk(str(tmp_path / "model.pt"))
    assert list(found.entries) == [b"model.pt"]
    assert found.read(b"model.pt") == b"weights"


def test_relative_path_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    found = Walk("here")
    monkeypatch.chdir("/")
    assert found.read(b"here") == b"x"


def test_source_that_is_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"1")
    (tmp_path / "to-directory").symlink_to("real")
    (tmp_path / "to-file").symlink_to("real/f")
    assert list(walk(tmp_path / "to-directory")) == [b"", b"f"]
    found = Walk(tmp_path / "to-file")
    assert list(found.entries) == [b"to-file"]
    assert found.entries[b"to-file"].type is EntryType.FILE
    assert found.read(b"to-file") == b"1"


@pytest.mark.parametrize(
    "data", [b"", b"abc", bytearray(b"x" * 5000), memoryview(b"abcdef")[::2], memoryview(b"abcdefgh").cast("I")]
)
def test_bytes_are_one_file(data: bytes) -> None:
    plain = bytes(data) if not isinstance(data, memoryview) else data.tobytes()
    found = Walk(data)
    assert found.entries == {b"_dst_cp": Entry(b"_dst_cp", EntryType.FILE, 0o644, NOW, len(plain))}
    assert found.read(b"_dst_cp") == found.read(b"_dst_cp") == plain


def test_default_name() -> None:
    assert list(walk(b"x", default_name=b"other")) == [b"other"]
    with pytest.raises(InvalidArgument):
        walk(b"x", default_name=b"../other")


def test_reader_is_read_from_its_position_and_left_open() -> None:
    stream = io.BytesIO(b"0123456789")
    stream.seek(4)
    found = Walk(stream)
    assert found.entries[b"_dst_cp"].size == 0
    assert found.read(b"_dst_cp") == b"456789"
    assert not stream.closed
    assert stream.tell() == 10
    assert found.read(b"_dst_cp") == b"456789"
    assert [read(item) for item in found.walker] == [b"456789"]


class Dribble:
    """A reader that cannot seek, and gives little at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int) -> bytes:
        size = min(size, 7)
        piece, self.data = self.data[:size], self.data[size:]
        return piece


class RawDribble(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self.source = Dribble(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        piece = self.source.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("make", [Dribble, RawDribble])
def test_reader_that_cannot_seek_is_read_once(make: Callable[[bytes], Dribble]) -> None:
    data = os.urandom(2500)
    stream = make(data)
    assert not is_rereadable(stream)
    found = Walk(stream)
    assert found.read(b"_dst_cp") == data
    with pytest.raises(SourceUnreadable, match="only once"):
        found.read(b"_dst_cp")


def test_buffer_is_filled_from_short_reads() -> None:
    (item,) = Walk(Dribble(b"x" * 100)).items
    assert item.open is not None
    assert [len(piece) for piece in pieces(item.open(), 64)] == [64, 36]


def test_reader_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentType):
        Walk(io.StringIO("text"))
    with (tmp_path / "t").open("w+") as file, pytest.raises(TypeError):
        Walk(file)
    with tempfile.NamedTemporaryFile("w+") as wrapper:
        wrapper.write("text")
        wrapper.seek(0)
        with pytest.raises(InvalidArgumentType, match="text"):
            Walk(wrapper).read(b"_dst_cp")


class Odd:
    def __init__(self, result: object) -> None:
        self.result = result

    def read(self, size: int) -> bytes:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize("result", [None, b"x" * 5000, OSError(5, "no"), ValueError("closed")])
def test_reader_that_fails(result: object) -> None:
    with pytest.raises(SourceUnreadable):
        Walk(Odd(result)).read(b"_dst_cp")


def test_closed_and_write_only_readers(tmp_path: Path) -> None:
    stream = io.BytesIO(b"x")
    stream.close()
    with pytest.raises(SourceUnreadable):
        Walk(stream).read(b"_dst_cp")
    with (tmp_path / "w").open("wb") as file, pytest.raises(SourceUnreadable):
        Walk(file).read(b"_dst_cp")
    later = io.BytesIO(b"x")
    found = Walk(later)
    later.close()
    with pytest.raises(SourceUnreadable):
        found.read(b"_dst_cp")


def test_mapping(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "f").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"22")
    source = {"z": io.BytesIO(b"reader"), "b/c": str(tmp_path / "dir"), "b!": tmp_path / "file", "b/a": b"333"}
    found = Walk(source)
    assert list(found.entries) == [b"b/a", b"b/c", b"b/c/f", b"b!", b"z"]
    assert found.entries[b"b/c"].type is EntryType.DIRECTORY
    assert [found.read(path) for path in (b"b/a", b"b/c/f", b"b!", b"z")] == [b"333", b"1", b"22", b"reader"]
    assert walk({b"\xff": b"", "\udcfe": b""}).keys() == {b"\xfe", b"\xff"}
    assert walk({}) == {}


def test_hard_links_across_the_values_of_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    os.link(tmp_path / "x", tmp_path / "y")
    entries = walk({"one": tmp_path / "x", "two": tmp_path / "y"})
    assert entries[b"two"].type is EntryType.HARDLINK
    assert entries[b"two"].target == b"one"


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b", "a" * (MAX_PATH_SIZE + 1), "\ud800"]
)
def test_mapping_with_a_forbidden_path(key: str) -> None:
    with pytest.raises(InvalidArgument):
        Walk({key: b""})


@pytest.mark.parametrize("keys", [["a", "a/b"], ["a/b/c", "a", "a!"], ["x", b"x"]])
def test_mapping_with_paths_in_one_another(keys: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        Walk(dict.fromkeys(keys, b""))


@pytest.mark.parametrize("value", [None, 5, 1.5, object(), ["a"], {"nested": {"a": b""}}])
def test_other_types(value: object) -> None:
    inner = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises(InvalidArgumentType) as caught:
        Walk(value)
    message = f"Only a valid path or IOBase type (reader) should be provided, received {type(inner)}"
    assert str(caught.value) == message
    with pytest.raises(InvalidArgumentType):
        Walk({3: b""})


def test_paths_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "dangling", "file/below", ""):
        with pytest.raises(SourceNotFound):
            Walk(str(tmp_path / name) if name else "")
    with pytest.raises(SourceError):
        Walk(tmp_path / "loop")
    with pytest.raises(SourceUnreadable, match="open reader"):
        Walk(tmp_path / "fifo")
    with pytest.raises(InvalidArgument):
        Walk("nul\0")
    with pytest.raises(SourceNotFound):
        Walk({"a": tmp_path / "missing"})


def test_is_rereadable(tmp_path: Path) -> None:
    assert is_rereadable(tmp_path)
    assert is_rereadable(b"x")
    assert is_rereadable(io.BytesIO())
    assert is_rereadable({"a": io.BytesIO(), "b": "path"})
    assert not is_rereadable({"a": io.BytesIO(), "b": Dribble(b"")})
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert not is_rereadable(pipe)


# --- what lies in a directory -------------------------------------------------------------------


def test_symlinks_are_saved_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for name, target in {"dangling": b"no\xff\nwhere", "to-dir": b"dir", "out": b"/etc/passwd"}.items():
        os.symlink(target, bytes(tmp_path / name))
    found = Walk(tmp_path)
    assert not found.problems
    links = {path: entry.target for path, entry in found.entries.items() if entry.type is EntryType.SYMLINK}
    assert links == {b"dangling": b"no\xff\nwhere", b"to-dir": b"dir", b"out": b"/etc/passwd"}
    assert all(item.open is None for item in found.items)


def test_hard_links(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "first").write_bytes(b"data")
    for name in ("b/second", "c", "outside"):
        os.link(tmp_path / "b" / "first", tmp_path / name)
    (tmp_path / "outside").unlink()
    found = Walk(tmp_path)
    assert [(entry.path, entry.type, entry.target, entry.size) for entry in list(found.entries.values())[2:]] == [
        (b"b/first", EntryType.FILE, b"", 4),
        (b"b/second", EntryType.HARDLINK, b"b/first", 0),
        (b"c", EntryType.HARDLINK, b"b/first", 0),
    ]
    assert [item.open is None for item in found.items[2:]] == [False, True, True]


def test_hard_link_to_a_forgotten_entry_becomes_the_file(tmp_path: Path) -> None:
    for name in ("a", "z"):
        (tmp_path / name).write_bytes(b"")
        os.link(tmp_path / name, tmp_path / (name + "1"))
        os.link(tmp_path / name, tmp_path / (name + "2"))
    walker = Walker(tmp_path, now_ns=NOW, problem=pytest.fail, notice=pytest.fail)
    for _ in range(2):  # every iteration begins anew
        seen = []
        for item in walker:
            seen.append((item.entry.path, item.entry.target, item.open is not None))
            if item.entry.path == b"a":
                walker.forget(item.entry)
        files = [(b"a", b"", True), (b"a1", b"", True), (b"a2", b"a1", False)]
        assert seen[1:] == [*files, (b"z", b"", True), (b"z1", b"z", False), (b"z2", b"z", False)]


def test_link_table_forgets_files_whose_links_were_all_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    os.link(tmp_path / "a", tmp_path / "b")
    assert not Walk(tmp_path).walker._trees._links


def test_special_files_are_left_out_with_a_notice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        devices = 0
        if os.geteuid() == 0:
            os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            devices = 1
        found = Walk(tmp_path)
    assert list(found.entries) == [b""]
    assert not found.problems
    assert Notice(str(tmp_path / "socket"), "is a socket; not saved") in found.notices
    assert Notice(str(tmp_path / "fifo"), "is a FIFO; not saved") in found.notices
    assert len(found.notices) == 2 + devices


@pytest.fixture
def takes_xattrs(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.probe", b"")
        os.removexattr(tmp_path, "user.probe")
    except (AttributeError, OSError):
        pytest.skip("no extended attributes on the file system of the tests")


@pytest.mark.usefixtures("takes_xattrs")
def test_extended_attributes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("f")
    os.setxattr(tmp_path / "f", b"user.\xffname", b"\0value")
    os.setxattr(tmp_path / "d", "user.d", b"")
    os.setxattr(tmp_path, "user.root", b"r")
    entries = walk(tmp_path)
    assert {path: entry.xattrs for path, entry in entries.items()} == {
        b"": {b"user.root": b"r"},
        b"d": {b"user.d": b""},
        b"f": {b"user.\xffname": b"\0value"},
        b"l": {},
    }
    assert not any(entry.xattrs for entry in walk(tmp_path, xattrs=False).values())
    if os.geteuid() == 0:
        os.setxattr(tmp_path / "l", "trusted.l", b"link", follow_symlinks=False)
        assert walk(tmp_path)[b"l"].xattrs == {b"trusted.l": b"link"}


@LINUX
def test_extended_attributes_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"")

    def fail(code: int, *args: object, **options: object) -> list[str]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "listxattr", partial(fail, 95))
    assert not Walk(tmp_path).notices
    monkeypatch.setattr(os, "listxattr", partial(fail, 13))
    found = Walk(tmp_path)
    assert len(found.entries) == len(found.notices) == 2
    monkeypatch.setattr(os, "listxattr", lambda *_, **__: ["user.gone"])
    monkeypatch.setattr(os, "getxattr", partial(fail, 61))
    found = Walk(tmp_path)
    assert not found.notices
    assert found.entries[b"f"].xattrs == {}


@LINUX
def test_too_many_extended_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"")
    monkeypatch.setattr(
        trees_module, "read_xattrs", lambda _: {b"user.%d" % number: bytes(60000) for number in range(16)}
    )
    found = Walk(tmp_path)
    assert not found.entries
    assert isinstance(found.problems[0], SourceUnreadable)
    monkeypatch.setattr(
        trees_module, "read_xattrs", lambda _: {b"user.%d" % number: bytes(60000) for number in range(15)}
    )
    for entry in Walk(tmp_path).entries.values():
        encode_entry(entry)
    monkeypatch.setattr(trees_module, "read_xattrs", lambda _: {b"user.%d" % number: b"" for number in range(5000)})
    assert not Walk(tmp_path).entries


def test_owner(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    assert walk(tmp_path)[b"f"].owner is None
    if os.geteuid() == 0:
        os.chown(tmp_path / "f", 0, 4_000_000_000)
    owner = walk(tmp_path, owner=True)[b"f"].owner
    assert owner is not None
    status = (tmp_path / "f").stat()
    assert (owner.uid, owner.gid) == (status.st_uid, status.st_gid)
    if os.geteuid() == 0:
        assert (owner.user, owner.group) == ("root", "")
        os.chown(tmp_path / "f", 4_000_000_000, 0)
        owner = walk(tmp_path, owner=True)[b"f"].owner
        assert owner is not None
        assert (owner.user, owner.group) == ("", "root")


def test_absurd_times_are_kept_within_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"")
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **options: Later(real(*args, **options)))
    assert walk(tmp_path, xattrs=False)[b"f"].mtime_ns == 2**63 - 1


class Later:
    def __init__(self, status: os.stat_result) -> None:
        self.status = status

    def __getattr__(self, name: str) -> object:
        return 2**70 if name == "st_mtime_ns" else getattr(self.status, name)


# --- order and shape ----------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: b"/" not in name and b"\0" not in name and name.strip(b".")
)
HOSTILE = st.sampled_from([b"a", b"a!", b"a\x01", b"a.", b"-rf", b"\n", b"\xff\xfe", b" ", b"..a", b"a" * 255, b"*"])
TREES = st.recursive(
    st.binary(max_size=3), lambda inner: st.dictionaries(HOSTILE | NAMES, inner, max_size=5), max_leaves=25
)


def build(place: bytes, tree: dict[bytes, object] | bytes) -> None:
    if isinstance(tree, bytes):
        with open(place, "wb") as file:
            file.write(tree)
        return
    os.makedirs(place, exist_ok=True)
    for name, inner in tree.items():
        build(place + b"/" + name, inner)


@settings(max_examples=60, deadline=None)
@given(tree=st.dictionaries(HOSTILE | NAMES, TREES, max_size=6))
def test_walk_is_ordered_and_finds_what_os_walk_finds(tree: dict[bytes, object]) -> None:
    with tempfile.TemporaryDirectory() as place:
        build(os.fsencode(place), tree)
        found = Walk(place, fail=True)
        paths = list(found.entries)
        assert len(paths) == len(found.items)
        assert all(order(before) < order(after) for before, after in pairwise(paths))
        expected = {b"": None}
        for parent, directories, files in os.walk(os.fsencode(place)):
            for name in directories:
                expected[os.path.relpath(os.path.join(parent, name), os.fsencode(place))] = None
            for name in files:
                path = os.path.join(parent, name)
                expected[os.path.relpath(path, os.fsencode(place))] = Path(os.fsdecode(path)).read_bytes()
        assert {item.entry.path: read(item) if item.open else None for item in found.items} == expected


@contextmanager
def deep_tree(place: Path, name: str, levels: int) -> Iterator[None]:
    """Make directories in one another, where a path may be too long for a call, with a file in every one."""
    fd = os.open(place, os.O_RDONLY)
    for _ in range(levels):
        file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        os.write(file, b"leaf")
        os.close(file)
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    try:
        yield
    finally:
        remove_deep(place, name)


def remove_deep(place: Path, name: str) -> None:
    """Remove what `shutil.rmtree` cannot: it recurses."""
    top = place / name
    while top.exists():
        for inner in top.iterdir():
            if inner.is_dir():
                inner.rename(place / "inner")
            else:
                inner.unlink()
        top.rmdir()
        if (place / "inner").exists():
            (place / "inner").rename(top)


@pytest.mark.parametrize(("name", "levels"), [("d", 2500), ("n" * 250, 100)])
def test_deep_tree(tmp_path: Path, name: str, levels: int) -> None:
    before = len(os.listdir("/dev/fd"))
    count = most = 0
    with deep_tree(tmp_path, name, levels):
        for item in Walker(tmp_path, now_ns=NOW, problem=pytest.fail, notice=pytest.fail):
            count += 1
            if count % 97 == 0:
                most = max(most, len(os.listdir("/dev/fd")))
            if item.open and (count % 499 == 0 or count == 2 * levels - 1):
                assert read(item) == b"leaf"
    assert count == 2 * levels + 1
    assert most <= before + 40
    assert len(os.listdir("/dev/fd")) == before


def test_path_longer_than_the_format_allows(tmp_path: Path) -> None:
    with deep_tree(tmp_path, "n" * 250, 135):
        found = Walk(tmp_path, xattrs=False)
    assert [type(problem) for problem in found.problems] == [SourceUnreadable]
    assert max(map(len, found.entries)) <= MAX_PATH_SIZE


def test_abandoned_walk_closes_its_directories(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = len(os.listdir("/dev/fd"))
    walker = iter(Walker(tmp_path, now_ns=NOW, problem=pytest.fail, notice=pytest.fail))
    next(walker)
    next(walker)
    walker.close()
    assert len(os.listdir("/dev/fd")) == before


# --- what goes wrong ----------------------------------------------------------------------------


def test_unreadable_things_are_left_out_or_fail(open_place: Path) -> None:
    def check() -> None:
        (open_place / "dir").mkdir()
        (open_place / "dir" / "inner").write_bytes(b"")
        (open_place / "dir").chmod(0)
        (open_place / "file").write_bytes(b"secret")
        (open_place / "file").chmod(0)
        (open_place / "good").write_bytes(b"good")
        found = Walk(open_place)
        assert list(found.entries) == [b"", b"file", b"good"]
        assert [type(problem) for problem in found.problems] == [SourceUnreadable]
        assert str(open_place / "dir") in str(found.problems[0])
        with pytest.raises(SourceUnreadable, match="on_error='skip'"):
            found.read(b"file")
        assert found.read(b"good") == b"good"
        with pytest.raises(SourceUnreadable):
            Walk(open_place, fail=True)
        (open_place / "dir").chmod(0o700)

    run_as_nobody(check)


def test_files_of_others_are_read_without_o_noatime(open_place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a file that belongs to another user")
    (open_place / "file").write_bytes(b"of root")
    (open_place / "file").chmod(0o644)

    def check() -> None:
        assert Walk(open_place).read(b"file") == b"of root"

    run_as_nobody(check)


def test_entries_that_vanish(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"")
    problems: list[SourceError] = []
    seen = []
    for item in Walker(tmp_path, now_ns=NOW, problem=problems.append, notice=pytest.fail):
        seen.append(item.entry.path)
        if item.entry.path == b"a":
            (tmp_path / "a" / "f").unlink()
            shutil.rmtree(tmp_path / "b")
    assert seen == [b"", b"a", b"c", b"c/f"]
    assert [type(problem) for problem in problems] == [SourceNotFound, SourceNotFound]


def test_file_that_vanishes_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    found = Walk(tmp_path)
    (tmp_path / "f").unlink()
    with pytest.raises(SourceNotFound):
        found.read(b"f")


@pytest.mark.parametrize("how", ["symlink", "fifo", "directory", "other", "longer", "touched", "mode", "linked"])
def test_file_that_changes_before_it_is_opened(tmp_path: Path, how: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    os.utime(path, ns=(1, 1))
    found = Walk(tmp_path)
    time.sleep(0.02)  # file systems tell times apart in steps of some milliseconds
    change(path, how)
    with pytest.raises(SourceChanged, match="save again"):
        found.read(b"f")


def change(path: Path, how: str) -> None:
    if how in ("symlink", "fifo", "directory"):
        path.unlink()
        {"symlink": lambda: path.symlink_to("/etc/passwd"), "fifo": lambda: os.mkfifo(path), "directory": path.mkdir}[
            how
        ]()
    elif how == "other":
        other = path.with_name("other")
        other.write_bytes(b"new")
        os.utime(other, ns=(1, 1))
        other.rename(path)
    elif how == "longer":
        with path.open("ab") as file:
            file.write(b"more")
    elif how == "shorter":
        os.truncate(path, 1)
    elif how == "touched":
        os.utime(path, ns=(1, 2))
    elif how == "same times":
        path.write_bytes(b"new")
        os.utime(path, ns=(1, 1))
    elif how == "mode":
        path.chmod(0o600 if path.stat().st_mode & 0o077 else 0o640)
    elif how == "linked":
        os.link(path, path.with_name("link"))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["other", "longer", "shorter", "touched", "same times", "mode", "linked", "vanished"])
@pytest.mark.parametrize("when", ["before the first byte", "after the last byte"])
def test_file_that_changes_while_it_is_read(tmp_path: Path, how: str, when: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    os.utime(path, ns=(1, 1))
    (_, item) = Walk(tmp_path).items
    assert item.open is not None
    reader = item.open()
    time.sleep(0.02)
    if when == "before the first byte":
        change(path, how)
    data = b"".join(pieces(reader))
    assert len(data) <= 3
    if when == "after the last byte":
        change(path, how)
    with pytest.raises(SourceChanged, match="f: changed while it was saved"):
        reader.finish()
    reader.close()
    reader.close()


def test_file_that_was_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (_, item) = Walk(tmp_path).items
    assert item.open is not None
    reader = item.open()
    assert reader.readinto(memoryview(bytearray(2))) == 2
    with pytest.raises(SourceChanged, match="2 bytes instead of 5"):
        reader.finish()
    reader.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_file_that_the_kernel_makes_up() -> None:
    with pytest.raises(SourceChanged, match="more data than its size says"):
        Walk("/proc/self/status").read(b"status")


def test_read_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    found = Walk(tmp_path)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", fail)
    with pytest.raises(SourceUnreadable, match="Input/output error"):
        found.read(b"f")


def test_directory_that_was_replaced_while_it_was_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees_module, "_OPEN_FOLDERS", 1)
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "z").write_bytes(b"")
    (tmp_path / "tree" / "z").write_bytes(b"")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "z").write_bytes(b"stolen")
    for replace in (lambda: (tmp_path / "evil").rename(tmp_path / "tree" / "a"), lambda: None):
        problems: list[SourceError] = []
        paths = []
        for item in Walker(tmp_path / "tree", now_ns=NOW, problem=problems.append, notice=pytest.fail):
            paths.append(item.entry.path)
            if item.entry.path == b"a/b":
                shutil.move(tmp_path / "tree" / "a", tmp_path / "moved")
                replace()
        assert paths == [b"", b"a", b"a/b", b"z"]
        assert len(problems) == 1
        shutil.rmtree(tmp_path / "tree" / "a", ignore_errors=True)
        (tmp_path / "moved").rename(tmp_path / "tree" / "a")


def test_names_that_are_not_text_in_messages(tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"bad\xff\nname")
    Path(os.fsdecode(name)).write_bytes(b"x")
    found = Walk(tmp_path)
    os.unlink(name)
    with pytest.raises(SourceNotFound) as caught:
        found.read(b"bad\xff\nname")
    str(caught.value).encode()


# --- holes --------------------------------------------------------------------------------------


@pytest.fixture
def takes_holes(tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as file:
        file.truncate(2**20)
        if not hasattr(os, "SEEK_DATA") or os.fstat(file.fileno()).st_blocks:
            pytest.skip("no holes on the file system of the tests")
    (tmp_path / "probe").unlink()


def sparse(path: Path, size: int, runs: list[tuple[int, bytes]]) -> SourceItem:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in runs:
            os.pwrite(file.fileno(), data, offset)
    (item,) = Walk(path, fail=True).items
    return item


@pytest.mark.usefixtures("takes_holes")
def test_sparse_file(tmp_path: Path) -> None:
    block = os.urandom(4096)
    item = sparse(tmp_path / "f", 2**30 + 5, [(2**20, block), (2**29, block * 2), (2**29 + 3 * 4096, block)])
    assert item.open is not None
    reader = item.open()
    assert reader.extents == ((2**20, 4096), (2**29, 4 * 4096))  # the short hole is read
    assert b"".join(pieces(reader, 5000)) == block * 3 + bytes(4096) + block
    assert reader.finish() == 2**30 + 5
    reader.close()


@pytest.mark.usefixtures("takes_holes")
def test_file_that_is_one_hole(tmp_path: Path) -> None:
    item = sparse(tmp_path / "f", 2**30, [])
    assert item.open is not None
    reader = item.open()
    assert reader.extents == ()
    assert reader.readinto(memoryview(bytearray(10))) == 0
    assert reader.finish() == 2**30
    reader.close()


@pytest.mark.usefixtures("takes_holes")
@pytest.mark.parametrize("runs", [[(0, b"x" * 2**17)], [(4096, b"x" * (2**17 - 8192))]])
def test_holes_too_short_to_matter(tmp_path: Path, runs: list[tuple[int, bytes]]) -> None:
    item = sparse(tmp_path / "f", 2**17 + 4096, runs)
    assert item.open is not None
    reader = item.open()
    assert reader.extents is None
    assert len(b"".join(pieces(reader))) == 2**17 + 4096
    reader.close()


@pytest.mark.usefixtures("takes_holes")
def test_sparse_file_that_is_truncated_while_it_is_read(tmp_path: Path) -> None:
    item = sparse(tmp_path / "f", 2**20, [(0, b"x" * 4096), (2**19, b"y" * 4096)])
    assert item.open is not None
    reader = item.open()
    os.truncate(tmp_path / "f", 4096)
    assert b"".join(pieces(reader)) == b"x" * 4096
    with pytest.raises(SourceChanged):
        reader.finish()
    reader.close()


@pytest.mark.parametrize("error", [OSError(22, "no SEEK_DATA"), None])
def test_file_system_that_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(2**20)

    def lseek(_: int, offset: int, whence: int) -> int:
        if error:
            raise error
        return {os.SEEK_DATA: offset, os.SEEK_HOLE: 2**20, os.SEEK_SET: offset}[whence]

    monkeypatch.setattr(os, "lseek", lseek)
    (item,) = Walk(path).items
    assert item.open is not None
    assert item.open().extents is None


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.tuples(st.integers(1, 2**18), st.integers(1, 2**18)), max_size=40), limit=st.integers(1, 10))
def test_joined_runs_cover_the_data(gaps: list[tuple[int, int]], limit: int) -> None:
    runs, end = [], 0
    for hole, data in gaps:
        runs.append((end + hole, end + hole + data))
        end += hole + data
    before = extents_module.MAX_EXTENTS
    extents_module.MAX_EXTENTS = limit
    try:
        extents = extents_module._coalesce(runs, end)
    finally:
        extents_module.MAX_EXTENTS = before
    assert len(extents) <= limit
    assert all(a[0] + a[1] + extents_module.MIN_HOLE_SIZE <= b[0] for a, b in pairwise(extents))
    for start, stop in runs:
        assert any(offset <= start and stop <= offset + size for offset, size in extents)
    assert not extents or extents[-1][0] + extents[-1][1] <= end


def test_limits_fit_the_format() -> None:
    assert extents_module.MAX_EXTENTS == MAX_EXTENTS
    assert readers_module.shown(b"\xff") == "\\xff"
