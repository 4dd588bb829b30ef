"""Predicting every planner's plan. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from lohan_core.backend import Kind
from lohan_core.compare.records import Comparison, Contender, Prediction
from lohan_core.config.sections import Config
from lohan_core.config.structure import structure_values
from lohan_core.errors import ConfigError, PlanError
from lohan_core.evaluate import TimeModel, evaluate, simulate_step
from lohan_core.forecast import Case
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.planning import plan_step
from lohan_core.profile import Profile
from lohan_core.progress import Report
from lohan_core.registry import Registry

__all__ = ["NamedPlanner", "open_planners", "predict", "predict_all"]


@frozen
class NamedPlanner:
    """A planner that was opened, by the name under which it was asked for."""

    name: str
    planner: Planner


def open_planners(names: Sequence[str], config: Config, registry: Registry) -> tuple[NamedPlanner, ...]:
    """Open planners by name: the config's own with the settings that stand there, the others with their defaults.

    Raises:
        ConfigError: no name is given, or one twice, or a planner has a setting without a default.
        BackendError: there is no such planner, or it is not usable on this machine.
    """
    if not names:
        raise ConfigError("--planners: name one at least")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"--planners: {min(twice)} is named twice")
    opened = []
    for name in names:
        backend = registry.find(Kind.PLANNER, name)
        is_own = name == config.planner.name
        source = f"--planners: {name} is not the config's own planner, and has settings without defaults"
        settings = config.planner.settings if is_own else structure_values(backend.config, {}, source)
        opened.append(NamedPlanner(name, registry.open_backend(Kind.PLANNER, name, settings)))
    return tuple(opened)


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
            reason = str(error).removeprefix(f"planner {named.name!r}: ")
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
