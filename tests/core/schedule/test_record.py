from __future__ import annotations

import json

import pytest
from hypothesis import given
from schedule_problems import problems
from schedules import timeline_of

from lohan_core.errors import DataError
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.record import StepRecord
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Op
from lohan_core.schedule.timeline import Span, Timeline

TIMELINE = timeline_of((Op.UPLOAD_WEIGHTS, 0, 0.25), (Op.FORWARD, 0.25, 1, (0,)))
RECORD = StepRecord(step=3, predicted=TIMELINE, measured=TIMELINE)


@given(problem=problems())
def test_a_record_is_read_as_it_was_written(problem):
    predicted = simulate(build_schedule(problem.plan, problem.profile, problem.workload), problem.profile.machine)
    measured = Timeline(schedule=predicted.schedule, spans=tuple(Span(s.start + 1, s.end + 2) for s in predicted.spans))
    record = StepRecord(step=7, predicted=predicted, measured=measured)
    read = StepRecord.from_json(record.to_json())
    assert read.step == 7
    assert read.predicted.schedule == read.measured.schedule == predicted.schedule
    for ours, theirs in ((read.predicted, predicted), (read.measured, measured)):
        assert all(
            abs(one.start - other.start) <= 1e-9 and abs(one.end - other.end) <= 1e-9
            for one, other in zip(ours.spans, theirs.spans, strict=True)
        )


def test_a_record_is_compact():
    tasks = [(Op.READ_STATES, number, number + 0.5, (number - 1,) if number else ()) for number in range(1000)]
    timeline = timeline_of(*tasks)
    assert len(StepRecord(step=1, predicted=timeline, measured=timeline).to_json()) < 100 * len(tasks)


def changed(**changes):
    return json.dumps({**json.loads(RECORD.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "not a step's record"),
        ("[]", "not a step's record"),
        ('{"format": 99}', "format 99, this version of LoHan reads 1"),
        (changed(measured_nanoseconds=[[0], [1]]), "1 times for 2 tasks"),
        (changed(measured_nanoseconds=[[0, 1], [1]]), "not a step's record"),
        (changed(schedule={}), "KeyError"),
        (RECORD.to_json().replace('"forward"', '"fly"'), "fly"),
    ],
)
def test_another_file_is_refused_by_name(text, says):
    with pytest.raises(DataError, match="some file: ") as caught:
        StepRecord.from_json(text, "some file")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
