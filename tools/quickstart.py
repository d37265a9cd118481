#!/usr/bin/env python3
"""Saves a real directory tree twice, restores both snapshots and compares every byte. Run it by `tools/quickstart`."""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cas_checkpoint import Snapshot, Store

WANTED_SIZE = 220 * 2**20
MOST_SIZE = 400 * 2**20
CONSOLE = Console(highlight=False)


def candidates() -> Iterator[Path]:
    """Yield directories of this machine that hold real files: Python itself, its packages, the system's libraries."""
    yield Path(sysconfig.get_paths()["stdlib"])
    yield Path(sysconfig.get_paths()["purelib"])
    yield from (Path(place) for place in ("/usr/lib", "/usr/share", "/usr/local", "/Library/Frameworks", "/opt"))


def copy_real_files(target: Path) -> int:
    """Copy real files to `target` until there are enough of them; return their size in bytes."""
    total = 0
    for number, source in enumerate(candidates()):
        for folder, _, names in os.walk(source):
            place = target / f"{number}-{source.name}" / os.path.relpath(folder, source)
            for name in names:
                total += copy_file(Path(folder, name), place / name)
            if total >= MOST_SIZE:
                return total
        if total >= WANTED_SIZE:
            break
    return total


def copy_file(source: Path, target: Path) -> int:
    """Copy a file or symlink with its times and mode; return its size, 0 for what cannot be read."""
    try:
        status = source.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)) or status.st_size > WANTED_SIZE:
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    except OSError:
        return 0
    return status.st_size


def change_some_files(tree: Path) -> list[str]:
    """Change the tree as people do; return what was done."""
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    by_size = sorted(files, key=lambda path: path.stat().st_size)
    largest, appended, removed, renamed = by_size[-1], by_size[-2], by_size[-3], by_size[-4]
    largest.write_bytes((data := largest.read_bytes())[:1000] + b" 23 bytes inserted here " + data[1000:])
    with appended.open("ab") as file:
        file.write(b"appended\n" * 1000)
    removed.unlink()
    renamed.rename(renamed.with_name(renamed.name + ".renamed"))
    (tree / "new.txt").write_text("a new file\n")
    return [
        f"inserted a few bytes near the front of {largest.name} ({largest.stat().st_size:,} bytes)",
        f"appended 9,000 bytes to {appended.name}",
        f"removed {removed.name}, renamed {renamed.name}, added new.txt",
    ]


def differences(first: Path, second: Path) -> list[str]:
    """Compare two trees byte by byte, and by types, modes, times and link targets."""
    found = []
    names = {path.relative_to(tree) for tree in (first, second) for path in tree.rglob("*")}
    for name in sorted(names):
        one, two = first / name, second / name
        if not (os.path.lexists(one) and os.path.lexists(two)):
            found.append(f"{name}: only in one of them")
            continue
        a, b = one.lstat(), two.lstat()
        if a.st_mode != b.st_mode or a.st_mtime_ns != b.st_mtime_ns:
            found.append(f"{name}: mode or time")
        elif one.is_symlink():
            if one.readlink() != two.readlink():
                found.append(f"{name}: link target")
        elif one.is_file() and not filecmp.cmp(one, two, shallow=False):
            found.append(f"{name}: content")
    return found


def report(*snapshots: Snapshot) -> None:
    """Show what each save did."""
    table = Table("snapshot", "files", "size", "new", "reused", "written", "objects", "seconds")
    for snapshot in snapshots:
        stats = snapshot.stats
        sizes = (stats.logical_size, stats.bytes_new, stats.bytes_reused, stats.bytes_written)
        table.add_row(
            snapshot.id[:8],
            f"{stats.files:,}",
            *(f"{size / 1e6:,.1f} MB" for size in sizes),
            str(stats.objects_written),
            f"{stats.seconds:.2f}",
        )
    CONSOLE.print(table)


def main() -> int:
    """Do it all; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, help="an empty or new directory to work in")
    place = parser.parse_args().directory or Path(tempfile.mkdtemp(prefix="cas-checkpoint-quickstart-"))
    place = place.absolute()
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        print(f"{place} is not empty; name another directory", file=sys.stderr)
        return 2
    tree, before, store_place = place / "tree", place / "tree-before", place / "store"

    size = copy_real_files(tree)
    shutil.copytree(tree, before, symlinks=True)
    CONSOLE.print(f"A tree of {size / 1e6:,.1f} MB of real files: {tree}", soft_wrap=True)
    store = Store.open(store_place, create=True)
    first = store.save(tree, series="quickstart", message="as found")
    for line in change_some_files(tree):
        CONSOLE.print(f"  {line}", soft_wrap=True)
    second = store.save(tree, series="quickstart", message="after some changes")
    report(first, second)

    failed = 0
    for snapshot, original in ((first, before), (second, tree)):
        target = place / f"restored-{snapshot.sequence}"
        started = time.perf_counter()
        result = store.restore(snapshot, target)
        seconds = time.perf_counter() - started
        wrong = differences(original, target)
        failed += len(wrong)
        verdict = "identical, byte for byte" if not wrong else f"{len(wrong)} DIFFERENCES: {wrong[:5]}"
        CONSOLE.print(f"Restored {snapshot.id[:8]} ({result.files:,} files) in {seconds:.2f} s: {verdict}")

    command = [sys.executable, "-m", "cas_checkpoint", "list", "--store", str(store_place)]
    CONSOLE.print("\n$ cas-checkpoint list --store", store_place)
    failed += subprocess.run(command, check=False).returncode
    CONSOLE.print(
        f"""
Everything lies in {place}:
  tree, tree-before            the source after and before the changes
  store                        the store, {store.info().size / 1e6:,.1f} MB
  restored-1, restored-2       both snapshots, restored

Go on with (the command is in {Path(sys.executable).parent}):
  export CAS_CHECKPOINT_STORE={store_place}
  cas-checkpoint show quickstart@latest
  cas-checkpoint cat quickstart@latest new.txt
  cas-checkpoint verify""",
        soft_wrap=True,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
