"""Bytes → spans: where a stream is cut into chunks (SPEC.md, "Cutting"). The only importer of `pyfastcdc`.

The cuts of a stream depend on its bytes alone, never on how it was read: `Cutter.cuts` may be fed any
pieces, as long as what it did not cut yet is put in front of the next one.
"""

from __future__ import annotations

from typing import NamedTuple

from pyfastcdc import FastCDC

from cas_checkpoint.errors import InvalidArgument, UnsupportedStore
from cas_checkpoint.ids import Buffer

__all__ = ["DATA_CHUNKER", "METADATA_CHUNKER", "ChunkerParameters", "Cutter"]

_ALGORITHM = "fastcdc-2020"


class ChunkerParameters(NamedTuple):
    """How streams are cut. Sizes are bytes.

    Attributes:
        algorithm: always "fastcdc-2020".
        min_size: no chunk but a stream's last is shorter.
        normal_size: where the stricter mask gives way to the looser one; the mean is near this plus `min_size`.
        max_size: no chunk is longer.
        normalization: the level of normalized chunking, 0 to 3.
        seed: 63 bits xor-ed into the gear table; 0 in a store that is not encrypted.
    """

    algorithm: str
    min_size: int
    normal_size: int
    max_size: int
    normalization: int
    seed: int


DATA_CHUNKER = ChunkerParameters(_ALGORITHM, 64 * 2**10, 256 * 2**10, 2**20, 1, 0)
"""The default for the content of files."""
METADATA_CHUNKER = ChunkerParameters(_ALGORITHM, 4 * 2**10, 16 * 2**10, 64 * 2**10, 1, 0)
"""The default for entry streams and for the id lists of large files."""


class Cutter:
    """Cuts streams by content. Belongs to one thread at a time.

    Source: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
    Systems", IEEE TPDS 31(9), 2020.
    """

    def __init__(self, parameters: ChunkerParameters) -> None:
        """Make a cutter; parameters out of range are `InvalidArgument`, an unknown algorithm `UnsupportedStore`."""
        if parameters.algorithm != _ALGORITHM:
            raise UnsupportedStore(f"the store cuts chunks by {parameters.algorithm!r}, unknown here; update")
        try:
            self._cdc = FastCDC(
                parameters.normal_size,
                min_size=parameters.min_size,
                max_size=parameters.max_size,
                normalized_chunking=parameters.normalization,  # type: ignore[arg-type]
                seed=parameters.seed,
            )
        except (ValueError, OverflowError) as error:
            raise InvalidArgument(f"unusable chunker parameters {parameters}: {error}") from error
        self.parameters = parameters

    def first(self, data: Buffer) -> int | None:
        """Return where the first chunk of `data` ends; None if that depends on bytes still to come."""
        chunk = next(iter(self._cdc.cut_buf(data)))
        end = chunk.offset + chunk.length
        return end if end < len(data) else None

    def cuts(self, data: Buffer, *, final: bool) -> list[int]:
        """Return the end offsets of the chunks of `data`, in order.

        If `data` is not the end of its stream (`final` is false), the last span is left out: where it ends
        depends on bytes still to come. If then nothing is left, `data` was no longer than `max_size`.
        """
        ends = [chunk.offset + chunk.length for chunk in self._cdc.cut_buf(data)]
        return ends if final else ends[:-1]
