"""Trying a model out draws numbers; no device but the one that draws may notice."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from tiny_lms import CONFIGS, make_batch

from lohan_core.engine.profile_blocks import profile_blocks
from lohan_core.model.choices import Loss
from lohan_core.model.cut import cut_model
from lohan_core.model.isolation import isolates_documents
from lohan_core.model.loss import require_same_loss
from lohan_core.model.rng import get_random_state, seeded
from lohan_core.model.skeleton import build_skeleton
from lohan_core.weights.random import RandomWeights

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return cut_model(build_skeleton(CONFIGS["llama"](), torch.float32))


def draw_weights(model):
    block = model.blocks[1]
    flat = torch.empty(block.elements)
    RandomWeights(".", model.model, seed=1, device=CPU).read_block(block, flat)


TRIALS = {
    "isolation": lambda model: isolates_documents(model, make_batch(1, packed=True).micro_batches[0]),
    "loss": lambda model: require_same_loss(evolve(model, loss=Loss.CHUNKED)),
    "profile": lambda model: profile_blocks(model, make_batch(1).micro_batches[0], CPU),
    "weights": draw_weights,
}


@pytest.mark.parametrize("trial", TRIALS)
def test_no_other_device_is_seeded(model, trial, monkeypatch):
    """``torch.manual_seed`` seeds all of them, and only one is put back."""
    monkeypatch.setattr(torch, "manual_seed", lambda _: pytest.fail("every device is seeded"))
    monkeypatch.setattr(torch.random, "manual_seed", lambda _: pytest.fail("every device is seeded"))
    before = get_random_state(CPU)
    TRIALS[trial](model)
    assert torch.equal(get_random_state(CPU), before)


def test_a_seed_gives_what_manual_seed_does():
    with seeded(CPU, 11):
        found = torch.rand(4)
    with torch.random.fork_rng([]):
        torch.manual_seed(11)
        assert torch.equal(found, torch.rand(4))
