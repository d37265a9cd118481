"""Whatever is saved comes back bit for bit, whatever was saved and restored before, into whatever was there."""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
import uuid
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cas_checkpoint.errors import TargetObstructed
from cas_checkpoint.footers import read_footer
from cas_checkpoint.store import Store
from cas_checkpoint.testing.strategies import moved_tensors, tensor_file
from cas_checkpoint.transactions import list_packs

KIB, MIB = 2**10, 2**20

# --- trees: how to draw, build and compare them -------------------------------------------------

HOSTILE_NAMES = [
    b"-rf", b"--", b" ", b"\n", b"\t\r", b"\xff\xfe", b"\x80", b"\x01", b"...", b".hidden", b"~", b"*", b"a\\b",
    b"'\"`$(x)", "\u00e9".encode(), "e\u0301".encode(), "\u202e\u200b".encode(), "\U0001f642".encode(), b"con", b"NUL",
    b"A", b"a", b"a!", b"a-b", b"a.", b"a0", b"a b", b"a\xff", b"x" * 255, b".tmp-0123", b"cas-checkpoint", b"latest",
    b"%2e%2e",
]  # fmt: skip
"""`a!`, `a-b` and `a.` sort before `a/...` as bytes, and after it component by component."""

SIZES = [
    0, 1, 2, 100, 4095, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB - 100, 128 * KIB, 128 * KIB + 1, 256 * KIB,
    MIB - 1, MIB, MIB + 1,
]  # fmt: skip

TIMES = st.one_of(
    st.sampled_from([0, -1, 1, -999_999_999, -1_000_000_000, 1_700_000_000_123_456_789]),
    st.integers(-(2**31) * 10**9, 4 * 10**18),
)

names = st.one_of(
    st.sampled_from(HOSTILE_NAMES),
    st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_")),
).filter(lambda name: name not in (b".", b".."))

files = st.tuples(st.just("file"), st.sampled_from(SIZES), st.integers(0, 3))
sparse = st.tuples(st.just("sparse"), st.lists(st.integers(0, 40), max_size=4), st.integers(0, 3))
symlinks = st.tuples(
    st.just("symlink"),
    st.sampled_from([b".", b"..", b"/", b"/nowhere", b"a", b"../..", b"x" * 1000, b"\xff\n", b"self/loop"]),
    st.none(),
)
hardlinks = st.tuples(st.just("hardlink"), st.integers(0, 5), st.none())
nodes = st.one_of(files, files, sparse, symlinks, hardlinks)
attributes = st.dictionaries(st.sampled_from([b"user.a", b"user.\xff"]), st.binary(max_size=50), max_size=2)
trees = st.recursive(
    st.dictionaries(names, st.tuples(nodes, st.integers(0, 0o7777), TIMES, attributes), max_size=4),
    lambda children: st.dictionaries(
        names,
        st.tuples(st.one_of(nodes, children), st.integers(0, 0o7777), TIMES, attributes),
        max_size=4,
    ),
    max_leaves=12,
)


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def build(root, tree, made=None):
    """Make a tree as it was drawn; what the file system does not take is left out."""
    made = [] if made is None else made
    os.makedirs(root, exist_ok=True)
    for name, (node, mode, time_ns, xattrs) in tree.items():
        path = os.path.join(root, name)
        if isinstance(node, dict):
            build(path, node, made)
        elif node[0] == "symlink":
            os.symlink(node[1], path)
            os.utime(path, ns=(0, time_ns), follow_symlinks=False)
            continue
        elif node[0] == "hardlink" and made:
            os.link(made[node[1] % len(made)], path)
        else:
            _make_file(path, node)
            made.append(path)
        for key, value in xattrs.items():
            with suppress(OSError, AttributeError):  # not every file system has them
                os.setxattr(path, key, value)
        os.chmod(path, mode | (0o700 if os.geteuid() else 0))
        os.utime(path, ns=(0, time_ns))


def _make_file(path, node):
    kind, what, seed = node
    with open(path, "wb") as file:
        if kind == "file":
            file.write(noise(what, seed))
        elif kind == "sparse":
            for block in what:
                file.seek(block * 128 * KIB)
                file.write(noise(5000, seed + block))
            file.truncate(max([*what, 0]) * 128 * KIB + 300_000)


def _xattrs(path):
    try:
        return {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
    except (OSError, AttributeError):
        return {}


def listing(root):
    """Return by path all that is to be seen of a tree: type, mode, time, content, attributes, and other names."""
    found, groups = {}, {}
    stack = [b""]
    while stack:
        path = stack.pop()
        full = os.path.join(root, path) if path else root
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        content = None
        if kind == stat.S_IFDIR:
            stack += [os.path.join(path, name) for name in os.listdir(full)]
        elif kind == stat.S_IFLNK:
            content = os.readlink(full)
        elif kind == stat.S_IFREG:
            with open(full, "rb") as file:
                content = file.read()
            groups.setdefault((status.st_dev, status.st_ino), []).append(path)
        mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode)
        found[path] = (kind, mode, status.st_mtime_ns, content, _xattrs(full))
    links = {path: frozenset(group) for group in groups.values() for path in group}
    return {path: (*seen, links.get(path, frozenset())) for path, seen in found.items()}


def blocks(root):
    """Return how much room each file takes on the disk, in bytes."""
    return {
        os.path.join(at, name): os.lstat(os.path.join(at, name)).st_blocks * 512
        for at, _, found in os.walk(root)
        for name in found
    }


# --- one tree -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores():
    place = tempfile.mkdtemp()
    yield [
        Store.open(os.path.join(place, "store"), create=True, durable=False, workers=2),
        Store.open(f"memory://round-trips-{uuid.uuid4().hex}", create=True, workers=1),
    ]
    shutil.rmtree(place)


def remove(place):
    """Remove a tree, whatever its modes are."""
    for at, directories, _ in os.walk(place):
        for name in directories:
            if not os.path.islink(os.path.join(at, name)):
                os.chmod(os.path.join(at, name), 0o700)
    shutil.rmtree(place)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=trees, root_time=TIMES, which=st.integers(0, 1))
def test_any_tree_comes_back(stores, tree, root_time, which):
    place = os.fsencode(tempfile.mkdtemp())
    store = stores[which]
    try:
        source, target = os.path.join(place, b"source"), os.path.join(place, b"target")
        build(source, tree)
        os.utime(source, ns=(0, root_time))
        before = listing(source)
        snapshot = store.save(os.fsdecode(source))
        assert snapshot.warnings == ()
        assert listing(source) == before  # saving leaves no trace
        assert [entry.path for entry in snapshot.entries()] == sorted(
            before, key=lambda path: path.replace(b"/", b"\0")
        )
        result = store.restore(snapshot, os.fsdecode(target))
        assert result.notices == ()
        assert listing(target) == before
        taken, given_ = blocks(source), blocks(target)
        assert all(given_[name.replace(source, target, 1)] <= size + 64 * KIB for name, size in taken.items())

        again = store.save(os.fsdecode(target))  # the same tree elsewhere
        assert (again.stats.chunks_new == 0) or again.reader().inline_size() is not None
        assert list(again.entries()) == list(snapshot.entries())
        assert store.restore(snapshot, os.fsdecode(target), exact=True).notices == ()
        assert listing(target) == before
    finally:
        remove(place)


@settings(max_examples=60, deadline=None)
@given(
    mapping=st.dictionaries(
        st.lists(names, min_size=1, max_size=3).map(b"/".join), st.sampled_from(SIZES), max_size=6
    ).filter(lambda found: not any(b.startswith(a + b"/") for a in found for b in found)),
    which=st.integers(0, 1),
)
def test_any_mapping_comes_back(stores, mapping, which):
    store = stores[which]
    source = {path: noise(size, number) for number, (path, size) in enumerate(mapping.items())}
    snapshot = store.save(source)
    assert {entry.path: snapshot.read_bytes(entry.path) for entry in snapshot.entries()} == source
    with tempfile.TemporaryDirectory() as place:
        store.restore(snapshot, place)
        root = os.fsencode(place)
        for path, data in source.items():
            with open(os.path.join(root, path), "rb") as file:
                assert file.read() == data


@settings(max_examples=20, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["insert", "remove", "flip"]), st.integers(1, 5000)), max_size=4
    )
)
def test_few_edits_of_a_large_file_store_few_chunks(stores, edits):
    """Each edit costs the chunks that it touches and those until the cuts agree again: at most four a piece."""
    store = stores[0]
    data = noise(6 * MIB, 77)
    store.save(data)
    changed = bytearray(data)
    for where, how, size in edits:
        at = int(where * len(changed))
        if how == "insert":
            changed[at:at] = noise(size, at)
        elif how == "remove":
            del changed[at : at + size]
        elif at < len(changed):
            changed[at] ^= 0xFF
    snapshot = store.save(changed)
    assert snapshot.stats.chunks_new <= 4 * len(edits)
    assert snapshot.read_bytes("_dst_cp") == changed


# --- many saves and restores --------------------------------------------------------------------

PATHS = [
    b"a",
    b"a!",
    b"a/b",
    b"a/b/c",
    b"a/x\n",
    b"\xff/y",
    b"-",
    b"z",
    b"z0",
    "d/\u00e9".encode(),
    "d/e\u0301".encode(),
]


TENSORS = [b"a", b"d/e", b"z"]  # paths of files of tensors: few, so that these move


class Histories(RuleBasedStateMachine):
    """Edits a tree, saves it, and restores what was saved at any time, into new trees and over others."""

    @initialize(memory=st.booleans())
    def start(self, memory):
        self.place = os.fsencode(tempfile.mkdtemp())
        self.source = os.path.join(self.place, b"source")
        self.work = os.path.join(self.place, b"work")
        os.mkdir(self.source)
        self.url = f"memory://history-{uuid.uuid4().hex}" if memory else os.path.join(os.fsdecode(self.place), "store")
        self.store = Store.open(self.url, create=True, durable=False, workers=2)
        self.saved = []
        self.write(b"a/b", 200_000, 0)
        self.write(b"z", 1000, 1)
        for other in (b"z0", b"d/link"):
            os.link(os.path.join(self.source, b"z"), self.spot(other))
        self.save("default")

    def teardown(self):
        if not hasattr(self, "place"):
            return
        try:
            report = self.store.verify()
            assert report.ok, report.problems
            assert report.garbage_objects == 0
            assert report.snapshots == len(self.saved)
            for ref, expected in self.saved:
                self.restored_alone(ref, expected)
        finally:
            shutil.rmtree(self.place)

    def restored_alone(self, ref, expected):
        target = os.path.join(self.place, b"new")
        self.store.restore(ref, os.fsdecode(target))
        assert listing(target) == expected
        shutil.rmtree(target)

    def spot(self, path, *, root=None):
        """Return where `path` is, with a directory to hold it and nothing in its place."""
        root = self.source if root is None else root
        parts = path.split(b"/")
        for count in range(1, len(parts)):
            parent = os.path.join(root, *parts[:count])
            if not os.path.isdir(parent) or os.path.islink(parent):
                with suppress(FileNotFoundError):
                    os.unlink(parent)
                os.makedirs(parent)
        full = os.path.join(root, path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        with suppress(FileNotFoundError):
            os.unlink(full)
        return full

    # --- edits ---

    @rule(path=st.sampled_from(PATHS), size=st.sampled_from([0, 1, 1000, 64 * KIB, 200_000]), seed=st.integers(0, 5))
    def write(self, path, size, seed):
        with open(self.spot(path), "wb") as file:
            file.write(noise(size, seed))

    @rule(path=st.sampled_from(TENSORS), kind=st.sampled_from(["npy", "safetensors"]), large=st.booleans())
    def write_tensors(self, path, kind, large):
        with open(self.spot(path), "wb") as file:
            file.write(tensor_file(kind, 1_200_000 if large else 80_000, 1))

    @rule(path=st.sampled_from(TENSORS), seed=st.integers(0, 3))
    def move_tensors(self, path, seed):
        full = os.path.join(self.source, path)
        if os.path.isfile(full) and not os.path.islink(full):
            with open(full, "r+b") as file:
                data = moved_tensors(file.read(), seed)
                file.seek(0)
                file.write(data)

    @rule(path=st.sampled_from(PATHS), seed=st.integers(0, 2))
    def write_sparse(self, path, seed):
        with open(self.spot(path), "wb") as file:
            file.seek(MIB)
            file.write(noise(10_000, seed))
            file.truncate(2 * MIB)

    @rule(path=st.sampled_from(PATHS), data=st.binary(min_size=1, max_size=20), at=st.floats(0, 1))
    def change(self, path, data, at):
        full = os.path.join(self.source, path)
        if os.path.isfile(full) and not os.path.islink(full):
            with open(full, "r+b") as file:
                file.seek(int(at * os.path.getsize(full)))
                file.write(data)

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path):
        if os.path.lexists(os.path.dirname(os.path.join(self.source, path))):
            self.spot(path)

    @rule(path=st.sampled_from(PATHS))
    def make_directory(self, path):
        os.mkdir(self.spot(path))

    @rule(path=st.sampled_from(PATHS), goal=st.sampled_from([b"a", b"/nowhere", b"..", b"a/b/c"]))
    def make_symlink(self, path, goal):
        os.symlink(goal, self.spot(path))

    @rule(path=st.sampled_from(PATHS), other=st.sampled_from(PATHS))
    def make_hardlink(self, path, other):
        full = os.path.join(self.source, path)
        if path == other or other.startswith(path + b"/") or path.startswith(other + b"/"):
            return
        if os.path.isfile(full) and not os.path.islink(full) and not os.path.islink(os.path.dirname(full)):
            kept = os.path.join(self.place, b"kept")
            os.link(full, kept)
            os.link(kept, self.spot(other))
            os.unlink(kept)

    @rule(path=st.sampled_from(PATHS), mode=st.sampled_from([0o700, 0o755, 0o1777, 0o4711]), time=TIMES)
    def touch(self, path, mode, time):
        full = os.path.join(self.source, path)
        if os.path.lexists(full) and not os.path.islink(full):
            os.chmod(full, mode)
            os.utime(full, ns=(0, time))

    @rule()
    def spoil(self):
        """Change every file that was restored, but neither its size nor its time."""
        for at, _, found in os.walk(self.work):
            for name in found:
                full = os.path.join(at, name)
                status = os.lstat(full)
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    with open(full, "r+b") as file:
                        last = file.read()[-1]
                        file.seek(-1, os.SEEK_END)
                        file.write(bytes([last ^ 1]))
                    os.utime(full, ns=(0, status.st_mtime_ns))

    # --- saves ---

    @rule(series=st.sampled_from(["default", "other"]))
    def save(self, series):
        snapshot = self.store.save(os.fsdecode(self.source), series=series)
        assert self.store.latest(series) == snapshot
        self.saved.append((snapshot.id, listing(self.source)))

    @rule()
    def save_again(self):
        snapshot = self.store.save(os.fsdecode(self.source))
        self.saved.append((snapshot.id, listing(self.source)))
        once_more = self.store.save(os.fsdecode(self.source))
        self.saved.append((once_more.id, self.saved[-1][1]))
        if once_more.reader().inline_size() is None:
            assert once_more.stats.chunks_new == 0
            assert once_more.stats.objects_written == 2

    @rule(forget_index=st.booleans())
    def reopen(self, forget_index):
        if forget_index:  # it is a cache
            for item in list(self.store._backend.list("index/")):
                self.store._backend.delete(item.key)
        self.store = Store.open(self.url, durable=False, workers=2)

    @rule(choice=st.integers(0, 50))
    def forget_and_collect(self, choice):
        if len(self.saved) > 1:
            ref, _ = self.saved.pop(choice % len(self.saved))
            self.store.forget(ref)
            self.store.collect(repack=0.1)

    # --- restores ---

    @rule(choice=st.integers(0, 50))
    def restore_alone(self, choice):
        self.restored_alone(*self.saved[choice % len(self.saved)])

    @rule(choice=st.integers(0, 50))
    def restore_exactly(self, choice):
        ref, expected = self.saved[choice % len(self.saved)]
        self.store.restore(ref, os.fsdecode(self.work), exact=True)
        assert listing(self.work) == expected

    @rule(choice=st.integers(0, 50))
    def restore_the_source(self, choice):
        ref, expected = self.saved[choice % len(self.saved)]
        self.store.restore(ref, os.fsdecode(self.source), exact=True)
        assert listing(self.source) == expected

    @rule(choice=st.integers(0, 50))
    def restore_over(self, choice):
        ref, expected = self.saved[choice % len(self.saved)]
        before = listing(self.work) if os.path.isdir(self.work) else {}
        try:
            self.store.restore(ref, os.fsdecode(self.work))
        except TargetObstructed:
            directory = stat.S_IFDIR
            assert any(
                seen[0] != directory and before.get(path, seen)[0] == directory for path, seen in expected.items()
            )
            return
        after = listing(self.work)
        for path, seen in expected.items():
            if path:
                assert after[path][:5] == seen[:5]
                assert after[path][5] >= seen[5]  # the same file under all its names
        for path, seen in before.items():
            if path not in expected and not self.is_replaced(path, expected):
                assert (after[path][0], after[path][1], after[path][3]) == (seen[0], seen[1], seen[3])
        assert after.keys() <= before.keys() | expected.keys()

    @staticmethod
    def is_replaced(path, expected):
        parts = path.split(b"/")
        parents = [b"/".join(parts[:count]) for count in range(1, len(parts))]
        return any(parent in expected and expected[parent][0] != stat.S_IFDIR for parent in parents)

    @rule(choice=st.integers(0, 50), number=st.integers(0, 50))
    def restore_a_part(self, choice, number):
        ref, expected = self.saved[choice % len(self.saved)]
        chosen = sorted(expected)[number % len(expected)]
        target = os.path.join(self.place, b"part")
        self.store.restore(ref, os.fsdecode(target), paths=[chosen])
        after = listing(target)
        selected = {path for path in expected if not chosen or path == chosen or path.startswith(chosen + b"/")}
        for path in selected - {b""}:
            assert after[path][:5] == expected[path][:5]
            assert after[path][5] == expected[path][5] & selected
        parents = {chosen.rsplit(b"/", count)[0] for count in range(chosen.count(b"/") + 1)}
        assert after.keys() <= selected | parents | {b""}
        shutil.rmtree(target)


Histories.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestHistories = Histories.TestCase


@pytest.mark.parametrize("memory", [False, True])
def test_a_history_of_tensors_has_deltas(memory):
    history = Histories()
    history.start(memory)
    history.write_tensors(b"a", "npy", large=True)
    history.save("default")
    history.move_tensors(b"a", 1)
    history.save("default")
    backend = history.store._backend
    assert sum(len(read_footer(backend, pack).delta_rows) for pack in list_packs(backend)) == 2
    history.teardown()
