"""The simulated backend: what a crash leaves, and what else goes wrong."""

import os

import pytest

from cas_checkpoint import CasCheckpointError, InvalidArgument, StorageError, Store
from cas_checkpoint.errors import DamagedObject, ObjectNotFound
from cas_checkpoint.testing import Crash, Fault, SimulatedBackend, SimulatedCrash


def states(backend):
    return [found.objects for found in backend.restarts()]


@pytest.mark.parametrize(
    ("when", "outcomes"),
    [
        ("before", [{"a": b"1"}]),
        ("during", [{"a": b"1"}, {"a": b"1", "b": b"2"}]),
        ("after", [{"a": b"1", "b": b"2"}]),
    ],
)
@pytest.mark.parametrize("verb", ["put", "put_if_absent"])
def test_a_crash_loses_what_is_not_durable_or_does_not(when, outcomes, verb):
    backend = SimulatedBackend({"a": b"1"}, crash=Crash(1, when))
    with pytest.raises(SimulatedCrash):
        backend.put("b", [b"2"]) if verb == "put" else backend.put_if_absent("b", b"2")
    assert states(backend) == outcomes


@pytest.mark.parametrize(
    ("when", "outcomes"), [("before", [{"a": b"1"}]), ("during", [{"a": b"1"}, {}]), ("after", [{}])]
)
def test_a_crash_in_a_deletion(when, outcomes):
    backend = SimulatedBackend({"a": b"1"}, crash=Crash(1, when))
    with pytest.raises(SimulatedCrash):
        backend.delete("a")
    assert states(backend) == outcomes


def test_nothing_works_after_a_crash():
    backend = SimulatedBackend({"a": b"1"})
    backend.stop()
    for action in (
        lambda: backend.put("b", [b""]),
        lambda: backend.put_if_absent("b", b""),
        lambda: backend.get("a", max_size=9),
        lambda: backend.get_range("a", 0, 1),
        lambda: backend.size("a"),
        lambda: list(backend.list("")),
        lambda: backend.delete("a"),
    ):
        with pytest.raises(SimulatedCrash):
            action()


def test_without_durability_any_part_of_the_writes_may_be_lost_but_no_later_one_to_an_object_alone():
    backend = SimulatedBackend(durable=False)
    backend.put("a", [b"1"])
    backend.put("a", [b"2"])
    backend.put("b", [b"3"])
    found = states(backend)
    assert found[:2] == [{}, {"a": b"2", "b": b"3"}]
    assert {"a": b"1"} in found
    assert {"b": b"3"} in found
    backend.sync()
    assert states(backend) == [{"a": b"2", "b": b"3"}]


def test_objects_are_torn_only_where_they_were_not_synced_before_they_got_their_names():
    backend = SimulatedBackend(durable=False)
    backend.put("a", [b"1234"])
    assert [found.objects for found in backend.restarts(torn=True)] == [{}, {"a": b"12"}]
    durable = SimulatedBackend(crash=Crash(1, "during"))
    with pytest.raises(SimulatedCrash):
        durable.put("a", [b"1234"])
    assert [found.objects for found in durable.restarts(torn=True)] == [{}, {"a": b"1234"}]


@pytest.mark.parametrize("torn", [False, True])
def test_what_a_store_lost_for_not_being_durable_is_found_and_never_passed_on(torn):
    backend = SimulatedBackend(durable=False)
    Store.open(backend, create=True, workers=1)
    backend.sync()
    data = os.urandom(300_000)
    snapshot = Store.open(backend, workers=1).save(data)
    whole = 0
    for found in backend.restarts(torn=torn):
        try:
            read = Store.open(found, workers=1).snapshot(snapshot.id).read_bytes("_dst_cp")
        except CasCheckpointError:
            continue
        assert read == data
        whole += 1
    assert whole == (0 if torn else 2)  # everything is there, or all but the index object, which is a cache


def test_of_many_outcomes_some_are_drawn_and_always_the_same():
    backend = SimulatedBackend(durable=False)
    for number in range(20):
        backend.put(f"k{number}", [b"x"])
    found = [restarted.objects for restarted in backend.restarts(limit=10, seed=3)]
    assert len(found) == 10
    assert found[0] == {}
    assert len(found[1]) == 20
    assert found == [restarted.objects for restarted in backend.restarts(limit=10, seed=3)]


def test_the_journal_tells_what_was_done():
    backend = SimulatedBackend()
    backend.put("packs/a", [b"12", b"3"])
    assert backend.put_if_absent("packs/a", b"4") is False
    list(backend.list("packs/"))
    assert [(line.number, line.verb, line.key, line.size, line.is_write) for line in backend.journal] == [
        (1, "put", "packs/a", 3, True),
        (2, "put_if_absent", "packs/a", 1, True),
        (3, "list", "packs/", 0, False),
    ]
    assert backend.writes == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("refused", "not available"), ("full", "No space"), ("denied", "denied"), ("lost", "connection was lost")],
)
def test_a_write_fails(kind, reason):
    backend = SimulatedBackend(faults=[Fault(kind, "put", "packs/", nth=2)])
    backend.put("index/a", [b"1"])
    backend.put("packs/a", [b"1"])
    with pytest.raises(StorageError, match=reason):
        backend.put("packs/b", [b"2"])
    assert ("packs/b" in backend.objects) == (kind == "lost")
    backend.put("packs/c", [b"3"])


def test_reads_fail_and_lie():
    backend = SimulatedBackend(
        {"a": b"\0\0", "b": b"x"},
        faults=[Fault("flipped", "get", "a", nth=0, bit=9), Fault("lost", "size", "b"), Fault("slow", "get_range")],
    )
    assert backend.get("a", max_size=2) == b"\0\2"
    assert backend.get_range("a", 0, 2) == b"\0\0"
    with pytest.raises(StorageError, match="lost"):
        backend.size("b")
    assert backend.size("b") == 1
    with pytest.raises(DamagedObject):
        backend.get("a", max_size=1)
    with pytest.raises(DamagedObject):
        backend.get_range("a", 1, 2)
    with pytest.raises(ObjectNotFound):
        backend.get("c", max_size=1)


def test_an_answer_that_is_lost_is_lost_even_if_nothing_was_written():
    backend = SimulatedBackend({"a": b"x"}, faults=[Fault("lost", "put_if_absent")])
    with pytest.raises(StorageError, match="lost"):
        backend.put_if_absent("a", b"y")
    assert backend.put_if_absent("a", b"y") is False


def test_reads_are_stale_and_denied():
    backend = SimulatedBackend({"old": b"x"}, faults=[Fault("stale", "size", nth=0), Fault("denied", "get")])
    backend.put("new", [b"y"])
    assert backend.size("old") == 1
    with pytest.raises(ObjectNotFound):
        backend.size("new")
    with pytest.raises(StorageError, match="denied"):
        backend.get("old", max_size=1)
    assert backend.get("new", max_size=1) == b"y"


@pytest.mark.parametrize(("kind", "verb"), [("full", "get"), ("flipped", "put"), ("lost", "list"), ("cut", "size")])
def test_faults_that_cannot_happen_are_refused(kind, verb):
    with pytest.raises(InvalidArgument, match=kind):
        SimulatedBackend(faults=[Fault(kind, verb)])


def test_listings_fail_and_are_stale():
    objects = {f"packs/{number}": b"" for number in range(4)}
    backend = SimulatedBackend(objects, faults=[Fault("cut", "list"), Fault("stale", "list", nth=2)])
    seen = []
    with pytest.raises(StorageError, match="cannot list"):
        seen.extend(info.key for info in backend.list("packs/"))
    backend.put("packs/new", [b""])
    assert len(list(backend.list("packs/"))) == 4
    assert len(list(backend.list("packs/"))) == 5


@pytest.mark.parametrize("kind", ["refused", "lost", "full", "denied"])
@pytest.mark.parametrize("nth", range(1, 5))
def test_a_store_loses_nothing_when_a_write_fails(kind, nth):
    backend = SimulatedBackend()
    store = Store.open(backend, create=True, workers=1)
    data = os.urandom(300_000)
    first = store.save(data)
    verb = "put" if nth < 4 else "put_if_absent"
    failing = SimulatedBackend(backend.objects, faults=[Fault(kind, verb, nth=nth if nth < 4 else 1)])
    with pytest.raises(StorageError):
        Store.open(failing, workers=1).save(os.urandom(300_000))
    again = Store.open(SimulatedBackend(failing.objects))
    assert again.snapshot(first.id).read_bytes("_dst_cp") == data
    assert again.verify().ok
