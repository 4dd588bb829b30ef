"""A timeline: when each task of a schedule began and ended. Simulation and execution yield the same."""

from __future__ import annotations

from collections.abc import Collection

from attrs import frozen

from lohan_core.schedule.task import Lane, Schedule

__all__ = ["Span", "Timeline"]


@frozen
class Span:
    """One task's time on its lane, in seconds from the step's start."""

    start: float
    end: float


@frozen(kw_only=True)
class Timeline:
    """One span per task of the schedule, in its order. See :mod:`lohan_core.schedule.record` for its file."""

    schedule: Schedule
    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """The step's length."""
        return max((span.end for span in self.spans), default=0.0)

    def busy_seconds(self) -> dict[Lane, float]:
        """Time that each lane spent on its tasks."""
        busy = dict.fromkeys(Lane, 0.0)
        for task, span in zip(self.schedule.tasks, self.spans, strict=True):
            busy[task.lane] += span.end - span.start
        return busy

    def occupied_seconds(self, lanes: Collection[Lane]) -> float:
        """Time in which at least one of the lanes is at work."""
        spans = sorted(
            (span.start, span.end)
            for task, span in zip(self.schedule.tasks, self.spans, strict=True)
            if task.lane in lanes
        )
        total = until = 0.0
        for start, end in spans:
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    def work(self) -> dict[Lane, float]:
        """Bytes, parameters or predicted seconds that each lane moved."""
        total = dict.fromkeys(Lane, 0.0)
        for task in self.schedule.tasks:
            total[task.lane] += task.work
        return total
