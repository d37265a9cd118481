"""A storage backend in memory that crashes, lies and fails on demand, and keeps a journal of what was done to it.

It stands for a local disk: an object is written under a temporary name and synced (nothing to be seen), gets its name
(visible), and its directory is synced (durable). Temporary names are no objects, so a crash can find a write in three
states only: before it is visible, visible but not durable, or durable. A crash loses what is not durable, or does not:
all outcomes that are possible can be had, one after another.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from random import Random
from typing import ClassVar, Final, Literal, NamedTuple

from cas_checkpoint.backends import Backend, ObjectInfo
from cas_checkpoint.backends.base import Buffer, check_key, check_prefix, check_range
from cas_checkpoint.errors import DamagedObject, InvalidArgument, ObjectNotFound, StorageError

__all__ = ["Crash", "Fault", "Operation", "SimulatedBackend", "SimulatedCrash"]

Verb = Literal["put", "put_if_absent", "get", "get_range", "size", "list", "delete"]
Kind = Literal["refused", "lost", "full", "denied", "flipped", "cut", "stale", "slow"]

_STALE: Final = 3  # so many of the last writes are not seen by who sees something stale
_WRITES: Final = frozenset({"put", "put_if_absent", "delete"})
_READS: Final = frozenset({"get", "get_range", "size"})
_EVERYTHING: Final = _WRITES | _READS | {"list"}
_FAULTY: Final[dict[Kind, frozenset[str]]] = {  # what can go wrong with what
    "refused": _EVERYTHING,
    "lost": _WRITES | _READS,
    "full": frozenset({"put", "put_if_absent"}),
    "denied": _EVERYTHING,
    "flipped": frozenset({"get", "get_range"}),
    "cut": frozenset({"list"}),
    "stale": _READS | {"list"},
    "slow": _EVERYTHING,
}
_ALL_SUBSETS: Final = 5  # of so many writes that are not durable all outcomes are tried; of more, some


class SimulatedCrash(BaseException):
    """The machine has stopped: raised in whoever uses the backend then or later. Nothing should ever catch it."""


class Operation(NamedTuple):
    """A line of the journal.

    Attributes:
        number: 1 for the first operation of the backend.
        verb: what was asked for.
        key: the object, or the prefix of a listing.
        size: bytes written, or 0.
    """

    number: int
    verb: Verb
    key: str
    size: int

    @property
    def is_write(self) -> bool:
        """Whether it changes what is stored."""
        return self.verb in _WRITES


class Crash(NamedTuple):
    """When to crash.

    Attributes:
        at: the number of a write, counted from 1; other operations do not count.
        when: "before" anything of it is to be seen; "during", when it is visible but not durable; or "after", when it
            is durable, but whoever asked for it has not been told.
    """

    at: int
    when: Literal["before", "during", "after"] = "before"


class Fault(NamedTuple):
    """Something that goes wrong without a crash.

    Attributes:
        kind: "refused" (as by 409, 429 or 503: nothing happened), "lost" (it happened, but the answer was lost), "full"
            (no space is left), "denied" (permission), "flipped" (one bit of what is read), "cut" (a listing ends with
            an error halfway), "stale" (the objects of the last writes are not seen yet), or "slow" (a millisecond).
        verb: the kind of operation.
        prefix: with what its key begins.
        nth: which of these it is, counted from 1; 0 for all of them.
        bit: of "flipped", which one.
    """

    kind: Kind
    verb: Verb
    prefix: str = ""
    nth: int = 1
    bit: int = 0


class SimulatedBackend(Backend):
    """Objects in memory.

    Attributes:
        journal: all operations so far.
        near: as for any backend: whether many small reads cost no more than few large ones.
    """

    near: ClassVar[bool] = True
    parallel_puts: ClassVar[int] = 1
    atomic_create = True

    def __init__(
        self,
        objects: dict[str, bytes] | None = None,
        *,
        crash: Crash | None = None,
        faults: Iterable[Fault] = (),
        durable: bool = True,
        url: str = "simulated://",
    ) -> None:
        """Begin with some objects, all of them durable.

        Args:
            objects: what is there already, by key.
            crash: when to crash.
            faults: what else is to go wrong.
            durable: whether writes wait until they are durable.
            url: what the backend calls its place.

        Raises:
            InvalidArgument: a fault is none that can happen to its verb.
        """
        self.url = url
        self.journal: list[Operation] = []
        self._durable = durable
        self._objects = dict(objects or {})
        self._modified = dict.fromkeys(self._objects, 0.0)
        self._synced = dict(self._objects)
        self._unsynced: list[tuple[str, bytes | None]] = []  # visible but not durable, in their order
        self._crash, self._faults = crash, [_checked(fault) for fault in faults]
        self._met = [0] * len(self._faults)
        self._writes = 0
        self._has_crashed = False
        self._lock = threading.RLock()

    # --- what tests ask for ---

    @property
    def objects(self) -> dict[str, bytes]:
        """A copy of what is to be seen."""
        with self._lock:
            return dict(self._objects)

    @property
    def writes(self) -> int:
        """How many writes were begun."""
        return self._writes

    def stop(self) -> None:
        """Crash now."""
        with self._lock:
            self._has_crashed = True

    def restarts(self, *, limit: int = 32, seed: int = 0, torn: bool = False) -> Iterator[SimulatedBackend]:
        """Yield the backends that a restart may find: all that is durable, and of the rest any part.

        Of several writes to one object what is kept is a beginning of them.

        Args:
            limit: if there are more outcomes, so many of them: none and all of the rest come first, others are drawn.
            seed: decides which are drawn.
            torn: whether each object that is kept without being durable has lost its second half. Only without
                `durable`, for else an object is synced before it gets its name.
        """
        with self._lock:
            synced, unsynced = dict(self._synced), [*self._unsynced]
        halve = torn and not self._durable
        for kept in _subsets(len(unsynced), limit, seed):
            objects = dict(synced)
            lost: set[str] = set()
            for number, (key, data) in enumerate(unsynced):
                if number not in kept or key in lost:
                    lost.add(key)
                elif data is None:
                    objects.pop(key, None)
                else:
                    objects[key] = data[: len(data) // 2] if halve else data
            yield SimulatedBackend(objects, durable=self._durable, url=self.url)

    def sync(self) -> None:
        """Make everything durable that is to be seen."""
        with self._lock:
            self._synced = dict(self._objects)
            self._unsynced.clear()

    # --- what goes wrong ---

    def _begin(self, verb: Verb, key: str, size: int = 0) -> list[Fault]:
        """Note an operation; return the faults that it meets."""
        if self._has_crashed:
            raise SimulatedCrash
        self.journal.append(Operation(len(self.journal) + 1, verb, key, size))
        if verb in _WRITES:
            self._writes += 1
            self._crash_if("before")
        met = []
        for number, fault in enumerate(self._faults):
            if fault.verb == verb and key.startswith(fault.prefix):
                self._met[number] += 1
                if fault.nth in {0, self._met[number]}:
                    met.append(fault)
        for fault in met:
            if fault.kind == "slow":
                time.sleep(0.001)
            elif fault.kind == "refused":
                raise StorageError(f"cannot {verb} {key}: the service is not available; try again later")
            elif fault.kind in {"full", "denied"}:
                code = errno.ENOSPC if fault.kind == "full" else errno.EACCES
                raise StorageError(f"cannot {verb} {key}: {os.strerror(code)}")
        return met

    def _crash_if(self, when: Literal["before", "during", "after"]) -> None:
        if self._crash == (self._writes, when):
            self._has_crashed = True
            raise SimulatedCrash

    def _write(self, verb: Verb, key: str, data: bytes | None, faults: Sequence[Fault]) -> None:
        if data is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = data
            self._modified[key] = float(len(self.journal))
        self._unsynced.append((key, data))
        self._crash_if("during")
        if self._durable:
            self.sync()
        self._crash_if("after")
        self._lose_answer(verb, key, faults)

    def _lose_answer(self, verb: Verb, key: str, faults: Sequence[Fault]) -> None:
        if _has("lost", faults):
            raise StorageError(f"cannot {verb} {key}: the connection was lost")

    def _read(self, key: str, faults: Sequence[Fault]) -> bytes:
        if key not in self._objects or (_has("stale", faults) and key in self._recent()):
            raise ObjectNotFound(key)
        data = self._objects[key]
        for fault in faults:
            if fault.kind == "flipped" and data:
                flipped = bytearray(data)
                flipped[fault.bit // 8 % len(data)] ^= 1 << fault.bit % 8
                data = bytes(flipped)
            elif fault.kind == "lost":
                raise StorageError(f"cannot read {key}: the connection was lost")
        return data

    # --- a backend ---

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object."""
        data = b"".join(parts)
        with self._lock:
            self._write("put", check_key(key), data, self._begin("put", key, len(data)))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one."""
        with self._lock:
            faults = self._begin("put_if_absent", check_key(key), len(data))
            if key in self._objects:
                self._lose_answer("put_if_absent", key, faults)
                return self._objects[key] == data
            self._write("put_if_absent", key, bytes(data), faults)
            return True

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._lock:
            self._write("delete", check_key(key), None, self._begin("delete", key))

    def get(self, key: str, *, max_size: int) -> bytes:
        """Read an object."""
        with self._lock:
            data = self._read(check_key(key), self._begin("get", key))
        if len(data) > max_size:
            raise DamagedObject(f"has {len(data)} bytes; at most {max_size} are allowed", key=key)
        return data

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Read a part of an object."""
        check_range(offset, size)
        with self._lock:
            data = self._read(check_key(key), self._begin("get_range", key))
        if offset + size > len(data):
            raise DamagedObject(f"is truncated: has {len(data)} bytes, {offset + size} are needed", key=key)
        return data[offset : offset + size]

    def size(self, key: str) -> int:
        """Tell an object's size."""
        with self._lock:
            return len(self._read(check_key(key), self._begin("size", key)))

    def _recent(self) -> set[str]:
        """Return the keys of the last writes."""
        return set([line.key for line in self.journal if line.is_write][-_STALE:])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List objects."""
        with self._lock:
            faults = self._begin("list", check_prefix(prefix))
            hidden = self._recent() if _has("stale", faults) else set()
            found = [
                ObjectInfo(key, len(data), self._modified.get(key, 0.0))
                for key, data in sorted(self._objects.items())
                if key.startswith(prefix) and key not in hidden
            ]
        if _has("cut", faults):
            return _cut(found, prefix)
        return iter(found)


def _checked(fault: Fault) -> Fault:
    if fault.verb not in _FAULTY.get(fault.kind, ()):
        raise InvalidArgument(f"no fault {fault.kind!r} can happen to {fault.verb!r}")
    return fault


def _has(kind: Kind, faults: Sequence[Fault]) -> bool:
    return any(fault.kind == kind for fault in faults)


def _cut(found: Sequence[ObjectInfo], prefix: str) -> Iterator[ObjectInfo]:
    yield from found[: len(found) // 2]
    raise StorageError(f"cannot list {prefix}: the connection was lost")


def _subsets(count: int, limit: int, seed: int) -> Iterator[frozenset[int]]:
    """Yield subsets of so many numbers: none, all, and others up to the limit."""
    everything = range(count)
    yield frozenset()
    if not count:
        return
    yield frozenset(everything)
    if count <= _ALL_SUBSETS:
        others: Iterable[Sequence[int]] = (kept for size in range(1, count) for kept in combinations(everything, size))
    else:
        choice = Random(seed)  # noqa: S311 -- a seed must give the same outcomes
        others = ([number for number in everything if choice.random() < choice.random()] for _ in range(limit))
    for _, kept in zip(range(limit - 2), others, strict=False):
        yield frozenset(kept)
