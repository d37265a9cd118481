"""`cas-checkpoint save`."""

from __future__ import annotations

import io
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, cast

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import notices_document, snapshot_document
from cas_checkpoint.cli.interrupts import InterruptibleReader
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.progress import watch
from cas_checkpoint.cli.text import counted, size_text
from cas_checkpoint.cli.verbs import WARNED, Verb, verb, workers_option
from cas_checkpoint.errors import CasCheckpointError

if TYPE_CHECKING:
    from cas_checkpoint import Snapshot, Store

__all__ = ["save_command"]


def _parse_metrics(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for value in values:
        name, separator, number = value.rpartition("=")
        if not separator or name in metrics:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE, or its name is used twice")
        try:
            metrics[name] = float(number)
        except ValueError as error:
            raise click.BadParameter(f"{number!r} in {value!r} is not a number") from error
    return metrics


@click.command("save", cls=Verb, short_help="Save a directory, a file or stdin as a new snapshot.")
@click.argument("path")
@click.option("--series", default="default", show_default=True, metavar="NAME", help="The series that it belongs to.")
@click.option("--step", type=int, metavar="N", help="A number of yours, such as the training step.")
@click.option("--tag", "tags", multiple=True, metavar="TEXT", help="A word of yours; may be given more than once.")
@click.option("--message", default="", metavar="TEXT", help="A text of yours.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_metrics,
    help="A number of yours; may be given more than once.",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do about a file that cannot be read, or changes while it is saved: save nothing, or leave it out.",
)
@click.option("--owner", is_flag=True, help="Record owners and groups.")
@click.option("--no-files-cache", is_flag=True, help="Read all files, even those that seem to be unchanged.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Forget all but the N newest of the series.")
@click.option(
    "--delta",
    type=click.Choice(["off", "fast", "small"]),
    default="fast",
    show_default=True,
    help="How to store what changed of tensors since the last save: whole, or as differences from it.",
)
@workers_option
@verb
def save_command(
    terminal: Terminal,
    url: str,
    path: str,
    *,
    series: str,
    step: int | None,
    tags: tuple[str, ...],
    message: str,
    metrics: dict[str, float],
    on_error: Literal["fail", "skip"],
    owner: bool,
    no_files_cache: bool,
    keep: int | None,
    delta: Literal["off", "fast", "small"],
    workers: int | None,
) -> int:
    """Save the contents of the directory PATH, or the file PATH, as the next snapshot of a series.

    If PATH is -, what comes from stdin is saved as the file _dst_cp. A store that does not exist is created. The new
    snapshot's id is written to stdout.
    """
    source = click.get_current_context().with_resource(_stdin()) if path == "-" else path
    terminal.outcome = lambda: "nothing was committed"
    store = cas_checkpoint.Store.open(url, create=True, workers=workers)
    began = datetime.now(timezone.utc)
    terminal.outcome = lambda: _outcome(store, series, (step, tags, message), began)
    with watch(terminal, read="read", wrote="new in the store") as monitor:
        snapshot = store.save(
            source,
            series=series,
            step=step,
            tags=tags,
            message=message,
            metrics=metrics,
            on_error=on_error,
            owner=owner,
            files_cache=not no_files_cache,
            keep=keep,
            delta=delta,
            monitor=monitor,
        )
    terminal.outcome = lambda: f"the snapshot {snapshot.id} was made"
    _tell(terminal, snapshot)
    store.settle()
    return WARNED if snapshot.warnings else 0


def _stdin() -> io.IOBase:
    if sys.stdin is None:
        raise click.UsageError("there is no stdin to save")
    try:
        return InterruptibleReader(sys.stdin.fileno())
    except OSError:  # it is no file: somebody else runs the command within a program
        return cast("io.IOBase", sys.stdin.buffer)


def _outcome(store: Store, series: str, given: tuple[int | None, tuple[str, ...], str], began: datetime) -> str:
    """Find out whether the snapshot was made before the save was interrupted: it may have been at its very end."""
    try:
        latest = store.latest(series)
    except CasCheckpointError as error:
        return f"whether a snapshot was made could not be found out: {error}"
    if latest and latest.created_at >= began and (latest.step, latest.tags, latest.message) == given:
        return f"the snapshot {latest.id} was made"
    return "nothing was committed"


def _tell(terminal: Terminal, snapshot: Snapshot) -> None:
    if terminal.json:
        terminal.document(snapshot_document(snapshot) | {"warnings": notices_document(snapshot.warnings)})
    else:
        terminal.line(snapshot.id)
    terminal.warnings(snapshot.warnings)
    stats = snapshot.stats
    terminal.message(
        f"saved {snapshot.series}@{snapshot.sequence}: {counted(stats.files, 'file')} of "
        f"{size_text(stats.logical_size)}, {size_text(stats.bytes_new)} new, "
        f"{size_text(stats.bytes_reused)} known already, in {stats.seconds:.1f} s"
    )
