"""The parts of the benchmark."""

from __future__ import annotations

from bench.parts import growth, limits, restores, saves, small_calls, trajectories
from bench.parts.part import Part

__all__ = ["PARTS", "Part"]

PARTS: dict[str, Part] = {
    part.name: part for module in (saves, restores, small_calls, limits, growth, trajectories) for part in module.PARTS
}
