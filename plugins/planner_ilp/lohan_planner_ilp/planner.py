"""The planners: a freedom to decide, a program, and its optimum as a plan."""

from __future__ import annotations

import time

from lohan_core.errors import PlanError
from lohan_core.evaluate import require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_planner_ilp.config import CheckmateConfig, IlpConfig
from lohan_planner_ilp.decisions import Freedom
from lohan_planner_ilp.formulate import Formulation
from lohan_planner_ilp.groups import group_blocks
from lohan_planner_ilp.solve import solve

__all__ = ["IlpPlanner", "checkmate", "ilp"]

SECOND_GAP = 0.01
"""How far the second question, which plan of equals works the lanes least, may be from its answer."""

FIRST_SHARE = 0.8
"""Of the time limit, for the first question: what it leaves is for the second, or for what to do without an answer."""


class IlpPlanner(Planner):
    """Makes the plan with the shortest step by the core's lane model, of those that its freedom allows."""

    def __init__(self, name: str, config: IlpConfig, freedom: Freedom) -> None:
        self._name = name
        self._config = config
        self._freedom = freedom

    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Decide, or raise PlanError if nothing fits or no plan was found in time."""
        deadline = time.monotonic() + self._config.time_limit
        formulation = Formulation(
            profile=profile,
            workload=workload,
            budget=budget,
            freedom=self._freedom,
            groups=group_blocks(profile, workload),
        )
        solution = solve(formulation.program, gap=self._config.gap, time_limit=_left(deadline) * FIRST_SHARE)
        if solution is None:
            return self._nearest(formulation, deadline)
        ended = "optimal by the lane model" if solution.optimal else "the best when time was up"
        formulation.prefer_least_work(solution.objective)
        settled = solve(formulation.program, gap=SECOND_GAP, time_limit=_left(deadline))
        chosen = settled or solution
        note = (
            f"{ended}: {formulation.seconds(solution.objective):.4g} s, gap {solution.gap:.2%}, "
            f"solved in {solution.seconds + (settled.seconds if settled else 0.0):.2f} s"
        )
        return require_feasible(formulation.plan(self._name, chosen.values, note), profile, workload, budget)

    def _nearest(self, formulation: Formulation, deadline: float) -> Plan:
        """Tell what the plan lacks that exceeds the budget least; return it if it does not, but time was up before."""
        elastic = Formulation(
            profile=formulation.profile,
            workload=formulation.workload,
            budget=formulation.budget,
            freedom=formulation.freedom,
            groups=formulation.groups,
            elastic=True,
        )
        solution = solve(elastic.program, gap=self._config.gap, time_limit=_left(deadline))
        if solution is None:
            raise PlanError(
                f"planner {self._name!r}: found no plan within {self._config.time_limit:g} s; raise planner.time_limit"
            )
        plan = elastic.plan(self._name, solution.values, "the first that fits; not searched for the shortest step")
        return require_feasible(plan, formulation.profile, formulation.workload, formulation.budget)


def _left(deadline: float) -> float:
    """Seconds until then; 0: the solver gives what it has at once."""
    return max(0.0, deadline - time.monotonic())


def ilp(config: IlpConfig) -> Planner:
    """Open the planner that may do anything that a plan can say."""
    tiers = frozenset(Tier)
    return IlpPlanner("ilp", config, Freedom(inputs=tiers, candidates=tiers, states=tiers, balances=True))


def checkmate(config: CheckmateConfig) -> Planner:
    """Open Checkmate's: an operator is recomputed or its output swapped to host memory, as all inputs are."""
    host = frozenset({Tier.HOST})
    states = frozenset({Tier(config.states)})
    return IlpPlanner("checkmate", config, Freedom(inputs=host, candidates=host, states=states, balances=False))
