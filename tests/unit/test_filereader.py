"""A file of a snapshot as a stream: against the plain bytes, and how much of the store it reads for that."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from counting import Counting, read_at_once
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.errors import DamagedObject, InvalidArgument, MissingObject
from cas_checkpoint.store import Store

KIB, MIB = 2**10, 2**20


DENSE = random.Random(1).randbytes(3 * MIB) + bytes(2 * MIB) + random.Random(2).randbytes(MIB + 17)


def sparse_file(path):
    with path.open("wb") as file:
        for offset in (MIB, 3 * MIB, 3 * MIB + 128 * KIB, 6 * MIB):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(100_000))
        file.truncate(8 * MIB)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    (root / "dense").write_bytes(DENSE)
    (root / "small").write_bytes(b"0123456789")
    (root / "empty").write_bytes(b"")
    sparse_file(root / "sparse")
    with (root / "hole").open("wb") as file:
        file.truncate(3 * MIB)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory, tree):
    made = Store.open(tmp_path_factory.mktemp("place") / "store", create=True, durable=False, workers=2)
    made.save(tree)
    made.save({"small": b"0123456789"}, series="inline")
    return made


@pytest.fixture
def counting(store):
    other = Store.open(store.url)
    other._backend = Counting(store.url)
    return other


FILES = ["dense", "small", "empty", "sparse", "hole"]


@pytest.mark.parametrize("name", FILES)
def test_the_whole_file(store, tree, name):
    expected = (tree / name).read_bytes()
    assert store.latest().read_bytes(name) == expected
    with store.latest().open(name) as file:
        assert b"".join(iter(lambda: file.read(99_991), b"")) == expected
        assert file.read() == b""
        assert file.tell() == len(expected)
        file.raw.seek(0)
        assert file.raw.readall() == expected


operations = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 400_000)),
    st.tuples(st.just("read1"), st.integers(0, 400_000)),
    st.tuples(st.just("readinto"), st.integers(0, 400_000)),
    st.tuples(st.just("seek"), st.integers(0, 9 * MIB)),
    st.tuples(st.just("from-end"), st.integers(-9 * MIB, 1000)),
    st.tuples(st.just("from-here"), st.integers(-MIB, MIB)),
)


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(FILES), steps=st.lists(operations, max_size=12), buffered=st.booleans())
def test_as_any_file_on_the_disk(store, tree, name, steps, buffered):
    snapshot = store.latest()
    with (tree / name).open("rb") as expected, snapshot.open(name) as opened:
        found = opened if buffered else opened.raw
        for step, number in steps:
            if step == "read":
                data = found.read(number)
                assert data == expected.read(len(data) if number > 0 else number)
                assert data or number == 0 or expected.read(1) == b""
                expected.seek(found.tell())
            elif step == "read1":
                data = opened.read1(number) if buffered else found.read(number)
                assert data == expected.read(len(data))
            elif step == "readinto":
                buffer = bytearray(number)
                size = found.readinto(buffer)
                assert bytes(buffer[:size]) == expected.read(size)
            else:
                whence = {"seek": io.SEEK_SET, "from-end": io.SEEK_END, "from-here": io.SEEK_CUR}[step]
                size = os.fstat(expected.fileno()).st_size
                start = {"seek": 0, "from-end": size, "from-here": expected.tell()}[step]
                if start + number < 0:
                    with pytest.raises((InvalidArgument, OSError)):
                        found.seek(number, whence)
                    found.seek(expected.tell())
                else:
                    assert found.seek(number, whence) == expected.seek(number, whence)
            assert found.tell() == expected.tell()


def test_lines(store):
    text = b"first\nsecond\r\n\nlast"
    with store.save(text, series="lines").open("_dst_cp") as file:
        assert list(file) == [b"first\n", b"second\r\n", b"\n", b"last"]


def test_seeks_that_lead_nowhere(store):
    with store.latest().open("small") as file:
        with pytest.raises((InvalidArgument, ValueError)):
            file.seek(-1)
        with pytest.raises(InvalidArgument):
            file.raw.seek(-1)
        with pytest.raises(InvalidArgument):
            file.raw.seek(0, 7)
        assert file.seek(1000) == 1000
        assert file.read() == b""


def test_only_the_chunks_that_are_read_are_fetched(counting, tree):
    snapshot = counting.latest()
    requests = counting._backend.requests
    with snapshot.open("dense") as file:
        requests.clear()  # what it took to find the file
        file.seek(MIB)
        data = file.raw.read(100)
        assert data == DENSE[MIB : MIB + 100]
        assert len(requests) == 1
        assert requests[0] <= MIB + 1
        file.raw.seek(MIB)
        assert file.raw.read(100) == data
        assert len(requests) == 1  # the chunk was kept


def test_reading_from_end_to_end_fetches_each_chunk_once(counting):
    snapshot = counting.latest()
    entry = next(entry for entry in snapshot.entries() if entry.path == b"dense")
    refs = list(snapshot.reader().refs(entry.content))
    with snapshot.open("dense") as file:
        requests = counting._backend.requests
        requests.clear()
        while file.read(10_000):
            pass
        assert len(requests) <= len(refs)
        assert sum(requests) < len(DENSE) * 1.01


def test_a_hole_is_read_without_any_request(counting, tree):
    snapshot = counting.latest()
    for name, offset in (("hole", 0), ("sparse", 7 * MIB), ("sparse", 0)):
        with snapshot.open(name) as file:
            counting._backend.requests.clear()
            file.seek(offset)
            assert file.raw.read(500_000) == bytes(500_000)
            assert counting._backend.requests == []


def test_a_small_snapshot_is_read_without_any_request(counting):
    assert counting.latest("inline").read_bytes("small") == b"0123456789"
    assert counting._backend.requests == []


def test_few_chunks_are_kept_in_memory(store):
    with store.latest().open("dense") as file:
        while file.raw.read(100_000):
            assert len(file.raw._kept) <= 4


def test_damage_is_raised_while_reading_and_the_rest_can_be_read(tmp_path):
    store = Store.open(tmp_path / "store", create=True, durable=False)
    data = random.Random(3).randbytes(4 * MIB)
    snapshot = store.save(data)
    (pack,) = store._backend.list("packs/")
    path = Path(store.url, pack.key)
    stored = bytearray(path.read_bytes())
    stored[2 * MIB] ^= 0x10
    path.write_bytes(stored)
    with snapshot.open("_dst_cp") as file:
        assert file.read(1000) == data[:1000]
        with pytest.raises(DamagedObject, match=pack.key):
            file.read()
        file.seek(-1000, io.SEEK_END)
        assert file.read() == data[-1000:]
    path.unlink()
    with pytest.raises(MissingObject, match=pack.key):
        snapshot.open("_dst_cp")


def test_threads_may_read_one_snapshot_at_once(store, tree):
    snapshot = store.latest()

    def read(seed):
        chooser = random.Random(seed)
        with snapshot.open("dense") as file:
            for _ in range(20):
                offset = chooser.randrange(len(DENSE))
                file.seek(offset)
                assert file.read(1000) == DENSE[offset : offset + 1000]

    read_at_once(read)
