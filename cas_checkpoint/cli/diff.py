"""`cas-checkpoint diff`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import difference_document
from cas_checkpoint.cli.output import Column, Terminal
from cas_checkpoint.cli.text import counted, path_text, shape_text
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cas_checkpoint import ChangedTensor, Snapshot, TensorInfo

__all__ = ["diff_command"]

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}
_COLUMNS = [
    Column("  "),
    Column("tensor"),
    Column("was"),
    Column("is"),
    Column("changed", right=True),
    Column("max", right=True),
    Column("mean", right=True),
    Column("NaN", right=True),
]


@click.command("diff", cls=Verb, short_help="Show what differs between two snapshots.")
@click.argument("before", metavar="REF")
@click.argument("after", metavar="REF")
@click.option("--tensors", is_flag=True, help="Tell of each tensor of a changed file how its values differ.")
@verb
def diff_command(terminal: Terminal, url: str, before: str, after: str, *, tensors: bool) -> None:
    """Show what became of the first snapshot in the second: + for an added path, - for a removed one, ~ for a changed.

    Times of change do not count. With --tensors files that hold any are looked into: for each tensor that is not
    identical the share of elements that changed, the largest and the mean absolute change of these, and how many of
    them were or are NaN. Chunks that both snapshots have are not read.
    """
    store = cas_checkpoint.Store.open(url)
    snapshots = store.snapshot(before), store.snapshot(after)
    if terminal.json:
        _write_document(terminal, *snapshots, tensors=tensors)
        return
    counts = dict.fromkeys(_SIGNS, 0)
    for item in snapshots[0].diff(snapshots[1], tensors=tensors):
        counts[item.change.value] += 1
        what = f"  ({', '.join(item.what)})" if item.what else ""
        terminal.line(f"{_SIGNS[item.change.value]} {path_text(item.path) or '.'}{what}")
        if item.tensors:
            _write_tensors(terminal, item.tensors)
    terminal.message(", ".join(f"{counted(count, 'path')} {change}" for change, count in counts.items()))


def _write_tensors(terminal: Terminal, tensors: Sequence[ChangedTensor]) -> None:
    rows = [_row(tensor) for tensor in tensors if tensor.change.value != "identical"]
    if rows:
        terminal.table(_COLUMNS, rows)
    if len(rows) < len(tensors):
        terminal.line(f"    {counted(len(tensors) - len(rows), 'tensor')} identical")


def _row(tensor: ChangedTensor) -> list[str]:
    kinds = [_kind(tensor.before), _kind(tensor.after)]
    sign, numbers = f"  {_SIGNS[tensor.change.value]}", tensor.numbers
    if numbers is None:
        return [sign, tensor.name, *kinds, "", "", "", ""]
    changes = [f"{100 * numbers.share:.3g} %", f"{numbers.max_change:.3g}", f"{numbers.mean_change:.3g}"]
    return [sign, tensor.name, *kinds, *changes, str(numbers.nans)]


def _kind(info: TensorInfo | None) -> str:
    return "" if info is None else f"{info.dtype} {shape_text(info.shape)}"


def _write_document(terminal: Terminal, before: Snapshot, after: Snapshot, *, tensors: bool) -> None:
    """Write differences as they come: there may be millions of them."""
    head = f'{{"before": "{before.id}", "after": "{after.id}",\n"paths": ['
    with terminal.streamed_document(head, "\n]") as write:
        separator = "\n"
        for item in before.diff(after, tensors=tensors):
            write(separator + json.dumps(difference_document(item), allow_nan=False))
            separator = ",\n"
