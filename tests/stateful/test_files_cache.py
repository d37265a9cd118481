"""With the files cache a save holds the tree as it is, whatever was done to it since the saves before."""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cas_checkpoint import filescache
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.store import Store

KIB, MIB = 2**10, 2**20
SOON = time.time_ns() + 3600 * 10**9  # files of a later time are read again each time
PAUSE = 0.012  # longer than any tick of the clock of files
PATHS = ["a", "a!", "a/b", "a/b/c", "d/big", "d/e", "d/é", "m", "y/link", "z", "z0"]
FIRST = {"a/b": 3000, "d/big": 1_200_000, "d/e": 0, "m": 200_000, "y/x": 500, "z": 40_000}


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


class Tree:
    """A tree to be edited."""

    def __init__(self, root):
        self.root = root
        for number, (path, size) in enumerate(FIRST.items()):
            self.write(path, size, number)
        os.link(self.at("z"), self.spot("y/twin"))

    def at(self, path):
        return os.path.join(self.root, path)

    def spot(self, path):
        """Return where `path` is, with directories to hold it and nothing in its place."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            parent = self.at("/".join(parts[:count]))
            if os.path.islink(parent) or not os.path.isdir(parent):
                with suppress(FileNotFoundError):
                    os.unlink(parent)
                os.makedirs(parent)
        full = self.at(path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        with suppress(FileNotFoundError):
            os.unlink(full)
        return full

    def exists(self, path):
        """Tell whether there is a file or directory, not reached by a symlink."""
        parts = path.split("/")
        steps = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        return os.path.lexists(self.at(path)) and not any(os.path.islink(self.at(step)) for step in steps)

    # --- edits ---

    def write(self, path, size, seed):
        with open(self.spot(path), "wb") as file:
            file.write(noise(size, seed))

    def patch(self, path, where, data, *, keep_time):
        """Change some bytes; with `keep_time` neither size nor time tells of it."""
        if not self.exists(path) or not os.path.isfile(self.at(path)):
            return
        info = os.stat(self.at(path))
        with open(self.at(path), "r+b") as file:
            file.seek(int(where * max(0, info.st_size - len(data))))
            file.write(data[: info.st_size] if keep_time else data)
        if keep_time:
            os.utime(self.at(path), ns=(0, info.st_mtime_ns))

    def delete(self, path, *, keep_time):
        parent = os.path.dirname(self.at(path))
        if self.exists(path):
            info = os.stat(parent)
            self.spot(path)
            if keep_time:
                os.utime(parent, ns=(0, info.st_mtime_ns))

    def rename(self, path, other):
        if self.exists(path) and not f"{other}/".startswith(f"{path}/") and not f"{path}/".startswith(f"{other}/"):
            aside = self.root + "-aside"
            os.rename(self.at(path), aside)
            os.rename(aside, self.spot(other))

    def link(self, path, other):
        if self.exists(path) and os.path.isfile(self.at(path)) and not f"{path}/".startswith(f"{other}/"):
            aside = self.root + "-aside"
            os.link(self.at(path), aside)
            os.rename(aside, self.spot(other))
            with suppress(FileNotFoundError):  # where both were names of one file
                os.unlink(aside)

    def symlink(self, path, goal):
        os.symlink(goal, self.spot(path))

    def directory(self, path):
        os.mkdir(self.spot(path))

    def touch(self, path, mode, time_ns):
        if self.exists(path):
            os.chmod(self.at(path), mode)
            os.utime(self.at(path), ns=(0, time_ns))

    def sparse(self, path, seed):
        with open(self.spot(path), "wb") as file:
            file.seek(MIB)
            file.write(noise(10_000, seed))
            file.truncate(2 * MIB)

    def nothing(self):
        pass


def edit(name, *arguments, **options):
    return st.tuples(st.just(name), st.tuples(*arguments), st.fixed_dictionaries(options))


paths = st.sampled_from(PATHS)
edits = st.one_of(
    edit("nothing"),
    edit("write", paths, st.sampled_from([0, 1, 3000, 200_000, 1_200_000]), st.integers(0, 5)),
    edit("patch", paths, st.floats(0, 1), st.binary(min_size=1, max_size=9), keep_time=st.booleans()),
    edit("patch", st.sampled_from(sorted(FIRST)), st.floats(0, 1), st.just(b"!!!"), keep_time=st.just(True)),
    edit("delete", paths, keep_time=st.booleans()),
    edit("delete", st.sampled_from(sorted(FIRST)), keep_time=st.just(True)),
    edit("rename", paths, paths),
    edit("link", paths, paths),
    edit("symlink", paths, st.sampled_from(["a", "/nowhere", "../m"])),
    edit("directory", paths),
    edit("touch", paths, st.sampled_from([0o700, 0o755, 0o1777]), st.integers(-(2**31) * 10**9, 2**61)),
    edit("sparse", paths, st.integers(0, 2)),
)
STRANGE_SAVES = ["plain"] * 6 + ["no cache", "owner", "other process", "other source", "cache lost"]


def listing(root):
    """Return by path all that is to be seen of a tree."""
    found, groups = {}, {}
    stack = [""]
    while stack:
        path = stack.pop()
        full = os.path.join(root, path) if path else root
        info = os.lstat(full)
        kind, content = stat.S_IFMT(info.st_mode), None
        if kind == stat.S_IFDIR:
            stack += [os.path.join(path, name) for name in os.listdir(full)]
        elif kind == stat.S_IFLNK:
            content = os.readlink(full)
        else:
            with open(full, "rb") as file:
                content = file.read()
            groups.setdefault(info.st_ino, []).append(path)
        mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(info.st_mode)
        found[path] = (kind, mode, info.st_mtime_ns, content)
    links = {path: frozenset(group) for group in groups.values() for path in group}
    return {path: (*seen, links.get(path)) for path, seen in found.items()}


class Reads(Monitor):
    def __init__(self):
        self.total = 0

    def read(self, size):
        self.total += size


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filescache, "_RACY", 0)
        yield


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.lists(edits, max_size=2), st.sampled_from(STRANGE_SAVES)), min_size=1, max_size=6))
@example(steps=[([("delete", ("a/b",), {"keep_time": True})], "plain"), ([], "plain")])
@example(steps=[([("patch", ("m", 0.5, b"!!!"), {"keep_time": True})], "plain")] * 2)
@example(steps=[([("rename", ("y", "b"), {})], "plain"), ([("rename", ("b", "y"), {})], "plain")])
def test_every_save_holds_the_tree_as_it_is(steps):
    place = tempfile.mkdtemp()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CAS_CHECKPOINT_CACHE", os.path.join(place, "caches"))
            tree = Tree(os.path.join(place, "tree"))
            store = Store.open(os.path.join(place, "store"), create=True, durable=False, workers=1)
            saved = [(save(store, tree, place, "plain"), listing(tree.root))]
            for changes, how in steps:
                for name, arguments, options in changes:
                    getattr(tree, name)(*arguments, **options)
                snapshot = save(store, tree, place, how)
                saved.append((snapshot, listing(tree.root)))
                restored(store, *saved[-1], place)
            again, reads = save(store, tree, place, "plain"), Reads()
            assert list(store.save(tree.root, monitor=reads).entries()) == list(again.entries())
            if again.reader().inline_size() is None and max(entry.mtime_ns for entry in again.entries()) < SOON:
                assert reads.total == 0
            for snapshot, expected in saved:  # what was saved before is as it was
                restored(store, snapshot, expected, place)
            report = store.verify()
            assert report.ok, report.problems
            assert report.garbage_objects == 0
    finally:
        shutil.rmtree(place)


def save(store, tree, place, how):
    if how == "other process":
        store = Store.open(store.url, durable=False, workers=2)
    elif how == "other source":
        other = os.path.join(place, "other")
        os.makedirs(other, exist_ok=True)
        with open(os.path.join(other, "m"), "wb") as file:
            file.write(noise(300_000, 9))
        store.save(other)
    elif how == "cache lost":
        shutil.rmtree(os.path.join(place, "caches"), ignore_errors=True)
    snapshot = store.save(tree.root, files_cache=how != "no cache", owner=how == "owner")
    assert snapshot.warnings == ()
    time.sleep(PAUSE)  # before the next edits: or these could have the time of what was saved
    return snapshot


def restored(store, snapshot, expected, place):
    target = os.path.join(place, "target")
    assert store.restore(snapshot, target).notices == ()
    assert listing(target) == expected
    shutil.rmtree(target)
