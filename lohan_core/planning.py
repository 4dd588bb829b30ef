"""Asking a planner for a plan that fits, if need be with less on the GPU at once or less on the drives."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from lohan_core.collector import collector_paused
from lohan_core.errors import PlanError
from lohan_core.evaluate import require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.profile import Profile

__all__ = ["plan_step"]

LEANER_SLOTS = ((2, 1), (1, 1))
"""Layer and gradient slots to fall back to: weights still come ahead of need; then not even that."""


@collector_paused()
def plan_step(planner: Planner, profile: Profile, budget: Budget, workload: Workload) -> tuple[Plan, Workload]:
    """Let the planner decide, and check that its plan fits.

    Returns:
        The plan, and the workload that it is for: as given, or with fewer slots where only that fits, or, where a crash
        may cost the run (``versions`` is 1), without extents for states in host memory.

    Raises:
        PlanError: nothing fits; what is said is about as many slots as given, and the least there may be on the drives.
    """
    told = evolve(workload, host_extents=workload.host_extents and workload.versions > 1)
    refusal: PlanError | None = None
    for attempt in (workload, *_leaner(workload)):
        try:
            return require_feasible(planner.plan(profile, budget, attempt), profile, attempt, budget), attempt
        except PlanError as error:
            if attempt == told:
                refusal = error
    assert refusal is not None  # noqa: S101 - it is among the attempts
    raise refusal


def _leaner(workload: Workload) -> Iterator[Workload]:
    """Yield what to fall back to, in order. That the run can be stopped and resumed is given up last."""
    fewer = [evolve(workload, layer_slots=layers, gradient_slots=gradients) for layers, gradients in LEANER_SLOTS]
    yield from fewer
    if workload.versions == 1:
        for each in (workload, *fewer):
            yield evolve(each, host_extents=False)
