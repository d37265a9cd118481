# ruff: noqa: D102 - the verbs are described in `Tool`
"""The tools that this package is compared with."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from bench.commands import Command, shell
from bench.installed import ensure, peer_python
from bench.tools import WORKERS, Tool, find_program, program_version
from bench.unable import Unable

__all__ = ["PEERS", "Borg", "Copy", "Flytekit", "HfXet", "Moonclip", "Restic", "Tar"]

_SYNC = 'sync -f "$2"' if sys.platform == "linux" else "sync"
_RESTIC_COMPRESSES = (0, 14)


class _Copies(Tool):
    """A tool that keeps nothing but whole copies: each save makes another one."""

    def _place(self, number: int) -> Path:
        return self.store / str(number)

    def prepare(self) -> None:
        self.store.mkdir()

    def saved(self) -> None:
        previous = self._place(self.saves - 1)
        if previous.is_dir():
            shutil.rmtree(previous)
        else:
            previous.unlink(missing_ok=True)
        super().saved()

    @property
    def _latest(self) -> Path:
        return self._place(self.saves - 1)


class Copy(_Copies):
    """`cp -r`, then `sync` of the target's file system."""

    name = "cp"

    @classmethod
    def version(cls, *, install: bool) -> str:
        del install
        find_program("cp", "a part of every system")
        return program_version("cp", "--version") if sys.platform == "linux" else "of the system"

    def save(self, source: Path) -> Command:
        return self.command(*shell(f'cp -r "$1" "$2" && {_SYNC}', source, self._place(self.saves)))

    def restore(self, target: Path) -> Command:
        return self.command(*shell(f'cp -r "$1/." "$2" && {_SYNC}', self._latest, target))

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        return self.command(*shell(f'cp "$1" "$2" && {_SYNC}', self._latest / path.relative_to(source), target))

    def listing(self) -> Command:
        return self.command("ls", "-l", self.store)


class Tar(_Copies):
    """`tar`, piped into `zstd` on all cores."""

    name = "tar+zstd"

    @classmethod
    def version(cls, *, install: bool) -> str:
        del install
        find_program("tar", "Debian: apt-get install tar")
        return f"zstd {program_version(find_program('zstd', 'Debian: apt-get install zstd'), '--version')}"

    def save(self, source: Path) -> Command:
        return self.command(*shell('tar -C "$1" -cf - . | zstd -q -1 -T0 -o "$2"', source, self._place(self.saves)))

    def restore(self, target: Path) -> Command:
        return self.command(*shell('zstd -q -d -c "$1" | tar -C "$2" -xf -', self._latest, target))

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        name = f"./{path.relative_to(source)}"
        return self.command(*shell('zstd -q -d -c "$1" | tar -xOf - "$2"', self._latest, name), output=target)


class Restic(Tool):
    """restic, with the compression that it has by default."""

    name = "restic"

    @classmethod
    def version(cls, *, install: bool) -> str:
        del install
        return program_version(find_program("restic", "Debian: apt-get install restic"), "version")

    def _verb(self, *arguments: str | Path, output: Path | None = None) -> Command:
        places = ("--repo", self.store, "--cache-dir", self.home / "cache", "--quiet")
        return self.command("restic", *places, *arguments, extra={"RESTIC_PASSWORD": "benchmark"}, output=output)

    def prepare(self) -> None:
        numbers = tuple(int(part) for part in self.version(install=False).split(".")[:2])
        version = ("--repository-version", "2") if numbers >= _RESTIC_COMPRESSES else ()
        self.run(self._verb("init", *version))

    def save(self, source: Path) -> Command:
        return self._verb("backup", "--tag", f"save-{self.saves}", source)

    def restore(self, target: Path) -> Command:
        return self._verb("restore", "latest", "--target", target)

    def restore_saved(self, number: int, target: Path) -> Command:
        return self._verb("restore", "latest", "--tag", f"save-{number}", "--target", target)

    def restored(self, source: Path, target: Path) -> Path:
        return target / source.relative_to("/")

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        del source
        return self._verb("dump", "latest", path, output=target)

    def listing(self) -> Command:
        return self._verb("snapshots")


class Borg(Tool):
    """borg 1.4 with zstd 1 and no encryption."""

    name = "borg"
    compression = "zstd,1"

    @classmethod
    def program(cls, *, install: bool = False) -> str:
        """Return the path of borg 1.4: of the peers' environment, else one on PATH."""
        on_path = shutil.which("borg")
        try:
            return str(ensure(Borg.name, install=install) / "borg")
        except Unable:
            if on_path is None or not program_version(on_path, "--version").startswith("1.4"):
                raise
            return on_path

    @classmethod
    def version(cls, *, install: bool) -> str:
        return program_version(cls.program(install=install), "--version")

    def _verb(self, *arguments: str | Path, directory: Path | None = None, output: Path | None = None) -> Command:
        extra = {
            "BORG_BASE_DIR": str(self.home / "user"),
            "BORG_CACHE_DIR": str(self.home / "cache"),
            "BORG_CONFIG_DIR": str(self.home / "config"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        return self.command(self.program(), *arguments, extra=extra, directory=directory, output=output)

    def _archive(self, number: int) -> str:
        return f"{self.store}::save-{number}"

    def prepare(self) -> None:
        self.run(self._verb("init", "-e", "none", self.store))

    def save(self, source: Path) -> Command:
        return self._verb("create", "-C", self.compression, self._archive(self.saves), source)

    def restore(self, target: Path) -> Command:
        return self.restore_saved(self.saves - 1, target)

    def restore_saved(self, number: int, target: Path) -> Command:
        return self._verb("extract", self._archive(number), directory=target)

    def restored(self, source: Path, target: Path) -> Path:
        return target / source.relative_to("/")

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        del source
        return self._verb("extract", "--stdout", self._archive(self.saves - 1), path.relative_to("/"), output=target)

    def listing(self) -> Command:
        return self._verb("list", self.store)


class Flytekit(Tool):
    """flytekit's own SyncCheckpoint, in a Python process for each verb; importing it takes most of a second."""

    name = "flytekit"

    @classmethod
    def version(cls, *, install: bool) -> str:
        del install
        try:
            return metadata.version("flytekit")
        except metadata.PackageNotFoundError:
            raise Unable("flytekit is not installed (pip install '.[test-flyte]')") from None

    def prepare(self) -> None:
        self.store.mkdir()

    def save(self, source: Path) -> Command:
        return self.command(sys.executable, WORKERS / "flytekit_verbs.py", "save", self.store, source)

    def restore(self, target: Path) -> Command:
        return self.command(sys.executable, WORKERS / "flytekit_verbs.py", "restore", self.store, target)


class Moonclip(Tool):
    """moonclip: each file is handed over as one tensor; names and bytes are all that it keeps.

    It needs several times its input in memory and is made for tensors, so it takes part where weights are saved.
    """

    name = "moonclip"

    @classmethod
    def version(cls, *, install: bool) -> str:
        ensure(cls.name, install=install)
        return program_version(str(peer_python()), "-c", "import moonclip; print(moonclip.__version__)")

    def _verb(self, *arguments: str | Path) -> Command:
        return self.command(peer_python(), WORKERS / "moonclip_verbs.py", *arguments)

    def save(self, source: Path) -> Command:
        return self._verb("save", self.store, source)

    def restore(self, target: Path) -> Command:
        return self._verb("restore", self.store, target)

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        return self._verb("one", self.store, path.relative_to(source), target)


class HfXet(Tool):
    """hf-xet with a directory in place of the Hub: cuts, deduplicates and stores files, names and trees apart."""

    name = "hf-xet"

    @classmethod
    def version(cls, *, install: bool) -> str:
        ensure(cls.name, install=install)
        code = "from importlib.metadata import version; print(version('hf-xet'))"
        return program_version(str(peer_python()), "-c", code)

    def size(self) -> int:
        """Return the bytes stored, without a database for look-ups that grows and shrinks as it likes."""
        return super().size() - sum(path.stat().st_size for path in self.store.rglob("*.redb"))

    def _verb(self, *arguments: str | Path) -> Command:
        places = {"HF_HOME": str(self.home / "user"), "HF_XET_CACHE": str(self.home / "cache")}
        return self.command(peer_python(), WORKERS / "hf_xet_verbs.py", *arguments, extra=places)

    def save(self, source: Path) -> Command:
        return self._verb("save", self.store, source)

    def restore(self, target: Path) -> Command:
        return self._verb("restore", self.store, target)

    def restore_saved(self, number: int, target: Path) -> Command:
        return self._verb("restore", self.store, target, str(number))

    def restore_one(self, source: Path, path: Path, target: Path) -> Command:
        return self._verb("one", self.store, path.relative_to(source), target)


PEERS: dict[str, type[Tool]] = {tool.name: tool for tool in (Copy, Flytekit, Restic, Borg, Tar, Moonclip, HfXet)}
