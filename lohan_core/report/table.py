"""A step's record as text: what each lane did, predicted beside measured."""

from __future__ import annotations

from lohan_core.report.waits import find_waits, waited_seconds
from lohan_core.schedule.record import StepRecord
from lohan_core.schedule.task import Lane
from lohan_core.schedule.timeline import Timeline
from lohan_core.text import columns
from lohan_core.units import format_seconds

__all__ = ["render_record"]


def render_record(record: StepRecord) -> str:
    """Write how long each lane worked and what it waited for, longest first."""
    predicted, measured = record.predicted, record.measured
    heading = (
        f"step {record.step}: predicted {format_seconds(predicted.seconds)}, "
        f"measured {format_seconds(measured.seconds)}, {len(measured.schedule.tasks)} tasks"
    )
    rows = [["lane", "predicted", "measured"]]
    foreseen, busy = predicted.busy_seconds(), measured.busy_seconds()
    used = {task.lane for task in measured.schedule.tasks}
    rows += [[lane.value, format_seconds(foreseen[lane]), format_seconds(busy[lane])] for lane in Lane if lane in used]
    waits = _waits(measured)
    return "\n".join([heading, "", columns(rows), *(["", *waits] if waits else [])])


def _waits(timeline: Timeline) -> list[str]:
    lines = []
    for lane, causes in waited_seconds(find_waits(timeline)).items():
        longest = sorted(((seconds, cause) for cause, seconds in causes.items() if cause is not None), reverse=True)
        if longest:
            waited = ", ".join(f"{cause} {format_seconds(seconds)}" for seconds, cause in longest)
            lines.append(f"{lane} waited for {waited}")
    return lines
