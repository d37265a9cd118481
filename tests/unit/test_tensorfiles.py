"""Tensors of a snapshot's files: against the arrays that were saved, and how much of the store is read for them."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from containers import npy, safetensors
from counting import Counting, read_at_once
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.errors import (
    DamagedObject,
    DamagedStore,
    EntryNotFound,
    InvalidArgument,
    InvalidArgumentType,
    MissingObject,
)
from cas_checkpoint.snapshots import _find_file
from cas_checkpoint.store import Store
from cas_checkpoint.tensorfiles import FileRanges, TensorInfo, is_packed, read_from
from cas_checkpoint.tensors import Tensor

KIB, MIB = 2**10, 2**20


RANDOM = np.random.default_rng(1)
ARRAYS = {
    "embed": RANDOM.normal(size=(1000, 1024)).astype(np.float32),
    "block.0.weight": RANDOM.normal(size=(300, 700)),
    "block.1.weight": RANDOM.normal(size=(300, 700)).astype(np.float16),
    "step": np.array(1234567890123, np.int64),
    "none": np.zeros((0, 5), np.float32),
    "mask": RANDOM.integers(0, 2, (17, 3)).astype(bool),
    "bytes": RANDOM.integers(0, 256, 100_001).astype(np.uint8),
}
FORTRAN = np.asfortranarray(RANDOM.normal(size=(700, 900)).astype(np.float32))
NAMES = list(ARRAYS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = Store.open(tmp_path_factory.mktemp("place") / "store", create=True, durable=False, workers=2)
    files = {
        "model.safetensors": safetensors(ARRAYS),
        "fortran.npy": npy(FORTRAN),
        "small.npy": npy(np.arange(10)),
        "text": b"no tensors here",
        "empty": b"",
    }
    made.save(files, series="main")
    made.save({"small.npy": npy(np.arange(10))}, series="inline")
    return made


@pytest.fixture(params=[True, False], ids=["near", "far"])
def counting(store, request):
    other = Store.open(store.url)
    other._backend = Counting(store.url, near=request.param)
    return other


@pytest.fixture
def snapshot(store):
    return store.latest("main")


# --- what there is ------------------------------------------------------------------------------


def test_the_tensors_of_a_file(snapshot):
    assert snapshot.tensors("model.safetensors") == tuple(
        TensorInfo(name, array.dtype.name, array.shape, array.nbytes) for name, array in ARRAYS.items()
    )
    (only,) = snapshot.tensors(Path("fortran.npy"))
    assert only[1:] == ("float32", (700, 900), FORTRAN.nbytes)


def test_listing_reads_little(counting):
    counting.latest("main").tensors("model.safetensors")
    assert sum(counting._backend.requests) < 1.2 * MIB  # the chunk that the header begins


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_tensor(snapshot, name):
    found = snapshot.read_tensor("model.safetensors", name)
    assert found.dtype == ARRAYS[name].dtype
    assert found.shape == ARRAYS[name].shape
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, ARRAYS[name])


def test_a_tensor_in_an_inline_snapshot(store):
    (info,) = store.latest("inline").tensors("small.npy")
    assert store.latest("inline").read_tensor("small.npy", info.name).tolist() == list(range(10))


# --- slices -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([name for name in NAMES if ARRAYS[name].ndim]), data=st.data())
def test_slices(store, name, data):
    array = ARRAYS[name]
    ends = st.one_of(st.none(), st.integers(0, len(array)))
    start, stop = data.draw(ends), data.draw(ends)
    if start is not None and stop is not None:
        start, stop = sorted((start, stop))
    found = store.latest("main").read_tensor("model.safetensors", name, start=start, stop=stop)
    np.testing.assert_array_equal(found, array[start:stop])
    assert found.shape == array[start:stop].shape


def test_a_slice_reads_only_the_chunks_that_it_needs(counting):
    snapshot = counting.latest("main")
    snapshot.tensors("model.safetensors")
    requests = counting._backend.requests
    requests.clear()
    found = snapshot.read_tensor("model.safetensors", "embed", start=500, stop=503)
    np.testing.assert_array_equal(found, ARRAYS["embed"][500:503])
    assert 0 < sum(requests) <= 2 * (MIB + 1)  # three rows lie in one chunk or two
    requests.clear()
    assert snapshot.read_tensor("model.safetensors", "embed", start=500, stop=500).shape == (0, 1024)
    assert snapshot.read_tensor("model.safetensors", "none").shape == (0, 5)
    assert requests == []


def test_a_whole_tensor_is_read_once(counting):
    snapshot = counting.latest("main")
    snapshot.tensors("model.safetensors")
    requests = counting._backend.requests
    requests.clear()
    snapshot.read_tensor("model.safetensors", "embed")
    assert sum(requests) < ARRAYS["embed"].nbytes + 2 * MIB
    if not counting._backend.near:
        assert len(requests) == 1  # its chunks lie together


def test_far_away_much_is_read_at_once(tmp_path):
    array = np.frombuffer(random.Random(5).randbytes(40 * MIB), np.uint8)
    store = Store.open(tmp_path / "store", create=True, durable=False)
    store.save({"a.npy": npy(array)})
    store._backend = Counting(store.url, near=False)
    snapshot = store.latest()
    (info,) = snapshot.tensors("a.npy")
    store._backend.requests.clear()
    store._backend.threads.clear()
    np.testing.assert_array_equal(snapshot.read_tensor("a.npy", info.name), array)
    assert 3 <= len(store._backend.requests) <= 6
    assert store._backend.threads == {"cas-checkpoint-tensors"}


@pytest.mark.parametrize("most", [2**24, 1000])
def test_far_away_small_chunks_are_fetched_at_once(tmp_path, monkeypatch, most):
    """They lie between tensors, and are what a list of these is made from."""
    store = Store.open(tmp_path / "store", create=True, durable=False)
    store.save({"f": safetensors(ARRAYS)})
    snapshot = store.latest()
    snapshot._backend = Counting(store.url, near=False)
    reader = snapshot.reader()
    (entry,) = reader.entries()
    sizes = sorted(ref.size for ref in reader.refs(entry.content))
    monkeypatch.setattr("cas_checkpoint.tensorfiles._SMALL_CHUNK", sizes[-2])
    monkeypatch.setattr("cas_checkpoint.tensorfiles._MAX_SMALL_SIZE", most)
    file = FileRanges(reader, entry)
    data, requests = safetensors(ARRAYS), snapshot._backend.requests
    requests.clear()
    for offset in range(0, len(data), 100_000):
        assert file.read_at(offset, 10) == data[offset : offset + 10]
    assert (len(requests) <= 3) is (most > 1000)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (None, 1001), (5, 4), (1001, None), (0, -1)])
def test_slices_that_are_none(snapshot, start, stop):
    with pytest.raises(InvalidArgument, match="has 1000 rows"):
        snapshot.read_tensor("model.safetensors", "embed", start=start, stop=stop)


@pytest.mark.parametrize("value", [1.0, "1", True, (1,)])
def test_ends_that_are_no_integers(snapshot, value):
    with pytest.raises(InvalidArgumentType):
        snapshot.read_tensor("model.safetensors", "embed", start=value)


def test_numpy_integers_are_integers(snapshot):
    found = snapshot.read_tensor("model.safetensors", "embed", start=np.int32(1), stop=np.uint8(2))
    np.testing.assert_array_equal(found, ARRAYS["embed"][1:2])


def test_a_scalar_has_no_slices(snapshot):
    with pytest.raises(InvalidArgument, match="is a scalar"):
        snapshot.read_tensor("model.safetensors", "step", start=0)


# --- where to put it ----------------------------------------------------------------------------


def test_out_is_filled(snapshot):
    out = np.full((3, 1024), 7, np.float32)
    assert snapshot.read_tensor("model.safetensors", "embed", start=1, stop=4, out=out) is out
    np.testing.assert_array_equal(out, ARRAYS["embed"][1:4])
    step = np.zeros((), np.int64)
    assert snapshot.read_tensor("model.safetensors", "step", out=step) is step
    assert step == ARRAYS["step"]


def read_only():
    array = np.zeros((2, 1024), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (np.zeros((2, 1024), np.float64), "has the type float64"),
        (np.zeros((2, 1024), ">f4"), "has the type >f4"),
        (np.zeros((2, 1024), np.uint32), "has the type uint32"),
        (np.zeros((1024, 2), np.float32), "has the shape"),
        (np.zeros(2048, np.float32), "has the shape"),
        (np.zeros((1024, 2), np.float32).T, "C-contiguous"),
        (read_only(), "writable"),
    ],
)
def test_an_out_that_does_not_fit(snapshot, out, reason):
    before = out.copy()
    with pytest.raises(InvalidArgument, match=reason):
        snapshot.read_tensor("model.safetensors", "embed", stop=2, out=out)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("out", [bytearray(8192), [0.0], memoryview(b"")])
def test_an_out_that_is_no_array(snapshot, out):
    with pytest.raises(InvalidArgumentType):
        snapshot.read_tensor("model.safetensors", "embed", stop=2, out=out)


# --- types --------------------------------------------------------------------------------------

BITS = {"b": np.arange(2**16, dtype="<u2").reshape(256, 256), "f": np.arange(256, dtype=np.uint8)}
BITS_TYPES = {"b": "bfloat16", "f": "float8_e4m3fn"}


@pytest.fixture(scope="module")
def bits(tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("place") / "store", create=True, durable=False)
    return store.save({"bits": safetensors(BITS, BITS_TYPES)})


@pytest.mark.parametrize("name", BITS)
def test_types_that_numpy_does_not_have(bits, name, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    found = bits.read_tensor("bits", name)
    assert found.dtype == np.dtype(getattr(ml_dtypes, BITS_TYPES[name]))
    np.testing.assert_array_equal(found.view(BITS[name].dtype), BITS[name])
    out = np.zeros_like(BITS[name])
    bits.read_tensor("bits", name, out=out)
    np.testing.assert_array_equal(out, BITS[name])


@pytest.mark.parametrize("name", BITS)
def test_types_that_numpy_does_not_have_without_ml_dtypes(bits, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert {info.name: info.dtype for info in bits.tensors("bits")} == BITS_TYPES
    found = bits.read_tensor("bits", name)
    assert found.dtype == BITS[name].dtype
    np.testing.assert_array_equal(found, BITS[name])


# --- elements that do not lie together ----------------------------------------------------------


def test_fortran_order(snapshot):
    (info,) = snapshot.tensors("fortran.npy")
    found = snapshot.read_tensor("fortran.npy", info.name)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, FORTRAN)
    np.testing.assert_array_equal(snapshot.read_tensor("fortran.npy", info.name, start=3, stop=5), FORTRAN[3:5])


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A file of 2**20 int32 at the offset 4, with a hole from 1 MiB to 2 MiB, as a container without a layout."""
    values = np.arange(2**20, dtype="<i4")
    values[(MIB - 4) // 4 : (2 * MIB - 4) // 4] = 0
    path = tmp_path_factory.mktemp("tree") / "numbers"
    with path.open("wb") as file:
        file.write((b"head" + values.tobytes())[:MIB])
        file.seek(2 * MIB)
        file.write((b"head" + values.tobytes())[2 * MIB :])
    store = Store.open(tmp_path_factory.mktemp("place") / "store", create=True, durable=False)
    snapshot = store.save({"numbers": path})
    return store, snapshot, values


def opened(snapshot):
    reader = snapshot.reader()
    return FileRanges(reader, _find_file(reader, b"numbers"))


@st.composite
def strided(draw):
    """Return shapes and strides, in elements, and the first element's number; all elements lie among 2 ** 20."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    strides = [draw(st.sampled_from([0, 1, 2, 7, 1000, 1024, 40_000, -1, -3, -20_000])) for _ in shape]
    reaches = [max(length - 1, 0) * stride for length, stride in zip(shape, strides, strict=True)]
    below, above = (sum(reach for reach in reaches if (reach > 0) is is_up) for is_up in (False, True))
    return tuple(shape), tuple(strides), draw(st.integers(-below, 2**20 - 1 - above))


@settings(max_examples=150, deadline=None)
@given(case=strided())
def test_any_strides(numbers, case):
    _, snapshot, values = numbers
    shape, strides, first = case
    expected = np.lib.stride_tricks.as_strided(values[first:], shape, tuple(4 * stride for stride in strides))
    out = np.full(shape, -1, "<i4")
    opened(snapshot).fill_array(Tensor("t", "int32", shape, strides, 4 + 4 * first), out)
    np.testing.assert_array_equal(out, expected)


def test_of_a_few_columns_not_everything_is_read(numbers):
    store, _, values = numbers
    other = Store.open(store.url)
    other._backend = Counting(store.url)
    file = opened(other.latest())
    other._backend.requests.clear()
    out = np.empty((2, 2), "<i4")
    file.fill_array(Tensor("t", "int32", (2, 2), (1, 2**20 - 2), 4), out)  # at both ends
    assert out.tolist() == [[values[0], values[-2]], [values[1], values[-1]]]
    assert 0 < sum(other._backend.requests) < 2.5 * MIB


def test_too_many_runs_are_read_as_one(numbers, monkeypatch):
    monkeypatch.setattr("cas_checkpoint.tensorfiles._MAX_RUNS", 4)
    _, snapshot, values = numbers
    out = np.empty((100,), "<i4")
    opened(snapshot).fill_array(Tensor("t", "int32", (100,), (2,), 4), out)
    np.testing.assert_array_equal(out, values[:200:2])


@pytest.mark.parametrize(
    ("shape", "strides", "answer"),
    [
        ((), (), True),
        ((5,), (1,), True),
        ((5,), (2,), False),
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((1, 3), (17, 1), True),
        ((2, 1, 3), (3, 99, 1), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (0, 1), False),
    ],
)
def test_is_packed(shape, strides, answer):
    assert is_packed(shape, strides) is answer


# --- what goes wrong ----------------------------------------------------------------------------


def test_no_such_file(snapshot):
    for call in (snapshot.tensors, lambda path: snapshot.read_tensor(path, "embed")):
        with pytest.raises(EntryNotFound, match="holds nothing at 'model'"):
            call("model")


@pytest.mark.parametrize("path", ["text", "empty"])
def test_not_a_container(snapshot, path):
    for call in (snapshot.tensors, lambda path: snapshot.read_tensor(path, "embed")):
        with pytest.raises(EntryNotFound, match=f"'{path}' is no container of tensors"):
            call(path)


def test_no_such_tensor(snapshot):
    with pytest.raises(
        EntryNotFound, match=r"no tensor 'block.0.wieght'; the closest are 'block.0.weight', 'block.1.w"
    ):
        snapshot.read_tensor("model.safetensors", "block.0.wieght")
    with pytest.raises(EntryNotFound, match=r"no tensor 'zzzzzz'$"):
        snapshot.read_tensor("model.safetensors", "zzzzzz")
    with pytest.raises(InvalidArgumentType):
        snapshot.read_tensor("model.safetensors", b"embed")


def test_damage_is_raised_and_repair_is_noticed(tmp_path):
    store = Store.open(tmp_path / "store", create=True, durable=False)
    data = safetensors({"a": ARRAYS["embed"], "b": ARRAYS["bytes"]})
    snapshot = store.save({"f": data})
    snapshot.tensors("f")
    (pack,) = store._backend.list("packs/")
    path = Path(store.url, pack.key)
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[3 * MIB] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(DamagedObject, match=pack.key):
        snapshot.read_tensor("f", "a")
    np.testing.assert_array_equal(snapshot.read_tensor("f", "b"), ARRAYS["bytes"])
    path.unlink()
    with pytest.raises(MissingObject, match=pack.key):
        snapshot.read_tensor("f", "a")
    path.write_bytes(intact)
    np.testing.assert_array_equal(snapshot.read_tensor("f", "a"), ARRAYS["embed"])


def test_a_damaged_header_is_damage_and_not_a_file_without_tensors(tmp_path):
    store = Store.open(tmp_path / "store", create=True, durable=False)
    snapshot = store.save({"f": safetensors({"a": ARRAYS["embed"]})})
    (pack,) = store._backend.list("packs/")
    path = Path(store.url, pack.key)
    path.unlink()
    with pytest.raises(DamagedStore):
        snapshot.tensors("f")


# --- snapshots ----------------------------------------------------------------------------------


def test_a_snapshot_that_has_read_tensors_can_be_pickled(snapshot):
    snapshot.read_tensor("model.safetensors", "step")
    copy = pickle.loads(pickle.dumps(snapshot))
    assert copy == snapshot
    assert copy.read_tensor("model.safetensors", "step") == ARRAYS["step"]


def test_hard_links(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(npy(np.arange(5)))
    (tree / "b").hardlink_to(tree / "a")
    snapshot = Store.open(tmp_path / "store", create=True, durable=False).save(tree)
    (info,) = snapshot.tensors("b")
    assert snapshot.read_tensor("b", info.name).tolist() == [0, 1, 2, 3, 4]


def test_threads_may_read_tensors_at_once(snapshot):
    def read(seed):
        chooser = random.Random(seed)
        for _ in range(20):
            name = chooser.choice(NAMES)
            path = "model.safetensors" if seed % 2 else "fortran.npy"
            if seed % 2:
                assert np.array_equal(snapshot.read_tensor(path, name), ARRAYS[name])
            else:
                snapshot.tensors(path)

    read_at_once(read)


# --- files that other programs make -------------------------------------------------------------


def test_every_type_of_the_library_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {
        name: np.arange(24).reshape(2, 3, 4).astype(name)
        for name in ELEMENTS
        if not name.startswith(("float8", "bfloat16", "complex"))
    }
    library.save_file(arrays, tmp_path / "f")
    snapshot = Store.open(tmp_path / "store", create=True, durable=False).save({"f": tmp_path / "f"})
    assert {info.name for info in snapshot.tensors("f")} == set(arrays)
    for name, array in arrays.items():
        found = snapshot.read_tensor("f", name, start=1)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[1:])


def test_what_torch_saves(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    state = {
        "base": base,
        "transposed": base.T,
        "columns": base[:, 2:9:3],
        "wide": base[0].expand(4, 12),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(3, 0),
        "half": torch.linspace(-2, 2, 33).to(torch.bfloat16),
        "eight": torch.linspace(-2, 2, 33).to(torch.float8_e4m3fn),
    }
    torch.save(state, tmp_path / "f.pt")
    snapshot = Store.open(tmp_path / "store", create=True, durable=False).save({"f.pt": tmp_path / "f.pt"})
    assert {info.name for info in snapshot.tensors("f.pt")} == set(state)
    for name, tensor in state.items():
        found = snapshot.read_tensor("f.pt", name)
        assert found.shape == tuple(tensor.shape)
        if name in ("half", "eight"):
            width = torch.uint16 if name == "half" else torch.uint8
            np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), tensor.view(width).numpy())
        else:
            np.testing.assert_array_equal(found, tensor.numpy())
            if tensor.ndim:
                np.testing.assert_array_equal(snapshot.read_tensor("f.pt", name, start=1, stop=3), tensor[1:3].numpy())


def test_npz(tmp_path):
    np.savez(tmp_path / "f.npz", a=ARRAYS["embed"], b=FORTRAN, c=ARRAYS["step"])
    snapshot = Store.open(tmp_path / "store", create=True, durable=False).save({"f.npz": tmp_path / "f.npz"})
    found = {info.name: snapshot.read_tensor("f.npz", info.name) for info in snapshot.tensors("f.npz")}
    assert len(found) == 3
    for expected, array in zip((ARRAYS["embed"], FORTRAN, ARRAYS["step"]), found.values(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_more_axes_than_numpy_has():
    class Source:
        def info(self, name):
            return TensorInfo(name, "float32", (1,) * 100, 4)

    with pytest.raises(InvalidArgument, match="'deep' cannot be an array"):
        read_from(Source(), "file", "deep")
