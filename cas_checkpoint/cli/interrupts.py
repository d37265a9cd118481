"""Ctrl-C, SIGTERM and SIGHUP, as one exception that knows its exit code."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["INTERRUPTED", "Interrupted", "handle_interrupts"]

INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Somebody wants this process to end.

    Attributes:
        exit_code: what the process ends with, by the custom of shells: 128 and the number of the signal.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(number)
        self.exit_code = 128 + number


def handle_interrupts() -> None:
    """From now on, raise `Interrupted` at the first of these signals; to be called by the main thread.

    A second one is taken for the same wish, as wrappers pass on what the terminal has sent already; a third one ends
    the process at once.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _first)


def _first(number: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _second)
    raise Interrupted(number)


def _second(_number: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
