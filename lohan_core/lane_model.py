"""A step's length from what its lanes have to do: T = sum over phases of the busiest lane, the paper's form completed.

It adds what the paper's equations leave out: seconds instead of FLOPs, every tier for states, inputs and candidates,
CPU update time, reads and writes that share the drives unequally, updates that wait or are deferred. Every amount (see
:mod:`lohan_core.lane_amounts`) is linear in a plan's decisions and every limit is linear in the amounts, so that one
model serves a search (amounts may be numpy arrays), a linear program and the grading of a plan. What it does not know
is the order of tasks: that is the simulation's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lohan_core.lane_amounts import Amounts, Number, Phase, Resource, plan_amounts
from lohan_core.plan import Plan, Update, Workload
from lohan_core.profile import Machine, Profile
from lohan_core.schedule.task import Lane

__all__ = [
    "LANE_OF_RESOURCE",
    "lane_busy_seconds",
    "lane_limits",
    "lane_seconds",
    "step_lane_seconds",
    "unit_seconds",
]

LANE_OF_RESOURCE: Mapping[Resource, Lane] = {
    Resource.GPU: Lane.GPU,
    Resource.H2D: Lane.H2D,
    Resource.D2H: Lane.D2H,
    Resource.READ: Lane.SSD_READ,
    Resource.WRITE: Lane.SSD_WRITE,
    Resource.STATE_READ: Lane.SSD_READ,
    Resource.STATE_WRITE: Lane.SSD_WRITE,
    Resource.CPU: Lane.CPU,
}


def lane_limits(machine: Machine, update: Update) -> tuple[Mapping[Resource, float], ...]:
    """The lanes as linear forms: a phase lasts at least the sum of seconds per unit times amount, for each of these.

    Drives that read for a seconds and write for b, each alone, take max(a, b) + c min(a, b) together, where c follows
    from the mixed rate: 0 when neither slows the other, 1 when they take turns, which is the most that is assumed.
    Naive updates hold one chunk at a time: reading, updating and writing add up. So do computing, copying and updating
    where one processor does all three; and beside a GPU, updates and copies as users of the host's memory.
    """
    seconds = unit_seconds(machine)
    alone = machine.ssd_read_bytes_per_second + machine.ssd_write_bytes_per_second
    shared = min(1.0, max(0.0, alone / machine.ssd_mixed_bytes_per_second - 1))

    def limit(*resources: Resource, beside: tuple[Resource, ...] = ()) -> dict[Resource, float]:
        return {r: seconds[r] for r in resources} | {r: shared * seconds[r] for r in beside}

    reads, writes = (Resource.READ, Resource.STATE_READ), (Resource.WRITE, Resource.STATE_WRITE)
    limits = [
        limit(Resource.GPU),
        limit(Resource.H2D),
        limit(Resource.D2H),
        limit(*reads, beside=writes),
        limit(*writes, beside=reads),
        limit(Resource.CPU),
    ]
    if machine.cpu_computes:
        limits.append(limit(Resource.GPU, Resource.H2D, Resource.D2H, Resource.CPU))
    if machine.memory_bytes_per_second is not None:
        moved = dict.fromkeys((Resource.H2D, Resource.D2H, *reads, *writes), 1 / machine.memory_bytes_per_second)
        limits.append(limit(Resource.CPU) | moved)
    if update is Update.NAIVE:
        limits.append(limit(Resource.STATE_READ, Resource.CPU, Resource.STATE_WRITE))
    return tuple(limits)


def unit_seconds(machine: Machine) -> Mapping[Resource, float]:
    """How long one unit of each resource keeps its lane busy, alone."""
    return {
        Resource.GPU: 1.0,
        Resource.H2D: 1 / machine.h2d_bytes_per_second,
        Resource.D2H: 1 / machine.d2h_bytes_per_second,
        Resource.READ: 1 / machine.ssd_read_bytes_per_second,
        Resource.WRITE: 1 / machine.ssd_write_bytes_per_second,
        Resource.STATE_READ: 1 / machine.ssd_read_bytes_per_second,
        Resource.STATE_WRITE: 1 / machine.ssd_write_bytes_per_second,
        Resource.CPU: 1 / machine.cpu_parameters_per_second,
    }


def lane_seconds(amounts: Amounts, machine: Machine, update: Update) -> Number:
    """Add up the phases, each as long as its busiest lane."""
    limits = lane_limits(machine, update)
    total: Number = 0.0
    for phase in Phase:
        seconds: Number = 0.0
        for limit in limits:
            busy = sum((rate * amounts.get((phase, resource), 0.0) for resource, rate in limit.items()), 0.0)
            seconds = np.maximum(seconds, busy)
        total = total + seconds
    return total


def step_lane_seconds(plan: Plan, profile: Profile, workload: Workload) -> float:
    """Length of a plan's step by its lanes."""
    return float(lane_seconds(plan_amounts(plan, profile, workload), profile.machine, workload.update))


def lane_busy_seconds(plan: Plan, profile: Profile, workload: Workload) -> dict[Lane, float]:
    """How long each lane works in a plan's step, each for itself."""
    busy = dict.fromkeys(Lane, 0.0)
    seconds = unit_seconds(profile.machine)
    for (_, resource), amount in plan_amounts(plan, profile, workload).items():
        busy[LANE_OF_RESOURCE[resource]] += seconds[resource] * float(amount)
    return busy
