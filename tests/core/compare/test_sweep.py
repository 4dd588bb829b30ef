from __future__ import annotations

from itertools import pairwise

import pytest
from attrs import evolve
from comparisons import BUDGET, LAYERS, PROFILE, WORKLOAD, plan_of
from hypothesis import given
from schedule_problems import problems

from lohan_core.compare.sweep import moved_bytes, sweep
from lohan_core.equations import paper_step_seconds
from lohan_core.lane_model import step_lane_seconds
from lohan_core.plan import BlockPlan, Budget, Tier
from lohan_core.schedule.build import build_memory, build_schedule
from lohan_core.schedule.task import Op

PLENTY = Budget(gpu_bytes=2**60, host_bytes=2**60, ssd_bytes=2**60)
INPUT, PRODUCT, GELU = 20_480, 40_960, 81_920
"""Whole sectors of what a layer may send off the GPU."""


def test_a_curve_goes_from_nothing_moved_to_everything():
    curve = sweep(PROFILE, WORKLOAD, BUDGET, plan_of("any"))
    assert (curve.host_states, curve.host_gradients, curve.deferred) == (0, 0, 0)
    first, last = curve.points[0], curve.points[-1]
    assert first.moved_bytes == 0
    assert last.moved_bytes == WORKLOAD.micro_batches * LAYERS * (INPUT + PRODUCT + GELU)
    blocks = [BlockPlan(states=Tier.SSD, gradients=Tier.SSD, inputs=Tier.GPU) for _ in PROFILE.blocks]
    nothing = evolve(plan_of("any"), blocks=tuple(blocks))
    assert first.lanes_seconds == step_lane_seconds(nothing, PROFILE, WORKLOAD)
    assert first.paper_seconds == paper_step_seconds(nothing, PROFILE, WORKLOAD, BUDGET.host_bytes)
    keep = {0: Tier.HOST, 1: Tier.HOST}
    assert last.lanes_seconds == step_lane_seconds(plan_of("any", keep=keep), PROFILE, WORKLOAD)


def test_inputs_go_first_and_then_what_saves_most_per_byte():
    steps = [
        point.moved_bytes // WORKLOAD.micro_batches for point in sweep(PROFILE, WORKLOAD, BUDGET, plan_of("any")).points
    ]
    taken = [after - before for before, after in pairwise(steps)]
    assert taken == [INPUT] * LAYERS + [PRODUCT] * LAYERS + [GELU] * LAYERS


def test_what_finds_no_room_in_host_memory_goes_to_the_drives():
    plan = plan_of("any")
    nothing = evolve(plan, blocks=tuple(evolve(block, inputs=Tier.GPU) for block in plan.blocks))
    fixed = build_memory(nothing, PROFILE, WORKLOAD).bytes_on(Tier.HOST)
    tight = evolve(BUDGET, host_bytes=fixed + WORKLOAD.micro_batches * 2 * INPUT)
    slow = evolve(PROFILE, machine=evolve(PROFILE.machine, ssd_write_bytes_per_second=1.0))
    roomy, poor = sweep(slow, WORKLOAD, BUDGET, plan), sweep(slow, WORKLOAD, tight, plan)
    slower = [a.lanes_seconds > b.lanes_seconds for a, b in zip(poor.points, roomy.points, strict=True)]
    assert slower == [False] * 3 + [True] * (len(slower) - 3)


def test_a_curve_says_where_its_states_are():
    curve = sweep(PROFILE, WORKLOAD, BUDGET, plan_of("any", states=Tier.HOST))
    assert (curve.host_states, curve.host_gradients, curve.deferred) == (6, 6, 0)


def test_a_curve_is_of_one_way_to_update():
    """Deferred updates stay deferred on it: with them the whole curve lies lower where updates else come last."""
    assert WORKLOAD.clips
    at_once, deferred = (plan_of("any", deferred=later) for later in (False, True))
    low, high = (sweep(PROFILE, WORKLOAD, BUDGET, plan) for plan in (deferred, at_once))
    assert (low.deferred, high.deferred) == (6, 0)
    assert all(a.lanes_seconds < b.lanes_seconds for a, b in zip(low.points, high.points, strict=True))


@given(problem=problems())
def test_moved_bytes_are_those_of_the_schedule(problem):
    schedule = build_schedule(problem.plan, problem.profile, problem.workload)
    offloaded = sum(task.work for task in schedule.tasks if task.op is Op.OFFLOAD)
    assert moved_bytes(problem.plan, problem.profile, problem.workload) == offloaded


@given(problem=problems())
def test_any_model_has_a_curve_of_some_dozens_of_points(problem):
    points = sweep(problem.profile, problem.workload, PLENTY, problem.plan).points
    assert 2 <= len(points) <= 66
    moved = [point.moved_bytes for point in points]
    assert moved == sorted(moved)
    assert moved[0] == 0
    assert moved[-1] == pytest.approx(max(moved))
