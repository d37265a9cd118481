"""Saves or restores a directory with moonclip: moonclip_verbs.py save|restore|one STORE ...; a file is a tensor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

_TYPES = {".bf16": ("bfloat16", 2), ".fp32": ("float32", 4)}
Tensor = tuple[list[int], str, bytes]


def tensors(source: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield each file of a directory as a tensor."""
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            data = path.read_bytes()
            kind, width = _TYPES.get(path.suffix, ("uint8", 1))
            yield str(path.relative_to(source)), ([len(data) // width], kind, data)


def main() -> None:
    """Do it."""
    verb, store, *arguments = sys.argv[1:]
    manager: Any = import_module("moonclip").MoonclipManager(
        storage_root=store, compression_level=1, async_save=False, keep_base_in_memory=False
    )
    if verb == "save":
        manager.save_tensors(len(manager.list_snapshots()) + 1, dict(tensors(Path(arguments[0]))))
    elif verb == "restore":
        for name, data in manager.load_latest()[1].items():
            path = Path(arguments[0], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    else:
        name, target = arguments
        Path(target).write_bytes(manager.load_tensors(manager.describe_latest()["id"], [name])[name])


if __name__ == "__main__":
    main()
