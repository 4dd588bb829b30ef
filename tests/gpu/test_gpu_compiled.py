"""Compiled layers on a CUDA device: the same bits whatever the plan, and those of the compiled layers in one piece."""

from __future__ import annotations

import pytest
import torch
from compiled_layers import with_layers_of
from test_gpu_exact import PLANNERS, to_device
from test_gpu_memory import device_pool_bytes
from tiny_lms import TIED, load_lm, make_batch
from tiny_runs import different, open_run, plain_step, recorded_gradients

from lohan_core.plan import Tier

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("run", [("llama", "bfloat16"), ("gpt2", "float32"), ("gemma3", "bfloat16")])
def test_gradients_are_those_of_plain_backward(*, tmp_path, models, backends, cuda, run, planner):
    architecture, dtype = run
    batch = make_batch(1, micro_batches=2)
    sections = {
        "model": {"compile": True},
        "run": {"dtype": dtype, "device": "cuda"},
        "planner": PLANNERS[planner],
    }
    with open_run(tmp_path, models[architecture], batch, backends, **sections) as engine:
        result = engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
        model = with_layers_of(engine, load_lm(models[architecture], getattr(torch, dtype)).to(cuda))
        loss, theirs = plain_step(model, to_device(batch, cuda), step=1)
    theirs = {name: gradient.cpu() for name, gradient in theirs.items()}
    assert set(different(ours, theirs)) <= {TIED.get(architecture)}, "but for what is summed in another order"
    assert result.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("candidates", ["gpu", "host"])
def test_steps_take_no_more_than_the_plan_reckoned_and_nothing_stays(tmp_path, models, cuda, candidates):
    batch = make_batch(2, micro_batches=2, rows=8, length=48)
    before = torch.cuda.memory_allocated(cuda)
    sections = {
        "model": {"compile": True},
        "run": {"device": "cuda"},
        "planner": {"backend": "keep_all", "candidates": candidates},
    }
    with open_run(tmp_path, models["llama"], batch, **sections) as engine:
        for _ in range(3):
            engine.step(batch, lr=1e-3)
        torch.cuda.reset_peak_memory_stats(cuda)
        workspaces = torch.cuda.memory_allocated(cuda) - before - device_pool_bytes(engine)
        held = torch.cuda.memory_allocated(cuda)
        for _ in range(20):
            engine.step(batch, lr=1e-3)
        taken = torch.cuda.max_memory_allocated(cuda) - before - workspaces
        assert taken <= engine.schedule.bytes_on(Tier.GPU)
        assert torch.cuda.memory_allocated(cuda) == held
