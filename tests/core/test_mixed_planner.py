from __future__ import annotations

import pytest
from attrs import evolve

from lohan_core.errors import ConfigError, PlanError
from lohan_core.evaluate import evaluate, require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Update
from lohan_core.reference.mixed_planner import MIXED, MixedPlanner, MixedPlannerConfig
from lohan_core.testing.planner import PlannerSuite
from lohan_core.testing.planner_problems import PROBLEMS
from lohan_core.units import format_bytes

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


class Filling(Planner):
    """Puts the states of as many blocks into host memory as it is given room for, and the others' on the drives."""

    def __init__(self):
        self.asked = []

    def plan(self, profile, budget, workload):
        self.asked.append(budget.host_bytes)
        for on_host in range(len(profile.blocks), -1, -1):
            blocks = tuple(
                BlockPlan(states=Tier.HOST if index < on_host else Tier.SSD, inputs=Tier.SSD)
                for index in range(len(profile.blocks))
            )
            plan = Plan(planner="filling", blocks=blocks)
            if evaluate(plan, profile, workload, budget).feasible:
                return plan
        raise PlanError("no room for the buffers of states")


class Insisting(Planner):
    """Keeps all inputs in host memory, with states of its own on the drives, or refuses."""

    def plan(self, profile, budget, workload):
        blocks = tuple(BlockPlan(states=Tier.SSD, inputs=Tier.HOST) for _ in profile.blocks)
        return require_feasible(Plan(planner="insisting", blocks=blocks), profile, workload, budget)


def peak_bytes(planner, problem, **changes):
    workload = evolve(problem.workload, **changes)
    return evaluate(planner.plan(problem.profile, PLENTY, workload), problem.profile, workload, PLENTY).peak_bytes


class Hungry(Planner):
    """Keeps everything in host memory, or nothing but inputs if there is only room for those, or refuses."""

    def plan(self, profile, budget, workload):
        try:
            return require_feasible(self.keeping(profile, everything=True), profile, workload, budget)
        except PlanError:
            return require_feasible(self.keeping(profile, everything=False), profile, workload, budget)

    @staticmethod
    def keeping(profile, *, everything):
        blocks = tuple(
            BlockPlan(
                states=Tier.SSD,
                inputs=Tier.HOST,
                keep={candidate.index: Tier.HOST for candidate in block.candidates} if everything else {},
            )
            for block in profile.blocks
        )
        return Plan(planner="hungry", blocks=blocks)


def with_large_candidates(problem):
    blocks = tuple(
        evolve(block, candidates=tuple(evolve(each, bytes=2 * each.bytes) for each in block.candidates))
        for block in problem.profile.blocks
    )
    return evolve(problem, profile=evolve(problem.profile, blocks=blocks))


@pytest.mark.parametrize(("activations", "on_host"), [(Insisting(), 7), (Hungry(), 4)], ids=["insisting", "hungry"])
def test_states_give_way_where_activations_cannot_and_no_further(activations, on_host):
    """Each alone has room in host memory. Together they have not, and the activations' planner has no other plan."""
    problem = with_large_candidates(PROBLEMS[4])
    states = Filling()
    alone = [peak_bytes(planner, problem)[Tier.HOST] for planner in (states, activations)]
    budget = evolve(PLENTY, host_bytes=max(alone))
    states.asked.clear()
    plan = MixedPlanner(activations, states).plan(problem.profile, budget, problem.workload)
    assert {block.inputs for block in plan.blocks} == {Tier.HOST}
    assert states.asked[0] == budget.host_bytes

    def fits(count):
        blocks = (evolve(b, states=Tier.HOST if i < count else Tier.SSD) for i, b in enumerate(plan.blocks))
        return evaluate(evolve(plan, blocks=tuple(blocks)), problem.profile, problem.workload, budget).feasible

    assert [block.states for block in plan.blocks].count(Tier.HOST) == on_host
    assert fits(on_host)
    assert not fits(on_host + 1)


def test_what_is_lacking_is_said_of_the_budget_that_the_user_set():
    problem = PROBLEMS[3]
    enough = peak_bytes(Insisting(), problem)[Tier.HOST]
    budget = evolve(PLENTY, host_bytes=enough)  # which Insisting alone would fit, and states' buffers not
    states = Fixed(states=Tier.HOST, inputs=Tier.SSD).plan(problem.profile, PLENTY, problem.workload)
    mixed = MixedPlanner(Insisting(), Stubborn(states))
    message = rf"^planner 'mixed': the plan needs .* on host, .* more than the {format_bytes(enough)} available; "
    with pytest.raises(PlanError, match=message):
        mixed.plan(problem.profile, budget, problem.workload)


def test_states_of_the_planner_of_activations_need_no_room():
    """It would put them all on the drives, which are too small for that, and does not decide about them."""
    problem = PROBLEMS[3]
    unsaved = {"versions": 1, "host_extents": False}
    budget = evolve(PLENTY, ssd_bytes=peak_bytes(Insisting(), problem, **unsaved)[Tier.SSD] // 2)
    workload = evolve(problem.workload, **unsaved)
    with pytest.raises(PlanError, match="on ssd"):
        Insisting().plan(problem.profile, budget, workload)
    plan = MixedPlanner(Insisting(), Fixed(states=Tier.HOST, inputs=Tier.HOST)).plan(problem.profile, budget, workload)
    assert {block.states for block in plan.blocks} == {Tier.HOST}


class Stubborn(Planner):
    """Has one plan."""

    def __init__(self, plan):
        self._plan = plan

    def plan(self, profile, budget, workload):
        del profile, budget, workload
        return self._plan


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
