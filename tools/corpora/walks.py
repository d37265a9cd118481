"""Runs without a model: Adam on noisy gradients, and weights of which hardly any change."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from corpora.corpus import Checkpoint, Corpus
from corpora.shapes import shapes, weights
from corpora.tensorfile import Bf16, bf16, safetensors

__all__ = ["ADAM_WALK", "EXP_AVG", "RL_BF16", "Adam"]

Numbers = NDArray[np.float32]
_BETAS = (0.9, 0.999)
_RATE = 1e-4
_SIGNAL_TO_NOISE = 0.2
_STEPS = 20  # of Adam between two checkpoints
_SHARE = 0.01  # of bf16 weights that change from checkpoint to checkpoint
_SAMPLE = 200_000
_HALVINGS = 30


class Adam:
    """One tensor under Adam: its gradients have a mean and noise, both with a size of their own for each element."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        """Begin in the middle of a run: the averages are what they would be after many steps."""
        self._generator = generator = np.random.default_rng(seed)
        self.weight = weights(generator, shape)
        self._noise = np.exp(generator.standard_normal(shape, np.float32) - np.float32(10))
        sign = generator.integers(0, 2, shape).astype("<f4") * 2 - 1
        self._mean = self._noise * sign * np.float32(_SIGNAL_TO_NOISE)
        first, _ = _BETAS
        spread = np.float32(sqrt((1 - first) / (1 + first)))
        self.exp_avg = self._mean + self._noise * spread * generator.standard_normal(shape, np.float32)
        self.exp_avg_sq = np.square(self._noise) + np.square(self._mean)

    def step(self) -> None:
        """Take one step, as torch's Adam does without weight decay."""
        first, second = _BETAS
        gradient = self._generator.standard_normal(self.weight.shape, np.float32)
        gradient *= self._noise
        gradient += self._mean
        self.exp_avg += np.float32(1 - first) * (gradient - self.exp_avg)
        gradient *= gradient
        self.exp_avg_sq *= np.float32(second)
        self.exp_avg_sq += np.float32(1 - second) * gradient
        self.weight -= np.float32(_RATE) * self.exp_avg / (np.sqrt(self.exp_avg_sq) + np.float32(1e-8))


def _walk(scale: float, seed: int) -> Iterator[dict[str, Adam]]:
    width = max(32, round(512 * sqrt(scale)) // 32 * 32)
    found = shapes(width, layers=2, rows=max(64, round(7000 * sqrt(scale))))
    tensors = {name: Adam(seed + number, shape) for number, (name, shape) in enumerate(found.items())}
    while True:
        for tensor in tensors.values():
            for _ in range(_STEPS):
                tensor.step()
        yield tensors


def _adam_walk(scale: float) -> Iterator[Checkpoint]:
    for step, tensors in enumerate(_walk(scale, 100), 1):
        averages = {f"{name}.exp_avg": tensor.exp_avg for name, tensor in tensors.items()}
        averages |= {f"{name}.exp_avg_sq": tensor.exp_avg_sq for name, tensor in tensors.items()}
        yield {
            "model.safetensors": safetensors({name: bf16(tensor.weight) for name, tensor in tensors.items()}),
            "states/weights.safetensors": safetensors({name: tensor.weight for name, tensor in tensors.items()}),
            "states/optimizer.safetensors": safetensors(averages | {"step": np.array([step * _STEPS], "<i8")}),
        }


def _exp_avg(scale: float) -> Iterator[Checkpoint]:
    for tensors in _walk(scale / 2, 200):
        yield {"exp_avg.safetensors": safetensors({name: tensor.exp_avg for name, tensor in tensors.items()})}


def _changed(before: Bf16, after: Bf16) -> float:
    return float(np.mean(before.bits != after.bits))


def _updates(generator: np.random.Generator, size: int) -> Numbers:
    """Return what Adam would add at a rate of 1: between -1 and 1, mostly small."""
    updates: Numbers = np.tanh(generator.standard_normal(size, np.float32) * np.float32(0.3))
    return updates


def _rate(generator: np.random.Generator, master: Numbers) -> np.float32:
    """Return the rate at which the wanted share of the weights changes when rounded to bf16."""
    sample = generator.permutation(master)[:_SAMPLE]
    update, low, high = _updates(generator, sample.size), 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = sqrt(max(low, 1e-12) * high)
        share = _changed(bf16(sample), bf16(sample + np.float32(middle) * update))
        low, high = (middle, high) if share < _SHARE else (low, middle)
    return np.float32(high)


def _rl_bf16(scale: float) -> Iterator[Checkpoint]:
    """Updates far below a bf16 weight's last bit: now and then one moves a weight over the border to the next."""
    generator = np.random.default_rng(300)
    width = max(64, round(1024 * sqrt(scale)) // 64 * 64)
    found = shapes(width, layers=3, rows=max(256, round(16_000 * sqrt(scale))))
    tensors = {name: weights(generator, shape) for name, shape in found.items()}
    rate = _rate(generator, np.concatenate([tensor.ravel() for tensor in tensors.values()]))
    while True:
        yield {"model.safetensors": safetensors({name: bf16(tensor) for name, tensor in tensors.items()})}
        for name, tensor in tensors.items():
            tensors[name] = tensor + rate * _updates(generator, tensor.size).reshape(tensor.shape)


ADAM_WALK = Corpus(
    f"Adam on gradients with a signal-to-noise ratio of {_SIGNAL_TO_NOISE}, every {_STEPS} steps",
    _adam_walk,
    {"bf16 weights": "model.safetensors", "fp32 states": "states"},
)
RL_BF16 = Corpus(
    f"bf16 weights of which {1 - _SHARE:.0%} stay the same from step to step",
    _rl_bf16,
    {"bf16 weights": "model.safetensors"},
)
EXP_AVG = Corpus(
    "the first averages of Adam alone: nothing is left of them at the next checkpoint",
    _exp_avg,
    {"exp_avg": "exp_avg.safetensors"},
)
