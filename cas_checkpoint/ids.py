"""Names of things: chunk ids (BLAKE3 of plain bytes), and the random ids of packs, transactions and stores.

Pure functions; randomness comes from the outermost layer. The only importer of `blake3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NewType, TypeAlias

import blake3

__all__ = [
    "CHUNK_ID_SIZE",
    "RANDOM_ID_SIZE",
    "SAVE_ID_SIZE",
    "Buffer",
    "ChunkId",
    "PackId",
    "StoreId",
    "TransactionId",
    "chunk_id",
    "digest",
    "is_hex_id",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

ChunkId = NewType("ChunkId", bytes)
"""BLAKE3-256 of a chunk's plain bytes: 32 bytes."""
PackId = NewType("PackId", bytes)
"""A pack's random name: 16 bytes."""
TransactionId = NewType("TransactionId", bytes)
"""The random name of one save, and of the snapshot that it makes: 16 bytes."""
StoreId = NewType("StoreId", bytes)
"""The random name of a store: 16 bytes."""

CHUNK_ID_SIZE = 32
RANDOM_ID_SIZE = 16
SAVE_ID_SIZE = 8
"""Bytes with which the ids of all packs of one transaction begin."""

_HEX_ID = re.compile(r"[0-9a-f]{32}")


def chunk_id(data: Buffer) -> ChunkId:
    """Return the id of the chunk made of `data`. Source: BLAKE3 specification, 32-byte output, no key."""
    return ChunkId(blake3.blake3(data).digest())


def digest(parts: Iterable[Buffer]) -> bytes:
    """Return the BLAKE3-256 checksum (32 bytes) of the concatenation of `parts`."""
    hasher = blake3.blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def is_hex_id(text: str) -> bool:
    """Tell whether `text` is the hexadecimal form of a random id, as it stands in object keys."""
    return _HEX_ID.fullmatch(text) is not None
