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


@pytest.mark.parametrize("profiler", [PROFILER, {"backend": "measured", "cache": False}])
def test_the_product_that_ends_a_layer_is_no_candidate_and_is_not_counted_as_recomputed(tmp_path, models, profiler):
    batch = make_batch(1)
    with open_run(tmp_path, models["llama"], batch, profiler=profiler) as engine:
        config, profile = engine.model.model.config, engine.profile
    layer, tokens = profile.blocks[1], batch.micro_batches[0]["input_ids"].numel()
    assert layer.flops - layer.recomputed_flops == 2 * tokens * config.hidden_size * config.intermediate_size
    assert 0 < layer.recomputed_seconds < layer.seconds
    products = [candidate.occurrence for candidate in layer.candidates if candidate.operator == "mm"]
    assert products == [0, 1, 2, 3, 4, 5], "of the queries, keys, values, output, and two of the three behind"
    assert sum(candidate.flops for candidate in layer.candidates) == layer.recomputed_flops
    for edge in (profile.blocks[0], profile.blocks[-1]):
        assert (edge.recomputed_seconds, edge.recomputed_flops) == (edge.seconds, edge.flops)


@pytest.mark.parametrize(
    ("architecture", "compiles"),
    [("llama", False), ("llama", True), ("qwen3", False), ("opt", False), ("gemma3", False)],
)
def test_no_layer_of_these_has_to_be_run_again_to_its_end(tmp_path, models, architecture, compiles):
    batch = make_batch(1)
    with open_run(tmp_path, models[architecture], batch, model={"compile": compiles}) as engine:
        engine.step(batch, lr=0.0)
        assert engine._machinery._compute._replayer._needs_all == set()
