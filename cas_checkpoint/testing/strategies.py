"""Hypothesis strategies for directory trees and for edits of them; writing, reading and comparing such trees.

A tree is a dictionary of nodes by path: bytes, relative, with `/` between components. Directories have their own nodes,
the root has none. Of several names of one file the first in order is the file, and the others are hard links to it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from hypothesis import strategies as st

from cas_checkpoint.lazynumpy import np
from cas_checkpoint.tensors import find_tensors

__all__ = [
    "Node",
    "Tree",
    "assert_same_tree",
    "edits",
    "moved_tensors",
    "names",
    "read_tree",
    "tensor_file",
    "trees",
    "write_tree",
]

KIB = 2**10
_HOLE = 64 * KIB  # a run of zeros at least so long is written as a hole
_HOSTILE = (
    b"-rf", b"--", b" ", b"\n", b"\t\r", b"\xff\xfe", b"\x80", b"\x01", b"...", b".hidden", b"~", b"*", b"a\\b", b"a!",
    b"'\"`$(x)", "\u00e9".encode(), "e\u0301".encode(), "\u202e".encode(), "\U0001f642".encode(), b"con", b"a-b", b"a.",
    b"A", b"a", b"a b", b"x" * 255, b".tmp-0123", b"latest", b"%2e%2e",
)  # fmt: skip
_SHOWN = 100  # so many bytes of data are shown where a tree is
_SIZES = (0, 1, 100, 4095, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB + 1, 300 * KIB)
_TENSOR_SIZES = (1000, 64 * KIB, 300 * KIB)
_TIMES = (0, 1, 999_999_999, 1_700_000_000_123_456_789, 4 * 10**18)


class Node(NamedTuple):
    """One thing in a tree.

    Attributes:
        kind: what it is. A hard link is one more name of a file, and has that file's attributes.
        data: of a file its content, of a symlink its target, of a hard link the path of the file.
        mode: permission bits; always 0o777 of a symlink.
        mtime_ns: when it was modified, nanoseconds since 1970.
    """

    kind: Literal["file", "directory", "symlink", "hardlink"]
    data: bytes = b""
    mode: int = 0o644
    mtime_ns: int = 1_700_000_000_000_000_000

    def __repr__(self) -> str:
        return f"Node({self.kind!r}, {_shown(self.data)}, {self.mode:#o}, {self.mtime_ns})"


Tree = dict[bytes, Node]


def names(*, hostile: bool = True) -> st.SearchStrategy[bytes]:
    """Return a strategy for file names; hostile ones are such as programs stumble over, and some systems refuse."""
    if not hostile:
        return st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=12).map(str.encode)
    drawn = st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    return st.one_of(st.sampled_from(_HOSTILE), drawn).filter(lambda name: name not in (b".", b".."))


def _contents() -> st.SearchStrategy[bytes]:
    sized = st.tuples(st.sampled_from(_SIZES), st.integers(0, 3)).map(lambda drawn: _noise(*drawn))
    sparse = st.lists(st.tuples(st.sampled_from((_HOLE, 3 * _HOLE)), st.binary(max_size=50)), max_size=3).map(
        lambda runs: b"".join(bytes(hole) + data for hole, data in runs)
    )
    return st.one_of(st.binary(max_size=200), sized, sparse, _tensor_files())


def _tensor_files() -> st.SearchStrategy[bytes]:
    kinds: st.SearchStrategy[Literal["npy", "safetensors"]] = st.sampled_from(("npy", "safetensors"))
    return st.builds(tensor_file, kinds, st.sampled_from(_TENSOR_SIZES), st.integers(0, 1))


@lru_cache(32)
def tensor_file(kind: Literal["npy", "safetensors"], size: int, seed: int) -> bytes:
    """Return a file with a tensor of float32 numbers, `size` bytes of them, as they are in a model."""
    values = np.random.default_rng(seed).normal(0, 0.05, size // 4).astype("<f4")
    if kind == "npy":
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({len(values)},), }}".encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values.tobytes()
    tensor = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, values.nbytes]}
    header = json.dumps({"weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + values.tobytes()


def moved_tensors(data: bytes, seed: int) -> bytes:
    """Return a file whose tensors have moved a little, as by a step of a training; all others are as they were."""
    layout = find_tensors(lambda offset, size: data[offset : offset + size], len(data))
    changed = bytearray(data)
    generator = np.random.default_rng(seed)
    for region in layout.regions if layout is not None else ():
        if region.elements.width == 4:  # noqa: PLR2004 -- bytes of the numbers that `tensor_file` makes
            values = np.frombuffer(changed, "<u4", region.size // 4, region.offset)
            values += generator.integers(0, 256, len(values), "<u4")
    return bytes(changed)


def _noise(size: int, seed: int) -> bytes:
    block = bytes((number * 167 + number // 256 * 13 + seed * 31) % 256 for number in range(4096))
    return (block * (size // len(block) + 1))[:size]


@st.composite
def _nodes(draw: st.DrawFn, *, symlinks: bool) -> Node:
    mtime_ns = draw(st.one_of(st.sampled_from(_TIMES), st.integers(0, 4 * 10**18)))
    if symlinks and draw(st.integers(0, 5)) == 0:
        target = draw(st.sampled_from((b".", b"..", b"/nowhere", b"a", b"../..", b"x" * 500, b"\xff\n")))
        return Node("symlink", target, 0o777, mtime_ns)
    return Node("file", draw(_contents()), draw(st.integers(0o400, 0o777)) | 0o400, mtime_ns)


@st.composite
def trees(
    draw: st.DrawFn, *, max_nodes: int = 10, hostile: bool = True, symlinks: bool = True, hardlinks: bool = True
) -> Tree:
    """Return a strategy for trees.

    Args:
        draw: given by hypothesis.
        max_nodes: how many files, directories and links there are at most.
        hostile: whether names are hostile.
        symlinks: whether there are symlinks, dangling ones and such that lead out among them.
        hardlinks: whether there are hard links.
    """
    tree: Tree = {}
    directories = [b""]
    for _ in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.sampled_from(directories))
        name = draw(names(hostile=hostile))
        path = parent + b"/" + name if parent else name
        if path in tree:
            continue
        files = [known for known, node in tree.items() if node.kind == "file" and known < path]
        choice = draw(st.integers(0, 9))
        if choice < 3:  # noqa: PLR2004 -- three in ten are directories
            tree[path] = Node("directory", b"", draw(st.integers(0o500, 0o777)) | 0o700)
            directories.append(path)
        elif hardlinks and files and choice == 9:  # noqa: PLR2004 -- and one in ten is a hard link
            target = draw(st.sampled_from(files))
            tree[path] = tree[target]._replace(kind="hardlink", data=target)
        else:
            tree[path] = draw(_nodes(symlinks=symlinks))
    return tree


# --- edits --------------------------------------------------------------------------------------


@st.composite
def edits(draw: st.DrawFn, tree: Tree, *, max_edits: int = 4, hostile: bool = True) -> Tree:
    """Return a strategy for what a tree may have become.

    Data is inserted, cut out, overwritten or appended; tensors move a little; things are renamed, removed, added, or
    become something else.

    Args:
        draw: given by hypothesis.
        tree: the tree before; it stays as it is.
        max_edits: how many edits there are at most.
        hostile: whether new names are hostile.
    """
    edited = {path: node for path, node in tree.items() if node.kind != "hardlink"}
    for _ in range(draw(st.integers(1, max_edits))):
        edited = draw(st.sampled_from(_EDITS))(draw, edited, hostile)
    return edited


def _change_data(draw: st.DrawFn, tree: Tree, _: bool) -> Tree:  # noqa: FBT001 -- all edits are called alike
    files = [path for path, node in tree.items() if node.kind == "file"]
    if not files:
        return tree
    path = draw(st.sampled_from(files))
    data = tree[path].data
    start = draw(st.integers(0, len(data)))
    end = draw(st.one_of(st.just(start), st.integers(start, len(data))))
    changed = data[:start] + draw(st.binary(max_size=100)) + data[end:]
    return tree | {path: tree[path]._replace(data=changed, mtime_ns=tree[path].mtime_ns + 1)}


def _move_tensors(draw: st.DrawFn, tree: Tree, _: bool) -> Tree:  # noqa: FBT001
    seed = draw(st.integers(0, 3))
    moved = {path: moved_tensors(node.data, seed) if node.kind == "file" else node.data for path, node in tree.items()}
    return {
        path: node if node.data == moved[path] else node._replace(data=moved[path], mtime_ns=node.mtime_ns + 1)
        for path, node in tree.items()
    }


def _remove(draw: st.DrawFn, tree: Tree, _: bool) -> Tree:  # noqa: FBT001
    if not tree:
        return tree
    path = draw(st.sampled_from(sorted(tree)))
    return {other: node for other, node in tree.items() if other != path and not other.startswith(path + b"/")}


def _rename(draw: st.DrawFn, tree: Tree, hostile: bool) -> Tree:  # noqa: FBT001
    if not tree:
        return tree
    path = draw(st.sampled_from(sorted(tree)))
    parent, slash, _ = path.rpartition(b"/")
    new = parent + slash + draw(names(hostile=hostile))
    if new in tree or len(new) > 1000:  # noqa: PLR2004 -- well below what any system allows
        return tree
    moved = {}
    for other, node in tree.items():
        inside = other == path or other.startswith(path + b"/")
        moved[new + other[len(path) :] if inside else other] = node
    return moved


def _add(draw: st.DrawFn, tree: Tree, hostile: bool) -> Tree:  # noqa: FBT001
    parent = draw(st.sampled_from([b"", *sorted(path for path, node in tree.items() if node.kind == "directory")]))
    name = draw(names(hostile=hostile))
    path = parent + b"/" + name if parent else name
    return tree if path in tree else tree | {path: draw(_nodes(symlinks=True))}


def _change_kind(draw: st.DrawFn, tree: Tree, hostile: bool) -> Tree:  # noqa: FBT001
    if not tree:
        return tree
    path = draw(st.sampled_from(sorted(tree)))
    rest = {other: node for other, node in tree.items() if not other.startswith(path + b"/")}
    if tree[path].kind == "directory":
        return rest | {path: draw(_nodes(symlinks=True))}
    child = path + b"/" + draw(names(hostile=hostile))
    return rest | {path: Node("directory", b"", 0o755), child: draw(_nodes(symlinks=True))}


_EDITS: tuple[Callable[[st.DrawFn, Tree, bool], Tree], ...] = (
    _change_data,
    _change_data,
    _move_tensors,
    _remove,
    _rename,
    _add,
    _change_kind,
)


# --- on disk ------------------------------------------------------------------------------------


def write_tree(root: str | os.PathLike[str], tree: Mapping[bytes, Node]) -> None:
    """Make `root` hold exactly this tree; what was there before is removed. Long runs of zeros become holes.

    `read_tree` gives the same tree again.
    """
    top = os.fsencode(root)
    if os.path.lexists(top):
        _make_removable(top)
        shutil.rmtree(top)
    os.makedirs(top)
    for path, node in sorted(tree.items(), key=lambda item: item[0].split(b"/")):
        _write_node(os.path.join(top, path), node)
    for path, node in tree.items():
        if node.kind == "hardlink":
            os.link(os.path.join(top, node.data), os.path.join(top, path), follow_symlinks=False)
    for path, node in sorted(tree.items(), key=lambda item: -item[0].count(b"/")):
        if node.kind in ("file", "directory"):
            os.chmod(os.path.join(top, path), node.mode)
        if node.kind != "hardlink":
            os.utime(os.path.join(top, path), ns=(0, node.mtime_ns), follow_symlinks=False)


def _write_node(path: bytes, node: Node) -> None:
    if node.kind == "directory":
        os.mkdir(path)
    elif node.kind == "symlink":
        os.symlink(node.data, path)
    elif node.kind == "file":
        with open(path, "wb") as file:
            for start in range(0, len(node.data), _HOLE):
                block = node.data[start : start + _HOLE]
                if block.strip(b"\0"):
                    file.seek(start)
                    file.write(block)
            file.truncate(len(node.data))


def _make_removable(top: bytes) -> None:
    for parent, directories, _ in os.walk(top):
        for name in directories:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)


def read_tree(root: str | os.PathLike[str]) -> Tree:
    """Return what lies below `root`."""
    top = os.fsencode(root)
    found: Tree = {}
    inodes: dict[tuple[int, int], bytes] = {}
    for path in sorted(_walk(top, b"")):
        full = os.path.join(top, path)
        status = os.lstat(full)
        mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        if stat.S_ISDIR(status.st_mode):
            found[path] = Node("directory", b"", mode, mtime_ns)
        elif stat.S_ISLNK(status.st_mode):
            found[path] = Node("symlink", os.readlink(full), 0o777, mtime_ns)
        elif (status.st_dev, status.st_ino) in inodes:
            found[path] = Node("hardlink", inodes[status.st_dev, status.st_ino], mode, mtime_ns)
        else:
            inodes[status.st_dev, status.st_ino] = path
            with open(full, "rb") as file:
                found[path] = Node("file", file.read(), mode, mtime_ns)
    return found


def _walk(top: bytes, directory: bytes) -> list[bytes]:
    paths = []
    with os.scandir(os.path.join(top, directory)) as entries:
        for entry in entries:
            path = os.path.join(directory, entry.name)
            paths.append(path)
            if entry.is_dir(follow_symlinks=False):
                paths += _walk(top, path)
    return paths


def assert_same_tree(found: Mapping[bytes, Node], expected: Mapping[bytes, Node]) -> None:
    """Raise `AssertionError`, which names the first difference, unless two trees are the same."""
    for path in sorted(found.keys() | expected.keys()):
        if path not in found:
            raise AssertionError(f"{path!r} is missing")
        if path not in expected:
            raise AssertionError(f"{path!r} should not be there")
        for name, ours, theirs in zip(Node._fields, found[path], expected[path], strict=True):
            if ours != theirs:
                raise AssertionError(f"{path!r}: {name} is {_shown(ours)}, not {_shown(theirs)}")


def _shown(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... of {len(value)} bytes"
    return repr(value)
