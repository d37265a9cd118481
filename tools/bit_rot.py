#!/usr/bin/env python3
"""Flips every bit of every object of a small store, one at a time: each must be found, and none may be passed on.

Usage: bit_rot.py [--stride N] [--seed N] [--processes N]

The store holds snapshots within their commits, in packs, and moved by a collection; tensors in planes, tensors that are
stored as deltas of those, and some whose bases belong to no snapshot any more. After each flip a verification of
all data must find something wrong, and a restore of each snapshot must give the bytes that were saved, or an error of
this package. With a stride, only every so manieth bit is flipped. Exit code 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

from tensors_that_move import weights

from cas_checkpoint import CasCheckpointError, Store, comparing, saving
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.chunking import ChunkerParameters
from cas_checkpoint.codecs import Codec
from cas_checkpoint.footers import read_footer
from cas_checkpoint.headers import HEADER_KEY, Header
from cas_checkpoint.ids import StoreId
from cas_checkpoint.transactions import list_packs

Files = dict[str, bytes]
_SMALL = ChunkerParameters("fastcdc-2020", 64, 256, 1024, 1, 0)
_TENSOR = {"size": 512, "move": 1e-7}


class Result(NamedTuple):
    """What came of the flips in one object: how many there were, of them restored rightly, and what was wrong."""

    key: str
    flips: int
    right: int
    refused: int
    wrong: list[str]


def make_store(place: Path, seed: int) -> dict[str, Files]:
    """Make a small store; return what its snapshots hold."""
    choice = Random(seed)  # noqa: S311 -- a seed must give the same run
    saving.__dict__["MAX_INLINE_SIZE"] = 0
    comparing.__dict__["_MIN_FORECAST"] = 0
    backend = LocalBackend(place, durable=False)
    backend.put(HEADER_KEY, [Header(StoreId(choice.randbytes(16)), chunker=_SMALL).encode()])
    store = Store.open(backend, workers=1)
    shared = {"a": choice.randbytes(300), "b": b"text " * 100, "empty": b""}
    saved = {}
    dropped = store.save({**shared, "more": choice.randbytes(1000), "w": weights(1, 0, **_TENSOR)}, series="s")
    for number in range(2):
        files = shared | {f"own{number}": choice.randbytes(100), "w": weights(1, 1, **_TENSOR)}
        saved[store.save(files, series="s", message="small").id] = files
    store.forget(dropped)
    store.collect(repack=0.1)  # leaves a closed mark and a move
    found = codecs(place)
    if not found[Codec.PLANES] or not found[Codec.DELTA]:
        raise RuntimeError(f"there should be planes and deltas: {found}")
    saving.__dict__["MAX_INLINE_SIZE"] = 128 * 2**10
    files = {"inline": b"carried by its commit"}
    saved[store.save(files, series="t").id] = files
    return saved


def codecs(place: Path) -> Counter[Codec]:
    """Return how many blobs of each codec there are in the packs of a store."""
    backend = LocalBackend(place, durable=False)
    footers = [read_footer(backend, pack) for pack in list_packs(backend)]
    return Counter(
        Codec((place / "packs" / footer.pack.hex()).read_bytes()[offset])
        for footer in footers
        for offset in footer.offsets.tolist()
    )


def restored(store: Store, name: str) -> Files:
    """Return the files of a snapshot."""
    with tempfile.TemporaryDirectory(prefix="cas-checkpoint-rot-") as target:
        store.restore(name, target)
        return {path.name: path.read_bytes() for path in Path(target).iterdir()}


def flip_all(place: Path, key: str, saved: dict[str, Files], stride: int, seed: int) -> Result:
    """Flip the bits of one object in a copy of the store, one after another."""
    flips = right = refused = 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cas-checkpoint-rot-") as folder:
        copy = Path(folder, "store")
        shutil.copytree(place, copy)
        path = copy / key
        whole = path.read_bytes()
        for bit in range(seed % stride, 8 * len(whole), stride):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            flips += 1
            if is_unnoticed(copy):
                wrong.append(f"bit {bit} of {key} is not found")
            for name, files in saved.items():
                try:
                    is_right = restored(Store.open(copy, durable=False, workers=1), name) == files
                except CasCheckpointError:
                    refused += 1
                    continue
                right += is_right
                if not is_right:
                    wrong.append(f"bit {bit} of {key}: wrong data of {name}")
        path.write_bytes(whole)
    return Result(key, flips, right, refused, wrong)


def is_unnoticed(place: Path) -> bool:
    """Tell whether a verification finds nothing wrong."""
    try:
        return Store.open(place, durable=False, workers=1).verify(depth="data").ok
    except CasCheckpointError:
        return False


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cas-checkpoint-rot-") as folder:
        place = Path(folder, "store")
        saved = make_store(place, options.seed)
        found = codecs(place)
        keys = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
        began = time.monotonic()
        totals: Counter[str] = Counter()
        wrong: list[str] = []
        with ProcessPoolExecutor(options.processes) as pool:
            jobs = [pool.submit(flip_all, place, key, saved, options.stride, options.seed) for key in keys]
            for result in (job.result() for job in jobs):
                kind = result.key.partition("/")[0]
                totals[kind] += result.flips
                totals["flips"] += result.flips
                totals["right"] += result.right
                totals["refused"] += result.refused
                wrong += result.wrong
    for text in wrong[:20]:
        print(f"WRONG: {text}")
    kinds = ", ".join(f"{kind} {count}" for kind, count in totals.items() if kind not in {"flips", "right", "refused"})
    blobs = ", ".join(f"{codec.name.lower()} {count}" for codec, count in sorted(found.items()))
    print(f"blobs in packs: {blobs}")
    print(
        f"seed {options.seed}: {totals['flips']:,} bits flipped in {len(keys)} objects ({kinds}) in "
        f"{time.monotonic() - began:.0f} s; {totals['right']:,} restores right, {totals['refused']:,} refused, "
        f"{len(wrong)} unnoticed or wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
