"""What differs between two snapshots, against what was done to their files, and how much is read to tell it."""

from __future__ import annotations

import os
import random
import tracemalloc

import numpy as np
import pytest
from containers import npy, safetensors
from counting import Counting
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import diffing
from cas_checkpoint.diffing import Change, ChangedNumbers, ChangedTensor
from cas_checkpoint.errors import InvalidArgumentType, MissingObject
from cas_checkpoint.store import Store
from cas_checkpoint.tensorfiles import TensorInfo

MIB = 2**20


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


def diff(store, before, after, **options):
    return store.save(before).diff(store.save(after), **options)


def tensors_of(store, before, after):
    """Return what became of the tensors of a file, by name."""
    (item,) = diff(store, {"f": before}, {"f": after}, tensors=True)
    assert item.what == ("content",)
    return {tensor.name: tensor for tensor in item.tensors}


# --- paths --------------------------------------------------------------------------------------


def test_paths(store):
    before = {"a": b"1", "b/c": b"2", "b/d": b"3", "e": b"4", "g": b"6"}
    after = {"a": b"1", "b/d": b"33", "b-": b"5", "e": b"7", "h": b"8"}
    found = diff(store, before, after)
    assert [(item.name, item.change.value, item.what) for item in found] == [
        ("b/c", "removed", ()),
        ("b/d", "changed", ("content",)),
        ("b-", "added", ()),
        ("e", "changed", ("content",)),
        ("g", "removed", ()),
        ("h", "added", ()),
    ]
    assert found.added == [b"b-", b"h"]
    assert found.removed == [b"b/c", b"g"]
    assert found.changed == [b"b/d", b"e"]
    by_name = {item.name: item for item in found}
    assert (by_name["h"].before, by_name["h"].after.size) == (None, 1)
    assert (by_name["g"].before.size, by_name["g"].after) == (1, None)
    assert (by_name["e"].before.size, by_name["e"].after.path, by_name["e"].tensors) == (1, b"e", None)


def test_nothing_differs(store):
    files = {"a": os.urandom(300_000), "b": b""}
    assert list(diff(store, files, files, tensors=True)) == []
    snapshot = store.latest()
    assert list(snapshot.diff(snapshot)) == []


def test_an_empty_snapshot(store):
    assert diff(store, {}, {"a": b""}).added == [b"a"]
    assert diff(store, {"a": b""}, {}).removed == [b"a"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_against_the_mappings_that_were_saved(data, tmp_path_factory):
    contents = st.sampled_from([b"", b"1", b"2", bytes(300_000), b"1" * 300_000])
    files = st.dictionaries(st.sampled_from(["a", "a-", "aa", "b/a", "b/b", "b-"]), contents)
    before, after = data.draw(files), data.draw(files)
    store = Store.open(tmp_path_factory.mktemp("place") / "store", create=True, durable=False)
    found = diff(store, before, after)
    names = lambda paths: {path.decode() for path in paths if path != b"b"}  # noqa: E731 -- directories are not in mappings
    assert names(found.added) == after.keys() - before.keys()
    assert names(found.removed) == before.keys() - after.keys()
    assert names(found.changed) == {name for name in before.keys() & after.keys() if before[name] != after[name]}


def test_all_that_can_change(store, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("mode", "time", "xattr", "type"):
        (tree / name).write_bytes(b"data")
    (tree / "link").symlink_to("mode")
    os.setxattr(tree / "xattr", "user.a", b"1")
    before = store.save(tree)
    (tree / "mode").chmod(0o600)
    os.utime(tree / "time", (1, 1))
    os.setxattr(tree / "xattr", "user.a", b"2")
    (tree / "link").unlink()
    (tree / "link").symlink_to("time")
    (tree / "type").unlink()
    (tree / "type").mkdir()
    found = {item.name: item.what for item in before.diff(store.save(tree, owner=True))}
    assert found == {"mode": ("mode",), "xattr": ("xattrs",), "link": ("target",), "type": ("type",)}


def test_owners_count_if_both_have_them(store, monkeypatch):
    before = next(store.save({"a": b""}).entries())
    snapshot = store.latest()
    from cas_checkpoint.manifests import Owner

    owned = [before._replace(owner=Owner(number, 0, "", "")) for number in (1, 2)]
    reader = snapshot.reader()
    assert diffing._what(reader, before, reader, owned[0]) == ()
    assert diffing._what(reader, owned[0], reader, owned[1]) == ("owner",)


def test_only_snapshots_are_compared(store):
    with pytest.raises(InvalidArgumentType):
        store.save({}).diff("default@1")


def test_the_same_bytes_cut_elsewhere_are_the_same(store, tmp_path):
    """A file with a hole is cut otherwise than one that has zeros there."""
    path = tmp_path / "f"
    data = random.Random(1).randbytes(MIB) + bytes(2 * MIB) + random.Random(2).randbytes(MIB)
    with path.open("wb") as file:
        file.write(data[:MIB])
        file.seek(3 * MIB)
        file.write(data[3 * MIB :])
    before, after = store.save({"f": path}), store.save({"f": data})
    (old,), (new,) = before.entries(), after.entries()
    if old.extents is None:
        pytest.skip("no holes here")
    assert old.content != new.content
    assert "content" not in {what for item in before.diff(after) for what in item.what}
    changed = bytearray(data)
    changed[3 * MIB + 5] ^= 1
    assert "content" in next(iter(before.diff(store.save({"f": bytes(changed)})))).what
    changed = bytearray(data)
    changed[2 * MIB] = 1
    assert "content" in next(iter(before.diff(store.save({"f": bytes(changed)})))).what


def test_whole_chunks_that_differ_are_not_read(store):
    data = bytearray(random.Random(1).randbytes(4 * MIB))
    before = store.save({"f": bytes(data)})
    data[2 * MIB] ^= 1
    after = store.save({"f": bytes(data)})
    for snapshot in (before, after):
        snapshot._backend = Counting(store.url)
    assert before.diff(after).changed == [b"f"]
    assert sum(before._backend.requests + after._backend.requests) < 10_000  # the entries


def test_snapshots_of_two_stores(store, tmp_path):
    other = Store.open(tmp_path / "other", create=True, durable=False)
    data = os.urandom(300_000)
    found = store.save({"a": data, "b": b"1"}).diff(other.save({"a": data, "c": b"1"}))
    assert (found.added, found.removed, found.changed) == ([b"c"], [b"b"], [])


# --- tensors ------------------------------------------------------------------------------------


def test_what_became_of_tensors(store):
    before = {
        "same": np.arange(1000, dtype=np.float32),
        "changed": np.zeros(1000),
        "gone": np.zeros(2),
        "reshaped": np.zeros((2, 3)),
        "retyped": np.zeros(2, np.float32),
        "empty": np.zeros((0, 3)),
    }
    after = {name: array.copy() for name, array in before.items() if name != "gone"}
    after["changed"][[1, 2, 3, 999]] = [0.5, -2, np.nan, 1]
    after["reshaped"] = np.zeros((3, 2))
    after["retyped"] = np.zeros(2)
    after["new"] = np.zeros(3)
    found = tensors_of(store, safetensors(before), safetensors(after))
    assert list(found) == ["same", "changed", "reshaped", "retyped", "empty", "new", "gone"]
    info = TensorInfo("same", "float32", (1000,), 4000)
    assert found["same"] == ChangedTensor("same", Change.IDENTICAL, info, info, ChangedNumbers(1000, 0, 0, 0.0, 0.0))
    assert found["changed"].change is Change.CHANGED
    assert found["changed"].numbers == ChangedNumbers(1000, 4, 1, 2.0, 3.5 / 3)
    assert found["changed"].numbers.share == 0.004
    for name in ("reshaped", "retyped"):
        assert (found[name].change, found[name].numbers) == (Change.CHANGED, None)
        assert found[name].before != found[name].after
    assert found["empty"].change is Change.IDENTICAL
    assert found["empty"].numbers.share == 0.0
    assert (found["new"].change, found["new"].before, found["new"].numbers) == (Change.ADDED, None, None)
    assert (found["gone"].change, found["gone"].after, found["gone"].numbers) == (Change.REMOVED, None, None)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "uint8", "complex64"])
def test_numbers_of_all_kinds(store, dtype):
    generator = np.random.default_rng(2)
    before = generator.integers(0, 100, (300, 1001)).astype(dtype)
    after = before.copy()
    chosen = generator.random(before.shape) < 0.01
    after[chosen] = after[chosen] + 1
    found = tensors_of(store, safetensors({"t": before}), safetensors({"t": after}))["t"].numbers
    assert found == ChangedNumbers(before.size, int(chosen.sum()), 0, 1.0, 1.0)


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", "<u2"), ("float8_e5m2", "u1")])
def test_types_that_numpy_does_not_have(store, dtype, bits):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    generator = np.random.default_rng(3)
    before, after = (generator.integers(0, 256 ** np.dtype(bits).itemsize, 70_000).astype(bits) for _ in range(2))
    found = tensors_of(store, safetensors({"t": before}, {"t": dtype}), safetensors({"t": after}, {"t": dtype}))
    kind = getattr(ml_dtypes, dtype)
    with np.errstate(all="ignore"):
        change = np.abs(after.view(kind).astype(np.float64) - before.view(kind).astype(np.float64))
    change = change[before != after]
    is_nan = np.isnan(change)
    expected = ChangedNumbers(70_000, len(change), int(is_nan.sum()), change[~is_nan].max(), change[~is_nan].mean())
    assert found["t"].numbers[:3] == expected[:3]
    np.testing.assert_allclose(found["t"].numbers[3:], expected[3:])


def test_infinities_and_nans(store):
    bits = np.array([0x7FF8000000000000, 0x7FF8000000000001, 0x7FF0000000000000], np.uint64).view(np.float64)
    before = np.array([bits[0], bits[0], 1.0, np.inf, np.inf, 0.0])
    after = np.array([bits[0], bits[1], np.nan, -np.inf, np.inf, -0.0])
    found = tensors_of(store, safetensors({"t": before}), safetensors({"t": after}))["t"].numbers
    assert found == ChangedNumbers(6, 4, 2, np.inf, np.inf)


def test_scalars(store):
    before, after = ({"t": np.array(value)} for value in (1.5, 2.0))
    found = tensors_of(store, safetensors(before), safetensors(after))["t"]
    assert found.numbers == ChangedNumbers(1, 1, 0, 0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layouts(data, tmp_path_factory):
    """Fortran or C order, large or small windows: the numbers are those that numpy finds."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    before = generator.normal(size=shape).astype(np.float32)
    after = np.where(generator.random(shape) < 0.3, before + 1, before).astype(np.float32)
    orders = data.draw(st.tuples(st.sampled_from("CF"), st.sampled_from("CF")))
    store = Store.open(tmp_path_factory.mktemp("place") / "store", create=True, durable=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffing, "_WINDOW", data.draw(st.sampled_from([8, 64, 2**23])))
        patch.setattr(diffing, "_BLOCK", data.draw(st.sampled_from([1, 5, 2**17])))
        one, two = (np.array(array, order=order) for array, order in zip((before, after), orders, strict=True))
        found = list(diff(store, {"f": npy(one)}, {"f": npy(two)}, tensors=True))
    change = np.abs(after.astype(float) - before)[before != after]
    if found:
        (tensor,) = found[0].tensors
        assert tensor.numbers.changed == len(change)
        assert tensor.numbers.max_change == max([0.0, *change.tolist()])
        np.testing.assert_allclose(tensor.numbers.mean_change, change.mean() if len(change) else 0.0)
    else:
        assert not len(change)


def test_numbers_that_are_wider_than_any_integer(store):
    before = np.arange(300_000) * (1 + 1j)
    after = before.copy()
    after[[5, 250_000]] += [3 + 4j, 1j]
    (item,) = diff(store, {"f": npy(before)}, {"f": npy(after)}, tensors=True)
    assert item.tensors[0].numbers == ChangedNumbers(300_000, 2, 0, 5.0, 3.0)


def test_nothing_but_nans(store):
    found = tensors_of(store, safetensors({"t": np.zeros(3)}), safetensors({"t": np.full(3, np.nan)}))["t"]
    assert found.numbers == ChangedNumbers(3, 3, 3, 0.0, 0.0)


def test_elements_with_gaps_between_them(store, tmp_path):
    """torch saves a whole storage for a view; what lies in its gaps does not count."""
    torch = pytest.importorskip("torch")
    base = torch.arange(10_000.0).reshape(100, 100)
    files = []
    for number in range(2):
        wide = {"wide": base[3].expand(7, 100), "wider": base[3, 4].expand(2**40)}
        torch.save({"columns": base[:, ::2], "left": base[:, :3], "all": base.T, **wide}, tmp_path / f"{number}")
        files.append((tmp_path / f"{number}").read_bytes())
        base[3, 4] += 10
        base[3, 5] += 10
    found = tensors_of(store, *files)
    assert found["columns"].numbers == ChangedNumbers(5000, 1, 0, 10.0, 10.0)
    assert found["left"].numbers == ChangedNumbers(300, 0, 0, 0.0, 0.0)
    assert found["all"].numbers == ChangedNumbers(10_000, 2, 0, 10.0, 10.0)
    assert found["wide"].numbers == ChangedNumbers(700, 14, 0, 10.0, 10.0)
    assert found["wider"].numbers == ChangedNumbers(2**40, 2**40, 0, 10.0, 10.0)


def test_gaps_in_the_same_chunks_are_not_read(store, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.rand(1024, 4096)  # 16 MiB
    pad, last = torch.rand(MIB), torch.zeros(5)
    snapshots = []
    for number in range(2):
        torch.save({"columns": base[:, ::2], "pad": pad, "last": last + number}, tmp_path / "f")
        snapshots.append(store.save({"f": tmp_path / "f"}))
    for snapshot in snapshots:
        snapshot._backend = Counting(store.url)
    (item,) = snapshots[0].diff(snapshots[1], tensors=True)
    assert {tensor.name: tensor.numbers.changed for tensor in item.tensors} == {"columns": 0, "pad": 0, "last": 5}
    for snapshot in snapshots:
        assert sum(snapshot._backend.requests) < 10 * MIB


def test_tensors_of_an_hdf5_file(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    files = []
    for number in range(2):
        with h5py.File(tmp_path / f"{number}", "w") as file:
            file["a/b"] = np.arange(1000) + number
        files.append((tmp_path / f"{number}").read_bytes())
    (tensor,) = tensors_of(store, *files).values()
    assert tensor.numbers == ChangedNumbers(1000, 1000, 0, 1.0, 1.0)


def test_nothing_lies_side_by_side_with_nothing(store):
    store.save({"f": b""})
    reader = store.latest().reader()
    (entry,) = reader.entries()
    assert diffing._same_content(reader, entry, reader, entry._replace(extents=()))


@settings(max_examples=200, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=12).map(sorted),
    width=st.sampled_from([1, 2, 4, 8]),
    window=st.sampled_from([8, 32, 1000]),
)
def test_windows(cuts, width, window):
    """They cover what they are made of once, in whole elements, and nothing that no element touches."""
    ranges = [(low, high) for low, high in zip(cuts[::2], cuts[1::2], strict=False) if high > low]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffing, "_WINDOW", window)
        found = list(diffing._windows(iter(ranges), width))
    covered = [number for low, high in found for number in range(low // width, high // width)]
    assert covered == sorted({at // width for low, high in ranges for at in range(low, high)})
    assert all(low % width == high % width == 0 and 0 < high - low <= window for low, high in found)


def test_what_is_no_container_has_no_tensors(store):
    array = npy(np.arange(100))
    for before, after in ((b"a" * 100, b"b" * 100), (array, b"b" * 100), (b"a" * 100, array)):
        (item,) = diff(store, {"f": before}, {"f": after}, tensors=True)
        assert (item.change, item.tensors) == (Change.CHANGED, None)
    (item,) = diff(store, {"f": array}, {"f": npy(np.arange(101))})
    assert item.tensors is None  # it was not asked for


def test_tensors_in_the_same_chunks_are_not_read(store):
    generator = np.random.default_rng(4)
    arrays = {name: generator.normal(size=MIB).astype(np.float32) for name in "abcd"}  # 4 MiB each
    before = store.save({"f": safetensors(arrays)})
    arrays["c"][1000:2000] += 1
    after = store.save({"f": safetensors(arrays)})
    for snapshot in (before, after):
        snapshot._backend = Counting(store.url)
    (item,) = before.diff(after, tensors=True)
    assert {tensor.name: tensor.numbers.changed for tensor in item.tensors} == {"a": 0, "b": 0, "c": 1000, "d": 0}
    for snapshot in (before, after):
        assert 0 < sum(snapshot._backend.requests) < 4 * MIB  # the header's chunk, and those of what changed


def test_memory_is_bounded(store):
    generator = np.random.default_rng(5)
    before, after = (generator.integers(0, 2**16, 24 * MIB).astype("<u2") for _ in range(2))
    (one, two) = (store.save({"f": safetensors({"t": array}, {"t": "bfloat16"})}) for array in (before, after))
    tracemalloc.start()
    try:
        (item,) = one.diff(two, tensors=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert item.tensors[0].numbers.changed == np.count_nonzero(before != after)
    assert peak < 40 * MIB


def test_damage(store):
    one, two = (store.save({"f": npy(np.full(MIB, value))}) for value in (1.0, 2.0))
    for pack in store._backend.list("packs/"):
        os.unlink(os.path.join(store.url, pack.key))
    with pytest.raises(MissingObject):
        list(one.diff(two, tensors=True))
