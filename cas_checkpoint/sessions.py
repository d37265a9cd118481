"""What a checkpoint object has found out and done so far, in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path

from cas_checkpoint.errors import DamagedStore, SnapshotForgotten
from cas_checkpoint.places import Home
from cas_checkpoint.previous import Previous

__all__ = ["Session", "TemporaryFolder"]


class TemporaryFolder:
    """A new directory that goes with the object; but not with a copy of the object in a forked process.

    Attributes:
        path: the directory.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="cas-checkpoint-"))
        self._finalizer = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, process: int) -> None:
    if os.getpid() != process:
        return
    for parent, names, _ in os.walk(path):
        for name in names:
            directory = Path(parent, name)
            with suppress(OSError):
                if not directory.is_symlink():
                    directory.chmod(0o700)  # it was restored with its mode, which may forbid to remove what it holds
    shutil.rmtree(path, ignore_errors=True)


class Session:
    """The state of a checkpoint object. A pickled or forked copy has locks of its own, and no temporary directory.

    Attributes:
        process: the process that it belongs to.
        resuming: held while `previous` and `restored` are found out.
        saving: held while `home` is, and by saves that must come one after another.
        home: where snapshots go, once that is known.
        previous: what is resumed from, once something was found.
        restored: where it was restored.
        folder: the temporary directory that holds `restored`; None if the caller named that directory.
        was_read: whether it was read.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.resuming = threading.Lock()
        self.saving = threading.Lock()
        self.home: Home | None = None
        self.previous: Previous | None = None
        self.restored: Path | None = None
        self.folder: TemporaryFolder | None = None
        self.was_read = False

    def __getstate__(self) -> dict[str, object]:
        restored = self.restored if self.folder is None else None
        return {"home": self.home, "previous": self.previous, "restored": restored, "was_read": self.was_read}

    def __setstate__(self, state: dict[str, object]) -> None:
        Session.__init__(self)
        self.__dict__.update(state)
        if self.restored is not None and not self.restored.is_dir():  # it was restored on another machine
            self.restored = None

    def here(self) -> Session:
        """Return this session, or after a fork, where another thread may hold its locks for ever, a copy of it."""
        return self if self.process == os.getpid() else copy(self)

    @contextmanager
    def forgetting_what_is_gone(self) -> Iterator[None]:
        """Look for another checkpoint to resume from, next time, if the one that was found cannot be used."""
        try:
            yield
        except (DamagedStore, SnapshotForgotten):
            self.previous = None
            raise
