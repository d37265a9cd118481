#!/usr/bin/env python3
# ruff: noqa: PLC0415 - atheris instruments what is imported after it
"""Fuzzes every parser of the format with atheris, guided by coverage, with a cap on memory.

Usage: fuzz.py [--seconds N] [--memory MIB] [--seed N] [TARGET...]

Each target runs in a process of its own for so many seconds. Bytes go to the parser as they are, and also sealed with a
right head and checksum, so that what stands behind those is reached. An exception that is not of this package, or more
memory than the cap, is a finding: the process shows it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "tests" / "vectors"
CONTAINERS = Path(__file__).parents[1] / "tests" / "unit" / "tensors" / "containers"

Target = Callable[[bytes], object]


def make_targets() -> Mapping[str, tuple[Target, str]]:
    """Return the parsers by name, each with the pattern of the vectors that it begins with."""
    import struct

    from cas_checkpoint import commits, headers, index, manifests, marks, moves, packs, pointers, records
    from cas_checkpoint.codecs import Codec, Decoder
    from cas_checkpoint.ids import PackId, TransactionId, digest
    from cas_checkpoint.records import Kind, make_head
    from cas_checkpoint.tensors import find_tensors
    from cas_checkpoint.tensors.dcp import read_metadata

    def sealed(kind: Kind, body: bytes) -> bytes:
        content = make_head(kind) + struct.pack("<I", len(body)) + b"\0" + body
        return content + digest((content,))

    def record(kind: Kind, decode: Callable[[bytes], object]) -> Target:
        def parse(data: bytes) -> object:
            return decode(sealed(kind, data[1:]) if data[:1] == b"\0" else data)

        return parse

    def footer(data: bytes) -> object:
        if data[:1] != b"\0":
            return packs.parse_footer(data)
        content = make_head(Kind.PACK) + data[1:]
        return packs.parse_footer(content + digest((content,)))

    def directory(data: bytes) -> object:
        name = TransactionId(bytes(16))
        if data[:1] != b"\0":
            return index.parse_directory(data, name=name, object_size=len(data))
        count = len(data) // 32
        content = make_head(Kind.INDEX) + name + struct.pack("<QII", 1, count, 0) + data[1 : 1 + 32 * count]
        whole = content + digest((content,)) + data
        return index.parse_index(whole, name=name)

    def entries(data: bytes) -> object:
        reader = manifests.EntryReader()
        found = [entry for at in range(0, len(data), 97) for entry in reader.feed(data[at : at + 97])]
        reader.finish(len(found))
        return found

    def blob(data: bytes) -> object:
        size = int.from_bytes(data[:3], "little")
        base = bytes(range(256)) * (size // 256) + bytes(size % 256)
        of_window = data[3:4] == bytes((Codec.DELTA,)) and int.from_bytes(data[4:5], "little") & 8
        return bytes(Decoder().decode(data[3:], size, base + base[: size // 2] + b"!" if of_window else base))

    return {
        "header": (record(Kind.HEADER, headers.Header.decode), "**/cas-checkpoint"),
        "manifest": (record(Kind.MANIFEST, manifests.Manifest.decode), "**/manifests/*"),
        "commit": (record(Kind.COMMIT, commits.Commit.decode), "**/commits/*/*"),
        "mark": (record(Kind.MARK, marks.Mark.decode), "**/marks/*"),
        "move": (record(Kind.MOVE, moves.Move.decode), "**/moves/*"),
        "pointer": (record(Kind.POINTER, pointers.Pointer.decode), "**/cas-checkpoint-pointer"),
        "footer": (footer, "**/packs/*"),
        "pack-tail": (lambda data: packs.read_tail(data[:8], pack_size=len(data)), "**/packs/*"),
        "index": (directory, "**/index/*"),
        "entry": (manifests.decode_entry, "**/*.entry"),
        "entries": (entries, "**/*.entries"),
        "refs": (lambda data: list(manifests.decode_refs(data)), "**/*.refs"),
        "blob": (blob, "**/*.blob"),
        "value": (records.unpack_value, "**/*.blob"),
        "keys": (
            lambda data: [
                parse(data.decode("utf-8", "surrogateescape"))
                for parse in (commits.parse_commit_key, marks.parse_mark_key, moves.parse_move_key)
            ],
            "**/keys",
        ),
        "pack": (
            lambda data: packs.check_pack(packs.parse_footer(data[:200], pack=PackId(bytes(16))), data[200:]),
            "**/packs/*",
        ),
        "tensors": (
            lambda data: find_tensors(lambda offset, size: data[offset : offset + size], len(data)),
            "**/*.container",
        ),
        "dcp": (read_metadata, "**/*.container"),
    }


def make_seeds(name: str) -> list[bytes]:
    """Return valid inputs of parsers for which there are no vectors."""
    from cas_checkpoint.manifests import Content, Entry, EntryType, Owner, encode_entry, encode_ref

    ref = encode_ref(bytes(32), 5)
    encoded = [
        encode_entry(Entry(b"", EntryType.DIRECTORY, 0o755)),
        encode_entry(Entry(b"a/b", EntryType.FILE, 0o644, 7, 5, Content(5, 0, ref), owner=Owner(1, 2, "u", "g"))),
        encode_entry(Entry(b"link", EntryType.SYMLINK, target=b"a", xattrs={b"user.a": b"1"})),
        encode_entry(Entry(b"sparse", EntryType.FILE, 0o644, 7, 100, Content(5, 0, ref), extents=((1, 2), (7, 3)))),
    ]
    codecs = json.loads((VECTORS / "codecs" / "codecs.json").read_bytes())
    blobs = [(row["plain_size"], (VECTORS / "codecs" / f"{row['name']}.blob").read_bytes()) for row in codecs]
    containers = [path.read_bytes() for path in sorted(CONTAINERS.iterdir()) if path.suffix != ".json"]
    seeds = {
        "entry": [data[4:] for data in encoded],
        "entries": [b"".join(encoded)],
        "refs": [ref * 3],
        "blob": [size.to_bytes(3, "little") + blob for size, blob in blobs],
        **dict.fromkeys(("tensors", "dcp"), containers),
    }
    return seeds.get(name, [])


def fuzz_one(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, until its time is up; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cas_checkpoint"]):
        parse, _ = make_targets()[name]
        from cas_checkpoint.errors import CasCheckpointError

    def test(data: bytes) -> None:
        try:
            parse(data)
        except CasCheckpointError:
            return

    atheris.Setup([sys.argv[0], *arguments], test)
    atheris.Fuzz()


def campaign(name: str, pattern: str, options: argparse.Namespace) -> int:
    """Fuzz one target in a process of its own; return its exit code."""
    with tempfile.TemporaryDirectory(prefix="cas-checkpoint-fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, data in enumerate(make_seeds(name)):
            (corpus / f"seed{number}").write_bytes(data)
        for number, path in enumerate(sorted(path for path in VECTORS.glob(pattern) if path.is_file())):
            data = path.read_bytes()
            (corpus / f"{number}").write_bytes(data)
            (corpus / f"{number}-body").write_bytes(b"\0" + data[21:-32])
        arguments = [
            f"-max_total_time={options.seconds}",
            f"-rss_limit_mb={options.memory}",
            f"-malloc_limit_mb={options.memory}",
            f"-seed={options.seed}",
            "-timeout=10",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
            str(corpus),
        ]
        command = [sys.executable, __file__, "--fuzz-one", name, *arguments]
        began = time.monotonic()
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        found = re.search(r"stat::number_of_executed_units:\s+(\d+)", run.stderr)
        executions = int(found[1]) if found else 0
        fine = run.returncode == 0
        seconds, outcome = time.monotonic() - began, "nothing found" if fine else "FOUND"
        print(f"{name:10}  {executions:>9,} inputs  {seconds:6.1f} s  {outcome}")
        if not fine:
            print(run.stdout[-3000:], run.stderr[-3000:], sep="\n")
            for artifact in Path(folder).glob("*-*"):
                print(f"input: {artifact.read_bytes()[:2000]!r}")
    return executions if fine else -1


def main() -> int:
    """Run from the command line."""
    if sys.argv[1:2] == ["--fuzz-one"]:
        fuzz_one(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--memory", type=int, default=512, help="MiB that a process may take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        parser.error("atheris is not installed: pip install atheris")
    targets = make_targets()
    unknown = set(options.targets) - targets.keys()
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    counts = [campaign(name, targets[name][1], options) for name in options.targets or targets]
    print(f"seed {options.seed}: {sum(count for count in counts if count > 0):,} inputs, {counts.count(-1)} findings")
    return 1 if -1 in counts else 0


if __name__ == "__main__":
    sys.exit(main())
