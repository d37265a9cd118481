"""Makes a store whose index lists many chunks, without their packs: large_index.py STORE CHUNKS."""

from __future__ import annotations

import os
import sys

from cas_checkpoint import Store
from cas_checkpoint.backends import open_backend
from cas_checkpoint.codecs import Codec
from cas_checkpoint.commits import index_key
from cas_checkpoint.ids import CHUNK_ID_SIZE, ChunkId, PackId, TransactionId
from cas_checkpoint.index import encode_index
from cas_checkpoint.packs import Footer, PackBuilder
from cas_checkpoint.transactions import random_id

_CHUNKS_A_PACK = 200  # about what 64 MiB hold
_PACKS_AN_INDEX = 500


def footer(chunks: int) -> Footer:
    """Return the footer of a pack of that many chunks of random ids."""
    builder = PackBuilder(PackId(random_id()))
    ids = os.urandom(chunks * CHUNK_ID_SIZE)
    for at in range(0, len(ids), CHUNK_ID_SIZE):
        builder.add(ChunkId(ids[at : at + CHUNK_ID_SIZE]), Codec.RAW, b"x", 1, 0)
    return builder.finish()[0]


def main() -> None:
    """Do it."""
    url, left = sys.argv[1], int(sys.argv[2])
    Store.open(url, create=True)
    backend = open_backend(url, durable=False)
    while left > 0:
        footers: list[Footer] = []
        while left > 0 and len(footers) < _PACKS_AN_INDEX:
            footers.append(footer(min(left, _CHUNKS_A_PACK)))
            left -= _CHUNKS_A_PACK
        name = TransactionId(random_id())
        backend.put(index_key(name), [encode_index(name, 0, footers)])


if __name__ == "__main__":
    main()
