"""`cas-checkpoint list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import snapshot_document
from cas_checkpoint.cli.output import Column, Terminal
from cas_checkpoint.cli.text import metrics_text, size_text, time_text
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from cas_checkpoint import CasCheckpointError, Snapshot

__all__ = ["list_command"]

_COLUMNS = [
    Column("id"),
    Column("snapshot"),
    Column("created"),
    Column("step", right=True),
    Column("files", right=True),
    Column("size", right=True),
    Column("new", right=True),
    Column("tags"),
    Column("metrics"),
    Column("message"),
]
_SHORT_ID = 12


@click.command("list", cls=Verb, short_help="List the snapshots.")
@click.option("--series", metavar="NAME", help="Only the snapshots of this series.")
@verb
def list_command(terminal: Terminal, url: str, series: str | None) -> int:
    """List the snapshots, newest first.

    If a snapshot's record is damaged, the others are listed, and the exit code is 12.
    """
    damaged: list[CasCheckpointError] = []
    snapshots = cas_checkpoint.Store.open(url).snapshots(series, damaged=damaged.append)
    if terminal.json:
        terminal.document([snapshot_document(snapshot) for snapshot in snapshots])
    elif snapshots:
        terminal.table(_COLUMNS, [_row(snapshot, brief=terminal.is_interactive) for snapshot in snapshots])
    elif not damaged:
        terminal.message("there are no snapshots" + (f" in the series {series}" if series else ""))
    for error in damaged:
        terminal.complain(str(error))
    return max((error.exit_code for error in damaged), default=0)


def _row(snapshot: Snapshot, *, brief: bool) -> list[str]:
    stats = snapshot.stats
    show = size_text if brief else str
    created = snapshot.created_at.replace(microsecond=0)
    return [
        snapshot.id[:_SHORT_ID] if brief else snapshot.id,
        f"{snapshot.series}@{snapshot.sequence}",
        time_text(created),
        "" if snapshot.step is None else str(snapshot.step),
        str(stats.files),
        show(stats.logical_size),
        show(stats.bytes_new),
        ",".join(snapshot.tags),
        metrics_text(snapshot.metrics),
        snapshot.message,
    ]
