"""The cap on device memory, told by a GPU that is none."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from attrs import evolve
from tiny_backends import TestBackends, make_registry

from lohan_core.config.load import config_from_mapping
from lohan_core.engine import device_memory
from lohan_core.engine.device_memory import cap_device_memory, in_short
from lohan_core.engine.engine import Engine
from lohan_core.engine.parts import open_parts
from lohan_core.engine.subject import open_subject
from lohan_core.errors import PlanError
from lohan_core.model.choices import Loss

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


OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity of 79.18 GiB.\nMore"
)
SHORT = "CUDA out of memory: tried to allocate 3.91 GiB"


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [("whole", "data.sequence_length, set model.loss: chunked"), ("chunked", "data.sequence_length")],
)
def test_running_out_of_memory_while_profiling_names_the_keys(configure, registry, loss, remedy):
    config = configure()
    config = evolve(config, model=evolve(config.model, loss=Loss(loss)))
    with (
        pytest.raises(PlanError) as told,
        open_subject(config, registry, torch.device("cpu"), lambda *_: None),
    ):
        raise OUT_OF_MEMORY
    assert str(told.value) == (
        f"memory.gpu: too little for one block of the model ({SHORT}); lower run.micro_batch_size or {remedy}, or "
        "raise memory.gpu"
    )


def test_running_out_of_memory_before_there_is_a_sample_names_the_key(configure, registry, monkeypatch):
    monkeypatch.setattr("lohan_core.engine.parts.build_model", Mock(side_effect=OUT_OF_MEMORY))
    with pytest.raises(PlanError, match=r"memory\.gpu: too little"):
        open_parts(configure(), registry, torch.device("cpu"))


def test_running_out_of_memory_in_a_step_names_the_keys():
    engine = SimpleNamespace(
        model=SimpleNamespace(device=torch.device("cpu"), loss=Loss.WHOLE),
        _finished_step=2,
        _machinery=SimpleNamespace(lanes=Mock(execute=Mock(side_effect=OUT_OF_MEMORY)), actions={}),
    )
    with pytest.raises(PlanError) as told:
        Engine._execute(engine, None)
    assert str(told.value) == (
        f"memory.gpu: step 3 needs more device memory than the plan foresaw ({SHORT}); lower run.micro_batch_size or "
        "data.sequence_length, set model.loss: chunked, or keep less on the GPU"
    )


def test_what_torch_says_of_other_devices_stays_one_line():
    assert in_short(torch.OutOfMemoryError("out of memory\nmore")) == "out of memory"
