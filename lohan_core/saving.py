"""What it takes to make a step durable, by simulation, and how often that is worth it. No I/O, no devices.

States that live on the drives are durable by one small commit. Those in memory are written for it, while the step
waits; and where a plan defers some updates and not others (speculative ones are not, if all goes well), no moment of a
step finds another one whole, so the deferred ones are done first, on their own.
"""

from __future__ import annotations

import math

from lohan_core.collector import collector_paused
from lohan_core.plan import Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_core.schedule.build import build_updates
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.sizes import states_bytes

__all__ = ["SAVING_SHARE", "saved_bytes", "saving_seconds", "steps_between_saves"]

SAVING_SHARE = 0.05
"""The part of a run's time that saving may take where the user has set no interval."""


def saved_bytes(plan: Plan, profile: Profile, workload: Workload) -> int:
    """Return what is written more for a step to become durable: states in memory; 0 where they cannot be saved."""
    if not workload.host_extents:
        return 0
    return sum(
        states_bytes(block, profile)
        for block, decisions in zip(profile.blocks, plan.blocks, strict=True)
        if decisions.states is not Tier.SSD
    )


@collector_paused()
def saving_seconds(plan: Plan, profile: Profile, workload: Workload) -> float:
    """Predict how much longer a step is that becomes durable; 0 where its states cannot be saved at all."""
    if not workload.host_extents:
        return 0.0
    seconds = saved_bytes(plan, profile, workload) / profile.machine.ssd_write_bytes_per_second
    blocks = zip(profile.blocks, plan.blocks, strict=True)
    deferred = {decisions.deferred and not decisions.speculative for block, decisions in blocks if block.elements}
    if deferred == {False, True}:
        seconds += simulate(build_updates(plan, profile, workload), profile.machine).seconds
    return seconds


def steps_between_saves(saving: float, step: float) -> int:
    """Return after how many steps of ``step`` seconds to save for ``saving``, so that it takes no more than its share.

    Every step where saving costs nothing.
    """
    return max(1, math.ceil(saving / (SAVING_SHARE * step))) if step > 0 else 1
