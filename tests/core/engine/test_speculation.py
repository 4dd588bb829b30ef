"""Updates made before the norm is known: the same bits whether they count or are made anew, on every tier."""

from __future__ import annotations

import pytest
from speculative_runs import decided, sections_for
from test_updates_exact import LR, exported
from tiny_lms import make_batch, make_lm
from tiny_runs import different, open_run
from transformers import OPTConfig

from lohan_core.engine import pending
from lohan_core.engine.step import UpdateTerms
from lohan_core.engine.updates import NonFiniteGradientError
from lohan_core.plan import Tier

STEPS = 10
MANY = 1e9
"""A norm that no gradient reaches."""


def batches_of(count):
    return [make_batch(seed, micro_batches=2) for seed in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory, models):
    """Norms of steps that are clipped now and then, and what they come to by updates that wait."""
    directory = tmp_path_factory.mktemp("base")
    batches = batches_of(STEPS)
    free = sections_for("host", MANY)
    with open_run(directory / "norms", models["gpt2"], batches[0], **free) as engine:
        norms = sorted(engine.step(batch, lr=LR).gradient_norm for batch in batches)
    max_norm = norms[int(0.7 * STEPS)]
    sections = sections_for("host", max_norm)
    sections["run"] = {**sections["run"], "update": "deferred"}
    with open_run(directory / "run", models["gpt2"], batches[0], **sections) as engine:
        results = [engine.step(batch, lr=LR) for batch in batches]
        masters = exported(engine, directory / "out")
    assert not any(result.speculated for result in results)
    return max_norm, [(r.loss, r.gradient_norm, r.clipped) for r in results], masters


@pytest.fixture(autouse=True)
def soon_trusting(monkeypatch):
    monkeypatch.setattr(pending, "STEPS_TO_TRUST", 1)


@pytest.mark.parametrize(
    ("states", "others"),
    [
        ("host", {}),
        ("ssd", {}),
        ("ssd", {"gradients": Tier.SSD}),
        ("gpu", {}),
        ("host", {"share": 0.5}),
        ("ssd", {"share": 0.5}),
    ],
)
@pytest.mark.parametrize("checkpoint_every", [1, 3])
def test_results_are_those_of_updates_that_wait(tmp_path, models, base, *, states, others, checkpoint_every):
    max_norm, expected, masters = base
    batches = batches_of(STEPS)
    sections = sections_for(states, max_norm)
    chosen = decided(tmp_path / "plan", models["gpt2"], batches[0], **sections, **others)
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **chosen, **sections) as engine:
        results = []
        for number, batch in enumerate(batches, start=1):
            results.append(engine.step(batch, lr=LR))
            if number % checkpoint_every == 0:
                engine.save_soon({"seen": number})
        ours = exported(engine, tmp_path / "out")
    assert [(r.loss, r.gradient_norm, r.clipped) for r in results] == expected
    assert not different(ours, masters)
    kinds = {(result.speculated, result.clipped) for result in results}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}, "one of them is not tested"


def test_a_store_of_three_versions_is_counted_as_such_by_a_run_that_does_not_speculate(tmp_path, models):
    batches = batches_of(1)
    sections = sections_for("ssd", MANY)
    chosen = decided(tmp_path / "plan", models["gpt2"], batches[0], **sections)
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **chosen, **sections) as engine:
        assert engine.workload.versions == 3
        engine.save({})
    sections["run"] = {**sections["run"], "update": "deferred"}
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections) as engine:
        assert engine.workload.versions == 3


@pytest.mark.parametrize("states", ["host", "ssd"])
def test_a_run_taken_up_again_goes_on_as_if_never_stopped(tmp_path, models, base, states):
    """From a store of three versions, whichever of them is durable."""
    max_norm, expected, masters = base
    batches = batches_of(STEPS)
    sections = sections_for(states, max_norm)
    chosen = decided(tmp_path / "plan", models["gpt2"], batches[0], **sections)
    losses, done = [], 0
    for stop in (3, 4, 7, STEPS):
        with open_run(tmp_path / "run", models["gpt2"], batches[0], **chosen, **sections) as engine:
            assert engine.finished_step == done
            losses += [engine.step(batch, lr=LR).loss for batch in batches[done:stop]]
            engine.save({})
            done = stop
            engine.step(batches[0], lr=LR)  # lost
            ours = exported(engine, tmp_path / f"out-{stop}") if stop == STEPS else None
    assert losses == [loss for loss, _, _ in expected]
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **chosen, **sections) as engine:
        found = exported(engine, tmp_path / "found")
    assert not different(found, masters)
    assert different(ours, masters)


@pytest.mark.parametrize("states", ["host", "ssd"])
def test_a_step_that_diverges_takes_its_speculation_with_it(tmp_path, models, states):
    batch = make_batch(1)
    sections = sections_for(states, MANY)
    chosen = decided(tmp_path / "plan", models["gpt2"], batch, **sections)
    with open_run(tmp_path / "run", models["gpt2"], batch, **chosen, **sections) as engine:
        results = [engine.step(batch, lr=LR) for _ in range(2)]
        assert results[-1].speculated
        engine.save({"seen": 2})
        expected = exported(engine, tmp_path / "expected")
        engine.step(batch, lr=1e38)
        with pytest.raises(NonFiniteGradientError, match="go on from step 2, the last durable one"):
            engine.step(batch, lr=LR)
    with open_run(tmp_path / "run", models["gpt2"], batch, **chosen, **sections) as engine:
        assert (engine.finished_step, engine.progress) == (2, {"seen": 2})
        assert not different(exported(engine, tmp_path / "found"), expected)


def test_a_block_that_owns_nothing_has_nothing_to_take_back(tmp_path, monkeypatch):
    """As a head that is tied, with no norm before it; a planner may mark it all the same."""
    monkeypatch.setattr(pending, "STEPS_TO_TRUST", 0)
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(vocab_size=96, num_attention_heads=4, do_layer_norm_before=False, **shape)
    make_lm(config).save_pretrained(tmp_path / "model")
    batch, sections = make_batch(1), sections_for("ssd", 1e-6)
    chosen = decided(tmp_path / "plan", tmp_path / "model", batch, **sections)
    with open_run(tmp_path / "run", tmp_path / "model", batch, **chosen, **sections) as engine:
        assert not engine.profile.blocks[-1].elements
        result = engine.step(batch, lr=LR)
        assert (result.speculated, result.clipped) == (True, True)
        engine.finish_updates()


@pytest.mark.parametrize("states", ["host", "gpu"])
def test_speculation_begins_after_steps_that_were_not_clipped_and_ends_with_one_that_was(
    tmp_path, models, monkeypatch, states
):
    monkeypatch.setattr(pending, "STEPS_TO_TRUST", 3)
    batch = make_batch(1)
    sections = sections_for(states, MANY)
    chosen = decided(tmp_path / "plan", models["gpt2"], batch, **sections)
    with open_run(tmp_path / "run", models["gpt2"], batch, **chosen, **sections) as engine:
        account = pending.Pending(engine._machinery.schedules)
    seen = []
    for clipped in (False, False, True, False, False, False, False, True, False):
        speculated = account.speculates
        account.note(UpdateTerms(1, LR), clipped=clipped, speculated=speculated)
        left = {task.block for task in account.updates_schedule().tasks}
        assert (account.terms is not None) == bool(left)
        seen.append((speculated, len(left)))
    everything = len(chosen["plan"].blocks)
    speculative = sum(block.speculative for block in chosen["plan"].blocks)
    assert [speculated for speculated, _ in seen] == [False] * 6 + [True, True, False]
    assert {left for speculated, left in seen if not speculated} == {everything}
    assert [left for speculated, left in seen if speculated] == [everything - speculative, everything]
