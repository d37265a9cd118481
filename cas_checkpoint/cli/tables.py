"""Tables on a terminal. Imported only when one is shown, as it imports rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cas_checkpoint.cli.output import Column

__all__ = ["write_table"]


def write_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, titles: bool) -> None:
    """Write a table to stdout; cells that are too long for their column go on below it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=titles, header_style="bold")
    for column in columns:
        table.add_column(Text(column.title), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
