"""Where a store's objects lie: on a local disk, in memory, or on any file system that fsspec knows."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from cas_checkpoint.backends.base import Backend, Buffer, ObjectInfo, check_key, is_key
from cas_checkpoint.backends.generic import FsspecBackend, MemoryBackend
from cas_checkpoint.backends.local import LocalBackend
from cas_checkpoint.errors import InvalidArgument, InvalidArgumentType

__all__ = [
    "Backend",
    "Buffer",
    "FsspecBackend",
    "LocalBackend",
    "MemoryBackend",
    "ObjectInfo",
    "check_key",
    "is_key",
    "open_backend",
    "probe_put_if_absent",
]


def open_backend(
    url: str | os.PathLike[str], *, durable: bool = True, storage_options: Mapping[str, object] | None = None
) -> Backend:
    """Return the backend for `url`; nothing is written yet.

    Args:
        url: a local path, `file://` and an absolute path (taken as it stands, as fsspec does: `%` means itself), or any
            URL that fsspec knows.
        durable: on a local disk, whether every write waits for the disk.
        storage_options: passed on to fsspec.

    Raises:
        InvalidArgument: no backend can be made of it: what is wrong, or which package is missing, is told.
        StorageError: the file system cannot be reached.
    """
    text = _checked_text(url)
    protocol, separator, rest = text.partition("://")
    if not separator:
        return LocalBackend(text, durable=durable)
    if protocol in ("file", "local"):
        if not rest.startswith("/"):
            raise InvalidArgument(
                f"{text} names no absolute path; write {protocol}:///..., or a path without {protocol}://"
            )
        return LocalBackend(rest, durable=durable)
    kind = MemoryBackend if protocol == "memory" else FsspecBackend
    return kind(text, storage_options=storage_options)


def _checked_text(url: object) -> str:
    text = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(text, str):
        raise InvalidArgumentType(f"the place of a store must be a path or a URL as text, not {url!r}")
    if not text or "\0" in text:
        raise InvalidArgument(f"not the place of a store: {text!r}; give a path or a URL")
    return text


def probe_put_if_absent(backend: Backend) -> bool:
    """Find out whether of two writers of one new object only the first succeeds; leaves nothing behind.

    One after the other cannot show what a race would, so the backend's own word is asked for as well: that of
    `atomic_create`, where there is such an attribute.
    """
    if not _claims_atomic(backend):
        return False
    key = f"probe-{secrets.token_hex(16)}"  # not in a directory of its own, which would be left behind
    first, second = secrets.token_bytes(16), secrets.token_bytes(16)
    try:
        outcomes = [backend.put_if_absent(key, data) for data in (first, second, first)]
        stayed = backend.get(key, max_size=len(first)) == first
    finally:
        backend.delete(key)
    return outcomes == [True, False, True] and stayed and _claims_atomic(backend)


def _claims_atomic(backend: Backend) -> bool:
    return bool(getattr(backend, "atomic_create", True))
