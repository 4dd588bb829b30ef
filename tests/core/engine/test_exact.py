"""DESIGN.md's exactness of gradients: what a plan keeps, offloads or recomputes never changes them."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_backends import TestBackends
from tiny_lms import COMMON, CONFIGS, TIED, load_lm, make_batch, make_lm
from tiny_runs import different, open_run, plain_step, recorded_gradients
from transformers import DeepseekV3Config, Ernie4_5_MoeConfig, MambaConfig

from lohan_core.data.batches import Batch
from lohan_core.data.samples import NO_LOSS
from lohan_core.model.rng import get_random_state
from lohan_core.model.skeleton import build_skeleton
from lohan_core.plan import Tier
from lohan_core.schedule.sizes import kept_bytes

DTYPES = ("float32", "bfloat16")
PLANNERS = {
    "keep nothing": {"backend": "keep_nothing", "inputs": "gpu"},
    "keep all on gpu": {"backend": "keep_all", "candidates": "gpu", "inputs": "host"},
    "keep all on host": {"backend": "keep_all", "candidates": "host", "states": "host"},
    "keep all on ssd": {"backend": "keep_all", "candidates": "ssd", "inputs": "ssd"},
    "roll dice": {"backend": "dice", "seed": 1},
}


def gradients_by_engine(directory, model, batch, **sections):
    backends = TestBackends()
    with open_run(directory, model, batch, backends, **sections) as engine:
        result = engine.step(batch, lr=0.0)
        return result, recorded_gradients(engine, backends.recorder)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_plain_backward(tmp_path, models, dtype, architecture, planner):
    batch = make_batch(1)
    result, ours = gradients_by_engine(
        tmp_path, models[architecture], batch, run={"dtype": dtype}, planner=PLANNERS[planner]
    )
    loss, theirs = plain_step(load_lm(models[architecture], getattr(torch, dtype)), batch, step=1)
    assert not different(ours, theirs)
    assert result.loss == loss


def test_hidden_states_may_change_their_dtype_on_the_way(tmp_path, backends):
    """Mamba's embeddings are bf16, and its residual stream behind the first layer is fp32."""
    config = MambaConfig(vocab_size=96, hidden_size=48, num_hidden_layers=3, state_size=4)
    make_lm(config).save_pretrained(tmp_path / "model")
    batch = make_batch(1)
    with open_run(
        tmp_path, tmp_path / "model", batch, backends, run={"dtype": "bfloat16"}, planner=PLANNERS["roll dice"]
    ) as engine:
        first, *others = [block.input_bytes for block in engine.profile.blocks[1:]]
        assert set(others) == {2 * first}
        engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
    _, theirs = plain_step(load_lm(tmp_path / "model", torch.bfloat16), batch, step=1)
    assert not different(ours, theirs)


def test_buffers_that_choose_experts_stay_fp32(tmp_path, backends):
    """Rounded to bf16, biases this close to each other would send tokens to other experts."""
    config = DeepseekV3Config(
        **{key: value for key, value in COMMON.items() if key != "head_dim"} | {"num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    model = make_lm(config)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            buffer.copy_(3 + 0.02 * torch.randn_like(buffer))
    model.save_pretrained(tmp_path / "model")
    batch = make_batch(1)
    with open_run(tmp_path, tmp_path / "model", batch, backends, run={"dtype": "bfloat16"}) as engine:
        engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
    _, theirs = plain_step(load_lm(tmp_path / "model", torch.bfloat16), batch, step=1)
    assert not different(ours, theirs)


def test_parameters_that_would_stay_fp32_are_told_of():
    config = Ernie4_5_MoeConfig(**COMMON, moe_intermediate_size=32, moe_num_experts=4, moe_k=2)
    with pytest.warns(UserWarning, match=r"keeps in float32 are computed with in bfloat16, .*; run\.dtype: float32"):
        build_skeleton(config, torch.bfloat16)


@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_exact_for_every_roll_of_the_dice(tmp_path, models, seed):
    """gpt2's dropout makes a kept or recomputed operator that draws at the wrong place visible."""
    batch = make_batch(seed)
    _, ours = gradients_by_engine(
        tmp_path, models["gpt2"], batch, run={"dtype": "bfloat16"}, planner={"backend": "dice", "seed": seed}
    )
    _, theirs = plain_step(load_lm(models["gpt2"], torch.bfloat16), batch, step=1)
    assert not different(ours, theirs)


def test_the_dice_put_something_on_every_tier(tmp_path, models, backends):
    batch = make_batch(1)
    with open_run(tmp_path, models["gpt2"], batch, backends, planner=PLANNERS["roll dice"]) as engine:
        held = [kept_bytes(b, d) for b, d in zip(engine.profile.blocks, engine.plan.blocks, strict=True)]
        assert all(any(getattr(part, tier) for part in held) for tier in Tier)
        chosen = sum(len(decisions.keep) for decisions in engine.plan.blocks)
        assert chosen < sum(len(block.candidates) for block in engine.profile.blocks), "nothing is recomputed"


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_micro_batches_are_summed_in_fp32_and_rounded_once(tmp_path, models, dtype, architecture):
    """A tied embedding alone is summed in another order: all of the head's gradients come before the embedding's."""
    batch = make_batch(2, micro_batches=3)
    result, ours = gradients_by_engine(
        tmp_path, models[architecture], batch, run={"dtype": dtype}, planner=PLANNERS["roll dice"]
    )
    loss, theirs = plain_step(load_lm(models[architecture], getattr(torch, dtype)), batch, step=1)
    tied = TIED.get(architecture)
    assert set(different(ours, theirs)) <= {tied}
    if tied:
        roundings = 4 * torch.finfo(ours[tied].dtype).eps
        largest = theirs[tied].abs().max().item()
        torch.testing.assert_close(ours[tied], theirs[tied], rtol=roundings, atol=roundings * largest)
    assert result.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("loss", ["whole", "chunked"])
def test_a_micro_batch_without_predicted_tokens_adds_nothing(tmp_path, models, backends, loss):
    first, second = make_batch(2, micro_batches=2).micro_batches
    without = {**second, "labels": torch.full_like(second["labels"], NO_LOSS)}
    batch, alone = Batch.of([first, without], tokens=1), Batch.of([first], tokens=1)
    with open_run(tmp_path, models["llama"], batch, backends, model={"loss": loss}) as engine:
        expected = engine.evaluate([alone])
        assert engine.evaluate([batch]) == expected
        for refused in (engine.evaluate, lambda batches: engine.step(batches[0], lr=0.0)):
            with pytest.raises(ValueError, match="no token of the batch is predicted"):
                refused([Batch.of([without, without], tokens=1)])
        result = engine.step(batch, lr=0.0)
        assert result.loss == pytest.approx(expected)
        assert 0 < result.gradient_norm < math.inf


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_packed_documents_do_not_see_each_other(tmp_path, models, architecture):
    batch = make_batch(3, packed=True)
    _, ours = gradients_by_engine(tmp_path, models[architecture], batch, planner=PLANNERS["roll dice"])
    model = load_lm(models[architecture], torch.float32)
    _, theirs = plain_step(model, batch, step=1)
    assert not different(ours, theirs)
    for inputs in batch.micro_batches:
        del inputs["position_ids"]
    assert different(ours, plain_step(model, batch, step=1)[1])


def test_dropout_draws_anew_in_every_step_and_micro_batch(tmp_path, models, backends):
    batch = make_batch(4, micro_batches=2)
    for inputs in batch.micro_batches:
        inputs.update(batch.micro_batches[0])
    with open_run(tmp_path, models["gpt2"], batch, backends) as engine:
        before = get_random_state(torch.device("cpu"))
        losses = [engine.step(batch, lr=0.0).loss for _ in range(2)]
        assert torch.equal(before, get_random_state(torch.device("cpu"))), "the caller's random state is not ours"
    model = load_lm(models["gpt2"], torch.float32)
    assert losses == [plain_step(model, batch, step)[0] for step in (1, 2)]
    assert losses[0] != losses[1]


def test_evaluation_is_the_mean_over_tokens_without_dropout(tmp_path, models, backends):
    batches = [make_batch(5, micro_batches=2), make_batch(6), make_batch(7, rows=1)]
    with open_run(tmp_path, models["gpt2"], batches[0], backends, planner=PLANNERS["roll dice"]) as engine:
        ours = engine.evaluate(batches)
        loss = engine.step(batches[0], lr=0.0).loss
    model = load_lm(models["gpt2"], torch.float32)
    assert loss == plain_step(model, batches[0], step=1)[0], "training after an evaluation is training"
    groups = [(i, n) for batch in batches for i, n in zip(batch.micro_batches, batch.loss_tokens, strict=True)]
    with torch.no_grad():
        total = sum(tokens * float(model.eval()(**inputs, use_cache=False).loss) for inputs, tokens in groups)
    assert ours == pytest.approx(total / sum(tokens for _, tokens in groups), rel=1e-6)


@pytest.mark.parametrize("planner", ["keep nothing", "keep all on gpu"])
def test_an_evaluation_keeps_nothing_of_what_it_sees(tmp_path, models, backends, planner, monkeypatch):
    """Or else it would hold every layer's input and kept outputs, which no plan counts: none of them is sent off."""
    batch = make_batch(5, micro_batches=2)
    with open_run(tmp_path, models["llama"], batch, backends, planner=PLANNERS[planner]) as engine:
        monkeypatch.setattr("lohan_core.engine.compute.Keeping", lambda *_: pytest.fail("outputs are kept"))
        engine.evaluate([batch])
        assert not engine._machinery._compute.data.saved


@pytest.mark.parametrize("update", ["serial", "naive", "optimized", "deferred"])
def test_every_parameter_is_updated_once_with_the_factor_that_clips(tmp_path, models, backends, update):
    batch = make_batch(8)
    with open_run(
        tmp_path,
        models["llama"],
        batch,
        backends,
        run={"update": update},
        optimizer={"max_grad_norm": 0.1, "weight_decay": 0.5},
    ) as engine:
        result = engine.step(batch, lr=0.25)
        recorded_gradients(engine, backends.recorder)
        spans = {
            decays: sum(
                stop - start
                for block in engine.model.blocks
                for chunk in block.chunks(engine.workload.chunk_elements)
                for start, stop, of in block.spans(chunk)
                if of is decays
            )
            for decays in (True, False)
        }
    model = load_lm(models["llama"], torch.float32)
    for name, gradient in plain_step(model, batch, step=1)[1].items():
        model.get_parameter(name).grad = gradient
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    assert norm > 1
    assert result.gradient_norm == pytest.approx(norm, rel=1e-6)
    calls = backends.recorder.calls
    (factor,) = {h.gradient_factor for _, h in calls}
    assert factor == pytest.approx(0.1 / (norm + 1e-6), rel=1e-6)
    assert {(h.step, h.lr) for _, h in calls} == {(1, 0.25)}
    for decays, decay in ((True, 0.5), (False, 0.0)):
        assert sum(len(g) for g, h in calls if h.weight_decay == decay) == spans[decays]
