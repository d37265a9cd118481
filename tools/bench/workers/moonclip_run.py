"""Checkpoints with moonclip: moonclip_run.py save STORE SOURCE | restore STORE NUMBER TARGET.

It takes what a training loop would hand over, the tensors by name; and the bytes between them as one tensor more each.
Its own compression level (3), not in the background; all else as it is by default, but that none is ever dropped.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from pieces import Piece, pieces, write_files  # type: ignore[import-not-found]

_KINDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I64": "int64"}
_ORDER = "the order of all"
_BETWEEN = "\0"


def main() -> None:
    """Do it."""
    verb, store, *arguments = sys.argv[1:]
    manager: Any = import_module("moonclip").MoonclipManager(storage_root=store, async_save=False)
    snapshots = manager.list_snapshots()
    if verb == "save":
        found = list(pieces(Path(arguments[0])))
        tensors = {
            f"{piece.path}{_BETWEEN}{piece.name}": (
                [len(piece.data) // (piece.width if piece.kind in _KINDS else 1)],
                _KINDS.get(piece.kind, "uint8"),
                piece.data,
            )
            for piece in found
        }
        order = json.dumps(list(tensors)).encode()
        manager.save_tensors(len(snapshots) + 1, {**tensors, _ORDER: ([len(order)], "uint8", order)})
    else:
        number, target = arguments
        loaded = manager.load(sorted(snapshots, key=lambda found: found["step"])[int(number)]["id"])
        names = json.loads(bytes(loaded[_ORDER]))
        write_files(Path(target), [Piece(*name.split(_BETWEEN), "", bytes(loaded[name])) for name in names])


if __name__ == "__main__":
    main()
