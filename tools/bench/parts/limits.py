"""What a real disk, large things and other sizes of chunks cost."""

from __future__ import annotations

from bench.corpora import GIB, tree_size
from bench.edits import EDITS
from bench.parts.part import Bench, Part
from bench.results import Sample
from bench.scenario import Trial, restore, save, save_after
from bench.tools import Cut

__all__ = ["PARTS"]

_CUTS = ((16, 64, 256), (32, 128, 512), (64, 256, 1024), (128, 512, 2048), (256, 1024, 4096))


def _real_disk(bench: Bench) -> None:
    edit = EDITS["scattered"]
    steps = [save("random-file: first save"), save_after(f"random-file: {edit.title}", edit)]
    bench.compare(steps, bench.workplace.corpus("random-file"))


def _memory(bench: Bench) -> None:
    for name in ("huge-file", "tiny-files"):
        bench.compare([save(f"{name}: first save"), restore(f"{name}: restore")], bench.workplace.corpus(name))
        bench.workplace.keep_only(["tiny-files"])


def _chunk_sizes(bench: Bench) -> None:
    tools = [Cut(*sizes) for sizes in _CUTS]
    for name in ("random-file", "bf16", "source-tree"):
        steps = [save(f"{name}: first save", after=lambda trial, name=name: _note_index(bench, name, trial))]  # type: ignore[misc]
        steps += [save_after(f"{name}: {EDITS[kind].title}", EDITS[kind]) for kind in ("scattered", "inserted", "all")]
        bench.compare(steps, bench.workplace.corpus(name), tools=tools)


def _note_index(bench: Bench, name: str, trial: Trial) -> None:
    """Note the size of the index objects, as if storing them were a job of its own."""
    size, place = tree_size(trial.tool.store / "index"), bench.workplace.file_system
    sample = Sample(bench.part, f"{name}: of that, the index", trial.tool.name, 0, 0, 0, 0, size, 0, place)
    bench.results.samples.append(sample)


PARTS = (
    Part(
        "real-disk",
        "2 GiB on a disk, again after 1 % changed",
        _real_disk,
        ("cp", "restic", "borg"),
        ("random-file",),
        9 * GIB,
        on_disk=True,
    ),
    Part(
        "memory",
        "peak memory: a file of 6 GiB, and 300,000 files",
        _memory,
        ("restic", "borg"),
        ("huge-file", "tiny-files"),
        21 * GIB,
    ),
    Part(
        "chunk-sizes",
        "smallest/normal/largest chunk",
        _chunk_sizes,
        (),
        ("random-file", "bf16", "source-tree"),
        10 * GIB,
        note="No peer: the sizes are told apart, not the tools. 64/256/1024 KiB is the default.",
    ),
)
