"""HDF5 by hand: superblocks, object headers, groups of both styles, datasets, and damage."""

import struct

import pytest

from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.tensors import hdf5
from cas_checkpoint.tensors.found import HDF5_MAGIC

UNDEFINED = 2**64 - 1
FLOAT32 = struct.pack("<B3sI2H4BI", 0x11, b"\x20\x1f\0", 4, 0, 32, 23, 8, 0, 23, 127)


def fixed(width, *, bits=0, offset=0, precision=None):
    return struct.pack("<B3sI2H", 0x10, bytes((bits, 0, 0)), width, offset, precision or 8 * width)


def floating(width, fields, bits=0x20):
    return struct.pack("<B3sI2H4BI", 0x11, bytes((bits, 0, 0)), width, 0, 8 * width, *fields)


def space(*shape, version=1, kind=1):
    head = bytes((1, len(shape), 0)) + bytes(5) if version == 1 else bytes((version, len(shape), 0, kind))
    return head + struct.pack(f"<{len(shape)}Q", *shape)


def layout(address, size, version=3, kind=1):
    return bytes((version, kind)) + struct.pack("<2Q", address, size)


def hard_link(name, address, flags=0, width=1):
    head = bytes((1, flags | width.bit_length() - 1))
    head += (b"\0" if flags & 8 else b"") + (bytes(8) if flags & 4 else b"") + (b"\1" if flags & 16 else b"")
    return head + len(name).to_bytes(width, "little") + name + struct.pack("<Q", address)


class File:
    """A file that grows; each method adds something and returns its address."""

    def __init__(self, version=0):
        self.version = version
        self.data = bytearray(112)

    def add(self, block):
        self.data += block
        return len(self.data) - len(block)

    def numbers(self, count=6):
        return self.add(struct.pack(f"<{count}f", *range(count)))

    def old(self, *messages, more=b""):
        """Add an object header of version 1; `more` are messages that are encoded already."""
        body = b"".join(struct.pack("<HHB3x", kind, len(data), 0) + data for kind, data in messages) + more
        return self.add(struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body)

    def new(self, *messages, flags=0):
        """Add an object header of version 2."""
        order = b"\0\0" if flags & 4 else b""
        body = b"".join(struct.pack("<BHB", kind, len(data), 0) + order + data for kind, data in messages)
        times = bytes((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
        return self.add(
            b"OHDR\2" + bytes((flags,)) + times + len(body).to_bytes(1 << (flags & 3), "little") + body + bytes(4)
        )

    def dataset(self, *, shape=(2, 3), dtype=FLOAT32, place=None, dataspace=None, style="old"):
        place = place or layout(self.numbers(), 24)
        messages = ((1, dataspace or space(*shape)), (3, dtype), (8, place))
        return getattr(self, style)(*messages)

    def group(self, style="new", **members):
        return getattr(self, style)(*((6, hard_link(name.encode(), at, width=2)) for name, at in members.items()))

    def table(self, symbols, names=b"\0a\0b\0c\0", tree=None):
        """Add a group with a symbol table of (offset of the name, address, type of cache)."""
        heap = self.add(struct.pack("<4s4xQQQ", b"HEAP", len(names), UNDEFINED, self.add(names)))
        if tree is None:
            tree = self.tree(self.symbols(symbols))
        return self.old((0x11, struct.pack("<2Q", tree, heap)))

    def symbols(self, symbols):
        rows = b"".join(struct.pack("<QQI20x", *symbol) for symbol in symbols)
        return self.add(struct.pack("<4sBxH", b"SNOD", 1, len(symbols)) + rows)

    def tree(self, *children, level=0):
        keys = b"".join(struct.pack("<QQ", 0, child) for child in children) + bytes(8)
        return self.add(struct.pack("<4sBBHQQ", b"TREE", 0, level, len(children), UNDEFINED, UNDEFINED) + keys)

    def finish(self, root, *, version=None, sizes=b"\x08\x08", base=0, end=None):
        version = self.version if version is None else version
        end = len(self.data) if end is None else end
        if version <= 1:
            head = bytes((version, 0, 0, 0, 0)) + sizes + b"\0" + struct.pack("<2HI", 4, 16, 0) + bytes(4 * version)
            head += struct.pack("<4Q", base, UNDEFINED, end, UNDEFINED) + struct.pack("<QQII16x", 0, root, 0, 0)
        else:
            head = bytes((version,)) + sizes + b"\0" + struct.pack("<4Q", base, UNDEFINED, end, root) + bytes(4)
        self.data[: 8 + len(head)] = HDF5_MAGIC + head
        return bytes(self.data)


@pytest.fixture
def file():
    return File()


def names(found):
    return [tensor.name for tensor in found.tensors]


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("style", ["old", "new"])
def test_a_dataset(look, file, version, style):
    dataset = file.dataset(style=style)
    data = file.finish(file.group(style, w=dataset), version=version)
    found = look(data)
    (region,), (tensor,) = found.regions, found.tensors
    assert found.container == "hdf5"
    assert (region.size, region.elements, region.row_size, region.name) == (24, ELEMENTS["float32"], 12, "w")
    assert tensor == ("w", "float32", (2, 3), (3, 1), region.offset)
    assert data[region.offset : region.offset + 24] == struct.pack("<6f", *range(6))


@pytest.mark.parametrize(
    "damage",
    [{"version": 4}, {"sizes": b"\4\x08"}, {"sizes": b"\x08\4"}, {"base": 512}, {"end": 2**40}],
    ids=str,
)
@pytest.mark.parametrize("version", [0, 2])
def test_other_superblocks_are_refused(look, file, version, damage):
    root = file.group(w=file.dataset())
    assert look(file.finish(root, **{"version": version, **damage})) is None


DTYPES = {
    "float16": floating(2, (10, 5, 0, 10, 15)),
    "bfloat16": floating(2, (7, 8, 0, 7, 127)),
    "float32": FLOAT32,
    "float64": floating(8, (52, 11, 0, 52, 1023)),
    **{f"uint{8 * width}": fixed(width) for width in (1, 2, 4, 8)},
    **{f"int{8 * width}": fixed(width, bits=8) for width in (1, 2, 4, 8)},
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(look, file, dtype):
    count = 24 // ELEMENTS[dtype].width
    found = look(file.finish(file.group(w=file.dataset(shape=(count,), dtype=DTYPES[dtype]))))
    assert found.tensors[0][:3] == ("w", dtype, (count,))


OTHERS = {
    "big-endian": {"dtype": fixed(4, bits=1)},
    "big-endian floats": {"dtype": floating(4, (23, 8, 0, 23, 127), bits=0x21)},
    "floats of VAX": {"dtype": floating(4, (23, 8, 0, 23, 127), bits=0x61)},
    "odd floats": {"dtype": floating(4, (22, 9, 0, 22, 127))},
    "floats of 3 bytes": {"dtype": floating(3, (23, 8, 0, 23, 127))},
    "integers of 3 bytes": {"dtype": fixed(3)},
    "integers with bits to spare": {"dtype": fixed(4, precision=31)},
    "integers after bits to spare": {"dtype": fixed(4, offset=1)},
    "floats after bits to spare": {"dtype": struct.pack("<B3sI2H4BI", 0x11, b"\x20\0\0", 4, 1, 32, 23, 8, 0, 23, 127)},
    "text": {"dtype": b"\x13\0\0\0\4\0\0\0"},
    "no dataspace": {"dataspace": space(version=2, kind=2)},
    "a dataspace of tomorrow": {"dataspace": space(2, 3, version=3)},
    "compact": {"place": layout(0, 24, kind=0)},
    "chunked": {"place": layout(0, 24, kind=2)},
    "an old layout": {"place": layout(0, 24, version=2)},
    "not written yet": {"place": layout(UNDEFINED, 24)},
    "of another size": {"place": layout(0, 20)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_datasets_are_left_out(look, file, kind):
    root = file.group(other=file.dataset(**OTHERS[kind]), w=file.dataset())
    assert names(look(file.finish(root))) == ["w"]


def test_a_scalar_and_an_empty_dataset(look, file):
    scalar = file.dataset(shape=(), place=layout(file.numbers(1), 4))
    newer = file.dataset(dataspace=space(version=2, kind=0), place=layout(file.numbers(1), 4, version=4))
    empty = file.dataset(shape=(0, 3), place=layout(file.numbers(1), 0))
    found = look(file.finish(file.group(a=scalar, b=newer, c=empty)))
    assert [tensor[:3] for tensor in found.tensors] == [
        ("a", "float32", ()),
        ("b", "float32", ()),
        ("c", "float32", (0, 3)),
    ]
    assert [region.name for region in found.regions] == ["a", "b"]


@pytest.mark.parametrize("flags", [0, 4, 0x10, 0x20, 0x34, 1, 2, 3])
def test_new_object_headers(look, file, flags):
    root = file.new((6, hard_link(b"w", file.dataset(style="new"))), flags=flags)
    assert names(look(file.finish(root))) == ["w"]


@pytest.mark.parametrize("flags", [0, 4, 8, 16, 28])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_links(look, file, flags, width):
    root = file.new((6, hard_link("wä".encode(), file.dataset(), flags, width)))
    assert names(look(file.finish(root))) == ["wä"]


def test_soft_links_are_not_followed(look, file):
    root = file.new((6, b"\1\x08\1\1s\2\0/w"), (6, hard_link(b"w", file.dataset())))
    assert names(look(file.finish(root))) == ["w"]


def test_shared_messages_are_not_read(look, file):
    shared = struct.pack("<HHB3x", 3, 4, 2) + b"xxxx"
    place = layout(file.numbers(), 24)
    bad = file.old((1, space(2, 3)), (8, place), more=shared)
    assert names(look(file.finish(file.group(a=bad, w=file.dataset())))) == ["w"]


def test_continued_headers(look, file):
    place = layout(file.numbers(), 24)
    rest = file.add(struct.pack("<HHB3x", 8, len(place), 0) + place)
    size = len(file.data) - rest
    old = file.old((1, space(2, 3)), (0x10, struct.pack("<2Q", rest, size)), (3, FLOAT32))
    place = layout(file.numbers(), 24)
    rest = file.add(b"OCHK" + struct.pack("<BHB", 8, len(place), 0) + place + bytes(4))
    size = len(file.data) - rest
    new = file.new((1, space(2, 3)), (0x10, struct.pack("<2Q", rest, size)), (3, FLOAT32))
    assert names(look(file.finish(file.group(a=old, b=new)))) == ["a", "b"]


def test_damaged_continuations_are_refused(look, file):
    rest = file.add(b"XXXX" + bytes(40))
    root = file.new((0x10, struct.pack("<2Q", rest, 44)), (6, hard_link(b"w", file.dataset())))
    assert look(file.finish(root)) is None


def test_a_header_that_continues_in_itself_is_refused(look, file):
    at = len(file.data)
    file.old((0x10, struct.pack("<2Q", at + 16, 24)))
    assert look(file.finish(at)) is None


def test_a_header_of_too_many_messages_is_refused(look, file, monkeypatch):
    root = file.group(**{f"d{number}": file.dataset() for number in range(5)})
    data = file.finish(root)
    assert len(names(look(data))) == 5
    monkeypatch.setattr(hdf5, "_MAX_MESSAGES", 4)
    assert look(data) is None


@pytest.mark.parametrize("header", [b"\2" + bytes(40), b"OHDR\3" + bytes(40), b"\0" * 40])
def test_other_object_headers_are_refused(look, file, header):
    root = file.group(a=file.add(header), w=file.dataset())
    assert look(file.finish(root)) is None


def test_symbol_tables(look, file):
    a, c = file.dataset(), file.dataset()
    root = file.table([(1, a, 0), (3, UNDEFINED, 2), (5, file.table([(5, c, 1)]), 1)])
    assert names(look(file.finish(root))) == ["a", "c/c"]


def test_trees_of_several_levels(look, file):
    nodes = [file.tree(file.symbols([(at, file.dataset(), 0)])) for at in (1, 3, 5)]
    root = file.table([], tree=file.tree(*nodes, level=1))
    assert names(look(file.finish(root))) == ["a", "b", "c"]


def test_a_tree_that_is_its_own_child_ends(look, file):
    leaf = file.symbols([(1, file.dataset(), 0)])
    at = len(file.data)
    file.tree(at, leaf, leaf)
    assert names(look(file.finish(file.table([], tree=at)))) == ["a"]


def test_names_without_an_end_are_empty_or_cut_off(look, file):
    root = file.table([(1, file.dataset(), 0), (99, file.dataset(), 0)], names=b"\0abc")
    assert names(look(file.finish(root))) == ["", "~2"]


@pytest.mark.parametrize("place", ["HEAP", "TREE", "SNOD"])
def test_damaged_symbol_tables_are_refused(look, file, place):
    data = file.finish(file.table([(1, file.dataset(), 0)]))
    assert look(data) is not None
    assert look(data.replace(place.encode(), b"XXXX")) is None


def test_a_group_in_itself_ends(look, file):
    at = len(file.data)
    file.group(me=at, w=at + 200)
    file.data += bytes(at + 200 - len(file.data))
    place = layout(UNDEFINED - 1, 24)
    file.dataset(place=place)
    assert look(file.finish(at)) is None  # the dataset lies outside
    other = File()
    dataset = other.dataset()
    at = len(other.data)
    other.group(me=at, w=dataset, again=dataset)
    assert names(look(other.finish(at))) == ["w"]


def test_groups_too_deep_are_left_out(look, file):
    deep = file.dataset()
    for _ in range(70):
        deep = file.group(g=deep)
    root = file.group(deep=deep, w=file.dataset())
    assert names(look(file.finish(root))) == ["w"]


def test_too_many_objects_are_refused(look, file, monkeypatch):
    data = file.finish(file.group(**{f"d{number}": file.dataset() for number in range(5)}))
    monkeypatch.setattr(hdf5, "MAX_TENSORS", 5)
    assert look(data) is None


def test_long_names_are_cut_off(look, file):
    root = file.group("old", **{"g" * 300: file.group("old", **{"d" * 300: file.dataset()})})
    assert names(look(file.finish(root))) == [("g" * 300 + "/" + "d" * 300)[:512]]


def test_links_that_end_early_are_refused(look, file):
    for link in (b"", b"\1", b"\1\0", b"\1\0\5abc", b"\1\x08"):
        other = File()
        assert look(other.finish(other.new((6, link), (6, hard_link(b"w", other.dataset()))))) is None
