"""Updates on speculation beside a GPU's backward: the same bits as of updates that wait, whichever lane is late."""

from __future__ import annotations

import pytest
import torch
from speculative_runs import decided, sections_for
from tiny_lms import make_batch
from tiny_runs import different, open_run

from lohan_core.engine import pending

pytestmark = pytest.mark.gpu

LR = 1e-3
STEPS = 8


def steps_and_masters(directory, model, batches, *, slow=None, chosen, sections):
    with open_run(directory, model, batches[0], **chosen, **sections) as engine:
        if slow is not None:
            hold_up(engine, slow)
        results = [engine.step(batch, lr=LR) for batch in batches]
        engine.finish_updates()
        masters = {
            name: tensor.clone()
            for block in engine._machinery.states.parameters(torch.float32)
            for name, tensor in block.items()
        }
    return results, masters


def hold_up(engine, lane):
    """Let a stream be late before each of its tasks: the others would run into it, were a dependency missing."""

    def slowed(action):
        def act(task):
            if task.lane == lane:
                torch.cuda._sleep(2_000_000)
            return action(task)

        return act

    engine._machinery.actions = {op: slowed(action) for op, action in engine._machinery.actions.items()}


@pytest.mark.parametrize("states", ["host", "ssd", "gpu"])
@pytest.mark.parametrize("slow", [None, "gpu", "h2d", "d2h"])
def test_results_are_those_of_updates_that_wait(*, tmp_path, models, monkeypatch, states, slow):
    monkeypatch.setattr(pending, "STEPS_TO_TRUST", 1)
    batches = [make_batch(seed, micro_batches=2) for seed in range(STEPS)]
    free = sections_for(states, 1e9, device="cuda")
    results, _ = steps_and_masters(tmp_path / "norms", models["gpt2"], batches, chosen={}, sections=free)
    max_norm = sorted(result.gradient_norm for result in results)[int(0.7 * STEPS)]
    sections = sections_for(states, max_norm, device="cuda")
    waiting = {**sections, "run": {**sections["run"], "update": "deferred"}}
    expected, masters = steps_and_masters(tmp_path / "wait", models["gpt2"], batches, chosen={}, sections=waiting)
    chosen = decided(tmp_path / "plan", models["gpt2"], batches[0], **sections)
    ours, found = steps_and_masters(
        tmp_path / "run", models["gpt2"], batches, slow=slow, chosen=chosen, sections=sections
    )
    assert [(r.loss, r.gradient_norm) for r in ours] == [(r.loss, r.gradient_norm) for r in expected]
    assert not different(found, masters)
    assert {(result.speculated, result.clipped) for result in ours} >= {(True, True), (True, False)}
