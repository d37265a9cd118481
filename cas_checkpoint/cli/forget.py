"""`cas-checkpoint forget`."""

from __future__ import annotations

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import snapshot_document
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.text import counted
from cas_checkpoint.cli.verbs import Verb, verb

__all__ = ["forget_command"]


@click.command("forget", cls=Verb, short_help="Let snapshots not exist any more.")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Forget all but the N newest of the series.")
@click.option("--series", metavar="NAME", help="The series that --keep is about.  [default: default]")
@verb
def forget_command(terminal: Terminal, url: str, refs: tuple[str, ...], *, keep: int | None, series: str | None) -> int:
    """Forget the snapshots REF, or with --keep all but the newest of a series.

    What they alone needed stays in the store until 'collect' deletes it. The ids of what was forgotten go to stdout.
    """
    if bool(refs) == (keep is not None):
        raise click.UsageError("say either which snapshots to forget, or --keep N")
    if series is not None and keep is None:
        raise click.UsageError("--series goes with --keep")
    store = cas_checkpoint.Store.open(url)
    forgotten = store.forget(refs) if keep is None else store.forget_older(keep, series=series or "default")
    if terminal.json:
        terminal.document([snapshot_document(snapshot) for snapshot in forgotten])
    else:
        for snapshot in forgotten:
            terminal.line(snapshot.id)
    terminal.message(f"{counted(len(forgotten), 'snapshot')} forgotten; 'collect' frees what only they needed")
    return 0
