"""What a reader finds in a container → its layout: unique names, sorted regions, everything inside the container."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from cas_checkpoint.elements import ELEMENTS, Elements
from cas_checkpoint.tensors.layout import Layout, ReadAt, Region, Tensor

__all__ = [
    "GGUF_MAGIC",
    "HDF5_MAGIC",
    "MAX_HEADER_SIZE",
    "MAX_NAME_SIZE",
    "MAX_TENSORS",
    "NPY_MAGIC",
    "ZIP_MAGIC",
    "Found",
    "Unreadable",
    "bounded",
    "dense_strides",
    "item_size",
    "take",
    "to_shape",
]

ZIP_MAGIC: Final = b"PK\x03\x04"
NPY_MAGIC: Final = b"\x93NUMPY"
GGUF_MAGIC: Final = b"GGUF"
HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"

MAX_HEADER_SIZE: Final = 2**24
"""Bytes of what describes the tensors of a container; with more of them it is not read."""
MAX_TENSORS: Final = 2**17
"""With more tensors a container is not read."""
MAX_NAME_SIZE: Final = 512
"""Characters of a name; what is longer is cut off."""
_MAX_READS: Final = 2**20
_MAX_READ_SIZE: Final = 2**26  # bytes of all reads together
_MAX_AXES: Final = 64
_MAX_SIZE: Final = 2**63 - 1  # bytes of a tensor, and elements of an axis
_OPAQUE: Final = Elements(1, is_float=False)


class Unreadable(Exception):
    """A container is damaged, or of a kind that is not read; it never leaves the package `tensors`."""


def take(read: ReadAt, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes from `offset` on.

    Raises:
        Unreadable: the container ends before, or that is more than a header may have.
    """
    if offset < 0 or not 0 <= size <= MAX_HEADER_SIZE:
        raise Unreadable
    data = read(offset, size)
    if len(data) != size:
        raise Unreadable
    return data


def bounded(read: ReadAt) -> ReadAt:
    """Return a `read` that raises Unreadable once a container has asked for more than any sound one does."""
    left = _MAX_READS, _MAX_READ_SIZE

    def checked(offset: int, size: int) -> bytes:
        nonlocal left
        left = left[0] - 1, left[1] - size
        if min(left) < 0:
            raise Unreadable
        return read(offset, size)

    return checked


def item_size(dtype: str) -> int:
    """Return the bytes of one element of a type: two of its numbers if it is complex."""
    return ELEMENTS[dtype].width * (2 if dtype.startswith("complex") else 1)


def to_shape(lengths: object) -> tuple[int, ...]:
    """Return lengths of axes, or strides, that came from a container.

    Raises:
        Unreadable: they are no such thing.
    """
    if not isinstance(lengths, (tuple, list)) or len(lengths) > _MAX_AXES:
        raise Unreadable
    if any(type(length) is not int or not 0 <= length <= _MAX_SIZE for length in lengths):
        raise Unreadable
    return tuple(lengths)


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor whose elements lie in order, those of its last axis side by side."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


class Found:
    """Collects what lies in a container of `size` bytes."""

    def __init__(self, container: str, size: int) -> None:
        self._container = container
        self._size = size
        self._regions: list[Region] = []
        self._tensors: list[Tensor] = []
        self._names: dict[str, int] = {}

    def name(self, wanted: str) -> str:
        """Return a name that nothing in the container has yet: the wanted one, or it and a number.

        Raises:
            Unreadable: there are too many.
        """
        if len(self._names) >= MAX_TENSORS:
            raise Unreadable
        wanted = wanted[:MAX_NAME_SIZE].encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
        name = wanted
        while name in self._names:
            self._names[wanted] += 1
            name = f"{wanted}~{self._names[wanted]}"
        self._names[name] = 1
        return name

    def add_tensor(self, tensor: Tensor, *, end: int | None = None) -> None:
        """Add a tensor under a name from `name`.

        Args:
            tensor: the tensor.
            end: before this byte its last element must end; the container's end if not given.

        Raises:
            Unreadable: it does not lie there.
        """
        width = item_size(tensor.dtype)
        last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
        reach = (last + 1) * width if all(tensor.shape) else 0
        if not 0 <= tensor.offset <= tensor.offset + reach <= min(self._size, self._size if end is None else end):
            raise Unreadable
        if prod(tensor.shape) * width > _MAX_SIZE:
            raise Unreadable
        self._tensors.append(tensor)

    def add_region(
        self, name: str, offset: int, size: int, elements: Elements = _OPAQUE, row_size: int | None = None
    ) -> None:
        """Add a region if it is not empty; without elements if these do not fill it, without rows if those do not.

        Raises:
            Unreadable: it does not lie in the container.
        """
        if not 0 <= offset <= offset + size <= self._size:
            raise Unreadable
        if size % elements.width:
            elements = _OPAQUE
        if not row_size or size % row_size or row_size % elements.width:
            row_size = elements.width
        if size:
            self._regions.append(Region(offset, size, elements, row_size, name))

    def add_dense(self, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> None:
        """Add a tensor whose elements lie in order, and the region that is all its own; `name` need not be unique.

        Raises:
            Unreadable: it does not lie in the container.
        """
        name = self.name(name)
        self.add_tensor(Tensor(name, dtype, shape, dense_strides(shape), offset))
        row_size = item_size(dtype) * prod(shape[1:])
        self.add_region(name, offset, row_size * prod(shape[:1]), ELEMENTS[dtype], row_size)

    def layout(self) -> Layout | None:
        """Return what was found; None if that is nothing. Of regions that overlap the first one stays."""
        regions: list[Region] = []
        end = 0
        for region in sorted(self._regions):
            if region.offset >= end:
                regions.append(region)
                end = region.offset + region.size
        if not regions and not self._tensors:
            return None
        return Layout(self._container, tuple(regions), tuple(self._tensors))
