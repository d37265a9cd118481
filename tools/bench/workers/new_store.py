"""Makes a store whose chunks are cut in sizes of one's own: new_store.py STORE MINIMUM NORMAL MAXIMUM (bytes)."""

from __future__ import annotations

import secrets
import sys

from cas_checkpoint.backends import open_backend
from cas_checkpoint.chunking import DATA_CHUNKER
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import StoreId


def main() -> None:
    """Do it."""
    minimum, normal, maximum = map(int, sys.argv[2:])
    chunker = DATA_CHUNKER._replace(min_size=minimum, normal_size=normal, max_size=maximum)
    header = Header(StoreId(secrets.token_bytes(16)), chunker)
    if not open_backend(sys.argv[1]).put_if_absent(HEADER_KEY, header.encode()):
        raise SystemExit("there is a store already")


if __name__ == "__main__":
    main()
