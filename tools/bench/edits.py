"""Changes made to a corpus in its place, each with a way back.

Tools that know files by their times then see what they would see in life.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.corpora import tree_files

__all__ = ["EDITS", "Edit"]

_BLOCK = 4096
_TURN = 8  # bytes by which a block is turned
_SCATTERED = 0.01
_INSERTED = random.Random(6).randbytes(100)  # noqa: S311 -- the same in every run
_AT = 1000
_PIECE = 8 * 2**20
_OTHER = bytes(random.Random(8).sample(range(256), 256))  # noqa: S311 -- the same in every run
_BACK = bytes(_OTHER.index(value) for value in range(256))


class Edit(NamedTuple):
    """A change.

    Attributes:
        title: what it is, for tables.
        do: make it.
        undo: take it back.
    """

    title: str
    do: Callable[[Path], None]
    undo: Callable[[Path], None]


def _scatter(root: Path, *, turn: int) -> None:
    """Turn blocks of 4 KiB, one in a hundred and scattered over all files, by some bytes: they compress as before."""
    chosen = random.Random(7)  # noqa: S311 -- the same in every run
    for path in tree_files(root):
        blocks = -(-path.stat().st_size // _BLOCK)
        numbers = [number for number in range(blocks) if chosen.random() < _SCATTERED]
        if numbers:
            with path.open("r+b") as file:
                for number in numbers:
                    file.seek(number * _BLOCK)
                    block = file.read(_BLOCK)
                    by = turn % len(block)
                    file.seek(number * _BLOCK)
                    file.write(block[by:] + block[:by])


def _largest(root: Path) -> Path:
    return max(tree_files(root), key=lambda path: path.stat().st_size)


def _insert(root: Path) -> None:
    """Insert 100 bytes near the front of the largest file."""
    path = _largest(root)
    with path.open("r+b") as file:
        reading = writing = _AT
        carried = _INSERTED
        while carried:
            file.seek(reading)
            piece = file.read(_PIECE)
            file.seek(writing)
            file.write(carried)
            reading, writing, carried = reading + len(piece), writing + len(carried), piece


def _remove(root: Path) -> None:
    """Take the inserted bytes out again."""
    path = _largest(root)
    size = path.stat().st_size - len(_INSERTED)
    with path.open("r+b") as file:
        for at in range(_AT, size, _PIECE):
            file.seek(at + len(_INSERTED))
            piece = file.read(_PIECE)
            file.seek(at)
            file.write(piece)
        file.truncate(size)


def _exchange(root: Path, *, table: bytes) -> None:
    """Exchange every byte for another: all is new, and compresses as before."""
    for path in tree_files(root):
        with path.open("r+b") as file:
            at = 0
            while piece := file.read(_PIECE):
                file.seek(at)
                file.write(piece.translate(table))
                at += len(piece)


EDITS: dict[str, Edit] = {
    "scattered": Edit(
        "1 % scattered", lambda root: _scatter(root, turn=_TURN), lambda root: _scatter(root, turn=-_TURN)
    ),
    "inserted": Edit("100 bytes inserted", _insert, _remove),
    "all": Edit("100 % changed", lambda root: _exchange(root, table=_OTHER), lambda root: _exchange(root, table=_BACK)),
}
