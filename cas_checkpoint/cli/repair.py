"""`cas-checkpoint repair`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import Document, paths_document
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.progress import watch
from cas_checkpoint.cli.text import clean, counted
from cas_checkpoint.cli.verbs import DAMAGED, Verb, verb, workers_option
from cas_checkpoint.cli.verify import write_findings, write_paths
from cas_checkpoint.errors import DamagedObject, UnsupportedStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cas_checkpoint import Problem
    from cas_checkpoint.repairing import RepairReport

__all__ = ["repair_command"]


@click.command("repair", cls=Verb, short_help="Put what is whole in the place of what is damaged.")
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what would be done.")
@workers_option
@verb
def repair_command(terminal: Terminal, url: str, *, dry_run: bool, workers: int | None) -> int:
    """Put what is whole in the place of what is damaged, and tell which files are lost.

    Everything is read first. Damaged packs are put aside in the store's directory `quarantine`, after what is whole of
    them was copied; the index is rebuilt. Chunks that are lost are found again if the same content was saved since: so
    save again what is still there, then repair once more. The exit code is 12 if anything is still wrong.
    """
    try:
        store = cas_checkpoint.Store.open(url, workers=workers)
    except (DamagedObject, UnsupportedStore):
        if dry_run or not _repair_header(url):
            raise
        terminal.message("the store's header had a flipped bit, and is right again")
        store = cas_checkpoint.Store.open(url, workers=workers)
    with watch(terminal, read="verified") as monitor:
        report = store.repair(dry_run=dry_run, monitor=monitor)
    if terminal.json:
        terminal.document(_document(report))
    else:
        write_paths(terminal, "healed", report.healed)
        write_findings(terminal, report.left, report.lost)
    _tell(terminal, report)
    return 0 if report.ok else DAMAGED


def _repair_header(url: str) -> bool:
    from cas_checkpoint.backends import open_backend
    from cas_checkpoint.repairing import repair_header

    return repair_header(open_backend(url))


def _document(report: RepairReport) -> Document:
    return {
        "ok": report.ok,
        **report._asdict(),
        "problems": _problems(report.problems),
        "left": _problems(report.left),
        "lost": paths_document(report.lost),
        "healed": paths_document(report.healed),
        "corrected": list(report.corrected),
        "quarantined": list(report.quarantined),
    }


def _problems(problems: Iterable[Problem]) -> list[Document]:
    return [{"key": key, "message": clean(message), "snapshots": list(users)} for key, message, users in problems]


def _tell(terminal: Terminal, report: RepairReport) -> None:
    if not report.problems and not report.packs_indexed:
        terminal.message("all is well: there is nothing to repair")
        return
    would = "would be " if report.dry_run else ""
    done = [f"{counted(len(report.quarantined), 'object')} {would}put aside"]
    if report.corrected:
        done.append(f"{counted(len(report.corrected), 'flipped bit')} {would}undone")
    if report.chunks_copied:
        done.append(f"{counted(report.chunks_copied, 'chunk')} {would}copied")
    if report.packs_indexed:
        done.append(f"{counted(report.packs_indexed, 'pack')} {would}indexed")
    if report.healed:
        done.append(f"{counted(len(report.healed), 'file')} {would}healed")
    terminal.message(f"{counted(len(report.problems), 'problem')} found: {', '.join(done)}")
    if not report.ok:
        terminal.message(f"{counted(len(report.left), 'problem')} left, {counted(len(report.lost), 'file')} lost")
    if any(problem.key.startswith(("commits/", "manifests/")) for problem in report.left):
        terminal.message("a snapshot whose commit or manifest is damaged is lost; 'forget' it by its full id")
