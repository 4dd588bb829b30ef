from __future__ import annotations

import pytest
import torch
from tiny_backends import TestBackends
from tiny_lms import CONFIGS, save_lm


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory for every tiny architecture, by name."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_lm(name, root / name) for name in CONFIGS}


@pytest.fixture
def backends():
    return TestBackends()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny operators are slower on several threads, and lanes would fight for the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
