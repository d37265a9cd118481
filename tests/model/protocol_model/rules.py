"""The rules of the protocols, each of which can be left out to see what it is good for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """What is done as it should be. All true is the protocol of SPEC.md, section 16.

    Attributes:
        marks: collectors announce deletions in marks, and savers look at them.
        relists: a collector lists the manifests again after it published its mark.
        manifest_first: a saver looks at the marks after it wrote its manifest, not before.
        looks_behind_marks: a saver checks that packs exist if marks above its date are closed or gone.
        checks_own: a saver looks for its own new packs in the marks, too.
        exclusive: commits in state C and A exclude each other; otherwise a collector just removes a manifest.
        keeps_aborted: commits in state A stay for ever.
        heeds_open: the base is below the lowest open mark, not the latest mark.
        closes_empty: somebody else's mark is closed only if nothing of what it condemns exists.
        marks_before_packs: who closes such marks lists them before the packs.
        random_names: packs are named at random, not by what they hold.
        waits: if not, a saver waits until no open mark condemns a name before it writes that pack again.
        confirms_number: a collector withdraws its mark if it is not the latest once it is there.
        dated: knowledge from an index is dated by the index.
        merges_by_lowest: a merged index has the lowest date of its parts, not that of its making.
        cleans_index: a collector takes packs that are gone out of the index.
        base_before_listing: a rewritten index is dated by the base that was read before the packs were listed.
        moves_first: a move is there before its source is condemned and deleted.
        closures: what a move names is needed by whoever needs what was moved.
        relists_moves: they are listed again after the mark was published.
        only_known: a source is deleted only if the manifests that need it were there when its live chunks were told.
        only_needing: and needed it then, so that their chunks were among the live ones.
        counts_intents: chunks that a manifest without a commit needs are live.
        copies_all: whatever is live of a source is copied, unless a target that exists has it.
        checks_targets: a collector looks for the targets of its moves in the marks of others.
        keeps_needed_moves: a move stays as long as a manifest needs what was moved.
        relies_on_own: a collector names in moves of its own all targets that it relies on.
        removes_seen: it removes moves only that were there before it listed the manifests for the last time.
        keeps_spared_moves: a collector that spares a source leaves its move of it. The only rule that is not needed.
        shuns_moved: who takes over a parent's packs looks for moves of them.
        parent_last: and then makes sure that the parent is still committed.
        commits_first: who keeps N snapshots forgets others after its own commit.
        waits_for_parts: the whole manifest is written after those of all parts.
        waits_for_checks: and after the marks were looked at for all of them.
        counts_parts: a collector counts the manifest of every part.
        parts_first: it lists those of parts before the others.
        whole_first: part manifests are deleted only when the whole one is there.
        needs_whole: a part counts although its commit is there, unless the whole manifest was listed, too.
        commits_whole: the commit is written after the whole manifest.
        names_bases: a manifest names the packs of the bases of its deltas.
        counts_bases: the bases of live deltas are live.
        copies_whole: a whole copy of a chunk is copied although there is a delta of it.
    """

    marks: bool = True
    relists: bool = True
    manifest_first: bool = True
    looks_behind_marks: bool = True
    checks_own: bool = True
    exclusive: bool = True
    keeps_aborted: bool = True
    heeds_open: bool = True
    closes_empty: bool = True
    marks_before_packs: bool = True
    random_names: bool = True
    waits: bool = True
    confirms_number: bool = True
    dated: bool = True
    merges_by_lowest: bool = True
    cleans_index: bool = True
    base_before_listing: bool = True
    moves_first: bool = True
    closures: bool = True
    relists_moves: bool = True
    only_known: bool = True
    only_needing: bool = True
    counts_intents: bool = True
    copies_all: bool = True
    checks_targets: bool = True
    keeps_needed_moves: bool = True
    relies_on_own: bool = True
    removes_seen: bool = True
    keeps_spared_moves: bool = True
    shuns_moved: bool = True
    parent_last: bool = True
    commits_first: bool = True
    waits_for_parts: bool = True
    waits_for_checks: bool = True
    counts_parts: bool = True
    parts_first: bool = True
    whole_first: bool = True
    needs_whole: bool = True
    commits_whole: bool = True
    names_bases: bool = True
    counts_bases: bool = True
    copies_whole: bool = True
