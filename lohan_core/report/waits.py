"""What each lane did with its time: worked, waited for another lane, or had nothing left to do. Pure arithmetic.

[Note: what was waited for] A lane is idle before a task T because a task D that T comes after is not finished. While
D's lane works, on D or on what comes before D, that lane is what is waited for. While D's lane is idle too, it waits in
turn before one of its own tasks, and what *that* one waits for is the answer. Tasks only ever come after earlier ones
of the list, so going through the list finds every answer ready.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from attrs import define, field, frozen

from lohan_core.schedule.task import Lane, Task
from lohan_core.schedule.timeline import Span, Timeline

__all__ = ["Wait", "find_waits", "waited_seconds"]


@frozen
class Wait:
    """A time in which ``lane`` was idle, in seconds from the step's start.

    ``cause`` is the lane that was waited for; None where everything that was needed was there: the time that it took to
    notice, or, at the end of the step, that nothing was left to do.
    """

    lane: Lane
    start: float
    end: float
    cause: Lane | None


@define
class _LaneTime:
    """A lane's time so far, without holes: what it did from each border to the next, and from the last to ``until``.

    What a lane did is the lane that it kept others waiting for: itself while it worked.
    """

    lane: Lane
    borders: list[float] = field(factory=list)
    causes: list[Lane | None] = field(factory=list)
    until: float = 0.0

    def add(self, until: float, cause: Lane | None) -> None:
        """Go on to ``until``; what came before stays as it is."""
        if until <= self.until:
            return
        if not self.causes or self.causes[-1] is not cause:
            self.borders.append(self.until)
            self.causes.append(cause)
        self.until = until

    def pieces(self, start: float, end: float) -> Iterator[tuple[float, Lane | None]]:
        """Cut a time up by what this lane did: the end of each piece, and its cause."""
        place = max(0, bisect_right(self.borders, start) - 1)
        while start < end:
            border = self.borders[place + 1] if place + 1 < len(self.borders) else self.until
            start = min(end, border)
            yield start, self.causes[place]
            place += 1


def find_waits(timeline: Timeline) -> tuple[Wait, ...]:
    """Find every time in which a lane that has tasks was idle, in order of lane and start."""
    times: Mapping[Lane, _LaneTime] = {lane: _LaneTime(lane) for lane in Lane}
    for task, span in zip(timeline.schedule.tasks, timeline.spans, strict=True):
        own = times[task.lane]
        _wait_for(task, span, own, timeline, times)
        own.add(span.end, task.lane)
    end = timeline.seconds
    for time in times.values():
        if time.causes:
            time.add(end, None)
    return tuple(wait for time in times.values() for wait in _idle(time))


def waited_seconds(waits: Sequence[Wait]) -> dict[Lane, dict[Lane | None, float]]:
    """Add up each lane's waits by what was waited for."""
    total: dict[Lane, dict[Lane | None, float]] = {lane: {} for lane in Lane}
    for wait in waits:
        causes = total[wait.lane]
        causes[wait.cause] = causes.get(wait.cause, 0.0) + wait.end - wait.start
    return total


def _wait_for(task: Task, span: Span, own: _LaneTime, timeline: Timeline, times: Mapping[Lane, _LaneTime]) -> None:
    """Explain the time between the lane's last task and this one: see [Note: what was waited for]."""
    needed = sorted((timeline.spans[index].end, index) for index in task.after)
    for ready, index in needed[-1:]:
        other = times[timeline.schedule.tasks[index].lane]
        if other is not own:
            for until, cause in other.pieces(own.until, min(ready, span.start)):
                own.add(until, cause)
    own.add(span.start, None)


def _idle(time: _LaneTime) -> Iterator[Wait]:
    for (start, end), cause in zip(pairwise([*time.borders, time.until]), time.causes, strict=True):
        if cause is not time.lane:
            yield Wait(time.lane, start, end, cause)
