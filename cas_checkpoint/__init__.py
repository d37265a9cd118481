"""A content-addressed snapshot store for model checkpoints and backups.

This is the whole public interface, and nothing else. Every name is loaded when it is first asked for, so that importing
the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cas_checkpoint._version import __version__
    from cas_checkpoint.checkpointer import Checkpoint, SyncCheckpoint
    from cas_checkpoint.collecting import CollectReport
    from cas_checkpoint.commits import SaveStats
    from cas_checkpoint.diffing import Change, ChangedNumbers, ChangedPath, ChangedTensor, SnapshotDiff
    from cas_checkpoint.errors import (
        AmbiguousReference,
        CasCheckpointError,
        DamagedObject,
        DamagedStore,
        EntryNotFound,
        ForeignObject,
        InvalidArgument,
        InvalidArgumentType,
        MissingObject,
        NotASingleFile,
        NotAStore,
        ObjectNotFound,
        RestoreError,
        SaveAborted,
        SnapshotForgotten,
        SnapshotNotFound,
        SourceChanged,
        SourceError,
        SourceNotFound,
        SourceUnreadable,
        StorageError,
        StoreNotFound,
        TargetObstructed,
        UnsupportedStore,
    )
    from cas_checkpoint.manifests import Entry, EntryType, Owner
    from cas_checkpoint.monitor import Monitor, Notice
    from cas_checkpoint.parts import PartPlan, PartReceipt
    from cas_checkpoint.repairing import RepairReport
    from cas_checkpoint.restoring import RestoreResult
    from cas_checkpoint.snapshots import Snapshot
    from cas_checkpoint.store import Store, StoreInfo
    from cas_checkpoint.tensorfiles import TensorInfo
    from cas_checkpoint.verifying import AffectedPath, Problem, VerifyReport

__all__ = [
    "AffectedPath",
    "AmbiguousReference",
    "CasCheckpointError",
    "Change",
    "ChangedNumbers",
    "ChangedPath",
    "ChangedTensor",
    "Checkpoint",
    "CollectReport",
    "DamagedObject",
    "DamagedStore",
    "Entry",
    "EntryNotFound",
    "EntryType",
    "ForeignObject",
    "InvalidArgument",
    "InvalidArgumentType",
    "MissingObject",
    "Monitor",
    "NotASingleFile",
    "NotAStore",
    "Notice",
    "ObjectNotFound",
    "Owner",
    "PartPlan",
    "PartReceipt",
    "Problem",
    "RepairReport",
    "RestoreError",
    "RestoreResult",
    "SaveAborted",
    "SaveStats",
    "Snapshot",
    "SnapshotDiff",
    "SnapshotForgotten",
    "SnapshotNotFound",
    "SourceChanged",
    "SourceError",
    "SourceNotFound",
    "SourceUnreadable",
    "StorageError",
    "Store",
    "StoreInfo",
    "StoreNotFound",
    "SyncCheckpoint",
    "TargetObstructed",
    "TensorInfo",
    "UnsupportedStore",
    "VerifyReport",
    "__version__",
]

_HOMES = {
    "__version__": "_version",
    "Checkpoint": "checkpointer",
    "SyncCheckpoint": "checkpointer",
    "CollectReport": "collecting",
    "SaveStats": "commits",
    "Change": "diffing",
    "ChangedNumbers": "diffing",
    "ChangedPath": "diffing",
    "ChangedTensor": "diffing",
    "SnapshotDiff": "diffing",
    "Entry": "manifests",
    "EntryType": "manifests",
    "Owner": "manifests",
    "Monitor": "monitor",
    "Notice": "monitor",
    "PartPlan": "parts",
    "PartReceipt": "parts",
    "RepairReport": "repairing",
    "RestoreResult": "restoring",
    "Snapshot": "snapshots",
    "Store": "store",
    "StoreInfo": "store",
    "TensorInfo": "tensorfiles",
    "AffectedPath": "verifying",
    "Problem": "verifying",
    "VerifyReport": "verifying",
}  # all else: errors


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
