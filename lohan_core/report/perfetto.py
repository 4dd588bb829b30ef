"""Timelines in the trace format of Chrome and Perfetto: every task, with the tasks that it came after.

Open the file in https://ui.perfetto.dev or chrome://tracing. The format: "Trace Event Format", Google, 2016.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lohan_core.report.waits import find_waits
from lohan_core.schedule.task import Lane, Task
from lohan_core.schedule.timeline import Timeline

__all__ = ["to_perfetto"]

_WORK_UNIT: Mapping[Lane, str] = {Lane.GPU: "predicted_seconds", Lane.CPU: "parameters"}


def to_perfetto(timelines: Mapping[str, Timeline]) -> str:
    """Write timelines as processes of one trace, their lanes as threads.

    Args:
        timelines: by the name that each is to have, in the order in which they are to be shown.
    """
    events: list[dict[str, Any]] = []
    for process, (name, timeline) in enumerate(timelines.items(), start=1):
        events.append(_metadata("process_name", process, 0, name=name))
        events.append(_metadata("process_sort_index", process, 0, sort_index=process))
        for place, lane in enumerate(Lane):
            events.append(_metadata("thread_name", process, place, name=lane.value))
            events.append(_metadata("thread_sort_index", process, place, sort_index=place))
        events.extend(_tasks(process, timeline))
        events.extend(_waits(process, timeline))
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":"))


def _metadata(kind: str, process: int, thread: int, **arguments: object) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


def _tasks(process: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    order = list(Lane)
    for task, span in zip(timeline.schedule.tasks, timeline.spans, strict=True):
        yield {
            "ph": "X",
            "cat": "task",
            "name": task.op.value,
            "pid": process,
            "tid": order.index(task.lane),
            "ts": span.start * 1e6,
            "dur": (span.end - span.start) * 1e6,
            "args": _arguments(task),
        }


def _arguments(task: Task) -> dict[str, Any]:
    """Name what applies to a task, its work in its lane's unit, and the tasks that it came after."""
    places = {"block": task.block, "micro_batch": task.micro_batch, "chunk": task.chunk, "source": task.source}
    return {
        "task": task.index,
        **{name: value for name, value in places.items() if value >= 0},
        _WORK_UNIT.get(task.lane, "bytes"): task.work,
        "after": list(task.after),
    }


def _waits(process: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Waits as events of another category, on the lane's own thread: nothing else is there at that time."""
    order = list(Lane)
    for wait in find_waits(timeline):
        if wait.cause is not None:
            yield {
                "ph": "X",
                "cat": "wait",
                "name": f"waits for {wait.cause}",
                "pid": process,
                "tid": order.index(wait.lane),
                "ts": wait.start * 1e6,
                "dur": (wait.end - wait.start) * 1e6,
                "args": {},
            }
