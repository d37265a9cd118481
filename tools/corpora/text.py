"""Text to train on: the sources of the Python standard library that runs this."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

__all__ = ["documented", "sources"]

_SHORTEST = 30


def _paths() -> list[Path]:
    return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def sources() -> bytes:
    """Return the texts of the library's top modules, in the order of their names."""
    return b"\n".join(path.read_bytes() for path in _paths())


def documented() -> Iterator[tuple[str, str]]:
    """Yield functions and classes: the first paragraph of the docstring, and the code that stands below it."""
    for path in _paths():
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = (ast.get_docstring(node) or "").split("\n\n")[0]
                code = " ".join(ast.unparse(line) for line in [*node.body[1:4]])
                if len(text) > _SHORTEST and len(code) > _SHORTEST:
                    yield text, f"{node.name} {code}"
