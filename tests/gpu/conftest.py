from __future__ import annotations

import os

import pytest
import torch
from tiny_backends import TestBackends
from tiny_lms import CONFIGS, save_lm

from lohan_core.engine.device_memory import give_back_workspaces

# cuBLAS reads it when it starts: with one workspace of its own per stream, its results do not depend on the stream.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def cuda():
    """Skip without a device; leave no cap and no setting behind."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    torch.use_deterministic_algorithms(True)
    yield torch.device("cuda", torch.cuda.current_device())
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_per_process_memory_fraction(1.0)
    give_back_workspaces(torch.device("cuda"))  # of what was computed without an engine
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory for every tiny architecture, by name."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_lm(name, root / name) for name in CONFIGS}


@pytest.fixture
def backends():
    return TestBackends()
