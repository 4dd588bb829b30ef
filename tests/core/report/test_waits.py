"""Every idle time is explained: by hand for each reason, and for any schedule by what simulation must have done."""

from __future__ import annotations

import pytest
from hypothesis import given
from schedule_problems import problems
from schedules import timeline_of

from lohan_core.report.waits import Wait, find_waits, waited_seconds
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Lane, Op


def test_a_lane_waits_for_the_lane_of_the_task_that_it_comes_after():
    timeline = timeline_of((Op.UPLOAD_WEIGHTS, 0, 3), (Op.FORWARD, 3, 5, (0,)))
    assert find_waits(timeline) == (Wait(Lane.GPU, 0, 3, Lane.H2D), Wait(Lane.H2D, 3, 5, None))


def test_who_waits_for_one_that_waits_too_waits_for_what_that_one_waits_for():
    timeline = timeline_of((Op.FETCH_WEIGHTS, 0, 2), (Op.UPLOAD_WEIGHTS, 2, 3, (0,)), (Op.FORWARD, 3, 4, (1,)))
    assert [wait for wait in find_waits(timeline) if wait.lane is Lane.GPU] == [
        Wait(Lane.GPU, 0, 2, Lane.SSD_READ),
        Wait(Lane.GPU, 2, 3, Lane.H2D),
    ]


def test_a_lane_that_is_busy_with_other_things_is_what_is_waited_for():
    other, needed = (Op.OFFLOAD, 0, 2), (Op.DOWNLOAD_GRADIENT, 2, 3)
    timeline = timeline_of(other, needed, (Op.UPDATE, 3, 4, (1,)))
    assert Wait(Lane.CPU, 0, 3, Lane.D2H) in find_waits(timeline)


def test_of_several_tasks_the_last_to_end_is_waited_for():
    timeline = timeline_of((Op.READ_STATES, 0, 1), (Op.DOWNLOAD_GRADIENT, 0, 2), (Op.UPDATE, 2, 3, (0, 1)))
    assert [wait.cause for wait in find_waits(timeline) if wait.lane is Lane.CPU] == [Lane.D2H]


def test_what_passes_when_all_is_ready_is_nobodys_fault():
    timeline = timeline_of((Op.UPLOAD_WEIGHTS, 0, 1), (Op.FORWARD, 1.5, 2, (0,)), (Op.FORWARD, 2.25, 3))
    assert [wait for wait in find_waits(timeline) if wait.lane is Lane.GPU] == [
        Wait(Lane.GPU, 0, 1, Lane.H2D),
        Wait(Lane.GPU, 1, 1.5, None),
        Wait(Lane.GPU, 2, 2.25, None),
    ]


def test_a_clock_that_sees_a_task_begin_too_soon_explains_nothing_twice():
    timeline = timeline_of((Op.UPLOAD_WEIGHTS, 0, 2), (Op.FORWARD, 1.5, 3, (0,)), (Op.FORWARD, 2.75, 4))
    assert find_waits(timeline) == (Wait(Lane.GPU, 0, 1.5, Lane.H2D), Wait(Lane.H2D, 2, 4, None))


def test_waits_are_added_up_by_cause():
    timeline = timeline_of((Op.UPLOAD, 0, 1), (Op.FORWARD, 1, 2, (0,)), (Op.UPLOAD, 2, 4), (Op.FORWARD, 4, 5, (2,)))
    waited = waited_seconds(find_waits(timeline))
    assert waited[Lane.GPU] == {Lane.H2D: 3}
    assert waited[Lane.CPU] == {}


@given(problem=problems())
def test_in_a_simulation_every_lane_works_or_waits_for_one_that_works(problem):
    timeline = simulate(build_schedule(problem.plan, problem.profile, problem.workload), problem.profile.machine)
    waits = find_waits(timeline)
    tasks = list(zip(timeline.schedule.tasks, timeline.spans, strict=True))
    busy = timeline.busy_seconds()
    for lane in {task.lane for task, _ in tasks}:
        waited = sum(wait.end - wait.start for wait in waits if wait.lane is lane)
        assert busy[lane] + waited == pytest.approx(timeline.seconds, rel=1e-6, abs=1e-12)
    for wait in waits:
        middle = (wait.start + wait.end) / 2
        assert not [task for task, span in tasks if task.lane is wait.lane and span.start < middle < span.end]
        if wait.cause is None:
            last = max(span.end for task, span in tasks if task.lane is wait.lane)
            assert wait.start >= last - 1e-12, "nothing was missing, and yet the lane did not go on"
        else:
            assert [task for task, span in tasks if task.lane is wait.cause and span.start <= middle <= span.end]
