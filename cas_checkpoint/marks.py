"""Marks: by them a garbage collection announces the packs that it means to delete (SPEC.md, "Marks").

A mark is open until a second object, `marks/<number>-closed`, stands beside it. Objects are never changed.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import RANDOM_ID_SIZE, Buffer, PackId, TransactionId
from cas_checkpoint.records import MAX_RECORD_SIZE, Kind, decode_record, encode_record

__all__ = ["MARKS_PREFIX", "MAX_MARK_SIZE", "Mark", "mark_key", "parse_mark_key"]

MARKS_PREFIX: Final = "marks/"
MAX_MARK_SIZE = MAX_RECORD_SIZE + 2**10
_KEY: Final = re.compile(r"marks/([0-9]{16})(-closed)?")


class Mark(NamedTuple):
    """What a collection announces.

    Attributes:
        collection: the collection's random id, so that no two collections write the same mark.
        packs: the packs that it means to delete.
    """

    collection: TransactionId
    packs: frozenset[PackId]

    def encode(self) -> bytes:
        """Return the mark object."""
        return encode_record(Kind.MARK, {"collection": self.collection, "packs": b"".join(sorted(self.packs))})

    @classmethod
    def decode(cls, data: Buffer) -> Mark:
        """Read a mark object; one that was altered is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.MARK, data)
        packs = fields.bytes("packs")
        if len(packs) % RANDOM_ID_SIZE:
            raise DamagedObject("its list of packs is cut short")
        starts = range(0, len(packs), RANDOM_ID_SIZE)
        return cls(
            TransactionId(fields.bytes("collection", RANDOM_ID_SIZE)),
            frozenset(PackId(packs[start : start + RANDOM_ID_SIZE]) for start in starts),
        )


def mark_key(number: int, *, closed: bool = False) -> str:
    """Return the key of a mark, or of the object that closes it."""
    return f"{MARKS_PREFIX}{number:016d}{'-closed' if closed else ''}"


def parse_mark_key(key: str) -> tuple[int, bool] | None:
    """Return a mark's number and whether the key is that of the object that closes it; None for another key."""
    match = _KEY.fullmatch(key)
    return (int(match[1]), bool(match[2])) if match else None
