"""What every backend must do, shown on each: local disk, memory, and file systems of fsspec."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import fsspec
import pytest

from cas_checkpoint.backends import (
    Backend,
    FsspecBackend,
    LocalBackend,
    MemoryBackend,
    generic,
    probe_put_if_absent,
)
from cas_checkpoint.errors import DamagedObject, ObjectNotFound, StorageError
from cas_checkpoint.testing import BackendConformance, SimulatedBackend


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


def listed(backend, prefix=""):
    found = list(backend.list(prefix))
    assert len(found) == len(set(found))
    return {info.key: info.size for info in found}


class Conformance(BackendConformance):
    """The public tests, of one kind of backend."""

    name = ""

    @pytest.fixture(autouse=True)
    def _places(self, tmp_path):
        self.places = (tmp_path / str(number) for number in count())

    def make_backend(self):
        place = next(self.places)
        place.mkdir()
        return PLACES[self.name](place).backend


class TestLocal(Conformance):
    name = "local"


class TestDurableLocal(Conformance):
    name = "local-durable"


class TestMemory(Conformance):
    name = "memory"


class TestFsspecInMemory(Conformance):
    name = "fsspec-memory"
    is_atomic = False


class TestFsspecOnDisk(Conformance):
    name = "fsspec-disk"
    is_atomic = False


class TestFsspecChain(Conformance):
    name = "fsspec-chain"
    is_atomic = False


class TestSimulated(BackendConformance):
    def make_backend(self):
        return SimulatedBackend()


class Forgetful(SimulatedBackend):
    """Overwrites where it should not."""

    def put_if_absent(self, key, data):
        self.put(key, [data])
        return True


def test_a_backend_that_does_not_conform_is_found():
    class Bad(BackendConformance):
        def make_backend(self):
            return Forgetful()

    with pytest.raises(AssertionError, match="must tell whether the object is ours"):
        Bad().test_put_if_absent()
    with pytest.raises(AssertionError, match="writers won"):
        Bad().test_of_many_writers_one_wins()


# --- what is said about damage ------------------------------------------------------------------


def test_an_object_cut_short_or_too_large_is_said_to_be(backend):
    backend.put("a", [b"0123456789"])
    for read in (backend.get_range, lambda key, at, size: backend.read_into(key, at, memoryview(bytearray(size)))):
        with pytest.raises(DamagedObject, match="truncated"):
            read("a", 9, 2)
    with pytest.raises(DamagedObject, match="bytes"):
        backend.get("a", max_size=9)


# --- listing ------------------------------------------------------------------------------------


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
