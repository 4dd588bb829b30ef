"""A run whose first weights are drawn: ``config.json`` is all that it needs of a model."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_backends import TestBackends, make_registry
from tiny_lms import CONFIGS, VOCABULARY, make_batch
from tiny_runs import different
from transformers import AutoModelForCausalLM

from lohan_core.config.load import config_from_mapping
from lohan_core.engine.assemble import open_engine
from lohan_core.errors import StoreError


def open_random(directory, model, batch, seed=5):
    registry = make_registry(TestBackends())
    values = {
        "model": {"path": str(model), "weights": "random"},
        "data": {"train": str(directory / "none.jsonl")},
        "run": {"dir": str(directory / "run"), "steps": 9, "seed": seed, "device": "cpu", "dtype": "float32"},
        "memory": {"chunk": "32KiB"},
        "optimizer": {"backend": "torch_adamw"},
        "planner": {"backend": "keep_nothing"},
        "profiler": {"backend": "quick"},
    }
    return open_engine(config_from_mapping(values, registry), batch, registry=registry)


def parameters(engine, out):
    engine.export(out, torch.float32)
    return dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_config_alone_is_trained_and_exported(tmp_path, architecture):
    CONFIGS[architecture]().save_pretrained(tmp_path / "model")
    batch = make_batch(1)
    with open_random(tmp_path, tmp_path / "model", batch) as engine:
        before = parameters(engine, tmp_path / "before")
        result = engine.step(batch, lr=1e-3)
        engine.save({})
        after = parameters(engine, tmp_path / "after")
    assert result.loss == pytest.approx(math.log(VOCABULARY), rel=0.1)
    assert different(before, after)
    with open_random(tmp_path, tmp_path / "model", batch) as engine:
        assert engine.finished_step == 1
        assert different(after, parameters(engine, tmp_path / "again")) == []


def test_the_seed_is_the_weights(tmp_path):
    CONFIGS["llama"]().save_pretrained(tmp_path / "model")
    batch = make_batch(1)
    with open_random(tmp_path, tmp_path / "model", batch) as engine:
        first = parameters(engine, tmp_path / "first")
    with pytest.raises(StoreError, match="random, of seed 6"):
        open_random(tmp_path, tmp_path / "model", batch, seed=6)
    with open_random(tmp_path / "other", tmp_path / "model", batch, seed=6) as engine:
        assert different(first, parameters(engine, tmp_path / "second"))
