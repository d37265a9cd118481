"""The command: see `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corpora.catalogue import CORPORA
from corpora.corpus import Unavailable, write


def main() -> int:
    """Make one corpus; return the exit code: 2 if it cannot be made here."""
    names = "\n".join(f"  {name:<14} {corpus.title}" for name, corpus in CORPORA.items())
    parser = argparse.ArgumentParser(
        prog="tools/corpora/make",
        description="Writes the checkpoints of a training run: DIRECTORY/000, 001, ...; the same bytes each time.",
        epilog=f"names:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=CORPORA, metavar="NAME")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--checkpoints", type=int, default=10, metavar="N", help="how many (10)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiply sizes (1)")
    options = parser.parse_args()
    try:
        write(CORPORA[options.name], options.directory, checkpoints=options.checkpoints, scale=options.scale)
    except Unavailable as reason:
        print(f"{options.name} cannot be made: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
