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
    base_of,
    chunks_of,
    hides_anything_after,
    keys_in_state,
    open_marks,
    put_commit,
    without_part,
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
        part_of: the commit of the whole of which it saves a part, and which is not its own affair.
        deltas: chunks that it stores as deltas, if it knows of their bases.
    """

    name: str
    chunks: str = "a"
    knows: str = "packs"
    keep: int = 0
    tries: int = 2
    part_of: Key | None = None
    deltas: str = ""

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
        for named, missing in self._ways(rules, known - state.avoided):
            owner = f"{self.name}.{state.attempt}" if rules.random_names else ""
            new = frozenset({f"{owner}/{missing}"}) if missing else NO_PACKS
            after = "write" if new else self._before_manifest(rules)
            yield store, state._replace(at=after, date=date, named=named | new, new=new)

    def _ways(self, rules: Rules, known: Packs) -> set[tuple[Packs, str]]:
        """Return the ways to rely on known packs: these, and what must be written then."""
        each = [self._holders(rules, known, chunk) for chunk in self.chunks]
        return {
            (NO_PACKS.union(*(packs for packs, _ in way)), "".join(sorted(missing for _, missing in way)))
            for way in product(*each)
        }

    def _holders(self, rules: Rules, known: Packs, chunk: str) -> list[tuple[Packs, str]]:
        """Return what may be relied on for one chunk, and what must be written: nothing, it, or a delta of it."""
        found = [(frozenset({pack}), "") for pack in known if chunk in chunks_of(pack)]
        delta = chunk.upper()
        bases = [frozenset({pack}) for pack in known if base_of(delta) in chunks_of(pack)]
        named = bases if rules.names_bases else [NO_PACKS] if bases else []
        found += [(base | {pack}, "") for pack in known if delta in chunks_of(pack) for base in named]
        if not found and chunk in self.deltas:
            found = [(base, delta) for base in named]
        return found or [(NO_PACKS, chunk)]

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
        after = state._replace(at=self._after_checks() if is_checked else "marks")
        if self.part_of:
            yield store._replace(parts=store.parts | {manifest}), after
        else:
            yield store._replace(manifests=store.manifests | {manifest}), after

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
    """The state of ranks that save together; without ranks where nothing is left to do."""

    at: str
    ranks: tuple[Writing, ...]


@dataclass(frozen=True)
class Group:
    """Ranks that save a part each, and then one of them that makes the whole.

    What a rank tells the others about its own state goes past the store, and costs no operation. The last of the
    writers stands for what the committer writes itself, if `is_own`: it begins when the others are ready.
    """

    name: str
    writers: tuple[Writer, ...]
    is_own: bool = False

    def start(self) -> Ranks:
        """Let all begin."""
        return Ranks("parts", tuple(writer.start() for writer in self.writers))

    def _key(self) -> Key:
        return self.writers[0].part_of or (0, self.name)

    def saved(self, state: Ranks) -> Key | None:
        """Return the snapshot, if it was committed."""
        return self._key() if state.at in {"saved", "remove"} and not state.ranks else None

    def steps(self, rules: Rules, store: Store, state: Ranks) -> Steps:
        """Let any rank do what is next; once all are ready, write the whole, commit, and remove the parts."""
        if state.at == "parts":
            for number, writer in enumerate(self.writers):
                if self._may_begin(state, number):
                    for after, rank in writer.steps(rules, store, state.ranks[number]):
                        ranks = (*state.ranks[:number], rank, *state.ranks[number + 1 :])
                        yield after, Ranks("failed" if rank.at == "failed" else "parts", ranks)
            if self._are_ready(rules, state.ranks):
                yield from self._finish(rules, store, state)
        elif state.at in {"whole", "commit", "remove"}:
            yield from self._finish(rules, store, state)

    def _may_begin(self, state: Ranks, number: int) -> bool:
        is_last = self.is_own and number == len(self.writers) - 1
        return not is_last or all(rank.at == "ready" for rank in state.ranks[:-1])

    def _are_ready(self, rules: Rules, ranks: tuple[Writing, ...]) -> bool:
        ready = {"ready"}
        if not rules.waits_for_checks:
            ready |= {"marks", "packs"}
        if not rules.waits_for_parts:
            ready |= {"manifest"}
        return all(rank.at in ready for rank in ranks)

    def _finish(self, rules: Rules, store: Store, state: Ranks) -> Steps:
        """Do what is next after the parts."""
        order = ["whole", "commit"] if rules.commits_whole else ["commit", "whole"]
        order.insert(len(order) if rules.whole_first else 0, "remove")
        at = order[0] if state.at == "parts" else state.at
        after = (*order, "saved")[order.index(at) + 1]
        if at == "whole":
            left = state if rules.commits_whole else Ranks(after, ())
            yield store._replace(manifests=store.manifests | {self._whole(state)}), left._replace(at=after)
        elif at == "remove":
            left = sorted(part.name for part in store.parts if part.key == self._key())
            removed = without_part(store, left[0]) if left else store
            yield removed, state._replace(at="remove" if left[1:] else after)
        else:
            commit = Commit(self._key(), "C", frozenset({self._key()[1]}))
            committed = put_commit(store, commit, exclusive=rules.exclusive)
            if committed is None:
                yield store, Ranks("failed", ())
            else:
                yield committed, Ranks(after, () if rules.commits_whole else state.ranks)

    def _whole(self, state: Ranks) -> Manifest:
        named = NO_PACKS.union(*(rank.named for rank in state.ranks))
        chunks = frozenset().union(*(writer.chunks for writer in self.writers))
        return Manifest(self._key()[1], self._key(), named, chunks)
