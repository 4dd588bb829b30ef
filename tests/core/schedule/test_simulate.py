from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attrs import evolve
from hypothesis import assume, given
from schedule_problems import problems
from tiny_backends import MACHINE

from lohan_core.engine.lanes import Lanes
from lohan_core.errors import InvalidPlanError, PlanError
from lohan_core.evaluate import Evaluation, check_plan, evaluate, require_feasible
from lohan_core.plan import Budget, Plan, Tier
from lohan_core.schedule.build import build_evaluation, build_schedule
from lohan_core.schedule.simulate import LEAST_SHARE, PROCESSOR_LANES, simulate
from lohan_core.schedule.task import Lane, Op, Schedule, Task

SLACK = 1e-9
PLENTY = Budget(gpu_bytes=2**60, host_bytes=2**60, ssd_bytes=2**60)
SLOW = evolve(
    MACHINE,
    h2d_bytes_per_second=20.0,
    d2h_bytes_per_second=10.0,
    ssd_read_bytes_per_second=10.0,
    ssd_write_bytes_per_second=10.0,
    ssd_mixed_bytes_per_second=10.0,
    cpu_parameters_per_second=5.0,
)


def rate_of(lane, machine):
    return {
        Lane.GPU: 1.0,
        Lane.H2D: machine.h2d_bytes_per_second,
        Lane.D2H: machine.d2h_bytes_per_second,
        Lane.SSD_READ: machine.ssd_read_bytes_per_second,
        Lane.SSD_WRITE: machine.ssd_write_bytes_per_second,
        Lane.CPU: machine.cpu_parameters_per_second,
    }[lane]


def spans_of(*tasks, machine=SLOW):
    """Simulate tasks of (op, work, after) on the slow machine, or another."""
    schedule = Schedule(
        tasks=tuple(Task(index=i, op=op, work=work, after=after) for i, (op, work, after) in enumerate(tasks)), pools={}
    )
    return [(span.start, span.end) for span in simulate(schedule, machine).spans]


@pytest.mark.parametrize("build", [build_schedule, build_evaluation])
@given(problem=problems())
def test_a_timeline_keeps_to_lanes_dependencies_and_rates(build, problem):
    schedule, machine = build(problem.plan, problem.profile, problem.workload), problem.profile.machine
    timeline = simulate(schedule, machine)
    tolerance = SLACK * max(1.0, timeline.seconds)
    by_lane = {lane: [] for lane in Lane}
    slowdown = (
        machine.ssd_read_bytes_per_second + machine.ssd_write_bytes_per_second
    ) / machine.ssd_mixed_bytes_per_second
    for task, span in zip(schedule.tasks, timeline.spans, strict=True):
        assert all(timeline.spans[before].end <= span.start + tolerance for before in task.after)
        by_lane[task.lane].append(span)
        alone = task.work / rate_of(task.lane, machine)
        longest = alone
        if task.lane in {Lane.SSD_READ, Lane.SSD_WRITE}:
            longest *= slowdown
        elif machine.cpu_computes:
            longest *= len(PROCESSOR_LANES)
        if task.lane is Lane.CPU:
            longest /= LEAST_SHARE
        seconds = span.end - span.start
        assert alone * (1 - 1e-6) - tolerance <= seconds <= longest * (1 + 1e-6) + tolerance
    for spans in by_lane.values():
        assert all(first.end <= second.start + tolerance for first, second in pairwise(spans))
    busy = timeline.busy_seconds()
    assert max(busy.values()) - tolerance <= timeline.seconds <= sum(busy.values()) + tolerance


@given(problem=problems())
def test_lanes_that_run_for_real_come_to_the_end_too(problem):
    """Threads pick their own order within what the list allows; every slot still has one tenant."""
    schedule = build_schedule(problem.plan, problem.profile, problem.workload)
    with Lanes(torch.device("cpu")) as lanes:
        done = []
        timeline = lanes.execute(schedule, dict.fromkeys(Op, lambda task: done.append(task.index)))
    assert sorted(done) == list(range(len(schedule.tasks)))
    assert len(timeline.spans) == len(done)


def test_lanes_overlap_and_wait():
    spans = spans_of(
        (Op.FORWARD, 2.0, ()),
        (Op.UPLOAD, 20.0, ()),
        (Op.OFFLOAD, 10.0, (0,)),
        (Op.FORWARD, 1.0, (2,)),
        (Op.UPLOAD, 40.0, ()),
        (Op.UPDATE, 10.0, (1,)),
    )
    assert spans == [(0, 2), (0, 1), (2, 3), (3, 4), (1, 3), (1, 3)]


def test_reading_and_writing_share_the_drives():
    """Alone 10 bytes a second each; together 10 in all. The reader has 5 a second until the writer is through."""
    reader, writer = spans_of((Op.READ_STATES, 100.0, ()), (Op.WRITE_STATES, 20.0, ()))
    assert writer == pytest.approx((0, 4))
    assert reader == pytest.approx((0, 12))


def test_where_the_processor_computes_its_lanes_share_it():
    """Two at once take twice as long; drives and the processor do not slow each other down."""
    shared = evolve(SLOW, cpu_computes=True)
    tasks = ((Op.FORWARD, 2.0, ()), (Op.UPDATE, 5.0, ()), (Op.READ_STATES, 20.0, ()))
    assert spans_of(*tasks) == [(0, 2), (0, 1), (0, 2)]
    assert spans_of(*tasks, machine=shared) == [(0, 3), (0, 2), (0, 2)]


def test_copies_take_their_part_of_the_memory_from_updates():
    """Of 40 bytes a second the upload takes 20 for two seconds: the update has half of its rate, then all of it."""
    narrow = evolve(SLOW, memory_bytes_per_second=40.0)
    tasks = ((Op.UPLOAD, 40.0, ()), (Op.UPDATE, 10.0, ()))
    assert spans_of(*tasks) == [(0, 2), (0, 2)]
    assert spans_of(*tasks, machine=narrow) == [(0, 2), (0, 3)]


def test_copies_leave_a_part_to_updates():
    narrow = evolve(SLOW, memory_bytes_per_second=1.0)
    tasks = ((Op.UPLOAD, 400.0, ()), (Op.UPDATE, 5.0, ()))
    assert spans_of(*tasks, machine=narrow) == [(0, 20), (0, 1 / LEAST_SHARE)]


def test_work_of_nothing_takes_no_time():
    assert spans_of((Op.NORM, 0.0, ()), (Op.UPDATE, 5.0, (0,))) == [(0, 0), (0, 1)]


def test_tasks_that_wait_for_each_other_are_refused():
    with pytest.raises(RuntimeError, match="wait for each other"):
        spans_of((Op.FORWARD, 1.0, (1,)), (Op.FORWARD, 1.0, ()))


@given(problem=problems())
def test_a_grade_is_the_simulation_and_the_schedule_s_bytes(problem):
    schedule = build_schedule(problem.plan, problem.profile, problem.workload)
    grade = evaluate(problem.plan, problem.profile, problem.workload, PLENTY)
    assert isinstance(grade, Evaluation)
    assert grade.feasible
    assert grade.seconds == simulate(schedule, problem.profile.machine).seconds
    assert grade.peak_bytes == {tier: schedule.bytes_on(tier) for tier in Tier}
    assert require_feasible(problem.plan, problem.profile, problem.workload, PLENTY) is problem.plan


@pytest.mark.parametrize("tier", list(Tier))
@given(problem=problems())
def test_a_byte_too_few_is_infeasible_and_the_error_says_what_to_do(tier, problem):
    needed = evaluate(problem.plan, problem.profile, problem.workload, PLENTY).peak_bytes
    assume(needed[tier])
    exact = {f"{name}_bytes": needed[name] for name in Tier}
    assert evaluate(problem.plan, problem.profile, problem.workload, Budget(**exact)).feasible
    short = Budget(**{**exact, f"{tier}_bytes": needed[tier] - 1})
    (shortfall,) = evaluate(problem.plan, problem.profile, problem.workload, short).shortfalls
    assert (shortfall.tier, shortfall.needed_bytes, shortfall.available_bytes) == (tier, needed[tier], needed[tier] - 1)
    with pytest.raises(PlanError) as raised:
        require_feasible(problem.plan, problem.profile, problem.workload, short)
    message = str(raised.value)
    assert message.startswith("planner 'any': the plan needs ")
    assert f" on {tier}, 1 B more than the " in message
    assert ("durability: none" in message) == (tier is Tier.SSD and problem.workload.versions > 1)
    remedy = {Tier.GPU: "data.sequence_length", Tier.HOST: "states on ssd", Tier.SSD: "storage.directories"}[tier]
    assert remedy in message
    if tier is Tier.GPU:
        assert ("run.micro_batch_size" in message) == (problem.profile.micro_batch_size > 1)
        assert ("run.batch_size" in message) == (problem.workload.micro_batches > 1)
        there = any(Tier.GPU in (b.states, b.inputs, *b.keep.values()) for b in problem.plan.blocks)
        assert ("keep less on the GPU" in message) == there
    assert "\n" not in message


@given(problem=problems())
def test_a_plan_of_another_model_is_refused(problem):
    blocks = problem.plan.blocks
    fault = "^planner 'any' made a plan that cannot be carried out: "
    with pytest.raises(
        InvalidPlanError, match=rf"{fault}it is of {len(blocks) + 1} blocks, and the model has {len(blocks)}$"
    ):
        check_plan(Plan(planner="any", blocks=(*blocks, blocks[0])), problem.profile, problem.workload)
    stranger = evolve(blocks[1], keep={**blocks[1].keep, 1000: Tier.GPU})
    with pytest.raises(InvalidPlanError, match=rf"{fault}block layers\.0 has no candidate 1000$"):
        check_plan(Plan(planner="any", blocks=(blocks[0], stranger, *blocks[2:])), problem.profile, problem.workload)


@given(problem=problems())
def test_a_plan_that_defers_where_that_may_not_be_is_refused(problem):
    first, *others = problem.plan.blocks
    plan = evolve(problem.plan, blocks=(evolve(first, deferred=True), *others))
    if problem.workload.may_defer:
        check_plan(plan, problem.profile, problem.workload)
        return
    message = rf" block prelude: its update is deferred, which run\.update: {problem.workload.update} "
    with pytest.raises(InvalidPlanError, match=message):
        evaluate(plan, problem.profile, problem.workload, PLENTY)
