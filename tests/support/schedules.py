"""Schedules by hand: a few tasks, and when each begins and ends."""

from __future__ import annotations

from lohan_core.schedule.task import Op, Schedule, Task
from lohan_core.schedule.timeline import Span, Timeline


def timeline_of(*tasks: tuple[Op, float, float] | tuple[Op, float, float, tuple[int, ...]]) -> Timeline:
    """Make a timeline of tasks of (op, start, end, after)."""
    return Timeline(
        schedule=Schedule(
            tasks=tuple(
                Task(index=index, op=op, block=index, work=end - start, after=after[0] if after else ())
                for index, (op, start, end, *after) in enumerate(tasks)
            ),
            pools={},
        ),
        spans=tuple(Span(start, end) for _, start, end, *_ in tasks),
    )
