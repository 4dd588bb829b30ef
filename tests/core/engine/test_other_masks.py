"""Micro-batches of one step with other operators: transformers leaves out a mask that would hide nothing."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from tiny_backends import TestBackends
from tiny_lms import load_lm, make_batch
from tiny_runs import different, open_run, plain_step, recorded_gradients
from torch.utils._pytree import tree_leaves

from lohan_core.engine.operators import Operators
from lohan_core.model import replay
from lohan_core.model.keep import ATTENTION, OperatorCounter, nothing_saved
from lohan_core.plan import Tier

CPU = torch.device("cpu")


def without_mask(inputs):
    """A micro-batch of whole rows, each one document."""
    rows, length = inputs["input_ids"].shape
    if "position_ids" in inputs:
        return {**inputs, "position_ids": torch.arange(length).expand(rows, length)}
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def mixed_batch(*, packed, mask_first):
    batch = make_batch(1, micro_batches=2, packed=packed)
    first, second = batch.micro_batches
    both = (first, without_mask(second)) if mask_first else (without_mask(first), second)
    return evolve(batch, micro_batches=both)


@pytest.fixture
def recomputed(monkeypatch):
    """Names of the operators that were run again, a list for each layer and micro-batch."""
    layers = []

    class Watched(replay.Replaying):
        def __enter__(self):
            layers.append([])
            return super().__enter__()

        def run(self, occurrence, func, args, kwargs):
            if occurrence not in self._kept and self._unsaved > 0:
                layers[-1].append(occurrence[0])
            return super().run(occurrence, func, args, kwargs)

    monkeypatch.setattr(replay, "Replaying", Watched)
    return layers


@pytest.fixture(params=[(False, False), (False, True), (True, False), (True, True)])
def batch(request):
    packed, mask_first = request.param
    return mixed_batch(packed=packed, mask_first=mask_first)


@pytest.mark.parametrize("run", [("llama", Tier.GPU), ("llama", Tier.SSD), ("gemma3", Tier.HOST)])
def test_a_plan_keeps_the_same_operators_with_and_without_a_mask(tmp_path, models, recomputed, batch, run):
    architecture, tier = run
    backends = TestBackends()
    planner = {"backend": "keep_all", "candidates": tier.value}
    with open_run(tmp_path, models[architecture], batch, backends, planner=planner) as engine:
        recomputed.clear()
        engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
    assert len(recomputed) == 6, "three layers, two micro-batches"
    for names in recomputed:
        assert not {ATTENTION, "mm", "bmm", "silu", "rsqrt"} & set(names)
    _, theirs = plain_step(load_lm(models[architecture], torch.float32), batch, step=1)
    assert set(different(ours, theirs)) <= {"model.embed_tokens.weight"}, "tied in gemma3: summed in another order"


def test_what_a_micro_batch_has_not_is_computed_again(tmp_path, models, recomputed):
    """The plan is made with a mask; what widens it is not there in the second micro-batch."""
    batch = mixed_batch(packed=False, mask_first=True)
    with open_run(tmp_path, models["llama"], batch, planner={"backend": "keep_all"}) as engine:
        planned = {c.occurs_as for c in engine.profile.blocks[1].candidates}
        recomputed.clear()
        engine.step(batch, lr=0.0)
    assert ("where", 0) in planned
    assert not any("where" in names for names in recomputed)
    assert len({len(names) for names in recomputed}) == 2, "micro-batches are alike: nothing is tried"


@pytest.mark.parametrize("packed", [False, True])
def test_arguments_are_counted_of_the_micro_batch_that_has_most(tmp_path, models, packed):
    rows, length, heads = 2, 24, 12
    mask, tables = rows * length * length, 2 * length * heads * 4
    for mask_first in (False, True):
        batch = mixed_batch(packed=packed, mask_first=mask_first)
        with open_run(tmp_path / f"{packed}{mask_first}", models["llama"], batch) as engine:
            given = sum(tensor.untyped_storage().nbytes() for tensor in batch.micro_batches[mask_first - 1].values())
            positions = 0 if packed else length * 8
            if packed:
                tables = 2 * rows * length * heads * 4
            assert engine.profile.arguments_bytes == given + positions + tables + mask


def test_a_step_holds_the_arguments_that_are_counted(tmp_path, models):
    batch = mixed_batch(packed=False, mask_first=True)
    with open_run(tmp_path, models["llama"], batch) as engine:
        engine.step(batch, lr=0.0)
        data = engine._machinery._compute.data
        held = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in tree_leaves([data.inputs[0], *((c.arguments, dict(c.keywords)) for c in data.calls[0])])
            if isinstance(tensor, torch.Tensor)
        }
        assert engine.profile.arguments_bytes == sum(held.values())


def noted(function, *args):
    operators = Operators(CPU)
    with nothing_saved(), operators:
        function(*args)
    return [candidate.occurs_as for candidate in operators.candidates.values()]


def test_a_product_without_bias_is_one_candidate():
    """It ends in ``_unsafe_view``, of the same memory."""
    linear = torch.nn.Linear(4, 4, bias=False)
    assert noted(linear, torch.ones(2, 3, 4)) == [("mm", 0)]


def test_a_product_that_is_overwritten_through_its_view_is_no_candidate():
    linear = torch.nn.Linear(4, 4, bias=False)

    def function(x):
        y = linear(x)
        with torch.no_grad():
            y.add_(1)

    assert noted(function, torch.ones(2, 3, 4)) == []


def test_there_is_room_for_every_kernel_of_attention():
    """On a GPU one without a mask returns less than one with: their logsumexp is padded otherwise."""
    query = torch.ones(2, 4, 33, 16)
    operators = Operators(CPU)
    with nothing_saved(), operators:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    (candidate,) = operators.candidates.values()
    assert candidate.occurs_as == (ATTENTION, 0)
    assert candidate.bytes >= query.numel() * 4 + 2 * 4 * 64 * 4 + 2 * 256


def test_all_kernels_of_attention_have_one_name():
    names = []

    class Names(OperatorCounter):
        def run(self, occurrence, func, args, kwargs):
            names.append(occurrence)
            return super().run(occurrence, func, args, kwargs)

    query = torch.ones(1, 2, 8, 16, device="meta")
    with Names():
        torch.ops.aten._scaled_dot_product_flash_attention(query, query, query)
        torch.ops.aten._scaled_dot_product_efficient_attention(query, query, query, None, compute_log_sumexp=True)
    assert names == [(ATTENTION, 0), (ATTENTION, 1)]
