"""The store's header, the object `cas-checkpoint`: what kind of store this is (SPEC.md, "Header")."""

from __future__ import annotations

from typing import Final, NamedTuple

from cas_checkpoint.chunking import DATA_CHUNKER, METADATA_CHUNKER, ChunkerParameters
from cas_checkpoint.errors import DamagedObject, UnsupportedStore
from cas_checkpoint.ids import RANDOM_ID_SIZE, Buffer, StoreId
from cas_checkpoint.records import Fields, Kind, decode_record, encode_record

__all__ = [
    "FEATURES",
    "HEADER_KEY",
    "KNOWN_FEATURES",
    "MAX_HEADER_SIZE",
    "OPERATIONS",
    "PARTS",
    "Header",
    "check_features",
]

HEADER_KEY: Final = "cas-checkpoint"
MAX_HEADER_SIZE = 2**16

OPERATIONS = ("read", "write", "collect")
TENSORS = "tensors-3"
FEATURES = ("moves", TENSORS)
"""What every new store demands for all operations."""
PARTS = "parts"
"""What a new store demands of collectors besides: part manifests count. No save in parts without it."""
_DEMANDS = tuple((operation, (*FEATURES, PARTS) if operation == "collect" else FEATURES) for operation in OPERATIONS)
KNOWN_FEATURES: dict[str, frozenset[str]] = {operation: frozenset(names) for operation, names in _DEMANDS}
"""For each operation the features that this version understands."""
_RETIRED = frozenset({"tensors", "tensors-2"})
"""What versions before the first release demanded, and nobody understands any more."""


class Header(NamedTuple):
    """What every user of a store must know.

    Attributes:
        store: the store's random id.
        chunker: how the content of files is cut.
        metadata_chunker: how entry streams and id lists are cut.
        put_if_absent: whether the backend passed the self-test of put-if-absent when the store was created.
        features: for each operation (read, write, collect) the features that a program must know to do it.
    """

    store: StoreId
    chunker: ChunkerParameters = DATA_CHUNKER
    metadata_chunker: ChunkerParameters = METADATA_CHUNKER
    put_if_absent: bool = True
    features: tuple[tuple[str, tuple[str, ...]], ...] = _DEMANDS

    @property
    def knows_tensors(self) -> bool:
        """Whether all readers of the store know planes and deltas."""
        return all(TENSORS in dict(self.features).get(operation, ()) for operation in OPERATIONS)

    def encode(self) -> bytes:
        """Return the header object."""
        return encode_record(
            Kind.HEADER,
            {
                "store": self.store,
                "chunk_id": "blake3-256",
                "chunker": self.chunker._asdict(),
                "metadata_chunker": self.metadata_chunker._asdict(),
                "capabilities": {"put_if_absent": self.put_if_absent},
                "features": {operation: list(names) for operation, names in self.features},
                "key_slots": [],
            },
            limit=MAX_HEADER_SIZE,
        )

    @classmethod
    def decode(cls, data: Buffer) -> Header:
        """Read a header object.

        Raises:
            DamagedObject: it is none, or was altered.
            UnsupportedStore: the store needs something that this version does not have at all.
        """
        fields = decode_record(Kind.HEADER, data, limit=MAX_HEADER_SIZE)
        chunk_id = fields.text("chunk_id")
        if chunk_id != "blake3-256" or fields.array("key_slots"):
            raise UnsupportedStore(
                "the store is encrypted or names its chunks in a way that this version does not know; update it"
            )
        features = Fields(fields.map("features"))
        return cls(
            StoreId(fields.bytes("store", RANDOM_ID_SIZE)),
            _chunker(Fields(fields.get("chunker"))),
            _chunker(Fields(fields.get("metadata_chunker"))),
            Fields(fields.map("capabilities")).get("put_if_absent") is True,
            tuple((operation, features.texts(operation)) for operation in OPERATIONS),
        )


def _chunker(fields: Fields) -> ChunkerParameters:
    parameters = ChunkerParameters(
        fields.text("algorithm", limit=64),
        fields.integer("min_size", low=64, high=2**20),
        fields.integer("normal_size", low=256, high=2**22),
        fields.integer("max_size", low=1024, high=2**24),
        fields.integer("normalization", high=3),
        fields.integer("seed"),
    )
    if not parameters.min_size <= parameters.normal_size <= parameters.max_size:
        raise DamagedObject(f"impossible chunker parameters {tuple(parameters)}")
    return parameters


def check_features(header: Header, operation: str) -> None:
    """Raise `UnsupportedStore` unless this version knows all that the store demands for the operation."""
    for name, demanded in header.features:
        unknown = sorted(set(demanded) - KNOWN_FEATURES[operation]) if name == operation else []
        if retired := sorted(_RETIRED.intersection(unknown)):
            raise UnsupportedStore(
                f"the store has the feature {', '.join(retired)} of a version before the first release, which can no "
                f"longer {operation} it: restore its snapshots with that version, and save them into a new store"
            )
        if unknown:
            raise UnsupportedStore(
                f"to {operation} this store a program must know {', '.join(unknown)}, which this version does not; "
                "update it"
            )
