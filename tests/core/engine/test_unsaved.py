"""``run.durability: none`` with too little space on the drives: states in host memory of which nothing is saved."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from tiny_lms import make_batch
from tiny_runs import different, open_run
from transformers import AutoModelForCausalLM

from lohan_core.engine.states import MASTER, extent_name
from lohan_core.engine.updates import NonFiniteGradientError
from lohan_core.errors import PlanError, StoreError
from lohan_core.plan import Tier
from lohan_core.schedule.build import build_memory
from lohan_core.train.replan import replan

LR = 1e-3
BASE = {
    "run": {"durability": "none"},
    "optimizer": {"backend": "torch_adamw", "lr": LR, "max_grad_norm": 0.5},
    "storage": {"backend": "aio"},
}
PLANNERS = {"host": {"backend": "keep_nothing", "states": "host"}, "both": {"backend": "dice", "seed": 1}}
HOST_ONLY = {**BASE, "planner": PLANNERS["host"], "memory": {"ssd": 4096}}


def exported(engine, directory):
    engine.export(directory, torch.float32)
    return dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters())


def least_ssd_bytes(engine):
    unsaved = evolve(engine.workload, host_extents=False)
    return build_memory(engine.plan, engine.profile, unsaved).bytes_on(Tier.SSD)


@pytest.mark.parametrize("planner", PLANNERS)
def test_it_trains_as_one_that_is_saved(tmp_path, models, planner):
    batches = [make_batch(seed, micro_batches=2) for seed in range(3)]
    sections = {**BASE, "planner": PLANNERS[planner]}
    with open_run(tmp_path / "saved", models["gpt2"], batches[0], **sections) as engine:
        expected = [engine.step(batch, lr=LR).loss for batch in batches], exported(engine, tmp_path / "expected")
        assert engine.can_save
        ssd_bytes = max(4096, least_ssd_bytes(engine))
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections, memory={"ssd": ssd_bytes}) as engine:
        assert not engine.can_save
        assert engine.description[-1].endswith("are not saved: no space on the drives")
        assert engine.schedule.bytes_on(Tier.SSD) <= ssd_bytes
        homes = [decisions.states for decisions in engine.plan.blocks]
        assert set(homes) == ({Tier.HOST} if planner == "host" else {Tier.HOST, Tier.SSD})
        losses = [engine.step(batch, lr=LR).loss for batch in batches]
        engine.save({"step": 3})
        assert (engine.finished_step, engine.durable_step, engine.progress) == (3, 0, {})
        assert losses == expected[0]
        assert different(exported(engine, tmp_path / "out"), expected[1]) == []
        names = engine._store.extents
        stored = [extent_name(MASTER, block.index) in names for block in engine.model.blocks if block.elements]
    assert stored == [
        home is Tier.SSD for home, block in zip(homes, engine.model.blocks, strict=True) if block.elements
    ]


def test_it_is_not_taken_up_again(tmp_path, models):
    batch = make_batch(0)
    with open_run(tmp_path, models["llama"], batch, **HOST_ONLY) as engine:
        engine.step(batch, lr=LR)
    for sections in (HOST_ONLY, {**BASE, "planner": PLANNERS["host"]}):
        with pytest.raises(StoreError, match="no space on the drives"):
            open_run(tmp_path, models["llama"], batch, **sections)


def test_a_step_that_diverges_leaves_nothing(tmp_path, models):
    batch = make_batch(0)
    with open_run(tmp_path, models["llama"], batch, **HOST_ONLY) as engine:
        engine.step(batch, lr=1e37)
        with pytest.raises(NonFiniteGradientError, match=r"nothing of this run can be saved: start again in another"):
            engine.step(batch, lr=LR)


def test_one_that_took_no_step_begins_anew(tmp_path, models):
    batch = make_batch(0)
    open_run(tmp_path, models["llama"], batch, **HOST_ONLY).close()
    with open_run(tmp_path, models["llama"], batch, **HOST_ONLY) as engine:
        assert engine.finished_step == 0
        engine.step(batch, lr=LR)


def test_its_plan_stays(tmp_path, models):
    batch = make_batch(0)
    with open_run(tmp_path, models["llama"], batch, **HOST_ONLY) as engine:
        result = engine.step(batch, lr=LR)
        assert "states that cannot be saved cannot be moved" in replan(engine, None, result.timeline, {})
        with pytest.raises(StoreError, match="cannot be changed"):
            engine.adopt(engine.plan, engine.profile, engine.workload, {})
        assert engine.step(batch, lr=LR).step == 2


def test_a_run_that_was_saved_goes_on_being_saved(tmp_path, models):
    batch = make_batch(0)
    saved = {**BASE, "planner": PLANNERS["host"]}
    with open_run(tmp_path, models["llama"], batch, **saved) as engine:
        engine.step(batch, lr=LR)
        engine.save({})
    with pytest.raises(PlanError, match=r"memory\.ssd: too little for the states that the run has saved"):
        open_run(tmp_path, models["llama"], batch, **HOST_ONLY)
    with open_run(tmp_path, models["llama"], batch, **saved) as engine:
        assert engine.finished_step == 1


def test_what_cannot_be_saved_is_no_reason_to_finish_updates(tmp_path, models):
    """With some updates deferred and others not, a step would have to do those on their own to be saved."""
    batches = [make_batch(seed) for seed in range(2)]
    sections = {**BASE, "optimizer": {**BASE["optimizer"], "max_grad_norm": None}, "planner": PLANNERS["both"]}
    with open_run(tmp_path / "saved", models["gpt2"], batches[0], **sections) as engine:
        ssd_bytes = max(4096, least_ssd_bytes(engine))
    with open_run(tmp_path / "run", models["gpt2"], batches[0], **sections, memory={"ssd": ssd_bytes}) as engine:
        assert not engine.can_save
        assert {decisions.deferred for decisions in engine.plan.blocks} == {False, True}
        engine.step(batches[0], lr=LR)
        engine.save_soon({})
        assert engine._pending.terms is not None
        engine.step(batches[1], lr=LR)
