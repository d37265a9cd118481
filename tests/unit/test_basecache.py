"""The cache of bases: right or nothing, whatever happens to its files, and never larger than it may be."""

from __future__ import annotations

import os
import random

import pytest

from cas_checkpoint.basecache import BaseCache
from cas_checkpoint.ids import chunk_id

CHUNKS = [random.Random(number).randbytes(1000) for number in range(5)]


@pytest.fixture
def cache(tmp_path):
    return BaseCache(tmp_path / "bases", limit=3000)


def files(tmp_path):
    return [path for path in (tmp_path / "bases").rglob("*") if path.is_file()]


def test_what_was_put_is_there(cache):
    cache.put(chunk_id(CHUNKS[0]), CHUNKS[0])
    assert cache.get(chunk_id(CHUNKS[0]), 1000) == CHUNKS[0]
    assert cache.get(chunk_id(CHUNKS[1]), 1000) is None


@pytest.mark.parametrize("data", [b"", CHUNKS[1], CHUNKS[0][:-1], CHUNKS[0] + b"x"])
def test_what_was_altered_is_not_believed(cache, tmp_path, data):
    cache.put(chunk_id(CHUNKS[0]), CHUNKS[0])
    (file,) = files(tmp_path)
    file.write_bytes(data)
    assert cache.get(chunk_id(CHUNKS[0]), 1000) is None


def test_the_least_recently_used_go_first(cache, tmp_path):
    for number, data in enumerate(CHUNKS):
        cache.put(chunk_id(data), data)
        os.utime(tmp_path / "bases" / chunk_id(data).hex()[:2] / chunk_id(data).hex(), (number, number))
    assert cache.get(chunk_id(CHUNKS[0]), 1000)
    cache.trim()
    assert [cache.get(chunk_id(data), 1000) is not None for data in CHUNKS] == [True, False, False, True, True]


def test_a_directory_that_cannot_be_used_is_no_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = BaseCache(tmp_path / "file" / "bases", limit=10)
    cache.put(chunk_id(CHUNKS[0]), CHUNKS[0])
    assert cache.get(chunk_id(CHUNKS[0]), 1000) is None
    cache.trim()
