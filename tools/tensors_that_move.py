"""Files of tensors that change a little from step to step, for the campaigns; and how many deltas came of them."""

from __future__ import annotations

import json
from collections.abc import Container
from functools import lru_cache

import numpy as np

from cas_checkpoint import Snapshot
from cas_checkpoint.backends import Backend
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import PackId
from cas_checkpoint.transactions import list_packs

TENSOR_SIZE = 2**16
"""Bytes; of smaller tensors there are no deltas in a store of the usual chunks."""


@lru_cache
def weights(seed: int, steps: int = 0, size: int = TENSOR_SIZE, move: float = 1e-5) -> bytes:
    """Return a safetensors file of float32 numbers, so many bytes of them; each step moves each by about `move`."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 0.05, size // 4)
    for _ in range(steps):
        values += generator.normal(0, move, len(values))
    tensor = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"steps": str(steps)}, "weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + values.astype("<f4").tobytes()


def count_deltas(backend: Backend, *, without: Container[PackId] = ()) -> int:
    """Return how many chunks are stored as deltas in the packs of a store but some."""
    packs = (pack for pack in list_packs(backend) if pack not in without)
    return sum(len(read_footer(backend, pack).delta_rows) for pack in packs)


def deltas_of(backend: Backend, snapshot: Snapshot) -> int:
    """Return how many chunks a save stored as deltas; errors as for reading the snapshot."""
    manifest = snapshot.reader().manifest()
    packs = [ref.pack for ref in manifest.packs if ref.home == manifest.transaction]
    return sum(len(read_footer(backend, pack).delta_rows) for pack in packs)
