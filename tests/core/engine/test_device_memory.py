"""The cap on device memory, told by a GPU that is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_backends import TestBackends, make_registry

from lohan_core.config.load import config_from_mapping
from lohan_core.engine import device_memory
from lohan_core.engine.device_memory import cap_device_memory
from lohan_core.engine.subject import open_subject
from lohan_core.errors import PlanError

DEVICE = torch.device("cuda", 0)
TOTAL_BYTES = 64 << 30


@pytest.fixture
def registry():
    return make_registry(TestBackends())


@pytest.fixture
def configure(tmp_path, models, registry):
    def configure(**memory):
        values = {
            "model": {"path": str(models["llama"])},
            "data": {"train": str(tmp_path / "none"), "sequence_length": 8},
            "run": {"dir": str(tmp_path / "run"), "steps": 1, "device": "cpu"},
            "memory": memory,
        }
        return config_from_mapping(values, registry)

    return configure


def test_a_run_without_a_cap_takes_off_that_of_one_before(configure, monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=TOTAL_BYTES))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))
    monkeypatch.setattr(device_memory, "_set_allocator", lambda _: None)
    for memory in ({"gpu": "16GiB"}, {}, {"gpu": "100GiB"}):
        cap_device_memory(configure(**memory), DEVICE)
    assert shares == [0.25, 1.0, 1.0]


def test_what_is_profiled_before_a_run_is_capped_as_the_run_is(configure, registry, monkeypatch):
    capped = []
    monkeypatch.setattr("lohan_core.engine.subject.cap_device_memory", lambda *arguments: capped.append(arguments))
    config = configure(gpu="16GiB")
    with open_subject(config, registry, torch.device("cpu"), lambda *_: None):
        assert capped == [(config, torch.device("cpu"))]


def test_running_out_of_memory_while_profiling_names_the_key(configure, registry):
    message = r"memory.gpu: too little for one block of the model \(CUDA out of memory\); lower run.micro_batch_size"
    with (
        pytest.raises(PlanError, match=message),
        open_subject(configure(), registry, torch.device("cpu"), lambda *_: None),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")
