"""Each rule of the protocols, taken out of the real code: the loss that it prevents must be seen, and only then.

A scenario lets real saves, collections and forgetters meet in one particular order, and tells whether everything that
was acknowledged and not forgotten is still there. It must be, as long as the code is as it should be, and must not be
when the one rule is missing: so each rule is needed, and each scenario is able to fail.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import pytest

from cas_checkpoint import collecting, filescache, merging, parts, roots, saving
from cas_checkpoint import store as stores
from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.commits import Commit, State, part_key
from cas_checkpoint.copying import PackCopier
from cas_checkpoint.errors import CasCheckpointError, DamagedStore, SnapshotNotFound
from cas_checkpoint.footers import read_footer
from cas_checkpoint.ids import ChunkId, TransactionId
from cas_checkpoint.index import encode_index, ids_array
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.merging import list_indexes
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packing import Packer, _Base
from cas_checkpoint.reading import SnapshotReader
from cas_checkpoint.roots import Roots
from cas_checkpoint.saving import Saver
from cas_checkpoint.store import Store
from cas_checkpoint.transactions import MarkTable, list_commits, list_marks, list_moves, list_packs

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from tensors_that_move import weights  # noqa: E402

sys.path.remove(str(TOOLS))
KIB = 2**10


# --- actors that can be stopped at an operation ---------------------------------------------------


class Killed(BaseException):
    """Ends an actor, as `kill -9` would."""


class Gate:
    """Stops an actor just before an operation on a kind of objects."""

    def __init__(self, verb, kind, nth=1, *, at=None, do=None):
        self.at, self.nth = (verb, kind), nth
        self.before, self.do = at, do
        self.reached, self.go = threading.Event(), threading.Event()
        self.kill = False

    def meet(self, verb, key):
        if (verb, key.partition("/")[0]) == self.before:
            self.before = None
            self.do()
        if (verb, key.partition("/")[0]) != self.at or self.reached.is_set():
            return
        self.nth -= 1
        if self.nth == 0:
            self.reached.set()
            assert self.go.wait(60)
            if self.kill:
                raise Killed


class Gated(LocalBackend):
    def __init__(self, root, gate):
        super().__init__(root, durable=False)
        self.gate = gate

    def put(self, key, parts):
        self.gate.meet("put", key)
        super().put(key, parts)

    def put_if_absent(self, key, data):
        self.gate.meet("put", key)
        return super().put_if_absent(key, data)

    def delete(self, key):
        self.gate.meet("delete", key)
        super().delete(key)

    def list(self, prefix):
        self.gate.meet("list", prefix)
        return super().list(prefix)

    def names(self, prefix):
        self.gate.meet("list", prefix)
        return super().names(prefix)


class Actor:
    """Does something in a thread of its own, up to a gate; at an operation before that, something else is done."""

    def __init__(self, place, gate, action, **between):
        self.gate = Gate(*gate, **between)
        store = Store.open(place, durable=False)
        store._backend = Gated(str(place), self.gate)
        self.result = self.error = None

        def run():
            try:
                self.result = action(store)
            except (CasCheckpointError, Killed) as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert self.gate.reached.wait(60), "it never got there"

    def resume(self):
        self.gate.go.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.result

    def kill(self):
        self.gate.kill = True
        self.resume()


class World:
    """A store, and what was acknowledged in it."""

    def __init__(self, place):
        self.place = place
        self.open(create=True)
        self.saved = {}

    def open(self, **options):
        return Store.open(self.place, durable=False, **options)

    def save(self, files, **options):
        return self.acknowledge(self.open().save(files, **options), files)

    def acknowledge(self, snapshot, files):
        if snapshot is not None:
            self.saved[snapshot.id] = files
        return snapshot

    def forget(self, snapshot):
        del self.saved[snapshot.id]
        self.open().forget(snapshot)

    def collect(self, **options):
        return self.open().collect(**options)

    def deltas(self):
        backend = self.open()._backend
        return sum(len(read_footer(backend, pack).delta_rows) for pack in list_packs(backend))

    def actor(self, gate, action, **between):
        return Actor(self.place, gate, action, **between)

    def is_intact(self):
        store = self.open()
        try:
            return all(
                store.snapshot(name).read_bytes(path) == data
                for name, files in self.saved.items()
                for path, data in files.items()
            )
        except CasCheckpointError:
            return False


def noise(seed, size=300 * KIB):
    return random.Random(seed).randbytes(size)


V0, V1, V2 = ({"model": weights(1, steps, 320 * KIB)} for steps in range(3))
A, B, C = ({name: noise(seed)} for seed, name in enumerate("abc"))
MANY = {f"f{number}": noise(number + 10) for number in range(6)}
FEW = {"f1": MANY["f1"]}
MOST = {name: MANY[name] for name in ("f1", "f2", "f3", "f4")}


# --- scenarios: each returns whether nothing was lost ----------------------------------------------


def collection_during_a_save(world):
    saver = world.actor(("put", "manifests"), lambda store: store.save(A))
    world.collect()
    world.acknowledge(saver.resume(), A)
    return world.is_intact()


def collection_during_a_save_that_relies_on_old_packs(world):
    first = world.save(A)
    saver = world.actor(("put", "manifests"), lambda store: store.save(A))
    world.forget(first)
    world.collect()
    world.acknowledge(saver.resume(), A)
    return world.is_intact()


def save_between_the_first_look_and_the_mark(world):
    world.forget(world.save(A))
    collector = world.actor(("put", "marks"), lambda store: store.collect())
    world.save(A)
    collector.resume()
    return world.is_intact()


def save_while_a_mark_is_open(world):
    world.forget(world.save(A))
    collector = world.actor(("delete", "packs"), lambda store: store.collect())
    world.save(A)
    collector.resume()
    return world.is_intact()


def commit_of_what_a_collector_gives_up(world):
    world.save(B)
    saver = world.actor(("put", "commits"), lambda store: store.save(A))
    collector = world.actor(("put", "commits"), lambda store: store.collect())
    world.acknowledge(saver.resume(), A)
    collector.resume()
    return world.is_intact()


def commit_of_what_a_collector_gave_up(world):
    world.save(B)
    saver = world.actor(("put", "commits"), lambda store: store.save(A))
    world.collect()
    world.collect()
    world.acknowledge(saver.resume(), A)
    return world.is_intact()


def save_after_a_collector_that_died_before_it_cleaned_the_index(world):
    world.save(B)
    world.forget(world.save(A))
    world.actor(("list", "index"), lambda store: store.collect()).kill()
    assert len(list_packs(world.open()._backend)) == 1
    world.save(A)
    return world.is_intact()


def save_after_a_merge_of_an_index_that_was_not_cleaned(world):
    world.save(B)
    world.forget(world.save(A))
    backend = world.open()._backend
    world.actor(("list", "index"), lambda store: store.collect()).kill()
    merging._merge(backend, list_indexes(backend))
    assert len(list_indexes(backend)) == 1
    world.save(A)
    return world.is_intact()


def save_while_another_collector_spares_what_is_young(world):
    world.forget(world.save(A))
    collector = world.actor(("delete", "packs"), lambda store: store.collect())
    world.collect(grace=3600)
    world.save(A)
    collector.resume()
    return world.is_intact()


def save_of_what_a_repacking_collector_took_for_dead(world):
    first = world.save(MANY)
    world.save(FEW)
    world.forget(first)
    collector = world.actor(("put", "marks"), lambda store: store.collect())
    world.save({"f5": MANY["f5"]})
    collector.resume()
    return world.is_intact()


def two_repacking_collectors(world):
    first = world.save(MANY)
    world.save(FEW)
    world.forget(first)
    one = world.actor(("put", "moves"), lambda store: store.collect())
    world.collect(repack=None)
    one.resume()
    return world.is_intact()


def repacking_of_what_another_collector_moves_chunks_to(world):
    first = world.save(MANY)
    world.save(MOST)
    world.forget(first)
    backend = world.open()._backend
    old = [info.key for info in backend.list("index/")]
    other = world.actor(("put", "moves"), lambda store: store.collect(repack=0.3))
    for key in old:  # so that the next save learns only of the new pack
        backend.delete(key)
    world.save(FEW)
    one = world.actor(("put", "marks"), lambda store: store.collect(repack=0.5))
    other.resume()
    one.resume()
    return world.is_intact()


def tidying_beside_a_repacking_collector(world):
    """A collector lists the manifests before a save writes its own, and the moves after another has moved its pack."""
    first = world.save(MANY)
    saver = world.actor(("put", "manifests"), lambda store: store.save(FEW))
    tidier = world.actor(
        ("list", "commits", 2), lambda store: store.collect(), at=("list", "moves"), do=lambda: world.forget(first)
    )
    world.acknowledge(saver.resume(), FEW)
    world.collect(repack=0.1)
    tidier.resume()
    world.collect()
    return world.is_intact()


def repacking_twice(world):
    first = world.save(MANY)
    world.save(FEW)
    world.forget(first)
    world.collect()
    world.collect()
    return world.is_intact()


def unchanged_source_whose_packs_were_moved(world):
    source = world.place.parent / f"source{os.getpid()}"
    source.mkdir(exist_ok=True)
    for name, data in MANY.items():
        (source / name).write_bytes(data)
    first = world.save(source)
    for name in MANY.keys() - FEW.keys():
        (source / name).unlink()
    second = world.acknowledge(world.open().save(source), FEW)
    world.forget(first)
    world.collect()  # the parent's pack is gone, and was moved
    collector = world.actor(("list", "manifests", 2), lambda store: store.collect())
    saver = world.actor(("put", "manifests"), lambda store: store.save(source))
    world.forget(second)
    collector.resume()
    world.acknowledge(saver.resume(), FEW)
    world.collect()
    return world.is_intact()


def reader_beside_a_forgetter(world):
    snapshot = world.save(A)
    forgetter = world.actor(("delete", "commits"), lambda store: store.forget(snapshot.id))
    forgetter.kill()
    forgetter = world.actor(("delete", "manifests"), lambda store: store.forget(snapshot.id))
    reader = world.open()
    try:
        reader.snapshot(snapshot.id).read_bytes("a")
    except SnapshotNotFound:
        return True
    except DamagedStore:
        return False
    finally:
        forgetter.resume()
    return True


def save_that_keeps_one_and_dies_before_its_commit(world):
    world.save(A)
    world.actor(("put", "commits"), lambda store: store.save(B, keep=1)).kill()
    return world.is_intact()


def save_after_an_index_was_rewritten_beside_another_collection(world):
    world.save(B)
    lost = world.save(A)
    world.forget(world.save(C))
    done = []
    real = merging.list_marks

    def list_marks_then_be_overtaken(backend):
        found = real(backend)
        if not done:
            done.append(True)
            world.forget(lost)
            merging.list_marks = real
            world.actor(("list", "index"), lambda store: store.collect()).kill()
        return found

    merging.list_marks = list_marks_then_be_overtaken
    try:
        world.collect()
    finally:
        merging.list_marks = real
    world.save(A)
    return world.is_intact()


def forgotten_base(world):
    first = world.save(V0)
    world.save(V1)
    assert world.deltas() == 1
    world.forget(first)
    world.collect(repack=None)
    return world.is_intact()


def repacking_of_a_base(world):
    first = world.save({**MANY, **V0})
    world.save(V1)
    world.forget(first)
    assert world.collect().packs_repacked == 1
    return world.is_intact()


def repacking_of_a_delta(world):
    world.save(V0)
    second = world.save({**MANY, **V1})
    world.save(V1)
    assert world.deltas() == 1
    world.forget(second)
    assert world.collect().packs_repacked == 1
    return world.is_intact()


def save_of_what_is_stored_as_a_delta(world):
    first = world.save(V0)
    second = world.save(V1)
    world.save(V1, series="other")
    assert world.deltas() == 1
    world.forget(first)
    world.forget(second)
    world.collect(repack=None)
    return world.is_intact()


def save_of_what_is_stored_as_a_delta_whose_base_is_gone(world):
    first = world.save(V0)
    second = world.save({**A, **V1})
    world.save(A)
    world.forget(first)
    world.forget(second)
    world.collect(repack=None)
    assert world.deltas() == 1
    world.save(V1, series="other")
    return world.is_intact()


def delta_of_what_is_stored_as_a_delta(world):
    for files in (V0, V1, V2):
        world.save(files)
    assert world.deltas() == 2
    return world.is_intact()


def repacking_of_a_base_that_another_snapshot_of_the_same_needs_not(world):
    """One snapshot holds a chunk as a delta, another of the very same entries holds it whole and is looked at first."""
    first = world.save({**MANY, **V0})
    backend = world.open()._backend
    (index,) = backend.list("index/")
    second = world.save({**A, **V1})
    world.save({**A, **V1}, series="other")
    backend.delete(index.key)  # so that the base is not known
    whole = world.save({**A, **V1}, series="whole")
    world.forget(first)
    world.forget(second)
    needing, max_rows = Roots.needing, collecting._MAX_ROWS
    try:
        Roots.needing = lambda self, packs: dict(
            sorted(needing(self, packs).items(), key=lambda item: item[1].commit.key.series, reverse=True)
        )
        collecting._MAX_ROWS = 100
        assert world.collect().packs_repacked == 1
    finally:
        Roots.needing, collecting._MAX_ROWS = needing, max_rows
    world.forget(whole)
    world.collect()
    return world.is_intact()


# --- scenarios of saves in parts --------------------------------------------------------------------


def collect_patiently(store):
    """Collect, but leave those alone who have not committed yet."""
    collection = collecting._Collection(
        store._backend, store._header, grace=0.0, now=time.time(), monitor=Monitor(), give_up=False
    )
    collection.run(repack=0.5, dry_run=False, at_least=0.0)


class Job:
    """Two ranks that save a part each, stopped at their part manifests, if that is wanted."""

    def __init__(self, world, ranks=(A, B), *, stopped=()):
        self.world, self.files = world, {}
        self.plan = world.open().begin_parts(parts=len(ranks))
        self.receipts = {}
        self.stopped = {}
        for part, files in enumerate(ranks):
            self.files |= files
            if part in stopped:
                self.stopped[part] = world.actor(("put", "parts"), self.saving(files, part))
            else:
                self.receipts[part] = self.saving(files, part)(world.open())

    def saving(self, files, part):
        return lambda store: store.save_part(files, self.plan, part=part)

    def resume(self):
        for part, actor in self.stopped.items():
            self.receipts[part] = actor.resume()

    def commit(self, store):
        return store.commit_parts(self.plan, self.receipts.values())

    def is_intact(self, snapshot):
        """Tell whether there is the snapshot, and all else."""
        return self.world.acknowledge(snapshot, self.files) is not None and self.world.is_intact()


def try_to_commit(job):
    try:
        return job.commit(job.world.open())
    except CasCheckpointError:
        return None


def collection_between_the_parts_and_the_commit(world):
    job = Job(world)
    collect_patiently(world.open())
    return job.is_intact(try_to_commit(job))


def collection_before_a_part_manifest(world):
    first = world.save(A)
    job = Job(world, stopped=[0])
    world.forget(first)
    collect_patiently(world.open())
    job.resume()
    return job.is_intact(try_to_commit(job))


def commit_during_the_second_look(world, at):
    """All part manifests come after the first look, and the commit during the second."""
    job = Job(world, stopped=[0, 1])
    collector = world.actor(("list", at, 2), collect_patiently, at=("put", "marks"), do=job.resume)
    snapshot = try_to_commit(job)
    collector.resume()
    return job.is_intact(snapshot)


def commit_before_parts_are_listed_again(world):
    return commit_during_the_second_look(world, "parts")


def commit_before_commits_are_listed_again(world):
    return commit_during_the_second_look(world, "commits")


def collection_before_the_committer_protects_its_pack(world):
    job = Job(world)
    committer = world.actor(("put", "parts"), job.commit)
    collect_patiently(world.open())
    return job.is_intact(committer.resume())


def collection_before_the_whole_manifest(world):
    job = Job(world)
    committer = world.actor(("put", "manifests"), job.commit)
    collect_patiently(world.open())
    return job.is_intact(committer.resume())


def commit_of_parts_that_were_given_up(world):
    job = Job(world)
    committer = world.actor(("put", "commits"), job.commit)
    world.collect()
    world.collect()
    world.acknowledge(committer.resume(), job.files)
    return world.is_intact()


def part_that_is_saved_again(world):
    job = Job(world)
    again = world.actor(("put", "parts"), job.saving(C, 1))
    collector = world.actor(("put", "marks"), collect_patiently)
    job.receipts[1] = again.resume()
    job.files = A | C
    collector.resume()
    return job.is_intact(try_to_commit(job))


# --- mutations: each takes one rule out ------------------------------------------------------------


def no_look_at_the_marks(patch):
    patch(saving, "condemned_packs", lambda *_: frozenset())


def own_packs_are_not_checked(patch):
    real = saving.condemned_packs

    def check_old_ones(backend, base, packs):
        newest = max(
            list_packs(backend), default=b"", key=lambda pack: os.stat(backend._path(f"packs/{pack.hex()}")).st_ctime
        )
        return real(backend, base, [pack for pack in packs if pack != newest and pack in list_packs(backend)])

    patch(saving, "condemned_packs", check_old_ones)


def marks_are_looked_at_before_the_manifest_is_written(patch):
    real = saving.Attempt._checked_commit
    found = []

    def check_first(self, entries, refs, base):
        condemned = saving_condemned(self._backend, base, [ref.pack for ref in refs])
        found.append(condemned)
        return real(self, entries, refs, base)

    saving_condemned = saving.condemned_packs
    patch(saving.Attempt, "_checked_commit", check_first)
    patch(saving, "condemned_packs", lambda *_: found[-1])


def nothing_is_looked_at_again(patch):
    real, seen = Roots.read, set()

    def read_once(self):
        if id(self) not in seen:
            seen.add(id(self))
            real(self)

    patch(Roots, "read", read_once)


def packs_are_not_checked_behind_closed_marks(patch):
    patch(MarkTable, "hides_anything_after", lambda *_: False)


def base_is_the_latest_mark(patch):
    patch(MarkTable, "base", property(lambda self: self.latest))


def giving_up_is_not_exclusive(patch):
    def overwrite(backend, key, store):
        backend.put(str(key), [Commit(State.ABORTED, store, key).encode()])
        return True

    patch(collecting, "abort", overwrite)


def a_commit_is_not_exclusive(patch):
    patch(saving, "commit", lambda backend, record: backend.put(str(record.key), [record.encode()]))


def aborted_commits_are_removed(patch):
    real = collecting._Collection._tidy

    def remove_them(self, seen):
        real(self, seen)
        for key in list_commits(self._backend):
            if len(self._backend.get(str(key), max_size=2**20)) == len(
                Commit(State.ABORTED, self._header.store, key).encode()
            ):
                self._backend.delete(str(key))

    patch(collecting._Collection, "_tidy", remove_them)


def knowledge_has_no_date(patch):
    real = Knowledge.home
    patch(Knowledge, "home", lambda self, pack: (real(self, pack)[0], self.now))


def a_merge_is_dated_by_now(patch):
    patch(merging, "encode_index", lambda name, base, footers: encode_index(name, max(base, 1), footers))


def any_mark_is_closed(patch):
    real = collecting.read_mark
    patch(collecting, "read_mark", lambda backend, number: real(backend, number)._replace(packs=frozenset()))


def a_source_is_deleted_whoever_needs_it(patch):
    real_publish, real_needing = collecting.publish_mark, Roots.needing
    marked = []

    def publish(*arguments):
        marked.append(True)
        return real_publish(*arguments)

    patch(collecting, "publish_mark", publish)
    patch(Roots, "needing", lambda self, packs: {} if marked else real_needing(self, packs))


def a_source_is_deleted_although_a_known_manifest_has_come_to_need_it(patch):
    real = collecting._Collection._sweep

    def sweep(self, dead, targets, looked_at):
        return real(self, dead, targets, dict.fromkeys(looked_at, frozenset(self._roots.found)))

    patch(collecting._Collection, "_sweep", sweep)


def targets_are_not_checked(patch):
    patch(collecting._Collection, "_lost_targets", lambda *_: frozenset())


def no_move_is_written(patch):
    patch(collecting, "put_move", lambda *_: 0)


def moves_keep_nothing_alive(patch):
    patch(roots, "closure", lambda packs, moves: frozenset(packs))


def moves_that_were_not_there_at_the_first_look_are_removed(patch):
    real = collecting._Collection._tidy
    patch(collecting._Collection, "_tidy", lambda self, _: real(self, self._roots.move_keys))


def moves_are_removed_while_they_are_needed(patch):
    real = collecting._Collection._tidy

    def remove_them(self, seen):
        real(self, seen)
        for key in list_moves(self._backend):
            self._backend.delete(str(key))

    patch(collecting._Collection, "_tidy", remove_them)


def the_short_cut_does_not_look_at_moves(patch):
    patch(saving.Attempt, "_is_moved", lambda _: False)


def the_manifest_is_forgotten_first(patch):
    def forget(backend, key):
        backend.delete(f"manifests/{key.transaction.hex()}")
        backend.delete(str(key))

    patch(stores, "forget", forget)


def older_ones_are_forgotten_before_the_commit(patch):
    real = Saver.run

    def forget_first(self, source):
        stores.forget_superseded(self.backend, self.header.store, self.options.series, 0)
        return real(self, source)

    patch(Saver, "run", forget_first)


def an_index_is_dated_by_the_base_read_after_the_packs_were_listed(patch):
    real_marks, real_packs = list_marks, list_packs
    listed = []

    def list_packs_first(backend):
        return listed.pop() if listed else real_packs(backend)

    real_refresh = merging.refresh_indexes

    def refresh(backend):
        listed.append(real_packs(backend))
        overtaken = merging.list_marks
        overtaken(backend)  # another collection comes in between
        patch(merging, "list_marks", real_marks)
        return real_refresh(backend)

    patch(merging, "list_packs", list_packs_first)
    patch(collecting, "refresh_indexes", refresh)


def the_pack_of_a_base_is_not_named(patch):
    real = Packer._code

    def code(self, *arguments):
        found = real(self, *arguments)
        return found._replace(used=self._look_up([item.chunk for item in found.coded])[1])

    patch(Packer, "_code", code)


def bases_are_not_needed(patch):
    patch(SnapshotReader, "bases", lambda *_: ids_array(b""))


def snapshots_of_the_same_entries_need_the_same(patch):
    real, seen = SnapshotReader.bases, set()

    def bases(self, chunks):
        if tuple(chunks) in seen:
            return ids_array(b"")
        seen.add(tuple(chunks))
        return real(self, chunks)

    patch(SnapshotReader, "bases", bases)


def a_delta_is_taken_over_without_its_base(patch):
    def look_up(self, ids):
        array = ids_array(b"".join(ids))
        known = self._own.locate(array).found
        found = self._knowledge.index.locate(array)
        old = found.found & ~known
        return (known | old).tolist(), set(found.packs[old].tolist())

    real = Packer._look_up
    patch(Packer, "_look_up", lambda self, ids: (look_up if self._knowledge else real)(self, ids))


def a_base_may_be_a_delta(patch):
    def bases(self, hints):
        wanted = [hint and hint.base for hint in hints]
        if self._knowledge is None:
            return [None] * len(wanted)
        found = self._knowledge.index.locate(ids_array(b"".join(chunk or bytes(32) for chunk in wanted)))
        return self._with_bytes(
            [
                _Base(ChunkId(chunk), pack, size) if chunk and is_found else None
                for chunk, is_found, pack, size in zip(
                    wanted, *(column.tolist() for column in (found.found, found.packs, found.plain_sizes)), strict=True
                )
            ]
        )

    patch(Packer, "_bases", bases)


def a_copy_of_a_delta_has_no_base(patch):
    real = PackCopier._append
    patch(PackCopier, "_append", lambda self, footer, row, blob, _: real(self, footer, row, blob, None))


def parts_do_not_count(patch):
    patch(roots, "PARTS_PREFIX", "nothing/")


def manifests_are_listed_before_parts(patch):
    real, listed = Roots._list, {}

    def list_manifests_first(self, prefix):
        if prefix == roots.PARTS_PREFIX:
            listed[id(self)] = real(self, roots._PREFIX)
            return real(self, prefix)
        return listed.pop(id(self))

    patch(Roots, "_list", list_manifests_first)


def parts_are_read_after_manifests_were_listed(patch):
    real, waiting = Roots._read_manifests, {}

    def read_later(self, listed):
        if id(self) in waiting:
            real(self, [*waiting.pop(id(self)), *listed])
        else:
            waiting[id(self)] = list(listed)

    patch(Roots, "_read_manifests", read_later)


def a_part_does_not_count_once_there_is_a_commit(patch):
    real, parts_listed = Roots._list, []

    def remember(self, prefix):
        found = real(self, prefix)
        if prefix == roots.PARTS_PREFIX:
            parts_listed[:] = found
        return found

    patch(Roots, "_list", remember)
    patch(roots, "manifest_key", lambda _: parts_listed[0])


def the_committer_does_not_look_at_the_marks(patch):
    patch(parts, "condemned_packs", lambda *_: frozenset())


def a_commit_of_parts_is_not_exclusive(patch):
    patch(parts, "commit", lambda backend, record: backend.put(str(record.key), [record.encode()]))


def parts_are_removed_before_the_whole_manifest_is_there(patch):
    real = parts.PartCommitter._write

    def write_and_remove(self, found):
        own, manifest = real(self, found)
        self._remove([own, *(part.receipt.manifest_key for part in found)])
        return own, manifest

    patch(parts.PartCommitter, "_write", write_and_remove)


def part_manifests_are_written_over(patch):
    patch(parts, "part_key", lambda transaction, part, _: part_key(transaction, part, TransactionId(bytes(16))))


CASES = [
    (parts_do_not_count, collection_between_the_parts_and_the_commit),
    (no_look_at_the_marks, collection_before_a_part_manifest),
    (manifests_are_listed_before_parts, commit_before_parts_are_listed_again),
    (parts_are_read_after_manifests_were_listed, commit_before_commits_are_listed_again),
    (a_part_does_not_count_once_there_is_a_commit, commit_before_commits_are_listed_again),
    (the_committer_does_not_look_at_the_marks, collection_before_the_committer_protects_its_pack),
    (parts_are_removed_before_the_whole_manifest_is_there, collection_before_the_whole_manifest),
    (a_commit_of_parts_is_not_exclusive, commit_of_parts_that_were_given_up),
    (part_manifests_are_written_over, part_that_is_saved_again),
    (no_look_at_the_marks, collection_during_a_save),
    (no_look_at_the_marks, save_while_a_mark_is_open),
    (own_packs_are_not_checked, collection_during_a_save),
    (marks_are_looked_at_before_the_manifest_is_written, collection_during_a_save_that_relies_on_old_packs),
    (nothing_is_looked_at_again, save_between_the_first_look_and_the_mark),
    (packs_are_not_checked_behind_closed_marks, collection_during_a_save),
    (packs_are_not_checked_behind_closed_marks, collection_during_a_save_that_relies_on_old_packs),
    (base_is_the_latest_mark, save_while_another_collector_spares_what_is_young),
    (giving_up_is_not_exclusive, commit_of_what_a_collector_gives_up),
    (a_commit_is_not_exclusive, commit_of_what_a_collector_gave_up),
    (aborted_commits_are_removed, commit_of_what_a_collector_gave_up),
    (knowledge_has_no_date, save_after_a_collector_that_died_before_it_cleaned_the_index),
    (a_merge_is_dated_by_now, save_after_a_merge_of_an_index_that_was_not_cleaned),
    (any_mark_is_closed, save_while_another_collector_spares_what_is_young),
    (a_source_is_deleted_whoever_needs_it, save_of_what_a_repacking_collector_took_for_dead),
    (
        a_source_is_deleted_although_a_known_manifest_has_come_to_need_it,
        repacking_of_what_another_collector_moves_chunks_to,
    ),
    (targets_are_not_checked, two_repacking_collectors),
    (no_move_is_written, repacking_twice),
    (moves_keep_nothing_alive, repacking_twice),
    (moves_are_removed_while_they_are_needed, repacking_twice),
    (moves_that_were_not_there_at_the_first_look_are_removed, tidying_beside_a_repacking_collector),
    (the_short_cut_does_not_look_at_moves, unchanged_source_whose_packs_were_moved),
    (the_manifest_is_forgotten_first, reader_beside_a_forgetter),
    (older_ones_are_forgotten_before_the_commit, save_that_keeps_one_and_dies_before_its_commit),
    (
        an_index_is_dated_by_the_base_read_after_the_packs_were_listed,
        save_after_an_index_was_rewritten_beside_another_collection,
    ),
    (the_pack_of_a_base_is_not_named, forgotten_base),
    (bases_are_not_needed, repacking_of_a_base),
    (
        snapshots_of_the_same_entries_need_the_same,
        repacking_of_a_base_that_another_snapshot_of_the_same_needs_not,
    ),
    (a_delta_is_taken_over_without_its_base, save_of_what_is_stored_as_a_delta),
    (a_delta_is_taken_over_without_its_base, save_of_what_is_stored_as_a_delta_whose_base_is_gone),
    (a_base_may_be_a_delta, delta_of_what_is_stored_as_a_delta),
    (a_copy_of_a_delta_has_no_base, repacking_of_a_delta),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(filescache, "_RACY", 0)  # files are known at once
    monkeypatch.setattr(collecting, "_MAX_ROWS", 1)  # packs are looked at one by one


@pytest.mark.parametrize(("mutation", "scenario"), CASES, ids=lambda item: item.__name__)
def test_a_rule_is_needed(tmp_path, monkeypatch, mutation, scenario):
    assert scenario(World(tmp_path / "right")), "something was lost although nothing was changed"
    with monkeypatch.context() as patched:
        mutation(patched.setattr)
        assert not scenario(World(tmp_path / "wrong")), "nothing was lost although a rule is missing"
