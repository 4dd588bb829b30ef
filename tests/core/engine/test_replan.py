"""Going on by another plan in mid-run: the results are those of a run that kept its plan."""

from __future__ import annotations

import threading
import weakref
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from tiny_lms import make_batch
from tiny_runs import different, open_run

from lohan_core.errors import PlanError, StoreError
from lohan_core.interfaces.planner import Planner
from lohan_core.memory import allocate_host
from lohan_core.plan import BlockPlan, Plan, Tier
from lohan_core.profile import Role
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.timeline import Span, Timeline
from lohan_core.train.replan import replan, unlike_prediction

OPTIMIZER = {"backend": "cpuadam", "lr": 1e-3, "max_grad_norm": 1.0}


class Stubborn(Planner):
    """Always gives the plan that it was made with, or refuses."""

    def __init__(self, plan):
        self._plan = plan

    def plan(self, profile, budget, workload):
        del profile, budget, workload
        if self._plan is None:
            raise PlanError("nothing fits any more")
        return self._plan


def keeping_everything(profile, states=Tier.HOST):
    return Plan(
        planner="everything",
        blocks=tuple(
            BlockPlan(
                states=states,
                inputs=Tier.HOST if block.role is Role.PRELUDE else Tier.GPU,
                keep={c.index: Tier.GPU for c in block.candidates},
                gradients=states,
            )
            for block in profile.blocks
        ),
    )


def exported(engine, directory):
    engine.export(directory, torch.float32)
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def stretched(timeline, factor):
    return Timeline(
        schedule=timeline.schedule, spans=tuple(Span(s.start * factor, s.end * factor) for s in timeline.spans)
    )


@pytest.mark.parametrize("storage", [{"backend": "memory"}, {"backend": "aio"}])
def test_an_engine_that_adopts_plans_computes_what_one_that_keeps_its_plan_does(tmp_path, models, storage):
    batches = [make_batch(seed, micro_batches=2) for seed in range(6)]

    def trained(name, *, changes):
        with open_run(tmp_path / name, models["gpt2"], batches[0], optimizer=OPTIMIZER, storage=storage) as engine:
            losses = []
            original = engine.plan
            for number, batch in enumerate(batches):
                if changes and number % 2 == 1:
                    plan = original if number == 3 else keeping_everything(engine.profile)
                    engine.adopt(plan, engine.profile, engine.workload, {"before": number})
                    assert (engine.plan, engine.durable_step, engine.progress) == (plan, number, {"before": number})
                losses.append(engine.step(batch, lr=1e-3).loss)
            return losses, exported(engine, tmp_path / f"{name}-model")

    losses, parameters = trained("kept", changes=False)
    other_losses, other_parameters = trained("changed", changes=True)
    assert other_losses == losses
    assert different(other_parameters, parameters) == []


def test_the_memory_of_the_plan_before_is_given_back_before_the_next_is_built(tmp_path, models, monkeypatch):
    """Registered buffers are pinned by the kernel and held by the storage: without more, until the run ends."""
    arenas, alive = [], []

    def allocate(size_bytes, *, pin):
        alive.append(sum(arena() is not None for arena in arenas))
        arena = allocate_host(size_bytes, pin=pin)
        arenas.append(weakref.ref(arena))
        return arena

    monkeypatch.setattr("lohan_core.engine.buffers.allocate_host", allocate)
    batch = make_batch(0)
    with open_run(tmp_path, models["llama"], batch, optimizer=OPTIMIZER, storage={"backend": "aio"}) as engine:
        for states in (Tier.SSD, Tier.HOST, Tier.SSD):
            engine.step(batch, lr=1e-3)
            engine.adopt(keeping_everything(engine.profile, states), engine.profile, engine.workload, {})
    assert alive == [0] * 4


def test_a_faster_plan_is_adopted_and_its_profile_with_it(tmp_path, models):
    batch = make_batch(0)
    with open_run(tmp_path, models["llama"], batch, optimizer=OPTIMIZER) as engine:
        result = engine.step(batch, lr=1e-3)
        before = engine.profile
        plan = keeping_everything(engine.profile)
        said = replan(engine, Stubborn(plan), stretched(result.timeline, 10), {"metrics": {"step": 1}})
        assert "step 1 took" in said
        assert "planned anew" in said
        assert engine.plan == plan
        assert engine.profile != before
        assert engine.progress == {"metrics": {"step": 1}}
        assert engine.step(batch, lr=1e-3).step == 2


def test_a_step_far_from_its_prediction_is_spoken_of(tmp_path, models):
    with open_run(tmp_path, models["llama"], make_batch(0), optimizer=OPTIMIZER) as engine:
        predicted = simulate(engine.schedule, engine.profile.machine)
        assert unlike_prediction(engine, stretched(predicted, 1.4)) is None
        assert "+100% off" in unlike_prediction(engine, stretched(predicted, 2))
        assert "-90% off" in unlike_prediction(engine, stretched(predicted, 0.1))


def test_a_plan_that_is_no_faster_or_none_changes_nothing(tmp_path, models):
    batch = make_batch(0)
    with open_run(tmp_path, models["llama"], batch, optimizer=OPTIMIZER) as engine:
        result = engine.step(batch, lr=1e-3)
        plan, profile = engine.plan, engine.profile
        assert "the plan stays: the planner finds none" in replan(engine, Stubborn(plan), result.timeline, {})
        assert "the plan stays: nothing fits any more" in replan(engine, Stubborn(None), result.timeline, {})
        assert (engine.plan, engine.profile) == (plan, profile)
        assert engine.durable_step == 0


def test_what_cannot_be_built_leaves_no_thread(tmp_path, models, monkeypatch):
    before = threading.active_count()

    def refuse(*_, **__):
        raise PlanError("no memory")

    monkeypatch.setattr("lohan_core.engine.machinery.Updates", refuse)
    with pytest.raises(PlanError, match="no memory"):
        open_run(tmp_path, models["llama"], make_batch(0), optimizer=OPTIMIZER)
    assert threading.active_count() == before


def test_a_plan_whose_memory_is_not_to_be_had_closes_the_engine_and_loses_nothing(tmp_path, models, monkeypatch):
    batch = make_batch(0)
    drives = {"backend": "aio"}
    with open_run(tmp_path, models["llama"], batch, optimizer=OPTIMIZER, storage=drives) as engine:
        engine.step(batch, lr=1e-3)

        def refuse(*_, **__):
            raise PlanError("no memory")

        monkeypatch.setattr("lohan_core.engine.engine.build_machinery", refuse)
        with pytest.raises(PlanError, match="no memory"):
            engine.adopt(keeping_everything(engine.profile), engine.profile, engine.workload, {})
    monkeypatch.undo()
    with open_run(tmp_path, models["llama"], batch, optimizer=OPTIMIZER, storage=drives) as again:
        assert again.finished_step == 1


@pytest.mark.parametrize("by", ["close", "adopt"])
def test_nothing_is_done_by_an_engine_that_is_closed(tmp_path, models, monkeypatch, by):
    batch = make_batch(0)
    engine = open_run(tmp_path, models["llama"], batch, optimizer=OPTIMIZER)
    plan, profile, workload = engine.plan, engine.profile, engine.workload
    if by == "close":
        engine.close()
    else:
        monkeypatch.setattr(type(engine._parts.storage), "unregister", Mock(side_effect=PlanError("no memory")))
        with pytest.raises(PlanError, match="no memory"):
            engine.adopt(plan, profile, workload, {})
    for call in (
        lambda: engine.step(batch, lr=1e-3),
        lambda: engine.evaluate([batch]),
        engine.finish_updates,
        lambda: engine.save({}),
        lambda: engine.save_soon({}),
        lambda: engine.export(tmp_path / "model", torch.float32),
        lambda: engine.adopt(plan, profile, workload, {}),
    ):
        with pytest.raises(StoreError, match="the engine is closed; open the run again"):
            call()
