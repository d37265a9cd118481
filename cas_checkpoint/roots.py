"""What the manifests of a store name: the roots from which a collector tells what is needed (SPEC.md, section 16).

A manifest counts unless its transaction was aborted. That of a part counts, too, until the whole one that took its
place is there, and committed. What counts needs the packs that it names, and whatever their chunks were moved to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.backends import Backend, ObjectInfo
from cas_checkpoint.commits import (
    COMMITS_PREFIX,
    PARTS_PREFIX,
    Commit,
    CommitKey,
    State,
    is_manifest_key,
    manifest_key,
    parse_commit_key,
    parse_part_key,
)
from cas_checkpoint.errors import DamagedObject, ObjectNotFound
from cas_checkpoint.ids import PackId, StoreId, TransactionId, digest, is_hex_id
from cas_checkpoint.lazynumpy import np
from cas_checkpoint.manifests import MAX_MANIFEST_SIZE, Content, Manifest
from cas_checkpoint.moves import MoveKey, closure, reverse
from cas_checkpoint.transactions import list_moves, read_commit, read_moves

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Root", "Roots"]

_PREFIX = "manifests/"
_REQUESTS = 8  # at once


class Root(NamedTuple):
    """A manifest that counts.

    Attributes:
        commit: what its commit says, or would have to say.
        is_committed: whether the commit was there when the roots were read last.
        info: the manifest object.
        entries: its stream of entries.
        packs: numbers of the packs that it names, as `Roots` counts them.
    """

    commit: Commit
    is_committed: bool
    info: ObjectInfo
    entries: Content
    packs: NDArray[np.uint32]


class Roots:
    """All manifests and moves of a store, as of the last `read`.

    Attributes:
        found: the manifests that count, by their keys.
        aborted: keys of listed manifests that do not, and their sizes in bytes: of transactions that were aborted, and
            of parts in whose place there is a whole one.
        moves: for each pack that has moves, the packs that they name.
        move_keys: the keys of all moves.
        whole: packs that the very transaction which wrote them still names, so that no chunk in them is dead.
    """

    def __init__(self, backend: Backend, store: StoreId) -> None:
        """Prepare to read the roots of the store of that id."""
        self._backend, self._store = backend, store
        self._numbers: dict[PackId, int] = {}
        self.found: dict[str, Root] = {}
        self.aborted: dict[str, int] = {}
        self.moves: dict[PackId, frozenset[PackId]] = {}
        self.move_keys: frozenset[MoveKey] = frozenset()
        self.whole: set[PackId] = set()

    def read(self) -> None:
        """List the manifests, then the commits, then the moves; read what was not read before.

        Those of parts are listed and read before the others are listed: when one of them is gone, then the whole one
        that took its place is among these.

        Raises:
            DamagedObject: a manifest or a move cannot be read, so that nobody knows what it needs.
            UnsupportedStore: one is of a newer version.
        """
        parts = self._list(PARTS_PREFIX)
        self._read_manifests(info for key, (info, _) in parts.items() if key not in self.aborted)
        listed = parts | self._list(_PREFIX)
        outcomes = self._outcomes({transaction for _, transaction in listed.values()})
        self.aborted = {
            key: info.size
            for key, (info, transaction) in listed.items()
            if key in self.aborted
            or outcomes.get(transaction) is State.ABORTED
            or (key in parts and transaction in outcomes and manifest_key(transaction) in listed)
        }
        self._read_manifests(info for key, (info, _) in listed.items() if key not in parts and key not in self.aborted)
        self.found = {
            key: root._replace(is_committed=root.commit.key.transaction in outcomes)
            for key, root in self.found.items()
            if key in listed and key not in self.aborted
        }
        self.move_keys = frozenset(list_moves(self._backend))
        self.moves = read_moves(self._backend, self.move_keys)

    def _list(self, prefix: str) -> dict[str, tuple[ObjectInfo, TransactionId]]:
        """List manifests, by their keys, with their transactions."""
        return {info.key: (info, name) for info in self._backend.list(prefix) if (name := _transaction(info.key))}

    def _read_manifests(self, listed: Iterable[ObjectInfo]) -> None:
        fresh = [info for info in listed if info.key not in self.found]
        with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-roots") as pool:
            for root in pool.map(self._read_manifest, fresh):
                if root is not None:
                    self._add(*root)

    def abort(self, transaction: TransactionId) -> None:
        """Count the manifests of a transaction no more: it was aborted."""
        for key in [key for key, root in self.found.items() if root.commit.key.transaction == transaction]:
            self.aborted[key] = self.found.pop(key).info.size

    def _outcomes(self, wanted: Collection[TransactionId]) -> dict[TransactionId, State]:
        """Return the states of the commits of these transactions, as far as they have one.

        Only those are read that are as large as one in state A would be.
        """
        outcomes: dict[TransactionId, State] = {}
        for info in self._backend.list(COMMITS_PREFIX):
            key = parse_commit_key(info.key)
            if key is None or key.transaction not in wanted:
                continue
            outcomes[key.transaction] = State.COMMITTED
            if info.size == len(Commit(State.ABORTED, self._store, key).encode()):
                try:
                    outcomes[key.transaction] = read_commit(self._backend, key, self._store).state
                except ObjectNotFound:
                    del outcomes[key.transaction]
        return outcomes

    def _read_manifest(self, info: ObjectInfo) -> tuple[ObjectInfo, bytes, Manifest] | None:
        try:
            data = self._backend.get(info.key, max_size=MAX_MANIFEST_SIZE)
        except ObjectNotFound:
            return None
        try:
            manifest = Manifest.decode(data)
            if not is_manifest_key(info.key, manifest.transaction) or manifest.store != self._store:
                raise DamagedObject("is the manifest of another snapshot")
        except DamagedObject as error:
            raise DamagedObject(f"{error.reason}; nobody knows what it needs", key=info.key) from error
        return info, data, manifest

    def _add(self, info: ObjectInfo, data: bytes, manifest: Manifest) -> None:
        numbers = [self._numbers.setdefault(ref.pack, len(self._numbers)) for ref in manifest.packs]
        self.whole.update(ref.pack for ref in manifest.packs if ref.home == manifest.transaction)
        key = CommitKey(manifest.series, manifest.sequence, manifest.transaction)
        commit = Commit(State.COMMITTED, self._store, key, manifest_digest=digest((data,)), manifest_size=len(data))
        packs = np.array(numbers, np.uint32)
        self.found[info.key] = Root(commit, False, info, manifest.entries, packs)  # noqa: FBT003 -- read below

    # --- what is needed ---

    def needed(self) -> frozenset[PackId]:
        """Return the packs in the closure of any manifest that counts."""
        mask = np.zeros(len(self._numbers), bool)
        for root in self.found.values():
            mask[root.packs] = True
        return closure((pack for pack, number in self._numbers.items() if mask[number]), self.moves)

    def needing(self, packs: Iterable[PackId]) -> dict[str, Root]:
        """Return the manifests that count and in whose closure any of these packs is, by their keys."""
        mask = np.zeros(len(self._numbers), bool)
        mask[[self._numbers[pack] for pack in closure(packs, reverse(self.moves)) if pack in self._numbers]] = True
        return {key: root for key, root in self.found.items() if mask[root.packs].any()}

    def closure(self, root: Root) -> frozenset[PackId]:
        """Return the packs in the closure of a manifest."""
        wanted = set(root.packs.tolist())
        return closure((pack for pack, number in self._numbers.items() if number in wanted), self.moves)


def _transaction(key: str) -> TransactionId | None:
    part = parse_part_key(key)
    if part is not None:
        return part[0]
    name = key.removeprefix(_PREFIX)
    return TransactionId(bytes.fromhex(name)) if is_hex_id(name) else None
