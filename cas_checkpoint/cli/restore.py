"""`cas-checkpoint restore`."""

from __future__ import annotations

from typing import Literal

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import restore_document
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.progress import watch
from cas_checkpoint.cli.text import counted, size_text
from cas_checkpoint.cli.verbs import DAMAGED, WARNED, Verb, verb, workers_option

__all__ = ["restore_command"]


@click.command("restore", cls=Verb, short_help="Write a snapshot into a directory.")
@click.argument("ref")
@click.argument("target")
@click.option(
    "--path", "paths", multiple=True, metavar="PATH", help="Only what lies at or below it; may be given more than once."
)
@click.option("--exact", is_flag=True, help="Remove what the snapshot does not have.")
@click.option("--owner", is_flag=True, help="Set owners and groups, where they were recorded.")
@click.option(
    "--damaged",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Of files that are damaged in the store: fail at the first, or leave them out.",
)
@click.option(
    "--fallback",
    type=click.Choice(["previous"]),
    help="If the snapshot is damaged, restore the newest one before it in its series that is not.",
)
@workers_option
@verb
def restore_command(
    terminal: Terminal,
    url: str,
    ref: str,
    target: str,
    *,
    paths: tuple[str, ...],
    exact: bool,
    owner: bool,
    damaged: Literal["fail", "skip"],
    fallback: Literal["previous"] | None,
    workers: int | None,
) -> int:
    """Write the snapshot REF into the directory TARGET, which is created if it is not there.

    Files that are there already are written again only if they differ. Others stay, but for --exact.
    With --damaged skip, whatever is intact is restored, and the exit code is 12 if anything was left out.
    With --fallback previous, another snapshot may be restored in place of a damaged one; the exit code is 3 then.
    """
    if exact and paths:
        raise click.UsageError("--exact restores whole snapshots: it cannot be combined with --path")
    if fallback and damaged == "skip":
        raise click.UsageError("--fallback restores whole snapshots: it cannot be combined with --damaged skip")
    store = cas_checkpoint.Store.open(url, workers=workers)
    snapshot = ref if fallback else store.snapshot(ref)
    terminal.outcome = lambda: "files that are complete stay, nothing partial was left"
    with watch(terminal, wrote="written") as monitor:
        result = store.restore(
            snapshot,
            target,
            paths=paths or None,
            exact=exact,
            owner=owner,
            damaged=damaged,
            fallback=fallback,
            monitor=monitor,
        )
    snapshot = store.snapshot(result.snapshot) if isinstance(snapshot, str) else snapshot
    if terminal.json:
        terminal.document(restore_document(snapshot, result))
    terminal.warnings(result.notices)
    terminal.message(
        f"restored {snapshot.series}@{snapshot.sequence} into {result.path}: {counted(result.files, 'file')}, "
        f"{result.files_unchanged} of them there already; {size_text(result.bytes_written)} written"
    )
    if result.lost:
        terminal.complain(f"{counted(len(result.lost), 'file')} left out, damaged in the store")
        return DAMAGED
    return WARNED if result.notices else 0
