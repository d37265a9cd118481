"""The tools that take a whole training run: they keep every checkpoint, and many code one against an earlier one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from bench.commands import Command, shell
from bench.installed import ensure, peer_python
from bench.peers import Borg, Moonclip
from bench.tools import WORKERS, Ours, Tool, find_program, program_version

__all__ = ["RUN_PEERS", "ours_variants"]

_MODES = ("off", "fast", "small")
_ZSTD = "-q -3 --long=28 -T0"


class Borg3(Borg):
    """borg with zstd 3, which is its own default level."""

    name = "borg-3"
    compression = "zstd,3"


class _Zstd(Tool):
    @classmethod
    def version(cls, *, install: bool) -> str:
        del install
        return program_version(find_program("zstd", "Debian: apt-get install zstd"), "--version")

    def prepare(self) -> None:
        self.store.mkdir()


class ZstdLong(_Zstd):
    """A tar of each checkpoint, under `zstd -3 --long`."""

    name = "zstd-long"

    def save(self, source: Path) -> Command:
        return self.command(*shell(f'tar -C "$1" -cf - . | zstd {_ZSTD} -o "$2"', source, self.store / str(self.saves)))

    def restore_saved(self, number: int, target: Path) -> Command:
        return self.command(*shell('zstd -qdc --long=28 "$1" | tar -C "$2" -xf -', self.store / str(number), target))


class ZstdAll(_Zstd):
    """One tar of all checkpoints, made anew at each of them, under `zstd -3 --long`."""

    name = "zstd-long-all"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._names: list[str] = []

    def save(self, source: Path) -> Command:
        self._names = [*self._names[: self.saves], source.name]
        script = f'cd "$1"; out=$2; shift 2; tar -cf - "$@" | zstd {_ZSTD} -f -o "$out"'
        return self.command(*shell(script, source.parent, self.store / "all", *self._names))

    def restore_saved(self, number: int, target: Path) -> Command:
        script = 'zstd -qdc --long=28 "$1" | tar -C "$2" --strip-components=1 -xf - "$3"'
        return self.command(*shell(script, self.store / "all", target, self._names[number]))


class MoonclipRun(Moonclip):
    """moonclip with tensors by their names: against the last full snapshot, which here is the first checkpoint."""

    name = "moonclip-run"

    @classmethod
    def version(cls, *, install: bool) -> str:
        ensure(Moonclip.name, install=install)
        return _module_version("moonclip")

    def _verb(self, *arguments: str | Path) -> Command:
        return self.command(peer_python(), WORKERS / "moonclip_run.py", *arguments)

    def restore(self, target: Path) -> Command:
        return self.restore_saved(self.saves - 1, target)

    def restore_saved(self, number: int, target: Path) -> Command:
        return self._verb("restore", self.store, str(number), target)


class Lmz(Tool):
    """lmz: one archive, to which each checkpoint is appended; tensors are coded against those of the first."""

    name = "lmz"

    @classmethod
    def version(cls, *, install: bool) -> str:
        ensure(cls.name, install=install)
        return _module_version("lmzip")

    def prepare(self) -> None:
        self.store.mkdir()

    @property
    def _archive(self) -> Path:
        return self.store / "run.lmz"

    def save(self, source: Path) -> Command:
        verb = 'append -q "$2" "$3"' if self.saves else 'compress -q "$3" "$2"'
        script = f'mkdir "$3"; cp -rl "$1" "$3/$4"; "$5" {verb}; rm -r "$3"'
        program = peer_python().with_name("lmz")
        return self.command(*shell(script, source, self._archive, self.home / "staged", str(self.saves), program))

    def restore_saved(self, number: int, target: Path) -> Command:
        return self.command(peer_python(), WORKERS / "lmz_extract.py", self._archive, str(number), target)


class _Worker(Tool):
    """A tool of one of our workers, which keeps what belongs to each checkpoint in a file of its own."""

    distribution: ClassVar[str] = "restated"
    package: ClassVar[str] = ""
    worker: ClassVar[tuple[str, ...]]

    @classmethod
    def version(cls, *, install: bool) -> str:
        ensure(cls.distribution, install=install)
        return _module_version(cls.package) if cls.package else "re-stated"

    def prepare(self) -> None:
        self.store.mkdir()

    def _verb(self, *arguments: str | Path) -> Command:
        program, *options = self.worker
        return self.command(peer_python(), WORKERS / program, *options, *arguments)

    def save(self, source: Path) -> Command:
        return self._verb("save", self.store, str(self.saves), source)

    def restore_saved(self, number: int, target: Path) -> Command:
        return self._verb("restore", self.store, str(number), target)


class _Chained(_Worker):
    """It is given the checkpoint before, too, as its user still has it."""

    def save(self, source: Path) -> Command:
        before = (source.with_name(f"{self.saves - 1:03d}"),) if self.saves else ()
        return self._verb("save", self.store, str(self.saves), source, *before)


class ZipNN(_Worker):
    """ZipNN, tensor by tensor; each checkpoint on its own."""

    name = distribution = package = "zipnn"
    worker = ("chained.py", "zipnn")


class ZipNNChain(_Chained):
    """ZipNN with its delta: each checkpoint against the one before."""

    name = "zipnn-chain"
    distribution = package = "zipnn"
    worker = ("chained.py", "zipnn-chain")


class BitX(_Chained):
    """BitX in our own words: XOR with the checkpoint before, byte planes, zstd 3."""

    name = "bitx-like"
    worker = ("chained.py", "bitx")


class XetMethod(_Worker):
    """Xet's method in our own words: chunks of 64 KiB by a gear hash, bytes grouped by 4, LZ4."""

    name = "xet-like"
    worker = ("xet_method.py",)


def _module_version(distribution: str) -> str:
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    return program_version(str(peer_python()), "-c", code)


def ours_variants() -> list[type[Ours]]:
    """Return this package as it is by default, and then in each of its modes of deltas, if it has them."""
    help_text = _help_of_save()
    return [Ours, *(_ours(mode) for mode in _MODES if "--delta" in help_text)]


def _help_of_save() -> str:
    command = [sys.executable, "-m", "cas_checkpoint", "save", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _ours(mode: str) -> type[Ours]:
    class OursInMode(Ours):
        name = f"ours, delta {mode}"

        def save(self, source: Path) -> Command:
            return self._verb("save", "--delta", mode, source)

    return OursInMode


RUN_PEERS: dict[str, type[Tool]] = {
    tool.name: tool for tool in (Borg3, ZstdLong, ZstdAll, MoonclipRun, Lmz, ZipNN, ZipNNChain, BitX, XetMethod)
}
