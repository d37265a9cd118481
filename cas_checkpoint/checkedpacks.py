"""The packs that a verification has checked whole, in a file, so that an interrupted one can go on where it stopped."""

from __future__ import annotations

import os
from typing import Final

from cas_checkpoint.errors import InvalidArgument, StorageError
from cas_checkpoint.ids import RANDOM_ID_SIZE, PackId, StoreId, digest

__all__ = ["CheckedPacks"]

_MAGIC: Final = b"cas-checkpoint verify 1\n"
_CHECKSUM_SIZE = 32
_MAX_SIZE = 2**28  # of the file: sixteen million packs
_WRITE_EVERY = 2**30  # bytes of packs


class CheckedPacks:
    """A file of the ids of packs that were found intact, as one verification or several in a row found them.

    Attributes:
        packs: their ids.
    """

    def __init__(self, path: str | os.PathLike[str], store: StoreId) -> None:
        """Read the file at `path`; there need be none.

        Raises:
            InvalidArgument: what is there is no such file, is damaged, or is of another store.
            StorageError: it cannot be read.
        """
        self._path = os.fspath(path)
        self._store = store
        self._unwritten = 0
        self.packs = self._read()

    def _read(self) -> set[PackId]:
        try:
            with open(self._path, "rb") as file:
                data = file.read(_MAX_SIZE)
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error}") from error
        content, checksum = data[:-_CHECKSUM_SIZE], data[-_CHECKSUM_SIZE:]
        start = len(_MAGIC) + RANDOM_ID_SIZE
        if not content.startswith(_MAGIC) or digest((content,)) != checksum or len(content[start:]) % RANDOM_ID_SIZE:
            raise InvalidArgument(
                f"{self._path} is not the file of an interrupted verification, or damaged: delete it, or name another"
            )
        if content[len(_MAGIC) : start] != self._store:
            raise InvalidArgument(f"{self._path} is of the verification of another store; name another file")
        return {PackId(content[at : at + RANDOM_ID_SIZE]) for at in range(start, len(content), RANDOM_ID_SIZE)}

    def add(self, pack: PackId, size: int) -> None:
        """Note that a pack of so many bytes is intact; what was noted is written from time to time."""
        self.packs.add(pack)
        self._unwritten += size
        if self._unwritten >= _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write the file, as a whole or not at all."""
        self._unwritten = 0
        content = _MAGIC + self._store + b"".join(sorted(self.packs))
        temporary = f"{self._path}.tmp-{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                file.write(content + digest((content,)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error

    def remove(self) -> None:
        """Remove the file: the verification has come to its end."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"{self._path} cannot be removed: {error}") from error
