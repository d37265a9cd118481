"""The one place that writes to stdout (data) and stderr (messages)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.cli.text import clean, printable

if TYPE_CHECKING:
    from cas_checkpoint import Notice

__all__ = ["PROGRAM", "Column", "Terminal", "discard_stdout"]

PROGRAM = "cas-checkpoint"


class Column(NamedTuple):
    """A column of a table: its title, and whether it is aligned to the right."""

    title: str
    right: bool = False


class Terminal:
    """Where a verb writes, in the form that the user asked for.

    Attributes:
        json: whether stdout gets one JSON document instead of text.
        quiet: whether to leave out progress, summaries and titles.
        outcome: called when the verb is interrupted; says what has become of its work.
    """

    def __init__(self, *, json: bool, quiet: bool) -> None:
        """Write as asked for."""
        self.json, self.quiet = json, quiet
        self.outcome: Callable[[], str] = str
        self._document_begun = False

    @property
    def is_interactive(self) -> bool:
        """Whether somebody reads stdout as it comes."""
        return sys.stdout.isatty()

    @property
    def shows_progress(self) -> bool:
        """Whether to show progress: on a terminal only."""
        return sys.stderr.isatty() and not self.quiet and not self.json

    # --- messages ---

    def message(self, text: str) -> None:
        """Tell how it went, unless the user asked for quiet."""
        if not self.quiet:
            self._say(text)

    def warning(self, text: str) -> None:
        """Tell that something is not as it should be."""
        self._say(f"{PROGRAM}: warning: {text}")

    def warnings(self, notices: Iterable[Notice]) -> None:
        """Pass on what the library has to say."""
        for notice in notices:
            self.warning(f"{notice.path}: {notice.message}" if notice.path else notice.message)

    def error(self, kind: str, text: str, exit_code: int) -> None:
        """Tell why it failed, on stderr and in the document if one was asked for."""
        self.complain(text)
        self.failed(kind, text, exit_code)

    def complain(self, text: str) -> None:
        """Tell on stderr that something is wrong."""
        self._say(f"{PROGRAM}: error: {text}")

    def failed(self, kind: str, text: str, exit_code: int) -> None:
        """Tell why it failed in the document, if one was asked for and none has begun."""
        if self.json and not self._document_begun:
            self.document({"error": _error_document(kind, text, exit_code)})

    def _say(self, text: str) -> None:
        with suppress(OSError):  # nobody listens
            sys.stderr.write(printable(text) + "\n")
            sys.stderr.flush()

    # --- data ---

    def line(self, text: str) -> None:
        """Write a line."""
        sys.stdout.write(printable(text) + "\n")

    def document(self, value: object) -> None:
        """Write the JSON document."""
        self._write(json.dumps(value, allow_nan=False, indent=2) + "\n")

    @contextmanager
    def streamed_document(self, head: str, tail: str) -> Iterator[Callable[[str], None]]:
        """Write a document whose middle comes piece by piece, through the function that is yielded.

        An error on the way becomes the document's field `error`: it stays valid, and tells that it is not whole.

        Args:
            head: what comes before the middle, an object's beginning.
            tail: what ends the middle; the object is ended by this function.
        """
        self._write(head)
        try:
            yield self._write
        except Exception as error:
            failure = _error_document(type(error).__name__, str(error), getattr(error, "exit_code", 1))
            self._write(f'{tail},\n"error": {json.dumps(failure)}}}\n')
            raise
        self._write(f"{tail}}}\n")

    def _write(self, text: str) -> None:
        self._document_begun = True
        sys.stdout.write(text)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Write a table: on a terminal to be looked at, elsewhere aligned, in full, and one line a row.

        On a terminal, columns in which no row has anything are left out; elsewhere an empty cell below a title is `-`.
        """
        rows = [[printable(cell) for cell in row] for row in rows]
        titled = any(column.title for column in columns)
        if self.is_interactive:
            from cas_checkpoint.cli.tables import write_table  # imports rich

            used = [at for at in range(len(columns)) if any(row[at] for row in rows)]
            cells = [[row[at] for at in used] for row in rows]
            write_table([columns[at] for at in used], cells, titles=titled and not self.quiet)
            return
        lines = [[cell or "-" for cell in row] for row in rows] if titled else rows
        if titled and not self.quiet:
            lines.insert(0, [column.title for column in columns])
        for line in _aligned(columns, lines):
            self.line(line)


def _aligned(columns: Sequence[Column], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _error_document(kind: str, text: str, exit_code: int) -> dict[str, object]:
    return {"type": kind, "message": clean(text), "exit_code": exit_code}


def discard_stdout() -> None:
    """Let what is still to be written to stdout vanish: nobody reads it any more."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
