"""Memory for bulk data, used again and again: touching fresh pages costs more than copying into old ones."""

from __future__ import annotations

import mmap

__all__ = ["ReadBuffer", "ReadBuffers", "anonymous_memory"]


def anonymous_memory(size: int) -> memoryview:
    """Return `size` bytes of zeros; pages that stay untouched cost nothing."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class ReadBuffer:
    """Memory that data is read into, and that several may still need afterwards.

    Attributes:
        view: the memory.
        users: how many need what is in it.
    """

    __slots__ = ("users", "view")

    def __init__(self, size: int) -> None:
        """Make a buffer of `size` bytes, which has one user."""
        self.view = anonymous_memory(size)
        self.users = 1


class ReadBuffers:
    """A stock of buffers of one size. For one thread.

    Attributes:
        size: bytes of each.
        made: how many there are, in use or not.
    """

    def __init__(self, size: int) -> None:
        """Begin without any."""
        self.size = size
        self.made = 0
        self._free: list[ReadBuffer] = []

    def take(self) -> ReadBuffer:
        """Return a buffer that nobody else uses."""
        if self._free:
            buffer = self._free.pop()
            buffer.users = 1
            return buffer
        self.made += 1
        return ReadBuffer(self.size)

    @property
    def used(self) -> int:
        """How many are in use."""
        return self.made - len(self._free)

    def drop(self, buffer: ReadBuffer) -> None:
        """Say that one of its users needs it no more."""
        buffer.users -= 1
        if not buffer.users:
            self._free.append(buffer)
