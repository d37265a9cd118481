"""Saves or restores a directory with flytekit's own class: flytekit_verbs.py save|restore STORE DIRECTORY."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Do it."""
    verb, store, directory = sys.argv[1:]
    checkpoint = import_module("flytekit").core.checkpointer.SyncCheckpoint
    if verb == "save":
        checkpoint(checkpoint_dest=store).save(directory)
    else:
        checkpoint(checkpoint_dest=store, checkpoint_src=store).restore(directory)


if __name__ == "__main__":
    main()
