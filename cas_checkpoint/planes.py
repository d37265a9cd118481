"""Elements ↔ planes: the first bytes of all elements together, then the second ones, and so on."""

from __future__ import annotations

__all__: list[str] = []
