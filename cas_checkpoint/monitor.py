"""How the library reports progress and warnings. It never prints; whoever wants to know passes a `Monitor`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Monitor", "Notice"]


class Notice(NamedTuple):
    """Something that the caller should know, though the operation went on.

    Attributes:
        path: what it is about: a path as text (undecodable bytes as surrogate escapes), or an object's key.
        message: what happened.
    """

    path: str
    message: str

    def __str__(self) -> str:
        shown = self.path.encode("utf-8", "backslashreplace").decode("utf-8")
        return f"{shown}: {self.message}" if shown else self.message


class Monitor:
    """Receives what happens during a save, a restore or a verification. Every method may be overridden.

    Calls come from several threads, though never two at once for one operation's totals; they must return
    quickly and not raise.
    """

    def total(self, size: int) -> None:
        """`size` bytes lie ahead, as far as is known; later calls replace earlier ones."""

    def read(self, size: int) -> None:
        """`size` more plain bytes were read (from the source of a save, or of a snapshot)."""

    def wrote(self, size: int) -> None:
        """`size` more bytes were written (new bytes in the store, or bytes in the target of a restore)."""

    def warning(self, notice: Notice) -> None:
        """Something was skipped or could not be done in full; the operation goes on."""
