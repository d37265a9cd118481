import os
import stat
from urllib.parse import unquote_to_bytes

import pytest

from cas_checkpoint.ids import digest


def facts_of(path):
    """What there is at a path, in the terms of trees.json."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return {"type": "l", "mtime": status.st_mtime_ns, "target": os.readlink(path)}
    facts = {"mode": stat.S_IMODE(status.st_mode), "mtime": status.st_mtime_ns}
    if stat.S_ISDIR(status.st_mode):
        return {"type": "d", **facts}
    with open(path, "rb") as file:
        return {"type": "f", **facts, "size": status.st_size, "blake3": digest((file.read(),)).hex()}


def paths_below(root):
    for parent, directories, files in os.walk(os.fsencode(root)):
        yield from (os.path.relpath(os.path.join(parent, name), os.fsencode(root)) for name in directories + files)


def names_of_files(root):
    """The sets of paths that are one file by several names."""
    groups = {}
    for path in paths_below(root):
        status = os.lstat(os.path.join(os.fsencode(root), path))
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            groups.setdefault(status.st_ino, set()).add(path)
    return {frozenset(group) for group in groups.values()}


def user_xattrs(path):
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def facts_below(root):
    """The facts of everything in a directory, itself included, by path."""
    found = {path: facts_of(os.path.join(os.fsencode(root), path)) for path in paths_below(root)}
    return found | {b"": facts_of(os.fsencode(root))}


def expected_facts(entry):
    names = {"f": ("type", "mode", "mtime", "size", "blake3"), "d": ("type", "mode", "mtime"), "l": ("type", "mtime")}
    facts = {name: entry[name] for name in names[entry["type"]]}
    return facts | ({"target": unquote_to_bytes(entry["target"])} if entry["type"] == "l" else {})


@pytest.fixture
def check_restored(keeps_xattrs):
    """Compares a directory with what trees.json says of a snapshot."""

    def check(entries, target):
        by_path = {unquote_to_bytes(entry["path"]): entry for entry in entries}
        links = {path: unquote_to_bytes(entry["target"]) for path, entry in by_path.items() if entry["type"] == "h"}
        expected = {path: expected_facts(by_path[links.get(path, path)]) for path in by_path}
        parents = {path[:at] for path in by_path for at, byte in enumerate(path) if byte == ord("/")}
        found = facts_below(target)
        assert found.keys() == expected.keys() | parents | {b""}
        assert {path: found[path] for path in expected} == expected
        groups = {origin: {origin} for origin in links.values()}
        for path, origin in links.items():
            groups[origin].add(path)
        assert names_of_files(target) == set(map(frozenset, groups.values()))
        if keeps_xattrs:
            for path in by_path:
                xattrs = by_path[links.get(path, path)].get("xattrs", {})
                wanted = {unquote_to_bytes(name).decode(): bytes.fromhex(value) for name, value in xattrs.items()}
                assert user_xattrs(os.path.join(os.fsencode(target), path)) == wanted

    return check


@pytest.fixture
def check_same():
    """Compares two directories."""

    def check(one, other):
        assert facts_below(one) == facts_below(other)
        assert names_of_files(one) == names_of_files(other)

    return check


@pytest.fixture
def keeps_xattrs(tmp_path):
    """Whether the file system under the tests has extended attributes."""
    try:
        os.setxattr(tmp_path, "user.probe", b"")
        os.removexattr(tmp_path, "user.probe")
    except (OSError, AttributeError):
        return False
    return True


@pytest.fixture
def enclosed(tmp_path):
    """A target that is not there yet, in the middle of things that nothing may touch."""
    target = tmp_path / "around" / "target"
    target.parent.mkdir()
    (tmp_path / "outside").write_bytes(b"as it was")
    yield target
    assert {path.name for path in tmp_path.iterdir()} == {"around", "outside"}
    assert {path.name for path in target.parent.iterdir()} <= {"target"}
    assert (tmp_path / "outside").read_bytes() == b"as it was"
