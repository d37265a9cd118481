"""Makes a store of many snapshots: many_snapshots.py STORE COUNT.

The first is saved; the others are made of it, each with a pack, an index object, a manifest and a commit of its own.
"""

from __future__ import annotations

import os
import sys

from cas_checkpoint import Store
from cas_checkpoint.backends import open_backend
from cas_checkpoint.codecs import Codec
from cas_checkpoint.commits import index_key, manifest_key, pack_key
from cas_checkpoint.ids import PackId, TransactionId, chunk_id, digest
from cas_checkpoint.index import encode_index
from cas_checkpoint.manifests import PackRef
from cas_checkpoint.packs import PackBuilder
from cas_checkpoint.transactions import list_commits, random_id, read_commit, read_header

_FIRST_SIZE = 2**20
_CHUNK_SIZE = 4096


def main() -> None:
    """Do it."""
    url, count = sys.argv[1], int(sys.argv[2])
    store = Store.open(url, create=True, durable=False)
    manifest = store.save(os.urandom(_FIRST_SIZE)).reader().manifest()
    backend = open_backend(url, durable=False)
    header = read_header(backend)
    (key,) = list_commits(backend)
    first = read_commit(backend, key, header.store)
    for sequence in range(2, count + 1):
        name = TransactionId(random_id())
        builder = PackBuilder(PackId(random_id()))
        chunk = os.urandom(_CHUNK_SIZE)
        builder.add(chunk_id(chunk), Codec.RAW, chunk, len(chunk), 0)
        footer, parts = builder.finish()
        refs = (PackRef(footer.pack, name), *manifest.packs)
        encoded = manifest._replace(sequence=sequence, transaction=name, packs=refs).encode()
        backend.put(pack_key(footer.pack), parts)
        backend.put(index_key(name), [encode_index(name, 0, [footer])])
        backend.put(manifest_key(name), [encoded])
        record = first._replace(
            key=key._replace(sequence=sequence, transaction=name),
            manifest_digest=digest((encoded,)),
            manifest_size=len(encoded),
        )
        backend.put_if_absent(str(record.key), record.encode())


if __name__ == "__main__":
    main()
