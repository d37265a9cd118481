"""Reading all chunks of a pack, or a sample of them, to see whether they are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.bases import Fault, KnownBases
from cas_checkpoint.codecs import Decoder
from cas_checkpoint.copying import check_blob, read_blobs
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, ObjectNotFound, UnsupportedStore
from cas_checkpoint.fetching import MAX_DELTAS
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
        self, backend: Backend, footer: Footer, bases: KnownBases, tell: Callable[[int], None]
    ) -> list[Fault] | None:
        """Read these rows of a pack; return the chunks that are not right, None if the pack is gone.

        A delta whose base is to be had nowhere is right if its bytes are those that were stored: perhaps nobody needs
        it. Bases that are not right are told as well.

        Args:
            backend: the store's backend.
            footer: the pack's footer.
            bases: reads what chunks are deltas of.
            tell: told of bytes read, but for those of bases.
        """
        rows = self.rows(footer).tolist()
        deltas = footer.base_ids()
        decoder = Decoder()
        faults: list[Fault] = []
        untold = 0
        checked: set[int] = set()
        try:
            for part in _parts(footer, rows, deltas):
                plain, damaged = bases.read({deltas[row] for row in part if row in deltas})
                faults += damaged
                for row, blob in read_blobs(backend, footer, part):
                    checked.add(row)
                    base = plain.get(deltas[row]) if row in deltas else None
                    try:
                        if isinstance(blob, DamagedObject):
                            raise blob
                        check_blob(decoder, footer, row, blob, is_delta=row in deltas, base=base)
                    except (DamagedObject, UnsupportedStore) as error:
                        faults.append(Fault(footer.pack, ChunkId(bytes(footer.ids[row])), error))
                    untold += int(footer.stored_sizes[row])
                    if untold >= _TELL_EVERY:
                        tell(untold)
                        untold = 0
        except ObjectNotFound:
            return None
        except CasCheckpointError as error:
            left = (row for row in rows if row not in checked)
            faults += [Fault(footer.pack, ChunkId(bytes(footer.ids[row])), error) for row in left]
        tell(untold)
        return faults


def _parts(footer: Footer, rows: Sequence[int], deltas: Mapping[int, ChunkId]) -> Iterator[Sequence[int]]:
    """Divide rows so that of each part the bases can be held."""
    if not deltas:
        yield rows
        return
    part: list[int] = []
    size = 0
    for row in rows:
        added = int(footer.plain_sizes[row]) if row in deltas else 0
        if part and size + added > MAX_DELTAS:
            yield part
            part, size = [], 0
        part.append(row)
        size += added
    yield part
