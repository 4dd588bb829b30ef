"""The trace format's own rules: complete events, named threads, and no two events of one thread at a time."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from schedule_problems import problems
from schedules import timeline_of

from lohan_core.report.perfetto import to_perfetto
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Lane, Op


def events_of(**timelines):
    return json.loads(to_perfetto(timelines))["traceEvents"]


def test_tasks_and_waits_are_events_in_microseconds():
    timeline = timeline_of((Op.UPLOAD_WEIGHTS, 0, 0.5), (Op.FORWARD, 0.5, 2, (0,)))
    events = [event for event in events_of(predicted=timeline) if event["ph"] == "X"]
    upload, forward, wait = events
    assert (upload["name"], upload["ts"], upload["dur"], upload["tid"]) == ("upload_weights", 0, 5e5, 1)
    assert upload["args"] == {"task": 0, "block": 0, "bytes": 0.5, "after": []}
    assert (forward["name"], forward["ts"], forward["dur"], forward["tid"]) == ("forward", 5e5, 1.5e6, 0)
    assert forward["args"] == {"task": 1, "block": 1, "predicted_seconds": 1.5, "after": [0]}
    assert (wait["name"], wait["cat"], wait["ts"], wait["dur"], wait["tid"]) == ("waits for h2d", "wait", 0, 5e5, 0)


def test_processes_and_threads_are_named():
    timeline = timeline_of((Op.FORWARD, 0, 1))
    named = [event for event in events_of(predicted=timeline, measured=timeline) if event["ph"] == "M"]
    processes = {event["pid"]: event["args"]["name"] for event in named if event["name"] == "process_name"}
    assert processes == {1: "predicted", 2: "measured"}
    threads = [event["args"]["name"] for event in named if event["name"] == "thread_name" and event["pid"] == 2]
    assert threads == [lane.value for lane in Lane]


@given(problem=problems())
def test_every_task_is_one_event_and_no_thread_does_two_things_at_once(problem):
    timeline = simulate(build_schedule(problem.plan, problem.profile, problem.workload), problem.profile.machine)
    events = [event for event in events_of(predicted=timeline) if event["ph"] == "X"]
    assert [event["args"]["task"] for event in events if event["cat"] == "task"] == list(
        range(len(timeline.schedule.tasks))
    )
    for thread in range(len(Lane)):
        lasting = [event for event in events if event["tid"] == thread and event["dur"] > 0]
        own = sorted((event["ts"], event["ts"] + event["dur"]) for event in lasting)
        for (_, end), (start, _) in pairwise(own):
            assert start >= end or start == pytest.approx(end, rel=1e-9)
