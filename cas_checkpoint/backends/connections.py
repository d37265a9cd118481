"""File systems of fsspec, opened from a URL: anew after a fork or a pickle, and with no listings remembered.

fsspec is imported when the first of them is opened. What is stored on them stands in `generic`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from cas_checkpoint.errors import InvalidArgument, StorageError

__all__ = ["Connection", "Connections", "FileSystem"]

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}


class FileSystem(Protocol):
    """What is used of fsspec's file systems; fsspec has no types of its own."""

    def pipe_file(self, path: str, value: bytes, **options: str) -> object:
        """Write a file."""

    def cat_file(self, path: str, *, start: int, end: int) -> bytes:
        """Read a part of a file."""

    def info(self, path: str) -> Mapping[str, Any]:
        """Describe a file or a directory: its name, size and type."""

    def ls(self, path: str, *, detail: bool) -> Sequence[Mapping[str, Any]]:
        """Describe what lies in a directory."""

    def find(self, path: str, *, detail: bool) -> Mapping[str, Mapping[str, Any]]:
        """Describe the files at any depth below a directory."""

    def rm_file(self, path: str) -> object:
        """Remove a file."""

    def makedirs(self, path: str, *, exist_ok: bool) -> object:
        """Make a directory and its parents."""

    def invalidate_cache(self) -> object:
        """Forget remembered listings."""


class Connection(NamedTuple):
    """A file system as one thread of one process uses it.

    Attributes:
        process: the process in which it was opened.
        file_system: the file system.
        top: what the path of every object begins with: "bucket/prefix/"; "" where keys are paths.
    """

    process: int
    file_system: FileSystem
    top: str


class Connections:
    """Opens the file system of a URL wherever it is needed. May be pickled, and used after a fork.

    Attributes:
        url: as given by the user.
        protocol: what stands before its `://`; for a chain ("simplecache::s3") the whole of that.
    """

    def __init__(self, url: str, storage_options: Mapping[str, object]) -> None:
        """Prepare to open `url`; nothing is opened yet."""
        self.url = url
        self.protocol = url.partition("://")[0]
        self._options = dict(storage_options)
        self._reset()

    def _reset(self) -> None:
        self._local = threading.local()
        # Never closed: a child process would wait for the parent's thread, which a fork does not take along.
        self._kept: dict[int, FileSystem] = {}

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("url", "protocol", "_options")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def get(self) -> Connection:
        """Return the connection of this thread.

        fsspec itself sees to it that threads share a file system if that is safe, and get each its own if not.

        Raises:
            InvalidArgument: fsspec does not know the protocol, or lacks a package, or the options do not fit.
            StorageError: connecting failed.
        """
        found: Connection | None = getattr(self._local, "connection", None)
        if found is None or found.process != os.getpid():
            found = self._open()
            self._kept[id(found.file_system)] = found.file_system
            self._local.connection = found
        return found

    def _open(self) -> Connection:
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 -- heavy, and not needed for local disks

            file_system, root = url_to_fs(self.url, **_without_caches(self.url, self._options))
        except ImportError as error:
            extra = _EXTRAS.get(self.protocol)
            hint = f"; pip install 'cas-checkpoint[{extra}]'" if extra else ""
            raise InvalidArgument(f"cannot open {self.url}: {error}{hint}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise InvalidArgument(f"cannot open {self.url}: {error}; check the URL and the storage options") from error
        except Exception as error:  # some connect at once, and each has exceptions of its own
            raise StorageError(f"cannot open {self.url}: {type(error).__name__}: {error}") from error
        return Connection(os.getpid(), file_system, f"{root.rstrip('/')}/" if root else "")


def _without_caches(url: str, options: Mapping[str, object]) -> dict[str, object]:
    """Return the options with which no file system of a chain remembers listings; the first one's are at the top."""
    result: dict[str, object] = {"use_listings_cache": False, **options}
    for link in url.split("::")[1:]:
        protocol, separator, _ = link.partition("://")
        nested = options.get(protocol, {})
        if separator and isinstance(nested, Mapping):
            result[protocol] = {"use_listings_cache": False, **nested}
    return result
