"""Predicting every planner's plan. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence

from lohan_core.compare.planners import NamedPlanner
from lohan_core.compare.records import Comparison, Contender, Prediction
from lohan_core.config.sections import Config
from lohan_core.errors import PlanError
from lohan_core.evaluate import TimeModel, evaluate, simulate_step
from lohan_core.forecast import Case
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.planning import plan_step
from lohan_core.profile import Profile
from lohan_core.progress import Report

__all__ = ["predict", "predict_all"]


def predict_all(planners: Sequence[NamedPlanner], profile: Profile, config: Config, report: Report) -> Comparison:
    """Let every planner plan and predict its step; one that has no plan that fits says why."""
    case = Case.of(config, planners[0].planner, profile.states, profile.weight_bytes)
    budget = case.budget(profile.machine)
    contenders = []
    for number, named in enumerate(planners):
        report("planning", number, len(planners))
        try:
            plan, fitting = plan_step(named.planner, profile, budget, case.workload)
        except PlanError as error:
            reason = str(error).removeprefix(f"planner {named.backend!r}: ")
            contenders.append(Contender(planner=named.name, reason=reason))
        else:
            prediction = predict(plan, profile, fitting, budget)
            contenders.append(Contender(planner=named.name, prediction=prediction))
    report("planning", len(planners), len(planners))
    return Comparison(profile=profile, workload=case.workload, budget=budget, contenders=tuple(contenders))


def predict(plan: Plan, profile: Profile, workload: Workload, budget: Budget) -> Prediction:
    """Simulate a plan's step, and add up the memory that it takes."""
    memory = evaluate(plan, profile, workload, budget, TimeModel.LANES)  # memory is the same in all models
    timeline = simulate_step(plan, profile, workload)
    return Prediction(plan=plan, workload=workload, timeline=timeline, peak_bytes=memory.peak_bytes)
