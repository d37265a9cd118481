import json


def test_shows_series_and_objects(cli, place, store, saved):
    store.save(b"x", series="run 2")
    result = cli("info")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["store", str(place)]
    assert ["id", store.id] in rows
    assert ["series", "default", "1"] in rows
    assert ["series", "run", "2", "1"] in rows
    (packs,) = (row for row in rows if row[:2] == ["objects", "packs"])
    assert packs[2:] == ["1", str(sum(path.stat().st_size for path in (place / "packs").iterdir()))]
    assert rows[-1][0] == "total"


def test_document(cli, place, store, saved):
    document = json.loads(cli("info", "--json").stdout)
    assert (document["url"], document["id"], document["put_if_absent"]) == (str(place), store.id, True)
    assert document["series"] == {"default": 1}
    assert document["objects"]["packs"]["count"] == 1
    assert document["size"] == sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def test_on_a_terminal(on_terminal, store):
    run = on_terminal("info")
    assert run.finish() == 0
    assert store.id.encode() in run.seen
