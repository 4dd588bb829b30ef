from __future__ import annotations

import pytest
from one_thread import one_thread
from tiny_backends import TestBackends
from tiny_lms import CONFIGS, save_lm

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory for every tiny architecture, by name."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_lm(name, root / name) for name in CONFIGS}


@pytest.fixture
def backends():
    return TestBackends()
