"""Saves or restores a directory with hf-xet: hf_xet_verbs.py save|restore|one STORE ...; names are kept apart."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_NAMES = "names.json"


def save(xet: Any, store: Path, source: Path) -> None:  # noqa: ANN401 -- a module without types
    """Store the files of a directory."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names]
    found = xet.upload_files(paths, f"local://{store}", None, None, None, None, skip_sha256=True)
    names = {
        os.path.relpath(path, source): (file.hash, file.file_size) for path, file in zip(paths, found, strict=True)
    }
    (store / _NAMES).write_text(json.dumps(names), "utf-8")
    earlier = len(list(store.glob(f"*-{_NAMES}")))
    (store / f"{earlier}-{_NAMES}").write_text(json.dumps(names), "utf-8")


def restore(xet: Any, store: Path, names: Path, wanted: dict[str, Path]) -> None:  # noqa: ANN401 -- a module without types
    """Write files, by name, to their targets."""
    found = json.loads(names.read_text("utf-8"))
    files = [xet.PyXetDownloadInfo(str(target), *found[name]) for name, target in wanted.items()]
    xet.download_files(files, f"local://{store}", None, None, None)


def main() -> None:
    """Do it."""
    verb, place, *arguments = sys.argv[1:]
    xet, store = import_module("hf_xet"), Path(place)
    if verb == "save":
        save(xet, store, Path(arguments[0]))
    elif verb == "restore":
        target, *number = arguments
        names = store / "-".join([*number, _NAMES])
        wanted = {name: Path(target, name) for name in json.loads(names.read_text("utf-8"))}
        for folder in {path.parent for path in wanted.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        restore(xet, store, names, wanted)
    else:
        restore(xet, store, store / _NAMES, {arguments[0]: Path(arguments[1])})


if __name__ == "__main__":
    main()
