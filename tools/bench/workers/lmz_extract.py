"""Writes the files of one checkpoint out of an archive of lmz: lmz_extract.py ARCHIVE NUMBER TARGET."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Do it: the members are named NUMBER/path."""
    archive, number, target = sys.argv[1:]
    lmz: Any = import_module("lmz.api")
    for member in lmz.info(archive)["members"]:
        name = member["path"]
        if name.startswith(f"{number}/"):
            path = Path(target, name.removeprefix(f"{number}/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            lmz.extract(archive, name, str(path))


if __name__ == "__main__":
    main()
