"""Where the benchmark works: a directory on some file system, the corpora in it, and the room that it needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import corpora
from bench.unable import Unable

__all__ = ["Workplace", "candidates", "choose", "file_system", "remove", "warm"]

_MARGIN = 2 * 2**30  # left free for everybody else
_IN_MEMORY = ("tmpfs", "ramfs")


def file_system(path: Path) -> str:
    """Return the type of the file system that a directory is on, "unknown" where the system does not tell."""
    try:
        lines = Path("/proc/mounts").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = [(mount.replace("\\040", " "), kind) for _, mount, kind, *_ in (line.split() for line in lines)]
    place = path.resolve()
    return max((len(mount), kind) for mount, kind in mounts if place.is_relative_to(mount))[1]


def room(path: Path) -> int:
    """Return the bytes that may be written in a directory; on a file system in memory no more than memory is free."""
    free = shutil.disk_usage(path).free
    if file_system(path) in _IN_MEMORY:
        free = min(free, _free_memory())
    return max(0, free - _MARGIN)


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024


def candidates(*, on_disk: bool) -> Iterator[Path]:
    """Yield directories to work in, best first: in memory, where no disk drowns what is compared; or on a disk."""
    if not on_disk:
        yield from (path for path in (Path("/dev/shm"),) if path.is_dir())  # noqa: S108 -- a directory below it is
    temporary = Path(tempfile.gettempdir())
    for path in (temporary, Path("/var/tmp"), Path.home()):  # noqa: S108 -- made with a random name
        if not on_disk or file_system(path) not in _IN_MEMORY:
            yield path


def choose(places: Iterable[Path], needed: int, *, held: Callable[[Path], int]) -> Path:
    """Return the first directory with so many bytes of room, what it holds of them counted; `Unable` if none has."""
    looked_at = []
    for path in places:
        found = room(path) + held(path)
        if found >= needed:
            return path
        looked_at.append(f"{path} has room for {found / 2**30:.1f} GiB")
    raise Unable(f"{needed / 2**30:.1f} GiB are needed; {', '.join(looked_at) or 'there is no such place'}")


class Workplace:
    """A directory to work in, removed in the end."""

    def __init__(self, directory: Path, *, scale: float) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cas-checkpoint-bench-", dir=directory)).resolve()
        self.file_system = file_system(self.root)
        self._scale = scale

    def close(self) -> None:
        """Remove everything."""
        remove(self.root)

    def corpus(self, name: str) -> Path:
        """Return a corpus, made now if it is not there yet."""
        root = self.root / "corpora" / name
        if not root.exists():
            corpora.make(name, root, scale=self._scale)
        return root

    def held(self, names: Iterable[str]) -> int:
        """Return the bytes of those of these corpora that are there."""
        return sum(corpora.tree_size(self.root / "corpora" / name) for name in names)

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove the corpora that are not needed any more."""
        for name in corpora.CORPORA.keys() - set(names):
            remove(self.root / "corpora" / name)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Lend a new directory."""
        root = self.root / name
        root.mkdir()
        try:
            yield root
        finally:
            remove(root)

    def settle(self) -> None:
        """Let the disk finish what was written before, so that nobody pays for another's bytes."""
        if self.file_system not in _IN_MEMORY:
            os.sync()


def remove(root: Path) -> None:
    """Remove a directory, if it is there, even if it holds directories that forbid it."""
    for folder, names, _ in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


def warm(root: Path) -> None:
    """Read all files, so that everybody finds them in memory."""
    for path in corpora.tree_files(root):
        with path.open("rb", buffering=0) as file:
            while file.read(2**22):
                pass
