"""Manifests, contents and entries."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.codecs import MAX_CHUNK_SIZE
from cas_checkpoint.errors import DamagedObject, InvalidArgument
from cas_checkpoint.ids import PackId, StoreId, TransactionId
from cas_checkpoint.manifests import (
    ENTRY_FRAME_SIZE,
    MAX_DEPTH,
    MAX_ENTRY_SIZE,
    MAX_EXTENTS,
    MAX_PATH_SIZE,
    REF_SIZE,
    ChunkRef,
    Content,
    Entry,
    EntryReader,
    EntryType,
    Manifest,
    Owner,
    PackRef,
    check_path,
    decode_entry,
    decode_refs,
    encode_entry,
    encode_ref,
    order,
    peek_path,
)
from cas_checkpoint.records import MAX_ITEMS, Kind, decode_record, encode_record, pack_value, unpack_value

REF = encode_ref(b"c" * 32, 5)
NO_CONTENT = Content(0, 0, b"")
FILE = Entry(b"dir/file", EntryType.FILE, 0o644, 10**18, 5, Content(5, 0, REF))
DIRECTORY = Entry(b"dir", EntryType.DIRECTORY, 0o755, 7)
SYMLINK = Entry(b"link", EntryType.SYMLINK, 0o777, 7, target=b"dir/../anything")
HARDLINK = Entry(b"twin", EntryType.HARDLINK, target=b"dir/file")
SPARSE = Entry(b"sparse", EntryType.FILE, 0o600, -1, 100, Content(5, 0, REF), extents=((10, 2), (12, 3)))

MANIFEST = Manifest(
    StoreId(b"id of some store"),
    "a series",
    3,
    TransactionId(b"some transaction"),
    2,
    (PackRef(PackId(b"p" * 16), TransactionId(b"h" * 16)),),
    Content(5, 0, REF),
    1,
)

components = (
    st.binary(min_size=1, max_size=12)
    .map(lambda name: name.replace(b"/", b"-").replace(b"\0", b"-"))
    .filter(lambda name: name not in {b".", b".."})
)
paths = st.lists(components, min_size=1, max_size=4).map(b"/".join)
chunk_refs = st.tuples(st.binary(min_size=32, max_size=32), st.integers(1, MAX_CHUNK_SIZE))


@st.composite
def contents(draw, size):
    refs = draw(st.lists(chunk_refs, min_size=1, max_size=4)) if size else []
    return Content(size, draw(st.integers(0, MAX_DEPTH)), b"".join(encode_ref(*ref) for ref in refs))


@st.composite
def extents(draw):
    runs, end = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**40)), max_size=6)):
        runs.append((end + gap, length))
        end += gap + length
    return tuple(runs), end + draw(st.integers(0, 2**40))


@st.composite
def entries(draw):
    entry = Entry(
        draw(paths),
        draw(st.sampled_from(EntryType)),
        draw(st.integers(0, 0o7777)),
        draw(st.integers(-(2**63), 2**63 - 1)),
        xattrs=draw(st.dictionaries(st.binary(max_size=20), st.binary(max_size=20), max_size=3)),
        owner=draw(
            st.none()
            | st.builds(
                Owner, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.text(max_size=9), st.text(max_size=9)
            )
        ),
    )
    if entry.type is EntryType.SYMLINK:
        return entry._replace(target=draw(st.binary(min_size=1, max_size=50)).replace(b"\0", b"-"))
    if entry.type is EntryType.HARDLINK:
        return entry._replace(target=draw(paths))
    if entry.type is EntryType.DIRECTORY:
        return entry
    if draw(st.booleans()):
        size = draw(st.integers(0, 2**63 - 1))
        return entry._replace(size=size, content=draw(contents(size)))
    runs, size = draw(extents())
    return entry._replace(size=size, extents=runs, content=draw(contents(sum(length for _, length in runs))))


# --- manifests ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    st.text(max_size=50),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.lists(st.builds(PackRef, st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16)), max_size=9),
    st.integers(0, 2**63 - 1).flatmap(contents),
)
def test_a_manifest_comes_back(series, sequence, base, packs, content):
    manifest = MANIFEST._replace(series=series, sequence=sequence, base=base, packs=tuple(packs), entries=content)
    assert Manifest.decode(manifest.encode()) == manifest


def test_a_manifest_has_the_specified_fields():
    fields = decode_record(Kind.MANIFEST, MANIFEST.encode())
    assert {name: fields.get(name) for name in Manifest._fields} == {
        **MANIFEST._asdict(),
        "packs": b"p" * 16 + b"h" * 16,
        "entries": (5, 0, REF),
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"packs": bytes(31)}, "its list of packs is cut short"),
        ({"packs": [b"p" * 32]}, "field 'packs' is not a byte string"),
        ({"store": bytes(15)}, "field 'store' is not a byte string of the right size"),
        ({"transaction": None}, "field 'transaction' is not a byte string of the right size"),
        ({"series": b"bytes"}, "field 'series' is not a text"),
        ({"sequence": -1}, "field 'sequence' is not an integer"),
        ({"base": 2**63}, "field 'base' is not an integer"),
        ({"entry_count": None}, "field 'entry_count' is not an integer"),
        ({"entries": None}, "a content that is not size, depth and chunks"),
        ({"entries": (0, 0)}, "a content that is not size, depth and chunks"),
        ({"entries": (0, 0, b"", 0)}, "a content that is not size, depth and chunks"),
        ({"entries": {1: 1, 2: 2, 3: 3}}, "a content that is not size, depth and chunks"),
        ({"entries": (5.0, 0, REF)}, "a content whose fields are of other types"),
        ({"entries": (5, False, REF)}, "a content whose fields are of other types"),
        ({"entries": (5, 0, "c" * 36)}, "a content whose fields are of other types"),
        ({"entries": (-1, 0, REF)}, "an impossible content of -1 bytes"),
        ({"entries": (2**63, 0, REF)}, "an impossible content of"),
        ({"entries": (5, -1, REF)}, "at depth -1"),
        ({"entries": (5, MAX_DEPTH + 1, REF)}, "at depth 5"),
        ({"entries": (5, 0, REF[:-1])}, "an impossible content"),
        ({"entries": (5, 0, b"")}, "an impossible content"),
        ({"entries": (0, 0, REF)}, "an impossible content"),
    ],
)
def test_an_impossible_manifest_is_damage(changes, reason):
    fields = decode_record(Kind.MANIFEST, MANIFEST.encode())
    body = {name: fields.get(name) for name in Manifest._fields}
    with pytest.raises(DamagedObject, match=reason):
        Manifest.decode(encode_record(Kind.MANIFEST, {**body, **changes}))


def test_another_kind_of_object_is_no_manifest():
    with pytest.raises(DamagedObject, match="of kind b'K'"):
        Manifest.decode(encode_record(Kind.MARK, {}))


# --- lists of chunks ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.builds(ChunkRef, st.binary(min_size=32, max_size=32), st.integers(1, MAX_CHUNK_SIZE)), max_size=20))
def test_a_list_of_chunks_comes_back(refs):
    packed = b"".join(encode_ref(*ref) for ref in refs)
    assert len(packed) == REF_SIZE * len(refs) == 36 * len(refs)
    assert list(decode_refs(packed)) == list(decode_refs(memoryview(packed))) == refs


@pytest.mark.parametrize("size", [1, 35, 37, 71])
def test_a_list_of_chunks_cut_short_is_damage(size):
    with pytest.raises(DamagedObject, match="a list of chunks is cut short"):
        list(decode_refs((REF * 2)[:size]))


@pytest.mark.parametrize("size", [0, MAX_CHUNK_SIZE + 1, 2**32 - 1])
def test_a_list_with_a_chunk_of_an_impossible_size_is_damage(size):
    with pytest.raises(DamagedObject, match=f"holds one of {size} bytes"):
        list(decode_refs(REF + encode_ref(b"c" * 32, size)))


# --- paths --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(paths)
def test_relative_paths_of_any_bytes_are_possible(path):
    assert check_path(path) == path


@pytest.mark.parametrize("path", [b"a", b"...", b"a/b", b"..a", b".a", b"\xff\n ", b"\\", b"x" * MAX_PATH_SIZE])
def test_odd_paths_are_possible(path):
    assert check_path(path) == path
    assert decode_entry(encode_entry(DIRECTORY._replace(path=path))[4:]).path == path


BAD_PATHS = [
    b"",
    b"/",
    b"/a",
    b"a/",
    b"a//b",
    b".",
    b"..",
    b"a/.",
    b"./a",
    b"a/../b",
    b"../a",
    b"a\0b",
    b"\0",
    b"x" * (MAX_PATH_SIZE + 1),
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path[:10]))
def test_paths_that_lead_elsewhere_are_refused_everywhere(path):
    with pytest.raises(InvalidArgument, match="not a path that a snapshot can hold"):
        check_path(path)
    for entry in [FILE._replace(path=path), SYMLINK._replace(path=path), HARDLINK._replace(path=path)]:
        with pytest.raises(DamagedObject, match="forbidden path"):
            decode_entry(encode_entry(entry)[4:])
    if path:
        with pytest.raises(DamagedObject, match=r"forbidden path|contradict"):
            decode_entry(encode_entry(HARDLINK._replace(target=path))[4:])
        with pytest.raises(DamagedObject, match="forbidden path"):
            decode_entry(encode_entry(DIRECTORY._replace(path=path))[4:])


def test_the_saved_directory_itself_has_the_empty_path():
    root = DIRECTORY._replace(path=b"")
    assert decode_entry(encode_entry(root)[4:]) == root


@settings(deadline=None, max_examples=100)
@given(paths, paths)
def test_paths_are_ordered_component_by_component(one, other):
    assert (order(one) < order(other)) == (one.split(b"/") < other.split(b"/"))


def test_a_directory_stands_right_before_what_it_contains():
    assert sorted([b"a.b", b"a/c", b"a", b"a-b", b"a/b/c", b""], key=order) == [
        b"",
        b"a",
        b"a/b/c",
        b"a/c",
        b"a-b",
        b"a.b",
    ]


def test_the_name_of_an_entry_is_its_path_as_text():
    assert Entry(b"caf\xc3\xa9/\xff", EntryType.FILE).name == "caf\u00e9/\udcff"


# --- entries ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(entries())
def test_an_entry_comes_back(entry):
    encoded = encode_entry(entry)
    assert int.from_bytes(encoded[:4], "little") == len(encoded) - 4
    assert decode_entry(encoded[4:]) == entry
    assert decode_entry(memoryview(encoded)[4:]) == entry


def test_an_entry_has_the_specified_fields():
    assert unpack_value(encode_entry(FILE)[4:]) == (b"dir/file", "f", 0o644, 10**18, 5, (5, 0, REF), None)
    assert unpack_value(encode_entry(HARDLINK)[4:]) == (b"twin", "h", 0, 0, 0, None, {"target": b"dir/file"})
    rich = SPARSE._replace(xattrs={b"b": b"2", b"a": b"1"}, owner=Owner(1, 2, "user", "group"))
    extra = unpack_value(encode_entry(rich)[4:])[6]
    assert extra["extents"] == b"".join(number.to_bytes(8, "little") for number in (10, 2, 12, 3))
    assert list(extra["xattrs"].items()) == [(b"a", b"1"), (b"b", b"2")]
    assert extra["owner"] == (1, 2, "user", "group")


def test_entries_are_encoded_alike_whatever_the_order_of_their_attributes():
    assert encode_entry(FILE._replace(xattrs={b"a": b"1", b"b": b"2"})) == encode_entry(
        FILE._replace(xattrs={b"b": b"2", b"a": b"1"})
    )


def test_an_entry_has_at_most_a_mebibyte():
    def with_attribute(size):
        return FILE._replace(xattrs={b"user.a": bytes(size)})

    room = MAX_ENTRY_SIZE - len(encode_entry(with_attribute(2**16))) + 4 + 2**16
    assert len(encode_entry(with_attribute(room))) == MAX_ENTRY_SIZE + 4
    with pytest.raises(InvalidArgument, match=f"dir/file: its metadata would take {MAX_ENTRY_SIZE + 1} bytes"):
        encode_entry(with_attribute(room + 1))


def test_an_entry_has_at_most_4096_extended_attributes():
    attributes = {b"%d" % number: b"" for number in range(MAX_ITEMS)}
    entry = FILE._replace(xattrs=attributes)
    assert decode_entry(encode_entry(entry)[4:]) == entry
    with pytest.raises(InvalidArgument, match="its metadata would take"):
        encode_entry(FILE._replace(xattrs={**attributes, b"more": b""}))


def test_a_file_has_at_most_4096_extents():
    runs = tuple((10 * number, 1) for number in range(MAX_EXTENTS))
    entry = SPARSE._replace(size=10**6, extents=runs, content=Content(MAX_EXTENTS, 0, REF))
    assert decode_entry(encode_entry(entry)[4:]) == entry
    with pytest.raises(DamagedObject, match="an impossible list of extents"):
        decode_entry(encode_entry(entry._replace(extents=(*runs, (900_000, 1))))[4:])


PLAIN = [b"file", "f", 0o644, 7, 5, (5, 0, REF), None]


def changed(**changes):
    names = ("path", "type", "mode", "mtime", "size", "content", "extra")
    return [changes.get(name, value) for name, value in zip(names, PLAIN, strict=True)]


def runs(*pairs):
    return {"extents": b"".join(start.to_bytes(8, "little") + size.to_bytes(8, "little") for start, size in pairs)}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        # not an entry at all
        (None, "seven fields"),
        (PLAIN[:-1], "seven fields"),
        ([*PLAIN, None], "seven fields"),
        (dict.fromkeys((b"p", "f", 1, 2, 3, 4, 5)), "seven fields"),
        ("seven..", "seven fields"),
        (b"seven..", "seven fields"),
        # types
        (changed(path="text"), "fields are of other types"),
        (changed(type=b"f"), "fields are of other types"),
        (changed(type=None), "fields are of other types"),
        (changed(type={}), "fields are of other types"),
        (changed(mode=1.0), "fields are of other types"),
        (changed(mode=True), "fields are of other types"),
        (changed(mtime=None), "fields are of other types"),
        (changed(size="5"), "fields are of other types"),
        (changed(content={}), "a content that is not"),
        (changed(content=(5, 0, REF + b"x")), "an impossible content"),
        (changed(extra=[]), "where a map belongs"),
        (changed(extra=7), "where a map belongs"),
        # ranges
        (changed(type="x"), "unknown type 'x'"),
        (changed(type=""), "unknown type ''"),
        (changed(type="file" * 1000), "unknown type 'filefilefilefilefile'"),
        (changed(mode=-1), "impossible mode"),
        (changed(mode=0o10000), "impossible mode"),
        (changed(mtime=2**63), "impossible mode, time"),
        (changed(size=-1), "impossible mode, time or size"),
        (changed(size=2**63), "impossible mode, time or size"),
        # extra
        (changed(extra={"target": "text"}), "field 'target'"),
        (changed(extra={"extents": [1, 2]}), "field 'extents'"),
        (changed(extra={"extents": bytes(15)}), "impossible list of extents"),
        (changed(extra={"xattrs": [b"a"]}), "field 'xattrs' is not a map"),
        (changed(extra={"xattrs": {"a": b"1"}}), "extended attributes that are not bytes"),
        (changed(extra={"xattrs": {b"a": "1"}}), "extended attributes that are not bytes"),
        (changed(extra={"owner": {}}), "field 'owner' is not an array"),
        (changed(extra={"owner": (1, 2, "a")}), "an owner that is not"),
        (changed(extra={"owner": (1, 2, "a", b"b")}), "an owner that is not"),
        (changed(extra={"owner": (True, 2, "a", "b")}), "an owner that is not"),
        (changed(extra={"owner": (-1, 2, "a", "b")}), "an owner with an impossible number"),
        (changed(extra={"owner": (1, 2**32, "a", "b")}), "an owner with an impossible number"),
        # contradictions
        (changed(content=None), "contradict one another"),
        (changed(size=4), "contradict one another"),
        (changed(extra={"target": b"x"}), "contradict one another"),
        (changed(type="d"), "contradict one another"),
        (changed(type="d", content=None), "contradict one another"),
        (changed(type="d", content=(0, 0, b""), size=0), "contradict one another"),
        (changed(type="d", content=None, size=0, extra={"target": b"x"}), "contradict one another"),
        (changed(type="d", content=None, size=0, extra={"extents": b""}), "contradict one another"),
        (changed(type="l", content=None, size=0), "contradict one another"),
        (changed(type="l", content=None, size=0, extra={"target": b""}), "contradict one another"),
        (changed(type="l", content=None, size=0, extra={"target": b"a\0b"}), "contradict one another"),
        (changed(type="l", content=None, size=1, extra={"target": b"x"}), "contradict one another"),
        (changed(type="h", content=None, size=0), "contradict one another"),
        (changed(type="h", content=None, size=0, extra={"target": b"/etc/passwd"}), "forbidden path"),
        (changed(type="h", content=None, size=0, extra={"target": b"../up"}), "forbidden path"),
        # extents
        (changed(size=9, extra=runs((0, 4))), "contradict one another"),
        (changed(size=9, extra=runs((0, 5), (6, 0))), "overlap, are empty or out of order"),
        (changed(size=9, extra=runs((0, 3), (2, 2))), "overlap, are empty or out of order"),
        (changed(size=9, extra=runs((5, 3), (0, 2))), "overlap, are empty or out of order"),
        (changed(size=9, extra=runs((5, 5))), "beyond the end of their file"),
        (changed(size=9, extra=runs((2**64 - 1, 5))), "beyond the end of their file"),
        (changed(size=9, extra=runs((4, 2**64 - 1))), "beyond the end of their file"),
    ],
)
def test_an_impossible_entry_is_damage(value, reason):
    with pytest.raises(DamagedObject, match=reason):
        decode_entry(pack_value(value))


def test_a_deeply_nested_type_is_damage():
    nested = b"\x91" * 900 + b"\x90"
    with pytest.raises(DamagedObject, match="fields are of other types"):
        decode_entry(b"\x97\xc4\x01a" + nested + b"\0\0\0\xc0\xc0")


def test_unknown_extra_fields_are_ignored():
    assert decode_entry(pack_value(changed(extra={"of tomorrow": 1}))) == decode_entry(pack_value(PLAIN))


def test_extents_that_touch_and_a_file_of_holes_alone_are_possible():
    assert decode_entry(encode_entry(SPARSE)[4:]) == SPARSE
    hole = SPARSE._replace(extents=(), content=NO_CONTENT)
    assert decode_entry(encode_entry(hole)[4:]) == hole


# --- streams of entries -------------------------------------------------------------------------

STREAM = [DIRECTORY._replace(path=b""), DIRECTORY, FILE, SYMLINK, SPARSE, HARDLINK]
ENCODED = b"".join(map(encode_entry, STREAM))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, len(ENCODED)), max_size=20).map(sorted))
def test_entries_come_back_from_any_pieces_of_their_stream(cuts):
    reader = EntryReader()
    bounds = [0, *cuts, len(ENCODED)]
    pieces = [ENCODED[start:end] for start, end in pairwise(bounds)]
    assert [entry for piece in pieces for entry in reader.feed(memoryview(piece))] == STREAM
    reader.finish(len(STREAM))


def test_a_stream_of_no_entries_is_possible():
    EntryReader().finish(0)


@pytest.mark.parametrize(
    "second", [SYMLINK, DIRECTORY, FILE._replace(path=b"link"), DIRECTORY._replace(path=b"")], ids=repr
)
def test_entries_out_of_order_are_damage(second):
    reader = EntryReader()
    with pytest.raises(DamagedObject, match="entries out of order at"):
        list(reader.feed(encode_entry(SYMLINK) + encode_entry(second)))


@pytest.mark.parametrize("parent", [FILE, SYMLINK, HARDLINK], ids=lambda entry: entry.type.name)
def test_an_entry_in_what_is_no_directory_is_damage(parent):
    parent = parent._replace(path=b"a")
    reader = EntryReader()
    with pytest.raises(DamagedObject, match="an entry in what is no directory: b'a/b'"):
        list(reader.feed(encode_entry(parent) + encode_entry(SYMLINK._replace(path=b"a/b"))))


@pytest.mark.parametrize("paths", [[b"a", b"a.b"], [b"a", b"ab/c"], [b"a/b", b"a/b.c"], [b"a/b/c", b"a/d/e"]])
def test_names_that_begin_alike_and_directories_without_an_entry_are_possible(paths):
    entries = [SYMLINK._replace(path=path) for path in paths]
    assert list(EntryReader().feed(b"".join(map(encode_entry, entries)))) == entries


@pytest.mark.parametrize("size", [MAX_ENTRY_SIZE + 1, 2**32 - 1])
def test_an_entry_that_says_it_is_too_large_is_refused_at_once(size):
    with pytest.raises(DamagedObject, match=f"an entry of {size} bytes; at most"):
        list(EntryReader().feed(size.to_bytes(4, "little")))


@pytest.mark.parametrize("missing", [1, 3, len(encode_entry(HARDLINK)) - 1])
def test_a_stream_cut_within_an_entry_is_damage(missing):
    reader = EntryReader()
    assert list(reader.feed(ENCODED[:-missing])) == STREAM[:-1]
    with pytest.raises(DamagedObject, match="the entries end after 5 of 6"):
        reader.finish(6)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_a_stream_of_another_number_of_entries_is_damage(count):
    reader = EntryReader()
    list(reader.feed(ENCODED))
    with pytest.raises(DamagedObject, match=f"the entries end after 6 of {count}"):
        reader.finish(count)


@pytest.mark.parametrize("path", [b"", b"a", b"d/" + b"n" * 253, b"d/" + b"n" * 254, b"d/" + b"n" * 30_000])
def test_the_path_of_an_encoded_entry_can_be_looked_at(path):
    encoded = encode_entry(Entry(path, EntryType.DIRECTORY))
    assert peek_path(encoded[ENTRY_FRAME_SIZE:]) == path


@pytest.mark.parametrize("encoded", [b"", b"\x97", b"\x97\xc4", b"\x97\xc5\x01", b"\x97\xa1a", b"\xc0"])
def test_what_is_no_entry_has_no_path(encoded):
    assert peek_path(encoded) == b""
