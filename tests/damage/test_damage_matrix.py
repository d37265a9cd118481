"""Every kind of object, damaged in every way: what is found, what is lost, what is restored all the same.

One thing never happens: that wrong data is restored or read, or that an error comes from somewhere else than us.
"""

from __future__ import annotations

import random

import pytest

from cas_checkpoint.errors import DamagedStore, NotAStore, SnapshotNotFound, UnsupportedStore
from cas_checkpoint.store import Store

KINDS = ["header", "pack", "index", "manifest", "commit", "inline commit"]
DEPTHS = ["structure", "sample", "data"]
ALL = {"first", "second", "small", "tiny"}
NEEDED_BY = {
    "pack": {"first", "second"},
    "index": set(),
    "manifest": {"first"},
    "commit": {"first"},
    "inline commit": {"small"},
}
"""For each kind, the snapshots that need the object which is damaged."""


def flip(at):
    def change(data):
        place = at if isinstance(at, int) else int(at * len(data))
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]

    return change


DAMAGES = {
    "emptied": lambda data: b"",
    "one byte left": lambda data: data[:1],
    "only its head": lambda data: data[:16],
    "truncated by half": lambda data: data[: len(data) // 2],
    "truncated by one byte": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "first byte flipped": flip(0),
    "kind flipped": flip(8),
    "version flipped": flip(9),
    "writer's version flipped": flip(12),
    "byte 20 flipped": flip(20),
    "flipped at a quarter": flip(0.25),
    "flipped in the middle": flip(0.5),
    "flipped near the end": flip(0.99),
    "last byte but 40 flipped": lambda data: flip(len(data) - 41)(data),
    "last byte flipped": lambda data: flip(len(data) - 1)(data),
}
CASES = ["deleted", "replaced by another", *DAMAGES]


def inflict(damaged, kind, case):
    path = damaged.path(kind)
    if case == "deleted":
        path.unlink()
    elif case == "replaced by another":
        path.write_bytes(damaged.other(kind).read_bytes())
    else:
        path.write_bytes(DAMAGES[case](path.read_bytes()))
    return str(path.relative_to(damaged.root))


def test_the_store_is_whole_before(damaged):
    store = damaged.open()
    for depth in DEPTHS:
        assert store.verify(depth=depth).ok
    for series in ALL:
        assert damaged.outcome(store, series) is None
        assert damaged.read(store, series) == []
    for kind in KINDS:
        assert damaged.path(kind).exists()
        assert damaged.other(kind) != damaged.path(kind)


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_header_opens_no_store_and_changes_nothing_for_who_has_opened_it(damaged, case):
    store = damaged.open()
    key = inflict(damaged, "header", case)
    for create in (False, True):
        with pytest.raises((DamagedStore, UnsupportedStore)) as caught:
            Store.open(damaged.root, create=create, durable=False)
        assert not isinstance(caught.value, NotAStore)
    for depth in DEPTHS:
        assert [problem.key for problem in store.verify(depth=depth).problems] == [key]
    assert {damaged.outcome(store, series) for series in ALL} == {None}


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_and_told_and_what_does_not_need_the_object_is_restored(damaged, kind, case):
    key = inflict(damaged, kind, case)
    store = damaged.open()
    needing = NEEDED_BY[kind]
    outcomes = {series: damaged.outcome(store, series) for series in ALL}
    failed = {series for series, error in outcomes.items() if error is not None}
    assert failed <= needing
    for series in failed:
        expected = SnapshotNotFound if "commit" in kind and case == "deleted" else (DamagedStore, UnsupportedStore)
        assert isinstance(outcomes[series], expected)
        if case != "deleted" and not isinstance(outcomes[series], UnsupportedStore):
            assert key in str(outcomes[series])
    for series in ALL - needing:
        assert damaged.read(store, series) == []
    if kind not in ("pack", "index"):
        assert failed == needing

    told = []
    listed = {snapshot.series for snapshot in store.snapshots(damaged=told.append)}
    if "commit" in kind:
        assert listed == ALL - needing
        assert len(told) == (0 if case == "deleted" else 1)
        assert all(key in str(error) for error in told)
    else:
        assert listed == ALL
        assert told == []

    report = store.verify()
    silent = case == "deleted" and kind in ("index", "commit", "inline commit")
    assert report.ok is silent
    assert {problem.key for problem in report.problems} == (set() if silent else {key})
    named = {snapshot for problem in report.problems for snapshot in problem.snapshots}
    assert named == (set() if silent else {damaged.ids[series] for series in needing})
    lost = {path.snapshot for path in report.lost}
    assert lost <= {damaged.ids[series] for series in failed}
    if kind == "pack":
        assert lost == {damaged.ids[series] for series in failed}

    structure = store.verify(depth="structure")
    in_a_blob = kind == "pack" and case in ("flipped at a quarter", "flipped in the middle", "flipped near the end")
    assert structure.ok is (silent or in_a_blob)
    assert structure.bytes_read == 0


@pytest.mark.parametrize("case", CASES)
def test_without_its_index_a_damaged_pack_gives_no_wrong_data_either(damaged, case):
    damaged.path("index").unlink()
    key = inflict(damaged, "pack", case) if case != "replaced by another" else _swap(damaged)
    store = damaged.open()
    for series in ALL:
        error = damaged.outcome(store, series)
        damaged.read(store, series)
        if series not in NEEDED_BY["pack"]:
            assert error is None
        elif error is not None:
            assert isinstance(error, (DamagedStore, UnsupportedStore))
    report = store.verify()
    assert key in {problem.key for problem in report.problems}


def _swap(damaged):
    path, other = damaged.path("pack"), damaged.other("pack")
    path.write_bytes(other.read_bytes())
    return str(path.relative_to(damaged.root))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("case", ["deleted", "emptied", "truncated by half", "flipped in the middle"])
def test_saving_goes_on_beside_damage_and_what_it_saves_is_whole(damaged, kind, case):
    """Only a pack's damage can touch a new snapshot: it relies on chunks that are listed there."""
    inflict(damaged, kind, case)
    store = damaged.open()
    fresh = {"a": random.Random(9).randbytes(200_000), "b": b"x"}
    snapshot = store.save(fresh, series="new")
    assert {entry.name: snapshot.read_bytes(entry.path) for entry in snapshot.entries()} == fresh
    assert snapshot.id not in {name for problem in store.verify().problems for name in problem.snapshots}


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("case", CASES)
def test_a_repair_costs_nothing_and_a_second_one_finds_nothing_to_do(damaged, kind, case):
    inflict(damaged, kind, case)
    store = damaged.open()
    before = {series for series in ALL if damaged.outcome(store, series) is None}
    readable = {series: len(damaged.read(store, series)) for series in ALL}
    report = store.repair()
    assert before <= {series for series in ALL if damaged.outcome(store, series) is None}
    for series in ALL:
        assert len(damaged.read(store, series)) <= readable[series]
    found = store.verify()
    assert found.lost == report.lost
    assert found.ok is report.ok
    again = store.repair()
    assert (again.quarantined, again.corrected, again.healed) == ((), (), ())
    assert (again.lost, again.left) == (report.lost, report.left)


@pytest.mark.parametrize("seed", range(10))
def test_a_bit_flipped_anywhere_is_found_and_never_passed_on(damaged, seed):
    choose = random.Random(seed)
    paths = sorted(path for path in damaged.root.rglob("*") if path.is_file())
    opened = damaged.open()
    for _ in range(18):
        path = choose.choice(paths)
        data = path.read_bytes()
        at, bit = choose.randrange(len(data)), 1 << choose.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        what = f"{path.relative_to(damaged.root)}, byte {at}, bit {bit}"
        failed = {series for series in ALL if damaged.outcome(opened, series) is not None}
        damaged.read(opened, choose.choice(sorted(ALL)))
        opened.snapshots(damaged=lambda error: None)
        report = opened.verify()
        assert not report.ok, what
        named = {snapshot for problem in report.problems for snapshot in problem.snapshots}
        assert {damaged.ids[series] for series in failed} <= named, what
        path.write_bytes(data)
    assert opened.verify().ok


@pytest.mark.parametrize("seed", range(5))
def test_coarser_damage_anywhere_is_found_and_never_passed_on(damaged, seed):
    choose = random.Random(seed)
    paths = sorted(path for path in damaged.root.rglob("*") if path.is_file())
    opened = damaged.open()
    for _ in range(12):
        path = choose.choice(paths)
        data = path.read_bytes()
        at = choose.randrange(len(data))
        size = choose.randrange(1, 5000)
        changed = choose.choice(
            [
                data[:at],
                data[:at] + bytes(len(data[at : at + size])) + data[at + size :],
                data[:at] + data[at + size :],
                data[:at] + choose.randbytes(size) + data[at:],
                data[:at] + choose.choice(paths).read_bytes()[at : at + size] + data[at + size :],
            ]
        )
        path.write_bytes(changed)
        failed = {series for series in ALL if damaged.outcome(opened, series) is not None}
        damaged.read(opened, choose.choice(sorted(ALL)))
        report = opened.verify()
        assert report.ok is (changed == data)
        named = {snapshot for problem in report.problems for snapshot in problem.snapshots}
        assert {damaged.ids[series] for series in failed} <= named
        path.write_bytes(data)
