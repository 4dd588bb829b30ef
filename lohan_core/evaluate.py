"""``evaluate``: the one grader of every plan. It says if a plan fits and how long its step takes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import frozen

from lohan_core.budget import MOST_FOR_LIBRARIES
from lohan_core.collector import collector_paused
from lohan_core.equations import paper_busy_seconds, paper_step_seconds
from lohan_core.errors import InvalidPlanError, PlanError
from lohan_core.lane_model import lane_busy_seconds, step_lane_seconds
from lohan_core.plan import VERSIONS_TO_SPECULATE, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile, Role
from lohan_core.schedule.build import build_memory, build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Lane
from lohan_core.schedule.timeline import Timeline
from lohan_core.units import format_bytes

__all__ = ["Evaluation", "Shortfall", "TimeModel", "check_plan", "evaluate", "require_feasible", "simulate_step"]

_REMEDIES = {
    Tier.HOST: "put states on ssd, lower memory.chunk or run.batch_size, or raise memory.host",
    Tier.SSD: "free space, add storage.directories, or raise memory.ssd",
}
_SSD_REMEDY_OF_SEVERAL_VERSIONS = "free space, add storage.directories, raise memory.ssd, or set run.durability: none"


class TimeModel(StrEnum):
    """How a step's length is predicted. Whether a plan fits does not depend on it."""

    SIMULATION = "simulation"
    """The schedule's tasks, one by one."""
    LANES = "lanes"
    """Forward and backward, each as long as its busiest lane: the paper's equations with what they leave out."""
    PAPER = "paper"
    """The paper's equations (Ratel section IV-D), exactly."""


@frozen(kw_only=True)
class Shortfall:
    """A tier on which a plan needs more than the budget, and what to do about it."""

    tier: Tier
    needed_bytes: int
    available_bytes: int
    remedy: str

    def __str__(self) -> str:
        missing = self.needed_bytes - self.available_bytes
        return (
            f"the plan needs {format_bytes(self.needed_bytes)} on {self.tier}, {format_bytes(missing)} more than the "
            f"{format_bytes(self.available_bytes)} available; {self.remedy}"
        )


@frozen(kw_only=True)
class Evaluation:
    """A plan's grade: the predicted step, what each lane does in it, and the bytes it takes on each tier."""

    seconds: float
    busy_seconds: Mapping[Lane, float]
    peak_bytes: Mapping[Tier, int]
    shortfalls: tuple[Shortfall, ...]

    @property
    def feasible(self) -> bool:
        """Whether the plan fits on every tier."""
        return not self.shortfalls


def check_plan(plan: Plan, profile: Profile, workload: Workload) -> None:
    """Check that a plan is one for this model and workload.

    Raises:
        InvalidPlanError: it has another number of blocks, keeps a candidate that its block has not, has states on the
            GPU that cannot be there, or defers updates, or makes them on speculation, where that may not be.
        PlanError: it has states on the GPU, and the optimizer cannot update them there.
    """
    if len(plan.blocks) != len(profile.blocks):
        raise _invalid(plan, f"it is of {len(plan.blocks)} blocks, and the model has {len(profile.blocks)}")
    for block, decisions in zip(profile.blocks, plan.blocks, strict=True):
        unknown = set(decisions.keep) - {candidate.index for candidate in block.candidates}
        if unknown:
            raise _invalid(plan, f"block {block.name} has no candidate {min(unknown)}")
        if decisions.states is Tier.GPU and block.role is not Role.LAYER:
            raise _invalid(plan, f"block {block.name}: only layers' states can live on the GPU")
        if decisions.states is Tier.GPU and profile.machine.gpu_parameters_per_second is None:
            raise PlanError(
                f"planner {plan.planner!r}: states on the GPU, where this optimizer has no update; put planner.states "
                "on host or ssd"
            )
        if decisions.deferred and not workload.may_defer:
            raise _invalid(
                plan, f"block {block.name}: its update is deferred, which run.update: {workload.update} does not allow"
            )
        if decisions.speculative and not workload.may_speculate:
            raise _invalid(
                plan,
                f"block {block.name}: its update is speculative, which is for run.update: speculative and for "
                "gradients that are clipped",
            )
        if decisions.speculative and decisions.states is Tier.SSD and workload.versions < VERSIONS_TO_SPECULATE:
            raise _invalid(
                plan,
                f"block {block.name}: its update is speculative, and the drives have no {VERSIONS_TO_SPECULATE} "
                "versions of its states (workload.versions)",
            )


def _invalid(plan: Plan, fault: str) -> InvalidPlanError:
    return InvalidPlanError(f"planner {plan.planner!r} made a plan that cannot be carried out: {fault}")


def evaluate(
    plan: Plan,
    profile: Profile,
    workload: Workload,
    budget: Budget,
    model: TimeModel = TimeModel.SIMULATION,
) -> Evaluation:
    """Grade a plan: predict its step by ``model``, and add up the memory of the schedule that would carry it out.

    Raises:
        LohanError: the plan is not one for this model and workload; see :func:`check_plan`.
    """
    check_plan(plan, profile, workload)
    seconds, busy = _predict(plan, profile, workload, budget, model)
    memory = build_memory(plan, profile, workload)
    available = budget.by_tier
    peak = {tier: memory.bytes_on(tier) for tier in Tier}
    return Evaluation(
        seconds=seconds,
        busy_seconds=busy,
        peak_bytes=peak,
        shortfalls=tuple(
            Shortfall(
                tier=tier,
                needed_bytes=peak[tier],
                available_bytes=available[tier],
                remedy=_remedy(tier, plan, profile, workload),
            )
            for tier in Tier
            if peak[tier] > available[tier]
        ),
    )


def _remedy(tier: Tier, plan: Plan, profile: Profile, workload: Workload) -> str:
    if tier is Tier.GPU:
        return _gpu_remedy(plan, profile, workload)
    if tier is Tier.SSD and workload.versions > 1:
        return _SSD_REMEDY_OF_SEVERAL_VERSIONS
    return _REMEDIES[tier]


def _gpu_remedy(plan: Plan, profile: Profile, workload: Workload) -> str:
    """Name what would be less on the GPU, of what there is."""
    lower = ["run.micro_batch_size"] * (profile.micro_batch_size > 1) + ["run.batch_size"] * (
        workload.micro_batches > 1
    )
    keeps = any(Tier.GPU in (b.states, b.inputs, *b.keep.values()) for b in plan.blocks)
    return (
        f"lower {' or '.join([*lower, 'data.sequence_length'])}, {'keep less on the GPU, ' if keeps else ''}or raise "
        f"memory.gpu, of which up to {format_bytes(MOST_FOR_LIBRARIES)} are left to libraries"
    )


def _predict(
    plan: Plan, profile: Profile, workload: Workload, budget: Budget, model: TimeModel
) -> tuple[float, Mapping[Lane, float]]:
    """Predict the step's seconds, and each lane's busy part of them."""
    if model is TimeModel.PAPER:
        seconds = paper_step_seconds(plan, profile, workload, budget.host_bytes)
        return seconds, paper_busy_seconds(plan, profile, workload, budget.host_bytes)
    if model is TimeModel.LANES:
        return step_lane_seconds(plan, profile, workload), lane_busy_seconds(plan, profile, workload)
    timeline = simulate_step(plan, profile, workload)
    return timeline.seconds, timeline.busy_seconds()


@collector_paused()
def simulate_step(plan: Plan, profile: Profile, workload: Workload, *, speculates: bool = True) -> Timeline:
    """Build a plan's schedule, with its speculative updates or without, and carry it out on the profile's machine."""
    return simulate(build_schedule(plan, profile, workload, speculates=speculates), profile.machine)


def require_feasible(plan: Plan, profile: Profile, workload: Workload, budget: Budget) -> Plan:
    """Return the plan if it fits.

    Raises:
        PlanError: it does not; names tier, bytes missing and remedy.
    """
    shortfalls = evaluate(plan, profile, workload, budget, TimeModel.LANES).shortfalls  # fits in all models or in none
    if shortfalls:
        raise PlanError(f"planner {plan.planner!r}: " + "; ".join(str(shortfall) for shortfall in shortfalls))
    return plan
