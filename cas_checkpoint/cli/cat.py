"""`cas-checkpoint cat`."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, BinaryIO

import click

import cas_checkpoint
from cas_checkpoint.cli.documents import path_fields
from cas_checkpoint.cli.output import Terminal
from cas_checkpoint.cli.verbs import Verb, verb

if TYPE_CHECKING:
    from cas_checkpoint import Snapshot

__all__ = ["cat_command"]

_PIECE = 3 * 2**18  # whole groups of base64


@click.command("cat", cls=Verb, short_help="Write a file of a snapshot to stdout.")
@click.argument("ref")
@click.argument("path")
@verb
def cat_command(terminal: Terminal, url: str, ref: str, path: str) -> None:
    """Write the bytes of the file PATH of the snapshot REF to stdout.

    With --json they are the field data_base64.
    """
    snapshot = cas_checkpoint.Store.open(url).snapshot(ref)
    with snapshot.open(path) as file:
        if terminal.json:
            _write_document(terminal, snapshot, path, file)
            return
        while piece := file.read(_PIECE):
            sys.stdout.buffer.write(piece)


def _write_document(terminal: Terminal, snapshot: Snapshot, path: str, file: BinaryIO) -> None:
    fields = {"snapshot": snapshot.id, **path_fields("path", path)}
    head = json.dumps(fields).removesuffix("}")
    with terminal.streamed_document(f'{head}, "data_base64": "', '"') as write:
        while piece := file.read(_PIECE):
            write(b64encode(piece).decode())
