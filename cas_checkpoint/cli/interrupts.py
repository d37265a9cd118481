"""Ctrl-C, SIGTERM and SIGHUP, as one exception that knows its exit code."""

from __future__ import annotations

import io
import os
import select
import signal
from types import FrameType

__all__ = ["INTERRUPTED", "Interrupted", "InterruptibleReader", "handle_interrupts"]

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


class InterruptibleReader(io.RawIOBase):
    """Reads a file descriptor, and never goes on waiting for data after a signal came.

    A signal that comes in the moment before `read` is called does not end that call: whoever pressed Ctrl-C would wait
    for data as well. So what is waited for is data or a signal. To be used in the main thread.
    """

    def __init__(self, fd: int) -> None:
        """Read `fd`, which stays the caller's."""
        super().__init__()
        self._fd = fd
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._earlier = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Read what there is, as soon as there is something; 0 at the end."""
        ready: list[int] = []
        while self._fd not in ready:
            ready, _, _ = select.select([self._fd, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 64)
        return os.readv(self._fd, [buffer])

    def close(self) -> None:
        """Let signals be as they were."""
        if not self.closed:
            signal.set_wakeup_fd(self._earlier)
            os.close(self._waker)
            os.close(self._woken)
        super().close()


def _first(number: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _second)
    raise Interrupted(number)


def _second(_number: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
