"""Where the tensors of a container lie: what every reader of a container returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from cas_checkpoint.elements import Elements

__all__ = ["Layout", "ReadAt", "Region", "Tensor"]

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Returns so many bytes from an offset on; fewer only where the container ends."""


class Region(NamedTuple):
    """A run of bytes that consists of elements of one kind.

    Attributes:
        offset: where it begins in the container, bytes.
        size: its bytes; a multiple of `row_size`, never 0.
        elements: what it consists of.
        row_size: bytes of one row along the first axis of what lies there; at least the width of an element.
        name: what finds the same region in another version of the container; unique in it.
    """

    offset: int
    size: int
    elements: Elements
    row_size: int
    name: str


class Tensor(NamedTuple):
    """A tensor of a container; several may lie in one region, or in none if they are empty.

    Attributes:
        name: its name, unique in the container.
        dtype: the name that numpy or ml_dtypes has for its type, little-endian.
        shape: lengths of its axes.
        strides: for each axis the distance between neighbours, in elements of `dtype`.
        offset: where its first element lies in the container, bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Layout(NamedTuple):
    """What a container holds.

    Attributes:
        container: the kind of container: "safetensors", "torch", "npy", "npz", "gguf", "dcp" or "hdf5".
        regions: in the order of their offsets, not overlapping, all of them inside the container.
        tensors: in the container's own order; each lies inside the container.
    """

    container: str
    regions: tuple[Region, ...]
    tensors: tuple[Tensor, ...]
