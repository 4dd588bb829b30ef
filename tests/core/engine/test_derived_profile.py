"""A run planned with a profile that was derived, not measured: whatever it is wrong about, gradients are the same."""

from __future__ import annotations

import pytest
import torch
from tiny_lms import CONFIGS, load_lm, make_batch
from tiny_runs import different, open_run, plain_step, recorded_gradients

PROFILER = {"backend": "file", "hardware": "no-gpu"}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_gradients_are_those_of_plain_backward(tmp_path, models, backends, architecture):
    batch = make_batch(1)
    planner = {"backend": "keep_all", "candidates": "host"}
    run = {"dtype": "bfloat16"}
    with open_run(
        tmp_path, models[architecture], batch, backends, run=run, planner=planner, profiler=PROFILER
    ) as engine:
        assert any(decisions.keep for decisions in engine.plan.blocks)
        result = engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
    loss, theirs = plain_step(load_lm(models[architecture], torch.bfloat16), batch, step=1)
    assert not different(ours, theirs)
    assert result.loss == loss
