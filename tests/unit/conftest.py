"""A store, for tests that need no other."""

import pytest

from cas_checkpoint.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True, durable=False, workers=2)


@pytest.fixture
def backend(store):
    return store._backend
