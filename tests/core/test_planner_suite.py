"""The suite must find planted faults: each planner here has one, and one test of the suite fails on it."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
from attrs import evolve, frozen

from lohan_core.backend import Backend
from lohan_core.errors import PlanError
from lohan_core.evaluate import evaluate, require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import BlockPlan, Budget, Plan, Tier
from lohan_core.reference.planners import KEEP_NOTHING
from lohan_core.testing.planner import PROBLEMS, PlannerSuite


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


class Boastful(Planner):
    def plan(self, profile, budget, workload):
        return require_feasible(keep_nothing(profile), profile, workload, budget)


class Exhaustive(Planner):
    """Tries every choice of candidates: the truth, for problems as small as the first."""

    def plan(self, profile, budget, workload):
        best = require_feasible(keep_nothing(profile), profile, workload, budget)
        places = [(n, c.index) for n, block in enumerate(profile.blocks) for c in block.candidates]
        shortest = evaluate(best, profile, workload, budget).seconds
        for tiers in itertools.product((None, *Tier), repeat=len(places)):
            kept = [{} for _ in profile.blocks]
            for (number, index), tier in zip(places, tiers, strict=True):
                if tier:
                    kept[number][index] = tier
            plan = evolve(best, blocks=tuple(evolve(b, keep=k) for b, k in zip(best.blocks, kept, strict=True)))
            grade = evaluate(plan, profile, workload, budget)
            if grade.feasible and grade.seconds < shortest:
                best, shortest = plan, grade.seconds
        return best


def a_suite(planner_class, *, optimal=False):
    class Suite(PlannerSuite):
        backend = Backend(name="faulty", summary="", config=Nothing, open=lambda _: planner_class())
        claims_optimal: ClassVar[bool] = optimal

    return Suite()


FAULTS = [
    (AnotherName, "test_plans_for_the_model_at_hand", ()),
    (OneBlockTooFew, "test_plans_for_the_model_at_hand", ()),
    (Moody, "test_is_deterministic", ("config",)),
    (Careless, "test_a_plan_fits_or_none_is_made", ("tier",)),
    (Speechless, "test_raises_when_nothing_fits", ()),
    (Wasteful, "test_what_its_plan_takes_is_enough", ()),
    (Spendthrift, "test_a_larger_budget_is_no_worse", ("tier",)),
]


@pytest.mark.parametrize(("planner_class", "test", "further"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found(planner_class, test, further):
    arguments = {name: {"config": Nothing(), "tier": Tier.HOST}[name] for name in further}
    with pytest.raises((AssertionError, PlanError)):
        getattr(a_suite(planner_class), test)(planner_class(), problem=PROBLEMS[3], **arguments)


def test_a_false_claim_to_be_optimal_is_found():
    with pytest.raises(AssertionError, match="the best"):
        a_suite(Boastful, optimal=True).test_is_optimal_where_it_claims_so(Boastful())


def test_a_true_claim_to_be_optimal_is_not_doubted():
    a_suite(Exhaustive, optimal=True).test_is_optimal_where_it_claims_so(Exhaustive())


def test_an_undisturbed_planner_passes_what_the_faulty_fail():
    class Suite(PlannerSuite):
        backend = KEEP_NOTHING

    planner = KEEP_NOTHING.open(KEEP_NOTHING.config())
    for _, test, further in FAULTS:
        arguments = {name: {"config": KEEP_NOTHING.config(), "tier": Tier.HOST}[name] for name in further}
        getattr(Suite(), test)(planner, problem=PROBLEMS[3], **arguments)
