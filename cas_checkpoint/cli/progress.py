"""Progress bars on stderr. `watch` shows them on a terminal only, and imports rich only then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.monitor import Monitor

__all__ = ["Totals", "watch"]


class Totals(Monitor):
    """Adds up what happens. The bars look at it a few times a second, so that counting costs next to nothing.

    Attributes:
        total_size: bytes that lie ahead; None while that is unknown.
        read_size: bytes read.
        written_size: bytes written.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self.total_size: int | None = None
        self.read_size = self.written_size = 0

    def total(self, size: int) -> None:
        """Take note of what lies ahead."""
        self.total_size = size

    def read(self, size: int) -> None:
        """Count bytes read."""
        self.read_size += size

    def wrote(self, size: int) -> None:
        """Count bytes written."""
        self.written_size += size


@contextmanager
def watch(terminal: Terminal, *, read: str = "", wrote: str = "") -> Iterator[Monitor]:
    """Show one bar for bytes read and one for bytes written while the caller works; the bars are gone afterwards.

    Args:
        terminal: where.
        read: the title of the bar for bytes read; none if that is empty.
        wrote: the title of the bar for bytes written; none if that is empty.
    """
    totals = Totals()
    if not terminal.shows_progress:
        yield totals
        return
    from cas_checkpoint.cli.bars import Bars  # imports rich

    with Bars(totals, read=read, wrote=wrote):
        yield totals
