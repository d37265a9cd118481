"""Copying chunks from pack to pack: as they are stored, each once, and only what is intact."""

from __future__ import annotations

import random

import pytest

from cas_checkpoint import copying
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.codecs import Codec, Encoder, blob_check
from cas_checkpoint.commits import pack_key
from cas_checkpoint.copying import PackCopier, read_blobs
from cas_checkpoint.errors import DamagedObject, ObjectNotFound
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import PackId, chunk_id
from cas_checkpoint.packs import PackBuilder
from cas_checkpoint.transactions import list_packs

CHUNKS = [random.Random(number).randbytes(3000) if number % 2 else b"text %d " % number * 500 for number in range(12)]


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(str(tmp_path / "store"), durable=False)


def put_pack(backend, name, chunks, *, codec=None):
    builder = PackBuilder(PackId(name * 16))
    for chunk in chunks:
        kind, payload = Encoder(level=1).encode(chunk)
        kind = kind if codec is None else codec
        builder.add(chunk_id(chunk), kind, payload, len(chunk), blob_check(kind, payload))
    footer, parts = builder.finish()
    backend.put(pack_key(footer.pack), parts)
    return footer


def flip(backend, footer, row):
    data = bytearray(backend.get(pack_key(footer.pack), max_size=2**20))
    data[int(footer.offsets[row]) + 20] ^= 1
    backend.put(pack_key(footer.pack), [bytes(data)])


def blobs_of(backend, footer):
    return {
        bytes(footer.ids[row]): (bytes(blob), int(footer.plain_sizes[row]), int(footer.checks[row]))
        for row, blob in read_blobs(backend, footer, range(len(footer.ids)))
    }


def test_blobs_are_copied_as_they_are_stored(backend):
    old = put_pack(backend, b"a", CHUNKS)
    copier = PackCopier(backend)
    copied = copier.copy(old, [9, 1, 2, 3])
    (new,) = copier.finish()
    assert copied == (frozenset({new.pack}), {})
    assert read_footer(backend, new.pack).encoded == new.encoded
    assert [bytes(row) for row in new.ids] == [bytes(old.ids[row]) for row in (1, 2, 3, 9)]
    assert blobs_of(backend, new).items() < blobs_of(backend, old).items()


def test_each_chunk_is_copied_once_and_its_pack_is_told_again(backend):
    first, second = put_pack(backend, b"a", CHUNKS[:6]), put_pack(backend, b"b", CHUNKS[3:9])
    copier = PackCopier(backend)
    both = [copier.copy(first, range(6)), copier.copy(second, range(6))]
    (new,) = copier.finish()
    assert {copied.targets for copied in both} == {frozenset({new.pack})}
    assert len(new.ids) == 9


def test_full_packs_are_written_at_once(backend, monkeypatch):
    monkeypatch.setattr(copying, "PACK_SIZE", 5000)
    old = put_pack(backend, b"a", CHUNKS)
    copier = PackCopier(backend)
    copied = copier.copy(old, range(12))
    assert len(list_packs(backend)) > 2
    footers = copier.finish()
    assert copied.targets == {footer.pack for footer in footers} == list_packs(backend) - {old.pack}
    assert sum(len(footer.ids) for footer in footers) == 12


def test_damaged_chunks_are_left_out_and_told(backend):
    old = put_pack(backend, b"a", CHUNKS)
    for row in (0, 5):
        flip(backend, old, row)
    copier = PackCopier(backend)
    copied = copier.copy(old, range(12))
    (new,) = copier.finish()
    assert copied.damaged.keys() == {0, 5}
    assert len(new.ids) == 10


def test_of_a_pack_that_is_cut_short_the_rest_is_copied(backend):
    old = put_pack(backend, b"a", CHUNKS)
    data = backend.get(pack_key(old.pack), max_size=2**20)
    backend.put(pack_key(old.pack), [data[: int(old.offsets[7]) + 5]])
    copier = PackCopier(backend)
    copied = copier.copy(old, range(12))
    (new,) = copier.finish()
    assert copied.damaged.keys() == set(range(7, 12))
    assert len(new.ids) == 7


def test_chunks_of_an_unknown_codec_are_copied_if_they_are_what_was_stored(backend):
    old = put_pack(backend, b"a", CHUNKS, codec=77)
    flip(backend, old, 3)
    copier = PackCopier(backend)
    assert copier.copy(old, range(12)).damaged.keys() == {3}
    (new,) = copier.finish()
    assert blobs_of(backend, new).items() < blobs_of(backend, old).items()


def test_blobs_are_read_in_requests_of_limited_size(backend, monkeypatch):
    monkeypatch.setattr(copying, "MAX_REQUEST", 4000)
    monkeypatch.setattr(copying, "_MAX_GAP", 100)
    old = put_pack(backend, b"a", CHUNKS)
    sizes = []
    honest = LocalBackend.get_range
    monkeypatch.setattr(
        LocalBackend, "get_range", lambda self, key, at, size: sizes.append(size) or honest(self, key, at, size)
    )
    assert len(list(read_blobs(backend, old, range(12)))) == 12
    assert 1 < len(sizes) < 12
    assert max(sizes) <= 4000
    sizes.clear()
    assert [row for row, _ in read_blobs(backend, old, [11, 1])] == [1, 11]
    assert len(sizes) == 2


def test_a_pack_that_is_gone(backend):
    old = put_pack(backend, b"a", CHUNKS)
    backend.delete(pack_key(old.pack))
    with pytest.raises(ObjectNotFound):
        PackCopier(backend).copy(old, [1])


def test_nothing_copied_writes_nothing(backend):
    old = put_pack(backend, b"a", CHUNKS)
    copier = PackCopier(backend)
    assert copier.copy(old, []) == (frozenset(), {})
    assert copier.finish() == []
    assert list_packs(backend) == {old.pack}


def test_what_a_footer_says_is_not_believed(backend):
    old = put_pack(backend, b"a", CHUNKS[:1])
    footer = put_pack(backend, b"b", CHUNKS[1:3])._replace(pack=old.pack)
    found = dict(read_blobs(backend, footer, [1]))
    assert isinstance(found[1], DamagedObject)
    assert PackCopier(backend).copy(footer, [0, 1]).damaged.keys() == {0, 1}


# --- deltas -------------------------------------------------------------------------------------

BASES = [chunk_id(b"one base"), chunk_id(b"another base")]


def put_deltas(backend, name, chunks):
    """Store a pack of chunks, given as pairs with the id of what each is a delta of, or None."""
    builder = PackBuilder(PackId(name * 16))
    for number, (chunk, base) in enumerate(chunks):
        codec, payload = (Codec.RAW, chunk) if base is None else (Codec.DELTA, b"difference %d" % number)
        builder.add(chunk_id(chunk), codec, payload, len(chunk), blob_check(codec, payload), base=base)
    footer, parts = builder.finish()
    backend.put(pack_key(footer.pack), parts)
    return footer


def test_deltas_are_copied_with_what_they_are_deltas_of(backend):
    """Though that is not to be had."""
    one, two, three = CHUNKS[:3]
    old = put_deltas(backend, b"a", [(one, BASES[0]), (two, None), (three, BASES[1])])
    copier = PackCopier(backend)
    assert copier.copy(old, [2, 1]) == (frozenset({copier._builder.pack}), {})
    (new,) = copier.finish()
    assert [bytes(chunk) for chunk in new.ids] == [chunk_id(two), chunk_id(three)]
    assert new.base_ids() == {1: BASES[1]}
    assert blobs_of(backend, new).items() < blobs_of(backend, old).items()


def test_a_damaged_delta_is_not_copied(backend):
    old = put_deltas(backend, b"a", [(CHUNKS[0], BASES[0]), (CHUNKS[1], BASES[1])])
    data = bytearray(backend.get(pack_key(old.pack), max_size=2**20))
    data[int(old.offsets[1]) + 3] ^= 1
    backend.put(pack_key(old.pack), [bytes(data)])
    copied = PackCopier(backend).copy(old, [0, 1])
    assert copied.damaged.keys() == {1}
    assert len(copied.targets) == 1


def test_what_is_no_delta_by_its_codec_is_checked_whole(backend):
    """A footer may call anything a delta."""
    old = put_pack(backend, b"a", CHUNKS[1:2])
    builder = PackBuilder(old.pack)
    builder.add(chunk_id(CHUNKS[1]), Codec.RAW, CHUNKS[3], len(CHUNKS[3]), 0, base=BASES[0])
    footer, parts = builder.finish()
    backend.put(pack_key(footer.pack), parts)
    assert PackCopier(backend).copy(footer, [0]).damaged.keys() == {0}


def test_what_no_footer_calls_a_delta_is_none(backend):
    builder = PackBuilder(PackId(b"a" * 16))
    builder.add(chunk_id(b"x"), Codec.DELTA, b"y", 1, blob_check(Codec.DELTA, b"y"))
    footer, parts = builder.finish()
    backend.put(pack_key(footer.pack), parts)
    assert PackCopier(backend).copy(footer, [0]).damaged.keys() == {0}


@pytest.mark.parametrize(
    ("forms", "copied"),
    [
        ((None, BASES[0]), [None]),  # what is there whole is there for everybody
        ((BASES[0], None), [BASES[0], None]),  # a delta is no base
        ((BASES[0], BASES[0]), [BASES[0]]),
        ((BASES[0], BASES[1]), [BASES[0], BASES[1]]),  # who needs one perhaps does not know where the other's base is
        ((BASES[0], BASES[1], None, BASES[0]), [BASES[0], BASES[1], None]),
    ],
)
def test_a_chunk_is_copied_again_only_if_the_copy_does_not_do(backend, forms, copied):
    copier = PackCopier(backend)
    for number, base in enumerate(forms):
        old = put_deltas(backend, b"abcd"[number : number + 1], [(CHUNKS[1], base)])
        assert len(copier.copy(old, [0]).targets) == 1
    (new,) = copier.finish()
    assert [new.base_ids().get(row) for row in range(len(new.ids))] == copied
