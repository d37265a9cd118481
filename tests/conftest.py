"""What all tests share: modules to import, caches of their own, and no store from the environment."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CAS_CHECKPOINT_CACHE", str(tmp_path_factory.mktemp("caches")))
