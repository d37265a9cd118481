"""Saves: the first, one of the same once more, and one after each kind of change."""

from __future__ import annotations

import shutil

from bench.corpora import CORPORA, GIB, tree_files
from bench.edits import EDITS
from bench.parts.part import Bench, Part
from bench.peers import Moonclip
from bench.scenario import Step, restore, save, save_after

__all__ = ["PARTS"]

_WEIGHTS = ("bf16", "fp32")
_ALL = ("random-file", "random-files", "source-tree", *_WEIGHTS)
_EVERYBODY = ("cp", "flytekit", "restic", "borg", "tar+zstd", "hf-xet")
_DEDUPLICATING = ("cp", "restic", "borg", "hf-xet")


def _first_save(bench: Bench) -> None:
    for name in ("random-file", "source-tree"):
        bench.compare([save(f"{name}: first save")], bench.workplace.corpus(name))


def _weights(bench: Bench) -> None:
    for name in _WEIGHTS:
        steps = [save(f"{name}: first save"), restore(f"{name}: restore")]
        bench.compare(steps, bench.workplace.corpus(name))


def _unchanged(bench: Bench) -> None:
    for name in ("random-file", "random-files", "source-tree"):
        bench.compare([save(None), save(f"{name}: nothing changed")], bench.workplace.corpus(name))


def _new_directory(bench: Bench) -> None:
    for name in ("random-file", "source-tree"):
        source = bench.workplace.corpus(name)
        with bench.workplace.folder("copy") as folder:
            copy = folder / "other-name"
            shutil.copytree(source, copy, copy_function=shutil.copyfile)
            bench.compare([save(None), save(f"{name}: the same in a new directory", source=copy)], source)


def _edits(bench: Bench) -> None:
    for name in _ALL:
        source = bench.workplace.corpus(name)
        tools = [tool for tool in bench.tools if tool is not Moonclip or name in _WEIGHTS]
        bench.compare(_edit_steps(name, several=len(tree_files(source)) > 1), source, tools=tools)


def _edit_steps(name: str, *, several: bool) -> list[Step]:
    """Save after each change made in the same place; where a tool may know files by their times, let it learn them."""
    steps = [save(None), save(f"{name}: nothing changed")]
    for edit in EDITS.values():
        steps.append(save_after(f"{name}: {edit.title}", edit))
        if several:
            steps.append(save(None))
    return steps


def _small_files(bench: Bench) -> None:
    name = "random-files"
    steps = [save(f"{name}: first save"), save(f"{name}: nothing changed"), restore(f"{name}: restore")]
    bench.compare(steps, bench.workplace.corpus(name))


PARTS = (
    Part(
        "first-save",
        "the first save into an empty store",
        _first_save,
        _EVERYBODY,
        ("random-file", "source-tree"),
        6 * GIB,
    ),
    Part("weights", "weights as plain bytes", _weights, (*_EVERYBODY, Moonclip.name), _WEIGHTS, 3 * GIB),
    Part(
        "unchanged",
        "a second save of the same directory",
        _unchanged,
        _DEDUPLICATING,
        ("random-file", "random-files", "source-tree"),
        9 * GIB,
    ),
    Part(
        "new-directory",
        "the same content in another directory",
        _new_directory,
        _DEDUPLICATING,
        ("random-file", "source-tree"),
        9 * GIB,
    ),
    Part(
        "edits",
        "saves after changes, made in place",
        _edits,
        (*_DEDUPLICATING, Moonclip.name),
        _ALL,
        sum(CORPORA[name].size for name in _ALL) + 10 * GIB,
        note="moonclip keeps tensors: it takes part with weights only.",
    ),
    Part(
        "small-files",
        "20,000 files of 100 KiB",
        _small_files,
        _EVERYBODY,
        ("random-files",),
        7 * GIB,
    ),
)
