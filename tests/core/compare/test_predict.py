from __future__ import annotations

from types import SimpleNamespace

from attrs import evolve
from by_tiers import least_gpu_bytes
from comparisons import BUDGET, PROFILE, WORKLOAD, plan_of

from lohan_core.budget import plannable_host_bytes
from lohan_core.compare.planners import NamedPlanner
from lohan_core.compare.predict import predict_all
from lohan_core.errors import PlanError
from lohan_core.interfaces.optimizer import OptimizerConfig
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Tier, Update
from lohan_core.reference.planners import KEEP_NOTHING
from lohan_core.schedule.build import build_memory, build_schedule
from lohan_core.schedule.simulate import simulate

CONFIG = SimpleNamespace(
    optimizer=SimpleNamespace(settings=OptimizerConfig()),
    run=SimpleNamespace(batch_size=6, micro_batch_size=3, update=Update.OPTIMIZED, most_versions=2, device="cpu"),
    memory=SimpleNamespace(chunk=4 * WORKLOAD.chunk_elements, gpu=None, host=None, ssd=None),
)


class Always(Planner):
    """Makes the same plan whatever it is asked."""

    def plan(self, profile, budget, workload):
        del profile, budget, workload
        return plan_of("always")


class Never(Planner):
    """Finds nothing."""

    def plan(self, profile, budget, workload):
        del profile, budget, workload
        raise PlanError("planner 'never': no such thing")


def predicted(config, *planners):
    return predict_all([NamedPlanner(*pair) for pair in planners], PROFILE, config, lambda *_: None)


def test_a_plan_is_predicted_by_its_schedule():
    found = predicted(CONFIG, ("always", Always()), ("never", Never()))
    always, never = found.contenders
    assert (found.workload, found.budget.host_bytes) == (WORKLOAD, plannable_host_bytes(BUDGET.host_bytes))
    schedule = build_schedule(plan_of("always"), PROFILE, WORKLOAD)
    assert always.prediction.timeline == simulate(schedule, PROFILE.machine)
    assert always.prediction.peak_bytes == {tier: schedule.bytes_on(tier) for tier in Tier}
    assert always.reason is None
    assert (never.prediction, never.reason) == (None, "no such thing")


def test_planners_are_asked_about_the_configs_way_to_update():
    """Every one of them about the same, and what it decides is what is predicted."""
    planner = KEEP_NOTHING.open(KEEP_NOTHING.config())
    for update in Update:
        run = SimpleNamespace(**{**vars(CONFIG.run), "update": update})
        config = SimpleNamespace(**{**vars(CONFIG), "run": run})
        (found,) = predicted(config, ("keep_nothing", planner)).contenders
        assert found.prediction.workload.update is update
        assert {block.deferred for block in found.prediction.plan.blocks} == {found.prediction.workload.may_defer}


def test_a_plan_that_fits_with_fewer_slots_only_is_predicted_with_those():
    plan = plan_of("always")
    lean = evolve(WORKLOAD, layer_slots=1, gradient_slots=1)
    needs = [build_memory(plan, PROFILE, workload).bytes_on(Tier.GPU) for workload in (lean, WORKLOAD)]
    assert needs[0] < needs[1]
    memory = SimpleNamespace(**{**vars(CONFIG.memory), "gpu": least_gpu_bytes(needs[0])})
    tight = SimpleNamespace(**{**vars(CONFIG), "memory": memory})
    (always,) = predicted(tight, ("always", Always())).contenders
    assert always.prediction.workload == lean
    assert always.prediction.timeline.schedule == build_schedule(plan, PROFILE, lean)
