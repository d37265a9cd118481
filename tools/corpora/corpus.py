"""What a training-run corpus is: checkpoints one after the other, each a directory of files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

__all__ = ["Checkpoint", "Corpus", "Unavailable", "write"]

Checkpoint = Mapping[str, bytes]  # path within the checkpoint, with "/" between names -> the file's bytes


class Unavailable(Exception):
    """A corpus that cannot be made here; the text says what is missing."""


class Corpus(NamedTuple):
    """A training run.

    Attributes:
        title: what it is.
        run: yields checkpoints without end, given a scale for their size; deterministic.
        tracks: the parts of a checkpoint that are looked at on their own: name -> path of a file or folder in it.
        needs: the packages that making it takes, beside numpy.
        changes: for some tracks, how many bytes of a checkpoint are not in the one before.
    """

    title: str
    run: Callable[[float], Iterator[Checkpoint]]
    tracks: Mapping[str, str]
    needs: tuple[str, ...] = ()
    changes: Mapping[str, Callable[[Checkpoint, Checkpoint], int]] = {}


def write(corpus: Corpus, root: Path, *, checkpoints: int, scale: float) -> None:
    """Write the first checkpoints of a run into the new directories `root`/000, `root`/001, ...

    `root`/changed.json tells for each track in `corpus.changes` what changed from each checkpoint to the next.

    Raises:
        Unavailable: a package that it takes is not there.
    """
    changed: dict[str, list[int]] = {track: [] for track in corpus.changes}
    before: Checkpoint | None = None
    for number, checkpoint in enumerate(islice(corpus.run(scale), checkpoints)):
        folder = root / f"{number:03d}"
        folder.mkdir(parents=True)
        for name, data in checkpoint.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (0, number))
        if before is not None:
            for track, count in corpus.changes.items():
                changed[track].append(count(before, checkpoint))
        before = checkpoint
    (root / "changed.json").write_text(json.dumps(changed), "utf-8")
