"""A state machine that any implementation of flytekit's `Checkpoint` interface can be put through, kills included."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cas_checkpoint.testing.strategies import Node, Tree, read_tree, trees, write_tree

__all__ = ["CheckpointLike", "CheckpointMachine", "kill_during"]

_CHILD_FAILED = 7
_BYTES = b"_dst_cp"  # the name of what has none


class CheckpointLike(Protocol):
    """What flytekit's `Checkpoint` asks for."""

    def prev_exists(self) -> bool: ...  # noqa: D102 -- the contract is flytekit's
    def restore(self, path: Any) -> Any: ...  # noqa: ANN401, D102 -- each implementation has types of its own
    def save(self, cp: Any) -> Any: ...  # noqa: ANN401, D102
    def read(self) -> bytes | None: ...  # noqa: D102
    def write(self, b: bytes) -> Any: ...  # noqa: ANN401, D102


class _Saved(NamedTuple):
    """What a destination may hold: the bytes of files by path, and whether a single file was saved as such."""

    files: Mapping[bytes, bytes]
    is_single: bool = False

    def __str__(self) -> str:
        return str({path.decode("utf-8", "replace"): len(data) for path, data in self.files.items()})


def kill_during(action: Callable[[], object], *, after: float = 0.0, at_file: int | None = None) -> bool:
    """Do something in a forked process, and `kill -9` it on the way.

    Args:
        action: what to do.
        after: kill after so many seconds.
        at_file: in place of that, kill when the file of this number is opened for writing, counted from 1.

    Returns:
        Whether the process was killed, rather than done before.

    Raises:
        RuntimeError: the process failed by itself; its traceback went to standard error.
    """
    child = os.fork()
    if child == 0:
        _act_and_exit(action, at_file)
    deadline = time.monotonic() + after
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                code = os.waitstatus_to_exitcode(status)
                if code not in {0, -signal.SIGKILL}:
                    raise RuntimeError("what was to be killed failed by itself")
                return code != 0
            if at_file is None and time.monotonic() >= deadline:
                return True
            time.sleep(0.0002)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _act_and_exit(action: Callable[[], object], at_file: int | None) -> None:
    """Do something and end the process, without a word to whatever it was forked from."""
    opened = count(1)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        flags = arguments[2] if event == "open" else 0
        if isinstance(flags, int) and flags & os.O_ACCMODE and next(opened) == at_file:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(watch)
        action()
        os._exit(0)
    except BaseException:  # noqa: BLE001 -- nothing may get back into the code that the parent runs
        traceback.print_exc()
    finally:
        os._exit(_CHILD_FAILED)


class CheckpointMachine(RuleBasedStateMachine):
    """Puts a checkpoint class through attempts of a task: saves, restores, reads, writes, retries and kills.

    Subclass it, define `make`, and let pytest find the subclass's `TestCase`:

        class Machine(CheckpointMachine):
            def make(self, dest, src):
                return MyCheckpoint(dest, src)

        TestMachine = Machine.TestCase

    What is compared are the files: their paths and bytes. After a kill the destination must hold the checkpoint before
    or the one that was being saved, never a mixture; a restore that was killed must succeed when it is tried again.

    Attributes:
        accumulates: whether a save leaves files of earlier saves to the same destination in place, as flytekit's does.
        kills: whether saves and restores are killed.
        kill_within: after how many seconds at most; about as long as either takes.
        replaces_kinds: whether a save may have a file where an earlier one to the same destination had a directory, or
            the other way round.
    """

    accumulates: ClassVar[bool] = False
    kills: ClassVar[bool] = True
    kill_within: ClassVar[float] = 0.03
    replaces_kinds: ClassVar[bool] = True

    def make(self, dest: str, src: str | None) -> CheckpointLike:
        """Return the checkpoint object of an attempt that saves at `dest` and resumes from `src`; to be defined."""
        raise NotImplementedError

    # --- what happens ---

    @initialize()
    def begin(self) -> None:
        """Begin a task; its first attempt has nothing to resume from."""
        self._place = Path(tempfile.mkdtemp(prefix="cas-checkpoint-machine-"))
        self._number = 0
        self._outcomes: list[_Saved | None] = [None]  # what the attempt's destination may hold
        self._previous: list[_Saved | None] = [None]  # what its source may hold
        self._has_saved = self._resumes = False  # what rules ask for must not depend on when something was killed
        self._kinds: dict[bytes, str] = {}  # of what was saved at the destination
        self._checkpoint = self.make(self._dest(0), None)
        _check(not self._checkpoint.prev_exists(), "prev_exists() is true without a source")
        _check(self._checkpoint.restore(self._target()) is None, "restore() gave something without a source")
        _check(self._checkpoint.read() is None, "read() gave something without a source")

    @rule(tree=trees(max_nodes=5, hostile=False, symlinks=False, hardlinks=False))
    def save_a_directory(self, tree: Tree) -> None:
        """Save a directory."""
        if self._may_replace(_kinds(tree)):
            self._checkpoint.save(self._source(tree))
            self._outcomes = self._after(tree, is_single=False)

    @rule(data=st.binary(max_size=300), name=st.sampled_from(["state", "model.bin"]))
    def save_a_file(self, data: bytes, name: str) -> None:
        """Save a single file."""
        tree = {os.fsencode(name): Node("file", data)}
        if self._may_replace(_kinds(tree)):
            path = self._place / name
            path.write_bytes(data)
            self._checkpoint.save(str(path))
            self._outcomes = self._after(tree, is_single=True)

    @rule(data=st.binary(max_size=300), skipped=st.integers(0, 10))
    def save_what_a_reader_gives(self, data: bytes, skipped: int) -> None:
        """Save what a reader gives from where it stands."""
        reader = io.BytesIO(data)
        reader.seek(skipped)
        self._checkpoint.save(reader)
        self._outcomes = self._after({_BYTES: Node("file", data[skipped:])}, is_single=True)

    @rule(data=st.binary(max_size=300))
    def write_bytes(self, data: bytes) -> None:
        """Write bytes."""
        self._checkpoint.write(data)
        self._outcomes = self._after({_BYTES: Node("file", data)}, is_single=True)

    @precondition(lambda self: self.kills)
    @rule(
        tree=trees(max_nodes=5, hostile=False, symlinks=False, hardlinks=False),
        share=st.floats(0, 1),
        retries=st.booleans(),
    )
    def save_and_be_killed(self, tree: Tree, share: float, retries: bool) -> None:  # noqa: FBT001 -- it is drawn
        """Be killed while saving a directory; the next attempt resumes, or somebody goes on at the same destination."""
        if not self._may_replace(_kinds(tree)):
            return
        source = self._source(tree)
        killed = kill_during(lambda: self._checkpoint.save(source), after=share * self.kill_within)
        new = self._after(tree, is_single=False)
        self._outcomes = self._outcomes + new if killed else new
        if retries:
            self.retry()

    @precondition(lambda self: self._has_saved)
    @rule()
    def retry(self) -> None:
        """Begin another attempt, which resumes from what this one saved."""
        self._number += 1
        self._previous = self._outcomes
        self._outcomes, self._kinds = [None], {}
        self._checkpoint = self._again()
        self._has_saved, self._resumes = False, True
        self.restore()
        self.read()

    @precondition(lambda self: self._resumes)
    @rule()
    def restore(self) -> None:
        """Restore what the attempt before saved: one of what is possible, and from now on the only thing possible."""
        self._restore_into(self._target())

    @precondition(lambda self: self.kills and self._resumes)
    @rule(share=st.floats(0, 1))
    def restore_and_be_killed(self, share: float) -> None:
        """Be killed while restoring, and restore again into the same directory."""
        target = self._target()
        kill_during(lambda: self._again().restore(target), after=share * self.kill_within)
        self._restore_into(target, may_hold_more=True)

    @precondition(lambda self: self._resumes)
    @rule()
    def read(self) -> None:
        """Read what the attempt before saved: a single file, or there is a `ValueError`."""
        (previous,) = self._previous
        if previous is None:
            return
        if previous.is_single:
            (expected,) = previous.files.values()
            data = self._again().read()
            _check(data == expected, f"read {data!r:.60}, not {expected!r:.60}")
        elif len({path.split(b"/")[0] for path in previous.files}) > 1:
            try:
                data = self._again().read()
            except ValueError:
                return
            raise AssertionError(f"read {data!r:.60} where there are several files")

    def teardown(self) -> None:
        """Remove everything."""
        place = getattr(self, "_place", None)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)

    # --- what it takes ---

    def _dest(self, number: int) -> str:
        return str(self._place / f"attempt-{number}")

    def _again(self) -> CheckpointLike:
        """Return a new object of this attempt."""
        return self.make(self._dest(self._number), self._dest(self._number - 1))

    def _source(self, tree: Tree) -> str:
        source = str(self._place / "source")
        write_tree(source, tree)
        return source

    def _target(self) -> Path:
        target = self._place / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        return target

    def _may_replace(self, kinds: dict[bytes, str]) -> bool:
        """Tell whether such things may be saved now, and note that they are."""
        if not self.replaces_kinds and any(self._kinds.get(path, kind) != kind for path, kind in kinds.items()):
            return False
        self._kinds |= kinds
        return True

    def _after(self, tree: Tree, *, is_single: bool) -> list[_Saved | None]:
        """Return what the destination may hold after a tree was saved there."""
        self._has_saved = True
        return [self._laid_over(before, tree, is_single=is_single) for before in self._outcomes]

    def _laid_over(self, before: _Saved | None, tree: Tree, *, is_single: bool) -> _Saved:
        new = {path: node.data for path, node in tree.items() if node.kind == "file"}
        if not self.accumulates or before is None:
            return _Saved(new, is_single)
        kept = {
            path: data
            for path, data in before.files.items()
            if path not in tree and not any(path.startswith(file + b"/") for file in new)
        }
        return _Saved(kept | new, is_single and kept.keys() <= new.keys() and before.is_single)

    def _restore_into(self, target: Path, *, may_hold_more: bool = False) -> None:
        checkpoint = self._again()
        if None not in self._previous:
            _check(checkpoint.prev_exists(), "prev_exists() is false, though something was saved")
        restored = checkpoint.restore(target)
        found = _files(target) if restored is not None else {}
        matching = [previous for previous in self._previous if _matches(found, previous, may_hold_more=may_hold_more)]
        if not matching:
            possible = " or ".join(str(previous) for previous in self._previous)
            raise AssertionError(f"restored {_Saved(found)}, where it should be {possible}")
        chosen = matching[0]
        if chosen is not None:  # the same files may have been saved in two ways
            chosen = chosen._replace(is_single=all(other is not None and other.is_single for other in matching))
        self._previous = [chosen]
        _check(checkpoint.restore(target) == restored, "a second restore() returned something else")


def _check(condition: bool, complaint: str) -> None:  # noqa: FBT001 -- that is all that it is about
    if not condition:
        raise AssertionError(complaint)


def _matches(found: Mapping[bytes, bytes], saved: _Saved | None, *, may_hold_more: bool) -> bool:
    files = saved.files if saved else {}
    return files == found or (may_hold_more and files.items() <= found.items())


def _kinds(tree: Tree) -> dict[bytes, str]:
    return {path: node.kind for path, node in tree.items()}


def _files(root: Path) -> dict[bytes, bytes]:
    return {path: node.data for path, node in read_tree(root).items() if node.kind == "file"}
