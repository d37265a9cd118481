"""The parts of the benchmark."""

from __future__ import annotations

from bench.parts import growth, limits, restores, saves, small_calls
from bench.parts.part import Part

__all__ = ["PARTS", "Part"]

PARTS: dict[str, Part] = {
    part.name: part for part in (*saves.PARTS, *restores.PARTS, *small_calls.PARTS, *limits.PARTS, *growth.PARTS)
}
