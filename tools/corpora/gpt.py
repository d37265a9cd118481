"""A small GPT that is really trained: on the bytes of the Python standard library, with AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np

from corpora import text
from corpora.corpus import Checkpoint, Corpus
from corpora.tensorfile import safetensors
from corpora.torchtools import saved, tensor_of, torch_for

__all__ = ["TINY_GPT"]

_STEPS = 25  # between two checkpoints
_BATCH, _CONTEXT = 8, 128
_LAYERS, _HEADS = 4, 4
_RATE = 1e-3


def _build(torch: Any, width: int) -> Any:  # noqa: ANN401 -- a module, a model
    """Return a model of the usual shape: attention and an inner layer, each after a norm and beside a short cut."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:  # noqa: ANN401 -- tensors
            batch, length, _ = x.shape
            parts = self.qkv(self.before(x)).view(batch, length, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(nn.functional.gelu(self.up(self.between(x))))

    class Model(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(256, width), nn.Embedding(_CONTEXT, width)
            self.blocks = nn.ModuleList(Block() for _ in range(_LAYERS))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

        def forward(self, tokens: Any) -> Any:  # noqa: ANN401 -- tensors
            x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Model()


def _run(scale: float) -> Iterator[Checkpoint]:
    torch = torch_for(500, scale=scale)
    data = np.frombuffer(text.sources(), np.uint8)
    generator = np.random.default_rng(500)
    model = _build(torch, max(32, round(256 * sqrt(scale)) // 32 * 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    step = 0
    while True:
        for _ in range(_STEPS):
            starts = generator.integers(0, data.size - _CONTEXT - 1, _BATCH)
            batch = torch.from_numpy(np.stack([data[at : at + _CONTEXT + 1] for at in starts]).astype(np.int64))
            loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        weights = model.state_dict()
        halves = {name: tensor_of(tensor.to(torch.bfloat16)) for name, tensor in weights.items()}
        state = {"model": weights, "optimizer": optimizer.state_dict(), "step": step}
        yield {"model.safetensors": safetensors(halves), "state.pt": saved(state)}


TINY_GPT = Corpus(
    f"a small GPT, trained on the Python standard library, every {_STEPS} steps",
    _run,
    {"bf16 weights": "model.safetensors", "fp32 states": "state.pt"},
    ("torch",),
)
