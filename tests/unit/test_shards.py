"""Tensors of distributed checkpoints: as torch writes them in one process, and in pieces as many processes would."""

from __future__ import annotations

import io
import os
import pickle
import threading
import warnings
from itertools import product

import numpy as np
import pytest
from counting import Counting

from cas_checkpoint.errors import EntryNotFound, InvalidArgument
from cas_checkpoint.store import Store
from cas_checkpoint.tensorfiles import TensorInfo

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

MIB = 2**20


def in_pieces(tensors, *, files=2, leave_out=None):
    """Return the files of a checkpoint, from lists of (offsets, piece) for each name."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    contents = [io.BytesIO() for _ in range(files)]
    state, storage = {}, {}
    for name, pieces in tensors.items():
        chunks = []
        for number, (offsets, piece) in enumerate(pieces):
            file = contents[number % files]
            begin = file.tell()
            blob = io.BytesIO()
            torch.save(piece, blob)
            file.write(blob.getvalue())
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), piece.shape))
            index = MetadataIndex(name, torch.Size(offsets), number)
            if (name, number) != leave_out:
                storage[index] = _StorageInfo(f"__{number % files}_0.distcp", begin, file.tell() - begin)
        size = [max(offsets[axis] + piece.shape[axis] for offsets, piece in pieces) for axis in range(piece.ndim)]
        state[name] = TensorStorageMetadata(TensorProperties(dtype=piece.dtype), torch.Size(size), chunks)
    made = {f"ckpt/__{number}_0.distcp": file.getvalue() for number, file in enumerate(contents)}
    return {**made, "ckpt/.metadata": pickle.dumps(Metadata(state, storage_data=storage))}


def cut(tensor, rows, columns):
    """Return the pieces of a matrix, cut before these rows and columns."""
    borders = [
        list(zip([0, *cuts], [*cuts, length], strict=True))
        for cuts, length in zip((rows, columns), tensor.shape, strict=True)
    ]
    return [((top, left), tensor[top:bottom, left:right].clone()) for (top, bottom), (left, right) in product(*borders)]


MATRIX = torch.arange(70 * 30, dtype=torch.float32).reshape(70, 30)
BFLOAT = torch.linspace(-1, 1, 40).to(torch.bfloat16).reshape(10, 4)
TENSORS = {
    "matrix": cut(MATRIX, [20, 40, 65], [7]),
    "half": cut(BFLOAT, [3], []),
    "one": [((0, 0), MATRIX)],
    "scalar": [((), torch.tensor(2.5, dtype=torch.float64))],
    "empty": [((0, 0), torch.zeros(0, 3))],
    "transposed": [((0, 0), MATRIX.T), ((30, 0), MATRIX.T * 2)],
}
EXPECTED = {
    "matrix": MATRIX.numpy(),
    "one": MATRIX.numpy(),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.concatenate([MATRIX.T.numpy(), 2 * MATRIX.T.numpy()]),
}


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


@pytest.fixture
def snapshot(store):
    return store.save(in_pieces(TENSORS))


def test_the_tensors_of_a_directory(snapshot):
    found = snapshot.tensors("ckpt")
    assert [info.name for info in found] == list(TENSORS)
    assert found[:2] == (
        TensorInfo("matrix", "float32", (70, 30), 8400),
        TensorInfo("half", "bfloat16", (10, 4), 80),
    )
    assert found == snapshot.tensors("ckpt/")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_whole_tensor(snapshot, name):
    found = snapshot.read_tensor("ckpt", name)
    assert found.dtype == EXPECTED[name].dtype
    np.testing.assert_array_equal(found, EXPECTED[name])
    out = np.full_like(found, 7)
    assert snapshot.read_tensor("ckpt", name, out=out) is out
    np.testing.assert_array_equal(out, EXPECTED[name])


def test_a_type_that_numpy_does_not_have(snapshot):
    found = snapshot.read_tensor("ckpt", "half", start=2, stop=5)
    np.testing.assert_array_equal(found.view(np.uint16), BFLOAT[2:5].view(torch.uint16).numpy())


@pytest.mark.parametrize("name", ["matrix", "one", "transposed", "empty"])
def test_slices(snapshot, name):
    expected = EXPECTED[name]
    for start, stop in product([0, 1, 19, 20, 30, 41, 60], repeat=2):
        if start <= stop <= len(expected):
            found = snapshot.read_tensor("ckpt", name, start=start, stop=stop)
            np.testing.assert_array_equal(found, expected[start:stop])
    with pytest.raises(InvalidArgument):
        snapshot.read_tensor("ckpt", name, stop=len(expected) + 1)


def test_what_torch_writes(store, tmp_path):
    state = {"model": {"a": MATRIX, "b": BFLOAT}, "list": [torch.tensor(3)], "step": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "step-1"), no_dist=True)
    snapshot = store.save(tmp_path / "step-1")
    for path in (".", "", "./"):
        assert {info.name for info in snapshot.tensors(path)} >= {"model.a", "model.b"}
        np.testing.assert_array_equal(snapshot.read_tensor(path, "model.a", start=3), MATRIX[3:].numpy())


def test_only_the_pieces_that_are_needed_are_read(store):
    generator = torch.Generator().manual_seed(1)
    large = torch.rand(4096, 1024, generator=generator)  # 16 MiB
    snapshot = store.save(in_pieces({"t": cut(large, [1024, 2048, 3072], [])}))
    snapshot._backend = Counting(store.url)
    np.testing.assert_array_equal(snapshot.read_tensor("ckpt", "t", start=2048, stop=3072), large[2048:3072].numpy())
    assert sum(snapshot._backend.requests) < 10 * MIB  # that piece, and what tells of it and of the first


def test_no_such_tensor(snapshot):
    with pytest.raises(EntryNotFound, match=r"'ckpt' holds no tensor 'matrx'; the closest are 'matrix'"):
        snapshot.read_tensor("ckpt", "matrx")


@pytest.mark.parametrize("metadata", [None, b"", b"no pickle", pickle.dumps({"a": 1})])
def test_other_directories(store, metadata):
    files = {"ckpt/a": b"1"} if metadata is None else {"ckpt/.metadata": metadata}
    snapshot = store.save(files)
    for path in ("ckpt", "."):
        with pytest.raises(EntryNotFound, match="no container of tensors"):
            snapshot.tensors(path)


def test_metadata_that_contradict_themselves(store):
    snapshot = store.save(in_pieces({"t": [((0, 0), torch.zeros(3))]}))
    with pytest.raises(EntryNotFound, match="no container of tensors"):
        snapshot.tensors("ckpt")


def test_a_file_that_is_missing(store):
    files = in_pieces(TENSORS)
    del files["ckpt/__1_0.distcp"]
    snapshot = store.save(files)
    np.testing.assert_array_equal(snapshot.read_tensor("ckpt", "one"), MATRIX.numpy())
    with pytest.raises(EntryNotFound, match=r"'ckpt/__1_0.distcp' does not hold the piece of 'matrix'"):
        snapshot.read_tensor("ckpt", "matrix")


def test_a_file_that_holds_something_else(store):
    files = in_pieces(TENSORS)
    for other in (bytes(len(files["ckpt/__1_0.distcp"])), files["ckpt/__1_0.distcp"][:1000], os.urandom(100_000)):
        snapshot = store.save({**files, "ckpt/__1_0.distcp": other})
        with pytest.raises(EntryNotFound, match="does not hold the piece"):
            snapshot.read_tensor("ckpt", "matrix")


def test_a_piece_that_is_missing(store):
    snapshot = store.save(in_pieces(TENSORS, leave_out=("matrix", 3)))
    for call in (lambda: snapshot.tensors("ckpt"), lambda: snapshot.read_tensor("ckpt", "matrix")):
        with pytest.raises(EntryNotFound, match="not hold all pieces of 'matrix'"):
            call()


def test_pieces_of_two_types(store):
    snapshot = store.save(in_pieces({"t": [((0,), torch.zeros(3)), ((3,), torch.zeros(3, dtype=torch.float64))]}))
    with pytest.raises(EntryNotFound, match="does not hold the piece"):
        snapshot.read_tensor("ckpt", "t")


def test_threads_may_read_at_once(snapshot):
    wrong = []

    def read():
        for name, expected in EXPECTED.items():
            if not np.array_equal(snapshot.read_tensor("ckpt", name), expected):
                wrong.append(name)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
