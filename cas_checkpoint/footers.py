"""Reading footers: from the packs themselves, or from the copies in index objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cas_checkpoint.backends import Backend
from cas_checkpoint.commits import index_key, pack_key
from cas_checkpoint.errors import DamagedObject
from cas_checkpoint.ids import PackId, TransactionId
from cas_checkpoint.index import IndexDirectory, Section, parse_directory
from cas_checkpoint.packs import MAX_PACK_SIZE, PACK_TAIL_SIZE, Footer, footer_size, parse_footer, read_tail

__all__ = ["all_index_footers", "read_footer", "read_index_directory", "read_index_footers"]

_FIRST_READ = 64 * 2**10  # enough for most packs' footers and most index directories in one request
_AT_ONCE = 8 * 2**20  # bytes of sections


def read_footer(backend: Backend, pack: PackId) -> Footer:
    """Read a pack's footer from the pack itself.

    Raises:
        ObjectNotFound: there is no such pack.
        DamagedObject: it is truncated, altered, or another one.
    """
    key = pack_key(pack)
    size = backend.size(key)
    try:
        if not footer_size(0) + PACK_TAIL_SIZE < size <= MAX_PACK_SIZE:
            raise DamagedObject(f"a pack cannot have {size} bytes")
        start = max(0, size - _FIRST_READ)
        tail = memoryview(backend.get_range(key, start, size - start))
        length = read_tail(tail[-PACK_TAIL_SIZE:], pack_size=size)
        if length + PACK_TAIL_SIZE > len(tail):
            tail = memoryview(backend.get_range(key, size - length - PACK_TAIL_SIZE, length + PACK_TAIL_SIZE))
        footer = parse_footer(tail[-length - PACK_TAIL_SIZE : -PACK_TAIL_SIZE], pack=pack)
        if footer.pack_size != size:
            raise DamagedObject(f"has {size} bytes instead of {footer.pack_size}")
    except DamagedObject as error:
        raise DamagedObject(error.reason, key=key) from error
    return footer


def _read_directory(backend: Backend, name: TransactionId) -> tuple[IndexDirectory, bytes]:
    """Read an index object's directory; also return the first bytes of the object, as many as were read."""
    key = index_key(name)
    size = backend.size(key)
    data = backend.get_range(key, 0, min(size, _FIRST_READ))
    try:
        directory = parse_directory(data, name=name, object_size=size)
        if isinstance(directory, int):
            data = backend.get_range(key, 0, directory)
            directory = parse_directory(data, name=name, object_size=size)
    except DamagedObject as error:
        raise DamagedObject(error.reason, key=key) from error
    if isinstance(directory, int):
        raise DamagedObject("changed while it was read", key=key)
    return directory, data


def read_index_directory(backend: Backend, name: TransactionId) -> IndexDirectory:
    """Read what packs an index object lists, and as of when."""
    return _read_directory(backend, name)[0]


def read_index_footers(backend: Backend, name: TransactionId, wanted: frozenset[PackId] | None = None) -> list[Footer]:
    """Read from an index object the footers of the wanted packs, of all if `wanted` is None."""
    directory, data = _read_directory(backend, name)
    sections = [section for section in directory.sections if wanted is None or section.pack in wanted]
    return _read_sections(backend, name, sections, data) if sections else []


def all_index_footers(backend: Backend, name: TransactionId) -> Iterator[Footer]:
    """Yield all footers of an index object; however many they are, a few megabytes of it are held at once."""
    directory, data = _read_directory(backend, name)
    part: list[Section] = []
    for section in directory.sections:
        if part and section.offset + section.size - part[0].offset > _AT_ONCE:
            yield from _read_sections(backend, name, part, data)
            part = []
        part.append(section)
    if part:
        yield from _read_sections(backend, name, part, data)


def _read_sections(backend: Backend, name: TransactionId, sections: Sequence[Section], data: bytes) -> list[Footer]:
    """Read some sections, of which there is at least one; `data` are the first bytes of the object."""
    start, end = sections[0].offset, sections[-1].offset + sections[-1].size
    if end <= len(data):
        body = memoryview(data)[start:end]
    else:
        body = memoryview(backend.get_range(index_key(name), start, end - start))
    try:
        return [parse_footer(body[section.offset - start :][: section.size], pack=section.pack) for section in sections]
    except DamagedObject as error:
        raise DamagedObject(error.reason, key=index_key(name)) from error
