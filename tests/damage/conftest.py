"""A small store with every kind of object in it, made once and copied for each test."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cas_checkpoint.errors import CasCheckpointError
from cas_checkpoint.store import Store


def noise(size, seed):
    return random.Random(seed).randbytes(size)


CONTENTS = {
    "first": {"a": noise(150_000, 1), "text": b"all work and no play\n" * 8000, "sub/empty": b""},
    "second": {"a": noise(150_000, 1), "other": noise(140_000, 2)},  # needs the first one's pack, and one of its own
    "small": {"note": b"a few bytes", "table": bytes(range(256)) * 20},
    "tiny": {"note": b"other bytes"},
}


class Damaged:
    """A copy of the store, to be damaged, and what was saved in it."""

    def __init__(self, root, ids, scratch):
        self.root, self.ids, self.scratch = Path(root), ids, Path(scratch)

    def open(self):
        return Store.open(self.root, durable=False, workers=2)

    def path(self, kind):
        """Return where the object of that kind is that belongs to one of the snapshots."""
        if kind == "header":
            return self.root / "cas-checkpoint"
        if kind == "pack":
            (pack,) = {ref.pack for ref in self.open().snapshot(self.ids["first"]).reader().manifest().packs}
            return self.root / "packs" / pack.hex()
        if kind in ("index", "manifest"):
            return self.root / {"index": "index", "manifest": "manifests"}[kind] / self.ids["first"]
        series = {"commit": "first", "inline commit": "small"}[kind]
        (path,) = (self.root / "commits" / series).iterdir()
        return path

    def other(self, kind):
        """Return where another object of that kind is; another kind's where there is only one."""
        if kind == "header":
            return self.path("manifest")
        if kind == "pack":
            return next(path for path in (self.root / "packs").iterdir() if path != self.path("pack"))
        if kind in ("index", "manifest"):
            return self.path(kind).with_name(self.ids["second"])
        (path,) = (self.root / "commits" / {"commit": "second", "inline commit": "tiny"}[kind]).iterdir()
        return path

    def outcome(self, store, series):
        """Restore a snapshot; return None if it is right, else the error. Wrong data fails the test."""
        target = self.scratch / "target"
        shutil.rmtree(target, ignore_errors=True)
        error = None
        try:
            store.restore(self.ids[series], target)
        except CasCheckpointError as caught:
            error = caught
        expected = CONTENTS[series]
        found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        for name, data in found.items():
            assert data == expected[name], f"{series}: {name} was restored with wrong data"
        if error is None:
            assert found.keys() == expected.keys()
        return error

    def read(self, store, series):
        """Read all files of a snapshot one by one; return the errors. Wrong data fails the test."""
        errors = []
        for name, data in CONTENTS[series].items():
            try:
                assert store.snapshot(self.ids[series]).read_bytes(name) == data, f"{series}: {name} was read wrongly"
            except CasCheckpointError as error:
                errors.append(error)
        return errors


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original") / "store"
    store = Store.open(root, create=True, durable=False, workers=1)
    return root, {series: store.save(source, series=series).id for series, source in CONTENTS.items()}


@pytest.fixture
def damaged(original, tmp_path):
    """A fresh copy of the store."""
    root, ids = original
    shutil.copytree(root, tmp_path / "store")
    return Damaged(tmp_path / "store", ids, tmp_path)
