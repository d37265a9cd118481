"""The exception tree. Everything this package raises on purpose is a `CasCheckpointError`.

Each class knows the exit code with which the command line ends. Messages say what happened, to which
path or object, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousReference",
    "CasCheckpointError",
    "DamagedObject",
    "DamagedStore",
    "EntryNotFound",
    "ForeignObject",
    "InvalidArgument",
    "InvalidArgumentType",
    "MissingObject",
    "NotASingleFile",
    "NotAStore",
    "ObjectNotFound",
    "RestoreError",
    "SaveAborted",
    "SnapshotForgotten",
    "SnapshotNotFound",
    "SourceChanged",
    "SourceError",
    "SourceNotFound",
    "SourceUnreadable",
    "StorageError",
    "StoreNotFound",
    "TargetObstructed",
    "UnsupportedStore",
]


class CasCheckpointError(Exception):
    """The root of every error raised by this package."""

    exit_code = 1


# --- what the caller asked for ------------------------------------------------------------------


class InvalidArgument(CasCheckpointError, ValueError):
    """An argument has a value that cannot be used."""

    exit_code = 2


class InvalidArgumentType(InvalidArgument, TypeError):
    """An argument has a type that cannot be used."""


class AmbiguousReference(InvalidArgument):
    """A snapshot reference fits more than one snapshot."""


class StoreNotFound(CasCheckpointError, ValueError):
    """There is no store at the given place."""

    exit_code = 10


class NotAStore(StoreNotFound):
    """There is something at the given place, but it is not a store of this kind."""


class SnapshotNotFound(CasCheckpointError, ValueError):
    """No snapshot fits the given reference."""

    exit_code = 11


class SnapshotForgotten(SnapshotNotFound):
    """The snapshot was forgotten by somebody while it was being read."""


class EntryNotFound(CasCheckpointError, ValueError):
    """The snapshot holds no such path, or none of the kind that was asked for."""


class NotASingleFile(CasCheckpointError, ValueError):
    """A single file was asked for, and the checkpoint holds another number of them."""


# --- what is wrong with a store -----------------------------------------------------------------


class DamagedStore(CasCheckpointError):
    """A store holds something that it cannot hold if nothing went wrong."""

    exit_code = 12


class DamagedObject(DamagedStore):
    """An object is truncated, altered or in the wrong place.

    Attributes:
        key: the object's key within its store; empty while only the bytes are known.
        reason: what is wrong with it.
    """

    def __init__(self, reason: str, *, key: str = "") -> None:
        self.key = key
        self.reason = reason
        super().__init__(reason, key)

    def __str__(self) -> str:
        if not self.key:
            return self.reason
        return (
            f"damaged object {self.key}: {self.reason}. "
            "Run 'verify' to learn what else is affected; other snapshots may be intact."
        )


class ForeignObject(DamagedObject):
    """Something that this package never wrote is in an object's place."""


class MissingObject(DamagedStore):
    """An object that a snapshot needs is not in the store."""


class UnsupportedStore(CasCheckpointError):
    """The store, or an object in it, needs a newer version of this package or a feature it lacks."""

    exit_code = 13


# --- what goes wrong around a store -------------------------------------------------------------


class StorageError(CasCheckpointError):
    """The file system under a store refused an operation (permission, space, network, ...)."""


class ObjectNotFound(StorageError):
    """There is no object with this key.

    Attributes:
        key: the object's key within its store.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"no object {key} in the store")

    def __reduce__(self) -> tuple[type[ObjectNotFound], tuple[str]]:
        return type(self), (self.key,)


class SourceError(CasCheckpointError):
    """Something that was to be saved could not be saved; nothing was committed."""


class SourceNotFound(SourceError, ValueError):
    """The thing to be saved does not exist, or vanished while it was being saved."""


class SourceUnreadable(SourceError):
    """The thing to be saved may not be read, or reading it failed."""


class SourceChanged(SourceError):
    """A file changed while it was being saved."""


class SaveAborted(CasCheckpointError):
    """The save was given up before its commit; no snapshot was made and nothing was lost."""


class RestoreError(CasCheckpointError):
    """A snapshot could not be written to its target."""


class TargetObstructed(RestoreError, ValueError):
    """Something in the target is in the way of what is to be restored."""
