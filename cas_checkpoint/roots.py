"""What the manifests of a store name: the roots from which a collector tells what is needed (SPEC.md, section 16).

A manifest counts unless its transaction was aborted. What counts needs the packs that it names, and whatever their
chunks were moved to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from cas_checkpoint.backends import Backend, ObjectInfo
from cas_checkpoint.commits import COMMITS_PREFIX, Commit, CommitKey, State, manifest_key, parse_commit_key
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
        found: the manifests that count.
        aborted: listed manifests that do not, and their sizes in bytes.
        moves: for each pack that has moves, the packs that they name.
        move_keys: the keys of all moves.
        whole: packs that the very transaction which wrote them still names, so that no chunk in them is dead.
    """

    def __init__(self, backend: Backend, store: StoreId) -> None:
        """Prepare to read the roots of the store of that id."""
        self._backend, self._store = backend, store
        self._numbers: dict[PackId, int] = {}
        self.found: dict[TransactionId, Root] = {}
        self.aborted: dict[TransactionId, int] = {}
        self.moves: dict[PackId, frozenset[PackId]] = {}
        self.move_keys: frozenset[MoveKey] = frozenset()
        self.whole: set[PackId] = set()

    def read(self) -> None:
        """List the manifests, then the commits, then the moves; read what was not read before.

        Raises:
            DamagedObject: a manifest or a move cannot be read, so that nobody knows what it needs.
            UnsupportedStore: one is of a newer version.
        """
        listed = {name: info for info in self._backend.list(_PREFIX) if (name := _transaction(info.key))}
        outcomes = self._outcomes(listed.keys())
        given_up = self.aborted.keys() | {name for name, state in outcomes.items() if state is State.ABORTED}
        self.aborted = {name: listed[name].size for name in given_up if name in listed}
        fresh = [info for name, info in listed.items() if name not in self.found and name not in self.aborted]
        with ThreadPoolExecutor(_REQUESTS, "cas-checkpoint-roots") as pool:
            for root in pool.map(self._read_manifest, fresh):
                if root is not None:
                    self._add(*root)
        self.found = {
            name: root._replace(is_committed=name in outcomes)
            for name, root in self.found.items()
            if name in listed and name not in self.aborted
        }
        self.move_keys = frozenset(list_moves(self._backend))
        self.moves = read_moves(self._backend, self.move_keys)

    def abort(self, transaction: TransactionId) -> None:
        """Count a manifest no more: its transaction was aborted."""
        self.aborted[transaction] = self.found.pop(transaction).info.size

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
            if manifest_key(manifest.transaction) != info.key or manifest.store != self._store:
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
        self.found[manifest.transaction] = Root(commit, False, info, manifest.entries, packs)  # noqa: FBT003 -- read below

    # --- what is needed ---

    def needed(self) -> frozenset[PackId]:
        """Return the packs in the closure of any manifest that counts."""
        mask = np.zeros(len(self._numbers), bool)
        for root in self.found.values():
            mask[root.packs] = True
        return closure((pack for pack, number in self._numbers.items() if mask[number]), self.moves)

    def needing(self, packs: Iterable[PackId]) -> dict[TransactionId, Root]:
        """Return the manifests that count and in whose closure any of these packs is."""
        mask = np.zeros(len(self._numbers), bool)
        mask[[self._numbers[pack] for pack in closure(packs, reverse(self.moves)) if pack in self._numbers]] = True
        return {name: root for name, root in self.found.items() if mask[root.packs].any()}

    def closure(self, root: Root) -> frozenset[PackId]:
        """Return the packs in the closure of a manifest."""
        wanted = set(root.packs.tolist())
        return closure((pack for pack, number in self._numbers.items() if number in wanted), self.moves)


def _transaction(key: str) -> TransactionId | None:
    name = key.removeprefix(_PREFIX)
    return TransactionId(bytes.fromhex(name)) if is_hex_id(name) else None
