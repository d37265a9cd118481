"""The tensors of a transformer: names, shapes, and first values that look like weights."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["shapes", "weights"]


def shapes(width: int, *, layers: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformer's tensors, for a table of so many rows and an inner width of 4 x `width`."""
    found: dict[str, tuple[int, ...]] = {"embed.weight": (rows, width)}
    for layer in range(layers):
        found |= {
            f"layers.{layer}.attention.qkv.weight": (3 * width, width),
            f"layers.{layer}.attention.out.weight": (width, width),
            f"layers.{layer}.inner.up.weight": (4 * width, width),
            f"layers.{layer}.inner.down.weight": (width, 4 * width),
            f"layers.{layer}.norm.weight": (width,),
            f"layers.{layer}.norm.bias": (width,),
        }
    return found


def weights(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return normally distributed numbers; each tensor has a scale, and each of its rows one of its own."""
    numbers = generator.standard_normal(shape, np.float32)
    numbers *= generator.lognormal(0, 0.3, (shape[0],) + (1,) * (len(shape) - 1)).astype("<f4")
    numbers *= np.float32(1 / sqrt(shape[-1]))
    return numbers
