"""Names, sizes and times as people read them. Pure functions on text; nothing is written here.

Names come from whoever made the files: they may hold bytes that are no text, and sequences that would move a
terminal's cursor, change its title or reverse the order of what it shows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone

__all__ = [
    "clean",
    "counted",
    "metrics_text",
    "nanoseconds_text",
    "path_text",
    "printable",
    "shape_text",
    "size_text",
    "time_text",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND = 10**9
_UNIT = 1024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def path_text(path: bytes) -> str:
    """Return a path as text, undecodable bytes as surrogate escapes."""
    return path.decode("utf-8", "surrogateescape")


def clean(text: str) -> str:
    r"""Return `text` as valid Unicode: surrogate escapes become `\xNN`, the byte that they stand for."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass" if _has_lone(text) else "surrogateescape").decode(
        "utf-8", "backslashreplace"
    )


def _has_lone(text: str) -> bool:
    """Tell whether there is a surrogate that stands for no byte."""
    return any("\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff" for char in text)


def printable(text: str) -> str:
    r"""Return `text` in one line and without power over a terminal: what is not to be seen becomes `\n`, `\x1b`, …."""
    text = clean(text)
    if text.isprintable():
        return text
    return "".join(char if _is_visible(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_visible(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # other spaces, such as that of Japanese


def size_text(size: int) -> str:
    """Return a size in bytes with a unit."""
    if size < _UNIT:
        return f"{size} B"
    number, unit = float(size), 0
    while number >= _UNIT and unit < len(_UNITS) - 1:
        number, unit = number / _UNIT, unit + 1
    return f"{number:.1f} {_UNITS[unit]}"


def shape_text(shape: Sequence[int]) -> str:
    """Return the lengths of a tensor's axes; nothing between the brackets for a scalar."""
    return f"[{', '.join(map(str, shape))}]"


def time_text(moment: datetime) -> str:
    """Return a moment in UTC as ISO 8601, to the second, with a fraction only if there is one."""
    return moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"


def nanoseconds_text(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as ISO 8601 in UTC, to the nanosecond if it is not a whole second."""
    seconds, rest = divmod(time_ns, _SECOND)
    moment = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()
    return f"{moment}.{rest:09d}Z" if rest else f"{moment}Z"


def counted(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Return metrics as they are given to `save`, one after another."""
    return ",".join(f"{name}={value:g}" for name, value in metrics.items())
