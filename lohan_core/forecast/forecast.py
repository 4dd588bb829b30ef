"""The forecast of one step, by the simulation of its schedule. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from lohan_core.evaluate import TimeModel, evaluate, simulate_step
from lohan_core.forecast.parts import Part, lanes_of_parts
from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_core.saving import saved_bytes, saving_seconds, steps_between_saves
from lohan_core.schedule.task import Lane

__all__ = ["Forecast", "forecast_plan"]

CLEAR_BOUND = 0.9
"""Share of the step from which on a part of the machine is said to bound it."""


@frozen(kw_only=True)
class Forecast:
    """What one step of a plan takes and does.

    ``busy`` is each lane's share of the step; ``occupied`` each part's: the time in which at least one of its lanes
    works (drives that read and write at once are occupied once). ``bounds`` is the part that is occupied most.
    ``saved`` is whether all states have space on the drives, so that the run can be stopped and resumed;
    ``saving_seconds`` what a step that becomes durable takes longer, ``saved_bytes`` what it writes more, and
    ``save_every`` how many steps such lie apart: neither is part of ``seconds`` and ``ssd_written_bytes``.
    ``drive_life_steps`` is how many such steps wear the drives out, saves included (None: their endurance is not known,
    or nothing is written). ``clipped_seconds``: all this is about steps that are not clipped, while speculation is that
    they are not; others take so long (None: the plan has no speculative updates, and that makes no difference).
    """

    machine: str
    planner: str
    parameters: int
    batch_size: int
    micro_batch_size: int
    sequence_length: int
    shortfalls: tuple[str, ...]
    saved: bool
    saving_seconds: float
    saved_bytes: int
    save_every: int
    seconds: float
    tokens_per_second: float
    busy: Mapping[Lane, float]
    occupied: Mapping[Part, float]
    bounds: Part
    peak_bytes: Mapping[Tier, int]
    budget_bytes: Mapping[Tier, int]
    ssd_read_bytes: float
    ssd_written_bytes: float
    drive_life_steps: float | None
    clipped_seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether the plan fits on every tier."""
        return not self.shortfalls

    @property
    def clearly_bound(self) -> bool:
        """Whether one part alone determines the step's length; else parts wait for each other."""
        return self.occupied[self.bounds] >= CLEAR_BOUND

    @property
    def seconds_with_saves(self) -> float:
        """The step's length with its share of what saving takes."""
        return self.seconds + self.saving_seconds / self.save_every


def forecast_plan(
    plan: Plan,
    profile: Profile,
    workload: Workload,
    budget: Budget,
    *,
    parameters: int,
    save_every: int | None = None,
) -> Forecast:
    """Predict one step of a plan.

    Args:
        plan: the decisions.
        profile: machine and model, for one micro-batch.
        workload: what the plan was made for.
        budget: likewise.
        parameters: number of trained parameters, as people count them.
        save_every: steps between durable ones; None: as often as costs little.
    """
    memory = evaluate(plan, profile, workload, budget, TimeModel.LANES)
    timeline = simulate_step(plan, profile, workload)
    parts = lanes_of_parts(profile.machine)
    occupied = {part: timeline.occupied_seconds(lanes) / timeline.seconds for part, lanes in parts.items()}
    work = timeline.work()
    batch_size = workload.micro_batches * profile.micro_batch_size
    written = work[Lane.SSD_WRITE]
    saving, saved = saving_seconds(plan, profile, workload), saved_bytes(plan, profile, workload)
    save_every = save_every or steps_between_saves(saving, timeline.seconds)
    worn, endurance = written + saved / save_every, profile.machine.ssd_endurance_bytes
    return Forecast(
        machine=profile.machine.name,
        planner=plan.planner,
        parameters=parameters,
        batch_size=batch_size,
        micro_batch_size=profile.micro_batch_size,
        sequence_length=profile.sequence_length,
        shortfalls=tuple(str(shortfall) for shortfall in memory.shortfalls),
        saved=workload.host_extents,
        saving_seconds=saving,
        saved_bytes=saved,
        save_every=save_every,
        seconds=timeline.seconds,
        tokens_per_second=batch_size * profile.sequence_length / timeline.seconds,
        busy={lane: busy / timeline.seconds for lane, busy in timeline.busy_seconds().items()},
        occupied=occupied,
        bounds=max(occupied, key=lambda part: occupied[part]),
        peak_bytes=memory.peak_bytes,
        budget_bytes=budget.by_tier,
        ssd_read_bytes=work[Lane.SSD_READ],
        ssd_written_bytes=written,
        drive_life_steps=endurance / worn if endurance and worn else None,
        clipped_seconds=_clipped_seconds(plan, profile, workload),
    )


def _clipped_seconds(plan: Plan, profile: Profile, workload: Workload) -> float | None:
    if not any(decisions.speculative for decisions in plan.blocks):
        return None
    return simulate_step(plan, profile, workload, speculates=False).seconds
