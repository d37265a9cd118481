"""Restores: of everything, and of one file out of many."""

from __future__ import annotations

from bench.corpora import GIB, tree_files
from bench.parts.part import Bench, Part
from bench.scenario import Step, Trial, restore, same_file, save

__all__ = ["PARTS"]


def _restore(bench: Bench) -> None:
    for name in ("random-file", "source-tree"):
        bench.compare([save(None), restore(f"{name}: restore")], bench.workplace.corpus(name))


def _one_file(bench: Bench) -> None:
    source = bench.workplace.corpus("random-files")
    files = tree_files(source)
    wanted = files[len(files) // 2]

    def check(trial: Trial) -> None:
        same_file(wanted, trial.scratch / "one")

    step = Step(
        "random-files: restore one of them",
        lambda trial: trial.tool.restore_one(trial.source, wanted, trial.scratch / "one"),
        check=check,
    )
    bench.compare([save(None), step], source)


PARTS = (
    Part(
        "restore",
        "everything into an empty directory",
        _restore,
        ("cp", "flytekit", "restic", "borg", "tar+zstd", "hf-xet"),
        ("random-file", "source-tree"),
        9 * GIB,
    ),
    Part(
        "one-file",
        "one file out of 20,000",
        _one_file,
        ("cp", "flytekit", "restic", "borg", "tar+zstd", "hf-xet"),
        ("random-files",),
        7 * GIB,
    ),
)
