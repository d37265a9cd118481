"""What nobody can make smaller: random bytes, new ones at each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from corpora.corpus import Checkpoint, Corpus

__all__ = ["RANDOM"]

_SIZE = 32 * 2**20


def _random(scale: float) -> Iterator[Checkpoint]:
    generator = np.random.default_rng(400)
    while True:
        yield {"random.bin": generator.bytes(round(_SIZE * scale))}


RANDOM = Corpus("random bytes", _random, {"bytes": "random.bin"})
