"""What a better machine would be worth: the step planned anew with twice of one part. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from lohan_core.errors import PlanError
from lohan_core.evaluate import simulate_step
from lohan_core.forecast.case import Case
from lohan_core.forecast.parts import Part
from lohan_core.forecast.report import PlannedStep
from lohan_core.profile import Machine
from lohan_core.progress import Report

__all__ = ["speedups"]

_PCIE = ("h2d_bytes_per_second", "d2h_bytes_per_second")
_DRIVES = ("ssd_read_bytes_per_second", "ssd_write_bytes_per_second", "ssd_mixed_bytes_per_second")
_PROCESSOR = ("cpu_parameters_per_second", "memory_bytes_per_second")
"""Main memory's bandwidth comes with a processor, and updates take most of it."""


def speedups(case: Case, step: PlannedStep, report: Report) -> dict[Part, float]:
    """Plan a step anew with twice of each part of the machine, and return how many times faster it is then.

    The plan that there is serves as well if the planner finds none that is faster. Nothing is a loss: faster copies
    take more of the memory's bandwidth from updates, and a simulated step can be longer for it, but no copy must be so
    fast.
    """
    now = simulate_step(step.plan, step.profile, step.workload).seconds
    faster: dict[Part, float] = {}
    parts = _parts(step.profile.machine)
    for done, part in enumerate(parts):
        report("planning with a better machine", done, len(parts))
        faster[part] = max(1.0, now / _seconds_with_twice(part, case, step))
    report("planning with a better machine", len(parts), len(parts))
    return faster


def _parts(machine: Machine) -> tuple[Part, ...]:
    return (Part.PROCESSOR, Part.MAIN_MEMORY, Part.DRIVES) if machine.cpu_computes else tuple(Part)


def _seconds_with_twice(part: Part, case: Case, step: PlannedStep) -> float:
    machine = step.profile.machine
    if part is (Part.PROCESSOR if machine.cpu_computes else Part.GPU):
        # A block's time is no rate of the machine: twice what computes is all else at half its rate, in half the time.
        others = _DRIVES if machine.cpu_computes else (*_PCIE, *_DRIVES, *_PROCESSOR)
        return _seconds_on(_with(machine, others, 0.5), case, step) / 2
    doubled = _of_part(part, one_memory=machine.cpu_computes)
    # The user's limits are of the machine as it is.
    limits = {tier: limit and limit * (2 if f"{tier}_bytes" in doubled else 1) for tier, limit in case.limits.items()}
    return _seconds_on(_with(machine, doubled, 2), evolve(case, limits=limits), step)


def _of_part(part: Part, *, one_memory: bool) -> tuple[str, ...]:
    """Return the machine's attributes that a part has: its rates, and its room."""
    attributes: Mapping[Part, tuple[str, ...]] = {
        Part.GPU_MEMORY: ("gpu_bytes",),
        Part.PCIE: _PCIE,
        Part.PROCESSOR: _PROCESSOR,
        Part.MAIN_MEMORY: ("gpu_bytes", "host_bytes") if one_memory else ("host_bytes",),
        Part.DRIVES: (*_DRIVES, "ssd_bytes"),
    }
    return attributes[part]


def _with(machine: Machine, names: tuple[str, ...], factor: float) -> Machine:
    values = {name: getattr(machine, name) for name in names}
    return evolve(machine, **{name: value * factor for name, value in values.items() if value is not None})


def _seconds_on(machine: Machine, case: Case, step: PlannedStep) -> float:
    """Return the step's length by the better of two plans: the one that there is, and one made for the machine."""
    profile = evolve(step.profile, machine=machine)
    as_it_is = simulate_step(step.plan, profile, step.workload).seconds
    try:
        plan, workload = case.plan(profile, step.workload.micro_batches)
    except PlanError:
        return as_it_is
    return min(as_it_is, simulate_step(plan, profile, workload).seconds)
