"""Which actors meet in which store: with all rules, and with one of them left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol_model.actors import Actor, Bystander, Closer, Forgetter, Merger, Reader
from protocol_model.collectors import Collector
from protocol_model.explorer import Explorer, Promise, Result
from protocol_model.records import Commit, Index, Manifest, Mark, Move, Store
from protocol_model.rules import Rules
from protocol_model.writers import Group, InlineWriter, Writer

__all__ = ["SAFE", "WEAK", "Scenario"]


class Scenario(NamedTuple):
    """Actors that meet in a store.

    Attributes:
        name: what it shows.
        start: the store at first.
        actors: who meets.
        keep: how many of the newest snapshots must be there; 0 for all.
        rules: the rules that they follow.
        is_long: whether it takes too long for every run of the tests.
        ends: what must come about somewhere, or the scenario shows nothing: actors, and what they do.
    """

    name: str
    start: Store
    actors: tuple[Actor, ...]
    keep: int = 0
    rules: Rules = Rules()
    is_long: bool = False
    ends: frozenset[tuple[str, str]] = frozenset()

    def explore(self, limit: int = 20_000_000) -> Result:
        """Search through all its states, but for a limit."""
        forgettable = frozenset(actor.record.key for actor in self.actors if isinstance(actor, Forgetter))
        return Explorer(self.start, self.actors, self.rules, Promise(forgettable, self.keep)).run(limit)


def _commit(name: str) -> Commit:
    return Commit((0, name), "C", frozenset({name}))


def _store(pack: str, chunks: str, moved_to: str = "") -> Store:
    """Return a store with one snapshot `m0`, which needs chunks of a pack, and perhaps a move of that pack."""
    manifest = Manifest("m0", (0, "m0"), frozenset({pack}), frozenset(chunks))
    targets = frozenset({moved_to} - {""})
    return Store(
        packs=targets | {pack},
        manifests=frozenset({manifest}),
        commits=frozenset({_commit("m0")}),
        moves=frozenset(Move("old", pack, frozenset({target})) for target in targets),
    )


def _indexed(store: Store) -> Store:
    return store._replace(indexes=frozenset({Index("i0", store.packs, 0)}))


def _after_a_mark(store: Store) -> Store:
    """Return a store in which something else was collected before."""
    return store._replace(marks=frozenset({Mark(1, frozenset({"junk/"}))}), closings=frozenset({1}))


# --- stores -------------------------------------------------------------------------------------

_WHOLE = _store("p/a", "a")
_BY_CONTENT = _store("/a", "a")
_PARTLY = _store("p/ab", "a")  # b is dead
_THREE = _store("p/abc", "ab")  # c is dead
_HALF_MOVED = _store("p/ab", "a", "q/a")  # by a collector that died before it published its mark
_MOVED = _HALF_MOVED._replace(packs=frozenset({"q/a"}))
_BASED = _store("p/ac", "a")  # c is dead; who saves b can store it as a delta of a
_DELTA = _BASED._replace(
    packs=frozenset({"p/ac", "q/B"}),
    manifests=frozenset({Manifest("m0", (0, "m0"), frozenset({"p/ac", "q/B"}), frozenset("b"))}),
)
_CHAIN = ("s/a", "p/bd", "r/Be", "q/C")  # d and e are dead; b is there whole and as a delta, c as a delta of it
_CHAINED = _DELTA._replace(
    packs=frozenset(_CHAIN), manifests=frozenset({Manifest("m0", (0, "m0"), frozenset(_CHAIN), frozenset("bc"))})
)
_GARBAGE = _after_a_mark(Store(packs=frozenset({"p/a"})))

# --- actors -------------------------------------------------------------------------------------

_FORGET = Forgetter("f", _commit("m0"))
_READ = Reader("reader", (0, "m0"))
_CLOSE = Closer("c")
_MERGE = Merger("m")
_OTHERS = Bystander("b", 2)


def _writer(chunks: str = "a", knows: str = "packs", *, name: str = "w1", keep: int = 0, tries: int = 2) -> Writer:
    return Writer(name, chunks, knows, keep, tries)


def _group(tries: int = 2, chunks: str = "ab", *, is_own: bool = False) -> Group:
    """Return ranks, which save one chunk each; the last is what the committer writes itself, if `is_own`."""
    ranks = (Writer(f"w{n}", chunk, tries=tries, part_of=(1, "s")) for n, chunk in enumerate(chunks, start=1))
    return Group("ranks", tuple(ranks), is_own)


def _inline(keep: int) -> tuple[Actor, ...]:
    return tuple(InlineWriter(f"w{number}", keep=keep) for number in (1, 2, 3))


def _collector(
    number: int = 1,
    *,
    repacks: bool = False,
    aborts: bool = False,
    indexes: bool = False,
    tidies: bool = False,
    parts: bool = False,
) -> Collector:
    return Collector(f"{'r' if repacks else 'g'}{number}", repacks, aborts, indexes, tidies, parts)


_COLLECT, _COLLECT_2 = _collector(), _collector(2)
_ABORT, _ABORT_2 = _collector(aborts=True), _collector(2, aborts=True)
_TIDY = _collector(aborts=True, tidies=True)
_REPACK, _REPACK_2 = _collector(repacks=True), _collector(2, repacks=True)
_MOVE, _MOVE_2 = _collector(repacks=True, tidies=True), _collector(2, repacks=True, tidies=True)
_COUNT = _collector(aborts=True, parts=True)
_COUNT_2 = _collector(2, parts=True)
_COUNT_AND_MOVE = _collector(repacks=True, aborts=True, parts=True)
_FORGET_WHOLE = Forgetter("f", Commit((1, "s"), "C", frozenset({"s"})))
_DELTAS = Writer("w1", "b", deltas="b")
_CLEAN = _collector(indexes=True)

# --- all rules ----------------------------------------------------------------------------------


def _safe(
    name: str, start: Store, *actors: Actor, keep: int = 0, is_long: bool = False, ends: str = "", **left_out: bool
) -> Scenario:
    """Return a scenario; `ends` are written as `actor: what it does, actor: what it does`."""
    wanted = frozenset((actor, at) for actor, _, at in (end.partition(": ") for end in ends.split(", ") if end))
    return Scenario(name, start, actors, keep, Rules(**left_out), is_long, wanted)


SAFE = (
    _safe("save", _WHOLE, _writer("ab"), _FORGET, _ABORT, ends="w1: saved, w1: packs, w1: wait, g1: delete"),
    _safe("two saves", _WHOLE, _writer("ab"), _writer("ab", name="w2"), _FORGET, _ABORT, is_long=True),
    _safe("save, two collections", _WHOLE, _writer("ab"), _FORGET, _ABORT, _COLLECT_2, is_long=True),
    _safe("save, two collections that give up", _WHOLE, _writer(), _FORGET, _ABORT, _ABORT_2, ends="w1: failed"),
    _safe(
        "save, a mark is closed by others", _WHOLE, _writer(), _FORGET, _COLLECT, _COLLECT_2, _CLOSE, ends="c: close"
    ),
    _safe("save, old marks are removed", _GARBAGE, _writer(), _ABORT, _OTHERS, ends="g1: withdraw, b: remove closing"),
    _safe("read", _WHOLE, _writer(), _FORGET, _ABORT, _READ, ends="reader: restored, reader: forgotten"),
    _safe(
        "save from an index, merge",
        _indexed(_WHOLE),
        *(_writer("ab", "index"), _FORGET, _collector(indexes=True, aborts=True), _MERGE),
        ends="w1: wait, m: delete, g1: remove index",
    ),
    _safe(
        "two saves from an index, merge",
        _indexed(_WHOLE),
        *(_writer(knows="index"), _writer(knows="index", name="w2"), _FORGET, _CLEAN, _MERGE),
        is_long=True,
    ),
    _safe(
        "save from an index, two collections, merge",
        _indexed(_WHOLE),
        *(_writer(knows="index"), _FORGET, _CLEAN, _COLLECT_2, _MERGE),
        is_long=True,
    ),
    _safe("repack, save", _PARTLY, _writer("ab"), _collector(repacks=True, aborts=True), ends="w1: wait, r1: delete"),
    _safe(
        "repack, forget, read", _PARTLY, _writer("b"), _MOVE, _FORGET, _READ, ends="reader: moves, reader: forgotten"
    ),
    _safe("repack twice, save", _PARTLY, _writer("b"), _MOVE, _MOVE_2, ends="r1: delete, r2: look"),
    _safe("repack twice, save of what is live", _THREE, _writer(tries=1), _REPACK, _REPACK_2),
    _safe("repack twice, collect", _PARTLY, _REPACK, _REPACK_2, _COLLECT, is_long=True, ends="r1: look"),
    _safe("repack twice, forget, read", _PARTLY, _MOVE, _MOVE_2, _FORGET, _READ, ends="r1: remove move"),
    _safe("repack twice, collect, read", _PARTLY, _MOVE, _MOVE_2, _COLLECT, _READ, is_long=True),
    _safe("repack and collect, save, forget", _PARTLY, _writer("b"), _MOVE, _FORGET, _TIDY, is_long=True),
    _safe("repack what was half moved, save, forget", _HALF_MOVED, _writer(), _MOVE, _FORGET, _TIDY, is_long=True),
    _safe(
        "repack, moves withdrawn",
        _PARTLY,
        _REPACK,
        _REPACK_2,
        _COLLECT,
        ends="r1: withdraw move",
        is_long=True,
        keeps_spared_moves=False,
    ),
    _safe("repack, old marks are removed", _after_a_mark(_PARTLY), _writer("b"), _MOVE, _OTHERS, ends="r1: withdraw"),
    _safe(
        "repack, save from an index, merge",
        _indexed(_PARTLY),
        *(_writer("ab", "index"), _collector(repacks=True, indexes=True), _MERGE),
    ),
    _safe(
        "repack and collect, save from an index, merge",
        _indexed(_PARTLY),
        *(_writer("b", "index"), _collector(repacks=True, indexes=True, tidies=True), _COLLECT, _MERGE),
        is_long=True,
    ),
    _safe(
        "nothing changed, forget", _MOVED, _writer(knows="m0"), _MOVE, _FORGET, ends="w1: parent again, r1: remove move"
    ),
    _safe("nothing changed, repack, forget", _PARTLY, _writer(knows="m0"), _MOVE, _FORGET, ends="w1: saved, w1: wait"),
    _safe("nothing changed, repack twice", _MOVED, _writer(knows="m0"), _MOVE, _MOVE_2, _FORGET),
    _safe("nothing changed, half moved", _HALF_MOVED, _writer(knows="m0"), _MOVE, _MOVE_2, _FORGET, is_long=True),
    _safe("nothing changed, partly dead", _PARTLY, _writer(knows="m0"), _MOVE, _MOVE_2, _FORGET, is_long=True),
    _safe(
        "keep 1",
        _WHOLE,
        _writer(keep=1, tries=1),
        _writer(keep=1, tries=1, name="w2"),
        _ABORT,
        keep=1,
        ends="w1: forget",
    ),
    _safe("keep 1, repack", _PARTLY, _writer(keep=1, tries=1), _writer("b", keep=1, tries=1, name="w2"), _MOVE, keep=1),
    _safe(
        "keep 1, nothing changed", _PARTLY, _writer(knows="m0", keep=1), _writer("b", keep=1, name="w2"), _MOVE, keep=1
    ),
    _safe("keep 1, inline", _WHOLE, *_inline(1), keep=1, ends="w1: forget"),
    _safe("keep 2, inline", _WHOLE, *_inline(2), keep=2, ends="w1: forget"),
    _safe("keep 2, inline, collect", _WHOLE, *_inline(2), _ABORT, keep=2, is_long=True),
    _safe("ranks", _WHOLE, _group(1), _FORGET, _COUNT, ends="ranks: saved, ranks: failed, g1: remove part"),
    _safe("ranks that try again", _WHOLE, _group(), _FORGET, _COUNT, is_long=True),
    _safe("ranks, repack", _PARTLY, _group(), _COUNT_AND_MOVE, ends="ranks: saved"),
    _safe("ranks, two collections", _WHOLE, _group(1), _FORGET, _COUNT, _COUNT_2, is_long=True),
    _safe("ranks, the committer writes", _WHOLE, _group(1, "ac", is_own=True), _FORGET, _COUNT),
    _safe("ranks, forgotten at once", Store(), _group(1), _FORGET_WHOLE, _COUNT, ends="f: end"),
    _safe("a delta", _WHOLE, _DELTAS, _FORGET, _ABORT, ends="w1: saved, g1: delete"),
    _safe("a delta, repack", _BASED, _DELTAS, _FORGET, _collector(repacks=True, aborts=True), ends="w1: saved"),
    _safe("a known delta, repack", _DELTA, _writer("b"), _FORGET, _collector(repacks=True, aborts=True)),
    _safe("a chain of deltas, repack", _CHAINED, _writer("c"), _REPACK, ends="r1: delete"),
)
"""Scenarios in which nothing is ever lost."""

# --- a rule left out ----------------------------------------------------------------------------


def _weak(rules: str, start: Store, *actors: Actor, keep: int = 0) -> Scenario:
    return Scenario(f"without {rules}", start, actors, keep, Rules(**dict.fromkeys(rules.split(", "), False)))


def _all_weak(rules: Iterable[str], start: Store, *actors: Actor) -> tuple[Scenario, ...]:
    return tuple(_weak(rule, start, *actors) for rule in rules)


_OF_SAVING = (
    *("marks", "relists", "manifest_first", "looks_behind_marks", "checks_own"),
    *("exclusive", "keeps_aborted", "heeds_open"),
)
_INDEX_USERS = (_writer(knows="index"), _FORGET, _CLEAN)

WEAK = (
    *_all_weak(_OF_SAVING, _WHOLE, _writer("ab"), _FORGET, _ABORT),
    _weak("closes_empty", _WHOLE, _writer("ab"), _FORGET, _ABORT, _CLOSE),
    _weak("marks_before_packs", Store(), _writer("ab"), _COLLECT, _CLOSE),
    _weak("random_names, waits", _BY_CONTENT, _writer(), _FORGET, _COLLECT),
    _weak("random_names", _BY_CONTENT, _writer(), _FORGET, _COLLECT, _COLLECT_2, _CLOSE),
    _weak("confirms_number", _GARBAGE, _writer(), _ABORT, _OTHERS),
    _weak("dated, cleans_index", _indexed(_WHOLE), *_INDEX_USERS),
    _weak("dated", _indexed(_WHOLE), *_INDEX_USERS, _MERGE),
    _weak("merges_by_lowest", _indexed(_WHOLE), *_INDEX_USERS, _MERGE),
    _weak("base_before_listing", _indexed(_WHOLE), *_INDEX_USERS, _COLLECT_2),
    _weak("moves_first", _PARTLY, _REPACK, _READ),
    _weak("closures", _MOVED, _REPACK),
    _weak("relists_moves", _PARTLY, _REPACK, _COLLECT),
    _weak("only_known", _PARTLY, _writer("b"), _REPACK),
    _weak("only_needing", _THREE, _writer(tries=1), _REPACK, _REPACK_2),
    _weak("counts_intents", _PARTLY, _writer("b"), _collector(repacks=True, aborts=True)),
    _weak("copies_all", _PARTLY, _REPACK, _REPACK_2, _COLLECT),
    _weak("checks_targets", _PARTLY, _REPACK, _COLLECT),
    _weak("relies_on_own", _HALF_MOVED, _writer(), _REPACK, _FORGET, _TIDY),
    _weak("relies_on_own, keeps_spared_moves", _PARTLY, _REPACK, _REPACK_2, _COLLECT),
    _weak("removes_seen", _PARTLY, _writer("b"), _REPACK, _FORGET, _TIDY),
    _weak("keeps_needed_moves", _MOVED, _MOVE, _READ),
    _weak("shuns_moved", _MOVED, _writer(knows="m0"), _MOVE, _FORGET),
    _weak("parent_last", _MOVED, _writer(knows="m0"), _MOVE, _FORGET),
    _weak("commits_first", _WHOLE, _writer(keep=1), _writer(keep=1, name="w2"), keep=1),
    *_all_weak(("waits_for_parts", "waits_for_checks", "counts_parts"), _WHOLE, _group(), _FORGET, _COUNT),
    *_all_weak(("parts_first", "whole_first", "needs_whole", "commits_whole"), _WHOLE, _group(), _FORGET, _COUNT),
    _weak("names_bases", _WHOLE, _DELTAS, _FORGET, _ABORT),
    _weak("counts_bases", _BASED, _DELTAS, _FORGET, _collector(repacks=True, aborts=True)),
    _weak("copies_whole", _CHAINED, _REPACK),
)
"""Scenarios in which something is lost, as they leave a rule out."""
