"""Pointers: what lies at a checkpoint's destination when its snapshots live in a shared store (SPEC.md, "Pointers")."""

from __future__ import annotations

from typing import Final, NamedTuple

from cas_checkpoint.ids import RANDOM_ID_SIZE, Buffer, StoreId
from cas_checkpoint.records import Kind, decode_record, encode_record

__all__ = ["MAX_POINTER_SIZE", "POINTER_KEY", "Pointer"]

POINTER_KEY: Final = "cas-checkpoint-pointer"
MAX_POINTER_SIZE = 2**16


class Pointer(NamedTuple):
    """Where a destination's snapshots are.

    Attributes:
        url: the shared store.
        store: that store's id, so that another store at the same place is noticed.
        series: the series that belongs to this destination alone.
    """

    url: str
    store: StoreId
    series: str

    def encode(self) -> bytes:
        """Return the pointer object."""
        return encode_record(Kind.POINTER, self._asdict(), limit=MAX_POINTER_SIZE - 2**10)

    @classmethod
    def decode(cls, data: Buffer) -> Pointer:
        """Read a pointer object; one that was altered is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.POINTER, data, limit=MAX_POINTER_SIZE)
        return cls(fields.text("url"), StoreId(fields.bytes("store", RANDOM_ID_SIZE)), fields.text("series"))
