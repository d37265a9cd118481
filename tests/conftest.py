"""What all tests share: caches of their own, and no store from the environment."""

import pytest


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CAS_CHECKPOINT_CACHE", str(tmp_path_factory.mktemp("caches")))
