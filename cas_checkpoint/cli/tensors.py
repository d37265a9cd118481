"""`cas-checkpoint tensors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import path_fields, tensor_document
from cas_checkpoint.cli.output import Column, Terminal
from cas_checkpoint.cli.text import counted, shape_text, size_text
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from cas_checkpoint import TensorInfo

__all__ = ["tensors_command"]

_COLUMNS = [Column("tensor"), Column("type"), Column("shape"), Column("size", right=True)]


@click.command("tensors", cls=Verb, short_help="List the tensors in a file of a snapshot.")
@click.argument("ref")
@click.argument("path")
@verb
def tensors_command(terminal: Terminal, url: str, ref: str, path: str) -> None:
    """List the tensors in the file PATH of the snapshot REF: name, type, shape, size. Their values are not read.

    The file may be one of safetensors, torch.save, numpy (npy, npz), GGUF or HDF5; PATH may also be a directory that
    torch.distributed.checkpoint wrote, a dot for the saved one itself.
    """
    snapshot = cas_checkpoint.Store.open(url).snapshot(ref)
    tensors = snapshot.tensors(path)
    if terminal.json:
        fields = {"snapshot": snapshot.id, **path_fields("path", path)}
        terminal.document(fields | {"tensors": [tensor_document(tensor) for tensor in tensors]})
        return
    terminal.table(_COLUMNS, [_row(tensor) for tensor in tensors])
    total = sum(tensor.size for tensor in tensors)
    terminal.message(f"{counted(len(tensors), 'tensor')}, {size_text(total)}")


def _row(tensor: TensorInfo) -> list[str]:
    return [tensor.name, tensor.dtype, shape_text(tensor.shape), size_text(tensor.size)]
