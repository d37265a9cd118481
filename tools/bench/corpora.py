"""What is saved: directories made from seeds, the same bytes in every run.

Each ends with a small file that is younger than all others: borg does not remember files as young as the youngest
that it saw, and would read a corpus of one file again for that reason alone.
"""

from __future__ import annotations

import os
import shutil
import site
import stat
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["CORPORA", "Corpus", "make", "random_file", "random_files", "tree_files", "tree_size"]

MIB = 2**20
GIB = 2**30
_PIECE = 16 * MIB
_FILES_A_DIRECTORY = 250
_LAYER_SCALES = (0.02, 0.005, 0.1, 0.03, 1.0, 0.3)
_YOUNGEST = "zz-youngest"


class Corpus(NamedTuple):
    """A directory that can be made.

    Attributes:
        title: what it is, for tables.
        size: its bytes at scale 1.
        fill: writes it into an empty directory, given its size in bytes.
    """

    title: str
    size: int
    fill: Callable[[Path, int], None]


def random_file(root: Path, size: int, *, seed: int = 1) -> None:
    """Write one incompressible file."""
    generator = np.random.default_rng(seed)
    with (root / "data.bin").open("wb") as file:
        for start in range(0, size, _PIECE):
            file.write(generator.bytes(min(_PIECE, size - start)))


def random_files(root: Path, size: int, *, mean: int, seed: int = 2) -> None:
    """Write incompressible files of 0.2 to 1.8 times the mean size, some hundred to a directory."""
    generator = np.random.default_rng(seed)
    count = max(1, size // mean)
    sizes = generator.integers(mean // 5, mean * 9 // 5, count, endpoint=True).tolist()
    for number, file_size in enumerate(sizes):
        if number % _FILES_A_DIRECTORY == 0:
            directory = root / f"part-{number // _FILES_A_DIRECTORY:04d}"
            directory.mkdir()
        (directory / f"file-{number:06d}.bin").write_bytes(generator.bytes(file_size))


def _source_tree(root: Path, size: int) -> None:
    """Copy the files of this Python installation, in the order of their names, until there are enough."""
    copied = 0
    for number, origin in enumerate((sysconfig.get_paths()["stdlib"], *site.getsitepackages())):
        for path in _installed(Path(origin)):
            if copied >= size:
                return
            target = root / str(number) / path.relative_to(origin)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            copied += target.stat().st_size


def _installed(origin: Path) -> Iterator[Path]:
    for folder, directories, names in os.walk(origin):
        directories[:] = sorted(name for name in directories if name not in ("__pycache__", "site-packages"))
        for name in sorted(names):
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _weights(root: Path, size: int, *, half: bool, seed: int = 3) -> None:
    """Write normally distributed numbers, layer after layer, each of another scale."""
    generator = np.random.default_rng(seed)
    width = 2 if half else 4
    with (root / ("model.bf16" if half else "model.fp32")).open("wb") as file:
        for layer, start in enumerate(range(0, size, _PIECE)):
            count = min(_PIECE, size - start) // width
            numbers = generator.standard_normal(count, np.float32)
            numbers *= np.float32(_LAYER_SCALES[layer % len(_LAYER_SCALES)])
            file.write((numbers.view("<u4") >> 16).astype("<u2").tobytes() if half else numbers.tobytes())


CORPORA: dict[str, Corpus] = {
    "random-file": Corpus("one incompressible file", 2 * GIB, random_file),
    "random-files": Corpus(
        "incompressible small files", 2 * GIB, lambda root, size: random_files(root, size, mean=2 * GIB // 20_000)
    ),
    "source-tree": Corpus("the Python installation", 512 * MIB, _source_tree),
    "bf16": Corpus("bf16 weights", 512 * MIB, lambda root, size: _weights(root, size, half=True)),
    "fp32": Corpus("fp32 weights", 512 * MIB, lambda root, size: _weights(root, size, half=False)),
    "huge-file": Corpus("one huge file", 6 * GIB, lambda root, size: random_file(root, size, seed=4)),
    "tiny-files": Corpus("tiny files", 300_000 * 1024, lambda root, size: random_files(root, size, mean=1024, seed=5)),
}


def make(name: str, root: Path, *, scale: float) -> None:
    """Make a corpus in the new directory `root`."""
    corpus = CORPORA[name]
    root.mkdir(parents=True)
    corpus.fill(root, max(MIB, round(corpus.size * scale)))
    time.sleep(0.05)  # more than a tick of the coarsest clock for files' times
    (root / _YOUNGEST).write_bytes(b"the youngest file\n")


def tree_files(root: Path) -> list[Path]:
    """Return the regular files below a directory, in the order of their paths, without the youngest."""
    found = (Path(folder, name) for folder, _, names in os.walk(root) for name in names if name != _YOUNGEST)
    return sorted(path for path in found if stat.S_ISREG(path.lstat().st_mode))


def tree_size(root: Path) -> int:
    """Return the bytes of the regular files below a directory."""
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(root) for name in names)
