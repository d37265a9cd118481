"""Calls the same thing many times in one process and prints how long a call took, as JSON.

    calls.py write bare|ours|flytekit DIRECTORY COUNT durable|fast
    calls.py read  bare|ours|flytekit DIRECTORY COUNT SIZE

Neither the start of Python and the imports count, nor the first call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

_WRITTEN = 1024


def bare_write(directory: str, *, durable: bool) -> Callable[[bytes], object]:
    """Return what anybody would do by hand: a temporary file that takes the place of the last one."""

    def sync(descriptor: int) -> None:
        if durable:
            os.fsync(descriptor)

    def write(data: bytes) -> None:
        temporary, final = os.path.join(directory, "tmp"), os.path.join(directory, "checkpoint")
        with open(temporary, "wb", buffering=0) as file:
            file.write(data)
            sync(file.fileno())
        os.rename(temporary, final)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)

    return write


def checkpoint_class(tool: str) -> Any:  # noqa: ANN401 -- of either package
    """Return the class that is called."""
    name = "cas_checkpoint" if tool == "ours" else "flytekit.core.checkpointer"
    return import_module(name).SyncCheckpoint


def writer(tool: str, directory: str, *, durable: bool) -> Callable[[bytes], object]:
    """Return the function that writes a checkpoint."""
    if tool == "bare":
        return bare_write(directory, durable=durable)
    options = {"durable": durable} if tool == "ours" else {}
    write: Callable[[bytes], object] = checkpoint_class(tool)(checkpoint_dest=directory, **options).write
    return write


def reader(tool: str, directory: str, data: bytes) -> Callable[[], bytes]:
    """Write a checkpoint, and return the function that reads it as a new process would."""
    writer(tool, directory, durable=True)(data)
    if tool == "bare":
        path = os.path.join(directory, "checkpoint")

        def read() -> bytes:
            with open(path, "rb", buffering=0) as file:
                return file.read()

        return read
    kind = checkpoint_class(tool)
    destination = directory + "-next"
    return lambda: kind(checkpoint_dest=destination, checkpoint_src=directory).read()


def main() -> None:
    """Do it."""
    verb, tool, directory, calls, option = sys.argv[1:]
    os.makedirs(directory)
    count = int(calls)
    if verb == "write":
        write = writer(tool, directory, durable=option == "durable")
        actions: list[Callable[[], object]] = [partial(write, os.urandom(_WRITTEN)) for _ in range(count + 1)]
    else:
        data = os.urandom(int(option))
        read = reader(tool, directory, data)
        if read() != data:
            raise SystemExit("what was read is not what was written")
        actions = [read] * (count + 1)
    actions[0]()
    wall, cpu = time.perf_counter(), time.process_time()
    for action in actions[1:]:
        action()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall / count, "cpu": cpu / count}))


if __name__ == "__main__":
    main()
