"""One flipped bit in what ends in its own checksum: which one it was, found by trying all of them."""

from __future__ import annotations

from cas_checkpoint.ids import Buffer, digest

__all__ = ["unflipped"]

_CHECKSUM_SIZE = 32
_MAX_SIZE = 2**16  # bytes; to try all bits of so many takes some ten seconds


def unflipped(data: Buffer) -> bytes | None:
    """Return what a record or a footer was before a bit of it flipped; None if that is not what happened to it.

    That it is right is as certain as any checksum can tell. What is larger than 64 KiB is not tried.
    """
    if not _CHECKSUM_SIZE < len(data) <= _MAX_SIZE:
        return None
    content = bytearray(data[:-_CHECKSUM_SIZE])
    checksum = bytes(data[-_CHECKSUM_SIZE:])
    right = digest((content,))
    if right == checksum:
        return None
    if (int.from_bytes(right, "big") ^ int.from_bytes(checksum, "big")).bit_count() == 1:
        return bytes(content) + right
    for at, byte in enumerate(content):
        for bit in range(8):
            content[at] = byte ^ 1 << bit
            if digest((content,)) == checksum:
                return bytes(content) + checksum
        content[at] = byte
    return None
