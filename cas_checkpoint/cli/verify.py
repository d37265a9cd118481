"""`cas-checkpoint verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import verify_document
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.progress import watch
from cas_checkpoint.cli.text import counted, size_text
from cas_checkpoint.cli.verbs import DAMAGED, Verb, verb, workers_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cas_checkpoint import AffectedPath, Problem, VerifyReport
    from cas_checkpoint.verifying import Depth

__all__ = ["verify_command", "write_findings", "write_paths"]

_DEFAULT_SAMPLE = 0.05
_SHOWN_TENSORS = 3  # of a file; JSON has all


@click.command("verify", cls=Verb, short_help="Check that every snapshot can be restored.")
@click.option(
    "--depth",
    type=click.Choice(["structure", "sample", "data"]),
    help="Read no data (files that are lost are then not told), a sample of it, or all.  [default: data]",
)
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Read this share of all chunks; means --depth sample.  [default: 0.05]",
)
@click.option("--seed", type=int, metavar="N", help="Which chunks a sample reads.  [default: at random]")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Note there what was found intact, and if this is interrupted, go on from there the next time.",
)
@workers_option
@verb
def verify_command(
    terminal: Terminal,
    url: str,
    *,
    depth: Depth | None,
    sample: float | None,
    seed: int | None,
    resume: str | None,
    workers: int | None,
) -> int:
    """Check that every snapshot can be restored; tell what is wrong, and which files are lost.

    Nothing is repaired: that is what `repair` is for. Problems go to stdout, and the exit code is 12 if there are any.
    """
    chosen: Depth = depth or ("data" if sample is None else "sample")
    if chosen != "sample" and (sample is not None or seed is not None):
        raise click.UsageError("--sample and --seed are for --depth sample")
    if chosen != "data" and resume is not None:
        raise click.UsageError("--resume is for --depth data")
    store = cas_checkpoint.Store.open(url, workers=workers)
    with watch(terminal, read="verified") as monitor:
        report = store.verify(depth=chosen, sample=sample or _DEFAULT_SAMPLE, seed=seed, resume=resume, monitor=monitor)
    if terminal.json:
        terminal.document(verify_document(report))
    else:
        write_findings(terminal, report.problems, report.lost)
    _tell(terminal, report)
    return 0 if report.ok else DAMAGED


def write_findings(terminal: Terminal, problems: Iterable[Problem], lost: Iterable[AffectedPath]) -> None:
    """Write what is wrong, a line for each."""
    for problem in problems:
        users = f"; needed by {', '.join(problem.snapshots)}" if problem.snapshots else ""
        terminal.line(f"problem  {problem.key}: {problem.message}{users}")
    write_paths(terminal, "lost", lost)


def write_paths(terminal: Terminal, what: str, paths: Iterable[AffectedPath]) -> None:
    """Write what became of files, a line for each."""
    for snapshot, path, tensors in paths:
        terminal.line(f"{what:7}  {snapshot}  {path or '(its list of files)'}{_tensors_text(tensors)}")


def _tensors_text(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN_TENSORS} more" if len(names) > _SHOWN_TENSORS else ""
    return f"  (tensors: {', '.join(names[:_SHOWN_TENSORS])}{more})"


def _tell(terminal: Terminal, report: VerifyReport) -> None:
    if report.garbage_objects:
        terminal.message(
            f"{counted(report.garbage_objects, 'object')} ({size_text(report.garbage_size)}) of no snapshot: "
            "left by saves that did not finish, or still under way"
        )
    if report.quarantined_objects:
        terminal.message(
            f"{counted(report.quarantined_objects, 'object')} ({size_text(report.quarantined_size)}) in quarantine: "
            "put aside by 'repair'"
        )
    found = "all is well"
    if not report.ok:
        found = f"{counted(len(report.problems), 'problem')}, {counted(len(report.lost), 'file')} lost"
    terminal.message(
        f"{counted(report.snapshots, 'snapshot')}, {counted(report.packs, 'pack')}, "
        f"{counted(report.chunks, 'chunk')}, "
        f"{size_text(report.bytes_read)} of data read: {found}"
    )
