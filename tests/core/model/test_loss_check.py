"""Comparing a loss by slices with the model's own, where nothing is left to compare in parts of."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from tiny_lms import CONFIGS

from lohan_core.errors import ConfigError
from lohan_core.model import loss
from lohan_core.model.choices import Loss
from lohan_core.model.cut import cut_model
from lohan_core.model.skeleton import build_skeleton


def compare(monkeypatch, found, expected):
    model = evolve(cut_model(build_skeleton(CONFIGS["llama"](), torch.float32)), loss=Loss.CHUNKED)
    tried = {Loss.CHUNKED: found, Loss.WHOLE: expected}
    monkeypatch.setattr(loss, "_try_loss", lambda model: tried[model.loss])
    loss.require_same_loss(model)


@pytest.mark.parametrize("found", [{"gradient of a bias": torch.zeros(3)}, {}])
def test_a_gradient_of_zero_is_the_same_as_none(monkeypatch, found):
    compare(monkeypatch, found, {"gradient of a bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (
            torch.full((3,), 1e-9),
            torch.zeros(3),
            "another gradient of a bias .* does, which is zero;",
        ),
        (torch.full((3,), 1.5), torch.ones(3), "another gradient of a bias than LlamaForCausalLM does, by 50.0%;"),
        (torch.full((3,), torch.nan), torch.ones(3), "by nan%;"),
    ],
)
def test_another_gradient_is_refused(monkeypatch, found, expected, message):
    with pytest.raises(ConfigError, match=message):
        compare(monkeypatch, {"gradient of a bias": found}, {"gradient of a bias": expected})
