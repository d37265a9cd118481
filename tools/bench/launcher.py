"""Runs one command and writes what it used, as JSON: python -I -S launcher.py REPORT PROGRAM ARGUMENT...

A process of its own, and a small one: a child's peak memory is never told as less than that of the process which
started it. CPU time and peak memory are those of the command and of all descendants that were waited for; the peak is
that of the largest process, not their sum.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Do it."""
    report, *command = sys.argv[1:]
    began = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    with open(report, "w", encoding="utf-8") as file:
        json.dump(
            {
                "wall": wall,
                "user": used.ru_utime,
                "system": used.ru_stime,
                "peak": used.ru_maxrss * unit,
                "exit_code": os.waitstatus_to_exitcode(status),
            },
            file,
        )


if __name__ == "__main__":
    main()
