"""The index objects of a store as a whole: listing them, merging small ones, finding packs in what was merged.

Every save leaves an index object, and every saver and some readers look through them; so many small ones are made few.
An index object is a cache: each may vanish at any time, a pack may stand in several, and a merge that stops anywhere
leaves nothing worse than that. Sizes grow at least twofold from merge to merge, so that a footer is copied a few times,
not once for every save: after any number of saves there are some 50 small objects, the others are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import index_key
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, ObjectNotFound, UnsupportedStore
from cas_checkpoint.footers import read_index_directory, read_index_footers
from cas_checkpoint.ids import PackId, TransactionId, is_hex_id
from cas_checkpoint.index import encode_index, parse_index
from cas_checkpoint.packs import Footer
from cas_checkpoint.transactions import list_marks, list_packs, random_id

__all__ = [
    "PASSED_OVER",
    "indexed_footers",
    "list_indexes",
    "merge_indexes",
    "put_index",
    "refresh_indexes",
    "worth_merging",
]

PASSED_OVER = (ObjectNotFound, DamagedObject, UnsupportedStore)
"""What may be wrong with an index object without anything being wrong with the store."""

_PREFIX = "index/"
_MERGE_ABOVE = 32  # so many small ones are left alone
_MAX_PARTS = 256  # merged at once; of more, the rest is left for the next save
_MAX_MERGED_SIZE = 32 * 2**20  # a merge holds about three times as much in memory
_MAX_MERGED_PACKS = 2**14
_REQUESTS = 8  # at once
_FEW = 3  # homes or packs that are simply tried, without a listing
_SEARCH_REQUESTS = 3  # to look into an index object: size, directory, sections
_FOOTER_REQUESTS = 2  # to read a footer from its pack: size, end


def list_indexes(backend: Backend) -> dict[TransactionId, int]:
    """Return the names of the store's index objects and their sizes in bytes."""
    names = ((info.key.removeprefix(_PREFIX), info.size) for info in backend.list(_PREFIX))
    return {TransactionId(bytes.fromhex(name)): size for name, size in names if is_hex_id(name)}


def put_index(backend: Backend, base: int, footers: Sequence[Footer]) -> tuple[TransactionId, int]:
    """Write an index object of these footers, dated by `base`; return its random name, and its size in bytes."""
    name = TransactionId(random_id())
    data = encode_index(name, base, footers)
    backend.put(index_key(name), [data])
    return name, len(data)


# --- merging ------------------------------------------------------------------------------------


def worth_merging(listed: Mapping[TransactionId, int]) -> list[TransactionId]:
    """Return the index objects that should be merged, smallest first; none, if there are few small ones.

    None of them is larger than all before it together: so what comes out is at least twice as large as any part.
    """
    parts: list[TransactionId] = []
    total = count = 0
    for name in sorted(listed, key=lambda name: (listed[name], name))[:_MAX_PARTS]:
        size = listed[name]
        if total + size > _MAX_MERGED_SIZE:
            break
        parts.append(name)
        if size <= total:
            count = len(parts)
        total += size
    return parts[:count] if count > _MERGE_ABOVE else []


def merge_indexes(backend: Backend) -> TransactionId | None:
    """Merge small index objects into one if there are many; return its name, None if nothing was merged.

    To be called after a commit. Whatever goes wrong is passed over: all of it is left to the next save.
    """
    try:
        listed = list_indexes(backend)
        chosen = worth_merging(listed)
        return _merge(backend, {name: listed[name] for name in chosen}) if chosen else None
    except (CasCheckpointError, OSError, MemoryError, RuntimeError):  # the last: no thread can be started
        return None


def _merge(backend: Backend, sizes: Mapping[TransactionId, int]) -> TransactionId | None:
    parts: list[TransactionId] = []
    base = list_marks(backend).base  # read before anything else; then the lowest of this and of the parts' own
    footers: dict[PackId, Footer] = {}
    with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-merge") as pool:
        for name, date, new in _read_all(pool, backend, sizes):
            if len(footers) + len(new) > _MAX_MERGED_PACKS:
                break
            parts.append(name)
            base = min(base, date)
            footers.update((footer.pack, footer) for footer in new if footer.pack not in footers)
        if len(parts) <= 1:
            return None
        merged, _ = put_index(backend, base, list(footers.values()))
        for _ in pool.map(backend.delete, map(index_key, parts)):  # only now: nothing is ever missing
            pass
    return merged


def refresh_indexes(backend: Backend) -> tuple[int, int]:
    """Rewrite index objects that list packs which are gone, or are older than the latest mark.

    What is left of them is known to exist as of now: who uses it need not ask whether it was collected since.

    Returns:
        The bytes of the objects that were deleted, and of those that were written.
    """
    base = list_marks(backend).base  # read before the packs are listed
    existing = list_packs(backend)
    listed = list_indexes(backend)
    stale = [name for name in listed if _is_stale(backend, name, base, existing)]
    deleted = written = 0
    while stale:
        group: dict[TransactionId, int] = {}
        while stale and (not group or sum(group.values()) + listed[stale[-1]] <= _MAX_MERGED_SIZE):
            name = stale.pop()
            group[name] = listed[name]
        with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-merge") as pool:
            parts = list(_read_all(pool, backend, group))
            footers = {footer.pack: footer for *_, found in parts for footer in found if footer.pack in existing}
            if footers:
                written += put_index(backend, base, list(footers.values()))[1]
            for name, *_ in parts:
                backend.delete(index_key(name))
                deleted += group[name]
    return deleted, written


def _is_stale(backend: Backend, name: TransactionId, base: int, existing: frozenset[PackId]) -> bool:
    try:
        directory = read_index_directory(backend, name)
    except PASSED_OVER:
        return False
    return directory.base < base or any(section.pack not in existing for section in directory.sections)


def _read_all(
    pool: ThreadPoolExecutor, backend: Backend, sizes: Mapping[TransactionId, int]
) -> Iterator[tuple[TransactionId, int, list[Footer]]]:
    """Yield those of the index objects that are there and whole, with their bases and footers."""

    def read(name: TransactionId) -> tuple[int, list[Footer]] | None:
        try:
            return parse_index(backend.get(index_key(name), max_size=sizes[name]), name=name)
        except PASSED_OVER:
            return None

    for name, found in zip(sizes, pool.map(read, sizes), strict=True):
        if found is not None:
            yield name, *found


# --- what was merged ----------------------------------------------------------------------------


def indexed_footers(backend: Backend, wanted: Mapping[TransactionId, frozenset[PackId]]) -> Iterator[Footer]:
    """Yield the footers of packs that index objects tell; what is not told must be read from the packs themselves.

    Packs whose home is gone are looked for where they may have been merged, as long as that takes no more requests
    than to read them.

    Args:
        backend: the store's backend.
        wanted: the packs, by their homes.
    """
    listed = list_indexes(backend) if len(wanted) > _FEW else None
    missing = {pack for packs in wanted.values() for pack in packs}
    for name, packs in wanted.items():
        if listed is None or name in listed:
            yield from _found(backend, name, missing, packs)
    if len(missing) > _FEW:
        listed = list_indexes(backend) if listed is None else listed
        others = sorted(listed.keys() - wanted.keys(), key=lambda name: (-listed[name], name))
        for tried, name in enumerate(others):
            if tried * _SEARCH_REQUESTS >= len(missing) * _FOOTER_REQUESTS:
                break
            yield from _found(backend, name, missing, frozenset(missing))


def _found(backend: Backend, name: TransactionId, missing: set[PackId], wanted: frozenset[PackId]) -> Iterator[Footer]:
    """Yield what an index object tells of packs that are missing, which then are not any more."""
    try:
        footers = read_index_footers(backend, name, wanted)
    except PASSED_OVER:
        return
    for footer in footers:
        if footer.pack in missing:
            missing.remove(footer.pack)
            yield footer
