"""Those who save: alone or as ranks, with packs or inline, and keeping only the newest snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from protocol_model.actors import Stage, Steps, forget
from protocol_model.records import (
    NO_PACKS,
    Commit,
    Index,
    Key,
    Manifest,
    Packs,
    Store,
    base,
    chunks_in,
    chunks_of,
    hides_anything_after,
    keys_in_state,
    open_marks,
    put_commit,
)
from protocol_model.rules import Rules


class Writing(NamedTuple):
    """The state of a writer.

    Attributes:
        at: what it does next.
        date: the lowest date of what it relies on.
        named: the packs that its manifest names.
        new: those of them that it wrote itself, or is to write.
        avoided: packs that it was seen to be unable to rely on.
        attempt: how often it wrote packs before.
        transaction: how many transactions it began before.
        sequence: the number of its snapshot.
        later: superseded snapshots to forget, or the manifests of the first of them.
    """

    at: str
    date: int = 0
    named: Packs = NO_PACKS
    new: Packs = NO_PACKS
    avoided: Packs = NO_PACKS
    attempt: int = 0
    transaction: int = 0
    sequence: int = 1
    later: tuple[Commit, ...] = ()
    forgetting: Stage = Stage("forget")


@dataclass(frozen=True)
class Writer:
    """Saves some chunks, relying on packs that hold them already.

    Attributes:
        name: its name.
        chunks: what it saves.
        knows: where it looks for what is there: `packs`, `index`, or `nothing`; or the name of a parent snapshot's
            manifest, all of whose packs it takes over if nothing was moved.
        keep: how many snapshots it leaves in the series; 0 for all.
        tries: how many transactions and attempts it may begin.
        part_of: the commit that is to name its manifest as one part, and is not its own affair.
    """

    name: str
    chunks: str = "a"
    knows: str = "packs"
    keep: int = 0
    tries: int = 2
    part_of: Key | None = None

    def start(self) -> Writing:
        """Begin with the base; a writer that keeps few must know the highest sequence first."""
        return Writing("sequence" if self.keep else "base")

    def saved(self, state: Writing) -> Key | None:
        """Return the snapshot, if it was committed."""
        is_saved = state.at in {"saved", "superseded", "forget"}
        return self._key(state) if is_saved and not self.part_of else None

    def manifest_name(self, state: Writing) -> str:
        """Return the name of the manifest of the current transaction."""
        return f"{self.name}.{state.transaction}"

    def _key(self, state: Writing) -> Key:
        return self.part_of or (state.sequence, self.manifest_name(state))

    def steps(self, rules: Rules, store: Store, state: Writing) -> Steps:
        """Do what is next."""
        if state.at in _STEPS:
            yield from _STEPS[state.at](self, rules, store, state)

    # --- before the manifest ---

    def _sequence(self, rules: Rules, store: Store, state: Writing) -> Steps:
        sequence = max((commit.key[0] for commit in store.commits), default=0) + 1
        after = self._first() if rules.commits_first else "superseded too early"
        yield store, state._replace(at=after, sequence=sequence)

    def _first(self) -> str:
        return "base"

    def _base(self, rules: Rules, store: Store, state: Writing) -> Steps:
        is_parent = self.knows not in {"packs", "index", "nothing"} and not state.attempt
        after = "parent" if is_parent else "learn"
        yield store, state._replace(at=after, date=base(store, heeds_open=rules.heeds_open))

    def _parent(self, _rules: Rules, store: Store, state: Writing) -> Steps:
        """Read the parent's commit and manifest, as one: for its packs only the date counts."""
        parent = next((manifest for manifest in store.manifests if manifest.name == self.knows), None)
        if parent is None or parent.key not in keys_in_state(store, "C"):
            yield store, state._replace(at="learn")
        else:
            yield store, state._replace(at="moves", named=parent.packs)

    def _moves(self, rules: Rules, store: Store, state: Writing) -> Steps:
        is_moved = rules.shuns_moved and any(move.pack in state.named for move in store.moves)
        after = "parent again" if rules.parent_last else self._before_manifest(rules)
        yield store, state._replace(at="learn", named=NO_PACKS) if is_moved else state._replace(at=after)

    def _parent_again(self, rules: Rules, store: Store, state: Writing) -> Steps:
        if any(self.knows in commit.manifests for commit in store.commits):
            yield store, state._replace(at=self._before_manifest(rules))
        else:
            yield store, state._replace(at="learn", named=NO_PACKS)

    def _learn(self, rules: Rules, store: Store, state: Writing) -> Steps:
        """Find chunks in known packs, in all ways that there are; what is in none must be written."""
        known, date = NO_PACKS, state.date
        if self.knows == "index" and store.indexes:
            known = frozenset().union(*(index.packs for index in store.indexes))
            date = min([date, *(index.date for index in store.indexes)]) if rules.dated else date
        elif self.knows not in {"index", "nothing"}:
            known = store.packs
        for named in self._ways(known - state.avoided):
            missing = "".join(sorted(frozenset(self.chunks) - chunks_in(named)))
            owner = f"{self.name}.{state.attempt}" if rules.random_names else ""
            new = frozenset({f"{owner}/{missing}"}) if missing else NO_PACKS
            after = "write" if new else self._before_manifest(rules)
            yield store, state._replace(at=after, date=date, named=named | new, new=new)

    def _ways(self, known: Packs) -> set[Packs]:
        holders = [[pack for pack in known if chunk in chunks_of(pack)] for chunk in self.chunks]
        return {frozenset(way) for way in product(*filter(None, holders))}

    def _write(self, rules: Rules, store: Store, state: Writing) -> Steps:
        after = "index" if self.knows == "index" else self._before_manifest(rules)
        yield store._replace(packs=store.packs | state.new), state._replace(at=after)

    def _index(self, rules: Rules, store: Store, state: Writing) -> Steps:
        index = Index(f"{self.name}.{state.attempt}", state.new, state.date)
        after = state._replace(at=self._before_manifest(rules))
        yield store._replace(indexes=store.indexes | {index}), after

    def _before_manifest(self, rules: Rules) -> str:
        return "manifest" if rules.manifest_first else "marks"

    # --- from the manifest to the commit ---

    def _manifest(self, rules: Rules, store: Store, state: Writing) -> Steps:
        manifest = Manifest(self.manifest_name(state), self._key(state), state.named, frozenset(self.chunks))
        trusts_itself = not rules.random_names and not rules.waits and state.attempt > 0
        is_checked = not rules.marks or not rules.manifest_first or trusts_itself
        after = self._after_checks() if is_checked else "marks"
        yield store._replace(manifests=store.manifests | {manifest}), state._replace(at=after)

    def _after_checks(self) -> str:
        return "ready" if self.part_of else "commit"

    def _after_marks(self, rules: Rules) -> str:
        return self._after_checks() if rules.manifest_first else "manifest"

    def _checked(self, rules: Rules, state: Writing) -> Packs:
        return state.named if rules.checks_own else state.named - state.new

    def _marks(self, rules: Rules, store: Store, state: Writing) -> Steps:
        checked = self._checked(rules, state)
        condemned = NO_PACKS.union(*(mark.packs for mark in open_marks(store) if mark.number > state.date)) & checked
        if condemned:
            yield store, self._again(state, condemned)
        elif checked and rules.looks_behind_marks and hides_anything_after(store, state.date):
            yield store, state._replace(at="packs")
        else:
            yield store, state._replace(at=self._after_marks(rules))

    def _packs(self, rules: Rules, store: Store, state: Writing) -> Steps:
        lost = self._checked(rules, state) - store.packs
        yield store, self._again(state, lost) if lost else state._replace(at=self._after_marks(rules))

    def _again(self, state: Writing, avoided: Packs) -> Writing:
        """Begin again, with fresh copies of what was in packs that are going."""
        attempt, transaction = state.attempt + 1, state.transaction + 1
        avoided |= state.avoided
        if max(attempt, transaction) >= self.tries:
            return self._done(state, "failed")
        again = Writing("wait", avoided=avoided, attempt=attempt, transaction=transaction)
        return again._replace(sequence=state.sequence)

    def _wait(self, rules: Rules, store: Store, state: Writing) -> Steps:
        """Read the base anew; with names that are used again, wait for their end first."""
        condemned = NO_PACKS.union(*(mark.packs for mark in open_marks(store)))
        if rules.random_names or not rules.waits or not condemned & state.avoided:
            yield from self._base(rules, store, state)

    def _commit(self, rules: Rules, store: Store, state: Writing) -> Steps:
        commit = Commit(self._key(state), "C", self._manifests(state))
        after = put_commit(store, commit, exclusive=rules.exclusive)
        if after is not None:
            yield after, self._done(state, "superseded" if self.keep and rules.commits_first else "saved")
        elif state.transaction + 1 < self.tries:
            yield store, state._replace(at=self._renewed(), transaction=state.transaction + 1)
        else:
            yield store, self._done(state, "failed")

    def _done(self, state: Writing, at: str) -> Writing:
        return Writing(at, transaction=state.transaction, sequence=state.sequence)

    def _renewed(self) -> str:
        return "manifest"

    def _manifests(self, state: Writing) -> frozenset[str]:
        return frozenset({self.manifest_name(state)})

    # --- after the commit ---

    def _superseded(self, rules: Rules, store: Store, state: Writing) -> Steps:
        """List the series: of several that do so after their commits, each leaves the newest alone."""
        newest = sorted((commit for commit in store.commits if commit.state == "C"), reverse=True)
        later = tuple(newest[self.keep if rules.commits_first else self.keep - 1 :])
        yield store, self._next(rules, state._replace(later=later))

    def _forget(self, rules: Rules, store: Store, state: Writing) -> Steps:
        after, forgetting = forget(store, state.later[0], state.forgetting)
        if forgetting.at == "end":
            yield after, self._next(rules, state._replace(later=state.later[1:], forgetting=Stage("forget")))
        else:
            yield after, state._replace(forgetting=forgetting)

    def _next(self, rules: Rules, state: Writing) -> Writing:
        if state.later:
            return state._replace(at="forget" if rules.commits_first else "forget too early")
        return state._replace(at="saved" if rules.commits_first else self._first())


_STEPS: dict[str, Callable[[Writer, Rules, Store, Writing], Steps]] = {
    "sequence": Writer._sequence,
    "base": Writer._base,
    "parent": Writer._parent,
    "moves": Writer._moves,
    "parent again": Writer._parent_again,
    "learn": Writer._learn,
    "write": Writer._write,
    "index": Writer._index,
    "manifest": Writer._manifest,
    "marks": Writer._marks,
    "packs": Writer._packs,
    "wait": Writer._wait,
    "commit": Writer._commit,
    "superseded": Writer._superseded,
    "superseded too early": Writer._superseded,
    "forget": Writer._forget,
    "forget too early": Writer._forget,
}


class InlineWriter(Writer):
    """Saves a small snapshot: a commit that carries its own manifest, and relies on no pack."""

    def start(self) -> Writing:
        """Begin with the commit, but for the sequence."""
        return Writing("sequence" if self.keep else "commit")

    def _first(self) -> str:
        return "commit"

    def _renewed(self) -> str:
        return "commit"

    def _manifests(self, _state: Writing) -> frozenset[str]:
        return frozenset()


class Ranks(NamedTuple):
    """The state of ranks that save together."""

    at: str
    ranks: tuple[Writing, ...]


@dataclass(frozen=True)
class Group:
    """Ranks that write a part of a manifest each, and one commit that names all parts.

    What a rank tells the others about its own state goes past the store, and costs no operation.
    """

    name: str
    writers: tuple[Writer, ...]

    def start(self) -> Ranks:
        """Let all begin."""
        return Ranks("parts", tuple(writer.start() for writer in self.writers))

    def saved(self, state: Ranks) -> Key | None:
        """Return the snapshot, if it was committed."""
        return self.writers[0].part_of if state.at == "saved" else None

    def steps(self, rules: Rules, store: Store, state: Ranks) -> Steps:
        """Let any rank do what is next; commit once all are ready."""
        if state.at != "parts":
            return
        for number, writer in enumerate(self.writers):
            for after, rank in writer.steps(rules, store, state.ranks[number]):
                ranks = (*state.ranks[:number], rank, *state.ranks[number + 1 :])
                yield after, Ranks("failed" if rank.at == "failed" else "parts", ranks)
        if self._are_ready(rules, state):
            yield self._commit(rules, store, state)

    def _are_ready(self, rules: Rules, state: Ranks) -> bool:
        ready = {"ready"}
        if not rules.waits_for_checks:
            ready |= {"marks", "packs"}
        if not rules.waits_for_parts:
            ready |= {"manifest"}
        return all(rank.at in ready for rank in state.ranks)

    def _commit(self, rules: Rules, store: Store, state: Ranks) -> tuple[Store, Ranks]:
        pairs = zip(self.writers, state.ranks, strict=True)
        names = frozenset(writer.manifest_name(rank) for writer, rank in pairs)
        key = self.writers[0].part_of or (0, self.name)
        after = put_commit(store, Commit(key, "C", names), exclusive=rules.exclusive)
        return (store, state._replace(at="failed")) if after is None else (after, Ranks("saved", ()))
