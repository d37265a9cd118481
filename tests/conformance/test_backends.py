"""What every backend must do, shown on each: local disk, memory, and file systems of fsspec."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fsspec
import pytest

from cas_checkpoint.backends import (
    Backend,
    FsspecBackend,
    LocalBackend,
    MemoryBackend,
    ObjectInfo,
    generic,
    probe_put_if_absent,
)
from cas_checkpoint.errors import DamagedObject, InvalidArgument, ObjectNotFound, StorageError

WRITERS = 8
BAD_KEYS = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    ".hidden",
    "a/.tmp-00",
    "Upper",
    "a b",
    "ä",
    "a\n",
    "a" * 256,
)
BAD_PREFIXES = ("packs", "/", "../", "a/../", "Packs/", "packs//")


class Place(NamedTuple):
    """A backend, and a way to put a foreign file beside its objects."""

    backend: Backend
    plant: Callable[[str, bytes], None]


def on_disk(backend, root):
    def plant(name, data):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return Place(backend, plant)


def in_memory(kind):
    root = f"memory://{uuid.uuid4().hex}/store"
    return Place(kind(root), lambda name, data: fsspec.filesystem("memory").pipe_file(f"{root}/{name}", data))


PLACES = {
    "local": lambda tmp: on_disk(LocalBackend(tmp / "store", durable=False), tmp / "store"),
    "local-durable": lambda tmp: on_disk(LocalBackend(tmp / "store"), tmp / "store"),
    "memory": lambda _: in_memory(MemoryBackend),
    "fsspec-memory": lambda _: in_memory(FsspecBackend),
    "fsspec-disk": lambda tmp: on_disk(FsspecBackend(f"file://{tmp}/store"), tmp / "store"),
    "fsspec-chain": lambda tmp: on_disk(FsspecBackend(f"dir://store::file://{tmp}"), tmp / "store"),
}
ATOMIC = ("local", "local-durable", "memory")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(generic, "_PAUSES", (0, 0))


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    return PLACES[request.param](tmp_path)


@pytest.fixture
def backend(place):
    return place.backend


@pytest.fixture(params=ATOMIC)
def atomic(request, tmp_path):
    return PLACES[request.param](tmp_path).backend


def listed(backend, prefix=""):
    found = list(backend.list(prefix))
    assert len(found) == len(set(found))
    return {info.key: info.size for info in found}


def together(function, arguments):
    """Call `function` with each of the arguments at the same moment; return the results."""
    barrier = threading.Barrier(len(arguments))

    def call(argument):
        barrier.wait()
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))


# --- writing and reading ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [b"one part"],
        [],
        [b""],
        [b"a", bytearray(b"b"), memoryview(b"c"), b"", memoryview(b"xdx")[1:2]],
        [memoryview(b"01234567").cast("I")],
        [memoryview(b"").cast("B")],
        [b"%d," % number for number in range(3000)],
        [os.urandom(3 * 2**20)],
    ],
    ids=["one", "none", "empty", "several", "wide", "empty-view", "many", "large"],
)
def test_what_is_put_is_there(backend, parts):
    backend.put("packs/0a", parts)
    data = b"".join(parts)
    assert backend.get("packs/0a", max_size=len(data)) == data
    assert backend.get("packs/0a", max_size=len(data) + 10) == data
    assert backend.size("packs/0a") == len(data)
    assert listed(backend) == {"packs/0a": len(data)}


def test_put_replaces(backend):
    backend.put("a", [b"a longer first"])
    backend.put("a", [b"second"])
    assert backend.get("a", max_size=100) == b"second"
    assert listed(backend) == {"a": 6}


@pytest.mark.parametrize("key", ["a", "a/b/c/d", "commits/a%2fb/0001-ff", "a." + "-" * 253, "/".join("k" * 200)])
def test_keys_of_all_shapes(backend, key):
    backend.put(key, [b"x"])
    assert backend.get(key, max_size=1) == b"x"
    assert listed(backend) == {key: 1}


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
def test_bad_keys_are_refused(backend, key):
    for call in (
        lambda: backend.put(key, [b"x"]),
        lambda: backend.put_if_absent(key, b"x"),
        lambda: backend.get(key, max_size=1),
        lambda: backend.get_range(key, 0, 1),
        lambda: backend.read_into(key, 0, memoryview(bytearray(1))),
        lambda: backend.size(key),
        lambda: backend.delete(key),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert listed(backend) == {}


def test_absent_objects(backend):
    backend.put("packs/there", [b"x"])
    for key in ("nothing", "packs/nothing", "packs/there/below", "no/such/directory", "packs"):
        for call in (
            lambda key=key: backend.get(key, max_size=1),
            lambda key=key: backend.get_range(key, 0, 1),
            lambda key=key: backend.read_into(key, 0, memoryview(bytearray(1))),
            lambda key=key: backend.size(key),
        ):
            with pytest.raises(ObjectNotFound) as caught:
                call()
            assert caught.value.key == key


def test_an_object_that_is_too_large_is_refused(backend):
    backend.put("a", [b"12345"])
    for max_size in (0, 4):
        with pytest.raises(DamagedObject, match="bytes") as caught:
            backend.get("a", max_size=max_size)
        assert caught.value.key == "a"


@pytest.mark.parametrize(("offset", "size"), [(0, 10), (0, 3), (4, 3), (9, 1), (3, 0), (10, 0)])
def test_ranges(backend, offset, size):
    backend.put("a", [b"0123456789"])
    assert backend.get_range("a", offset, size) == b"0123456789"[offset : offset + size]
    memory = bytearray(b"x" * 12)
    backend.read_into("a", offset, memoryview(memory)[1 : 1 + size])
    assert memory == b"x" + b"0123456789"[offset : offset + size] + b"x" * (11 - size)


@pytest.mark.parametrize(("offset", "size"), [(0, 11), (9, 2), (10, 1), (100, 1)])
def test_a_range_beyond_the_end_is_damage(backend, offset, size):
    backend.put("a", [b"0123456789"])
    for read in (backend.get_range, lambda key, at, size: backend.read_into(key, at, memoryview(bytearray(size)))):
        with pytest.raises(DamagedObject, match="truncated") as caught:
            read("a", offset, size)
        assert caught.value.key == "a"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (-3, 2)])
def test_a_range_that_is_none_is_refused(backend, offset, size):
    backend.put("a", [b"0123456789"])
    with pytest.raises(InvalidArgument):
        backend.get_range("a", offset, size)
    if size > 0:
        with pytest.raises(InvalidArgument):
            backend.read_into("a", offset, memoryview(bytearray(size)))


def test_a_range_of_an_empty_object(backend):
    backend.put("a", [])
    with pytest.raises(DamagedObject, match="truncated"):
        backend.get_range("a", 0, 1)


# --- listing ------------------------------------------------------------------------------------


def test_listing_by_prefix(backend):
    keys = ("cas-checkpoint", "packs/00", "packs/01", "packs2/00", "commits/default/1", "commits/other/1", "commits/x")
    for size, key in enumerate(keys):
        backend.put(key, [b"." * size])
    sizes = {key: size for size, key in enumerate(keys)}
    assert listed(backend) == sizes
    for prefix in ("packs/", "commits/", "commits/default/", "packs2/"):
        assert listed(backend, prefix) == {key: size for key, size in sizes.items() if key.startswith(prefix)}
    assert ObjectInfo("packs/01", 2) in list(backend.list("packs/"))


def test_listing_what_is_not_there(backend):
    assert listed(backend) == {}
    backend.put("packs/00", [b"x"])
    assert listed(backend, "marks/") == {}
    assert listed(backend, "no/such/directory/") == {}
    assert listed(backend, "packs/00/") == {}


@pytest.mark.parametrize("prefix", BAD_PREFIXES)
def test_bad_prefixes_are_refused(backend, prefix):
    with pytest.raises(InvalidArgument):
        backend.list(prefix)


def test_foreign_files_are_not_listed(place):
    place.backend.put("packs/00", [b"x"])
    for name in (".tmp-0123", "packs/.tmp-4567", "packs/README", "README.md~", "Packs/00", "packs/.git/00", "my file"):
        place.plant(name, b"foreign")
    assert listed(place.backend) == {"packs/00": 1}
    assert listed(place.backend, "packs/") == {"packs/00": 1}


def test_a_listing_is_never_an_old_one(place):
    assert listed(place.backend, "marks/") == {}
    place.plant("marks/1", b"from somebody else")
    assert listed(place.backend, "marks/") == {"marks/1": 18}
    place.backend.delete("marks/1")
    assert listed(place.backend, "marks/") == {}
    with pytest.raises(ObjectNotFound):
        place.backend.size("marks/1")


# --- deleting -----------------------------------------------------------------------------------


def test_delete(backend):
    backend.put("packs/00", [b"x"])
    backend.put("packs/01", [b"x"])
    backend.delete("packs/00")
    assert listed(backend) == {"packs/01": 1}
    with pytest.raises(ObjectNotFound):
        backend.get("packs/00", max_size=1)
    backend.delete("packs/00")
    backend.delete("nothing/at/all")
    backend.delete("packs/01/below")
    backend.delete("packs/01")
    assert listed(backend) == {}
    backend.put("packs/00", [b"again"])
    assert listed(backend) == {"packs/00": 5}


# --- put-if-absent ------------------------------------------------------------------------------


def test_put_if_absent(backend):
    assert backend.put_if_absent("commits/a/1", b"first") is True
    assert backend.put_if_absent("commits/a/1", b"other") is False
    assert backend.put_if_absent("commits/a/1", b"a longer other") is False
    assert backend.put_if_absent("commits/a/1", b"") is False
    assert backend.put_if_absent("commits/a/1", b"first") is True
    assert backend.get("commits/a/1", max_size=100) == b"first"
    assert listed(backend) == {"commits/a/1": 5}
    backend.delete("commits/a/1")
    assert backend.put_if_absent("commits/a/1", b"other") is True


def test_put_if_absent_of_nothing(backend):
    assert backend.put_if_absent("a", b"") is True
    assert backend.put_if_absent("a", b"") is True
    assert backend.put_if_absent("a", b"x") is False
    assert backend.get("a", max_size=1) == b""


def test_of_many_writers_one_wins(atomic):
    for number in range(25):
        key = f"commits/race/{number}"
        claims = [b"writer %d" % writer * (writer + 1) for writer in range(WRITERS)]
        outcomes = together(lambda data, key=key: atomic.put_if_absent(key, data), claims)
        assert outcomes.count(True) == 1
        assert atomic.get(key, max_size=1000) == claims[outcomes.index(True)]
    assert len(listed(atomic)) == 25


def test_many_writers_of_the_same_all_win(atomic):
    assert together(lambda data: atomic.put_if_absent("a", data), [b"the same"] * WRITERS) == [True] * WRITERS


def test_readers_see_nothing_or_all(atomic):
    sizes = (10, 2**20)
    atomic.put("a", [b"." * sizes[0]])

    def act(writes):
        for number in range(20):
            if writes:
                atomic.put("a", [b"." * sizes[number % 2]])
            else:
                assert len(atomic.get("a", max_size=2**21)) in sizes

    together(act, [True, True, False, False, False])


def test_the_probe(place, request):
    name = request.node.callspec.params["place"]
    assert probe_put_if_absent(place.backend) is (name in ATOMIC)
    assert listed(place.backend) == {}


@pytest.mark.parametrize("place", [name for name in PLACES if "memory" not in name], indirect=True)
def test_a_directory_in_the_way_is_told(place):
    place.plant("packs/00/file", b"x")
    for call in (lambda: place.backend.put("packs/00", [b"x"]), lambda: place.backend.put_if_absent("packs/00", b"x")):
        with pytest.raises(StorageError, match="packs/00"):
            call()
    assert listed(place.backend) == {"packs/00/file": 1}


# --- processes ----------------------------------------------------------------------------------


def test_pickling(backend):
    backend.put("a", [b"before"])
    other = pickle.loads(pickle.dumps(backend))
    assert type(other) is type(backend)
    assert other.url == backend.url
    assert other.get("a", max_size=10) == b"before"
    assert other.put_if_absent("b", b"after") is True
    assert listed(backend) == {"a": 6, "b": 5}


def test_use_after_a_fork(backend):
    backend.put("a", [b"before"])
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(writer, b"%s %d" % (backend.get("a", max_size=10), backend.put_if_absent("b", b"in the child")))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"before 1"
    assert os.waitpid(process, 0)[1] == 0
    assert backend.get("a", max_size=10) == b"before"
