"""Stores in which chunks are stored as deltas of others: read, collected, verified, repaired."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cas_checkpoint import fetching
from cas_checkpoint.bases import KnownBases
from cas_checkpoint.codecs import Codec, Encoder, blob_check
from cas_checkpoint.commits import Commit, CommitKey, Inline, State, index_key, manifest_key, pack_key
from cas_checkpoint.elements import Elements
from cas_checkpoint.errors import DamagedObject, MissingObject, SnapshotForgotten
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import PackId, TransactionId, chunk_id, digest
from cas_checkpoint.index import encode_index
from cas_checkpoint.manifests import Content, Entry, EntryType, Manifest, PackRef, encode_entry, encode_ref
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packs import PackBuilder
from cas_checkpoint.sampling import Sample
from cas_checkpoint.transactions import commit, list_commits, list_marks, list_packs, next_sequence, put_move, random_id
from cas_checkpoint.verifying import AffectedPath, Verification

READER = Path(__file__).parents[2] / "tools" / "independent_reader.py"
PIECE = 8 * 2**10
INTEGERS = Elements(2, is_float=False)


class Saver:
    """Saves files into a store, cut into pieces of one size, as deltas of the same pieces of other files."""

    def __init__(self, store, elements=INTEGERS, *, is_thorough=False):
        self._coding = {"elements": elements, "is_thorough": is_thorough}
        self.store, self.backend = store, store._backend
        self.homes = {}  # for each chunk where it is stored, and as a delta of what

    def save(self, files, parent=None, *, series="default", name=None):
        """Save files; pieces that the store does not hold become deltas of those of the parent's files."""
        base = list_marks(self.backend).base
        transaction = TransactionId(name or random_id())
        own = PackRef(PackId(transaction), transaction)
        builder, used = PackBuilder(own.pack), set()

        def put(plain, like=None):
            chunk = chunk_id(plain)
            if chunk not in self.homes:
                add(builder, plain, like, **self._coding)
                self.homes[chunk] = own, None if like is None else chunk_id(like)
            home, source = self.homes[chunk]
            used.update({home} if source is None else {home, self.homes[source][0]})
            return encode_ref(chunk, len(plain))

        entries = b""
        for path, data in sorted(files.items()):
            old = (parent or {}).get(path, b"")
            starts = range(0, len(data), PIECE)
            refs = (put(data[at : at + PIECE], old[at : at + PIECE] or None) for at in starts)
            content = Content(len(data), 0, b"".join(refs))
            entries += encode_entry(Entry(path.encode(), EntryType.FILE, 0o644, 0, len(data), content))
        listed = Content(len(entries), 0, put(entries))
        footer, parts = builder.finish()
        self.backend.put(pack_key(own.pack), parts)
        self.backend.put(index_key(transaction), [encode_index(transaction, base, [footer])])
        key = CommitKey(series, next_sequence(list_commits(self.backend, series)), transaction)
        store = self.store._header.store
        manifest = Manifest(store, *key, base, tuple(sorted(used)), listed, len(files)).encode()
        self.backend.put(manifest_key(transaction), [manifest])
        record = Commit(State.COMMITTED, store, key, manifest_digest=digest((manifest,)), manifest_size=len(manifest))
        commit(self.backend, record)
        return self.store.snapshot(transaction.hex())


def add(builder, plain, like=None, *, elements=INTEGERS, is_thorough=False):
    """Add a chunk to a pack, whole or as a delta of another."""
    base = None
    codec, payload = Encoder().encode(plain)
    if like is not None:
        codec, base = Codec.DELTA, chunk_id(like)
        payload = Encoder().encode_delta(plain, like, elements, thorough=is_thorough, limit=len(plain))
        assert payload is not None
    builder.add(chunk_id(plain), codec, payload, len(plain), blob_check(codec, payload), base=base)


def put_pack(backend, *chunks, name=None):
    """Store a pack of chunks, each given whole or as a pair of it and what it is to be a delta of."""
    builder = PackBuilder(PackId(name or os.urandom(16)))
    for chunk in chunks:
        add(builder, *(chunk if isinstance(chunk, tuple) else (chunk,)))
    footer, parts = builder.finish()
    backend.put(pack_key(footer.pack), parts)
    name = TransactionId(footer.pack)
    backend.put(index_key(name), [encode_index(name, 0, [footer])])
    return footer.pack


def changed(files, place=7):
    """Return files of which a little of every piece is another."""
    result = {}
    for path, data in files.items():
        altered = bytearray(data)
        for at in range(0, len(data), PIECE):
            altered[at + place] ^= 0x15
        result[path] = bytes(altered)
    return result


def ref(plain):
    return encode_ref(chunk_id(plain), len(plain))


def pieces(data):
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


SOURCE = random.Random(8)
FIRST = {"a": SOURCE.randbytes(6 * PIECE), "b": SOURCE.randbytes(3 * PIECE), "c": SOURCE.randbytes(PIECE // 2)}
SECOND = changed(FIRST)
THIRD = changed({"a": SECOND["a"]}) | {"b": SECOND["b"]}


@pytest.fixture
def saver(store):
    return Saver(store)


@pytest.fixture
def first(saver):
    return saver.save(FIRST)


@pytest.fixture
def second(saver, first):
    """A snapshot whose files are deltas of those of the first."""
    return saver.save(SECOND, FIRST)


def own_pack(snapshot):
    return PackId(bytes.fromhex(snapshot.id))


def spoil(backend, pack, plain):
    """Alter the blob of a chunk in a pack."""
    footer = read_footer(backend, pack)
    row = [bytes(chunk) for chunk in footer.ids].index(chunk_id(plain))
    data = bytearray(backend.get(pack_key(pack), max_size=2**26))
    data[int(footer.offsets[row]) + int(footer.stored_sizes[row]) // 2] ^= 0x5A
    backend.put(pack_key(pack), [bytes(data)])


def contents(snapshot):
    """Read all that a snapshot holds; return the files, and what was noticed."""
    reader, notices = snapshot.reader(), []
    reader.notice = notices.append
    return {entry.name: b"".join(map(bytes, reader.data(entry.content))) for entry in reader.entries()}, notices


def restored(store, snapshot, target, **more):
    result = store.restore(snapshot, target, **more)
    return {name: (target / name).read_bytes() for name in os.listdir(target)}, result


def without_indexes(backend):
    for info in list(backend.list("index/")):
        backend.delete(info.key)


def moved(backend, pack, *targets):
    put_move(backend, pack, targets)
    backend.delete(pack_key(pack))


# --- reading ------------------------------------------------------------------------------------


def test_deltas_are_stored_as_such(backend, second):
    footer = read_footer(backend, own_pack(second))
    assert len(footer.delta_rows) == 10
    assert footer.stored_sizes[footer.delta_rows].max() < 1000


@pytest.mark.parametrize("is_indexed", [True, False])
def test_deltas_are_read_however_a_snapshot_is_read(store, backend, second, tmp_path, is_indexed):
    if not is_indexed:
        without_indexes(backend)
    assert contents(second) == (SECOND, [])
    assert restored(store, second, tmp_path / "target")[0] == SECOND
    assert {name: second.read_bytes(name) for name in SECOND} == SECOND
    with second.open("a") as file:
        file.seek(2 * PIECE - 3)
        assert file.read(10) == SECOND["a"][2 * PIECE - 3 : 2 * PIECE + 7]


@pytest.mark.parametrize(
    "elements", [Elements(width, is_float) for width in (1, 2, 4, 8) for is_float in (True, False)]
)
@pytest.mark.parametrize("is_thorough", [True, False])
def test_deltas_are_read_by_the_second_reader(store, tmp_path, elements, is_thorough):
    saver = Saver(store, elements, is_thorough=is_thorough)
    first, second = FIRST | {"odd": FIRST["c"][:1001]}, SECOND | {"odd": SECOND["c"][:1001]}
    saver.save(first)
    saver.save(second, first)
    command = [sys.executable, READER, store._backend.root, tmp_path / "target", "default@2"]
    subprocess.run(command, check=True, timeout=60)
    assert {name: (tmp_path / "target" / name).read_bytes() for name in second} == second


def test_deltas_of_deltas_are_never_needed(saver, second):
    """What the second snapshot holds as deltas are none to the third: their bases are."""
    third = saver.save(THIRD, {"a": FIRST["a"]})
    assert contents(third) == (THIRD, [])


def test_a_chunk_is_read_in_two_requests_at_most_and_neighbours_together(backend, second, monkeypatch):
    reader = second.reader()
    reader.index()
    entries = list(reader.entries())
    reads = []
    whole = type(backend).read_into

    def read_into(self, key, offset, memory):
        reads.append(key)
        return whole(self, key, offset, memory)

    monkeypatch.setattr(type(backend), "read_into", read_into)
    (refs,) = (list(reader.refs(entry.content)) for entry in entries if entry.name == "a")
    (request,) = reader.plan(refs)
    assert len(request.rows) == 6
    assert b"".join(bytes(plain) for _, plain in reader.fetch(request)) == SECOND["a"]
    assert len(reads) == 2


def test_so_many_deltas_are_in_a_request_that_their_bases_can_be_held(second, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_DELTAS", 2 * PIECE)
    reader = second.reader()
    refs = [ref for entry in reader.entries() for ref in reader.refs(entry.content)]
    requests = reader.plan(refs)
    assert [len(request.rows) for request in requests] == [2, 2, 2, 2, 2]
    found = {row.number: bytes(plain) for request in requests for row, plain in reader.fetch(request)}
    assert b"".join(found[number] for number in range(10)) == b"".join(SECOND.values())


def test_a_delta_that_is_asked_for_twice_is_told_twice(second):
    reader = second.reader()
    refs = [ref for entry in reader.entries() for ref in reader.refs(entry.content)] * 2
    found = {row.number: bytes(plain) for request in reader.plan(refs) for row, plain in reader.fetch(request)}
    assert b"".join(found[number] for number in range(20)) == b"".join(SECOND.values()) * 2


def test_packs_of_deltas_and_of_bases_are_followed_where_they_went(backend, first, second):
    old, new = own_pack(first), own_pack(second)
    for pack in (old, new):
        footer = read_footer(backend, pack)
        data = backend.get(pack_key(pack), max_size=2**26)
        builder, bases = PackBuilder(PackId(os.urandom(16))), footer.base_ids()
        for row in reversed(range(len(footer.ids))):
            blob = data[int(footer.offsets[row]) :][: int(footer.stored_sizes[row])]
            sizes = int(footer.plain_sizes[row]), int(footer.checks[row])
            builder.add(bytes(footer.ids[row]), blob[0], blob[1:], *sizes, base=bases.get(row))
        copy, parts = builder.finish()
        backend.put(pack_key(copy.pack), parts)
        reader = second.reader()
        entries = {entry.name: entry for entry in reader.entries()}
        moved(backend, pack, copy.pack)
        assert contents(second) == (SECOND, [])
        assert b"".join(reader.data(entries["a"].content)) == SECOND["a"]  # gone after it was learned where it is


def test_a_damaged_delta_is_read_from_a_copy_of_any_kind(backend, second):
    one, two, three = pieces(SECOND["a"])[:3]
    for plain in (one, two, three):
        spoil(backend, own_pack(second), plain)
    other = SOURCE.randbytes(PIECE)
    like = bytes([two[0] ^ 1]) + two[1:]
    put_pack(backend, (one, bytes([one[0] ^ 1]) + one[1:]), other, one, (two, like), like)
    with pytest.raises(DamagedObject, match=chunk_id(three).hex()):
        contents(second)
    put_pack(backend, (three, pieces(FIRST["a"])[2]))
    files, notices = contents(second)
    assert files == SECOND
    assert pack_key(own_pack(second)) in {notice.path for notice in notices}


def test_a_damaged_base_is_read_from_another_copy_that_is_whole(backend, first, second):
    base = pieces(FIRST["a"])[3]
    spoil(backend, own_pack(first), base)
    like = bytes([base[0] ^ 1]) + base[1:]
    put_pack(backend, (base, like), like)
    with pytest.raises(DamagedObject, match=f"{chunk_id(base).hex()}.*not those that were stored") as caught:
        contents(second)
    assert caught.value.key == pack_key(own_pack(first))
    assert contents(first)[0] == FIRST
    copy = put_pack(backend, (base, like), base)
    files, (notice,) = contents(second)
    assert files == SECOND
    assert notice.path == pack_key(own_pack(first))
    assert pack_key(copy) in notice.message


def test_a_lost_base_costs_the_files_that_need_it_and_no_others(store, backend, first, second, tmp_path):
    spoil(backend, own_pack(first), pieces(FIRST["a"])[3])
    files, result = restored(store, second, tmp_path / "target", damaged="skip")
    assert files == {"b": SECOND["b"], "c": SECOND["c"]}
    assert result.lost == ("a",)
    with pytest.raises(
        DamagedObject, match=f"stored as a difference from the chunk {chunk_id(pieces(FIRST['a'])[3]).hex()}"
    ):
        store.restore(second, tmp_path / "other")


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_missing_pack_of_bases_is_told(backend, first, second, is_indexed):
    if not is_indexed:
        without_indexes(backend)
    backend.delete(pack_key(own_pack(first)))
    with pytest.raises(MissingObject, match=own_pack(first).hex()):
        contents(second)


def test_a_forgotten_snapshot_whose_bases_are_gone_is_no_damage(store, backend, first, second):
    reader = second.reader()
    entries = list(reader.entries())
    store.forget(second)
    backend.delete(pack_key(own_pack(first)))
    with pytest.raises(SnapshotForgotten):
        list(reader.data(entries[0].content))


@pytest.mark.parametrize("name", [bytes(16), b"\xff" * 16])
def test_bases_that_no_pack_of_the_manifest_holds_are_looked_for(backend, first, second, name):
    base = pieces(FIRST["a"])[0]
    put_pack(backend, (base, bytes([base[0] ^ 1]) + base[1:]), name=name)  # a delta is no base
    reader, notices = second.reader(), []
    reader.notice = notices.append
    own = own_pack(second)
    reader._manifest = reader.manifest()._replace(packs=tuple(r for r in reader.manifest().packs if r.pack == own))
    (entry,) = (entry for entry in reader.entries() if entry.name == "a")
    assert b"".join(reader.data(entry.content)) == SECOND["a"]
    (notice,) = notices
    assert pack_key(own_pack(first)) in notice.message


def test_bases_that_are_nowhere_are_told_by_their_deltas(backend, second, monkeypatch):
    reader = second.reader()
    own = own_pack(second)
    for pack in list_packs(backend) - {own}:
        backend.delete(pack_key(pack))
    without_indexes(backend)
    reader._manifest = reader.manifest()._replace(packs=tuple(r for r in reader.manifest().packs if r.pack == own))
    (entry,) = (entry for entry in reader.entries() if entry.name == "a")
    for _ in range(2):
        with pytest.raises(
            MissingObject, match=f"difference .*{chunk_id(FIRST['a'][:PIECE]).hex()} is in none of the packs"
        ):
            list(reader.data(entry.content))
        monkeypatch.setattr("cas_checkpoint.reading.indexed_everywhere", lambda _: pytest.fail("again"))


def test_damaged_bases_are_looked_for_once(backend, first, second, monkeypatch):
    spoil(backend, own_pack(first), pieces(FIRST["a"])[3])
    reader = second.reader()
    (entry,) = (entry for entry in reader.entries() if entry.name == "a")
    looked = []
    monkeypatch.setattr("cas_checkpoint.reading.indexed_everywhere", lambda _: looked.append(1) or ())
    for _ in range(3):
        with pytest.raises(DamagedObject):
            list(reader.data(entry.content))
    assert len(looked) == 2  # for the base, and for other copies of what is a delta of it


def test_what_is_lost_as_a_base_may_be_there_as_a_delta(backend, saver, first):
    base = pieces(FIRST["a"])[3]
    snapshot = saver.save({"1": SECOND["a"], "2": base}, {"1": FIRST["a"]})
    spoil(backend, own_pack(first), base)
    like = bytes([base[0] ^ 1]) + base[1:]
    put_pack(backend, (base, like), like)
    reader = snapshot.reader()
    one, two = reader.entries()
    with pytest.raises(DamagedObject):
        list(reader.data(one.content))
    assert b"".join(reader.data(two.content)) == base


def test_what_no_pack_holds_whole_may_be_there_as_a_delta(backend, saver, first):
    base = pieces(FIRST["a"])[3]
    snapshot = saver.save({"1": SECOND["a"], "2": base}, {"1": FIRST["a"]})
    like = bytes([base[0] ^ 1]) + base[1:]
    others = [plain for name in "abc" for plain in pieces(FIRST[name]) if plain != base]
    kept = put_pack(backend, *others)
    put_pack(backend, (base, like), like)
    backend.delete(index_key(TransactionId(own_pack(first))))
    moved(backend, own_pack(first), kept)
    reader = snapshot.reader()
    one, two = reader.entries()
    with pytest.raises(MissingObject, match=chunk_id(base).hex()):
        list(reader.data(one.content))
    assert b"".join(reader.data(two.content)) == base


def test_a_snapshot_within_its_commit_may_hold_deltas_of_its_own_chunks(store, backend):
    one, two = FIRST["c"], changed({"c": FIRST["c"]})["c"]
    key = CommitKey("inline", 1, TransactionId(random_id()))
    builder = PackBuilder(PackId(key.transaction))
    entries = b"".join(
        encode_entry(Entry(path, EntryType.FILE, 0o644, 0, len(plain), Content(len(plain), 0, ref(plain))))
        for path, plain in ((b"1", one), (b"2", two))
    )
    for plain, like in ((two, one), (one, None), (entries, None)):
        add(builder, plain, like)
    pack = b"".join(builder.finish()[1])
    store_id = store._header.store
    manifest = Manifest(store_id, *key, 0, (), Content(len(entries), 0, ref(entries)), 2).encode()
    record = Commit(State.COMMITTED, store_id, key, manifest_digest=digest((manifest,)), manifest_size=len(manifest))
    commit(backend, record._replace(inline=Inline(manifest, pack)))
    snapshot = store.snapshot("inline@1")
    assert contents(snapshot) == ({"1": one, "2": two}, [])
    assert store.verify().ok


def test_a_base_of_another_size_is_refused(backend, saver, first):
    longer = FIRST["a"][:PIECE] + b"more"
    second = saver.save({"a": longer}, {})
    footer = read_footer(backend, own_pack(second))
    builder = PackBuilder(PackId(os.urandom(16)))
    data = backend.get(pack_key(footer.pack), max_size=2**20)
    for row in range(len(footer.ids)):
        blob = data[int(footer.offsets[row]) :][: int(footer.stored_sizes[row])]
        base = chunk_id(FIRST["c"]) if row == 0 else None
        builder.add(
            bytes(footer.ids[row]), blob[0], blob[1:], int(footer.plain_sizes[row]), int(footer.checks[row]), base=base
        )
    copy, parts = builder.finish()
    backend.put(pack_key(copy.pack), parts)
    moved(backend, footer.pack, copy.pack, own_pack(first))
    without_indexes(backend)
    with pytest.raises(DamagedObject, match="is listed with two sizes"):
        contents(second)


# --- collecting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("repack", [0.5, 1e-6, None])
def test_bases_are_kept_as_long_as_their_deltas_are_needed(store, backend, saver, first, second, tmp_path, repack):
    extra = saver.save({"other": SOURCE.randbytes(20 * PIECE)} | {"a": FIRST["a"]})
    store.forget(first)
    store.collect(repack=repack)
    assert contents(second) == (SECOND, [])
    store.forget(extra)
    store.collect(repack=repack)
    assert contents(second) == (SECOND, [])
    assert restored(store, second, tmp_path / "target")[0] == SECOND
    assert store.verify().ok
    store.forget(second)
    report = store.collect(repack=repack)
    assert report.packs_deleted > 0
    assert list_packs(backend) == frozenset()
    assert {info.key for info in backend.list("manifests/")} == set()


def test_of_a_pack_of_bases_only_these_are_kept(store, backend, first, saver):
    second = saver.save({"b": SECOND["b"], "n": FIRST["a"][:PIECE]}, {"b": FIRST["b"]})
    store.forget(first)
    report = store.collect(repack=0.1)
    assert (report.packs_repacked, own_pack(first) in list_packs(backend)) == (1, False)
    assert contents(second) == ({"b": SECOND["b"], "n": FIRST["a"][:PIECE]}, [])
    kept = [bytes(chunk) for pack in list_packs(backend) for chunk in read_footer(backend, pack).ids]
    assert {chunk_id(plain) for plain in pieces(FIRST["b"])} <= {*kept}
    assert chunk_id(FIRST["c"]) not in kept
    without_indexes(backend)
    assert contents(second)[0]["b"] == SECOND["b"]


def test_deltas_are_repacked_as_they_are(store, backend, saver, first, second):
    third = saver.save({"b": SECOND["b"]}, FIRST)
    store.forget(first)
    store.forget(second)
    report = store.collect(repack=0.1)
    assert report.packs_repacked == 2
    assert contents(third) == ({"b": SECOND["b"]}, [])
    footers = [read_footer(backend, pack) for pack in list_packs(backend)]
    bases = {bytes(base) for footer in footers for base in footer.bases}
    assert bases == {chunk_id(plain) for plain in pieces(FIRST["b"])}
    assert sum(len(footer.ids) for footer in footers) == 3 + 3 + 1
    assert store.verify().ok


@pytest.mark.parametrize("names", [(b"\1" * 16, b"\2" * 16), (b"\2" * 16, b"\1" * 16)])
def test_what_snapshots_of_the_same_entries_need_depends_on_their_packs(store, saver, first, names):
    """One holds its files as deltas, and one, of the very same entries, as whole chunks."""
    files = SECOND | {"c": FIRST["c"]}
    deltas = saver.save(files, FIRST, name=names[0])
    other = Saver(store)
    other.homes[chunk_id(FIRST["c"])] = saver.homes[chunk_id(FIRST["c"])]  # so that it names the pack of bases too
    whole = other.save(files, series="other", name=names[1])
    assert whole.reader().manifest().entries == deltas.reader().manifest().entries
    store.forget(first)
    store.collect(repack=1e-6)
    assert contents(deltas) == (files, [])
    store.forget(deltas)
    store.collect(repack=1e-6)
    assert contents(whole) == (files, [])


def test_a_move_is_found_incomplete_if_it_holds_a_base_as_a_delta_only(store, backend, saver, first, second):
    """A collection that goes on where another stopped copies what is not there as it is needed."""
    like = changed({"b": FIRST["b"]})["b"]
    target = put_pack(backend, *((plain, base) for plain, base in zip(pieces(FIRST["b"]), pieces(like), strict=True)))
    put_move(backend, own_pack(first), [target])
    copied = put_pack(backend, *zip(pieces(SECOND["a"]), pieces(FIRST["a"]), strict=True))
    put_move(backend, own_pack(second), [copied])
    store.collect(repack=None)
    assert {own_pack(first), own_pack(second)}.isdisjoint(list_packs(backend))
    assert contents(second) == (SECOND, [])
    assert contents(first) == (FIRST, [])
    new = [read_footer(backend, pack) for pack in list_packs(backend) - {target, copied}]
    deltas = {bytes(footer.ids[row]) for footer in new for row in footer.delta_rows}
    assert deltas == {chunk_id(plain) for name in "bc" for plain in pieces(SECOND[name])}


def test_copies_as_deltas_of_different_chunks_are_all_kept(store, backend, saver, first, second):
    """Which of them a snapshot is read from depends on the packs that it names."""
    other = Saver(store)
    like = {"a": bytes([FIRST["a"][0] ^ 9]) + FIRST["a"][1:]}
    begun = other.save(like, series="other")
    again = other.save({"a": SECOND["a"], "z": b"z"}, like, series="other")
    for snapshot in (first, begun):
        store.forget(snapshot)
    third = saver.save({"c": b"c"})
    store.collect(repack=1e-6)
    store.forget(third)
    store.collect(repack=1e-6)
    for snapshot, files in ((second, SECOND), (again, {"a": SECOND["a"], "z": b"z"})):
        assert contents(snapshot) == (files, [])
    store.forget(second)
    store.collect(repack=1e-6)
    assert contents(again) == ({"a": SECOND["a"], "z": b"z"}, [])
    assert store.verify().ok


def test_nothing_is_repacked_as_long_as_nobody_knows_what_a_pack_holds_deltas_of(store, backend, saver, first, second):
    path = os.path.join(backend.root, pack_key(own_pack(second)))
    without_indexes(backend)
    whole = backend.get(pack_key(own_pack(second)), max_size=2**26)
    os.truncate(path, len(whole) - 50)
    kept = saver.save({"a": FIRST["a"]})
    store.forget(first)
    store.collect(repack=1e-6)
    assert own_pack(first) in list_packs(backend)
    backend.put(pack_key(own_pack(second)), [whole])
    assert contents(second)[0] == SECOND
    assert contents(kept)[0] == {"a": FIRST["a"]}


# --- verifying and repairing --------------------------------------------------------------------


def paths(*pairs):
    return tuple(AffectedPath(snapshot.id, path) for snapshot, path in pairs)


@pytest.mark.parametrize("depth", ["structure", "sample", "data"])
def test_a_store_with_deltas_is_found_whole(store, second, depth):
    report = store.verify(depth=depth, sample=0.5)
    assert (report.ok, report.lost, report.snapshots, report.packs) == (True, (), 2, 2)


def test_a_damaged_delta_costs_its_file(store, backend, first, second):
    spoil(backend, own_pack(second), pieces(SECOND["b"])[1])
    report = store.verify()
    assert report.lost == paths((second, "b"))
    (problem,) = report.problems
    assert (problem.key, problem.snapshots) == (pack_key(own_pack(second)), (second.id,))
    repaired = store.repair()
    assert repaired.lost == paths((second, "b"))
    assert repaired.quarantined == (pack_key(own_pack(second)),)
    assert second.read_bytes("a") == SECOND["a"]
    assert store.verify().lost == paths((second, "b"))


def test_a_damaged_base_costs_the_files_of_its_deltas(store, backend, first, second):
    base = pieces(FIRST["a"])[3]
    spoil(backend, own_pack(first), base)
    report = store.verify()
    assert set(report.lost) == {*paths((first, "a"), (second, "a"))}
    assert [problem.key for problem in report.problems] == [pack_key(own_pack(first))]
    assert set(report.problems[0].snapshots) == {first.id, second.id}
    repaired = store.repair()
    assert set(repaired.lost) == {*paths((first, "a"), (second, "a"))}
    assert repaired.quarantined == (pack_key(own_pack(first)),)
    for snapshot, files in ((first, FIRST), (second, SECOND)):
        assert snapshot.read_bytes("b") == files["b"]
        with pytest.raises((DamagedObject, MissingObject)):
            snapshot.read_bytes("a")
    after = store.verify()
    assert set(after.lost) == {*paths((first, "a"), (second, "a"))}
    assert any(chunk_id(base).hex() in problem.message for problem in after.problems)


def test_a_damaged_base_is_found_in_a_sample_of_its_deltas(store, backend, first, second):
    base, delta = pieces(FIRST["a"])[3], pieces(SECOND["a"])[3]
    spoil(backend, own_pack(first), base)

    def holds(seed, snapshot, plain):
        footer = read_footer(backend, own_pack(snapshot))
        rows = Sample(0.2, seed).rows(footer).tolist()
        return chunk_id(plain) in {bytes(footer.ids[row]) for row in rows}

    seeds = range(1000)
    neither = next(seed for seed in seeds if not holds(seed, first, base) and not holds(seed, second, delta))
    only_delta = next(seed for seed in seeds if not holds(seed, first, base) and holds(seed, second, delta))
    assert store.verify(depth="sample", sample=0.2, seed=neither).ok
    report = store.verify(depth="sample", sample=0.2, seed=only_delta)
    assert [problem.key for problem in report.problems] == [pack_key(own_pack(first))]
    assert set(report.lost) == {*paths((first, "a"), (second, "a"))}


def test_what_is_wrong_with_a_delta_is_not_told_of_one_that_nobody_needs(store, backend, saver, first, second):
    kept = saver.save({"b": SECOND["b"]}, FIRST)
    store.forget(first)
    store.forget(second)
    with_dead = own_pack(second)
    store.collect(repack=0.99)  # the deltas of a and c stay, and their bases may go
    moved(backend, own_pack(first), put_pack(backend, *pieces(FIRST["b"])))
    assert with_dead in list_packs(backend)
    report = store.verify()
    assert (report.problems, report.lost) == ((), ())
    assert contents(kept) == ({"b": SECOND["b"]}, [])


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_base_that_is_to_be_had_elsewhere_is_healed(store, backend, saver, first, second, is_damaged):
    store.forget(first)
    base = pieces(FIRST["a"])[3]
    if is_damaged:
        spoil(backend, own_pack(first), base)
    else:
        bases = [plain for name in "abc" for plain in pieces(FIRST[name]) if plain != base]
        moved(backend, own_pack(first), put_pack(backend, *bases))
    again = Saver(store).save({"x": base}, series="other")
    report = store.verify()
    assert report.lost == ()
    assert not report.ok
    repaired = store.repair()
    assert repaired.healed == paths((second, "a"))
    assert repaired.lost == ()
    assert contents(second) == (SECOND, [])
    assert store.verify().ok
    store.forget(again)
    store.collect(repack=1e-6)
    assert contents(second) == (SECOND, [])


def test_a_stray_delta_is_healed_together_with_its_base(store, backend, saver, first, second):
    """Both are in packs that the snapshot does not name."""
    lost = pieces(SECOND["a"])[2]
    spoil(backend, own_pack(second), lost)
    like = bytes([lost[0] ^ 1]) + lost[1:]
    other = Saver(store)
    other.save({"x": like}, series="other")
    other.save({"x": lost}, {"x": like}, series="other")
    assert store.verify().lost == ()
    repaired = store.repair()
    assert repaired.healed == paths((second, "a"))
    without_indexes(backend)
    assert contents(second) == (SECOND, [])
    assert store.verify().lost == ()


def test_a_copy_that_is_a_delta_is_no_base(store, backend, first, second):
    base = pieces(FIRST["a"])[3]
    like = bytes([base[0] ^ 1]) + base[1:]
    other = Saver(store)
    other.save({"x": like}, series="other")
    other.save({"x": base}, {"x": like}, series="other")
    assert store.verify().ok
    spoil(backend, own_pack(first), base)
    report = store.verify()
    assert report.lost == paths((second, "a"))
    (problem,) = report.problems
    assert problem.key == pack_key(own_pack(first))
    assert store.repair().healed == paths((first, "a"))
    assert contents(first)[0] == FIRST


def test_a_pack_is_intact_whatever_became_of_its_bases(store, backend, first, second):
    spoil(backend, own_pack(first), pieces(FIRST["a"])[3])
    found = Verification(backend, store._header, sample=Sample(1.0, 0), workers=1, monitor=Monitor())
    found.run()
    assert found.is_intact(own_pack(second))
    assert not found.is_intact(own_pack(first))


def test_a_missing_pack_of_bases_is_told_with_the_files_that_are_lost(store, backend, first, second):
    backend.delete(pack_key(own_pack(first)))
    report = store.verify()
    assert {*report.lost} >= {*paths((second, "a"), (second, "b"), (second, "c"))}
    assert [problem.key for problem in report.problems] == [pack_key(own_pack(first))]


def test_a_delta_that_decodes_to_something_else_is_damage_and_not_copied_by_a_repair(store, backend, saver, first):
    wrong = pieces(SECOND["b"])[0]
    like = changed({"b": FIRST["b"]}, 99)
    saver.save(like, series="other")
    second = saver.save({"b": SECOND["b"]}, like)
    footer = read_footer(backend, own_pack(second))
    data = backend.get(pack_key(footer.pack), max_size=2**20)
    builder = PackBuilder(footer.pack)
    for row in range(len(footer.ids)):
        blob = data[int(footer.offsets[row]) :][: int(footer.stored_sizes[row])]
        base = chunk_id(FIRST["b"][row * PIECE : (row + 1) * PIECE]) if row < 3 else None
        builder.add(
            bytes(footer.ids[row]), blob[0], blob[1:], int(footer.plain_sizes[row]), int(footer.checks[row]), base=base
        )
    copy, parts = builder.finish()
    backend.put(pack_key(copy.pack), parts)
    without_indexes(backend)
    report = store.verify()
    assert report.lost == paths((second, "b"))
    assert any(p.message.startswith(f"chunk {chunk_id(wrong).hex()}: ") for p in report.problems)
    assert store.repair().chunks_copied == 1
    assert store.repair().quarantined == ()


# --- bases as a verification reads them ---------------------------------------------------------


def known_bases(backend, *packs):
    return KnownBases(backend, [read_footer(backend, pack) for pack in packs])


def test_a_base_is_read_from_the_first_copy_that_is_right(backend, first, second):
    one, two = pieces(FIRST["a"])[:2]
    packs = [own_pack(first), own_pack(second)]
    packs += [put_pack(backend, one), put_pack(backend, one, two), put_pack(backend, one), put_pack(backend, one, two)]
    bases = known_bases(backend, *packs)
    wanted = [chunk_id(one), chunk_id(two)]
    assert bases.read(wanted) == ({wanted[0]: one, wanted[1]: two}, [])
    spoil(backend, packs[0], one)
    backend.delete(pack_key(packs[2]))
    os.truncate(os.path.join(backend.root, pack_key(packs[3])), 100)
    found, faults = bases.read(wanted)
    assert found == {wanted[0]: one, wanted[1]: two}
    assert [(fault.pack, fault.chunk) for fault in faults] == [(packs[0], wanted[0]), (packs[3], wanted[0])]


def test_what_is_no_base_or_no_whole_copy_is_not_found(backend, first, second):
    bases = known_bases(backend, own_pack(first), own_pack(second))
    assert bases.read([]) == ({}, [])
    assert bases.read([chunk_id(pieces(SECOND["a"])[0])]) == ({}, [])
    assert known_bases(backend, own_pack(second)).read([chunk_id(pieces(FIRST["a"])[0])]) == ({}, [])
    assert known_bases(backend, own_pack(first)).read([chunk_id(pieces(FIRST["a"])[0])]) == ({}, [])


def test_a_base_of_a_newer_codec_is_passed_over(store, backend, second):
    base = chunk_id(pieces(FIRST["a"])[0])
    builder = PackBuilder(PackId(os.urandom(16)))
    builder.add(base, 99, b"newer", PIECE, blob_check(99, b"newer"))
    footer, parts = builder.finish()
    backend.put(pack_key(footer.pack), parts)
    bases = known_bases(backend, footer.pack, own_pack(second))
    assert bases.read([base]) == ({}, [])


def test_a_verification_holds_few_bases_at_once(store, first, second, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.sampling.MAX_DELTAS", 2 * PIECE)
    asked = []
    read = KnownBases.read
    monkeypatch.setattr(KnownBases, "read", lambda self, chunks: asked.append(len(chunks)) or read(self, chunks))
    assert store.verify().ok
    assert sum(asked) == 10
    assert max(asked) == 2


def test_a_lost_base_costs_nothing_where_the_chunk_is_there_as_another_delta(store, backend, saver, first, second):
    """The copies of a chunk are judged one by one."""
    base, chunk = pieces(FIRST["a"])[3], pieces(SECOND["a"])[3]
    like = changed({"x": chunk}, 55)["x"]
    other = Saver(store)
    other.save({"x": like}, series="other")
    other.save({"x": chunk}, {"x": like}, series="other")
    spoil(backend, own_pack(first), base)
    store.forget(first)
    assert store.verify().lost == ()
    files, notices = contents(second)
    assert files == SECOND
    assert notices
    assert store.repair().healed == paths((second, "a"))
    assert store.verify().ok


def test_a_base_that_was_decoded_to_something_else_does_no_harm(store, backend, first, second, monkeypatch):
    """Bases are checked only if what is made of them is not right; here one is wrong once."""
    honest, spoilt = fetching._unchecked, []

    def unchecked(blob, row, decoder, base):
        plain = bytes(honest(blob, row, decoder, base))
        if not spoilt:
            spoilt.append(row.chunk)
            return bytes([plain[0] ^ 1]) + plain[1:]
        return plain

    monkeypatch.setattr(fetching, "_unchecked", unchecked)
    data, notices = contents(second)
    assert spoilt
    assert data == SECOND
    assert notices == []


def test_what_is_made_of_bases_that_are_not_checked_is(backend, second, monkeypatch):
    monkeypatch.setattr(fetching, "_unchecked", lambda blob, row, decoder, base: bytes(row.plain_size))
    honest, checked = fetching._plain, []

    def plain(blob, row, decoder, base):
        checked.append(row.chunk)
        return honest(blob, row, decoder, base)

    monkeypatch.setattr(fetching, "_plain", plain)
    data, _ = contents(second)
    assert data == SECOND
    assert {chunk_id(piece) for piece in pieces(FIRST["a"])} & set(checked)
