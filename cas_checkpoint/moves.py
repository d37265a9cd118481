"""Moves: where the chunks of a pack went that was, or is to be, deleted although snapshots name it (SPEC.md, "Moves").

Several collections may move the same pack; each writes a record of its own, and what they say together holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import RANDOM_ID_SIZE, Buffer, PackId, TransactionId
from cas_checkpoint.records import MAX_RECORD_SIZE, Kind, decode_record, encode_record

__all__ = ["MAX_MOVE_SIZE", "MOVES_PREFIX", "Move", "MoveKey", "closure", "parse_move_key", "reverse"]

MOVES_PREFIX: Final = "moves/"
MAX_MOVE_SIZE = MAX_RECORD_SIZE + 2**10
_KEY: Final = re.compile(r"moves/([0-9a-f]{32})-([0-9a-f]{32})")


class MoveKey(NamedTuple):
    """What a move's key says: the pack that is moved, and the random id of the collection that moves it."""

    pack: PackId
    collection: TransactionId

    def __str__(self) -> str:
        return f"{MOVES_PREFIX}{self.pack.hex()}-{self.collection.hex()}"


class Move(NamedTuple):
    """Where chunks of a pack went.

    Attributes:
        key: what the move's own key says.
        targets: the packs that hold copies of them.
    """

    key: MoveKey
    targets: frozenset[PackId]

    def encode(self) -> bytes:
        """Return the move object."""
        return encode_record(Kind.MOVE, {**self.key._asdict(), "targets": b"".join(sorted(self.targets))})

    @classmethod
    def decode(cls, data: Buffer) -> Move:
        """Read a move object; one that was altered is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.MOVE, data)
        targets = fields.bytes("targets")
        if len(targets) % RANDOM_ID_SIZE:
            raise DamagedObject("its list of packs is cut short")
        starts = range(0, len(targets), RANDOM_ID_SIZE)
        return cls(
            MoveKey(
                PackId(fields.bytes("pack", RANDOM_ID_SIZE)),
                TransactionId(fields.bytes("collection", RANDOM_ID_SIZE)),
            ),
            frozenset(PackId(targets[start : start + RANDOM_ID_SIZE]) for start in starts),
        )


def parse_move_key(key: str) -> MoveKey | None:
    """Read a move's key; None for any other key."""
    match = _KEY.fullmatch(key)
    return MoveKey(PackId(bytes.fromhex(match[1])), TransactionId(bytes.fromhex(match[2]))) if match else None


def closure(packs: Iterable[PackId], moves: Mapping[PackId, frozenset[PackId]]) -> frozenset[PackId]:
    """Return these packs and all that anything of them was moved to, by however many steps."""
    found = set(packs)
    waiting = list(found)
    while waiting:
        fresh = moves.get(waiting.pop(), frozenset()) - found
        found |= fresh
        waiting += fresh
    return frozenset(found)


def reverse(moves: Mapping[PackId, frozenset[PackId]]) -> dict[PackId, frozenset[PackId]]:
    """Return for each target of a move the packs that were moved to it."""
    sources: dict[PackId, set[PackId]] = {}
    for pack, targets in moves.items():
        for target in targets:
            sources.setdefault(target, set()).add(pack)
    return {target: frozenset(packs) for target, packs in sources.items()}
