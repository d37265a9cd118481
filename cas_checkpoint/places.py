"""Where checkpoints go and where they come from: a store, a pointer to a shared store, or plain files.

A place is a store if it holds a header. A place whose snapshots live in a shared store holds a pointer instead
(SPEC.md, "Pointers"). A place that is neither, or has no snapshot yet, may hold plain files.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from cas_checkpoint.backends import Backend, open_backend
from cas_checkpoint.commits import check_series
from cas_checkpoint.errors import DamagedObject, NotAStore, ObjectNotFound, StoreNotFound
from cas_checkpoint.headers import HEADER_KEY
from cas_checkpoint.ids import StoreId
from cas_checkpoint.plain import PlainFiles, open_plain
from cas_checkpoint.pointers import MAX_POINTER_SIZE, POINTER_KEY, Pointer
from cas_checkpoint.previous import Previous, PreviousFiles, PreviousSnapshot
from cas_checkpoint.snapshots import Snapshot
from cas_checkpoint.store import Store

__all__ = ["Home", "Place", "SharedStore", "StoreAccess"]

_DEFAULT_SERIES: Final = "default"
_OF_A_STORE: Final = frozenset({HEADER_KEY, POINTER_KEY, "packs", "index", "manifests", "commits", "marks", "parts"})
_LEFTOVER: Final = re.compile(r"\.tmp-[0-9a-f]{16}|probe-[0-9a-f]{32}")  # of a store that was never finished
_NOT_IN_A_SLUG: Final = re.compile(r"[^a-z0-9]+")
_SLUG_SIZE: Final = 48


class StoreAccess(NamedTuple):
    """How stores are opened.

    Attributes:
        durable: on local disk, whether every write waits for the disk.
        storage_options: passed on to fsspec.
    """

    durable: bool
    storage_options: Mapping[str, object]

    def open(self, url: str, *, create: bool = False) -> Store:
        """Open the store at `url`; errors as for `Store.open`."""
        return Store.open(url, create=create, durable=self.durable, storage_options=self.storage_options)

    def find(self, url: str) -> Store | None:
        """Return the store at `url`, None if there is none."""
        try:
            return self.open(url)
        except NotAStore:
            raise
        except StoreNotFound:
            return None

    def backend(self, url: str) -> Backend:
        """Return the backend for `url`."""
        return open_backend(url, durable=self.durable, storage_options=self.storage_options)


SharedStore: TypeAlias = str | Store | None
"""The store that several places share: its URL, or the open store."""


class Home(NamedTuple):
    """Where a place's snapshots are: a store, and a series in it that belongs to the place."""

    store: Store
    series: str

    def latest(self) -> Snapshot | None:
        """Return the newest snapshot, None if there is none."""
        return self.store.latest(self.series)


class Place:
    """A destination or source of checkpoints."""

    def __init__(self, url: str, access: StoreAccess, *, shared: SharedStore, series: str) -> None:
        """Take note of a place; nothing is read or written.

        Args:
            url: where it is.
            access: how to open stores.
            shared: a store that this place is to share with others, used if the place is not a store itself.
            series: the series within the place.
        """
        self.url = url
        self._access, self._shared, self._series = access, shared, series

    # --- snapshots ---

    def find(self) -> Home | None:
        """Return where the place's snapshots are, None if it is neither a store nor points to one.

        Raises:
            StoreNotFound: it points to a store that is not there any more.
            DamagedStore: the header or the pointer is damaged.
            UnsupportedStore: one of them was made by a newer version of this package.
            StorageError: the file system refused something.
        """
        return self._home(self._access.find(self.url))

    def _home(self, own: Store | None) -> Home | None:
        """Return where the snapshots are: in `own`, the store at the place itself, else where a pointer says."""
        if own is not None:
            return Home(own, self._series)
        pointer = self._read_pointer()
        return None if pointer is None else self._follow(pointer)

    def settle(self) -> Home:
        """Return where the place's snapshots are, deciding that now if it was not; errors as for `find`.

        What the place holds already comes first, so that its snapshots stay together; then the shared store.
        """
        home = self.find()
        if home is not None:
            return home
        if self._shared is None:
            return Home(self._access.open(self.url, create=True), self._series)
        shared = self._shared if isinstance(self._shared, Store) else self._access.open(self._shared, create=True)
        own = self._access.find(self.url)
        if own is not None:  # the shared store is here
            return Home(own, self._series)
        pointer = Pointer(shared.url, StoreId(bytes.fromhex(shared.id)), _new_series(self.url))
        check_series(self._series_below(pointer))
        if self._access.backend(self.url).put_if_absent(POINTER_KEY, pointer.encode()):
            return Home(shared, self._series_below(pointer))
        return self.settle()  # somebody else was first

    def _read_pointer(self) -> Pointer | None:
        try:
            data = self._access.backend(self.url).get(POINTER_KEY, max_size=MAX_POINTER_SIZE)
            return Pointer.decode(data)
        except ObjectNotFound:
            return None
        except DamagedObject as error:
            raise DamagedObject(error.reason, key=f"{self.url}/{POINTER_KEY}") from error

    def _follow(self, pointer: Pointer) -> Home:
        """Open the store that `pointer` names; the shared store, if it is that one, whatever its URL has become."""
        shared = self._access.find(self._shared) if isinstance(self._shared, str) else self._shared
        if shared is not None and shared.id == pointer.store.hex():
            return Home(shared, self._series_below(pointer))
        advice = "make it available again, or say where it is now with store= or CAS_CHECKPOINT_STORE"
        named = self._access.find(pointer.url)
        if named is None:
            raise StoreNotFound(f"the snapshots of {self.url} are in the store {pointer.url}, which is gone; {advice}")
        if named.id != pointer.store.hex():
            raise StoreNotFound(
                f"the snapshots of {self.url} are in the store {pointer.store.hex()}, but at {pointer.url} there is "
                f"another store now ({named.id}); {advice}"
            )
        return Home(named, self._series_below(pointer))

    def _series_below(self, pointer: Pointer) -> str:
        """Return the series in the shared store; the pointer's own is that of the default series."""
        return pointer.series if self._series == _DEFAULT_SERIES else f"{pointer.series}/{self._series}"

    # --- what to resume from ---

    def previous(self) -> Previous | None:
        """Return the latest snapshot, else plain files that are there, else None; errors as for `find`."""
        try:
            own = self._access.find(self.url)
        except NotAStore:  # a plain file has the name of a header
            home = None
        else:
            home = self._home(own)
        snapshot = None if home is None else home.latest()
        if home is not None and snapshot is not None:
            return PreviousSnapshot(home.store, snapshot)
        names = frozenset(self._plain(partial(_is_foreign, home is not None)).top())
        return PreviousFiles(self._plain(names.__contains__)) if names else None  # without what is saved here later

    def _plain(self, keep: Callable[[str], bool]) -> PlainFiles:
        return open_plain(self.url, keep, storage_options=self._access.storage_options)


def _is_foreign(in_a_store: bool, name: str) -> bool:  # noqa: FBT001 -- bound by position, for a predicate of names
    """Tell by its name whether something at the top of a place is no part of a store."""
    return not _LEFTOVER.fullmatch(name) and not (in_a_store and name in _OF_A_STORE)


def _new_series(url: str) -> str:
    """Return a name for a series that no other place has, and that tells people which place it is of."""
    slug = _NOT_IN_A_SLUG.sub("-", url.lower()).strip("-")[-_SLUG_SIZE:].strip("-")
    return f"{slug or 'place'}-{secrets.token_hex(8)}"
