import ast
import importlib.util
import io
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zstandard
from blake3 import blake3

from cas_checkpoint import Store
from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.codecs import Codec, Decoder
from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import StoreId
from cas_checkpoint.packs import parse_footer

VECTORS = Path(__file__).parent
READER = VECTORS.parent.parent / "tools" / "independent_reader.py"
SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)


def run(*arguments):
    command = [sys.executable, "-W", "error", READER, *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=120)


def restore(*arguments):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")


def refuse(*arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, b"", 1)
    return done.stderr.decode()


def load(name):
    return json.loads((VECTORS / name).read_bytes())


# --- it stands on its own ---


def test_it_imports_neither_the_library_nor_what_only_the_library_needs():
    imported = set()
    for node in ast.walk(ast.parse(READER.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"blake3", "msgpack", "zstandard"}
    assert not imported & {"importlib", "runpy"}


def test_it_runs_where_the_library_cannot_be_imported(tmp_path):
    (tmp_path / "cas_checkpoint.py").write_text("raise ImportError\n")
    (tmp_path / "numpy.py").write_text("raise ImportError\n")
    command = [sys.executable, READER, VECTORS / "store", tmp_path / "target", "main@1"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})


def test_usage():
    assert run().returncode == 2


# --- golden stores ---

TREES = load("trees.json")
UNAMBIGUOUS = [tree for tree in TREES if (tree["series"], tree["sequence"]) != ("Zwei/ß.x", 1)]


@pytest.mark.parametrize("tree", UNAMBIGUOUS, ids=lambda tree: f"{tree['series']}-{tree['sequence']}")
def test_golden_snapshots(tree, enclosed, check_restored):
    restore(VECTORS / "store", enclosed, f"{tree['series']}@{tree['sequence']}")
    check_restored(tree["entries"], enclosed)


TENSOR_TREES = load("trees-with-tensors.json")


@pytest.mark.parametrize("tree", TENSOR_TREES, ids=lambda tree: tree["sequence"])
def test_snapshots_with_tensors(tree, enclosed, check_restored):
    restore(VECTORS / "store-with-tensors", enclosed, f"main@{tree['sequence']}")
    check_restored(tree["entries"], enclosed)


def test_of_one_number_it_takes_the_highest_id(enclosed, check_restored):
    tree = max((tree for tree in TREES if tree not in UNAMBIGUOUS), key=lambda tree: tree["id"])
    restore(VECTORS / "store", enclosed, "Zwei/ß.x@1")
    check_restored(tree["entries"], enclosed)


@pytest.mark.parametrize("reference", ["main", "main@latest"])
def test_the_latest_is_not_an_aborted_one(reference, enclosed, check_restored):
    restore(VECTORS / "store", enclosed, reference)
    (tree,) = (tree for tree in TREES if (tree["series"], tree["sequence"]) == ("main", 6))
    check_restored(tree["entries"], enclosed)


@pytest.mark.parametrize("reference", ["main@7", "main@99", "nothing", "main@x", "default@latest", "../main"])
def test_what_is_not_there_is_an_error(reference, enclosed):
    refuse(VECTORS / "store", enclosed, reference)
    assert not enclosed.exists()


@pytest.fixture(scope="module")
def reader():
    """The reader within this process: there are many broken stores, and starting it takes longer than what it does."""
    spec = importlib.util.spec_from_file_location("independent_reader", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CODECS = load("codecs/codecs.json")


def read_blob(case):
    """Return blob, chunk, and base of one of the vectors of codecs."""
    folder = VECTORS / "codecs"
    blob, plain = ((folder / f"{case['name']}.{kind}").read_bytes() for kind in ("blob", "plain"))
    return blob, plain, (folder / f"{case['name']}.base").read_bytes() if "base" in case else None


@pytest.mark.parametrize("case", CODECS, ids=lambda case: case["name"])
def test_blobs(case, reader):
    blob, plain, base = read_blob(case)
    assert reader.decode(blob, len(plain), base) == plain


@pytest.mark.parametrize("case", [case for case in CODECS if case["codec"] > 1], ids=lambda case: case["name"])
def test_it_refuses_the_blobs_that_the_library_refuses(case, reader):
    blob, plain, base = read_blob(case)
    chooser = random.Random(case["name"])
    damaged = [blob[:size] for size in range(1, len(blob), max(1, len(blob) // 30))]
    damaged += [blob[:at] + bytes([chooser.randrange(256)]) + blob[at + 1 :] for at in range(1, min(len(blob), 40))]
    for one in damaged:
        try:
            expected = bytes(Decoder().decode(one, len(plain), base))
        except DamagedObject:
            with pytest.raises(Exception, match=r"."):
                reader.decode(one, len(plain), base)
        else:
            assert reader.decode(one, len(plain), base) == expected


@pytest.fixture
def refuse_here(reader, enclosed, capsys):
    """Lets the reader refuse a store, within this process."""

    def check(store, reference="s@1"):
        assert reader.main([str(store), str(enclosed), reference]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        assert not enclosed.exists()

    return check


BROKEN_STORES = load("broken/stores.json")
WRONG_ONLY_IN_WHAT_IS_NOT_USED = {
    "entry-owner-of-three": "owners are not restored, so that nothing wrong comes of a wrong one",
}


@pytest.mark.parametrize("name", sorted(BROKEN_STORES.keys() - WRONG_ONLY_IN_WHAT_IS_NOT_USED))
def test_broken_stores_are_refused(name, refuse_here):
    refuse_here(VECTORS / "broken" / "stores" / name)


@pytest.mark.parametrize("name", WRONG_ONLY_IN_WHAT_IS_NOT_USED)
def test_what_is_not_used_is_not_checked(name, enclosed):
    assert name in BROKEN_STORES
    restore(VECTORS / "broken" / "stores" / name, enclosed, "s@1")


@pytest.mark.parametrize("name", ["entry-path-traversal", "entry-file-in-a-symlink", "blob-frame-is-a-bomb"])
def test_broken_stores_are_refused_by_the_command(name, enclosed):
    refuse(VECTORS / "broken" / "stores" / name, enclosed, "s@1")
    assert not enclosed.exists()


def test_an_existing_target_is_left_as_it_is(enclosed):
    enclosed.mkdir()
    (enclosed / "mine").write_bytes(b"mine")
    refuse(VECTORS / "store", enclosed, "main")
    assert os.listdir(enclosed) == ["mine"]


# --- objects of a wrong form ---

BROKEN_OBJECTS = load("broken/objects.json")
RECORDS = [name for name, said in BROKEN_OBJECTS.items() if said["kind"] in {"H", "M", "C", "V"}]
PACKS = [name for name, said in BROKEN_OBJECTS.items() if said["kind"] == "P"]
CHECKED_WHERE_IT_IS_USED = {  # later than a record is read: below there are stores with these in them
    *("header-default--features-no-map", "commit-normal--digest-of-31", "commit-normal--inline-no-map"),
    *("commit-normal--inline-without-manifest", "commit-normal--unknown-state", "manifest--content-of-two"),
    *("manifest--count-true", "manifest--depth-5", "manifest--negative-count", "manifest--packs-of-33"),
    *("manifest--refs-of-35", "manifest--refs-without-size", "manifest--size-without-refs"),
    *("move--no-targets", "move--targets-of-17"),
}
NOT_USED = {
    "header-default--chunker-no-map": "a reader needs no chunker",
    "header-default--store-of-15": "of the store's id it is only asked whether commit and manifest have the same",
    "commit-normal--metrics-of-texts": "metrics are not restored",
    "commit-normal--stats-missing": "statistics are not restored",
    "commit-normal--step-text": "the step is not restored",
    "commit-normal--tags-of-numbers": "tags are not restored",
}
OF_A_WRONG_FORM = [name for name in RECORDS + PACKS if name not in CHECKED_WHERE_IT_IS_USED | NOT_USED.keys()]


@pytest.fixture
def read_object(reader, tmp_path):
    """Reads an object, given the name of the good one that it is or was made from."""

    def read(good, data):
        snapshot = reader.Snapshot.__new__(reader.Snapshot)
        snapshot.store, snapshot.inline, snapshot.places, snapshot.deltas = tmp_path, {}, {}, {}
        said = load(f"objects/{good}.json")
        key = f"packs/{said['pack']}" if "pack" in said else "record"
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(data)
        if key == "record":
            given = said["body"].keys() & {"series", "sequence", "chunk_id", "key_slots"}
            limit = {"H": 2**16, "C": 2**21, "M": 2**24, "V": 2**24}[said["kind"]]
            fields = {name: said["body"][name] for name in given}
            fields |= {name: bytes.fromhex(said["body"][name]) for name in said["body"].keys() & {"pack", "collection"}}
            snapshot.read_record(key, said["kind"].encode(), limit, fields)
        else:
            snapshot.read_footer(key)

    return read


@pytest.mark.parametrize("good", sorted({name.partition("--")[0] for name in RECORDS + PACKS}))
def test_good_objects_are_read(good, read_object):
    read_object(good, (VECTORS / "objects" / f"{good}.bin").read_bytes())


@pytest.mark.parametrize("name", NOT_USED)
def test_objects_that_are_wrong_in_what_is_not_used_are_read(name, read_object):
    read_object(name.partition("--")[0], (VECTORS / "broken" / "objects" / f"{name}.bin").read_bytes())


@pytest.mark.parametrize("name", OF_A_WRONG_FORM)
def test_objects_of_a_wrong_form_are_refused(name, read_object):
    with pytest.raises(Exception, match=r"."):
        read_object(name.partition("--")[0], (VECTORS / "broken" / "objects" / f"{name}.bin").read_bytes())


# --- fields of a wrong type ---

NESTED = []
for _ in range(1022):  # as deep as msgpack reads
    NESTED = [NESTED]
ABSENT = object()
WRONG = [ABSENT, None, True, -1, 1.0, 2**64 - 1, "text", b"bytes", [], [1], {}, {"a": 1}, NESTED]
STORE, TRANSACTION = bytes(range(16)), bytes(range(16, 32))

USED = {  # fields, and the types that are right there
    "header": {"chunk_id": str, "key_slots": list, "features": dict, "features.read": list},
    "commit": {"state": str, "store": bytes, "series": str, "sequence": int, "transaction": bytes}
    | {"manifest_digest": bytes, "manifest_size": int, "inline": dict, "inline.manifest": bytes, "inline.pack": bytes},
    "manifest": {"store": bytes, "series": str, "sequence": int, "transaction": bytes, "packs": bytes}
    | {"entries": list, "entries.0": int, "entries.1": int, "entries.2": bytes, "entry_count": int},
    "file": {"0": bytes, "1": str, "2": int, "3": int, "4": int, "5": list, "5.0": int, "5.1": int, "5.2": bytes}
    | {"6": dict, "6.extents": bytes, "6.xattrs": dict},
    "link": {"0": bytes, "1": str, "5": type(None), "6": dict, "6.target": bytes},
}
MAY_BE_ABSENT = {("file", "6.xattrs"), ("link", "5")}
USED_FIELDS = [(part, field) for part, fields in USED.items() for field in fields]
UNUSED_FIELDS = [  # what these say decides nothing that a restore does
    *(("header", name) for name in ("chunker", "metadata_chunker", "capabilities", "features.write")),
    *(("commit", name) for name in ("created_at", "step", "metrics", "tags", "message", "stats")),
    *(("manifest", "base"), ("file", "6.owner"), ("header", "unknown"), ("commit", "unknown")),
    *(("manifest", "unknown"), ("file", "6.unknown")),
]


def make_head(kind):
    return b"\x89CAS\r\n\x1a\n" + kind + bytes([1, 0, 0, 0, 0, 0, 0])


def make_record(kind, body):
    body = msgpack.packb(body)
    data = make_head(kind) + struct.pack("<I", len(body)) + b"\0" + body
    return data + blake3(data).digest()


def make_pack(chunks, pack=TRANSACTION, more=b""):
    footer = make_head(b"P") + pack + struct.pack("<IIQ", len(chunks), 0, sum(map(len, chunks)) + len(chunks))
    footer += b"".join(blake3(chunk).digest() for chunk in chunks)
    footer += b"".join(struct.pack("<I", len(chunk) + codec_size) for codec_size in (1, 0) for chunk in chunks)
    footer += bytes(4 * len(chunks)) + more
    footer += blake3(footer).digest()
    return (
        footer[:32] + b"".join(b"\0" + chunk for chunk in chunks) + footer + struct.pack("<I4s", len(footer), b"CASP")
    )


def content_of(chunk):
    return [len(chunk), 0, blake3(chunk).digest() + struct.pack("<I", len(chunk))]


def changed(value, part, change):
    """Set one field of a part of a store, or remove it."""
    wanted, field, new = change
    if part == wanted:
        *parents, last = (int(name) if name.isdigit() else name for name in field.split("."))
        inner = value
        for name in parents:
            inner = inner[name]
        if new is not ABSENT:
            inner[last] = new
        else:
            del inner[last]
    return value


def write_store(path, *change):
    """Write a store with a sparse file and a link within a commit, all checksums right, with one field changed."""
    change = change or ("", "", None)
    extra = {"extents": struct.pack("<QQ", 2, 4), "xattrs": {b"user.note": b"kept"}, "owner": [0, 0, "", ""]}
    rows = [
        changed([b"file", "f", 0o640, 5, 8, content_of(b"data"), extra], "file", change),
        changed([b"link", "l", 0o777, 5, 0, None, {"target": b"file"}], "link", change),
    ]
    entries = b"".join(struct.pack("<I", len(msgpack.packb(row))) + msgpack.packb(row) for row in rows)
    names = {"store": STORE, "series": "s", "sequence": 1, "transaction": TRANSACTION}
    manifest = names | {"base": 0, "packs": b"", "entries": content_of(entries), "entry_count": 2}
    manifest = make_record(b"M", changed(manifest, "manifest", change))
    commit = names | {"state": "C", "created_at": 0, "step": 1, "metrics": {}, "tags": [], "message": "", "stats": {}}
    commit |= {"manifest_digest": blake3(manifest).digest(), "manifest_size": len(manifest)}
    commit |= {"inline": {"manifest": manifest, "pack": make_pack([b"data", entries])}}
    header = {"store": STORE, "chunk_id": "blake3-256", "chunker": {}, "metadata_chunker": {}, "capabilities": {}}
    header |= {"features": {"read": [], "write": [], "collect": []}, "key_slots": []}
    (path / "commits" / "s").mkdir(parents=True, exist_ok=True)
    (path / "cas-checkpoint").write_bytes(make_record(b"H", changed(header, "header", change)))
    commit = make_record(b"C", changed(commit, "commit", change))
    (path / "commits" / "s" / f"{1:016}-{TRANSACTION.hex()}").write_bytes(commit)


def check_written(target):
    assert sorted(os.listdir(target)) == ["file", "link"]
    assert (target / "file").read_bytes() == b"\0\0data\0\0"
    assert (target / "file").stat().st_mode & 0o7777 == 0o640
    assert (target / "file").stat().st_mtime_ns == (target / "link").lstat().st_mtime_ns == 5
    assert os.readlink(target / "link") == "file"


@pytest.mark.parametrize(("part", "field"), USED_FIELDS, ids=map("-".join, USED_FIELDS))
def test_a_field_of_a_wrong_type_is_refused(part, field, refuse_here, tmp_path_factory):
    store = tmp_path_factory.mktemp("wrong")
    for wrong in WRONG:
        absent = (part, field) in MAY_BE_ABSENT and (wrong is None or wrong is ABSENT)
        if not absent and type(wrong) is not USED[part][field]:
            write_store(store, part, field, wrong)
            refuse_here(store)


@pytest.mark.parametrize(("part", "field"), UNUSED_FIELDS, ids=map("-".join, UNUSED_FIELDS))
def test_a_field_that_is_not_used_is_not_checked(part, field, tmp_path):
    write_store(tmp_path / "store", part, field, [-1])
    restore(tmp_path / "store", tmp_path / "target", "s")
    check_written(tmp_path / "target")


REFS = content_of(b"data")[2]
WRONG_VALUES = [
    ("commit", "state", "B"),
    *(("commit", "sequence", wrong) for wrong in (0, 2)),
    *(("commit", "manifest_digest", wrong) for wrong in (b"", bytes(31), bytes(32))),
    *(("manifest", "packs", wrong) for wrong in (bytes(32), bytes(33))),
    *(("manifest", "entries", wrong) for wrong in ([], [0, 0], [0, 0, b"", 0])),
    *(("manifest", "entries.2", wrong) for wrong in (b"", bytes(35), bytes(36))),
    *(("manifest", "entries.0", wrong) for wrong in (10_000, math.inf)),
    *(("manifest", "entry_count", 2.0), ("file", "4", 8.0), ("file", "5.0", 4.0)),
    *(("file", "5.2", wrong) for wrong in (REFS[:-1], REFS + b"\0", REFS[:32] + bytes(4), REFS[:32] + b"\5\0\0\0")),
    ("file", "5.2", list(REFS)),
    *(("file", "6.xattrs", wrong) for wrong in ({"user.note": b""}, {b"user.note": "text"}, {b"user.note": 1})),
    *(
        ("header", "unknown", wrong)
        for wrong in ([0] * 4097, {str(n): 0 for n in range(4097)}, msgpack.ExtType(5, b""))
    ),
    *(("file", "6.unknown", wrong) for wrong in ([0] * 4097, msgpack.ExtType(5, b"x"))),
    *((part, "too large", bytes(size)) for part, size in (("header", 2**16), ("commit", 2**21), ("manifest", 2**24))),
    *(
        ("manifest", field, wrong)
        for field in ("entries.0", "entry_count", "sequence")
        for wrong in (-1, 0, 3, 2**64 - 1)
    ),
    *(("manifest", "entries.1", wrong) for wrong in (-1, 1, 4, 5, 2**64 - 1)),
    *(("file", "2", wrong) for wrong in (-1, 0o10000)),
    ("file", "3", 2**63),
    *(("file", "4", wrong) for wrong in (-1, 5, 2**63, 2**64 - 1)),
    *(("file", "5.0", wrong) for wrong in (-1, 0, 3, 5)),
    *(("file", "5.1", wrong) for wrong in (-1, 1, 5)),
    *(("link", "4", wrong) for wrong in (-1, 1)),
]


@pytest.mark.parametrize(
    ("part", "field", "wrong"), WRONG_VALUES, ids=[f"{case[0]}-{case[1]}" for case in WRONG_VALUES]
)
def test_a_wrong_value_is_refused(part, field, wrong, refuse_here, tmp_path_factory):
    store = tmp_path_factory.mktemp("wrong")
    write_store(store, part, field, wrong)
    refuse_here(store)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_record_of_another_size_than_it_says_is_refused(more, refuse_here, tmp_path_factory):
    store = tmp_path_factory.mktemp("wrong")
    write_store(store)
    data = bytearray((store / "cas-checkpoint").read_bytes()[:-32])
    data[16] += more
    (store / "cas-checkpoint").write_bytes(data + blake3(data).digest())
    refuse_here(store)


@pytest.mark.parametrize(("field", "wrong"), [("state", "B"), ("state", None), ("series", "t"), ("store", bytes(16))])
def test_a_commit_that_fails_a_check_is_not_skipped(field, wrong, refuse_here, enclosed, tmp_path_factory):
    store = tmp_path_factory.mktemp("wrong")
    write_store(store)
    names = {"store": STORE, "series": "s", "sequence": 2, "transaction": TRANSACTION}
    latest = store / "commits" / "s" / f"{2:016}-{TRANSACTION.hex()}"
    latest.write_bytes(make_record(b"C", {**names, "state": "A", field: wrong}))
    refuse_here(store, "s")
    latest.write_bytes(make_record(b"C", {**names, "state": "A"}))
    restore(store, enclosed, "s")
    check_written(enclosed)


def test_a_footer_with_more_than_its_rows_is_refused(read_object):
    pack = bytes.fromhex(load("objects/pack-of-one.json")["pack"])
    read_object("pack-of-one", make_pack([b"data"], pack))
    with pytest.raises(ValueError, match="sizes"):
        read_object("pack-of-one", make_pack([b"data"], pack, bytes(44)))


def test_a_frame_is_not_decoded_before_its_size_is_known(reader, monkeypatch):
    frame = zstandard.ZstdCompressor().compress(bytes(2**26))
    monkeypatch.setattr(reader.zstandard, "ZstdDecompressor", None)
    with pytest.raises(ValueError, match="wrong size"):
        reader.decode(b"\1" + frame, 2**24)


def test_of_an_entry_that_is_too_large_no_more_is_held(reader):
    pieces = iter([struct.pack("<I", 2**20 + 1), bytes(2**20 + 1), b"never asked for"])
    with pytest.raises(ValueError, match="too large"):
        list(reader.split(pieces))
    assert next(pieces) == b"never asked for"


# --- stores that the library wrote ---


@pytest.fixture
def tree(tmp_path, keeps_xattrs):
    """A directory with everything that a snapshot can hold."""
    root = tmp_path / "source"
    root.mkdir()
    place = os.fsencode(root)
    names = [b"plain", b"\xff\xfe not UTF-8", "größe".encode(), b"new\nline", b"-rf *", b"a.b", b"a-b", b"x" * 255]
    for number, name in enumerate(names):
        with open(os.path.join(place, name), "wb") as file:
            file.write(b"data %d\n" % number * number)
        os.chmod(os.path.join(place, name), 0o400 + number)
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "empty").mkdir(mode=0o711)
    (root / "a" / "b" / "c" / "deep").write_bytes(b"deep")
    (root / "compresses").write_bytes(b"line of text\n" * 50_000)
    (root / "random").write_bytes(blake3(b"random").digest(length=400_000))
    (root / "zeros").write_bytes(bytes(700_000))
    with open(root / "sparse", "wb") as file:
        file.seek(1_000_000)
        file.write(b"middle")
        file.truncate(3_000_001)
    with open(root / "all hole", "wb") as file:
        file.truncate(500_000)
    os.link(root / "random", root / "a" / "linked")
    os.link(root / "random", root / "z")
    os.symlink("a/b", root / "inside")
    os.symlink(b"/etc/\xff/passwd", os.path.join(place, b"absolute"))
    os.symlink("inside/../../..", root / "loop")
    if keeps_xattrs:
        os.setxattr(root / "plain", "user.note", b"\0\xff")
        os.setxattr(root / "a", "user.on a directory", b"")
    os.utime(root / "plain", ns=(1, -1))
    os.utime(root / "inside", ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.chmod(root / "a", 0o2750)
    os.utime(root / "a", ns=(0, 1_000_000_000))
    return root


def new_store(path, *, small_chunks):
    if small_chunks:
        path.mkdir()
        (path / "cas-checkpoint").write_bytes(Header(StoreId(bytes(range(16))), SMALL, SMALL).encode())
    return Store.open(path, create=True)


@pytest.mark.parametrize("small_chunks", [False, True])
def test_a_tree_saved_by_the_library(tree, small_chunks, tmp_path, check_same):
    store = new_store(tmp_path / "store", small_chunks=small_chunks)
    store.save(tree, owner=True)
    restore(tmp_path / "store", tmp_path / "restored")
    check_same(tree, tmp_path / "restored")


def numpy_file(values):
    """Return what numpy saves an array as."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("delta", ["fast", "small"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i8", "u1"])
def test_tensors_that_were_saved_again(dtype, delta, tmp_path, check_same):
    """Chunks of 4 KiB, so that planes and deltas of many sorts are there, and the reader soon done."""
    generator = np.random.default_rng(1)
    first = (generator.normal(0, 30, (100, 60))).astype(dtype)
    second = first.copy()
    second[20:] += generator.integers(0, 2, (80, 60)).astype(dtype)
    place, source = tmp_path / "store", tmp_path / "source"
    header = Header(StoreId(bytes(16)), ChunkerParameters("fastcdc-2020", 1024, 2048, 4096, 1, 0))
    place.mkdir()
    (place / "cas-checkpoint").write_bytes(header.encode())
    source.mkdir()
    filler = np.random.default_rng(2).bytes(300_000)  # so that it is not carried by a commit
    store = Store.open(place)
    for number, values in enumerate((first, second), 1):
        (source / "a.npy").write_bytes(numpy_file(values))
        (source / "filler").write_bytes(filler)
        store.save(source, series="s", delta=delta)
        restore(place, tmp_path / str(number), f"s@{number}")
        check_same(source, tmp_path / str(number))
    footers = [read_footer(path.read_bytes()) for path in (place / "packs").iterdir()]
    assert any(codec == Codec.PLANES for data, footer in footers for codec in codecs_of(data, footer))
    assert any(codec == Codec.DELTA for data, footer in footers for codec in codecs_of(data, footer))


def read_footer(data):
    """Return a pack and its footer."""
    (size,) = struct.unpack_from("<I", data, len(data) - 8)
    return data, parse_footer(data[-size - 8 : -8])


def codecs_of(data, footer):
    return [data[offset] for offset in footer.offsets.tolist()]


def test_several_packs_and_snapshots_that_share_them(tree, tmp_path, monkeypatch, check_same):
    monkeypatch.setattr("cas_checkpoint.packing.PACK_SIZE", 50_000)
    store = new_store(tmp_path / "store", small_chunks=True)
    store.save(tree, series="s")
    shutil.copytree(tree, tmp_path / "as it was", symlinks=True)
    with open(tree / "random", "r+b") as file:
        file.seek(200_000)
        file.write(b"changed")
    store.save(tree, series="s")
    assert len(list((tmp_path / "store" / "packs").iterdir())) > 8
    restore(tmp_path / "store", tmp_path / "first", "s@1")
    assert (tmp_path / "first" / "random").read_bytes() == (tmp_path / "as it was" / "random").read_bytes()
    restore(tmp_path / "store", tmp_path / "second", "s")
    check_same(tree, tmp_path / "second")


def test_a_snapshot_within_its_commit(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    store.save({"a/b": b"small", b"\xff": b""}, series="Größe/1@2")
    assert not (tmp_path / "store" / "packs").exists()
    restore(tmp_path / "store", tmp_path / "target", "Größe/1@2@latest")
    assert (tmp_path / "target" / "a" / "b").read_bytes() == b"small"


@pytest.fixture
def packed(tmp_path):
    """A store with one snapshot that has packs."""
    store = tmp_path / "store"
    Store.open(store, create=True).save({"f": blake3(b"f").digest(length=200_000), "g": b"g" * 100_000})
    return store


def only(directory):
    (path,) = (path for path in directory.rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("index", [None, b"", b"damaged"])
def test_a_store_is_read_from_its_packs_alone(packed, index, tmp_path):
    if index is None:
        shutil.rmtree(packed / "index")
    else:
        only(packed / "index").write_bytes(index)
    restore(packed, tmp_path / "target")
    assert (tmp_path / "target" / "f").read_bytes() == blake3(b"f").digest(length=200_000)
    assert (tmp_path / "target" / "g").read_bytes() == b"g" * 100_000


@pytest.mark.parametrize("kind", ["packs", "manifests", "commits", "cas-checkpoint"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_flipped_bit_is_found(packed, kind, share, tmp_path):
    path = packed / kind if (packed / kind).is_file() else only(packed / kind)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 16
    path.write_bytes(data)
    refuse(packed, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_missing_pack_is_named(packed, tmp_path):
    pack = only(packed / "packs")
    pack.unlink()
    assert pack.name in refuse(packed, tmp_path / "target")
    assert not (tmp_path / "target").exists()
