"""Asking a planner for a plan that fits, if need be with fewer layers at once on the GPU."""

from __future__ import annotations

from attrs import evolve

from lohan_core.errors import PlanError
from lohan_core.evaluate import require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.profile import Profile

__all__ = ["plan_step"]

LEANER_SLOTS = ((2, 1), (1, 1))
"""Layer and gradient slots to fall back to: weights still come ahead of need; then not even that."""


def plan_step(planner: Planner, profile: Profile, budget: Budget, workload: Workload) -> tuple[Plan, Workload]:
    """Let the planner decide, and check that its plan fits.

    Returns:
        The plan, and the workload that it is for: as given, or with fewer slots where only that fits.

    Raises:
        PlanError: nothing fits; what is said is about the workload as given.
    """
    try:
        return require_feasible(planner.plan(profile, budget, workload), profile, workload, budget), workload
    except PlanError as refusal:
        for layer_slots, gradient_slots in LEANER_SLOTS:
            leaner = evolve(workload, layer_slots=layer_slots, gradient_slots=gradient_slots)
            try:
                return require_feasible(planner.plan(profile, budget, leaner), profile, leaner, budget), leaner
            except PlanError:
                continue
        raise refusal from None
