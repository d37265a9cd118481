"""Commits: the small record that makes a snapshot exist, or never exist (SPEC.md, "Commits").

Also the names of series and of the objects of a transaction, which a commit's key is made of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from cas_checkpoint.errors import DamagedObject, InvalidArgument
from cas_checkpoint.ids import CHUNK_ID_SIZE, RANDOM_ID_SIZE, Buffer, PackId, StoreId, TransactionId
from cas_checkpoint.records import Fields, Kind, decode_record, encode_record

__all__ = [
    "COMMITS_PREFIX",
    "MAX_COMMIT_SIZE",
    "MAX_INLINE_SIZE",
    "MAX_MESSAGE_SIZE",
    "MAX_PARTS",
    "MAX_SEQUENCE",
    "PARTS_PREFIX",
    "Commit",
    "CommitKey",
    "Inline",
    "SaveStats",
    "State",
    "check_series",
    "index_key",
    "is_manifest_key",
    "manifest_key",
    "pack_key",
    "parse_commit_key",
    "parse_part_key",
    "parse_series_key",
    "part_key",
    "series_prefix",
]

COMMITS_PREFIX: Final = "commits/"
PARTS_PREFIX: Final = "parts/"
MAX_COMMIT_SIZE = 2 * 2**20
MAX_INLINE_SIZE = 128 * 2**10
"""A snapshot whose manifest and pack take no more bytes than this together is carried by its commit."""
MAX_SERIES_SIZE = 200
MAX_SEQUENCE = 10**16 - 1
MAX_MESSAGE_SIZE = 64 * 2**10
MAX_PARTS = 10**6 - 1
"""A snapshot is saved in at most so many parts; the part of that number is what the committer itself writes."""
_IN_SERIES: Final = re.compile(r"([0-9]{16})-([0-9a-f]{32})")
_PART_KEY: Final = re.compile(r"parts/([0-9a-f]{32})-([0-9]{6})-[0-9a-f]{32}")
_COMMIT_KEY: Final = re.compile(r"commits/([^/]+)/([0-9]{16})-([0-9a-f]{32})")


# --- keys ---------------------------------------------------------------------------------------


def pack_key(pack: PackId) -> str:
    """Return the key of a pack."""
    return f"packs/{pack.hex()}"


def index_key(name: TransactionId) -> str:
    """Return the key of an index object."""
    return f"index/{name.hex()}"


def manifest_key(transaction: TransactionId) -> str:
    """Return the key of a manifest."""
    return f"manifests/{transaction.hex()}"


def part_key(transaction: TransactionId, part: int, name: TransactionId) -> str:
    """Return the key of the manifest of a part; `name` is drawn anew whenever it is written, so it never changes."""
    return f"{PARTS_PREFIX}{transaction.hex()}-{part:06d}-{name.hex()}"


def parse_part_key(key: str) -> tuple[TransactionId, int] | None:
    """Return the transaction and the number of the part of a part manifest's key; None for any other key."""
    match = _PART_KEY.fullmatch(key)
    return (TransactionId(bytes.fromhex(match[1])), int(match[2])) if match else None


def is_manifest_key(key: str, transaction: TransactionId) -> bool:
    """Tell whether a manifest of that transaction, whole or of a part, may have this key."""
    part = parse_part_key(key)
    return key == manifest_key(transaction) or (part is not None and part[0] == transaction)


def check_series(series: str) -> str:
    """Return `series` if a series can have that name, else raise `InvalidArgument`."""
    try:
        encoded = _encode_series(series) if series else ""
    except UnicodeEncodeError:
        encoded = ""
    if not 0 < len(encoded) <= MAX_SERIES_SIZE:
        raise InvalidArgument(
            f"not a name for a series: {series!r}; it needs 1 to {MAX_SERIES_SIZE} characters, counting three for each "
            "byte other than a-z, 0-9, '.', '_' and '-'"
        )
    return series


def _encode_series(series: str) -> str:
    """Percent-encode all but `a-z 0-9 _ -` and inner dots, in lower case, so that any file system can hold it."""
    plain = b"abcdefghijklmnopqrstuvwxyz0123456789_-"
    raw = series.encode("utf-8")
    return "".join(
        chr(byte) if byte in plain or (byte == ord(".") and 0 < at < len(raw) - 1) else f"%{byte:02x}"
        for at, byte in enumerate(raw)
    )


def series_prefix(series: str) -> str:
    """Return the prefix under which the commits of a series lie."""
    return f"{COMMITS_PREFIX}{_encode_series(check_series(series))}/"


class CommitKey(NamedTuple):
    """What a commit's key says."""

    series: str
    sequence: int
    transaction: TransactionId

    def __str__(self) -> str:
        return f"{series_prefix(self.series)}{self.sequence:016d}-{self.transaction.hex()}"


def parse_series_key(key: str, series: str, prefix: str) -> CommitKey | None:
    """Read the key of a commit of one series, whose prefix is known, as `parse_commit_key` does."""
    match = _IN_SERIES.fullmatch(key, len(prefix)) if key.startswith(prefix) else None
    return CommitKey(series, int(match[1]), TransactionId(bytes.fromhex(match[2]))) if match else None


def parse_commit_key(key: str) -> CommitKey | None:
    """Read a commit's key; None for any key that no commit can have."""
    match = _COMMIT_KEY.fullmatch(key)
    if not match:
        return None
    try:
        series = unquote_to_bytes(match[1]).decode("utf-8")
        parsed = CommitKey(series, int(match[2]), TransactionId(bytes.fromhex(match[3])))
        return parsed if str(parsed) == key else None
    except (InvalidArgument, UnicodeError):
        return None


# --- the record ---------------------------------------------------------------------------------


class State(str, Enum):
    """What became of a transaction."""

    COMMITTED = "C"
    ABORTED = "A"


class SaveStats(NamedTuple):
    """What a save did. Sizes are bytes.

    Attributes:
        files: files in the snapshot (hard links not counted).
        entries: entries of all kinds.
        logical_size: sum of the sizes of the files.
        bytes_new: plain bytes of the files' chunks that the store did not hold yet.
        bytes_reused: plain bytes of the files' chunks that it held already, or that occur again.
        chunks: chunks that the files consist of.
        chunks_new: those of them that were stored.
        bytes_written: bytes of the objects written, the commit not counted.
        objects_written: objects written, the commit included.
        seconds: time from the start of the save to its commit.
    """

    files: int = 0
    entries: int = 0
    logical_size: int = 0
    bytes_new: int = 0
    bytes_reused: int = 0
    chunks: int = 0
    chunks_new: int = 0
    bytes_written: int = 0
    objects_written: int = 0
    seconds: float = 0.0


class Inline(NamedTuple):
    """A small snapshot within its commit: its manifest object, and its pack if it has any chunks."""

    manifest: bytes
    pack: bytes


class Commit(NamedTuple):
    """The outcome of a transaction.

    Attributes:
        state: committed or aborted; an aborted commit has only the fields up to `key`.
        store: the store's id.
        key: what the commit's own key says.
        created_at_ns: when the save was committed, nanoseconds since 1970; shown, never relied on.
        step: the training step, if any.
        metrics: named numbers.
        tags: words to find it by.
        message: free text.
        stats: what the save did.
        manifest_digest: BLAKE3-256 of the manifest object.
        manifest_size: bytes of the manifest object.
        inline: the manifest and pack themselves, for a small snapshot.
    """

    state: State
    store: StoreId
    key: CommitKey
    created_at_ns: int = 0
    step: int | None = None
    metrics: Mapping[str, float] = {}
    tags: tuple[str, ...] = ()
    message: str = ""
    stats: SaveStats = SaveStats()
    manifest_digest: bytes = b""
    manifest_size: int = 0
    inline: Inline | None = None

    def encode(self) -> bytes:
        """Return the commit object."""
        body: dict[str, object] = {"state": self.state.value, "store": self.store, **self.key._asdict()}
        if self.state is State.COMMITTED:
            body |= {
                "created_at": self.created_at_ns,
                "step": self.step,
                "metrics": dict(self.metrics),
                "tags": list(self.tags),
                "message": self.message,
                "stats": self.stats._asdict(),
                "manifest_digest": self.manifest_digest,
                "manifest_size": self.manifest_size,
                "inline": None if self.inline is None else self.inline._asdict(),
            }
        return encode_record(Kind.COMMIT, body, limit=MAX_COMMIT_SIZE - 2**10)

    @classmethod
    def decode(cls, data: Buffer) -> Commit:
        """Read a commit object; one that was altered is `DamagedObject`, a newer one `UnsupportedStore`."""
        fields = decode_record(Kind.COMMIT, data, limit=MAX_COMMIT_SIZE)
        state, store = fields.text("state"), StoreId(fields.bytes("store", RANDOM_ID_SIZE))
        key = CommitKey(
            fields.text("series"),
            fields.integer("sequence"),
            TransactionId(fields.bytes("transaction", RANDOM_ID_SIZE)),
        )
        if state == State.ABORTED.value:
            return cls(State.ABORTED, store, key)
        if state != State.COMMITTED.value:
            raise DamagedObject(f"a commit in the unknown state {state!r}")
        return cls(
            State.COMMITTED,
            store,
            key,
            fields.integer("created_at", low=-(2**63)),
            None if fields.get("step") is None else fields.integer("step", low=-(2**63)),
            _decode_metrics(fields.map("metrics")),
            fields.texts("tags"),
            fields.text("message", limit=MAX_MESSAGE_SIZE),
            _decode_stats(Fields(fields.get("stats"))),
            fields.bytes("manifest_digest", CHUNK_ID_SIZE),
            fields.integer("manifest_size"),
            None if fields.get("inline") is None else _decode_inline(Fields(fields.get("inline"))),
        )


def _decode_metrics(items: Mapping[object, object]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, value in items.items():
        if not isinstance(name, str) or type(value) not in (float, int):
            raise DamagedObject("metrics that are not named numbers")
        metrics[name] = float(value)  # type: ignore[arg-type]
    return metrics


def _decode_stats(fields: Fields) -> SaveStats:
    counts = {name: fields.integer(name) for name in SaveStats._fields if name != "seconds"}
    seconds = fields.number("seconds")
    if not math.isfinite(seconds):
        raise DamagedObject("an endless save")
    return SaveStats(**counts, seconds=seconds)


def _decode_inline(fields: Fields) -> Inline:
    return Inline(fields.bytes("manifest"), fields.bytes("pack"))
