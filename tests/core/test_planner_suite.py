"""The suite must find planted faults: each planner here has one, and one test of the suite fails on it."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
from attrs import evolve, frozen

from lohan_core.backend import Backend
from lohan_core.errors import InvalidPlanError, PlanError
from lohan_core.evaluate import TimeModel, evaluate, require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import BlockPlan, Budget, Plan, Tier
from lohan_core.reference.planners import KEEP_NOTHING
from lohan_core.testing.planner import PlannerSuite
from lohan_core.testing.planner_problems import PROBLEMS, TINY_PROBLEMS


@frozen
class Nothing:
    pass


def keep_nothing(profile, **changes):
    blocks = tuple(BlockPlan(states=Tier.SSD, **changes) for _ in profile.blocks)
    return Plan(planner="faulty", blocks=blocks)


class AnotherName(Planner):
    def plan(self, profile, budget, workload):
        return evolve(require_feasible(keep_nothing(profile), profile, workload, budget), planner="other")


class OneBlockTooFew(Planner):
    def plan(self, profile, budget, workload):
        plan = require_feasible(keep_nothing(profile), profile, workload, budget)
        return evolve(plan, blocks=plan.blocks[1:])


class Moody(Planner):
    moods = itertools.cycle([Tier.GPU, Tier.HOST])

    def plan(self, profile, budget, workload):
        return require_feasible(keep_nothing(profile, inputs=next(self.moods)), profile, workload, budget)


class Careless(Planner):
    def plan(self, profile, budget, workload):
        del workload
        if budget.gpu_bytes == budget.host_bytes == budget.ssd_bytes == 0:
            raise PlanError("nothing fits on gpu")
        return keep_nothing(profile)


class Speechless(Planner):
    def plan(self, profile, budget, workload):
        try:
            return require_feasible(keep_nothing(profile), profile, workload, budget)
        except PlanError:
            raise PlanError("no") from None


class Wasteful(Planner):
    """Wants a tenth more than what it uses."""

    def plan(self, profile, budget, workload):
        plan = keep_nothing(profile)
        less = Budget(
            gpu_bytes=int(budget.gpu_bytes / 1.1),
            host_bytes=int(budget.host_bytes / 1.1),
            ssd_bytes=int(budget.ssd_bytes / 1.1),
        )
        return require_feasible(plan, profile, workload, less)


class Spendthrift(Planner):
    """Given plenty, it keeps every output on the drives, however long that takes."""

    def plan(self, profile, budget, workload):
        plan = keep_nothing(profile)
        if budget.host_bytes == 2**50:
            kept = [{c.index: Tier.SSD for c in block.candidates} for block in profile.blocks]
            plan = evolve(plan, blocks=tuple(evolve(b, keep=k) for b, k in zip(plan.blocks, kept, strict=True)))
        return require_feasible(plan, profile, workload, budget)


class Procrastinator(Planner):
    """Defers whatever the user says."""

    def plan(self, profile, budget, workload):
        return require_feasible(keep_nothing(profile, deferred=True), profile, workload, budget)


class Boastful(Planner):
    def plan(self, profile, budget, workload):
        return require_feasible(keep_nothing(profile), profile, workload, budget)


class Exhaustive(Planner):
    """Tries every choice of candidates and, if ``defers``, of deferred updates: the truth, for tiny problems."""

    defers = True

    def plan(self, profile, budget, workload):
        best = require_feasible(keep_nothing(profile), profile, workload, budget)
        places = [(n, c.index) for n, block in enumerate(profile.blocks) for c in block.candidates]
        whens = (False, True) if self.defers and workload.may_defer else (False,)
        shortest = evaluate(best, profile, workload, budget, TimeModel.LANES).seconds
        for tiers, deferred in itertools.product(
            itertools.product((None, *Tier), repeat=len(places)), itertools.product(whens, repeat=len(profile.blocks))
        ):
            kept = [{} for _ in profile.blocks]
            for (number, index), tier in zip(places, tiers, strict=True):
                if tier:
                    kept[number][index] = tier
            blocks = (evolve(b, keep=k, deferred=d) for b, k, d in zip(best.blocks, kept, deferred, strict=True))
            plan = evolve(best, blocks=tuple(blocks))
            grade = evaluate(plan, profile, workload, budget, TimeModel.LANES)
            if grade.feasible and grade.seconds < shortest:
                best, shortest = plan, grade.seconds
        return best


class Impatient(Exhaustive):
    """Finds the best of the plans that defer nothing."""

    defers = False


def a_suite(planner_class, *, optimal=False):
    class Suite(PlannerSuite):
        backend = Backend(name="faulty", summary="", config=Nothing, open=lambda _: planner_class())
        model: ClassVar[TimeModel] = TimeModel.LANES
        claims_optimal: ClassVar[bool] = optimal

    return Suite()


FAULTS = [
    (AnotherName, "test_plans_for_the_model_at_hand", ()),
    (OneBlockTooFew, "test_plans_for_the_model_at_hand", ()),
    (Procrastinator, "test_defers_only_where_it_may", ()),
    (Moody, "test_is_deterministic", ("config",)),
    (Careless, "test_a_plan_fits_or_none_is_made", ("tier",)),
    (Speechless, "test_raises_when_nothing_fits", ()),
    (Wasteful, "test_what_its_plan_takes_is_enough", ()),
    (Spendthrift, "test_a_larger_budget_is_no_worse", ("tier",)),
]


@pytest.mark.parametrize(("planner_class", "test", "further"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found(planner_class, test, further):
    arguments = {name: {"config": Nothing(), "tier": Tier.HOST}[name] for name in further}
    with pytest.raises((AssertionError, InvalidPlanError, PlanError)):
        getattr(a_suite(planner_class), test)(planner_class(), problem=PROBLEMS[3], **arguments)


@pytest.mark.parametrize(
    ("planner_class", "tiny"),
    [
        (Boastful, TINY_PROBLEMS[0]),
        (Boastful, TINY_PROBLEMS[1]),
        (Boastful, TINY_PROBLEMS[2]),
        (Impatient, TINY_PROBLEMS[1]),
        (Impatient, TINY_PROBLEMS[2]),
    ],
)
def test_a_false_claim_to_be_optimal_is_found(planner_class, tiny):
    with pytest.raises(AssertionError, match="the best"):
        a_suite(planner_class, optimal=True).test_is_optimal_where_it_claims_so(planner_class(), tiny)


@pytest.mark.parametrize("tiny", TINY_PROBLEMS)
def test_a_true_claim_to_be_optimal_is_not_doubted(tiny):
    a_suite(Exhaustive, optimal=True).test_is_optimal_where_it_claims_so(Exhaustive(), tiny)


def test_an_undisturbed_planner_passes_what_the_faulty_fail():
    class Suite(PlannerSuite):
        backend = KEEP_NOTHING

    planner = KEEP_NOTHING.open(KEEP_NOTHING.config())
    for _, test, further in FAULTS:
        arguments = {name: {"config": KEEP_NOTHING.config(), "tier": Tier.HOST}[name] for name in further}
        getattr(Suite(), test)(planner, problem=PROBLEMS[3], **arguments)
