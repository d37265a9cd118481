"""`cas-checkpoint info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import info_document
from cas_checkpoint.cli.output import Column, Terminal
from cas_checkpoint.cli.text import size_text
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from cas_checkpoint import StoreInfo

__all__ = ["info_command"]

_COLUMNS = [Column(""), Column(""), Column("", right=True), Column("", right=True)]


@click.command("info", cls=Verb, short_help="Show the store and its sizes.")
@verb
def info_command(terminal: Terminal, url: str) -> None:
    """Show what the store consists of: its series with their snapshots, its objects with their sizes in bytes."""
    info = cas_checkpoint.Store.open(url).info()
    if terminal.json:
        terminal.document(info_document(info))
    else:
        _write(terminal, info)


def _write(terminal: Terminal, info: StoreInfo) -> None:
    show = size_text if terminal.is_interactive else str
    rows = [
        ("store", info.url, "", ""),
        ("id", info.id, "", ""),
        ("put-if-absent", "yes" if info.put_if_absent else "no", "", ""),
        *(("series", name, str(count), "") for name, count in info.series.items()),
        *(("objects", kind, str(count), show(size)) for kind, (count, size) in info.objects.items()),
        ("total", "", str(sum(count for count, _ in info.objects.values())), show(info.size)),
    ]
    terminal.table(_COLUMNS, rows)
