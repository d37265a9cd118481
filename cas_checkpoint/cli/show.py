"""`cas-checkpoint show`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import entry_document, snapshot_document
from cas_checkpoint.cli.output import Column, Terminal
from cas_checkpoint.cli.text import counted, metrics_text, nanoseconds_text, path_text, size_text, time_text
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from cas_checkpoint import Entry, Snapshot

__all__ = ["show_command"]

_SIZE_WIDTH = 13
_TIME_WIDTH = len("1970-01-01T00:00:00Z")
_SECOND = 10**9
_LINKS = {"l": " -> ", "h": " = "}


@click.command("show", cls=Verb, short_help="Show what a snapshot consists of.")
@click.argument("ref")
@verb
def show_command(terminal: Terminal, url: str, ref: str) -> None:
    """Show the entries of the snapshot REF: type, mode, size, time of last change, path.

    Types are f for a file, d for a directory, l for a symlink (and where it points), h for a hard link (and the path of
    the file that it is). The path of the saved directory itself is a dot. A summary comes first, but for --quiet.
    """
    snapshot = cas_checkpoint.Store.open(url).snapshot(ref)
    if terminal.json:
        _write_document(terminal, snapshot)
        return
    entries = snapshot.entries()
    first = next(entries, None)  # an unreadable snapshot is an error before anything is shown
    if not terminal.quiet:
        _write_summary(terminal, snapshot)
    if first is not None:
        terminal.line(_line(first))
    for entry in entries:
        terminal.line(_line(entry))


def _write_summary(terminal: Terminal, snapshot: Snapshot) -> None:
    stats = snapshot.stats
    rows = [
        ("snapshot", f"{snapshot.series}@{snapshot.sequence}"),
        ("id", snapshot.id),
        ("created", time_text(snapshot.created_at)),
        ("step", "" if snapshot.step is None else str(snapshot.step)),
        ("tags", ", ".join(snapshot.tags)),
        ("metrics", metrics_text(snapshot.metrics)),
        ("message", snapshot.message),
        ("content", f"{counted(stats.files, 'file')}, {stats.entries} entries, {size_text(stats.logical_size)}"),
        ("stored", f"{size_text(stats.bytes_new)} new, {size_text(stats.bytes_reused)} known already"),
    ]
    terminal.table([Column(""), Column("")], [row for row in rows if row[1]])
    terminal.line("")


def _line(entry: Entry) -> str:
    kind = entry.type.value
    time = nanoseconds_text(entry.mtime_ns - entry.mtime_ns % _SECOND)
    path = path_text(entry.path) or "."
    target = _LINKS[kind] + path_text(entry.target) if kind in _LINKS else ""
    return f"{kind} {entry.mode:04o} {entry.size:>{_SIZE_WIDTH}} {time:<{_TIME_WIDTH}} {path}{target}"


def _write_document(terminal: Terminal, snapshot: Snapshot) -> None:
    """Write entries as they come: a snapshot may have millions of them."""
    head = f'{{"summary": {json.dumps(snapshot_document(snapshot), allow_nan=False)},\n"entries": ['
    with terminal.streamed_document(head, "\n]") as write:
        separator = "\n"
        for entry in snapshot.entries():
            write(separator + json.dumps(entry_document(entry)))
            separator = ",\n"
