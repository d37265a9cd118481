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
    from cas_checkpoint import VerifyReport

__all__ = ["verify_command"]


@click.command("verify", cls=Verb, short_help="Check that every snapshot can be restored.")
@click.option("--structure-only", is_flag=True, help="Do not read the data; files that are lost are then not told.")
@workers_option
@verb
def verify_command(terminal: Terminal, url: str, *, structure_only: bool, workers: int | None) -> int:
    """Check that every snapshot can be restored; tell what is wrong, and which files are lost.

    Nothing is repaired. Problems go to stdout, and the exit code is 12 if there are any.
    """
    store = cas_checkpoint.Store.open(url, workers=workers)
    with watch(terminal, read="verified") as monitor:
        report = store.verify(data=not structure_only, monitor=monitor)
    if terminal.json:
        terminal.document(verify_document(report))
    else:
        _write_findings(terminal, report)
    _tell(terminal, report)
    return 0 if report.ok else DAMAGED


def _write_findings(terminal: Terminal, report: VerifyReport) -> None:
    for problem in report.problems:
        users = f"; needed by {', '.join(problem.snapshots)}" if problem.snapshots else ""
        terminal.line(f"problem  {problem.key}: {problem.message}{users}")
    for snapshot, path in report.lost:
        terminal.line(f"lost     {snapshot}  {path or '(its list of files)'}")


def _tell(terminal: Terminal, report: VerifyReport) -> None:
    if report.garbage_objects:
        terminal.message(
            f"{counted(report.garbage_objects, 'object')} ({size_text(report.garbage_size)}) of no snapshot: "
            "left by saves that did not finish, or still under way"
        )
    found = "all is well"
    if not report.ok:
        found = f"{counted(len(report.problems), 'problem')}, {counted(len(report.lost), 'file')} lost"
    terminal.message(
        f"{counted(report.snapshots, 'snapshot')}, {counted(report.packs, 'pack')}, "
        f"{counted(report.chunks, 'chunk')}, "
        f"{size_text(report.bytes_read)} of data read: {found}"
    )
