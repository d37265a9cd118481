"""The same tensors in other places: what changes between two checkpoints is mostly how they are laid out."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from itertools import count
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.corpus import Checkpoint, Corpus
from corpora.shapes import shapes, weights
from corpora.tensorfile import safetensors, tensors
from corpora.torchtools import torch_for

__all__ = ["CHURN"]

State = dict[str, NDArray[np.float32]]
_LOG_LINES = 20_000
_SHARDS = (2, 4)
_FORMS = 3


class _Run:
    """A state of which one tensor is new at each checkpoint, and all the others stay."""

    def __init__(self, scale: float) -> None:
        self._generator = np.random.default_rng(700)
        width = max(32, round(512 * sqrt(scale)) // 32 * 32)
        found = shapes(width, layers=2, rows=max(64, round(6000 * sqrt(scale))))
        self.state: State = {name: weights(self._generator, shape) for name, shape in found.items()}
        self._outputs = [name for name in found if name.endswith("attention.out.weight")]
        self._lines = max(10, round(_LOG_LINES * scale))
        self.log = b""

    def step(self, number: int) -> None:
        """Train: one matrix gets other values, and the log grows."""
        if number:
            name = self._outputs[number % len(self._outputs)]
            self.state[name] = weights(self._generator, self.state[name].shape)
        losses = self._generator.random(self._lines)
        lines = [{"step": number * losses.size + at, "loss": round(loss, 6)} for at, loss in enumerate(losses.tolist())]
        self.log += "".join(json.dumps(line) + "\n" for line in lines).encode()

    def shuffled(self) -> State:
        """Return the state in another order."""
        names = list(self.state)
        return {names[at]: self.state[names[at]] for at in self._generator.permutation(len(names))}

    def inserted(self, number: int) -> State:
        """Return the state with some more small tensors in front than at the checkpoint before."""
        extra = {f"extra.{at}": np.full((at + 3, 7), at, "<f4") for at in range(number + 1)}
        return {**extra, **self.state}


def _sharded(state: State, shards: int) -> Checkpoint:
    """Return the files of as many processes: each holds its rows of every tensor."""
    cut = {name: np.array_split(tensor, shards) for name, tensor in state.items()}
    return {
        f"resharded/model-{shard:05d}-of-{shards:05d}.safetensors": safetensors(
            {name: pieces[shard] for name, pieces in cut.items()}
        )
        for shard in range(shards)
    }


def _pt(torch: Any, state: State, name: str) -> bytes:  # noqa: ANN401 -- a module
    """Return what `torch.save` writes to a file of this name, which is the name of the root folder within."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.pt")
        torch.save({key: torch.from_numpy(tensor) for key, tensor in state.items()}, path)
        return path.read_bytes()


def _writer(dcp: Any, folder: str) -> Any:  # noqa: ANN401 -- a module, an object of it
    """Return a writer that gives its checkpoint no name of its own, which would be another each time."""
    meta = import_module("torch.distributed.checkpoint.metadata").StorageMeta

    class Writer(dcp.FileSystemWriter):  # type: ignore[misc]
        def storage_meta(self) -> Any:  # noqa: ANN401 -- of torch
            return meta(checkpoint_id="checkpoint", save_id="0")

    return Writer(folder, sync_files=False)


def _dcp(torch: Any, state: State) -> Checkpoint:  # noqa: ANN401 -- a module
    """Return the files that torch's distributed checkpoints consist of, for one process."""
    dcp: Any = import_module("torch.distributed.checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        tensors = {key: torch.from_numpy(tensor) for key, tensor in state.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process only
            dcp.save(tensors, storage_writer=_writer(dcp, folder), no_dist=True)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return {f"forms/{name}": data for name, data in files.items()}


def _form(torch: Any, state: State, number: int) -> Checkpoint:  # noqa: ANN401 -- a module
    if number % _FORMS == 0:
        return {"forms/model.safetensors": safetensors(state)}
    return {"forms/model.pt": _pt(torch, state, "model")} if number % _FORMS == 1 else _dcp(torch, state)


def _changed(before: Checkpoint, after: Checkpoint) -> int:
    """Return the bytes of the tensors that are new: a matrix, and a small one that was inserted."""
    one, other = (tensors(found["inserted/model.safetensors"]) for found in (before, after))
    return sum(len(data) for name, data in other.items() if one.get(name) != data)


def _churn(scale: float) -> Iterator[Checkpoint]:
    torch = torch_for(700, scale=scale)
    run = _Run(scale)
    for number in count():
        run.step(number)
        yield {
            "log/train.jsonl": run.log,
            "renamed/state.pt": _pt(torch, run.state, f"checkpoint-{10 ** (number % 4)}"),
            "inserted/model.safetensors": safetensors(run.inserted(number)),
            "shuffled/model.safetensors": safetensors(run.shuffled()),
            **_sharded(run.state, _SHARDS[number % len(_SHARDS)]),
            **_form(torch, run.state, number),
        }


CHURN = Corpus(
    "one matrix new at each checkpoint, all else only laid out in another way",
    _churn,
    {
        "log": "log",
        "root folder renamed": "renamed",
        "tensors inserted": "inserted",
        "order shuffled": "shuffled",
        "2 and 4 shards": "resharded",
        "safetensors, .pt, DCP": "forms",
    },
    ("torch",),
    {
        "log": lambda before, after: len(after["log/train.jsonl"]) - len(before["log/train.jsonl"]),
        "tensors inserted": _changed,
        **dict.fromkeys(("root folder renamed", "order shuffled", "2 and 4 shards", "safetensors, .pt, DCP"), _changed),
    },
)
