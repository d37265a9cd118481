"""Copying chunks from packs into new packs, as they are stored: for collection and repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from cas_checkpoint.backends import Backend
from cas_checkpoint.codecs import Codec, Decoder, blob_check
from cas_checkpoint.commits import pack_key
from cas_checkpoint.errors import DamagedObject, UnsupportedStore
from cas_checkpoint.ids import Buffer, ChunkId, PackId, chunk_id
from cas_checkpoint.packing import MAX_PACK_CHUNKS, PACK_SIZE
from cas_checkpoint.packs import Footer, PackBuilder
from cas_checkpoint.reading import MAX_REQUEST
from cas_checkpoint.transactions import random_id

__all__ = ["Copied", "PackCopier", "check_blob", "read_blobs"]

_MAX_GAP = 2**18


class Copied(NamedTuple):
    """What became of the chunks of a pack.

    Attributes:
        targets: the new packs that hold them.
        damaged: the rows that could not be copied, and what is wrong with each.
    """

    targets: frozenset[PackId]
    damaged: dict[int, str]


class PackCopier:
    """Copies chunks of one pack after another. Holds about one pack in memory."""

    def __init__(self, backend: Backend, *, new_pack: Callable[[], PackId] = lambda: PackId(random_id())) -> None:
        """Begin.

        Args:
            backend: the store's backend.
            new_pack: makes the random id of a pack.
        """
        self._backend, self._new_pack = backend, new_pack
        self._decoder = Decoder()
        self._builder: PackBuilder | None = None
        self._homes: dict[tuple[ChunkId, ChunkId | None], PackId] = {}  # by the chunk, and what it is a delta of
        self._footers: list[Footer] = []

    def copy(self, footer: Footer, rows: Sequence[int]) -> Copied:
        """Copy the chunks in these rows of a pack; every one is checked. They are stored when `finish` returns.

        A delta is copied as one; that its bytes are those that were stored must do, as for a chunk of a codec that only
        a newer version knows. A chunk that was copied before, whole or as a delta of the same, is not copied again.

        Raises:
            ObjectNotFound: the pack is gone.
            StorageError: it cannot be read.
        """
        targets: set[PackId] = set()
        damaged: dict[int, str] = {}
        bases = footer.base_ids()
        for row, blob in read_blobs(self._backend, footer, rows):
            try:
                if isinstance(blob, DamagedObject):
                    raise blob
                with suppress(UnsupportedStore):
                    check_blob(self._decoder, footer, row, blob, is_delta=row in bases)
            except DamagedObject as error:
                damaged[row] = error.reason
                continue
            chunk = ChunkId(bytes(footer.ids[row]))
            base = bases.get(row)
            home = self._homes.get((chunk, None)) or self._homes.get((chunk, base))
            if home is None:
                home = self._homes[chunk, base] = self._append(footer, row, blob, base)
            targets.add(home)
        return Copied(frozenset(targets), damaged)

    def _append(self, footer: Footer, row: int, blob: memoryview, base: ChunkId | None) -> PackId:
        if self._builder is None:
            self._builder = PackBuilder(self._new_pack())
        builder = self._builder
        sizes = int(footer.plain_sizes[row]), int(footer.checks[row])
        builder.add(ChunkId(bytes(footer.ids[row])), blob[0], bytes(blob[1:]), *sizes, base=base)
        if builder.size >= PACK_SIZE or len(builder) >= MAX_PACK_CHUNKS:
            self._close_pack()
        return builder.pack

    def _close_pack(self) -> None:
        if self._builder is not None:
            footer, parts = self._builder.finish()
            self._builder = None
            self._backend.put(pack_key(footer.pack), parts)
            self._footers.append(footer)

    def finish(self) -> list[Footer]:
        """Write what is left; return the footers of all new packs."""
        self._close_pack()
        return self._footers


def read_blobs(
    backend: Backend, footer: Footer, rows: Sequence[int]
) -> Iterator[tuple[int, memoryview | DamagedObject]]:
    """Read the blobs in these rows of a pack, many in a request; yield each, or what tells that the pack ends before.

    Raises:
        ObjectNotFound: the pack is gone.
        StorageError: it cannot be read.
    """
    for run in _runs(footer, sorted(rows)):
        yield from _read_run(backend, footer, run)


def _read_run(backend: Backend, footer: Footer, run: Sequence[int]) -> Iterator[tuple[int, memoryview | DamagedObject]]:
    start = int(footer.offsets[run[0]])
    size = int(footer.offsets[run[-1]]) + int(footer.stored_sizes[run[-1]]) - start
    try:
        view = memoryview(backend.get_range(pack_key(footer.pack), start, size))
    except DamagedObject as error:  # it is cut short: what lies before the cut is to be had
        if len(run) == 1:
            yield run[0], error
            return
        for row in run:
            yield from _read_run(backend, footer, [row])
        return
    for row in run:
        offset = int(footer.offsets[row]) - start
        yield row, view[offset : offset + int(footer.stored_sizes[row])]


def check_blob(
    decoder: Decoder, footer: Footer, row: int, blob: memoryview, *, is_delta: bool = False, base: Buffer | None = None
) -> Buffer | None:
    """Check that a blob is the one that is listed in that row of its pack's footer; return the chunk.

    Args:
        decoder: decodes it.
        footer: the footer.
        row: the row.
        blob: the blob.
        is_delta: whether it is listed as a delta.
        base: what it is a delta of; without that only its bytes are checked, and None is returned.

    Raises:
        DamagedObject: it is not.
        UnsupportedStore: it is as it was stored, but with a codec that this version does not know.
    """
    is_stored = len(blob) > 0 and blob_check(blob[0], blob[1:]) == int(footer.checks[row])
    if is_delta and base is None and is_stored and blob[0] == Codec.DELTA:
        return None
    try:
        plain = decoder.decode(blob, int(footer.plain_sizes[row]), base)
    except UnsupportedStore:
        if is_stored:
            raise
        is_stored = False
    if not is_stored or chunk_id(plain) != bytes(footer.ids[row]):
        raise DamagedObject("its bytes are not those that were stored")
    return plain


def _runs(footer: Footer, rows: Sequence[int]) -> Iterator[list[int]]:
    """Put together rows that are to be read in one request."""
    run: list[int] = []
    for row in rows:
        end = int(footer.offsets[row]) + int(footer.stored_sizes[row])
        if run:
            last = int(footer.offsets[run[-1]]) + int(footer.stored_sizes[run[-1]])
            if int(footer.offsets[row]) - last > _MAX_GAP or end - int(footer.offsets[run[0]]) > MAX_REQUEST:
                yield run
                run = []
        run.append(row)
    if run:
        yield run
