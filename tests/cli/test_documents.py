from cas_checkpoint import Entry, EntryType, Owner
from cas_checkpoint.cli.documents import entry_document


def test_an_entry_with_everything():
    entry = Entry(
        b"\xff",
        EntryType.SYMLINK,
        0o777,
        1_500_000_000,
        target=b"to \xfe",
        xattrs={b"user.\xfd": b"\x00\x01"},
        owner=Owner(1, 2, "u", "g"),
    )
    assert entry_document(entry) == {
        "path": "\\xff",
        "path_base64": "/w==",
        "type": "symlink",
        "mode": "0777",
        "mtime": "1970-01-01T00:00:01.500000000Z",
        "size": 0,
        "target": "to \\xfe",
        "target_base64": "dG8g/g==",
        "xattrs_base64": {"user.\\xfd": "AAE="},
        "owner": {"uid": 1, "gid": 2, "user": "u", "group": "g"},
    }


def test_the_data_of_a_sparse_file():
    entry = Entry(b"a", EntryType.FILE, size=100, extents=((0, 10), (50, 5)))
    assert entry_document(entry)["data_size"] == 15
