"""Reading all chunks of a pack, or a sample of them, to see whether they are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.codecs import Decoder
from cas_checkpoint.copying import check_blob, read_blobs
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, ObjectNotFound, UnsupportedStore
from cas_checkpoint.ids import ChunkId, digest
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.packs import Footer
from cas_checkpoint.rows import id_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sample"]

_TELL_EVERY = 2**20  # bytes read


class Sample(NamedTuple):
    """Which chunks are read: those whose ids lie in one stretch of all ids, which is as long as the share.

    Attributes:
        share: of all chunks, above 0 and at most 1.
        seed: says where the stretch begins.
    """

    share: float
    seed: int

    def rows(self, footer: Footer) -> NDArray[np.int64]:
        """Return the numbers of the rows of a pack that are read."""
        if self.share >= 1:
            return np.arange(len(footer.ids))
        start = np.uint64(int.from_bytes(digest((str(self.seed).encode(),))[:8], "little"))
        distances = id_words(footer.ids)[0] - start  # modulo 2 to the 64
        return np.flatnonzero(distances < np.uint64(int(self.share * 2**64)))

    def faults(
        self, backend: Backend, footer: Footer, tell: Callable[[int], None]
    ) -> list[tuple[ChunkId, CasCheckpointError]] | None:
        """Read these rows of a pack; return the chunks that are not right, None if the pack is gone.

        Args:
            backend: the store's backend.
            footer: the pack's footer.
            tell: told of bytes read.
        """
        rows = self.rows(footer).tolist()
        decoder = Decoder()
        faults: list[tuple[ChunkId, CasCheckpointError]] = []
        untold = 0
        checked: set[int] = set()
        try:
            for row, blob in read_blobs(backend, footer, rows):
                checked.add(row)
                try:
                    if isinstance(blob, DamagedObject):
                        raise blob
                    check_blob(decoder, footer, row, blob)
                except (DamagedObject, UnsupportedStore) as error:
                    faults.append((ChunkId(bytes(footer.ids[row])), error))
                untold += int(footer.stored_sizes[row])
                if untold >= _TELL_EVERY:
                    tell(untold)
                    untold = 0
        except ObjectNotFound:
            return None
        except CasCheckpointError as error:
            faults += [(ChunkId(bytes(footer.ids[row])), error) for row in rows if row not in checked]
        tell(untold)
        return faults
