"""Results as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.goals import Outcome, Reading
from bench.parts import Part
from bench.results import Results, Row

__all__ = ["show_goals", "show_part"]

_MIB = 2**20
_MILLISECONDS_BELOW = 0.1
_MANY = 1000


def show_part(console: Console, part: Part, results: Results, place: str) -> None:
    """Print what a part measured, and what it could not measure."""
    table = Table(title=f"{part.name}: {part.title} (on {place})", title_justify="left", title_style="bold")
    table.add_column("job", overflow="fold")
    table.add_column("tool", no_wrap=True)
    for name in ("wall", "CPU", "peak MiB", "stored", "ours/it: wall", "CPU", "stored"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = ""
    for row in results.rows(part.name):
        if row.job != previous and previous:
            table.add_section()
        ours = results.row(part.name, row.job, "ours") if row.tool != "ours" else None
        table.add_row(*_cells(row, ours, first=row.job != previous))
        previous = row.job
    console.print()
    if previous:
        console.print(table)
    for failure in results.failures:
        if failure.part == part.name:
            console.print(f"  {failure.tool}: {failure.job}: {failure.reason}", markup=False)
    if part.note:
        console.print(f"  {part.note}", markup=False)


def _cells(row: Row, ours: Row | None, *, first: bool) -> list[str]:
    cells = [row.job if first else "", row.tool, seconds(row.wall), seconds(row.cpu)]
    cells += [f"{row.peak / _MIB:,.0f}" if row.peak else "", _bytes(row.stored)]
    for metric in ("wall", "cpu", "stored"):
        value, base = getattr(ours, metric, None), getattr(row, metric)
        cells.append(f"{value / base:.2f}" if value is not None and base else "")
    return cells


def _bytes(size: float | None) -> str:
    if size is None:
        return ""
    return f"{size / _MIB:,.2f} MiB" if size >= _MIB / 10 else f"{size / 1024:,.2f} KiB"


def seconds(value: float) -> str:
    """Return a time as text, small ones in milliseconds."""
    if not value:
        return ""
    return f"{value * 1000:.2f} ms" if value < _MILLISECONDS_BELOW else f"{value:.2f} s"


def show_goals(console: Console, outcomes: list[Outcome], *, scale: float) -> None:
    """Print the goals of which anything was measured, and how many there are besides."""
    table = Table(title="goals", title_justify="left", title_style="bold")
    table.add_column("goal", overflow="fold", ratio=3)
    table.add_column("measured", overflow="fold", ratio=4)
    table.add_column("holds", no_wrap=True)
    left = 0
    for outcome in outcomes:
        if all(reading.measured is None for reading in outcome.readings):
            left += 1
            continue
        holds = {True: "yes", False: "NO", None: "not all measured"}[outcome.holds]
        table.add_row(outcome.goal.text, "\n".join(map(reading_text, outcome.readings)), holds)
        table.add_section()
    console.print()
    if left < len(outcomes):
        console.print(table)
    if left:
        console.print(f"Of {len(outcomes)} goals {left} were not measured: their parts were not run.")
    if scale < 1:
        console.print("At a small scale the start of each process weighs most: goals are for --size-scale 1.")


def reading_text(reading: Reading) -> str:
    """Return a reading as text, with its limit."""
    if reading.measured is None:
        return f"{reading.what}: not measured"
    sign = ">=" if reading.at_least else "<="
    mark = "" if reading.holds else "missed: "
    return f"{mark}{reading.what} {_figure(reading.measured)} ({sign} {_figure(reading.limit)})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= _MANY else f"{value:.4f}"
