#!/usr/bin/env python3
"""Prints the branch coverage that the last run of the tests left, and fails where the house asks for more."""

from __future__ import annotations

import io
import sys

from coverage import Coverage

COMPLETE = [
    "ids",
    "chunking",
    "codecs",
    "kernels",
    "planes",
    "elements",
    "dtypes",
    "records",
    "packs",
    "index",
    "headers",
    "manifests",
    "commits",
    "marks",
    "moves",
    "transactions",
    "roots",
    "needs",
    "forgetting",
    "pointers",
    "overlays",
    "tensors/*",
]
"""Modules of the format, and steps of the protocols: every branch is tested."""
FULL = 100
REST = 90
"""The least percentage over everything."""


def main() -> int:
    """Print what is missing; return the exit code."""
    coverage = Coverage()
    coverage.load()
    out = io.StringIO()
    total = coverage.report(file=out, show_missing=True, skip_covered=True)
    print(out.getvalue())
    poor = []
    for name in COMPLETE:
        percent = coverage.report(include=[f"*/cas_checkpoint/{name}.py"], file=io.StringIO())
        if percent < FULL:
            poor.append(f"{name}: {percent:.1f} % of {FULL} %")
    if total < REST:
        poor.append(f"everything: {total:.1f} % of {REST} %")
    for line in poor:
        print(f"too little tested: {line}", file=sys.stderr)
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main())
