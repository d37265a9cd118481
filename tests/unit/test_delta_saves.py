"""Saves of tensors that changed: differences where that pays, restored byte for byte whatever is forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from containers import npy, safetensors
from counting import Counting
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import Store, earliertensors
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.codecs import Codec
from cas_checkpoint.commits import pack_key
from cas_checkpoint.errors import DamagedObject, InvalidArgument
from cas_checkpoint.footers import read_footer
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import StoreId
from cas_checkpoint.tensorfiles import TensorFile
from cas_checkpoint.transactions import list_packs
from cas_checkpoint.verifying import AffectedPath

MIB = 2**20
READER = Path(__file__).parents[2] / "tools" / "independent_reader.py"


def weights(seed, *, rows=1024):
    """Return weights as they come from a training; `moved` makes the next ones."""
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, 0.05, (rows, 512)).astype(np.float32) for name in ("a.weight", "b.weight")}


def moved(tensors, seed, size=1e-5):
    generator = np.random.default_rng(seed)
    return {
        name: (values + generator.normal(0, size, values.shape)).astype(values.dtype)
        for name, values in tensors.items()
    }


def save(store, data, **options):
    return store.save({"model.safetensors": data}, **options)


def restored(store, snapshot, tmp_path):
    target = tmp_path / f"restored-{os.urandom(4).hex()}"
    store.restore(snapshot, target)
    return (target / "model.safetensors").read_bytes()


def codecs(store):
    """Return how many chunks are stored with each codec."""
    counts = dict.fromkeys(Codec, 0)
    backend = store._backend
    for info in list_packs(backend):
        footer = read_footer(backend, info)
        data = backend.get(pack_key(footer.pack), max_size=2**30)
        for offset in footer.offsets.tolist():
            counts[Codec(data[offset])] += 1
    return counts


@pytest.mark.parametrize("delta", ["fast", "small"])
def test_what_changed_a_little_is_stored_as_differences(store, tmp_path, delta):
    first = weights(1)
    second = moved(first, 2)
    one = save(store, safetensors(first), delta=delta)
    assert codecs(store)[Codec.DELTA] == 0
    assert codecs(store)[Codec.PLANES] == 4
    two = save(store, safetensors(second), delta=delta)
    assert codecs(store)[Codec.DELTA] == 4
    assert two.stats.bytes_written < 0.8 * one.stats.bytes_written
    assert restored(store, one, tmp_path) == safetensors(first)
    assert restored(store, two, tmp_path) == safetensors(second)


def test_a_delta_is_never_of_a_delta(store, tmp_path):
    states = [weights(1)]
    for number in range(4):
        states.append(moved(states[-1], number))
    snapshots = [save(store, safetensors(state)) for state in states]
    for footer in (read_footer(store._backend, pack) for pack in list_packs(store._backend)):
        deltas = {bytes(footer.ids[row]) for row in footer.delta_rows.tolist()}
        assert not deltas & {bytes(base) for base in footer.bases}
    for state, snapshot in zip(states, snapshots, strict=True):
        assert restored(store, snapshot, tmp_path) == safetensors(state)


def test_what_is_needed_by_a_delta_outlives_its_own_snapshot(store, tmp_path):
    first = weights(1)
    second = moved(first, 2)
    one = save(store, safetensors(first))
    two = save(store, safetensors(second))
    store.forget([one.id])
    store.collect()
    assert restored(store, two, tmp_path) == safetensors(second)
    assert not store.verify(depth="data").problems
    store.forget([two.id])
    store.collect()
    assert not list(list_packs(store._backend))


def damage(store, chunk):
    """Flip a bit of a chunk, wherever it is."""
    for pack in list_packs(store._backend):
        footer = read_footer(store._backend, pack)
        for row in [number for number, name in enumerate(footer.ids) if bytes(name) == chunk]:
            path = Path(store.url, pack_key(pack))
            data = bytearray(path.read_bytes())
            data[int(footer.offsets[row]) + int(footer.stored_sizes[row]) // 2] ^= 1
            path.write_bytes(data)


def chunk_of(snapshot, name, row):
    """Return the id of the chunk that holds a row of a tensor."""
    reader = snapshot.reader()
    opened = TensorFile.open(reader, next(reader.entries()))
    tensor = opened.tensor(name)
    (piece,) = opened.file.pieces(tensor.offset + row * tensor.strides[0] * 4, 4)
    return opened.file.identity(piece, piece.at)[0]


def test_a_damaged_base_tells_which_tensors_are_affected_and_the_others_can_be_read(store):
    first = weights(1)
    second = moved(first, 2)
    one, two = save(store, safetensors(first)), save(store, safetensors(second))
    damage(store, chunk_of(one, "b.weight", 1000))
    lost = {AffectedPath(each.id, "model.safetensors", ("b.weight",)) for each in (one, two)}
    assert set(store.verify().lost) == lost
    assert np.array_equal(two.read_tensor("model.safetensors", "a.weight"), second["a.weight"])
    assert np.array_equal(two.read_tensor("model.safetensors", "b.weight", stop=500), second["b.weight"][:500])
    with pytest.raises(DamagedObject):
        two.read_tensor("model.safetensors", "b.weight")
    assert set(store.repair().lost) == lost


def test_where_tensors_lie_may_be_lost_itself(store):
    one = save(store, safetensors(weights(1)))
    damage(store, next(iter(one.reader().refs(next(one.reader().entries()).content))).chunk)
    assert store.verify().lost == (AffectedPath(one.id, "model.safetensors"),)


def test_tensors_are_affected_by_any_chunk_that_they_touch(store):
    shapes = {"a": (1000, 300), "none": (0, 5), "small": (30,), "z": (9, 9)}
    arrays = {name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    reader = save(store, safetensors(arrays)).reader()
    opened = TensorFile.open(reader, next(reader.entries()))
    refs = list(reader.refs(next(reader.entries()).content))
    assert opened.within([]) == ()
    assert opened.within([ref.chunk for ref in refs]) == ("a", "small", "z")
    assert opened.within([refs[0].chunk]) == ()  # the header alone
    assert opened.within([refs[1].chunk]) == ("a",)
    assert opened.within([refs[-1].chunk]) == ("small", "z")


def test_what_is_saved_again_needs_the_base_too(store, tmp_path):
    first = weights(1)
    second = moved(first, 2)
    one = save(store, safetensors(first))
    two = save(store, safetensors(second))
    three = save(store, safetensors(second), series="other")
    store.forget([one.id, two.id])
    store.collect()
    assert three.stats.bytes_new == 0
    assert restored(store, three, tmp_path) == safetensors(second)


def test_off_stores_all_that_changed_as_a_whole(store):
    first = weights(1)
    save(store, safetensors(first), delta="off")
    save(store, safetensors(moved(first, 2)), delta="off")
    assert codecs(store)[Codec.DELTA] == 0


def test_what_changed_altogether_is_stored_whole(store, tmp_path):
    save(store, safetensors(weights(1)))
    two = save(store, safetensors(weights(2)))
    assert codecs(store)[Codec.DELTA] == 0
    assert restored(store, two, tmp_path) == safetensors(weights(2))


def test_a_tensor_that_moved_is_found_by_its_name(store, tmp_path):
    first = weights(1)
    save(store, safetensors(first))
    second = moved(first, 2)
    other = safetensors({"new": np.arange(100), "b.weight": second["b.weight"], "a.weight": second["a.weight"]})
    two = save(store, other)
    assert codecs(store)[Codec.DELTA] == 4
    assert restored(store, two, tmp_path) == other


def test_bases_that_are_damaged_are_not_relied_on(store, tmp_path):
    first = weights(1)
    save(store, safetensors(first))
    damage_tensors(store)
    second = moved(first, 2)
    two = save(store, safetensors(second))
    assert codecs(store)[Codec.DELTA] == 0
    assert restored(store, two, tmp_path) == safetensors(second)


def damage_tensors(store):
    """Flip a bit in each blob of a tensor."""
    backend = store._backend
    for footer in (read_footer(backend, pack) for pack in list_packs(backend)):
        path = os.path.join(backend.root, pack_key(footer.pack))
        with open(path, "r+b") as file:
            for offset, size in zip(footer.offsets.tolist(), footer.plain_sizes.tolist(), strict=True):
                if size >= MIB / 2:
                    file.seek(offset + 1000)
                    byte = file.read(1)[0]
                    file.seek(offset + 1000)
                    file.write(bytes([byte ^ 1]))


def test_a_store_far_away_is_not_asked_for_bases(tmp_path):
    store = Store.open(Counting(tmp_path / "store", near=False), create=True, workers=2)
    first = weights(1)
    second = moved(first, 2)
    save(store, safetensors(first))
    two = save(store, safetensors(second))
    assert sum(store._backend.requests) < MIB / 2  # lists, and the beginning of the file
    assert codecs(store)[Codec.DELTA] == 4
    assert restored(store, two, tmp_path) == safetensors(second)


def test_without_a_cache_a_store_far_away_gets_no_deltas(tmp_path):
    store = Store.open(Counting(tmp_path / "store", near=False), create=True, workers=2)
    first = weights(1)
    save(store, safetensors(first), files_cache=False)
    save(store, safetensors(moved(first, 2)), files_cache=False)
    assert codecs(store)[Codec.DELTA] == 0


def test_a_store_whose_readers_know_no_tensors_gets_none(tmp_path):
    backend = LocalBackend(tmp_path / "store")
    old = tuple((operation, ("moves",)) for operation in ("read", "write", "collect"))
    backend.put(HEADER_KEY, [Header(StoreId(b"s" * 16), features=old).encode()])
    store = Store.open(backend, workers=2)
    first = weights(1)
    save(store, safetensors(first))
    save(store, safetensors(moved(first, 2)))
    assert codecs(store)[Codec.PLANES] == codecs(store)[Codec.DELTA] == 0


def test_a_mode_must_be_known(store):
    with pytest.raises(InvalidArgument, match="delta must be"):
        save(store, b"x", delta="tiny")


def test_small_files_have_deltas_too(store, tmp_path):
    first = {"w": weights(1, rows=100)["a.weight"]}
    second = moved(first, 2)
    save(store, safetensors(first))
    two = save(store, safetensors(second))
    assert codecs(store)[Codec.DELTA] == 1
    assert restored(store, two, tmp_path) == safetensors(second)


# --- tensors that are divided among more or fewer files ---


def divided(tensors, count, name="model-{}-of-{}.safetensors"):
    """Return files of which each has an equal part of every tensor."""
    return {
        name.format(number, count): safetensors(
            {key: np.array_split(values, count)[number] for key, values in tensors.items()}
        )
        for number in range(count)
    }


def files_of(store, snapshot, tmp_path):
    target = tmp_path / f"restored-{os.urandom(4).hex()}"
    store.restore(snapshot, target)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_tensors_divided_among_more_files_are_windows_of_what_was_there(store, tmp_path):
    first = weights(1)
    one, two = store.save(divided(first, 2)), store.save(divided(first, 4))
    assert codecs(store)[Codec.DELTA] == 8
    assert two.stats.bytes_written < one.stats.bytes_written / 100
    assert files_of(store, two, tmp_path) == divided(first, 4)


def test_windows_are_read_by_the_second_reader(store, tmp_path):
    first = weights(1, rows=512)
    second = moved(first, 2)
    store.save(divided(first, 2))
    store.save(divided(second, 4))
    assert codecs(store)[Codec.DELTA] == 8
    subprocess.run([sys.executable, READER, store.url, tmp_path / "target", "default@2"], check=True, timeout=120)
    assert {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()} == divided(second, 4)


@pytest.mark.parametrize("name", ["model-{}-of-{}.safetensors", "rank-{}.safetensors"])
def test_what_is_divided_otherwise_and_changed_is_stored_as_differences(store, tmp_path, name):
    first = weights(1)
    second = moved(first, 2)
    third, fourth = moved(second, 3), moved(second, 4)
    save_divided = lambda tensors, count: store.save(divided(tensors, count, name))  # noqa: E731
    snapshots = [save_divided(first, 2), save_divided(second, 4)]
    assert codecs(store)[Codec.DELTA] == 8
    snapshots.append(save_divided(third, 4))  # a window is not followed, so these are new bases:
    assert codecs(store)[Codec.DELTA] == 8
    snapshots.append(save_divided(fourth, 4))
    assert codecs(store)[Codec.DELTA] == 16
    for snapshot, tensors, count in zip(snapshots, (first, second, third, fourth), (2, 4, 4, 4), strict=True):
        assert files_of(store, snapshot, tmp_path) == divided(tensors, count, name)
    assert store.verify(depth="data").ok


def test_tensors_put_together_in_fewer_files_keep_their_chunks(store, tmp_path):
    first = weights(1)
    store.save(divided(first, 4))
    before = codecs(store)
    two = store.save(divided(first, 2))
    assert codecs(store)[Codec.DELTA] == 0
    assert codecs(store)[Codec.PLANES] == before[Codec.PLANES]
    second = moved(first, 2)
    three = store.save(divided(second, 2))  # which is cut as it was before
    assert codecs(store)[Codec.DELTA] == 8
    assert files_of(store, two, tmp_path) == divided(first, 2)
    assert files_of(store, three, tmp_path) == divided(second, 2)


def test_windows_keep_their_bases_and_tell_what_depends_on_them(store, tmp_path):
    first = weights(1)
    second = moved(first, 2)
    one, two = store.save(divided(first, 2)), store.save(divided(second, 4))
    store.forget([one.id])
    store.collect()
    store.collect(repack=0.01)
    assert files_of(store, two, tmp_path) == divided(second, 4)
    assert store.verify(depth="data").ok
    base = next(bytes(base) for footer in footers(store) for base in footer.bases)
    damage(store, base)
    lost = store.verify().lost
    assert len(lost) == 2  # both halves of what was one part
    assert {each.tensors for each in lost} <= {("a.weight",), ("b.weight",)}
    assert set(store.repair().lost) == set(lost)


def footers(store):
    return [read_footer(store._backend, info) for info in list_packs(store._backend)]


def test_windows_are_made_of_a_store_far_away_from_what_is_kept_here(tmp_path):
    store = Store.open(Counting(tmp_path / "store", near=False), create=True, workers=2)
    first = weights(1)
    second = moved(first, 2)
    store.save(divided(first, 2))
    two = store.save(divided(second, 4))
    assert sum(store._backend.requests) < MIB / 2
    assert codecs(store)[Codec.DELTA] == 8
    assert files_of(store, two, tmp_path) == divided(second, 4)


def test_other_tensors_of_the_same_names_do_no_harm(store, tmp_path):
    first, second, third = ({"w": weights(seed)["a.weight"]} for seed in (1, 2, 3))
    files = {"one.safetensors": safetensors(first), "two.safetensors": safetensors(second)}
    one = store.save(files)
    others = {"one.safetensors": safetensors(third), "three.safetensors": divided(first, 2)["model-1-of-2.safetensors"]}
    two = store.save(others)
    assert codecs(store)[Codec.DELTA] == 0
    assert files_of(store, one, tmp_path) == files
    assert files_of(store, two, tmp_path) == others


def test_tensors_without_a_name_are_not_looked_for_elsewhere(store, monkeypatch):
    arrays = {f"{seed}.npy": npy(weights(seed, rows=200 + seed)["a.weight"]) for seed in range(5)}
    store.save(arrays)
    monkeypatch.setattr(earliertensors._DividedTensors, "find", None)
    two = store.save(arrays | {"new.npy": npy(weights(9, rows=300)["a.weight"])})
    assert two.stats.chunks_new >= 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=2, max_size=4), st.integers(0, 99))
def test_however_tensors_are_divided_they_come_back(steps, seed):
    with tempfile.TemporaryDirectory() as place:
        store = Store.open(Path(place, "store"), create=True, durable=False, workers=2)
        tensors, saved = weights(seed, rows=700), []
        for count, is_moved, is_renamed in steps:
            tensors = moved(tensors, seed) if is_moved else tensors
            files = divided(tensors, count, "rank-{}.safetensors" if is_renamed else "model-{}-of-{}.safetensors")
            saved.append((store.save(files), files))
        assert store.verify(depth="data").ok
        for snapshot, files in saved:
            assert files_of(store, snapshot, Path(place)) == files
