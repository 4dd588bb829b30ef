from __future__ import annotations

import pytest
from attrs import evolve

from lohan_core.errors import ConfigError, PlanError
from lohan_core.evaluate import evaluate
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Update
from lohan_core.reference.mixed_planner import MIXED, MixedPlanner, MixedPlannerConfig
from lohan_core.testing.planner import PROBLEMS, PlannerSuite

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)


class TestMixed(PlannerSuite):
    backend = MIXED

    @pytest.fixture
    def config(self):
        return MixedPlannerConfig(activations="keep_all", states="keep_nothing")


def test_each_decides_what_it_is_asked_for():
    problem = PROBLEMS[1]
    plan = MIXED.open(MixedPlannerConfig(activations="keep_all", states="keep_nothing")).plan(
        problem.profile, PLENTY, problem.workload
    )
    assert {block.states for block in plan.blocks} == {Tier.SSD}
    assert [set(block.keep) for block in plan.blocks] == [
        {candidate.index for candidate in block.candidates} for block in problem.profile.blocks
    ]
    assert "activations by keep_all" in plan.note


def test_deferral_belongs_with_the_states():
    """It is the planner of states that says whose updates are deferred: their gradients wait where it has room."""
    (problem,) = (p for p in PROBLEMS if p.workload.update is Update.DEFERRED and not p.workload.clips)

    class Deferring(Planner):
        def __init__(self, *, deferred):
            self.deferred = deferred

        def plan(self, profile, budget, workload):
            del budget, workload
            deferred = {0: self.deferred, 2: self.deferred}
            return Plan(
                planner="deferring",
                blocks=tuple(
                    BlockPlan(states=Tier.SSD, deferred=deferred.get(index, not self.deferred))
                    for index in range(len(profile.blocks))
                ),
            )

    plan = MixedPlanner(Deferring(deferred=False), Deferring(deferred=True)).plan(
        problem.profile, PLENTY, problem.workload
    )
    assert [index for index, block in enumerate(plan.blocks) if block.deferred] == [0, 2]


class Fixed(Planner):
    """Puts all states, or all inputs, into host memory; where those do not fit, inputs go to the drives."""

    def __init__(self, *, states, inputs):
        self.states, self.inputs = states, inputs
        self.asked = []

    def plan(self, profile, budget, workload):
        self.asked.append(budget.host_bytes)
        for inputs in (self.inputs, Tier.SSD):
            blocks = tuple(BlockPlan(states=self.states, inputs=inputs, gradients=self.states) for _ in profile.blocks)
            plan = Plan(planner="fixed", blocks=blocks)
            if evaluate(plan, profile, workload, budget).feasible:
                return plan
        raise PlanError("nothing fits on host")


def test_what_one_takes_is_not_there_for_the_other():
    """Each alone has room in host memory; together they have not, and the activations give way."""
    problem = PROBLEMS[2]
    profile, workload = problem.profile, problem.workload
    activations = Fixed(states=Tier.SSD, inputs=Tier.HOST)
    states = Fixed(states=Tier.HOST, inputs=Tier.SSD)

    def host_bytes(planner):
        return evaluate(planner.plan(profile, PLENTY, workload), profile, workload, PLENTY).peak_bytes[Tier.HOST]

    budget = evolve(PLENTY, host_bytes=max(host_bytes(activations), host_bytes(states)) + 2**20)
    activations.asked.clear()
    plan = MixedPlanner(activations, states).plan(profile, budget, workload)
    assert evaluate(plan, profile, workload, budget).feasible
    assert {block.states for block in plan.blocks} == {Tier.HOST}
    assert {block.inputs for block in plan.blocks} == {Tier.SSD}
    assert len(activations.asked) > 1
    assert activations.asked == sorted(activations.asked, reverse=True)


class Immodest(Planner):
    def plan(self, profile, budget, workload):
        del budget, workload
        return Plan(planner="immodest", blocks=tuple(BlockPlan(states=Tier.SSD) for _ in profile.blocks))


def test_a_planner_that_does_not_heed_its_budget_is_not_asked_for_ever():
    problem = PROBLEMS[2]
    with pytest.raises(PlanError, match=r"'mixed': the plan needs .* on host"):
        MixedPlanner(Immodest(), Immodest()).plan(problem.profile, evolve(PLENTY, host_bytes=2**20), problem.workload)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MixedPlannerConfig(activations="mixed", states="keep_all"), "planner.activations: mixed cannot be"),
        (MixedPlannerConfig(activations="keep_all", states="kep_all"), "planner.states: no planner .* 'keep_all'"),
    ],
)
def test_a_wrong_name_is_named_with_its_key(config, message):
    with pytest.raises(ConfigError, match=message):
        MIXED.open(config)
