"""Bits of every kind of object, flipped one by one: each is found, none is passed on, and most are repaired.

`tools/bit_rot.py` does the same with every single bit.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cas_checkpoint import saving
from cas_checkpoint.errors import CasCheckpointError
from cas_checkpoint.store import Store

STRIDE = 61  # prime, so that it meets all bits of a byte in turn
KINDS = ["cas-checkpoint", "packs", "index", "manifests", "commits/s", "commits/t", "moves", "marks"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A store of a few hundred bytes an object, with a move and a closed mark; and what its snapshots hold."""
    place = tmp_path_factory.mktemp("tiny") / "store"
    choose = random.Random(1)
    files = {"a": choose.randbytes(300), "b": b"text " * 100, "empty": b""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "MAX_INLINE_SIZE", 0)
        store = Store.open(place, create=True, durable=False, workers=1)
        dropped = store.save(files | {"more": choose.randbytes(2000)}, series="s")
        saved = {store.save(files | {"own": b"x"}, series="s").id: files | {"own": b"x"}}
        store.forget(dropped)
        store.collect(repack=0.1)
    saved[store.save({"inline": b"carried"}, series="t").id] = {"inline": b"carried"}
    assert store.verify().ok
    assert all((place / kind).exists() for kind in KINDS)
    return place, saved


def outcomes(store, saved):
    """Read all files; tell for each whether it was to be had. Wrong data fails the test."""
    for name, files in saved.items():
        for path, data in files.items():
            try:
                found = store.snapshot(name).read_bytes(path)
            except CasCheckpointError:
                yield False
            else:
                assert found == data
                yield True


def objects_of(place, kind):
    """Return the objects of a kind; of those that are alike only one."""
    if (place / kind).is_file():
        return [place / kind]
    found = sorted((place / kind).iterdir())
    return found if kind == "marks" else found[:1]


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_are_found_and_never_passed_on(tiny, tmp_path, kind):
    place, saved = tiny
    copy = tmp_path / "store"
    shutil.copytree(place, copy)
    opened = Store.open(copy, durable=False, workers=1)
    flips = 0
    for original in objects_of(place, kind):
        path, whole = copy / original.relative_to(place), original.read_bytes()
        for bit in range(0, 8 * len(whole), STRIDE):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            assert not opened.verify(depth="data").ok, f"{path.name}, bit {bit}"
            list(outcomes(opened, saved))
            flips += 1
        path.write_bytes(whole)
    assert flips > 10
    assert opened.verify().ok


@pytest.mark.parametrize("kind", KINDS[1:])
def test_flipped_bits_in_all_but_the_data_are_repaired(tiny, tmp_path, kind):
    place, saved = tiny
    original = objects_of(place, kind)[0]
    whole = original.read_bytes()
    for bit in range(3, 8 * len(whole), 8 * len(whole) // 6):
        copy = tmp_path / str(bit)
        shutil.copytree(place, copy)
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        Path(copy, original.relative_to(place)).write_bytes(data)
        store = Store.open(copy, durable=False, workers=1)
        report = store.repair()
        assert report.left == ()
        assert store.verify().lost == report.lost
        assert all(outcomes(store, saved)) is report.ok
        if kind != "packs":
            assert report.ok
            assert store.verify().ok
