"""One snapshot's entries over another's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.manifests import Content, Entry, EntryType, encode_ref, order
from cas_checkpoint.overlays import overlay

REF = encode_ref(b"c" * 32, 5)


def f(path, mode=0o644):
    return Entry(path, EntryType.FILE, mode, 7, 5, Content(5, 0, REF))


def d(path, mode=0o755):
    return Entry(path, EntryType.DIRECTORY, mode)


def l(path, target=b"anywhere"):  # noqa: E743 -- as the format calls a symlink
    return Entry(path, EntryType.SYMLINK, target=target)


def h(path, target):
    return Entry(path, EntryType.HARDLINK, target=target)


def entries(lower, upper):
    return [merged.entry for merged in overlay(lower, upper)]


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        pytest.param([], [], [], id="nothing over nothing"),
        pytest.param([f(b"a")], [], [f(b"a")], id="nothing over something"),
        pytest.param([], [f(b"a")], [f(b"a")], id="something over nothing"),
        pytest.param([f(b"a"), f(b"c")], [f(b"b")], [f(b"a"), f(b"b"), f(b"c")], id="side by side"),
        pytest.param([f(b"a", 0o600)], [f(b"a")], [f(b"a")], id="a file for a file"),
        pytest.param([d(b"", 0o700)], [d(b"")], [d(b"")], id="the root for the root"),
        pytest.param([d(b"")], [f(b"a/b")], [d(b""), f(b"a/b")], id="the root stays"),
        pytest.param(
            [d(b"a", 0o700), f(b"a/b")], [d(b"a"), f(b"a/c")], [d(b"a"), f(b"a/b"), f(b"a/c")], id="directories unite"
        ),
        pytest.param([d(b"a"), f(b"a/b"), f(b"a/b2/c")], [f(b"a")], [f(b"a")], id="a file for a directory"),
        pytest.param([d(b"a"), f(b"a/b/c/d")], [l(b"a")], [l(b"a")], id="a symlink for a directory"),
        pytest.param([f(b"a")], [d(b"a"), f(b"a/b")], [d(b"a"), f(b"a/b")], id="a directory for a file"),
        pytest.param([f(b"a")], [f(b"a/b/c")], [f(b"a/b/c")], id="a directory without an entry for a file"),
        pytest.param([l(b"a")], [f(b"a/b")], [f(b"a/b")], id="nothing is written through a symlink"),
        pytest.param([d(b"a")], [f(b"a/b")], [d(b"a"), f(b"a/b")], id="a directory stays as a parent"),
        pytest.param([f(b"a.b"), f(b"ab")], [f(b"a")], [f(b"a"), f(b"a.b"), f(b"ab")], id="names that begin alike"),
        pytest.param([f(b"a"), h(b"b", b"a")], [f(b"c")], [f(b"a"), h(b"b", b"a"), f(b"c")], id="a hard link stays"),
        pytest.param(
            [f(b"a", 0o600), h(b"b", b"a")], [f(b"a")], [f(b"a"), f(b"b", 0o600)], id="a hard link inherits its file"
        ),
        pytest.param(
            [f(b"a", 0o600), h(b"b", b"a"), h(b"c", b"a"), h(b"d", b"a")],
            [f(b"a")],
            [f(b"a"), f(b"b", 0o600), h(b"c", b"b"), h(b"d", b"b")],
            id="hard links stay one file",
        ),
        pytest.param(
            [f(b"a", 0o600), h(b"b", b"a"), h(b"c", b"a")],
            [f(b"a"), f(b"b")],
            [f(b"a"), f(b"b"), f(b"c", 0o600)],
            id="a hard link that goes inherits nothing",
        ),
        pytest.param([f(b"a/x"), h(b"b", b"a/x")], [f(b"a")], [f(b"a"), f(b"b")], id="the file's directory goes"),
        pytest.param([f(b"a"), h(b"b", b"a")], [f(b"a/x")], [f(b"a/x"), f(b"b")], id="the file is in the way"),
        pytest.param(
            [h(b"a", b"b"), f(b"b", 0o600)], [f(b"b")], [f(b"a", 0o600), f(b"b")], id="a hard link before its file"
        ),
        pytest.param(
            [f(b"a")], [f(b"b"), h(b"c", b"b")], [f(b"a"), f(b"b"), h(b"c", b"b")], id="hard links of the upper"
        ),
    ],
)
def test_what_lies_over_what(lower, upper, expected):
    assert entries(lower, upper) == expected
    assert entries(iter(lower), upper) == expected


def test_it_is_told_what_was_kept():
    assert [(merged.entry.path, merged.kept) for merged in overlay([f(b"a"), f(b"b")], [f(b"b"), f(b"c")])] == [
        (b"a", True),
        (b"b", False),
        (b"c", False),
    ]


# --- any trees ----------------------------------------------------------------------------------


def tree(paths, links):
    """Return entries that can be one snapshot: no path below another one that is not a directory."""
    chosen = {}
    for path, kind in sorted(paths.items(), key=lambda item: order(item[0])):
        parts = path.split(b"/")
        parents = [b"/".join(parts[:count]) for count in range(1, len(parts))]
        if all(chosen.get(parent, d(parent)).type is EntryType.DIRECTORY for parent in parents):
            chosen[path] = {"f": f, "d": d, "l": l}[kind](path)
    files = [path for path, entry in chosen.items() if entry.type is EntryType.FILE]
    for at, target in links:
        path = b"hard%d" % at
        if files:
            chosen[path] = h(path, files[target % len(files)])
    return sorted(chosen.values(), key=lambda entry: order(entry.path))


trees = st.builds(
    tree,
    st.dictionaries(
        st.lists(st.sampled_from([b"a", b"b", b"a.b"]), min_size=1, max_size=3).map(b"/".join),
        st.sampled_from("fdl"),
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=4),
)


@settings(deadline=None, max_examples=300)
@given(trees, trees)
def test_the_result_is_a_snapshot_that_holds_the_upper_whole(lower, upper):
    result = entries(lower, upper)
    by_path = {entry.path: entry for entry in result}
    keys = [order(entry.path) for entry in result]
    assert keys == sorted(set(keys))
    assert all(by_path[entry.path] == entry for entry in upper)
    for entry in result:
        parts = entry.path.split(b"/")
        for count in range(1, len(parts)):
            parent = by_path.get(b"/".join(parts[:count]))
            assert parent is None or parent.type is EntryType.DIRECTORY
        if entry.type is EntryType.HARDLINK:
            assert by_path[entry.target].type is EntryType.FILE


@settings(deadline=None, max_examples=100)
@given(trees)
def test_a_tree_over_itself_or_over_nothing_is_itself(entries_of_tree):
    assert entries(entries_of_tree, entries_of_tree) == entries_of_tree
    assert entries([], entries_of_tree) == entries(entries_of_tree, []) == entries_of_tree
