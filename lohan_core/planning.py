"""Asking a planner for a plan that fits, if need be with less on the GPU at once or less on the drives."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from lohan_core.collector import collector_paused
from lohan_core.errors import InvalidPlanError, PlanError
from lohan_core.evaluate import require_feasible, simulate_step
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import VERSIONS_TO_SPECULATE, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_core.speculation import with_speculation

__all__ = ["plan_step"]

LEANER_SLOTS = ((2, 1), (1, 1))
"""Layer and gradient slots to fall back to: weights still come ahead of need; then not even that."""
SLOTS_IN_USE = 2
"""Layer slots without which weights do not come ahead of need."""
WORTH_A_SLOT = 0.005
"""By what part of a step it must be shorter for a slot to be given up: a third one evens out what no plan foresees."""


@collector_paused()
def plan_step(
    planner: Planner, profile: Profile, budget: Budget, workload: Workload, *, store_exists: bool = False
) -> tuple[Plan, Workload]:
    """Let the planner decide, and check that its plan fits.

    Args:
        planner: decides.
        profile: what is known of machine and model.
        budget: what the plan may use.
        workload: what one step does; its ``versions`` are the most there may be.
        store_exists: ``versions`` are those of a store that is there: no more and no fewer.

    Returns:
        The plan, and the workload that it is for: as given, or with fewer slots where only that fits or another layer's
        states have their place on the GPU, or, where a crash may cost the run (``versions`` is 1), without extents for
        states in host memory, or with two versions instead of three, if no speculative update needs the third.

    Raises:
        InvalidPlanError: the planner makes plans that are none for this model and workload.
        PlanError: nothing fits; what is said is about as many slots as given, and the least there may be on the drives.
    """
    if store_exists or workload.versions < VERSIONS_TO_SPECULATE:
        return _plan(planner, profile, budget, workload)
    plan, chosen = _plan(planner, profile, budget, evolve(workload, versions=VERSIONS_TO_SPECULATE - 1))
    if not workload.may_speculate or all(decided.states is not Tier.SSD for decided in plan.blocks):
        return plan, chosen
    try:
        other, roomy = _plan(planner, profile, budget, workload)
    except PlanError:
        return plan, chosen
    shorter = simulate_step(other, profile, roomy).seconds < simulate_step(plan, profile, chosen).seconds
    return (other, roomy) if shorter else (plan, chosen)


def _plan(planner: Planner, profile: Profile, budget: Budget, workload: Workload) -> tuple[Plan, Workload]:
    plan, chosen = _fitting(planner, profile, budget, workload)
    return (with_speculation(plan, profile, chosen, budget) if chosen.may_speculate else plan), chosen


def _fitting(planner: Planner, profile: Profile, budget: Budget, workload: Workload) -> tuple[Plan, Workload]:
    told = evolve(workload, host_extents=workload.host_extents and workload.versions > 1)
    refusal: PlanError | None = None
    for attempt in (workload, *_leaner(workload)):
        try:
            plan = _ask(planner, profile, budget, attempt)
        except PlanError as error:
            if attempt == told:
                refusal = error
        else:
            return _with_states_for_a_slot(planner, profile, budget, plan, attempt)
    assert refusal is not None  # noqa: S101 - it is among the attempts
    raise refusal


def _ask(planner: Planner, profile: Profile, budget: Budget, workload: Workload) -> Plan:
    plan = planner.plan(profile, budget, workload)
    if not isinstance(plan, Plan):
        raise InvalidPlanError(f"{type(planner).__name__}.plan returned {plan!r}, which is no lohan_core.plan.Plan")
    return require_feasible(plan, profile, workload, budget)


def _with_states_for_a_slot(
    planner: Planner, profile: Profile, budget: Budget, plan: Plan, workload: Workload
) -> tuple[Plan, Workload]:
    """Give up the layer slot that only keeps weights moving, if the step is shorter with states in its place.

    That can be where some layers' states are on the GPU: those need no slot, and the others' are few.
    """
    if workload.layer_slots <= SLOTS_IN_USE or all(decisions.states is not Tier.GPU for decisions in plan.blocks):
        return plan, workload
    leaner = evolve(workload, layer_slots=SLOTS_IN_USE)
    try:
        other = _ask(planner, profile, budget, leaner)
    except PlanError:
        return plan, workload
    least_seconds = (1 - WORTH_A_SLOT) * simulate_step(plan, profile, workload).seconds
    return (other, leaner) if simulate_step(other, profile, leaner).seconds < least_seconds else (plan, workload)


def _leaner(workload: Workload) -> Iterator[Workload]:
    """Yield what to fall back to, in order. That the run can be stopped and resumed is given up last."""
    fewer = [evolve(workload, layer_slots=layers, gradient_slots=gradients) for layers, gradients in LEANER_SLOTS]
    yield from fewer
    if workload.versions == 1:
        for each in (workload, *fewer):
            yield evolve(each, host_extents=False)
