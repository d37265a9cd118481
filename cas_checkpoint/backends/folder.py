"""Files that somebody else put below a prefix of an fsspec file system: listed and read, whatever their names are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from cas_checkpoint.errors import InvalidArgument, StorageError

__all__ = ["FolderItem", "PlainFolder"]


class FolderItem(NamedTuple):
    """Something in a folder.

    Attributes:
        name: its path below the folder, `/`-separated.
        is_file: false for what holds other things.
        size: bytes of a file; 0 for all else.
    """

    name: str
    is_file: bool
    size: int


class PlainFolder:
    """A prefix on an fsspec file system; one that does not exist is an empty folder. Nothing is ever written to it.

    A prefix that is a file itself is a folder that holds this one file. Whatever the file system refuses is
    `StorageError`.

    Attributes:
        url: where the files lie.
    """

    def __init__(self, url: str, *, storage_options: Mapping[str, object] | None = None) -> None:
        """Use the prefix `url`; nothing is read yet. `storage_options` are passed on to fsspec."""
        self.url = url.rstrip("/")
        self._options = dict(storage_options or {})

    def top(self) -> list[FolderItem]:
        """Return what lies in the folder itself: files, and what holds files further down."""
        with self._told("list"):
            file_system, root = self._connect()
            try:
                return list(_items(file_system.ls(root, detail=True), root))
            except FileNotFoundError:
                return []

    def files(self) -> list[FolderItem]:
        """Return the files at any depth below the folder."""
        with self._told("list"):
            file_system, root = self._connect()
            found = file_system.find(root, detail=True)
            return [item for item in _items(found.values(), root) if item.is_file]

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        with self._told(f"read {name!r} in"):
            file_system, root = self._connect()
            try:
                return cast("BinaryIO", file_system.open(f"{root}/{name}", "rb"))
            except (FileNotFoundError, FileExistsError, NotADirectoryError):  # the root may be a file itself
                if name != _last(root):
                    raise
                return cast("BinaryIO", file_system.open(root, "rb"))

    def _connect(self) -> tuple[Any, str]:
        """Return the file system, which fsspec keeps for each process, and the prefix on it."""
        from fsspec.core import url_to_fs  # noqa: PLC0415 -- heavy, and not needed for local disks

        options = {"use_listings_cache": False, **self._options}
        try:
            file_system, root = url_to_fs(self.url, **options)
        except (ImportError, TypeError, ValueError) as error:
            raise InvalidArgument(f"cannot open {self.url}: {error}") from error
        file_system.invalidate_cache()
        return file_system, root.rstrip("/")

    @contextmanager
    def _told(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (InvalidArgument, StorageError):
            raise
        except Exception as error:  # each file system of fsspec has exceptions of its own
            raise StorageError(f"cannot {operation} {self.url}: {type(error).__name__}: {error}") from error


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _items(found: Any, root: str) -> Iterator[FolderItem]:  # noqa: ANN401 -- fsspec has no types
    """Turn a listing of `root` into items; a name that ends with a slash is an object store's idea of a directory."""
    for info in found:
        path, is_file, size = info["name"], info["type"] == "file", int(info["size"] or 0)
        if path == root and is_file and size:
            yield FolderItem(_last(root), is_file, size)
        elif (name := path[len(root) + 1 :].rstrip("/")) and not (is_file and path.endswith("/")):
            yield FolderItem(name, is_file, size if is_file else 0)
