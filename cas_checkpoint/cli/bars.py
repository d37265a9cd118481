"""The progress bars themselves. Imported only when they are shown, as it imports rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from cas_checkpoint.cli.progress import Totals

__all__ = ["Bars"]


class Bars(Progress):
    """Bars that read their lengths from `Totals` whenever they are drawn."""

    def __init__(self, totals: Totals, *, read: str, wrote: str) -> None:
        """Prepare the bars that have a title."""
        self._totals = totals
        self._sizes: dict[TaskID, Callable[[], int]] = {}
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        if read:
            self._sizes[self.add_task(read, total=None)] = lambda: totals.read_size
        if wrote:
            self._sizes[self.add_task(wrote, total=None)] = lambda: totals.written_size

    def get_renderables(self) -> Iterable[RenderableType]:
        """Draw the bars as things stand."""
        total = self._totals.total_size  # of the first bar
        for task, size in self._sizes.items():
            self.update(task, completed=size(), total=total)
            total = None
        return super().get_renderables()
