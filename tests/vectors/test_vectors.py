import json
import math
from pathlib import Path

import pytest
from blake3 import blake3
from pyfastcdc.py.constants import GEAR, MASKS

from cas_checkpoint import Store, errors
from cas_checkpoint.chunking import DATA_CHUNKER, METADATA_CHUNKER, ChunkerParameters, Cutter
from cas_checkpoint.codecs import BLOB_OVERHEAD, Codec, Decoder, Encoder, blob_check
from cas_checkpoint.commits import Commit
from cas_checkpoint.headers import Header
from cas_checkpoint.ids import PackId, TransactionId, chunk_id
from cas_checkpoint.index import encode_index, parse_index
from cas_checkpoint.manifests import Manifest
from cas_checkpoint.marks import Mark
from cas_checkpoint.moves import Move, parse_move_key
from cas_checkpoint.packs import PACK_TAIL_SIZE, PackBuilder, check_pack, parse_footer, read_tail
from cas_checkpoint.pointers import Pointer
from cas_checkpoint.records import Kind, decode_record, make_head

VECTORS = Path(__file__).parent
RECORDS = {"H": Header, "M": Manifest, "C": Commit, "K": Mark, "V": Move, "R": Pointer}


def load(name):
    return json.loads((VECTORS / name).read_bytes())


def stream(case):
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    return bytes(case["size"]) if case["seed"] is None else blake3(case["seed"].encode()).digest(length=case["size"])


def as_json(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


# --- chunk ids, cuts, codecs ---


@pytest.mark.parametrize("case", load("chunk_ids.json"), ids=lambda case: case.get("hex", case.get("size")))
def test_chunk_ids(case):
    assert chunk_id(stream(case)).hex() == case["id"]


CUTS = load("cuts.json")


def named(case):
    chunker = case["chunker"]
    names = ("min_size", "normal_size", "max_size", "normalization", "seed")
    return f"{case['seed']}-{case['size']}-{'-'.join(str(chunker[name]) for name in names)}"


@pytest.mark.parametrize("case", CUTS, ids=named)
def test_cuts(case):
    data = stream(case)
    assert Cutter(ChunkerParameters(**case["chunker"])).cuts(data, final=True) == case["cuts"]


def test_the_defaults_are_among_the_cuts():
    chunkers = [ChunkerParameters(**case["chunker"]) for case in CUTS]
    assert {DATA_CHUNKER, METADATA_CHUNKER} < set(chunkers)
    assert any(chunker.seed for chunker in chunkers)


def cuts_by_the_specification(data, chunker):
    """SPEC.md, section 17, to the letter."""
    level = round(math.log2(chunker["normal_size"]))
    strict, loose = MASKS[level + chunker["normalization"]], MASKS[level - chunker["normalization"]]
    gear = [value ^ chunker["seed"] for value in GEAR]
    cuts = []
    start = 0
    while start < len(data):
        end, fingerprint = min(len(data), start + chunker["max_size"]), 0
        for at in range(start + chunker["min_size"] // 2 * 2, end):
            fingerprint = ((fingerprint << 1) + gear[data[at]]) & (2**64 - 1)
            if not fingerprint & (strict if at - start < chunker["normal_size"] else loose):
                end = at
                break
        start = end
        cuts.append(end)
    return cuts


@pytest.mark.parametrize("case", [case for case in CUTS if case["seed"] and case["size"] <= 300_000], ids=named)
def test_cuts_follow_the_rule_of_the_specification(case):
    assert cuts_by_the_specification(stream(case), case["chunker"]) == case["cuts"]


CODECS = load("codecs/codecs.json")


@pytest.mark.parametrize("case", CODECS, ids=lambda case: case["name"])
def test_blobs_decode_and_fit_their_checks(case):
    blob = (VECTORS / "codecs" / f"{case['name']}.blob").read_bytes()
    plain = (VECTORS / "codecs" / f"{case['name']}.plain").read_bytes()
    assert (blob[0], len(plain)) == (case["codec"], case["plain_size"])
    base = (VECTORS / "codecs" / f"{case['name']}.base").read_bytes() if "base" in case else None
    assert (base is None) == (case["codec"] != Codec.DELTA)
    assert base is None or chunk_id(base).hex() == case["base"]
    assert bytes(Decoder().decode(blob, len(plain), base)) == plain
    assert len(blob) <= len(plain) + BLOB_OVERHEAD
    assert chunk_id(plain).hex() == case["id"]
    assert blob_check(blob[0], blob[1:]) == case["check"]
    assert bytes(Decoder().decode(Encoder().blob(plain), len(plain))) == plain


def planes_of(blob):
    """Yield shape and coding of each plane of a blob of codec 2."""
    at = 2
    for _ in range(1 << (blob[1] & 3)):
        yield blob[1], blob[at]
        at += 5 + int.from_bytes(blob[at + 1 : at + 5], "little")


def test_blobs_of_all_shapes_and_codings_are_there():
    blobs = [(VECTORS / "codecs" / f"{case['name']}.blob").read_bytes() for case in CODECS]
    assert {blob[0] for blob in blobs} == set(Codec)
    assert {coding for blob in blobs if blob[0] == Codec.PLANES for _, coding in planes_of(blob)} == {0, 1, 2, 3, 4}
    deltas = [blob for blob in blobs if blob[0] == Codec.DELTA]
    groups = [blob[6 if blob[1] & 8 else 2 :] for blob in deltas]  # after the window, if there is one
    assert {rest[0] > 0 for rest in groups} == {False, True}  # one group, and several
    first = [rest[2 + rest[0] :] for rest in groups]  # the packed values of the first group
    assert {values[1] for values in first} == {1, 2, 4, 8}
    assert {values[0] > 0 for values in first} == {False, True}
    assert {blob[1] for blob in blobs if blob[0] == Codec.PLANES} == set(range(8))
    assert {blob[1] for blob in blobs if blob[0] == Codec.DELTA} == set(range(16))


# --- objects ---

OBJECTS = sorted(path.stem for path in (VECTORS / "objects").glob("*.json"))
RECORD_NAMES = [name for name in OBJECTS if load(f"objects/{name}.json")["kind"] in RECORDS]


def read_object(name):
    return load(f"objects/{name}.json"), (VECTORS / "objects" / f"{name}.bin").read_bytes()


def body_of(kind, data):
    return as_json(decode_record(Kind(kind.encode()), data)._map)


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_records_hold_what_is_said_and_are_written_again_alike(name):
    said, data = read_object(name)
    assert body_of(said["kind"], data) == said["body"]
    again = RECORDS[said["kind"]].decode(data).encode()
    assert body_of(said["kind"], again) == said["body"]


def test_every_kind_of_object_is_there():
    assert {load(f"objects/{name}.json")["kind"] for name in OBJECTS} == {
        kind.value.decode()
        for kind in Kind
        if kind not in {Kind.PLAN, Kind.RECEIPT}  # these are in no store
    }


def test_fields_of_a_commit():
    said, data = read_object("commit-inline")
    body, commit = said["body"], Commit.decode(data)
    assert (commit.store.hex(), commit.key.series, commit.key.sequence) == (body["store"], "run 7/ä", 12)
    assert (commit.created_at_ns, commit.step, dict(commit.metrics)) == (body["created_at"], 1_000, body["metrics"])
    assert (list(commit.tags), commit.message) == (["best", "größer"], "a message\n")
    assert commit.stats._asdict() == body["stats"]
    assert (commit.manifest_digest.hex(), commit.manifest_size) == (body["manifest_digest"], body["manifest_size"])
    assert {name: value.hex() for name, value in commit.inline._asdict().items()} == body["inline"]


def test_fields_of_a_manifest():
    said, data = read_object("manifest")
    body, manifest = said["body"], Manifest.decode(data)
    assert b"".join(pack + home for pack, home in manifest.packs).hex() == body["packs"]
    assert [manifest.entries.size, manifest.entries.depth, manifest.entries.refs.hex()] == body["entries"]
    assert (manifest.base, manifest.entry_count, manifest.transaction.hex()) == (4, 5, body["transaction"])


def test_fields_of_a_header():
    said, data = read_object("header-other")
    body, header = said["body"], Header.decode(data)
    assert header.chunker._asdict() == body["chunker"]
    assert header.metadata_chunker._asdict() == body["metadata_chunker"]
    assert header.put_if_absent is False
    assert {operation: list(names) for operation, names in header.features} == body["features"]


def test_which_stores_know_tensors():
    """What a header looks like is not what this version would write into a new one alone."""
    known = {name: Header.decode(read_object(name)[1]).knows_tensors for name in OBJECTS if name.startswith("header-")}
    assert known == {"header-default": False, "header-other": False, "header-with-tensors": True}
    assert read_object("header-with-tensors")[0]["body"]["features"]["read"] == ["moves", "tensors-3"]


def test_fields_of_a_move():
    said, data = read_object("move")
    body, move = said["body"], Move.decode(data)
    assert (move.key.pack.hex(), move.key.collection.hex()) == (body["pack"], body["collection"])
    assert b"".join(sorted(move.targets)).hex() == body["targets"]
    assert not Move.decode(read_object("move-without-targets")[1]).targets


def test_fields_of_marks_and_pointers():
    said, data = read_object("mark-open")
    assert b"".join(sorted(Mark.decode(data).packs)).hex() == said["body"]["packs"]
    assert not Mark.decode(read_object("mark-closed")[1]).packs
    said, data = read_object("pointer")
    assert Pointer.decode(data)._replace(store=said["body"]["store"])._asdict() == said["body"]


def read_footer(data, pack):
    length = read_tail(data[-PACK_TAIL_SIZE:], pack_size=len(data))
    footer = parse_footer(data[-length - PACK_TAIL_SIZE : -PACK_TAIL_SIZE], pack=pack)
    check_pack(footer, data)
    return footer


def check_footer(footer, said):
    columns = (footer.offsets, footer.stored_sizes, footer.plain_sizes, footer.checks)
    rows = zip((bytes(row).hex() for row in footer.ids), *(column.tolist() for column in columns), strict=True)
    names = ("id", "offset", "size", "plain_size", "check")
    listed = [dict(zip(names, row, strict=True)) for row in rows]
    for row, base in footer.base_ids().items():
        listed[row]["base"] = base.hex()
    assert listed == said["blobs"]
    assert (footer.pack.hex(), footer.pack_size) == (said["pack"], said["pack_size"])


@pytest.mark.parametrize("name", ["pack", "pack-of-one", "pack-with-deltas"])
def test_packs(name):
    said, data = read_object(name)
    footer = read_footer(data, PackId(bytes.fromhex(said["pack"])))
    check_footer(footer, said)
    builder = PackBuilder(footer.pack)
    whole = {chunk_id(bytes(1_000)).hex(): bytes(1_000)}  # what no pack holds
    for blob in sorted(said["blobs"], key=lambda blob: "base" in blob):
        stored = data[blob["offset"] : blob["offset"] + blob["size"]]
        plain = Decoder().decode(stored, blob["plain_size"], whole.get(blob.get("base")))
        assert chunk_id(plain).hex() == blob["id"]
        whole.setdefault(blob["id"], plain)
    for blob in said["blobs"]:
        stored = data[blob["offset"] : blob["offset"] + blob["size"]]
        base = bytes.fromhex(blob["base"]) if "base" in blob else None
        builder.add(bytes.fromhex(blob["id"]), stored[0], stored[1:], blob["plain_size"], blob["check"], base=base)
    assert b"".join(builder.finish()[1]) == with_writer_version(data, len(footer.encoded))


def with_writer_version(data, footer_size):
    """The pack as this version would write it: the head, and its copy in the footer, name the writer's version."""
    head = make_head(Kind.PACK)
    footer = head + data[-footer_size - PACK_TAIL_SIZE :][16 : footer_size - 32]
    return bytes(head + data[16 : -footer_size - PACK_TAIL_SIZE] + footer + chunk_id(footer) + data[-PACK_TAIL_SIZE:])


@pytest.mark.parametrize("name", ["index", "index-empty"])
def test_indexes(name):
    said, data = read_object(name)
    own_id = TransactionId(bytes.fromhex(said["id"]))
    base, footers = parse_index(data, name=own_id)
    assert base == said["base"]
    for footer, one in zip(footers, said["footers"], strict=True):
        check_footer(footer, one)
    assert parse_index(encode_index(own_id, base, footers), name=own_id)[0] == base
    assert encode_index(own_id, base, footers)[16 : 48 + 32 * len(footers)] == data[16 : 48 + 32 * len(footers)]


BROKEN_OBJECTS = load("broken/objects.json")


def decode(kind, name, data):
    """Read an object as the library does."""
    good = load(f"objects/{name.partition('--')[0]}.json")
    if kind == "I":
        return parse_index(data, name=TransactionId(bytes.fromhex(good["id"])))
    if kind == "P":
        return read_footer(data, PackId(bytes.fromhex(good["pack"])))
    return RECORDS[kind].decode(data)


@pytest.mark.parametrize("name", BROKEN_OBJECTS)
def test_broken_objects_are_refused(name):
    said = BROKEN_OBJECTS[name]
    with pytest.raises(getattr(errors, said["error"])) as caught:
        decode(said["kind"], name, (VECTORS / "broken" / "objects" / f"{name}.bin").read_bytes())
    assert type(caught.value).__name__ == said["error"]


# --- stores ---

TREES = load("trees.json")


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree['series']}-{tree['sequence']}-{tree['id'][:4]}")
def test_snapshots_of_the_golden_store_are_restored(tree, enclosed, check_restored):
    Store.open(VECTORS / "store").restore(tree["id"], enclosed)
    check_restored(tree["entries"], enclosed)


TENSOR_TREES = load("trees-with-tensors.json")


@pytest.mark.parametrize("tree", TENSOR_TREES, ids=lambda tree: tree["sequence"])
def test_snapshots_with_tensors_are_restored(tree, enclosed, check_restored):
    Store.open(VECTORS / "store-with-tensors").restore(tree["id"], enclosed)
    check_restored(tree["entries"], enclosed)


def test_verification_of_the_store_with_tensors_finds_nothing():
    assert Store.open(VECTORS / "store-with-tensors").verify().ok


def test_the_store_with_tensors_has_planes_and_deltas_in_packs_that_were_moved_and_in_a_commit():
    root = VECTORS / "store-with-tensors"
    packs = [path.read_bytes() for path in (root / "packs").iterdir()]
    commits = [Commit.decode(path.read_bytes()) for path in (root / "commits" / "main").iterdir()]
    moved = {pack.hex() for path in (root / "moves").iterdir() for pack in Move.decode(path.read_bytes()).targets}
    (inline,) = (commit.inline.pack for commit in commits if commit.inline)
    groups = packs, [inline], [(root / "packs" / pack).read_bytes() for pack in moved]
    for group in groups:
        footers = [(data, read_footer(data, None)) for data in group]
        codecs = {data[offset] for data, footer in footers for offset in footer.offsets.tolist()}
        assert codecs >= {Codec.PLANES, Codec.DELTA}
        assert any(footer.base_ids() for _, footer in footers)


def test_snapshots_of_the_golden_store_are_found():
    store = Store.open(VECTORS / "store")
    assert {(found.series, found.sequence, found.id) for found in store.snapshots()} == {
        (tree["series"], tree["sequence"], tree["id"]) for tree in TREES
    }
    for series in {tree["series"] for tree in TREES}:
        own = [(tree["sequence"], tree["id"]) for tree in TREES if tree["series"] == series]
        assert store.latest(series).id == max(own)[1]
        assert [(one.sequence, one.id) for one in store.snapshots(series)] == sorted(own, reverse=True)
    assert store.snapshot("main@latest").sequence == 6  # the seventh was aborted


def test_lists_of_chunks_of_the_golden_store_lie_as_deep_as_is_said():
    store = Store.open(VECTORS / "store")
    depths = {
        (snapshot.series, snapshot.sequence): {entry.content.depth for entry in snapshot.entries() if entry.content}
        for snapshot in store.snapshots()
    }
    assert depths["main", 2] == {0, 1}
    assert depths["main", 6] == {0, 2}


def test_packs_of_the_golden_store_were_moved():
    """Several of them are gone, and one of those that took their place is gone too."""
    keys = {parse_move_key(f"moves/{path.name}") for path in (VECTORS / "store" / "moves").iterdir()} - {None}
    moves = [Move.decode((VECTORS / "store" / str(key)).read_bytes()) for key in keys]
    assert {move.key for move in moves} == keys
    sources = {move.key.pack for move in moves}
    assert not any((VECTORS / "store" / "packs" / pack.hex()).exists() for pack in sources)
    store = Store.open(VECTORS / "store")
    named = {ref.pack for snapshot in store.snapshots("moved") for ref in snapshot.reader().manifest().packs}
    targets = frozenset().union(*(move.targets for move in moves))
    assert len(sources & named) == 3
    assert len(sources & targets) == 1
    assert len(moves) > len(sources)  # one was moved by two collections
    assert any(len(move.targets) > 1 for move in moves)


def test_verification_of_the_golden_store_finds_the_damaged_index_only():
    report = Store.open(VECTORS / "store").verify()
    assert not report.lost
    assert {problem.key.partition("/")[0] for problem in report.problems} == {"index"}


BROKEN_STORES = load("broken/stores.json")


@pytest.mark.parametrize("name", BROKEN_STORES)
def test_broken_stores_are_refused(name, enclosed):
    expected = getattr(errors, BROKEN_STORES[name]["error"])
    with pytest.raises(expected) as caught:
        Store.open(VECTORS / "broken" / "stores" / name).restore("s@1", enclosed)
    assert type(caught.value) is expected


VERIFIABLE = [name for name in BROKEN_STORES if not name.startswith("header-")]


@pytest.mark.parametrize("name", VERIFIABLE)
def test_broken_stores_are_found_by_a_verification(name):
    report = Store.open(VECTORS / "broken" / "stores" / name).verify()
    assert report.ok == (name == "commit-aborted")  # nothing is wrong with that one but that there is no snapshot
