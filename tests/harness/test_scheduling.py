"""Schedules: they repeat exactly, they reach every order, and nothing is lost in any of them."""

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint import SaveAborted, Store
from cas_checkpoint.testing import Scheduler, SimulatedBackend, in_one_thread, seeded_ids
from cas_checkpoint.transactions import random_id

DATA = os.urandom(200_000)


def writer(*keys):
    return lambda backend: [backend.put(key, [b""]) for key in keys]


def order(scheduler):
    return [step.key for step in scheduler.schedule]


def test_the_same_seed_is_the_same_schedule():
    def run(seed):
        scheduler = Scheduler(SimulatedBackend(), seed=seed)
        scheduler.run({"a": writer("a1", "a2", "a3"), "b": writer("b1", "b2", "b3")})
        return order(scheduler)

    assert run(5) == run(5)
    assert len({tuple(run(seed)) for seed in range(200)}) == 20  # all there are


def test_choices_decide_in_place_of_a_seed():
    scheduler = Scheduler(SimulatedBackend(), choices=[1, 1, 0])
    scheduler.run({"a": writer("a1", "a2"), "b": writer("b1", "b2")})
    assert order(scheduler)[:2] == ["b1", "b2"]


def test_results_and_errors_come_back():
    def fail(backend):
        backend.size("nothing")

    outcomes = Scheduler(SimulatedBackend()).run({"fine": lambda _: 7, "failing": fail})
    assert outcomes["fine"].result == 7
    assert "nothing" in str(outcomes["failing"].error)


def test_an_actor_is_crashed_for_ever():
    backend = SimulatedBackend()
    outcomes = Scheduler(backend, crash_share=1.0).run({"a": writer("a1", "a2")})
    assert outcomes["a"].crashed
    assert backend.objects == {}


def test_an_actor_is_crashed_where_it_should_be():
    backend = SimulatedBackend()
    scheduler = Scheduler(backend, crashes={"a": 3})
    outcomes = scheduler.run({"a": writer("a1", "a2", "a3", "a4"), "b": writer("b1", "b2", "b3")})
    assert outcomes["a"].crashed
    assert not outcomes["b"].crashed
    assert sorted(backend.objects) == ["a1", "a2", "b1", "b2", "b3"]


def test_ids_are_drawn_from_the_seed():
    with seeded_ids(3):
        first = random_id()
    with seeded_ids(3):
        assert random_id() == first
    assert random_id() != first


def test_real_saves_repeat_exactly():
    def run():
        backend = SimulatedBackend()
        with seeded_ids(1), in_one_thread():
            Store.open(backend, create=True, workers=1)
        scheduler = Scheduler(backend, seed=11)
        scheduler.run(
            {
                "saver": lambda backend: Store.open(backend, workers=1).save(DATA),
                "collector": lambda backend: Store.open(backend, workers=1).collect(),
            }
        )
        return scheduler.schedule

    assert run() == run()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2), max_size=80))
def test_whatever_the_order_what_is_acknowledged_is_there(choices):
    backend = SimulatedBackend()
    with in_one_thread():
        store = Store.open(backend, create=True, workers=1)
        first = store.save({"x": DATA})

    def save(view):
        return Store.open(view, workers=1).save({"y": DATA}).id

    outcomes = Scheduler(backend, choices=choices).run(
        {
            "saver": save,
            "forgetter": lambda view: Store.open(view, workers=1).forget(first.id),
            "collector": lambda view: Store.open(view, workers=1).collect(repack=0.1),
        }
    )
    saved = outcomes["saver"]
    if not isinstance(saved.error, SaveAborted):
        assert saved.error is None
        assert store.snapshot(saved.result).read_bytes("y") == DATA
    assert outcomes["collector"].error is None
    assert store.verify().ok


def test_in_one_thread_nothing_runs_beside_and_afterwards_it_does():
    seen = []

    class Watched(SimulatedBackend):
        def put(self, key, parts):
            seen.append(threading.current_thread())
            super().put(key, parts)

    store = Store.open(Watched(), create=True)
    with in_one_thread():
        store.save(DATA, files_cache=False)
    assert set(seen) == {threading.main_thread()}
    store.save(os.urandom(200_000))
    assert set(seen) != {threading.main_thread()}


def test_an_actor_that_waits_for_another_one_is_told(monkeypatch):
    monkeypatch.setattr("cas_checkpoint.testing.scheduling._PATIENCE", 0.2)
    never = threading.Event()
    with pytest.raises(RuntimeError, match="wait for another"):
        Scheduler(SimulatedBackend()).run({"a": lambda _: never.wait(2)})
