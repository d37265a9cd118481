"""What the backend of local disks promises beyond the interface: order of syncs, no remains, clear refusals."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys

import pytest

from cas_checkpoint.backends import LocalBackend, descriptors, linking, open_backend
from cas_checkpoint.errors import DamagedObject, InvalidArgument, InvalidArgumentType, ObjectNotFound, StorageError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def backend(root):
    return LocalBackend(root, durable=False)


def files(root):
    """Return the path of every file below `root`, hidden ones included."""
    return sorted(os.path.relpath(os.path.join(top, name), root) for top, _, names in os.walk(root) for name in names)


def keys(backend, prefix=""):
    return sorted(info.key for info in backend.list(prefix))


def refuse(code):
    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return call


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Record what is done for durability, in order; files and directories by what they are called in the end."""
    recorded = []

    def named(number):
        for top, directories, names in os.walk(tmp_path.parent):
            for name in (".", *directories, *names):
                path = os.path.normpath(os.path.join(top, name))
                if os.lstat(path).st_ino == number:
                    return os.path.relpath(path, tmp_path)
        return "gone"

    def record(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            recorded.append((name, os.fstat(args[0]).st_ino if name == "fsync" else os.path.basename(args[-1])))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "link", "unlink"):
        record(name)

    def result():
        found = [(step, named(what) if step == "fsync" else what) for step, what in recorded]
        recorded.clear()
        return [f"{step} {what}" for step, what in found if not what.startswith(".tmp-")]

    return result


# --- durability ---------------------------------------------------------------------------------


def test_put_syncs_directories_then_the_file_then_its_name(root, steps):
    backend = LocalBackend(root)
    backend.put("packs/00", [b"x"])
    assert steps() == ["fsync .", "fsync store", "fsync store/packs/00", "rename 00", "fsync store/packs"]
    backend.put("packs/01", [b"x"])
    assert steps() == ["fsync store/packs/01", "rename 01", "fsync store/packs"]


def test_put_if_absent_syncs_the_file_then_its_name(root, steps):
    backend = LocalBackend(root)
    assert backend.put_if_absent("a", b"x")
    assert steps() == ["fsync .", "fsync store/a", "link a", "fsync store"]
    assert backend.put_if_absent("a", b"x")
    assert steps() == ["fsync gone", "link a", "fsync store"]
    assert not backend.put_if_absent("a", b"y")
    assert steps() == ["fsync gone", "link a", "fsync store"]


def test_every_new_directory_is_synced_into_its_parent(tmp_path, steps):
    LocalBackend(tmp_path / "new/deep").put("commits/a/1", [b"x"])
    assert steps()[:4] == ["fsync .", "fsync new", "fsync new/deep", "fsync new/deep/commits"]


def test_directories_that_somebody_else_just_made_are_synced_too(root, steps):
    os.makedirs(root / "packs")
    LocalBackend(root).put("packs/00", [b"x"])
    assert steps()[:2] == ["fsync .", "fsync store"]


def test_delete_syncs_even_if_somebody_else_deleted(root, steps):
    backend = LocalBackend(root)
    backend.put("packs/00", [b"x"])
    steps()
    backend.delete("packs/00")
    assert steps() == ["unlink 00", "fsync store/packs"]
    backend.delete("packs/00")
    assert steps() == ["unlink 00", "fsync store/packs"]


def test_nothing_is_synced_if_not_durable(backend, steps):
    backend.put("packs/00", [b"x"])
    backend.put_if_absent("packs/01", b"x")
    backend.delete("packs/00")
    assert steps() == ["rename 00", "link 01", "unlink 00"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_sync_is_a_failing_write(root, monkeypatch, code):
    backend = LocalBackend(root)
    backend.put("packs/00", [b"x"])
    monkeypatch.setattr(os, "fsync", refuse(code))
    with pytest.raises(StorageError, match="packs/01"):
        backend.put("packs/01", [b"x"])
    with pytest.raises(StorageError, match="packs/02"):
        backend.put_if_absent("packs/02", b"x")
    assert files(root) == ["packs/00"]


def test_a_directory_that_cannot_be_synced_at_all_is_no_error(root, monkeypatch):
    real = os.fsync

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no directories here")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    LocalBackend(root).put("packs/00", [b"x"])
    assert files(root) == ["packs/00"]


def test_a_parent_of_the_store_that_may_not_be_read_is_no_error(root, monkeypatch):
    os.mkdir(root)
    real = os.open

    def opened(path, flags, *args, **kwargs):
        if flags & os.O_DIRECTORY and path == str(root.parent):
            raise PermissionError(errno.EACCES, "no", path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    LocalBackend(root).put("packs/00", [b"x"])
    assert files(root) == ["packs/00"]


def test_the_cache_of_the_disk_is_flushed_where_that_is_a_call_of_its_own(root, monkeypatch):
    flushed = []
    monkeypatch.setattr(descriptors, "_FULL_SYNC", 51)
    monkeypatch.setattr(descriptors.fcntl, "fcntl", lambda descriptor, command: flushed.append(command))
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    LocalBackend(root).put("a", [b"x"])
    assert flushed == [51, 51, 51]


def test_where_that_call_is_refused_there_is_fsync(root, monkeypatch, steps):
    monkeypatch.setattr(descriptors, "_FULL_SYNC", 51)
    monkeypatch.setattr(descriptors.fcntl, "fcntl", refuse(errno.ENOTSUP))
    LocalBackend(root).put("a", [b"x"])
    assert steps() == ["fsync .", "fsync store/a", "rename a", "fsync store"]


# --- writes that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "who may"),
        (errno.EROFS, "for writing"),
        (errno.EIO, "disk may be failing"),
        (errno.EXDEV, ""),
    ],
)
@pytest.mark.parametrize("call", ["writev", "open", "rename"])
def test_a_failing_write_leaves_nothing(backend, root, monkeypatch, call, code, advice):
    backend.put("packs/00", [b"old"])
    monkeypatch.setattr(os, call, refuse(code))
    with pytest.raises(StorageError) as caught:
        backend.put("packs/00", [b"new"])
    monkeypatch.undo()
    for part in ("cannot write packs/00", str(root), os.strerror(code), advice):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert files(root) == ["packs/00"]
    assert backend.get("packs/00", max_size=3) == b"old"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError()])
def test_a_write_that_ends_in_the_middle_leaves_nothing(backend, root, monkeypatch, failure):
    real = os.writev

    def write(descriptor, vectors):
        if len(vectors) < 2:
            raise failure
        return real(descriptor, [vectors[0][:3]])

    monkeypatch.setattr(os, "writev", write)
    monkeypatch.setattr(descriptors, "_MAX_VECTORS", 2)
    for call in (backend.put, lambda key, parts: backend.put_if_absent(key, b"".join(parts))):
        with pytest.raises((StorageError, type(failure))):
            call("packs/00", [b"12345", b"67890"])
        assert files(root) == []
    assert keys(backend) == []


def test_an_interrupt_at_the_link_leaves_no_temporary_file(backend, root, monkeypatch):
    def link(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        backend.put_if_absent("a", b"x")
    assert files(root) == []


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_short_writes_and_reads_are_continued(backend, monkeypatch, step):
    writev, pread = os.writev, os.pread
    parts = [bytes([number]) * (number % 5) for number in range(200)]
    monkeypatch.setattr(os, "writev", lambda fd, vectors: writev(fd, [b"".join(vectors)[:step]]))
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, step), offset))
    backend.put("a", parts)
    assert backend.get("a", max_size=1000) == b"".join(parts)
    assert backend.get_range("a", 5, 300) == b"".join(parts)[5:305]


def test_no_call_gets_more_than_the_system_takes(backend, monkeypatch):
    real, seen = os.writev, []

    def write(descriptor, vectors):
        seen.append([len(vector) for vector in vectors])
        return real(descriptor, vectors)

    monkeypatch.setattr(os, "writev", write)
    monkeypatch.setattr(descriptors, "_MAX_CALL", 10)
    monkeypatch.setattr(descriptors, "_MAX_VECTORS", 3)
    backend.put("a", [b"1", b"22", b"333", b"4" * 25, b"5"])
    assert seen == [[1, 2, 3], [10], [10], [5, 1]]
    assert backend.get("a", max_size=100) == b"122333" + b"4" * 25 + b"5"


@pytest.fixture
def begun(monkeypatch):
    """Record which part of a file the disk is told to begin with, as (offset, size), and when it is waited for."""
    recorded, sync = [], os.fsync
    monkeypatch.setattr(descriptors, "_EARLY_CALL", 10)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *part: recorded.append(part[:2]), raising=False)
    monkeypatch.setattr(os, "fsync", lambda fd: (recorded.append("sync"), sync(fd)))
    return recorded


def test_the_disk_begins_while_the_rest_of_an_object_is_written(root, begun):
    backend = LocalBackend(root)
    backend.put("packs/00", [b"1234", b"5" * 25, b"6"])
    assert begun[-4:] == [(0, 10), (10, 10), "sync", "sync"]  # the file's, then its directory's
    assert backend.get("packs/00", max_size=30) == b"1234" + b"5" * 25 + b"6"


def test_the_disk_begins_early_with_nothing_that_is_small_or_need_not_last(root, backend, begun):
    LocalBackend(root).put("packs/00", [b"1234567890"])
    backend.put("packs/01", [b"5" * 100])
    assert set(begun) == {"sync"}


@pytest.mark.parametrize("how", ["refused", "unknown"])
def test_that_the_disk_will_not_begin_early_is_no_error(root, monkeypatch, begun, how):
    if how == "refused":
        monkeypatch.setattr(os, "posix_fadvise", refuse(errno.ESPIPE), raising=False)
    else:
        monkeypatch.delattr(os, "posix_fadvise")
    backend = LocalBackend(root)
    backend.put("packs/00", [b"5" * 100])
    assert backend.get("packs/00", max_size=100) == b"5" * 100
    assert begun[-2:] == ["sync", "sync"]


def test_a_write_that_gets_nowhere_ends(backend, monkeypatch):
    monkeypatch.setattr(os, "writev", lambda *_: 0)
    with pytest.raises(StorageError, match="nothing was written"):
        backend.put("a", [b"x"])


def test_a_store_that_was_removed_meanwhile_is_made_again(backend, root):
    backend.put("packs/00", [b"x"])
    os.unlink(root / "packs/00")
    os.rmdir(root / "packs")
    os.rmdir(root)
    backend.put("packs/01", [b"x"])
    assert files(root) == ["packs/01"]


def test_a_file_where_a_directory_belongs_is_told(backend, root):
    backend.put("packs", [b"x"])
    for call in (lambda: backend.put("packs/00", [b"x"]), lambda: backend.put_if_absent("packs/00", b"x")):
        with pytest.raises(StorageError, match="Not a directory") as caught:
            call()
        assert not isinstance(caught.value, ObjectNotFound)


def test_new_files_have_the_mode_of_the_umask(backend, root):
    umask = os.umask(0o027)
    try:
        backend.put("a", [b"x"])
        backend.put_if_absent("b", b"x")
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(os.stat(root / name).st_mode) for name in "ab"] == [0o640, 0o640]


# --- names that nobody else has -----------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_there_is_the_exclusive_rename(backend, root, monkeypatch, code):
    monkeypatch.setattr(os, "link", refuse(code))
    assert backend.put_if_absent("a", b"first") is True
    assert backend.put_if_absent("a", b"other") is False
    assert backend.put_if_absent("a", b"first") is True
    assert files(root) == ["a"]
    assert backend.get("a", max_size=5) == b"first"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_without_either_the_error_says_what_to_do(backend, root, monkeypatch, code):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(linking, "_call_rename", lambda *_: code)
    with pytest.raises(StorageError, match="move the store to a file system"):
        backend.put_if_absent("a", b"x")
    assert files(root) == []


def test_a_system_without_the_call(backend, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(linking, "_CALL", "no_such_function")
    with pytest.raises(StorageError, match="move the store to a file system"):
        backend.put_if_absent("a", b"x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_other_errors_of_either_are_what_they_are(backend, root, monkeypatch, code):
    monkeypatch.setattr(os, "link", refuse(code))
    with pytest.raises(StorageError, match=os.strerror(code)):
        backend.put_if_absent("a", b"x")
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(linking, "_call_rename", lambda *_: code)
    with pytest.raises(StorageError, match=os.strerror(code)):
        backend.put_if_absent("a", b"x")
    assert files(root) == []


def test_an_object_that_is_deleted_while_we_lose_to_it_is_written_after_all(backend, root, monkeypatch):
    backend.put("a", [b"other"])
    real = os.link

    def link(source, target):
        try:
            real(source, target)
        finally:
            if os.path.exists(target):
                monkeypatch.setattr(os, "link", real)
                os.unlink(target)

    monkeypatch.setattr(os, "link", link)
    assert backend.put_if_absent("a", b"ours") is True
    assert backend.get("a", max_size=10) == b"ours"


# --- what others put there ----------------------------------------------------------------------


def test_links_are_no_objects(backend, root, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"secret")
    backend.put("packs/00", [b"x"])
    os.symlink(tmp_path / "elsewhere", root / "packs/01")
    os.symlink("nowhere", root / "packs/02")
    os.symlink(".", root / "packs/loop")
    assert keys(backend) == ["packs/00"]
    for call in (lambda: backend.get("packs/01", max_size=100), lambda: backend.size("packs/01")):
        with pytest.raises(StorageError, match=r"put the (file|object) itself in its place"):
            call()


def test_a_kind_of_objects_may_lie_elsewhere(backend, root, tmp_path):
    os.mkdir(tmp_path / "other-disk")
    os.mkdir(root)
    os.symlink(tmp_path / "other-disk", root / "packs")
    os.symlink(".", root / "loop")
    backend.put("packs/00", [b"x"])
    backend.put_if_absent("packs/01", b"x")
    assert files(tmp_path / "other-disk") == ["00", "01"]
    assert keys(backend, "packs/") == ["packs/00", "packs/01"]
    assert {"packs/00", "packs/01"} <= set(keys(backend))


def test_a_pipe_is_no_object(backend, root):
    os.mkdir(root)
    os.mkfifo(root / "a")
    assert keys(backend) == []
    for call in (lambda: backend.get("a", max_size=1), lambda: backend.size("a")):
        with pytest.raises(StorageError, match="no regular file"):
            call()


def test_an_entry_that_vanishes_while_it_is_listed_is_left_out(backend, root, monkeypatch):
    for number in range(3):
        backend.put(f"packs/{number}", [b"x"])
    listing = backend.list("packs/")
    first = next(listing).key
    for number in range(3):
        os.unlink(root / f"packs/{number}")
    assert [first, *(info.key for info in listing)] == [first]


def test_a_listing_that_is_refused_is_an_error(backend, monkeypatch):
    backend.put("packs/00", [b"x"])
    monkeypatch.setattr(os, "scandir", refuse(errno.EACCES))
    with pytest.raises(StorageError, match="cannot list packs"):
        keys(backend, "packs/")


def test_an_object_that_is_cut_off_while_it_is_read(backend, monkeypatch):
    backend.put("a", [b"12345"])
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: b"123"[offset:])
    with pytest.raises(DamagedObject, match="truncated: has 3 bytes, 5 are needed"):
        backend.get("a", max_size=5)


def test_memory_is_filled_by_several_reads(backend, monkeypatch):
    backend.put("a", [b"0123456789"])
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:3]], offset))
    memory = bytearray(8)
    backend.read_into("a", 1, memoryview(memory))
    assert memory == b"12345678"
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][: max(0, 5 - offset)]], offset))
    with pytest.raises(DamagedObject, match="truncated: has 5 bytes, 9 are needed"):
        backend.read_into("a", 1, memoryview(memory))


def test_a_large_object_is_refused_before_it_is_read(backend, monkeypatch):
    backend.put("a", [b"12345"])
    monkeypatch.setattr(os, "pread", refuse(errno.EIO))
    with pytest.raises(DamagedObject, match="has 5 bytes; at most 4"):
        backend.get("a", max_size=4)
    with pytest.raises(DamagedObject, match="has 5 bytes, 6 are needed"):
        backend.get_range("a", 1, 5)
    with pytest.raises(DamagedObject, match="has 5 bytes, 109 are needed"):
        backend.read_into("a", 99, memoryview(bytearray(10)))
    with pytest.raises(StorageError, match="cannot read a"):
        backend.get("a", max_size=5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_a_directory_without_permission(backend, root):
    backend.put("packs/00", [b"x"])
    os.chmod(root / "packs", 0o500)
    try:
        with pytest.raises(StorageError, match="who may read and write"):
            backend.put("packs/01", [b"x"])
    finally:
        os.chmod(root / "packs", 0o700)


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}"])
def test_local_places(tmp_path, form):
    backend = open_backend(form.format(tmp_path / "a b%20"), durable=False)
    assert isinstance(backend, LocalBackend)
    assert (backend.url, backend.root, backend.durable) == (str(tmp_path / "a b%20"), str(tmp_path / "a b%20"), False)
    assert os.listdir(tmp_path) == []


def test_a_path_object_and_a_relative_path(tmp_path, monkeypatch):
    assert open_backend(tmp_path).url == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    backend = open_backend("below")
    assert backend.url == str(tmp_path / "below")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(backend)).root == str(tmp_path / "below")


@pytest.mark.parametrize("place", ["", "a\0b", "file://", "file://relative/path", "nonsense://x", "S3://bucket"])
def test_places_that_are_none(place):
    with pytest.raises(InvalidArgument):
        open_backend(place)


@pytest.mark.parametrize("place", [None, 5, b"/tmp"])
def test_places_of_another_type(place):
    with pytest.raises(InvalidArgumentType):
        open_backend(place)


def test_local_use_imports_no_fsspec(root):
    script = "import sys; from cas_checkpoint.backends import open_backend; open_backend(sys.argv[1]).put('a', [b'x'])"
    subprocess.run([sys.executable, "-c", f"{script}; assert 'fsspec' not in sys.modules", root], check=True)
    assert files(root) == ["a"]
