"""Deterministic interleaving of real code: actors stop at each storage operation, and a seed decides who goes on.

Every actor is a thread, but only one of them runs at any time, from one operation to its next. The same seed, or the
same list of choices, gives the same schedule again, as long as what the actors do depends on what they read alone.

Limits: while a scheduler runs, everything of this package in this process is done without threads of its own (see
`in_one_thread`) and with ids from the seed, so one scheduler runs at a time. An actor may neither start threads that
use its backend, nor wait for another actor. Between two operations nothing is interleaved: races in memory are not
found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from random import Random
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import cas_checkpoint
from cas_checkpoint import transactions
from cas_checkpoint.backends import Backend, ObjectInfo
from cas_checkpoint.backends.base import Buffer
from cas_checkpoint.collecting import Garbage
from cas_checkpoint.testing.simulated import SimulatedCrash

__all__ = ["Actor", "Outcome", "Scheduler", "Step", "in_one_thread", "seeded_ids"]

Result = TypeVar("Result")
Actor = Callable[[Backend], object]
"""Something that is done with a backend, such as a save."""

_PATIENCE: Final = 60.0  # seconds
_POOL: Final = "ThreadPoolExecutor"


class Step(NamedTuple):
    """One step of a schedule: who did what to which object."""

    actor: str
    verb: str
    key: str


class Outcome(NamedTuple):
    """What became of an actor: its result, or the error that ended it. A crashed one has neither."""

    result: object = None
    error: BaseException | None = None
    crashed: bool = False


class _Actor:
    """An actor's thread, and where it stands."""

    def __init__(self, name: str, action: Actor) -> None:
        self.name, self.action = name, action
        self.turn = threading.Semaphore(0)
        self.waiting: Step | None = None
        self.operations = 0
        self.is_crashed = False
        self.outcome: Outcome | None = None


class Scheduler:
    """Runs actors on one backend, one operation at a time.

    Attributes:
        schedule: the steps that were taken, in their order.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        seed: int = 0,
        choices: Sequence[int] | None = None,
        crashes: Mapping[str, int] | None = None,
        crash_share: float = 0.0,
    ) -> None:
        """Prepare a run.

        Args:
            backend: what all actors work on.
            seed: decides who goes next.
            choices: decide in its place, each modulo the number of actors that could go; after the last one the first
                actor that can go does.
            crashes: actors that are stopped for ever in place of their operation of this number, counted from 1.
            crash_share: the probability, at each step, that the chosen actor is stopped for ever instead.
        """
        self.schedule: list[Step] = []
        self._backend = backend
        self._seed = seed
        self._random = Random(seed)  # noqa: S311 -- a seed must give the same schedule
        self._choices = None if choices is None else iter(choices)
        self._crashes, self._crash_share = dict(crashes or {}), crash_share
        self._parked = threading.Semaphore(0)

    def run(self, actors: dict[str, Actor]) -> dict[str, Outcome]:
        """Run the actors until each has ended, was crashed, or has raised; return what became of them."""
        found = [_Actor(name, action) for name, action in actors.items()]
        with in_one_thread(), seeded_ids(self._seed):
            threads = [threading.Thread(target=self._act, args=(actor,), daemon=True) for actor in found]
            for thread in threads:
                thread.start()
                self._await_parked()
            while able := [actor for actor in found if actor.outcome is None]:
                self._step(able)
            for thread in threads:
                thread.join(_PATIENCE)
        return {actor.name: actor.outcome or Outcome() for actor in found}

    def _await_parked(self) -> None:
        if not self._parked.acquire(timeout=_PATIENCE):
            raise RuntimeError("an actor neither reached an operation nor ended: does it wait for another one?")

    def _step(self, able: Sequence[_Actor]) -> None:
        if self._choices is None:
            actor = able[self._random.randrange(len(able))]
        else:
            actor = able[next(self._choices, 0) % len(able)]
        actor.operations += 1
        by_chance = bool(self._crash_share) and self._random.random() < self._crash_share
        if by_chance or self._crashes.get(actor.name) == actor.operations:
            actor.is_crashed = True
        elif actor.waiting is not None:
            self.schedule.append(actor.waiting)
        actor.turn.release()
        self._await_parked()

    def _act(self, actor: _Actor) -> None:
        try:
            outcome = Outcome(actor.action(_Gate(self._backend, lambda verb, key: self._park(actor, verb, key))))
        except SimulatedCrash:
            outcome = Outcome(crashed=True)
        except BaseException as error:  # noqa: BLE001 -- whatever ended it is for the test to judge
            outcome = Outcome(error=error)
        actor.outcome = outcome
        self._parked.release()

    def _park(self, actor: _Actor, verb: str, key: str) -> None:
        if actor.is_crashed:
            raise SimulatedCrash
        actor.waiting = Step(actor.name, verb, key)
        self._parked.release()
        actor.turn.acquire()
        if actor.is_crashed:
            raise SimulatedCrash


class _Gate(Backend):
    """An actor's view of the backend: each operation waits for its turn."""

    def __init__(self, inner: Backend, park: Callable[[str, str], None]) -> None:
        self._inner, self._park = inner, park
        self.url = inner.url
        self.atomic_create = getattr(inner, "atomic_create", True)

    parallel_puts: ClassVar[int] = 1
    near: ClassVar[bool] = True

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._park("put", key)
        self._inner.put(key, parts)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._park("put_if_absent", key)
        return self._inner.put_if_absent(key, data)

    def get(self, key: str, *, max_size: int) -> bytes:
        self._park("get", key)
        return self._inner.get(key, max_size=max_size)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        self._park("get_range", key)
        return self._inner.get_range(key, offset, size)

    def size(self, key: str) -> int:
        self._park("size", key)
        return self._inner.size(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._park("list", prefix)
        return iter([*self._inner.list(prefix)])

    def delete(self, key: str) -> None:
        self._park("delete", key)
        self._inner.delete(key)


class _CallingThread:
    """Stands in for a `ThreadPoolExecutor`: whatever is submitted is done at once, by whoever submits it."""

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def submit(self, action: Callable[..., Result], /, *args: Any, **options: Any) -> Future[Result]:  # noqa: ANN401
        future: Future[Result] = Future()
        try:
            future.set_result(action(*args, **options))
        except Exception as error:  # noqa: BLE001 -- it belongs to whoever asks for the result
            future.set_exception(error)
        return future

    def map(self, action: Callable[..., Result], *items: Any) -> Iterator[Result]:  # noqa: ANN401
        return iter([action(*item) for item in zip(*items, strict=False)])

    def shutdown(self, *_args: object, **_options: object) -> None:
        pass

    def __enter__(self) -> _CallingThread:  # noqa: PYI034 -- `Self` came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@cache
def _pooled() -> list[ModuleType]:
    """Return the modules of this package that start threads in pools."""
    found = (module for module in iter_modules(cas_checkpoint.__path__) if not module.ispkg)
    modules = [import_module(f"cas_checkpoint.{module.name}") for module in found if module.name != "__main__"]
    return [module for module in modules if hasattr(module, _POOL)]


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Let this package do in the calling thread, and in order, what it would do in several; for this whole process.

    Nothing is collected in the background meanwhile.
    """
    modules = _pooled()
    kept = [module.__dict__[_POOL] for module in modules]
    for module in modules:
        module.__dict__[_POOL] = _CallingThread
    add = Garbage.add
    setattr(Garbage, "add", lambda *_: None)  # noqa: B010 -- a type checker would not let it be assigned
    try:
        yield
    finally:
        setattr(Garbage, "add", add)  # noqa: B010
        for module, original in zip(modules, kept, strict=True):
            module.__dict__[_POOL] = original


@contextmanager
def seeded_ids(seed: int) -> Iterator[None]:
    """Let this package draw its random ids from a seed; for this whole process."""
    choice = Random(seed)  # noqa: S311 -- that is what it is for
    drawn = SimpleNamespace(token_bytes=choice.randbytes, token_hex=lambda size: choice.randbytes(size).hex())
    kept = transactions.__dict__["secrets"]
    transactions.__dict__["secrets"] = drawn
    try:
        yield
    finally:
        transactions.__dict__["secrets"] = kept
