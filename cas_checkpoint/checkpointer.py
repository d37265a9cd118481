"""Flytekit's checkpoint interface on top of a store. It needs no flytekit.

Where checkpoints go and come from is found out in `places`; this module is about one task's use of them.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeAlias

from cas_checkpoint.commits import check_series
from cas_checkpoint.errors import InvalidArgument, InvalidArgumentType, StoreNotFound
from cas_checkpoint.ids import Buffer
from cas_checkpoint.monitor import Monitor, Notice
from cas_checkpoint.places import Home, Place, SharedStore, StoreAccess
from cas_checkpoint.previous import Fallback, Previous
from cas_checkpoint.saving import Delta
from cas_checkpoint.sessions import Session, TemporaryFolder
from cas_checkpoint.snapshots import Snapshot
from cas_checkpoint.sources import Source
from cas_checkpoint.store import Store

__all__ = ["Checkpoint", "SyncCheckpoint"]

STORE_VARIABLE = "CAS_CHECKPOINT_STORE"

PathLike: TypeAlias = "str | os.PathLike[str]"

_logger = logging.getLogger("cas_checkpoint")


class Checkpoint:
    """The interface of checkpoints: what a task saves, and what an earlier attempt of it saved."""

    def prev_exists(self) -> bool:
        """Tell whether there is a previous checkpoint."""
        raise NotImplementedError("Use one of the derived classes")

    def restore(self, path: PathLike | None = None) -> Path | None:
        """Write the previous checkpoint into a directory and return it; None if there is no previous one."""
        raise NotImplementedError("Use one of the derived classes")

    def save(self, cp: PathLike | io.IOBase) -> object:
        """Save a file, the contents of a directory, or what a reader open for bytes gives."""
        raise NotImplementedError("Use one of the derived classes")

    def read(self) -> bytes | None:
        """Return the content of the previous checkpoint, which must be a single file; None if there is none."""
        raise NotImplementedError("Use one of the derived classes")

    def write(self, b: Buffer) -> object:
        """Save bytes."""
        raise NotImplementedError("Use one of the derived classes")


class SyncCheckpoint(Checkpoint):
    """Saves checkpoints as snapshots, and restores what an earlier attempt saved. Each call returns when it is done.

    An object may be used by several threads, pickled, copied, and used after a fork. Several processes may save to one
    destination at once.
    """

    SRC_LOCAL_FOLDER: ClassVar[str] = "prev_cp"
    TMP_DST_PATH: ClassVar[str] = "_dst_cp"

    def __init__(
        self,
        checkpoint_dest: PathLike,
        checkpoint_src: PathLike | None = None,
        *,
        accumulate: bool = False,
        series: str = "default",
        store: PathLike | Store | None = None,
        keep: int | None = None,
        fallback: Fallback = None,
        delta: Delta = "fast",
        durable: bool = True,
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        """Take note of where checkpoints go and come from; nothing is read or written yet.

        Args:
            checkpoint_dest: where to save: a local path, or any URL that fsspec knows.
            checkpoint_src: what to resume from: the destination of an earlier attempt, a folder that flytekit's own
                class wrote, or the destination itself, to resume from one's own last save. None or "" for nothing.
            accumulate: each snapshot also holds what the latest one at the destination has under other names, as in
                flytekit; by default it holds what was saved and no more. Of two processes that accumulate at the same
                moment, one may not see the other's snapshot: the one committed last is what is restored.
            series: the series of the snapshots, at the source and at the destination.
            store: a store that several destinations share, so that nothing is stored twice; the destination then
                holds only a small pointer to it. By default what the environment variable CAS_CHECKPOINT_STORE says
                when the object is made; "" for none. A destination that is a store already, or has a pointer, stays so.
            keep: after each save forget all snapshots of the series but so many of the newest; what only the others
                needed is deleted in the background, when it is much. By default nothing is forgotten.
            fallback: "previous" to resume, if the previous checkpoint is damaged, from the next older snapshot of the
                series that is not, with a warning; by default that is an error.
            delta: how to store what changed of tensors since the last save: see `Store.save`.
            durable: on local disk, wait for the disk at every save; switch off for scratch data only.
            storage_options: passed on to fsspec, for every place.

        Raises:
            InvalidArgument: an argument cannot be used.
        """
        if not isinstance(series, str):
            raise InvalidArgumentType(f"series must be a text, not {series!r}")
        self._checkpoint_dest = checkpoint_dest
        self._checkpoint_src = checkpoint_src or None
        self._accumulate = accumulate
        if keep is not None and (not isinstance(keep, int) or keep < 1):
            raise InvalidArgument(f"keep must be None or a number of snapshots, at least 1, not {keep!r}")
        self._keep = keep
        if fallback not in (None, "previous"):
            raise InvalidArgument(f'fallback must be "previous" or None, not {fallback!r}')
        self._fallback: Fallback = fallback
        if delta not in ("off", "fast", "small"):
            raise InvalidArgument(f'delta must be "off", "fast" or "small", not {delta!r}')
        self._delta: Delta = delta
        access = StoreAccess(durable, dict(storage_options or {}))
        shared = _shared(os.environ.get(STORE_VARIABLE) if store is None else store)
        check_series(series)
        self._dest = Place(_url("checkpoint_dest", checkpoint_dest), access, shared=shared, series=series)
        self._src = None
        if self._checkpoint_src is not None:
            self._src = Place(_url("checkpoint_src", self._checkpoint_src), access, shared=shared, series=series)
        self._session = Session()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._checkpoint_dest!s} from {self._checkpoint_src!s}>"

    def _here(self) -> Session:
        self._session = self._session.here()
        return self._session

    # --- resuming ---

    @property
    def _prev_download_path(self) -> Path | None:
        """Where the previous checkpoint was restored. As in flytekit that is so after `read`: it is restored now."""
        session = self._here()
        return self.restore() if session.was_read else session.restored

    def prev_exists(self) -> bool:
        """Tell whether the source holds a snapshot, or plain files; asked anew until it does.

        Raises:
            CasCheckpointError: the source cannot be read, or is damaged.
        """
        session = self._here()
        with session.resuming:
            return self._previous(session) is not None

    def restore(self, path: PathLike | None = None) -> Path | None:
        """Write the previous checkpoint into a directory.

        What is found at the first use of the object (by this, `read` or `prev_exists`) stays the previous checkpoint,
        whatever is saved at the source afterwards.

        Args:
            path: an existing directory, into which it is merged; None for a temporary one that dies with the object.

        Returns:
            The directory; None if the source holds nothing. Once a restore succeeded, later ones return the same
            directory, unchecked, and do nothing.

        Raises:
            InvalidArgument: `path` is not an existing directory.
            CasCheckpointError: the source cannot be read, or is damaged, or the directory cannot be written.
        """
        if self._src is None:
            return None
        session = self._here()
        with session.resuming:
            if session.restored is None:
                self._restore(session, None if path is None else _directory(path))
            return session.restored

    def _restore(self, session: Session, path: Path | None) -> None:
        previous = self._previous(session, warn=True)
        if previous is None:
            return
        folder = None
        if path is None:
            folder = TemporaryFolder()
            path = folder.path / self.SRC_LOCAL_FOLDER
        with session.forgetting_what_is_gone():
            previous.restore(path, _LogMonitor(), fallback=self._fallback)
        session.folder, session.restored = folder, path

    def read(self) -> bytes | None:
        """Return the content of the previous checkpoint, which must be a single file; nothing is restored to disk.

        Returns:
            The bytes; None if the source holds nothing, or the previous checkpoint is empty.

        Raises:
            NotASingleFile: it holds more than one file, or a directory.
            CasCheckpointError: the source cannot be read, or is damaged.
        """
        session = self._here()
        with session.resuming:
            previous = self._previous(session, warn=True)
        if previous is None:
            return None
        with session.forgetting_what_is_gone():
            data = previous.read(_LogMonitor(), fallback=self._fallback)
        session.was_read = True
        return data

    def _previous(self, session: Session, *, warn: bool = False) -> Previous | None:
        """Return what to resume from, looking for it until it is found; with `warn`, tell if a source holds nothing."""
        if session.previous is None and self._src is not None:
            session.previous = self._src.previous()
            if session.previous is None and warn:
                _logger.warning("no checkpoint at %s: starting without one", self._src.url)
        return session.previous

    # --- saving ---

    def save(self, cp: PathLike | io.IOBase) -> Snapshot:
        """Save a checkpoint: all of it or, whatever happens, nothing.

        Args:
            cp: a path to a directory (its contents are saved) or to a file (saved under its own name); or a reader
                open for bytes (saved as `_dst_cp` from where it stands, and left open).

        Returns:
            The snapshot, which is safely stored.

        Raises:
            InvalidArgumentType: `cp` is something else; a `ValueError`, and a `TypeError` too.
            SourceError: something cannot be read, or changed meanwhile; `SourceNotFound`, a `ValueError`, if there is
                nothing at that path.
            CasCheckpointError: the destination cannot be used.
        """
        if isinstance(cp, (str, os.PathLike)):
            return self._commit(cp)
        if not isinstance(cp, io.IOBase):
            raise InvalidArgumentType(
                f"Only a valid path or IOBase type (reader) should be provided, received {type(cp)}"
            )
        if isinstance(cp, io.TextIOBase):
            raise InvalidArgumentType("a bytes-like object is required, not 'str': open the reader in mode 'rb'")
        if cp.closed:
            raise InvalidArgument("I/O operation on closed file: pass a reader that is open")
        return self._commit({self.TMP_DST_PATH: cp})

    def write(self, b: Buffer) -> Snapshot:
        """Save bytes, as `_dst_cp`: any object with the buffer protocol; errors as for `save`."""
        try:
            data = memoryview(b)
        except TypeError as error:
            raise InvalidArgumentType(f"a bytes-like object is required, not '{type(b).__name__}'") from error
        return self._commit({self.TMP_DST_PATH: data})

    def _commit(self, source: Source) -> Snapshot:
        session = self._here()
        with session.saving:
            if session.home is None:
                session.home = self._dest.settle()
            home = session.home
            if self._accumulate:
                return self._save(session, home, source, home.latest())
        return self._save(session, home, source)

    def _save(self, session: Session, home: Home, source: Source, onto: Snapshot | None = None) -> Snapshot:
        try:
            return home.store.save(
                source, series=home.series, onto=onto, keep=self._keep, delta=self._delta, monitor=_LogMonitor()
            )
        except StoreNotFound:  # it was removed; the next save makes it again
            session.home = None
            raise


class _LogMonitor(Monitor):
    """Passes on to the log what the caller should know."""

    def warning(self, notice: Notice) -> None:
        _logger.warning("%s", notice)


def _url(name: str, place: object) -> str:
    """Return a place as text, a local path as an absolute one: a task may change its directory."""
    if not isinstance(place, (str, os.PathLike)):
        raise InvalidArgumentType(f"{name} must be a path or a URL, not {place!r}")
    url = os.fspath(place)
    if not isinstance(url, str):
        raise InvalidArgumentType(f"{name} must be a text, not {url!r}")
    if not url or "\0" in url:
        raise InvalidArgument(f"{name} is no path and no URL: {url!r}")
    return url if "://" in url else os.path.abspath(url)


def _shared(store: PathLike | Store | None) -> SharedStore:
    if store is None or store == "":
        return None
    url = store.url if isinstance(store, Store) else _url("store", store)
    try:
        url.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"store must be valid Unicode, since pointers name it: {url!r}") from error
    return store if isinstance(store, Store) else url


def _directory(path: object) -> Path:
    """Return `path` if it is a directory that exists, else raise `InvalidArgument`."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if name and isinstance(name, str) and Path(name).is_dir():
        return Path(name)
    raise InvalidArgument("Checkpoints can be restored to a directory only.")
