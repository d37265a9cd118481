"""`cas-checkpoint collect`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import collect_document
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.progress import watch
from cas_checkpoint.cli.text import counted, size_text
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from cas_checkpoint import CollectReport

__all__ = ["collect_command"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _parse_duration(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", value)
    if not match:
        raise click.BadParameter(f"{value!r} is no duration such as 90, 90s, 15m, 1h or 2d")
    return float(match[1]) * _UNITS[match[2]]


@click.command("collect", cls=Verb, short_help="Delete what no snapshot needs.")
@click.option(
    "--grace",
    default="0",
    show_default=True,
    metavar="DURATION",
    callback=_parse_duration,
    help="Leave alone what saves have written of which any pack is younger than this, such as 15m or 1h.",
)
@click.option(
    "--repack",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="Replace a pack of which at least this share is not needed by a copy of the rest.",
)
@click.option("--no-repack", is_flag=True, help="Delete only packs of which nothing is needed.")
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what would be done.")
@verb
def collect_command(
    terminal: Terminal, url: str, *, grace: float, repack: float, no_repack: bool, dry_run: bool
) -> int:
    """Delete what no snapshot needs: what forgotten snapshots and saves that did not finish have left.

    Safe beside saves, restores and other collections, and wherever it is stopped: there is no lock. A save under way
    may find that packs of its own are deleted, and stores them again: give --grace to spare it that work.
    """
    store = cas_checkpoint.Store.open(url)
    with watch(terminal, read="read") as monitor:
        report = store.collect(grace=grace, repack=None if no_repack else repack, dry_run=dry_run, monitor=monitor)
    if terminal.json:
        terminal.document(collect_document(report))
    _tell(terminal, report)
    return 0


def _tell(terminal: Terminal, report: CollectReport) -> None:
    would = "would be " if report.dry_run else ""
    copied = ""
    if report.packs_repacked:
        copied = f", {report.packs_repacked} of them after what is needed of it was copied"
    terminal.message(
        f"{size_text(max(report.bytes_freed, 0))} {would}freed: "
        f"{counted(report.packs_deleted, 'pack')} {would}deleted{copied}"
    )
    if report.transactions_aborted:
        terminal.message(f"{counted(report.transactions_aborted, 'unfinished save')} {would}given up")
    if report.bytes_waiting:
        terminal.message(f"{size_text(report.bytes_waiting)} wait for the grace period: saves may be writing them")
