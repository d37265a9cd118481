import json

import pytest


@pytest.fixture
def three(store):
    return [store.save(b"x%d" % number, series="run") for number in range(3)]


def test_forgets_what_is_named(cli, store, three):
    result = cli("forget", three[0].id[:8], "run@2")
    assert result.exit_code == 0
    assert result.stdout.split() == [three[0].id, three[1].id]
    assert "2 snapshots forgotten" in result.stderr
    assert store.snapshots() == [three[2]]


def test_keeps_the_newest_of_a_series(cli, store, saved, three):
    result = cli("forget", "--series", "run", "--keep", "1", "--json")
    assert {document["sequence"] for document in json.loads(result.stdout)} == {1, 2}
    assert set(store.snapshots()) == {three[2], saved}
    assert cli("forget", "--keep", "1").stdout == ""


def test_what_is_not_there_is_an_error_and_nothing_is_forgotten(cli, store, three):
    result = cli("forget", "run@1", "run@9")
    assert result.exit_code == 11
    assert len(store.snapshots()) == 3


@pytest.mark.parametrize(
    "arguments",
    [[], ["run@1", "--keep", "1"], ["--keep", "0"], ["run@1", "--series", "run"]],
    ids=["nothing", "both", "none left", "a series without --keep"],
)
def test_a_mistake_is_told(cli, store, three, arguments):
    assert cli("forget", *arguments).exit_code == 2
    assert len(store.snapshots()) == 3
