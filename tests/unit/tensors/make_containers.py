#!/usr/bin/env python3
"""Writes `containers/` with the real libraries: small files of each kind, and `layouts.json`, what is found in them.

Run once; needs the extra `test-tensors`. What is found is compared with the libraries' own tensors by
tests/integrations/test_real_containers.py, not here.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import gguf
import h5py
import numpy as np
import safetensors.numpy
import torch
from torch.distributed import checkpoint

from cas_checkpoint.tensors import find_tensors

CONTAINERS = Path(__file__).with_name("containers")
ARRAYS = {
    "matrix": np.arange(12, dtype="<f4").reshape(3, 4),
    "vector": np.arange(5, dtype="<i8"),
    "half": np.ones((2, 3), "<f2"),
}


def write_hdf5(name: str, **options: object) -> None:
    """Write the arrays to a file of HDF5, and something of all that is left out."""
    with h5py.File(CONTAINERS / name, "w", **options) as file:
        layer = file.create_group("layer")
        for key, array in ARRAYS.items():
            layer[key] = array
        file["bytes"] = np.arange(3, dtype="u1")
        file["big-endian"] = np.arange(3, dtype=">f4")
        file["text"] = "text"
        file["soft"] = h5py.SoftLink("/bytes")
        file.create_dataset("unwritten", (5,), "<f4")
        file.create_dataset("nothing", dtype="<f4")
        layer.create_dataset("chunked", data=np.ones((4, 4)), chunks=(2, 2))


def write_gguf() -> None:
    """Write the arrays to a file of GGUF, with metadata of most kinds."""
    writer = gguf.GGUFWriter(CONTAINERS / "model.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "bc"])
    writer.add_token_scores([0.5, 1.5])
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    writer.add_tensor("quantized", np.arange(34, dtype="u1"), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_torch() -> None:
    """Write a small state as torch saves it, and as pieces of a distributed checkpoint."""
    weight = torch.nn.Parameter(torch.arange(6, dtype=torch.float32).reshape(2, 3))
    state: Mapping[str, object] = {
        "model": {"weight": weight, "tied": weight.detach().t(), "bf16": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"lr": 0.1, "params": [0]}]},
        "odd": [torch.ones(4, dtype=torch.uint16), None, 2**70, b"bytes", {1, 2}, frozenset((3,))],
    }
    torch.save(state, CONTAINERS / "state.pt")
    folder = CONTAINERS / "step"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pieces = {"weight": weight.detach(), "bf16": torch.ones(3, dtype=torch.bfloat16), "epoch": 3}
        checkpoint.save(pieces, storage_writer=checkpoint.FileSystemWriter(folder), no_dist=True)
    (folder / "__0_0.distcp").rename(CONTAINERS / "pieces.distcp")
    (folder / ".metadata").rename(CONTAINERS / "pieces.metadata")
    shutil.rmtree(folder)


def main() -> None:
    """Write everything."""
    shutil.rmtree(CONTAINERS, ignore_errors=True)
    CONTAINERS.mkdir()
    write_hdf5("old.h5")
    write_hdf5("new.h5", libver="latest")
    write_hdf5("tracked.h5", track_order=True)
    write_gguf()
    write_torch()
    safetensors.numpy.save_file(ARRAYS, CONTAINERS / "model.safetensors", metadata={"format": "np"})
    np.save(CONTAINERS / "array.npy", ARRAYS["matrix"])
    np.savez(CONTAINERS / "arrays.npz", **ARRAYS)
    layouts = {}
    for path in sorted(CONTAINERS.iterdir()):
        data = path.read_bytes()
        layouts[path.name] = find_tensors(lambda offset, size: data[offset : offset + size], len(data))  # noqa: B023
    (CONTAINERS / "layouts.json").write_text(json.dumps(layouts, indent=1) + "\n")


if __name__ == "__main__":
    main()
