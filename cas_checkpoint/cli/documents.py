r"""What the library returns, as JSON: plain dictionaries with ids in hex, sizes in bytes and times as ISO 8601 in UTC.

Text that is no valid Unicode is shown with `\xNN` for its undecodable bytes; beside such a path, a field `path_base64`
has its exact bytes. Numbers that JSON does not have are the strings `NaN`, `Infinity` and `-Infinity`.
"""

from __future__ import annotations

import math
from base64 import b64encode
from typing import TYPE_CHECKING

from cas_checkpoint.cli.text import clean, nanoseconds_text, path_text, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cas_checkpoint import (
        AffectedPath,
        ChangedPath,
        ChangedTensor,
        CollectReport,
        Entry,
        Notice,
        RestoreResult,
        Snapshot,
        StoreInfo,
        TensorInfo,
        VerifyReport,
    )

__all__ = [
    "Document",
    "collect_document",
    "difference_document",
    "entry_document",
    "info_document",
    "notices_document",
    "path_fields",
    "paths_document",
    "restore_document",
    "snapshot_document",
    "tensor_document",
    "verify_document",
]

Document = dict[str, object]

_TYPE_NAMES = {"f": "file", "d": "directory", "l": "symlink", "h": "hardlink"}


def path_fields(name: str, path: bytes | str) -> Document:
    """Return the field `name` for a path, and `<name>_base64` if it is no text."""
    text = path_text(path) if isinstance(path, bytes) else path
    shown = clean(text)
    fields: Document = {name: shown}
    if shown != text:
        fields[f"{name}_base64"] = b64encode(text.encode("utf-8", "surrogateescape")).decode()
    return fields


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def snapshot_document(snapshot: Snapshot) -> Document:
    """Return a snapshot's summary."""
    return {
        "id": snapshot.id,
        "series": snapshot.series,
        "sequence": snapshot.sequence,
        "created_at": time_text(snapshot.created_at),
        "step": snapshot.step,
        "tags": list(snapshot.tags),
        "message": snapshot.message,
        "metrics": {name: _number(value) for name, value in snapshot.metrics.items()},
        "stats": snapshot.stats._asdict(),
    }


def entry_document(entry: Entry) -> Document:
    """Return one entry of a snapshot."""
    document = path_fields("path", entry.path)
    document |= {
        "type": _TYPE_NAMES[entry.type.value],
        "mode": f"{entry.mode:04o}",
        "mtime": nanoseconds_text(entry.mtime_ns),
        "size": entry.size,
    }
    if entry.target:
        document |= path_fields("target", entry.target)
    if entry.extents is not None:
        document["data_size"] = sum(size for _, size in entry.extents)
    if entry.xattrs:
        document["xattrs_base64"] = {
            clean(path_text(name)): b64encode(value).decode() for name, value in entry.xattrs.items()
        }
    if entry.owner is not None:
        document["owner"] = entry.owner._asdict()
    return document


def notices_document(notices: Iterable[Notice]) -> list[Document]:
    """Return warnings."""
    return [path_fields("path", notice.path) | {"message": clean(notice.message)} for notice in notices]


def restore_document(snapshot: Snapshot, result: RestoreResult) -> Document:
    """Return what a restore did."""
    return {
        "snapshot": snapshot.id,
        **path_fields("target", str(result.path)),
        "files": result.files,
        "files_unchanged": result.files_unchanged,
        "bytes_written": result.bytes_written,
        "lost": [path_fields("path", path) for path in result.lost],
        "warnings": notices_document(result.notices),
    }


def verify_document(report: VerifyReport) -> Document:
    """Return what a verification found."""
    counts = report._asdict()
    for name in ("problems", "lost"):
        del counts[name]
    return {
        "ok": report.ok,
        "problems": [
            {"key": item.key, "message": clean(item.message), "snapshots": list(item.snapshots)}
            for item in report.problems
        ],
        "lost": paths_document(report.lost),
        **counts,
    }


def paths_document(paths: Iterable[AffectedPath]) -> list[Document]:
    """Return files that are affected, with the tensors in them."""
    return [
        {"snapshot": item.snapshot, **path_fields("path", item.path), "tensors": list(map(clean, item.tensors))}
        for item in paths
    ]


def collect_document(report: CollectReport) -> Document:
    """Return what a collection did."""
    return {**report._asdict(), "bytes_freed": report.bytes_freed}


def info_document(info: StoreInfo) -> Document:
    """Return what a store consists of."""
    return {
        **path_fields("url", info.url),
        "id": info.id,
        "put_if_absent": info.put_if_absent,
        "size": info.size,
        "series": {clean(name): count for name, count in info.series.items()},
        "objects": {kind: {"count": count, "size": size} for kind, (count, size) in info.objects.items()},
    }


def tensor_document(tensor: TensorInfo) -> Document:
    """Return a tensor of a file."""
    return {"name": clean(tensor.name), "dtype": tensor.dtype, "shape": list(tensor.shape), "size": tensor.size}


def difference_document(item: ChangedPath) -> Document:
    """Return a path at which two snapshots differ."""
    document = path_fields("path", item.path) | {"change": item.change.value}
    if item.what:
        document["what"] = list(item.what)
    for name, entry in (("before", item.before), ("after", item.after)):
        if entry is not None:
            document[name] = entry_document(entry)
    if item.tensors is not None:
        document["tensors"] = [_changed_tensor(tensor) for tensor in item.tensors]
    return document


def _changed_tensor(tensor: ChangedTensor) -> Document:
    document: Document = {"name": clean(tensor.name), "change": tensor.change.value}
    for name, info in (("before", tensor.before), ("after", tensor.after)):
        if info is not None:
            document[name] = tensor_document(info)
    if tensor.numbers is not None:
        counts = tensor.numbers._asdict() | {"share": tensor.numbers.share}
        document |= {name: _number(value) if isinstance(value, float) else value for name, value in counts.items()}
    return document
