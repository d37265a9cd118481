"""Which files of a snapshot are in doubt, given what is intact of its packs. Reads entries, not the data of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cas_checkpoint.errors import CasCheckpointError, DamagedStore
from cas_checkpoint.ids import ChunkId
from cas_checkpoint.index import ChunkIndex, Locations, ids_array
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import ChunkRef, Entry, EntryType
from cas_checkpoint.reading import SnapshotReader

__all__ = ["Doubt", "doubts"]

_CHUNKS_AT_ONCE = 2**14

_Files = list[tuple[str, list[ChunkRef]]]


class Doubt(NamedTuple):
    """A file that cannot be restored from the snapshot's own packs.

    Attributes:
        path: its path; empty for the list of entries itself.
        chunks: those of its chunks that are perhaps not to be had from any of the packs: because they are not intact
            there, or because what they are deltas of is not.
        fault: what is wrong with it besides; if there is anything, no chunk can help.
    """

    path: str
    chunks: frozenset[ChunkId]
    fault: str = ""


def doubts(reader: SnapshotReader, index: ChunkIndex, bad: frozenset[ChunkId]) -> Iterator[Doubt]:
    """Yield what of a snapshot is in doubt; files that share a chunk are all told.

    Args:
        reader: of the snapshot.
        index: of its packs; an inline snapshot is read instead.
        bad: chunks of which a copy somewhere is not intact.

    Raises:
        DamagedStore: the list of entries cannot be read.
    """
    gathered: _Files = [("", list(reader.refs(reader.manifest().entries, lists=True)))]
    count = 0
    links: list[Entry] = []
    for entry in reader.entries():
        if entry.type is EntryType.HARDLINK:
            links.append(entry)
        if entry.content is None:
            continue
        try:
            refs = list(reader.refs(entry.content, lists=True))
        except DamagedStore as error:
            yield Doubt(entry.name, frozenset(), str(error))
            continue
        gathered.append((entry.name, refs))
        count += len(refs)
        if count >= _CHUNKS_AT_ONCE:
            yield from _doubtful(reader, index, bad, gathered)
            gathered, count = [], 0
    yield from _doubtful(reader, index, bad, gathered)
    yield from _loose(reader, links)


def _doubtful(reader: SnapshotReader, index: ChunkIndex, bad: frozenset[ChunkId], files: _Files) -> Iterator[Doubt]:
    """Yield those of the files that are in doubt."""
    if reader.inline_size() is not None:
        yield from _unreadable(reader, files)
        return
    refs = [ref for _, group in files for ref in group]
    found = index.locate(ids_array(b"".join(ref.chunk for ref in refs)))
    fits = found.plain_sizes == np.fromiter((ref.size for ref in refs), np.uint32, len(refs))
    baseless = _baseless(index, found, bad)
    if not bad and not baseless and bool((found.found & fits).all()):
        return
    rows = list(zip(refs, found.found.tolist(), fits.tolist(), strict=True))
    missing = {ref.chunk for ref, is_found, _ in rows if not is_found or ref.chunk in bad}
    missing.update(refs[number].chunk for number in baseless)
    contradicted = {ref for ref, is_found, is_fitting in rows if is_found and not is_fitting}
    for path, group in files:
        wrong = next((ref for ref in group if ref in contradicted), None)
        if wrong is not None:
            yield Doubt(path, frozenset(), f"the chunk {wrong.chunk.hex()} is listed with two sizes")
        elif wanted := missing.intersection([ref.chunk for ref in group]):
            yield Doubt(path, frozenset(wanted))


def _baseless(index: ChunkIndex, found: Locations, bad: frozenset[ChunkId]) -> list[int]:
    """Return the numbers of those of the located chunks that are deltas of others which are perhaps not to be had."""
    numbers, bases = index.bases(found)
    is_whole = index.locate(bases, whole=True).found.tolist()
    pairs = zip(numbers.tolist(), bases, is_whole, strict=True)
    return [number for number, base, is_there in pairs if not is_there or ChunkId(bytes(base)) in bad]


def _unreadable(reader: SnapshotReader, files: _Files) -> Iterator[Doubt]:
    """Yield those of the files whose chunks are not to be had."""
    for path, refs in files:
        try:
            for request in reader.plan(refs):
                for _ in reader.fetch(request):
                    pass
        except CasCheckpointError as error:
            yield Doubt(path, frozenset(), str(error))


def _loose(reader: SnapshotReader, links: Sequence[Entry]) -> Iterator[Doubt]:
    """Yield those of the hard links that are linked to no file of the snapshot."""
    targets = {link.target for link in links}
    if not targets:
        return
    files = {entry.path for entry in reader.entries() if entry.type is EntryType.FILE and entry.path in targets}
    for link in links:
        if link.target not in files:
            yield Doubt(link.name, frozenset(), "is linked to a file that the snapshot does not hold")
