"""Conformance suite for planners.

A plugin's whole test file::

    from lohan_core.testing.planner import PlannerSuite
    from my_plugin import BACKEND


    class TestMyPlanner(PlannerSuite):
        backend = BACKEND
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, ClassVar

import pytest
from attrs import evolve

from lohan_core.errors import PlanError
from lohan_core.evaluate import Evaluation, TimeModel, evaluate
from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_core.plan import Budget, Plan, Tier
from lohan_core.testing.planner_problems import PROBLEMS, TINY_PROBLEMS, Problem, example_profile
from lohan_core.testing.suite import ConformanceSuite, default_config

__all__ = ["PlannerSuite", "example_profile"]

_PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)
_FRACTIONS = (0.0, 0.3, 0.6, 0.9, 0.99)
_ROUNDING = 1 + 1e-9


class PlannerSuite(ConformanceSuite):
    """What every planner does. Plans are graded by :func:`lohan_core.evaluate.evaluate` alone.

    ``model``: how steps are predicted whose lengths are compared; a planner that minimizes another model than the
    simulation says which. ``claims_optimal``: whether no other choice of kept candidates, their tiers, and of updates
    that are deferred where that is allowed, all else being as the planner put it, gives a shorter step on a small
    problem.
    """

    backend: ClassVar[PlannerBackend]
    model: ClassVar[TimeModel] = TimeModel.SIMULATION
    claims_optimal: ClassVar[bool] = False

    @pytest.fixture
    def config(self) -> Any:
        """Give the config to open the backend with."""
        return default_config(self.backend)

    @pytest.fixture
    def planner(self, config: Any) -> Planner:
        """Give an open planner."""
        return self.backend.open(config)

    @pytest.fixture(params=PROBLEMS, ids=lambda problem: problem.name)
    def problem(self, request: pytest.FixtureRequest) -> Problem:
        """Give one problem after the other."""
        problem: Problem = request.param
        return problem

    def test_is_usable_here(self) -> None:
        """The suite runs where the backend works."""
        assert self.backend.probe() is None

    def test_plans_for_the_model_at_hand(self, planner: Planner, problem: Problem) -> None:
        """A plan names its planner, and decides for every block about candidates that the block has."""
        plan = planner.plan(problem.profile, _PLENTY, problem.workload)
        assert plan.planner == self.backend.name
        assert self._grade(plan, problem, _PLENTY).seconds > 0

    def test_defers_only_where_it_may(self, planner: Planner, problem: Problem) -> None:
        """No update is deferred that the user wants done in its own step."""
        plan = planner.plan(problem.profile, _PLENTY, problem.workload)
        deferred = sum(decisions.deferred for decisions in plan.blocks)
        assert problem.workload.may_defer or not deferred, f"run.update is {problem.workload.update}"

    def test_is_deterministic(self, planner: Planner, config: Any, problem: Problem) -> None:
        """The same arguments give the same plan, from the same planner and from another."""
        plans = [
            p.plan(problem.profile, _PLENTY, problem.workload) for p in (planner, planner, self.backend.open(config))
        ]
        assert plans[1] == plans[0], "planning again gave another plan"
        assert plans[2] == plans[0], "another planner of the same config gave another plan"

    @pytest.mark.parametrize("tier", Tier, ids=str)
    def test_a_plan_fits_or_none_is_made(self, planner: Planner, problem: Problem, tier: Tier) -> None:
        """With less and less of a tier, every plan fits what there is; where none does, PlanError says so."""
        needed = self._grade(planner.plan(problem.profile, _PLENTY, problem.workload), problem, _PLENTY).peak_bytes[
            tier
        ]
        for fraction in _FRACTIONS:
            budget = _with(_PLENTY, tier, int(needed * fraction))
            try:
                plan = planner.plan(problem.profile, budget, problem.workload)
            except PlanError:
                continue
            shortfalls = self._grade(plan, problem, budget).shortfalls
            assert not shortfalls, f"with {fraction} of {tier}: {shortfalls[0]}"

    def test_what_its_plan_takes_is_enough(self, planner: Planner, problem: Problem) -> None:
        """With exactly the bytes that its own plan takes there is a plan: that one."""
        plan = planner.plan(problem.profile, _PLENTY, problem.workload)
        first = self._grade(plan, problem, _PLENTY)
        peak = first.peak_bytes
        enough = Budget(gpu_bytes=peak[Tier.GPU], host_bytes=peak[Tier.HOST], ssd_bytes=peak[Tier.SSD])
        again = self._grade(planner.plan(problem.profile, enough, problem.workload), problem, enough)
        assert again.feasible
        assert again.seconds <= first.seconds * _ROUNDING, "with what its plan takes it made a slower one"

    @pytest.mark.parametrize("tier", Tier, ids=str)
    def test_a_larger_budget_is_no_worse(self, planner: Planner, problem: Problem, tier: Tier) -> None:
        """With more of a tier, the predicted step is no longer."""
        needed = self._grade(planner.plan(problem.profile, _PLENTY, problem.workload), problem, _PLENTY).peak_bytes[
            tier
        ]
        shortest = None
        for size in (*(int(needed * fraction) for fraction in (*_FRACTIONS, 1.0, 2.0)), 2**50):
            budget = _with(_PLENTY, tier, size)
            try:
                plan = planner.plan(problem.profile, budget, problem.workload)
            except PlanError:
                assert shortest is None, f"no plan with {size} bytes of {tier}, but one with less"
                continue
            seconds = self._grade(plan, problem, budget).seconds
            assert shortest is None or seconds <= shortest * _ROUNDING, f"a longer step with {size} bytes of {tier}"
            shortest = seconds
        assert shortest is not None

    def test_raises_when_nothing_fits(self, planner: Planner, problem: Problem) -> None:
        """Without any memory there is no plan, and the message is one line that names a tier."""
        with pytest.raises(PlanError, match=r"^.*\b(gpu|host|ssd)\b.*\Z"):
            planner.plan(problem.profile, Budget(gpu_bytes=0, host_bytes=0, ssd_bytes=0), problem.workload)

    @pytest.mark.parametrize("tiny", TINY_PROBLEMS, ids=lambda problem: problem.name)
    def test_is_optimal_where_it_claims_so(self, planner: Planner, tiny: Problem) -> None:
        """No other choice of kept candidates and deferred updates gives a shorter step: all of them are tried."""
        if not self.claims_optimal:
            pytest.skip("this planner does not claim to be optimal")
        plan = planner.plan(tiny.profile, _PLENTY, tiny.workload)
        grades = [self._grade(other, tiny, _PLENTY) for other in _every_choice(plan, tiny)]
        sizes = [grade.peak_bytes[Tier.GPU] for grade in grades]
        for size in (min(sizes), (min(sizes) + max(sizes)) // 2, max(sizes)):
            budget = _with(_PLENTY, Tier.GPU, size)
            seconds = self._grade(planner.plan(tiny.profile, budget, tiny.workload), tiny, budget).seconds
            best = min(grade.seconds for grade in grades if grade.peak_bytes[Tier.GPU] <= size)
            assert seconds <= best * _ROUNDING, f"with {size} bytes its step takes {seconds} s, the best {best} s"

    def _grade(self, plan: Plan, problem: Problem, budget: Budget) -> Evaluation:
        return evaluate(plan, problem.profile, problem.workload, budget, self.model)


def _with(budget: Budget, tier: Tier, size_bytes: int) -> Budget:
    return evolve(budget, **{f"{tier}_bytes": size_bytes})


def _every_choice(plan: Plan, problem: Problem) -> Iterator[Plan]:
    blocks = problem.profile.blocks
    places = [(number, c.index) for number, block in enumerate(blocks) for c in block.candidates]
    whens = (False, True) if problem.workload.may_defer else (False,)
    for tiers in product((None, *Tier), repeat=len(places)):
        keep: list[dict[int, Tier]] = [{} for _ in blocks]
        for (number, index), tier in zip(places, tiers, strict=True):
            if tier is not None:
                keep[number][index] = tier
        for deferred in product(whens, repeat=len(blocks)):
            yield evolve(
                plan,
                blocks=tuple(
                    evolve(b, keep=k, deferred=d) for b, k, d in zip(plan.blocks, keep, deferred, strict=True)
                ),
            )
