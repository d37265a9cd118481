"""What every storage backend must do, as a class of tests: subclass it and say how to make one of yours.

    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend(...)  # empty, at a place of its own

Works with pytest and, beside `unittest.TestCase`, with unittest. Nothing but the interface is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, TypeVar
from unittest import SkipTest

from cas_checkpoint.backends import Backend
from cas_checkpoint.errors import CasCheckpointError, DamagedObject, InvalidArgument, ObjectNotFound

__all__ = ["BackendConformance"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_MIB = 2**20
_BAD_KEYS = (
    "", "/", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.tmp-00", "Upper", "a b", "\u00e4", "a\n", "a" * 256,
)  # fmt: skip
_GOOD_KEYS = ("a", "a/b/c/d", "commits/a%2fb/0001-ff", "a." + "-" * 253, "/".join("k" * 200))
_BAD_PREFIXES = ("packs", "/", "../", "a/../", "Packs/", "packs//")
_PARTS: tuple[list[bytes | bytearray | memoryview], ...] = (
    [b"one part"],
    [],
    [b""],
    [b"a", bytearray(b"b"), memoryview(b"c"), b"", memoryview(b"xdx")[1:2]],
    [memoryview(b"01234567").cast("I")],
    [memoryview(b"").cast("B")],
    [b"%d," % number for number in range(3000)],
    [bytes(range(256)) * (3 * _MIB // 256)],
)
_DIGITS = b"0123456789"


def _check(condition: bool, complaint: str) -> None:  # noqa: FBT001 -- that is all that it is about
    if not condition:
        raise AssertionError(complaint)


@contextmanager
def _raises(kind: type[CasCheckpointError], what: str) -> Iterator[list[CasCheckpointError]]:
    caught: list[CasCheckpointError] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    _check(bool(caught), f"{what} must be {kind.__name__}")


class BackendConformance:
    """The tests.

    Attributes:
        is_atomic: whether put-if-absent lets only one of several writers win, and readers never see a part of an
            object. A backend without that can be used, but by one collector at a time.
        large_size: the bytes of a large object, such as goes in several pieces to an object store.
        writers: how many write at once in races.
        rounds: how often each race is run.
    """

    is_atomic: ClassVar[bool] = True
    large_size: ClassVar[int] = 12 * _MIB
    writers: ClassVar[int] = 8
    rounds: ClassVar[int] = 25

    def make_backend(self) -> Backend:
        """Return a new, empty backend; to be defined."""
        raise NotImplementedError

    # --- writing and reading ---

    def test_what_is_put_is_there(self) -> None:
        """Objects come back, whatever they were given as."""
        for parts in _PARTS:
            backend = self.make_backend()
            backend.put("packs/0a", parts)
            data = b"".join(parts)
            _check(backend.get("packs/0a", max_size=len(data)) == data, "get must give what was put")
            _check(backend.get("packs/0a", max_size=len(data) + 10) == data, "a larger max_size must do no harm")
            _check(backend.size("packs/0a") == len(data), "size must be the number of bytes")
            _check(_listed(backend) == {"packs/0a": len(data)}, "list must show the object")

    def test_large_objects(self) -> None:
        """A large object comes back whole and in parts, also where one piece of it ends and the next begins."""
        backend = self.make_backend()
        block = bytes(range(251)) * (_MIB // 251 + 1)
        parts = [memoryview(block)[: min(_MIB, self.large_size - at)] for at in range(0, self.large_size, _MIB)]
        backend.put("packs/0a", parts)
        data = b"".join(parts)
        _check(backend.size("packs/0a") == self.large_size, "size must be the number of bytes")
        _check(backend.get("packs/0a", max_size=self.large_size) == data, "get must give what was put")
        for offset in (0, _MIB - 1, self.large_size // 2, self.large_size - 1000):
            _check(backend.get_range("packs/0a", offset, 1000) == data[offset : offset + 1000], "a range must be exact")
        memory = memoryview(bytearray(self.large_size - 1))
        backend.read_into("packs/0a", 1, memory)
        _check(memory == data[1:], "read_into must fill the buffer")

    def test_put_replaces(self) -> None:
        """The later of two objects of one key is there."""
        backend = self.make_backend()
        backend.put("a", [b"a longer first"])
        backend.put("a", [b"second"])
        _check(backend.get("a", max_size=100) == b"second", "put must replace")
        _check(_listed(backend) == {"a": 6}, "put must replace, not add")

    def test_keys_of_all_shapes(self) -> None:
        """Every valid key can be used."""
        for key in _GOOD_KEYS:
            backend = self.make_backend()
            backend.put(key, [b"x"])
            _check(backend.get(key, max_size=1) == b"x", f"{key!r:.40} must be usable")
            _check(_listed(backend) == {key: 1}, f"{key!r:.40} must be listed as it is")

    def test_bad_keys_are_refused(self) -> None:
        """No other key can."""
        backend = self.make_backend()
        for key in _BAD_KEYS:
            for name, call in _calls(backend, key).items():
                with _raises(InvalidArgument, f"{name} of the key {key!r:.40}"):
                    call()
        _check(_listed(backend) == {}, "nothing must have been written")

    def test_absent_objects(self) -> None:
        """What is not there is `ObjectNotFound`, and no error to delete."""
        backend = self.make_backend()
        backend.put("packs/there", [b"x"])
        for key in ("nothing", "packs/nothing", "packs/there/below", "no/such/directory", "packs"):
            for name in ("get", "get_range", "read_into", "size"):
                with _raises(ObjectNotFound, f"{name} of what is not there") as caught:
                    _calls(backend, key)[name]()
                _check(getattr(caught[0], "key", None) == key, "the error must name the key")

    def test_an_object_that_is_too_large_is_refused(self) -> None:
        """`get` never returns more than it was asked for."""
        backend = self.make_backend()
        backend.put("a", [b"12345"])
        for max_size in (0, 4):
            with _raises(DamagedObject, "an object larger than max_size") as caught:
                backend.get("a", max_size=max_size)
            _check(getattr(caught[0], "key", None) == "a", "the error must name the key")

    def test_ranges(self) -> None:
        """Parts of objects are exactly those that were asked for."""
        backend = self.make_backend()
        backend.put("a", [_DIGITS])
        for offset, size in ((0, 10), (0, 3), (4, 3), (9, 1), (3, 0), (10, 0)):
            _check(backend.get_range("a", offset, size) == _DIGITS[offset : offset + size], "a range must be exact")
            memory = bytearray(b"x" * 12)
            backend.read_into("a", offset, memoryview(memory)[1 : 1 + size])
            expected = b"x" + _DIGITS[offset : offset + size] + b"x" * (11 - size)
            _check(memory == expected, "read_into must fill the buffer, and nothing else")

    def test_a_range_beyond_the_end_is_damage(self) -> None:
        """An object that ends before a part of it does was cut short."""
        backend = self.make_backend()
        backend.put("a", [_DIGITS])
        backend.put("empty", [])
        for key, offset, size in (("a", 0, 11), ("a", 9, 2), ("a", 10, 1), ("a", 100, 1), ("empty", 0, 1)):
            for read in (
                partial(backend.get_range, key, offset, size),
                partial(backend.read_into, key, offset, memoryview(bytearray(size))),
            ):
                with _raises(DamagedObject, "a range beyond the end") as caught:
                    read()
                _check(getattr(caught[0], "key", None) == key, "the error must name the key")

    def test_a_range_that_is_none_is_refused(self) -> None:
        """Offsets and sizes are not negative."""
        backend = self.make_backend()
        backend.put("a", [_DIGITS])
        for offset, size in ((-1, 1), (0, -1), (-3, 2)):
            with _raises(InvalidArgument, "a negative range"):
                backend.get_range("a", offset, size)
        with _raises(InvalidArgument, "a negative range"):
            backend.read_into("a", -1, memoryview(bytearray(1)))

    # --- listing and deleting ---

    def test_listing_by_prefix(self) -> None:
        """A listing has all that is below a directory, at any depth, and nothing else."""
        backend = self.make_backend()
        keys = ("cas-checkpoint", "packs/00", "packs/01", "packs2/00", "commits/a/1", "commits/b/1", "commits/x")
        for size, key in enumerate(keys):
            backend.put(key, [b"." * size])
        sizes = {key: size for size, key in enumerate(keys)}
        _check(_listed(backend) == sizes, "the empty prefix must list everything")
        for prefix in ("packs/", "commits/", "commits/a/", "packs2/", "marks/", "no/such/", "packs/00/"):
            expected = {key: size for key, size in sizes.items() if key.startswith(prefix)}
            _check(_listed(backend, prefix) == expected, f"list({prefix!r}) must show what is below")
            _check(sorted(backend.names(prefix)) == sorted(expected), "names must be the keys of a listing")
        modified = [info.modified for info in backend.list("")]
        _check(
            all(time is None for time in modified) or all(isinstance(time, float) for time in modified),
            "modified must be seconds since 1970, or None for all objects",
        )

    def test_bad_prefixes_are_refused(self) -> None:
        """A prefix is a directory."""
        backend = self.make_backend()
        for prefix in _BAD_PREFIXES:
            with _raises(InvalidArgument, f"the prefix {prefix!r}"):
                list(backend.list(prefix))

    def test_a_listing_is_never_an_old_one(self) -> None:
        """What was written or deleted is seen at once."""
        backend = self.make_backend()
        for number in range(10):
            _check(_listed(backend, "marks/") == {}, "what was deleted must not be listed")
            backend.put_if_absent(f"marks/{number}", b"x")
            _check(_listed(backend, "marks/") == {f"marks/{number}": 1}, "what was written must be listed")
            backend.delete(f"marks/{number}")

    def test_delete(self) -> None:
        """What is deleted is gone, and can be written again."""
        backend = self.make_backend()
        backend.put("packs/00", [b"x"])
        backend.put("packs/01", [b"x"])
        backend.delete("packs/00")
        _check(_listed(backend) == {"packs/01": 1}, "only what is deleted must go")
        with _raises(ObjectNotFound, "get of what was deleted"):
            backend.get("packs/00", max_size=1)
        for key in ("packs/00", "nothing/at/all", "packs/01/below"):
            backend.delete(key)
        _check(_listed(backend) == {"packs/01": 1}, "what is not there must be no error to delete")
        backend.delete("packs/01")
        _check(_listed(backend) == {}, "the last object must go, too")
        backend.put("packs/00", [b"again"])
        _check(_listed(backend) == {"packs/00": 5}, "a key must be usable again")

    # --- put-if-absent ---

    def test_put_if_absent(self) -> None:
        """It writes once; whoever gives the same bytes is told that they are there."""
        backend = self.make_backend()
        claims = (b"first", b"other", b"a longer other", b"", b"first")
        outcomes = [backend.put_if_absent("commits/a/1", data) for data in claims]
        _check(outcomes == [True, False, False, False, True], "put_if_absent must tell whether the object is ours")
        _check(backend.get("commits/a/1", max_size=100) == b"first", "the first must stay")
        _check(_listed(backend) == {"commits/a/1": 5}, "nothing else must be there")
        backend.delete("commits/a/1")
        _check(backend.put_if_absent("commits/a/1", b"other"), "after a deletion it must work again")
        outcomes = [backend.put_if_absent("empty", data) for data in (b"", b"", b"x")]
        _check(outcomes == [True, True, False], "an empty object is an object")

    def test_of_many_writers_one_wins(self) -> None:
        """Of several writers at once exactly one is told that it won, and its object is there."""
        _skip_unless(self.is_atomic)
        backend = self.make_backend()
        for number in range(self.rounds):
            key = f"commits/race/{number}"
            claims = [b"writer %d" % writer * (writer + 1) for writer in range(self.writers)]
            outcomes = _together(partial(backend.put_if_absent, key), claims)
            _check(outcomes.count(True) == 1, f"{outcomes.count(True)} of {self.writers} writers won")
            _check(backend.get(key, max_size=1000) == claims[outcomes.index(True)], "the winner's object must stay")
        _check(len(_listed(backend)) == self.rounds, "the losers must leave nothing behind")

    def test_many_writers_of_the_same_all_win(self) -> None:
        """Who writes the same as another has what it wanted."""
        _skip_unless(self.is_atomic)
        backend = self.make_backend()
        outcomes = _together(lambda data: backend.put_if_absent("a", data), [b"the same"] * self.writers)
        _check(all(outcomes), "all writers of the same bytes must be told so")

    def test_readers_see_nothing_or_all(self) -> None:
        """No reader sees a part of an object, while it is written or replaced."""
        _skip_unless(self.is_atomic)
        backend = self.make_backend()
        sizes = (10, _MIB)
        backend.put("a", [b"." * sizes[0]])

        def act(writes: bool) -> bool:  # noqa: FBT001 -- what each of the threads does
            for number in range(20):
                if writes:
                    backend.put("a", [b"." * sizes[number % 2]])
                elif len(backend.get("a", max_size=2 * _MIB)) not in sizes:
                    return False
            return True

        _check(all(_together(act, [True, True, False, False, False])), "a reader saw a part of an object")

    def test_many_threads_at_once(self) -> None:
        """Threads do not disturb one another."""
        backend = self.make_backend()

        def act(number: int) -> bool:
            for round_ in range(10):
                key, data = f"packs/{number}-{round_}", b"%d" % number * 1000
                backend.put(key, [data])
                if backend.get(key, max_size=len(data)) != data:
                    return False
                if round_ % 2:
                    backend.delete(key)
            return True

        _check(all(_together(act, range(self.writers))), "a thread read what another had written")
        _check(len(_listed(backend, "packs/")) == 5 * self.writers, "objects were lost or came back")


def _skip_unless(is_atomic: bool) -> None:  # noqa: FBT001 -- that is all that it is about
    if not is_atomic:
        raise SkipTest("of several writers more than one may win here")


def _listed(backend: Backend, prefix: str = "") -> dict[str, int]:
    found = list(backend.list(prefix))
    _check(len({info.key for info in found}) == len(found), "an object was listed twice")
    return {info.key: info.size for info in found}


def _calls(backend: Backend, key: str) -> dict[str, Callable[[], object]]:
    """Return all that can be done with one key."""
    return {
        "put": lambda: backend.put(key, [b"x"]),
        "put_if_absent": lambda: backend.put_if_absent(key, b"x"),
        "get": lambda: backend.get(key, max_size=1),
        "get_range": lambda: backend.get_range(key, 0, 1),
        "read_into": lambda: backend.read_into(key, 0, memoryview(bytearray(1))),
        "size": lambda: backend.size(key),
        "delete": lambda: backend.delete(key),
    }


def _together(action: Callable[[Argument], Result], arguments: Sequence[Argument]) -> list[Result]:
    """Call with each of the arguments at the same moment; return the results."""
    barrier = threading.Barrier(len(arguments))

    def call(argument: Argument) -> Result:
        barrier.wait()
        return action(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))
