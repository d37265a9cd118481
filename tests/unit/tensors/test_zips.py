"""Zip archives: members, zip64, archives one after another, and damage."""

import io
import struct
import zipfile

import pytest

from cas_checkpoint.tensors.found import Unreadable
from cas_checkpoint.tensors.zips import data_offset, read_archive, read_member


def reader(data):
    return lambda offset, size: bytes(data[offset : offset + size])


def opened(data):
    return read_archive(reader(data), len(data))


def content(data, archive, name):
    return read_member(reader(data), archive, archive.members[name])


def make(comment=b"", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        zipped.writestr("a", b"first" * 20)
        zipped.writestr("folder/b", b"second")
        zipped.comment = comment
    return file.getvalue()


SMALL = make()
DIRECTORY = SMALL.index(b"PK\1\2")
END = SMALL.index(b"PK\5\6")


@pytest.mark.parametrize("comment", [b"", b"some comment", bytes(2**16 - 1)])
def test_members(comment):
    data = make(comment)
    archive = opened(data)
    assert list(archive.members) == ["a", "folder/b"]
    assert (archive.start, archive.directory) == (0, data.index(b"PK\1\2"))
    assert content(data, archive, "a") == b"first" * 20
    assert content(data, archive, "folder/b") == b"second"


def test_an_archive_of_nothing():
    assert opened(b"PK\5\6" + bytes(18)).members == {}


def test_compressed_members_are_known_but_not_read():
    data = make(compression=zipfile.ZIP_DEFLATED)
    archive = opened(data)
    assert archive.members["a"].size == 100
    with pytest.raises(Unreadable):
        content(data, archive, "a")


def test_archives_one_after_another():
    data = b"before" + SMALL + SMALL
    last = opened(data)
    first = read_archive(reader(data), last.start)
    assert (first.start, last.start) == (6, 6 + len(SMALL))
    for archive in (first, last):
        assert content(data, archive, "folder/b") == b"second"
    with pytest.raises(Unreadable):
        read_archive(reader(data), first.start)


def wide(size=100, stored_size=100, header=0, extra=None, end64=True):
    """Return an archive of one member whose numbers stand in fields of zip64, from its directory on."""
    large = [number for number in (size, stored_size, header) if number is not None]
    fields = [
        2**32 - 1 if number is not None else fixed for number, fixed in ((stored_size, 100), (size, 100), (header, 0))
    ]
    if extra is None:
        extra = struct.pack("<2H", 7, 3) + b"xyz" + struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large)
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, *fields[:2], 1, len(extra), 0, 0, 0, 0, fields[2]
    )
    entry += b"a" + extra
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), 200)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 200 + len(entry), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), 2**32 - 1 if end64 else 200, 0)
    return entry + (record + locator if end64 else b"") + end


def whole(tail):
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, 1, 0) + b"a"
    return (local + b"0123456789" * 10).ljust(200, b"\0") + tail


@pytest.mark.parametrize("end64", [True, False])
@pytest.mark.parametrize("numbers", [{}, {"size": None}, {"stored_size": None}, {"header": None}], ids=str)
def test_zip64(numbers, end64):
    data = whole(wide(**numbers, end64=end64))
    archive = opened(data)
    assert archive.start == 0
    assert content(data, archive, "a") == b"0123456789" * 10


@pytest.mark.parametrize("extra", [b"", b"abc", struct.pack("<2H", 9, 1) + b"x", struct.pack("<2HI", 1, 4, 5)])
def test_zip64_without_its_numbers(extra):
    data = whole(wide(extra=extra))
    with pytest.raises(Unreadable):
        content(data, opened(data), "a")


def test_sizes_beyond_4_gib():
    tail = wide(size=2**40, stored_size=2**40, header=2**33)
    start = 2**33 + 2**40 + 1000
    tail = tail.replace((200).to_bytes(8, "little"), start.to_bytes(8, "little"))
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0, 0, 1, 0)

    def read(offset, size):
        return local[:size] if offset == 2**33 else tail[offset - start : offset - start + size]

    archive = read_archive(read, start + len(tail))
    assert archive.members["a"].size == 2**40
    assert data_offset(read, archive, archive.members["a"]) == 2**33 + 31


def patched(at, value, data=SMALL):
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        bytes(100),
        SMALL[:-1],
        SMALL + b"x",
        patched(END + 4, b"\1"),
        patched(END + 6, b"\1"),
        patched(END + 8, b"\3\0\3\0"),
        patched(END + 8, b"\xff" * 4),
        patched(END + 12, b"\xff\xff"),
        patched(END + 12, b"\xff" * 4),
        patched(END + 16, b"\xff\xff"),
        patched(DIRECTORY, b"xx"),
        patched(DIRECTORY + 28, b"\xff\xff"),
        patched(DIRECTORY + 30, b"\xff\xff"),
        patched(DIRECTORY + 32, b"\xff\xff"),
    ],
)
def test_damaged_archives_are_refused(data):
    with pytest.raises(Unreadable):
        opened(data)


def test_a_directory_of_too_many_bytes_is_refused():
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 2**25, 0, 0)

    def read(offset, size):
        return (bytes(100) + end)[offset - 2**26 + 100 :][:size]

    with pytest.raises(Unreadable):
        read_archive(read, 2**26 + len(end))


@pytest.mark.parametrize(
    "data",
    [
        patched(0, b"xx"),
        patched(8, b"\x08"),
        patched(26, b"\xff\xff"),
        patched(DIRECTORY + 8, b"\1"),
        patched(DIRECTORY + 20, b"\x01"),
        patched(DIRECTORY + 20, b"\xff\0\0\0\xff"),
        patched(DIRECTORY + 42, b"\xff\xff"),
    ],
)
def test_damaged_members_are_not_read(data):
    with pytest.raises(Unreadable):
        content(data, opened(data), "a")
