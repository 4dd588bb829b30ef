"""Planning anew in mid-run, with what a step was measured to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lohan_core.calibrate import calibrate, departure
from lohan_core.engine import Engine
from lohan_core.errors import PlanError
from lohan_core.evaluate import simulate_step
from lohan_core.interfaces.planner import Planner
from lohan_core.planning import plan_step
from lohan_core.schedule.timeline import Timeline

__all__ = ["LEAST_GAIN", "STEADY", "WORTH_SAYING", "replan", "unlike_prediction"]

LEAST_GAIN = 0.02
"""A new plan that is predicted to save less than this share of the step is not worth the change."""

STEADY = 3
"""The first of a process's steps that tells how long steps take: before it memory is new, and nothing was deferred."""

WORTH_SAYING = 0.5
"""A step that departs from its prediction by more than this share was planned by a profile that cannot be right."""


def unlike_prediction(engine: Engine, measured: Timeline) -> str | None:
    """Return a line on a step that is far from its prediction, and what to do about it; None for one that is not."""
    off = departure(engine.profile, measured)
    if abs(off) <= WORTH_SAYING:
        return None
    return (
        f"step {engine.finished_step} took {measured.seconds:.3g} s, {off:+.0%} off: the plan is by a profile of "
        "another machine, or of one that was busy, or this one is; --set profiler.cache=false measures anew, and "
        "run.replan_after plans anew from a step"
    )


def replan(engine: Engine, planner: Planner, measured: Timeline, progress: Mapping[str, Any]) -> str:
    """Correct the profile by a measured step, ask the planner again, and go on by its plan where that is faster.

    Args:
        engine: between two steps.
        planner: as the config chose it.
        measured: the newest step.
        progress: what to save beside the states if the plan changes.

    Returns:
        One line: what was found, and what was done.
    """
    off = f"step {engine.finished_step} took {measured.seconds:.3g} s, {departure(engine.profile, measured):+.0%} off"
    if not engine.can_save:
        return f"{off}; the plan stays: states that cannot be saved cannot be moved"
    profile = calibrate(engine.profile, measured)
    try:
        plan, workload = plan_step(planner, profile, engine.budget, engine.workload, store_exists=True)
    except PlanError as refusal:
        return f"{off}; the plan stays: {refusal}"
    before, after = (
        simulate_step(a_plan, profile, a_workload).seconds
        for a_plan, a_workload in ((engine.plan, engine.workload), (plan, workload))
    )
    if after >= before * (1 - LEAST_GAIN):
        return f"{off}; the plan stays: the planner finds none that is faster ({after:.3g} s, now {before:.3g} s)"
    engine.adopt(plan, profile, workload, progress)
    return f"{off}; planned anew, {after:.3g} s predicted for {before:.3g} s; {engine.description[-1]}"
