"""Where the tensors of torch.distributed.checkpoint lie: the pieces in a `.distcp` file, and whose pieces they are.

A `.distcp` file is one archive of `torch.save` after another, mostly of one tensor each. What they are called is said
by the `.metadata` file beside it, a pickle, which is read as symbols.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cas_checkpoint.tensors.found import Found, Unreadable, to_shape
from cas_checkpoint.tensors.layout import Layout, ReadAt
from cas_checkpoint.tensors.pickles import Made, Value, interpret
from cas_checkpoint.tensors.torchfiles import add_tensors, pickle_size, to_lengths
from cas_checkpoint.tensors.zips import Archive, read_archive

__all__ = ["Piece", "find_in_archives", "read_metadata"]

_MAX_ARCHIVES: Final = 2**14
_MAX_PICKLE_SIZE: Final = 2**16  # bytes of what names one tensor; a larger pickle is that of something else
_MAX_PICKLES_SIZE: Final = 2**23
_METADATA: Final = "torch.distributed.checkpoint.metadata."


class Piece(NamedTuple):
    """A piece of a tensor in a checkpoint of many files.

    Attributes:
        name: the fully qualified name of the tensor.
        offsets: where in the tensor the piece begins, for each axis.
        shape: the lengths of the piece's axes.
        file: the name of the file that it lies in, relative to the `.metadata` file.
        offset: where in that file its archive begins, bytes.
        size: bytes of that archive.
    """

    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int


def find_in_archives(read: ReadAt, size: int, last: Archive) -> Layout | None:
    """Return where the tensors of a `.distcp` file of `size` bytes lie; they are called "#0", "#1" and so on.

    Args:
        read: reads the file.
        size: its size in bytes.
        last: the last archive in it.

    Raises:
        Unreadable: it is no such file, or damaged.
    """
    archives = [last]
    while archives[-1].start:
        if len(archives) == _MAX_ARCHIVES:
            raise Unreadable
        archives.append(read_archive(read, archives[-1].start))
    found = Found("dcp", size)
    left = _MAX_PICKLES_SIZE
    for number, archive in enumerate(reversed(archives)):
        pickled = pickle_size(archive)
        if 0 < pickled <= _MAX_PICKLE_SIZE:
            left -= pickled
            if left < 0:
                raise Unreadable
            add_tensors(found, read, archive, root=f"#{number}")
    return found.layout()


def read_metadata(data: bytes) -> list[Piece] | None:
    """Return the pieces of all tensors of a checkpoint, from its `.metadata` file; None if that cannot be read."""
    try:
        return _pieces(interpret(data))
    except Unreadable:
        return None


def _pieces(root: Value) -> list[Piece]:
    if not isinstance(root, Made) or root.call != f"{_METADATA}Metadata":
        raise Unreadable
    metadata = _state(root)
    shapes = dict(_shapes(metadata.get("state_dict_metadata")))
    pieces = []
    for key, value in _items(metadata.get("storage_data")):
        index, where = _state(key), _state(value)
        match index.get("fqn"), index.get("offset"), where.get("relative_path"):
            case str(name), Made() as lengths, str(file):
                offsets = to_lengths(lengths)
                offset, size = to_shape((where.get("offset"), where.get("length")))
                shape = shapes.get((name, offsets))
                if shape is not None:
                    pieces.append(Piece(name, offsets, shape, file, offset, size))
            case _:  # not a tensor
                continue
    return pieces


def _shapes(tensors: Value) -> list[tuple[tuple[Value, tuple[int, ...]], tuple[int, ...]]]:
    """Return the shapes of all pieces, by the names of their tensors and the pieces' offsets."""
    shapes: list[tuple[tuple[Value, tuple[int, ...]], tuple[int, ...]]] = []
    for name, tensor in _items(tensors):
        chunks = _state(tensor).get("chunks")
        if isinstance(name, str) and isinstance(chunks, list):
            states = [_state(chunk) for chunk in chunks]
            shapes += [((name, to_lengths(state.get("offsets"))), to_lengths(state.get("sizes"))) for state in states]
    return shapes


def _items(value: Value) -> list[tuple[Value, Value]]:
    """Return keys and values of a dictionary; none of anything else."""
    return value.items or [] if isinstance(value, Made) else []


def _state(value: Value) -> dict[str, Value]:
    """Return the fields of an object; none of anything else."""
    return {key: part for key, part in _items(value.state) if isinstance(key, str)} if isinstance(value, Made) else {}
