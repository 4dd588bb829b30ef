"""Runs of compiled layers: the same bits whatever the plan keeps, and those of the compiled layers in one piece."""

from __future__ import annotations

import pytest
import torch
from compiled_layers import with_layers_of
from tiny_backends import TestBackends
from tiny_lms import TIED, load_lm, make_batch
from tiny_runs import different, open_run, plain_step, recorded_gradients
from torch import nn

from lohan_core.errors import ConfigError

PLANS = {
    "keep nothing": {"backend": "keep_nothing"},
    "keep all": {"backend": "keep_all", "candidates": "host"},
    "dice": {"backend": "dice", "seed": 3},
}


@pytest.mark.parametrize(
    "case",
    [
        *(("llama", "bfloat16", plan) for plan in PLANS),
        ("gpt2", "float32", "dice"),  # with dropout
    ],
)
def test_gradients_are_those_of_plain_backward_through_the_compiled_layers(tmp_path, models, backends, case):
    architecture, dtype, plan = case
    batch = make_batch(1, micro_batches=2)
    sections = {"model": {"compile": True}, "run": {"dtype": dtype}, "planner": PLANS[plan]}
    with open_run(tmp_path, models[architecture], batch, backends, **sections) as engine:
        result = engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
        model = with_layers_of(engine, load_lm(models[architecture], getattr(torch, dtype)))
        loss, theirs = plain_step(model, batch, step=1)
    summed_in_another_order = {TIED.get(architecture)}
    assert set(different(ours, theirs)) <= summed_in_another_order
    assert result.loss == loss


def test_compiled_layers_compute_what_the_others_do_to_rounding(tmp_path, models):
    batches = [make_batch(seed) for seed in range(3)]
    losses = {}
    for compiles in (False, True):
        optimizer = {"backend": "torch_adamw", "lr": 1e-2}
        with open_run(
            tmp_path / str(compiles), models["llama"], batches[0], optimizer=optimizer, model={"compile": compiles}
        ) as engine:
            losses[compiles] = [engine.step(batch, lr=1e-2).loss for batch in batches]
            losses[compiles].append(engine.evaluate(batches))
            assert engine.description[0].endswith("; layers are compiled") is compiles
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True] != losses[False]


def test_nothing_is_compiled_in_a_run_that_evaluates(tmp_path, models, monkeypatch):
    batch = make_batch(1)
    sections = {"model": {"compile": True}, "data": {"eval": str(tmp_path / "none.jsonl")}}
    with open_run(tmp_path, models["llama"], batch, **sections) as engine:
        monkeypatch.setattr("lohan_core.model.compiled.capture", lambda *_: pytest.fail("it is compiled now"))
        engine.step(batch, lr=0.0)
        engine.evaluate([batch])


def test_a_layer_that_is_compiled_within_a_step_draws_what_it_would_have(tmp_path, models):
    """Of a kind that the sample does not have: here it is forgotten that it was compiled before."""
    batch, gradients = make_batch(1), []
    for forgets in (False, True):
        backends = TestBackends()
        with open_run(tmp_path / str(forgets), models["gpt2"], batch, backends, model={"compile": True}) as engine:
            if forgets:
                engine.model.compiled._found.clear()
                engine.model.compiled._made.clear()
            engine.step(batch, lr=0.0)
            gradients.append(recorded_gradients(engine, backends.recorder))
    assert different(*gradients) == []


def test_candidates_of_a_compiled_layer_are_its_products_and_attention(tmp_path, models):
    with open_run(tmp_path, models["llama"], make_batch(1), model={"compile": True}) as engine:
        layer = engine.profile.blocks[1]
    assert [candidate.operator for candidate in layer.candidates] == ["mm"] * 3 + ["attention"] + ["mm"] * 3
    assert layer.recomputed_flops < layer.flops


class StraightThrough(nn.Module):
    """What a capture loses: a gradient that is not the operators' own."""

    def forward(self, x):
        return _Doubled.apply(x)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        del ctx
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        del ctx
        return gradient


def test_a_layer_that_differentiates_otherwise_is_refused(tmp_path, models, monkeypatch):
    monkeypatch.setattr("transformers.models.llama.modeling_llama.ACT2FN", {"silu": StraightThrough()})
    with pytest.raises(
        ConfigError, match=r"model.compile: LlamaDecoderLayer: captured, its output or gradients are off"
    ):
        open_run(tmp_path, models["llama"], make_batch(1), model={"compile": True})


def test_a_layer_that_cannot_be_captured_is_refused(tmp_path, models):
    with pytest.raises(ConfigError, match=r"model.compile: MixtralDecoderLayer: .*; set model.compile: false"):
        open_run(tmp_path, models["mixtral"], make_batch(1), model={"compile": True})


def test_packed_rows_are_not_told_to_flash_attn_by_compiled_layers(tmp_path, models, monkeypatch):
    """Or each number of documents would have layers compiled of its own."""
    monkeypatch.setattr("lohan_core.engine.model.flash_attn_obstacle", lambda *_: None)
    with pytest.raises(ConfigError, match=r"model.attention: flash: model.compile: packed rows .*data.packing: false"):
        open_run(tmp_path, models["llama"], make_batch(1), model={"compile": True, "attention": "flash"})
