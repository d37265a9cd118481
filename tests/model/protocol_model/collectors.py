"""Those who collect: what is dead is deleted, what is partly dead is copied and moved first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from protocol_model.actors import Steps, Unsaving
from protocol_model.records import (
    NO_PACKS,
    Commit,
    Index,
    Key,
    Manifest,
    Mark,
    Move,
    Packs,
    Store,
    base,
    base_of,
    chunks_in,
    chunks_of,
    closure,
    deltas_in,
    hides_anything_after,
    keys_in_state,
    latest,
    open_marks,
    put_commit,
    without_commit,
    without_manifest,
    without_part,
)
from protocol_model.rules import Rules


class Source(NamedTuple):
    """A pack that is to be replaced.

    Attributes:
        pack: its name.
        chunks: its live chunks, but for those that are in targets already.
        targets: the packs that hold its live chunks then.
        needing: the manifests from which it was told what is live.
        is_first: whether nobody had moved it before.
    """

    pack: str
    chunks: frozenset[str]
    targets: Packs
    needing: frozenset[str]
    is_first: bool


class Collecting(NamedTuple):
    """The state of a collector; what is not needed any more is emptied.

    Attributes:
        at: what it does next.
        date: the base that it read first.
        packs: the packs that it listed.
        manifests: the manifests that count, of those that it listed.
        moves: the moves that it listed.
        unfinished: commits that are not there yet.
        dead: packs in the closure of no manifest.
        sources: packs to replace.
        spared: packs that cannot be replaced, as others delete what holds the copies.
        waiting: packs that have to be copied or moved yet, or deleted.
        number: its mark.
        withdrawn: whether it had to close a mark and publish another.
        given_up: commits that it aborted.
        old_moves: moves that it listed first, and that nobody needs, if what was moved is gone.
        old_indexes: index objects that were rewritten.
        leftovers: manifests of parts that the whole one has replaced.
    """

    at: str
    date: int = 0
    packs: Packs = NO_PACKS
    manifests: frozenset[Manifest] = frozenset()
    moves: frozenset[Move] = frozenset()
    unfinished: frozenset[Key] = frozenset()
    dead: Packs = NO_PACKS
    sources: tuple[Source, ...] = ()
    spared: Packs = NO_PACKS
    waiting: tuple[str, ...] = ()
    number: int = 0
    withdrawn: bool = False
    given_up: frozenset[Key] = frozenset()
    old_moves: frozenset[Move] = frozenset()
    old_indexes: frozenset[Index] = frozenset()
    leftovers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Collector(Unsaving):
    """One collection.

    Attributes:
        name: its name.
        repacks: whether it replaces partly dead packs.
        aborts: whether it may give up transactions without a commit; where nobody does, no commits are listed.
        indexes: whether it writes index objects, and rewrites the old ones afterwards.
        tidies: whether it removes moves afterwards.
        parts: whether it lists the manifests of parts; where nobody saves in parts, it need not.
    """

    name: str
    repacks: bool = False
    aborts: bool = True
    indexes: bool = False
    tidies: bool = True
    parts: bool = False

    def start(self) -> Collecting:
        """Begin with the base."""
        return Collecting("base")

    def steps(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Do what is next."""
        if state.at in _STEPS:
            yield from _STEPS[state.at](self, rules, store, state)

    # --- the first look ---

    def _base(self, _rules: Rules, store: Store, _state: Collecting) -> Steps:
        yield store, Collecting("packs", base(store))

    def _packs(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        yield store, self._first(rules, state._replace(packs=store.packs), "")

    def _first(self, rules: Rules, state: Collecting, again: str) -> Collecting:
        """Go on with the manifests, or with those of parts."""
        is_first = self.parts and rules.parts_first and rules.counts_parts
        return state._replace(at=("parts" if is_first else "manifests") + again, manifests=frozenset())

    def _parts(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        yield store, self._listed(rules, state, store.parts)

    def _manifests(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        yield store, self._listed(rules, state, store.manifests)

    def _listed(self, rules: Rules, state: Collecting, found: frozenset[Manifest]) -> Collecting:
        """Add manifests to those that were listed, and go on with the others, the commits or the moves."""
        kind, space, again = state.at.partition(" ")
        order = ["parts", "manifests"] if rules.parts_first else ["manifests", "parts"]
        kinds = order if self.parts and rules.counts_parts else ["manifests"]
        after = [*kinds, "commits" if self.aborts else "moves"][kinds.index(kind) + 1]
        return state._replace(at=after + space + again, manifests=state.manifests | found)

    def _commits(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        counting = _counting(rules, store, state)
        outcomes = frozenset(commit.key for commit in store.commits)
        unfinished = frozenset(manifest.key for manifest in counting) - outcomes
        yield store, state._replace(at="moves", manifests=counting, unfinished=unfinished)

    def _moves(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        state = state._replace(moves=store.moves, old_moves=store.moves if self.tidies else frozenset())
        yield store, self._decide(rules, state)

    def _decide(self, rules: Rules, state: Collecting) -> Collecting:
        """Tell the dead packs."""
        dead = state.packs - _needed(rules, state)
        if self.repacks:
            return state._replace(at="foreign", dead=dead)
        return self._announced(rules, state._replace(dead=dead))

    def _announced(self, rules: Rules, state: Collecting) -> Collecting:
        """Go on where everything is copied; nothing is announced where nothing is to be deleted."""
        moves = frozenset() if rules.relists_moves else state.moves
        state = state._replace(packs=NO_PACKS, manifests=frozenset(), moves=moves, waiting=())
        is_any = (state.dead or state.sources) and rules.marks
        return state._replace(at="publish") if is_any else self._published(rules, state)

    # --- repacking ---

    def _foreign(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Read the open marks of others, and tell the sources."""
        foreign = NO_PACKS.union(*(mark.packs for mark in open_marks(store)))
        sources = []
        for pack in sorted(state.packs - state.dead):
            needing = [m for m in state.manifests if pack in closure(m.packs, state.moves)]
            counting = [m for m in needing if rules.counts_intents or m.key not in state.unfinished]
            needed = frozenset().union(*(_chunks_needed(rules, manifest, state.moves) for manifest in counting))
            live = frozenset(copy for copy in chunks_of(pack) if copy.lower() in needed)
            moved = closure([pack], state.moves) - {pack}
            if live != chunks_of(pack) or pack in foreign or moved:
                there = moved & state.packs if rules.copies_all else moved
                targets = frozenset(target for target in there if chunks_of(target) & live)
                known = needing if rules.only_needing else state.manifests
                names = frozenset(manifest.name for manifest in known)
                sources.append(Source(pack, live - chunks_in(targets), targets, names, not moved))
        state = state._replace(sources=tuple(sources), waiting=tuple(source.pack for source in sources))
        yield store, state._replace(at="copy") if sources else self._announced(rules, state)

    def _copy(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Read a source; what is gone was replaced by somebody else."""
        pack, *waiting = state.waiting
        sources = tuple(source for source in state.sources if source.pack != pack or pack in store.packs)
        left = state._replace(sources=sources, waiting=tuple(waiting))
        if not waiting:
            is_any = any(source.chunks for source in sources)
            left = left._replace(at="write") if is_any else self._written(rules, left)
        yield store, left

    def _write(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Write a pack with all copies."""
        chunks = frozenset().union(*(source.chunks for source in state.sources))
        if not rules.copies_whole:
            chunks = frozenset(copy for copy in chunks if copy.upper() not in chunks - {copy})
        pack = f"{self.name}/{''.join(sorted(chunks))}"
        sources = (
            source._replace(targets=source.targets | {pack}) if source.chunks else source for source in state.sources
        )
        state = state._replace(sources=tuple(sources))
        after = state._replace(at="index") if self.indexes else self._written(rules, state)
        yield store._replace(packs=store.packs | {pack}), after

    def _index(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Tell of the copies in an index object, before anybody needs them."""
        own = frozenset(target for target in _targets(state.sources) if target.startswith(f"{self.name}/"))
        index = Index(f"{self.name}.copies", own, state.date)
        yield store._replace(indexes=store.indexes | {index}), self._written(rules, state)

    def _written(self, rules: Rules, state: Collecting) -> Collecting:
        """Go on where all copies are written."""
        unmoved = self._unmoved(rules, state) if rules.moves_first else ()
        return state._replace(at="move", waiting=unmoved) if unmoved else self._announced(rules, state)

    def _unmoved(self, rules: Rules, state: Collecting) -> tuple[str, ...]:
        """Return the sources that need a move of this collection."""
        every = rules.relies_on_own
        return tuple(source.pack for source in state.sources if every or source.chunks or source.is_first)

    def _move(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        pack, *waiting = state.waiting
        targets = _targets(source for source in state.sources if source.pack == pack)
        if not rules.relies_on_own:
            targets = frozenset(target for target in targets if target.startswith(f"{self.name}/"))
        after = store._replace(moves=store.moves | {Move(self.name, pack, targets)})
        left = state._replace(waiting=tuple(waiting))
        if not waiting:
            left = self._announced(rules, left) if rules.moves_first else left._replace(at="close", sources=())
        yield after, left

    # --- the mark ---

    def _publish(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        """List the marks, to find the next number."""
        yield store, state._replace(at="mark", number=latest(store) + 1)

    def _mark(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        condemned = state.dead.union(source.pack for source in state.sources)
        if any(mark.number == state.number for mark in store.marks):
            yield store, state._replace(number=state.number + 1)
        else:
            after = store._replace(marks=store.marks | {Mark(state.number, condemned)})
            yield after, state._replace(at="confirm") if rules.confirms_number else self._published(rules, state)

    def _confirm(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Look whether the mark is the latest: the number may have been free because an old mark was removed."""
        yield store, self._published(rules, state) if latest(store) == state.number else state._replace(at="withdraw")

    def _withdraw(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        """Close the mark, and publish another one: here once only, so that there is an end."""
        left = state._replace(at="publish", number=0, withdrawn=True)
        yield _closed(store, state), Collecting("failed") if state.withdrawn else left

    # --- giving up ---

    def _published(self, rules: Rules, state: Collecting) -> Collecting:
        """Go on where everything is announced."""
        if state.unfinished:
            return state._replace(at="abort")
        if not rules.relists:
            return self._decided(rules, state._replace(sources=()), state.dead)
        is_looking = rules.checks_targets and state.sources
        return state._replace(at="marks") if is_looking else self._first(rules, state, " again")

    def _abort(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Abort any of the transactions without a commit, or none."""
        yield store, self._published(rules, state._replace(unfinished=frozenset()))
        for key in state.unfinished:
            after = put_commit(store, Commit(key, "A", frozenset())) if rules.exclusive else store
            left = state._replace(unfinished=state.unfinished - {key})
            if after is not None:
                left = left._replace(given_up=state.given_up | {key})
            yield store if after is None else after, left if left.unfinished else self._published(rules, left)

    # --- the second look ---

    def _marks(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Look for marks of others that condemn what sources rely on."""
        others = [mark for mark in open_marks(store) if mark.number > state.date and mark.number != state.number]
        state = self._spared(rules, state, NO_PACKS.union(*(mark.packs for mark in others)))
        yield store, state._replace(at="look") if hides_anything_after(store, state.date) else state

    def _look(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """List the packs, as there are marks that do not tell any more what they condemned."""
        yield store, self._spared(rules, state, _targets(state.sources) - store.packs)

    def _spared(self, rules: Rules, state: Collecting, lost: Packs) -> Collecting:
        """Leave sources alone that rely on packs which others delete."""
        spared = state.spared.union(source.pack for source in state.sources if source.targets & lost)
        sources = tuple(source for source in state.sources if source.pack not in spared)
        return self._first(rules, state._replace(sources=sources, spared=spared), " again")

    def _manifests_again(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        yield store, self._listed(rules, state, store.manifests)

    def _commits_again(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        leftovers = _replaced(rules, store, state) if self.parts else frozenset()
        yield store, state._replace(at="moves again", manifests=_counting(rules, store, state), leftovers=leftovers)

    def _moves_again(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        state = state._replace(moves=store.moves if rules.relists_moves else state.moves)
        yield store, self._decide_again(rules, state)

    def _decide_again(self, rules: Rules, state: Collecting) -> Collecting:
        """Tell what is to be deleted."""
        needed = _needed(rules, state)
        deleted = state.dead - needed
        for source in state.sources:
            needing = [m for m in state.manifests if source.pack in closure(m.packs, state.moves)]
            if not rules.only_known or all(m.name in source.needing for m in needing):
                deleted |= {source.pack}
        if self.tidies:
            seen = state.old_moves if rules.removes_seen else state.moves
            old = (move for move in seen if not rules.keeps_needed_moves or move.pack not in needed)
            state = state._replace(old_moves=frozenset(old))
        return self._decided(rules, state, deleted)

    # --- deleting ---

    def _decided(self, rules: Rules, state: Collecting, deleted: Packs) -> Collecting:
        """Go on where it is known what to delete."""
        left = Collecting("delete", number=state.number, given_up=state.given_up, old_moves=state.old_moves)
        left = left._replace(waiting=tuple(sorted(deleted)), spared=state.spared, leftovers=state.leftovers)
        if not rules.moves_first:
            left = left._replace(sources=tuple(source for source in state.sources if source.pack in deleted))
        if state.spared and not rules.keeps_spared_moves:
            return left._replace(at="withdraw move")
        return left if deleted else self._deleted(rules, left)

    def _withdraw_move(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Delete the own move of a pack that was spared, as if nobody else could rely on it."""
        first = min(state.spared)
        left = state._replace(spared=state.spared - {first})
        moves = frozenset(move for move in store.moves if move.name != self.name or move.pack != first)
        if not left.spared:
            left = left._replace(at="delete") if left.waiting else self._deleted(rules, left)
        yield store._replace(moves=moves), left

    def _delete(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        left = state._replace(waiting=state.waiting[1:])
        yield (
            store._replace(packs=store.packs - {state.waiting[0]}),
            left if left.waiting else self._deleted(rules, left),
        )

    def _deleted(self, rules: Rules, state: Collecting) -> Collecting:
        """Go on where everything is deleted; without the rule, only now the moves are written."""
        unmoved = self._unmoved(rules, state)
        if unmoved and not rules.moves_first:
            return state._replace(at="move", waiting=unmoved)
        return state._replace(at="close") if state.number else self._closed(rules, state)

    def _close(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        yield _closed(store, state), self._closed(rules, state)

    # --- tidying up ---

    def _closed(self, rules: Rules, state: Collecting) -> Collecting:
        """Go on where the mark is closed, with whatever is to be tidied up."""
        left = Collecting("end", given_up=state.given_up, old_moves=state.old_moves, leftovers=state.leftovers)
        if self.indexes and rules.cleans_index:
            return left._replace(at="date" if rules.base_before_listing else "list")
        return self._cleaned(left)

    def _cleaned(self, state: Collecting) -> Collecting:
        """Go on where the index is clean."""
        left = Collecting("end", given_up=state.given_up, old_moves=state.old_moves, leftovers=state.leftovers)
        if left.leftovers:
            return left._replace(at="remove part")
        if left.given_up:
            return left._replace(at="remove manifest")
        return left._replace(at="check") if left.old_moves else left

    def _date(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        """Read the base as of which the packs listed next are known to exist."""
        yield store, state._replace(at="list" if rules.base_before_listing else "read", date=base(store))

    def _list(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        yield store, state._replace(at="read" if rules.base_before_listing else "date", packs=store.packs)

    def _read(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        stale = frozenset(index for index in store.indexes if index.date < state.date or index.packs - state.packs)
        yield store, state._replace(at="rewrite", old_indexes=stale) if stale else self._cleaned(state)

    def _rewrite(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        packs = NO_PACKS.union(*(index.packs for index in state.old_indexes)) & state.packs
        new = Index(self.name, packs, state.date)
        yield store._replace(indexes=store.indexes | {new}), state._replace(at="remove index", packs=NO_PACKS, date=0)

    def _remove_index(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        first = min(state.old_indexes, key=lambda index: index.name)
        left = state._replace(old_indexes=state.old_indexes - {first})
        yield store._replace(indexes=store.indexes - {first}), left if left.old_indexes else self._cleaned(left)

    def _remove_part(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        first = min(state.leftovers)
        left = self._cleaned(state._replace(leftovers=state.leftovers - {first}))
        yield without_part(store, first), left

    def _remove_manifest(self, rules: Rules, store: Store, state: Collecting) -> Steps:
        key = min(state.given_up)
        found = min((manifest.name for manifest in store.manifests if manifest.key == key), default=None)
        part = min((part.name for part in store.parts if part.key == key), default=None)
        if found is not None:
            yield without_manifest(store, found), state
        elif part is not None:
            yield without_part(store, part), state
        else:
            left = state._replace(given_up=state.given_up - {key})
            yield store if rules.keeps_aborted else _without_aborted(store, key), self._cleaned(left)

    def _check(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        """List the packs: moves of those that are gone are of no more use, where nobody needed them."""
        old = frozenset(move for move in state.old_moves if move.pack not in store.packs)
        yield store, state._replace(at="remove move" if old else "end", old_moves=old)

    def _remove_move(self, _rules: Rules, store: Store, state: Collecting) -> Steps:
        first = min(state.old_moves, key=lambda move: (move.name, move.pack))
        left = state.old_moves - {first}
        yield (
            store._replace(moves=store.moves - {first}),
            state._replace(at="remove move" if left else "end", old_moves=left),
        )


def _chunks_needed(rules: Rules, manifest: Manifest, moves: frozenset[Move]) -> frozenset[str]:
    """Return the chunks that a manifest needs: its own, and the bases of those that its packs hold as deltas."""
    if not rules.counts_bases:
        return manifest.chunks
    deltas = deltas_in(closure(manifest.packs, moves))
    return manifest.chunks.union(base_of(delta) for delta in deltas if delta.lower() in manifest.chunks)


def _is_part(manifest: Manifest) -> bool:
    """Tell whether a manifest is that of a part; others have the name of their transaction."""
    return manifest.name != manifest.key[1]


def _replaced(rules: Rules, store: Store, state: Collecting) -> frozenset[str]:
    """Return the listed manifests of parts whose commit is there, and in whose place the whole manifest is."""
    committed = keys_in_state(store, "C")
    whole = {manifest.key for manifest in state.manifests if not _is_part(manifest)}
    return frozenset(
        manifest.name
        for manifest in state.manifests
        if _is_part(manifest) and manifest.key in committed and (manifest.key in whole or not rules.needs_whole)
    )


def _counting(rules: Rules, store: Store, state: Collecting) -> frozenset[Manifest]:
    """Return those of the listed manifests that are not aborted, or replaced."""
    aborted = keys_in_state(store, "A") | state.given_up
    replaced = _replaced(rules, store, state)
    return frozenset(
        manifest for manifest in state.manifests if manifest.key not in aborted and manifest.name not in replaced
    )


def _needed(rules: Rules, state: Collecting) -> Packs:
    """Return the packs in the closure of any manifest that counts."""
    named = NO_PACKS.union(*(manifest.packs for manifest in state.manifests))
    return closure(named, state.moves) if rules.closures else named


def _targets(sources: Iterable[Source]) -> Packs:
    """Return all packs that sources rely on."""
    return NO_PACKS.union(*(source.targets for source in sources))


def _closed(store: Store, state: Collecting) -> Store:
    """Close the mark of a collector."""
    return store._replace(closings=store.closings | {state.number})


def _without_aborted(store: Store, key: Key) -> Store:
    return without_commit(store, key) if key in keys_in_state(store, "A") else store


_STEPS: dict[str, Callable[[Collector, Rules, Store, Collecting], Steps]] = {
    "base": Collector._base,
    "packs": Collector._packs,
    "parts": Collector._parts,
    "parts again": Collector._parts,
    "manifests": Collector._manifests,
    "commits": Collector._commits,
    "moves": Collector._moves,
    "foreign": Collector._foreign,
    "copy": Collector._copy,
    "write": Collector._write,
    "index": Collector._index,
    "move": Collector._move,
    "publish": Collector._publish,
    "mark": Collector._mark,
    "confirm": Collector._confirm,
    "withdraw": Collector._withdraw,
    "abort": Collector._abort,
    "marks": Collector._marks,
    "look": Collector._look,
    "manifests again": Collector._manifests_again,
    "commits again": Collector._commits_again,
    "moves again": Collector._moves_again,
    "withdraw move": Collector._withdraw_move,
    "delete": Collector._delete,
    "close": Collector._close,
    "date": Collector._date,
    "list": Collector._list,
    "read": Collector._read,
    "rewrite": Collector._rewrite,
    "remove index": Collector._remove_index,
    "remove part": Collector._remove_part,
    "remove manifest": Collector._remove_manifest,
    "check": Collector._check,
    "remove move": Collector._remove_move,
}
