"""Files that the real libraries write: names, types, shapes and bytes of all tensors, as the readers find them.

Each test is skipped where its library is missing.
"""

import argparse
import warnings
from math import prod

import numpy as np
import pytest

from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.tensors import find_tensors
from cas_checkpoint.tensors.dcp import read_metadata


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def _width(dtype):
    return ELEMENTS[dtype].width * (2 if dtype.startswith("complex") else 1)


def _content(data, tensor):
    """Return the bytes of a tensor's elements, those of its last axis side by side."""
    width = _width(tensor.dtype)
    strides = [stride * width for stride in tensor.strides]
    return np.ndarray(tensor.shape, f"V{width}", data, tensor.offset, strides).tobytes()


def _look(path):
    """Return the bytes of a file, and its layout, checked."""
    data = path.read_bytes()
    layout = find_tensors(lambda offset, size: data[offset : offset + size], len(data))
    assert layout is not None
    end = 0
    for region in layout.regions:
        assert region.offset >= end
        end = region.offset + region.size
        assert region.size > 0
        assert region.size % region.row_size == region.row_size % region.elements.width == 0
    assert end <= len(data)
    assert len({region.name for region in layout.regions}) == len(layout.regions)
    assert len({tensor.name for tensor in layout.tensors}) == len(layout.tensors)
    return data, layout


def _found(path):
    """Return type, shape and bytes of every tensor of a file by its name, and its regions by name."""
    data, layout = _look(path)
    tensors = {tensor.name: (tensor.dtype, tensor.shape, _content(data, tensor)) for tensor in layout.tensors}
    regions = {
        region.name: (region.row_size, data[region.offset : region.offset + region.size]) for region in layout.regions
    }
    return layout.container, tensors, regions


def _expected(arrays):
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


# --- numpy --------------------------------------------------------------------------------------

ARRAYS = {
    "matrix": np.arange(12, dtype="<f4").reshape(3, 4),
    "vector": np.arange(5, dtype="<i8"),
    "scalar": np.array(3.5),
    "half": np.ones((2, 3, 4), "<f2"),
    "flags": np.array([True, False, True]),
    "small": np.arange(7, dtype="u1"),
    "complex": np.arange(6, dtype="<c16").reshape(2, 3),
    "empty": np.zeros((0, 3), "<f4"),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy(tmp_path, name, version):
    path = tmp_path / "array.npy"
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a version that older numpy cannot read
        np.lib.format.write_array(file, ARRAYS[name], version)
    container, tensors, regions = _found(path)
    assert container == "npy"
    assert tensors == _expected({"array": ARRAYS[name]})
    row_size = prod(ARRAYS[name].shape[1:]) * ARRAYS[name].itemsize
    assert regions == ({"array": (row_size, ARRAYS[name].tobytes())} if ARRAYS[name].size else {})


def test_npy_in_fortran_order(tmp_path):
    array = np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4))
    np.save(tmp_path / "array.npy", array)
    _, tensors, regions = _found(tmp_path / "array.npy")
    assert tensors == {"array": ("float32", (2, 3, 4), array.tobytes())}
    assert regions == {"array": (24, array.tobytes("F"))}


@pytest.mark.parametrize(
    "array", [np.arange(3, dtype=">f4"), np.array(["a"]), np.array([b"a"]), np.array([{}], object)]
)
def test_npy_of_other_types_is_not_read(tmp_path, array):
    np.save(tmp_path / "array.npy", array)
    data = (tmp_path / "array.npy").read_bytes()
    assert find_tensors(lambda offset, size: data[offset : offset + size], len(data)) is None


def test_npy_of_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "array.npy", array)
    data, layout = _look(tmp_path / "array.npy")
    assert layout.tensors == ()
    (region,) = layout.regions
    assert (region.elements, region.row_size) == ((2, False), 4)
    assert data[region.offset :] == array.tobytes()


def test_npz(tmp_path):
    np.savez(tmp_path / "arrays.npz", big_endian=np.arange(3, dtype=">i4"), **ARRAYS)
    container, tensors, regions = _found(tmp_path / "arrays.npz")
    assert container == "npz"
    assert tensors == _expected(ARRAYS)
    assert {name: content for name, (_, content) in regions.items()} == {
        name: array.tobytes() for name, array in ARRAYS.items() if array.size
    }


def test_compressed_npz_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "arrays.npz", **ARRAYS)
    data = (tmp_path / "arrays.npz").read_bytes()
    assert find_tensors(lambda offset, size: data[offset : offset + size], len(data)) is None


# --- safetensors --------------------------------------------------------------------------------


def test_safetensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {name: array for name, array in ARRAYS.items() if name != "complex"}
    numpy.save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "np", "epoch": "3"})
    container, tensors, regions = _found(tmp_path / "model.safetensors")
    assert container == "safetensors"
    assert tensors == _expected(arrays)
    assert regions["matrix"] == (16, arrays["matrix"].tobytes())
    assert regions.keys() == arrays.keys() - {"empty"}


# --- torch --------------------------------------------------------------------------------------


def _bytes(tensor):
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _torch_expected(tensors):
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _bytes(tensor))
        for name, tensor in tensors.items()
    }


def _flat(value, *path):
    """Return the tensors in dictionaries and lists by the way to them."""
    import torch

    if isinstance(value, torch.Tensor):
        return {".".join(path): value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: tensor for key, part in items for name, tensor in _flat(part, *path, str(key)).items()}


@pytest.fixture
def state(torch):
    """The state of a training with Adam after one step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 16)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_and_torch_save_of_each_type(torch, tmp_path, dtype):
    if not hasattr(torch, dtype):
        pytest.skip("unknown to this torch")
    file = pytest.importorskip("safetensors.torch")
    bits = torch.arange(96, dtype=torch.uint8) % 2 if dtype == "bool" else torch.arange(96, dtype=torch.uint8)
    tensor = bits.view(getattr(torch, dtype)).reshape(3, -1)
    torch.save({"t": tensor}, tmp_path / "t.pt")
    container, tensors, regions = _found(tmp_path / "t.pt")
    assert container == "torch"
    assert tensors == _torch_expected({"t": tensor})
    assert regions == {"t": (32, bytes(bits.numpy()))}
    if dtype != "complex128":
        file.save_file({"t": tensor}, tmp_path / "t.safetensors")
        _, tensors, regions = _found(tmp_path / "t.safetensors")
        assert tensors == _torch_expected({"t": tensor})
        assert regions == {"t": (32, bytes(bits.numpy()))}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_whole_training_state(torch, tmp_path, state, protocol):
    torch.save(state, tmp_path / "state.pt", pickle_protocol=protocol)
    container, tensors, regions = _found(tmp_path / "state.pt")
    assert container == "torch"
    assert tensors == _torch_expected(_flat(state))
    assert "optimizer.state.3.exp_avg" in tensors
    assert {name: content for name, (_, content) in regions.items()} == {
        name: _bytes(tensor) for name, tensor in _flat(state).items()
    }
    assert regions["model.0.weight"][0] == 64


def test_a_checkpoint_like_lightnings(torch, tmp_path, state):
    checkpoint = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state["model"],
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "kth_value": None}},
        "optimizer_states": [state["optimizer"]],
        "lr_schedulers": [{"base_lrs": [1e-3], "last_epoch": 1}],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=0.1, layers=[1, 2], scale=torch.ones(3)),
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    _, tensors, _ = _found(tmp_path / "last.ckpt")
    expected = _flat({**checkpoint, "hyper_parameters": vars(checkpoint["hyper_parameters"])})
    assert tensors == _torch_expected(expected)
    assert "optimizer_states.0.state.0.exp_avg_sq" in tensors


def test_a_whole_module(torch, tmp_path):
    module = torch.nn.Linear(3, 2)
    torch.save(module, tmp_path / "module.pt")
    _, tensors, _ = _found(tmp_path / "module.pt")
    assert tensors == _torch_expected({"_parameters.weight": module.weight, "_parameters.bias": module.bias})


def test_tied_weights_and_views_share_a_region(torch, tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "embedding": base,
        "head": base,
        "tied": base.view(4, 6),
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "expanded": base[0, :1].expand(5),
        "parameter": torch.nn.Parameter(base),
        "empty": torch.zeros(0, 3),
    }
    torch.save(tensors, tmp_path / "tied.pt")
    _, found, regions = _found(tmp_path / "tied.pt")
    assert found == _torch_expected(tensors)
    assert regions == {"embedding": (24, _bytes(base))}


def test_a_region_of_a_view_has_no_rows(torch, tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    for name, tensor in {"transposed": base.t(), "part": base[1:]}.items():
        torch.save({name: tensor}, tmp_path / "view.pt")
        _, found, regions = _found(tmp_path / "view.pt")
        assert found == _torch_expected({name: tensor})
        assert regions == {name: (4, _bytes(base))}


def test_a_tensor_alone(torch, tmp_path):
    torch.save(torch.ones(2, 3), tmp_path / "tensor.pt")
    _, found, regions = _found(tmp_path / "tensor.pt")
    assert found == _torch_expected({"#0": torch.ones(2, 3)})
    assert regions == {"#0": (12, _bytes(torch.ones(2, 3)))}


def test_what_torch_saves_without_tensors_or_in_its_old_format_is_not_read(torch, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("none.pt", "old.pt"):
        data = (tmp_path / name).read_bytes()
        assert find_tensors(lambda offset, size: data[offset : offset + size], len(data)) is None  # noqa: B023


def test_quantized_and_sparse_tensors_are_left_out(torch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = torch.eye(3).to_sparse()
        torch.save({"sparse": sparse, "dense": torch.ones(3)}, tmp_path / "sparse.pt")
    _, tensors, regions = _found(tmp_path / "sparse.pt")
    assert tensors["dense"] == _torch_expected({"dense": torch.ones(3)})["dense"]
    assert "sparse" not in tensors
    assert _bytes(sparse.coalesce().values()) in {content for _, content in regions.values()}


def test_a_distributed_checkpoint(torch, tmp_path, state):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    path = tmp_path / "step-1"
    state["bf16"] = torch.arange(6).to(torch.bfloat16).reshape(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    (file,) = path.glob("*.distcp")
    data, layout = _look(file)
    assert layout.container == "dcp"
    assert [region.name for region in layout.regions] == [tensor.name for tensor in layout.tensors]
    pieces = read_metadata((path / ".metadata").read_bytes())
    expected = _torch_expected(_flat(state))
    assert {piece.name for piece in pieces} == expected.keys()
    for piece in pieces:
        assert piece.file == file.name
        (tensor,) = (t for t in layout.tensors if piece.offset <= t.offset < piece.offset + piece.size)
        assert (tensor.dtype, tensor.shape, _content(data, tensor)) == expected[piece.name]
        assert (piece.offsets, piece.shape) == ((0,) * len(tensor.shape), tensor.shape)


# --- HDF5 and GGUF ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"track_order": True}, {"libver": "v108"}], ids=str)
def test_hdf5(tmp_path, options):
    h5py = pytest.importorskip("h5py")
    arrays = {
        f"layers/dense/{name}": array for name, array in ARRAYS.items() if array.dtype.kind in "fiu" and array.size
    }
    arrays["top"] = np.arange(9, dtype="<u2").reshape(3, 3)
    with h5py.File(tmp_path / "model.h5", "w", **options) as file:
        for name, array in arrays.items():
            file[name] = array
        file["layers"].attrs["names"] = ["dense"]
        file["big-endian"] = np.arange(3, dtype=">f4")
        file["text"] = "some text"
        file["complex"] = np.ones(3, "c16")
        file["flags"] = np.ones(3, bool)
        group = file.create_group("others")
        group["soft"] = h5py.SoftLink("/top")
        group["hard"] = file["top"]
        group.create_dataset("chunked", data=np.ones((10, 10)), chunks=(5, 5))
        group.create_dataset("unwritten", (5,), "<f4")
        group.create_dataset("nothing", dtype="<f4")
    container, tensors, regions = _found(tmp_path / "model.h5")
    assert container == "hdf5"
    tied = "others/hard" if "others/hard" in tensors else "top"
    tensors["top"], regions["top"] = tensors.pop(tied), regions.pop(tied)
    assert tensors == _expected(arrays)
    assert regions.keys() == arrays.keys()
    assert regions["layers/dense/matrix"] == (16, arrays["layers/dense/matrix"].tobytes())


def test_hdf5_of_many_groups(tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays = {f"layers/{number}/vars/0": np.full(4, number, "<f4") for number in range(1000)}
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    _, tensors, _ = _found(tmp_path / "model.weights.h5")
    assert tensors == _expected(arrays)


def test_gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    arrays = {name: ARRAYS[name] for name in ("matrix", "vector", "half")} | {"last": np.arange(11, dtype="<i4")}
    for alignment in (None, 128):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if alignment:
            writer.add_custom_alignment(alignment)
        writer.add_block_count(3)
        writer.add_token_list(["a", "bc", "ä"] * 100)
        writer.add_token_scores([0.5] * 300)
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        blocks = np.arange(68, dtype="u1").reshape(2, 34)
        writer.add_tensor("quantized", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        container, tensors, regions = _found(path)
        assert container == "gguf"
        assert tensors == _expected(arrays)
        assert regions["matrix"] == (16, arrays["matrix"].tobytes())
        row_size, content = regions["quantized"]
        assert row_size == 1
        assert content.startswith(blocks.tobytes())
        assert len(content) - blocks.size < (alignment or 32)
