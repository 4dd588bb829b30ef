from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from schedule_problems import problems

from lohan_core.calibrate import calibrate, departure
from lohan_core.plan import Update
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Op
from lohan_core.schedule.timeline import Span, Timeline

FACTORS = st.floats(0.2, 5.0)


def _with_rates(machine, *, gpu, h2d, d2h, drives, cpu):
    return evolve(
        machine,
        gpu_flops_per_second=machine.gpu_flops_per_second * gpu,
        h2d_bytes_per_second=machine.h2d_bytes_per_second * h2d,
        d2h_bytes_per_second=machine.d2h_bytes_per_second * d2h,
        ssd_read_bytes_per_second=machine.ssd_read_bytes_per_second * drives,
        ssd_write_bytes_per_second=machine.ssd_write_bytes_per_second * drives,
        ssd_mixed_bytes_per_second=machine.ssd_mixed_bytes_per_second * drives,
        cpu_parameters_per_second=machine.cpu_parameters_per_second * cpu,
    )


def _without_shared_memory(profile):
    """What copies take from updates differs from task to task, and a calibrated profile has one rate for all."""
    return evolve(profile, machine=evolve(profile.machine, memory_bytes_per_second=None))


@given(problem=problems())
def test_what_updates_share_with_copies_is_kept_where_a_step_had_none(problem):
    """As the first step of a process that defers all its updates."""
    known = evolve(problem.profile, machine=evolve(problem.profile.machine, memory_bytes_per_second=1e9))
    blocks = tuple(evolve(decisions, deferred=True) for decisions in problem.plan.blocks)
    plan, workload = evolve(problem.plan, blocks=blocks), evolve(problem.workload, update=Update.DEFERRED)
    for pending in (True, False):
        schedule = build_schedule(plan, known, workload, pending=pending)
        updates = any(task.op is Op.UPDATE for task in schedule.tasks)
        found = calibrate(known, simulate(schedule, known.machine)).machine.memory_bytes_per_second
        assert found == (None if updates else 1e9)


@given(problem=problems(), factors=st.tuples(FACTORS, FACTORS, FACTORS, FACTORS, FACTORS))
def test_the_rates_of_a_step_are_found_again(problem, factors):
    gpu, h2d, d2h, drives, cpu = factors
    known = _without_shared_memory(problem.profile)
    true = _with_rates(known.machine, gpu=gpu, h2d=h2d, d2h=d2h, drives=drives, cpu=cpu)
    schedule = build_schedule(problem.plan, problem.profile, problem.workload)
    measured = simulate(schedule, true)
    found = calibrate(known, measured)
    used = measured.work()
    if used["h2d"]:
        assert found.machine.h2d_bytes_per_second == pytest.approx(true.h2d_bytes_per_second, rel=1e-6)
    if used["d2h"]:
        assert found.machine.d2h_bytes_per_second == pytest.approx(true.d2h_bytes_per_second, rel=1e-6)
    if used["cpu"]:
        assert found.machine.cpu_parameters_per_second == pytest.approx(true.cpu_parameters_per_second, rel=1e-6)
    if used["ssd_read"] + used["ssd_write"]:
        assert found.machine.ssd_mixed_bytes_per_second == pytest.approx(true.ssd_mixed_bytes_per_second, rel=1e-3)
    # The simulation gives the gpu lane its seconds as they are, whatever its rate.
    assert found.machine.gpu_flops_per_second == pytest.approx(true.gpu_flops_per_second / gpu, rel=1e-6)


@given(problem=problems(), factor=FACTORS)
def test_a_slower_step_makes_slower_blocks_and_no_departure(problem, factor):
    known = _without_shared_memory(problem.profile)
    schedule = build_schedule(problem.plan, known, problem.workload)
    predicted = simulate(schedule, known.machine)
    stretched = Timeline(
        schedule=schedule, spans=tuple(Span(span.start * factor, span.end * factor) for span in predicted.spans)
    )
    if predicted.seconds == 0:
        return
    assert departure(known, stretched) == pytest.approx(factor - 1, abs=1e-6)
    found = calibrate(known, stretched)
    again = simulate(build_schedule(problem.plan, found, problem.workload), found.machine)
    assert again.seconds == pytest.approx(stretched.seconds, rel=1e-3)
