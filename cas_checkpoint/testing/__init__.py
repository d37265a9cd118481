"""The test harness: for this package, for other storage backends, and for other checkpoint classes.

See docs/testing.md. Needs the extra `testing`.
"""

from __future__ import annotations

from cas_checkpoint.testing.checkpoints import CheckpointLike, CheckpointMachine, kill_during
from cas_checkpoint.testing.conformance import BackendConformance
from cas_checkpoint.testing.scheduling import Actor, Outcome, Scheduler, Step, in_one_thread, seeded_ids
from cas_checkpoint.testing.simulated import Crash, Fault, Operation, SimulatedBackend, SimulatedCrash
from cas_checkpoint.testing.strategies import Node, Tree, assert_same_tree, edits, names, read_tree, trees, write_tree

__all__ = [
    "Actor",
    "BackendConformance",
    "CheckpointLike",
    "CheckpointMachine",
    "Crash",
    "Fault",
    "Node",
    "Operation",
    "Outcome",
    "Scheduler",
    "SimulatedBackend",
    "SimulatedCrash",
    "Step",
    "Tree",
    "assert_same_tree",
    "edits",
    "in_one_thread",
    "kill_during",
    "names",
    "read_tree",
    "seeded_ids",
    "trees",
    "write_tree",
]
