"""Where a store's objects lie: on a local disk, in memory, or on any file system that fsspec knows."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, is_key
from cas_checkpoint.backends.local import LocalBackend
from cas_checkpoint.errors import InvalidArgument

__all__ = [
    "Backend",
    "Buffer",
    "LocalBackend",
    "ObjectInfo",
    "check_key",
    "is_key",
    "open_backend",
    "probe_put_if_absent",
]


def open_backend(
    url: str | os.PathLike[str], *, durable: bool = True, storage_options: Mapping[str, object] | None = None
) -> Backend:
    """Return the backend for `url`; nothing is read or written yet.

    Args:
        url: a local path, a `file://` URL, or any URL that fsspec knows.
        durable: on a local disk, whether every write waits for the disk.
        storage_options: passed on to fsspec.

    Raises:
        InvalidArgument: no backend can be made of it.
    """
    text = os.fspath(url)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"not the place of a store: {url!r}; give a path or a URL")
    protocol, separator, rest = text.partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalBackend(rest if separator else text, durable=durable)
    from cas_checkpoint.backends.generic import FsspecBackend, MemoryBackend  # noqa: PLC0415 -- imports fsspec

    kind = MemoryBackend if protocol == "memory" else FsspecBackend
    return kind(text, storage_options=storage_options)


def probe_put_if_absent(backend: Backend) -> bool:
    """Find out whether of two writers of one new object only the first succeeds; leaves nothing behind."""
    if not getattr(backend, "atomic_create", True):
        return False
    key = f"probe-{secrets.token_hex(16)}"
    first, second = secrets.token_bytes(16), secrets.token_bytes(16)
    try:
        outcomes = [backend.put_if_absent(key, data) for data in (first, second, first)]
        return outcomes == [True, False, True] and backend.get(key, max_size=len(first)) == first
    finally:
        backend.delete(key)
