"""A timeline as it is drawn: tasks too short to be seen are drawn together. Pure arithmetic.

A step of a large model has tens of thousands of tasks, and a page shows some two thousand pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from attrs import frozen

from lohan_core.report.waits import Wait, find_waits
from lohan_core.schedule.task import Lane, Op, Task
from lohan_core.schedule.timeline import Span, Timeline

__all__ = ["LanePieces", "Piece", "cut_into_pieces"]

PIECES_PER_STEP = 1500
"""What is shorter than this part of a step is drawn together with its neighbours."""


@frozen
class Piece:
    """Tasks of one lane that are drawn as one, in seconds from the step's start.

    ``op`` is what most of their time goes to; ``first`` the first of them.
    """

    start: float
    end: float
    op: Op
    tasks: int
    first: Task


@frozen(kw_only=True)
class LanePieces:
    """One lane's row: its tasks, and what it waits for between them, as far as that is long enough to be seen."""

    lane: Lane
    pieces: tuple[Piece, ...]
    waits: tuple[Wait, ...]


def cut_into_pieces(timeline: Timeline, step_seconds: float) -> tuple[LanePieces, ...]:
    """Cut each lane that has tasks into what is drawn.

    Args:
        timeline: the step.
        step_seconds: what the page's width stands for: the longest of the steps drawn above each other.
    """
    finest = step_seconds / PIECES_PER_STEP
    waits = find_waits(timeline)
    rows = []
    for lane in Lane:
        tasks = [
            (task, span)
            for task, span in zip(timeline.schedule.tasks, timeline.spans, strict=True)
            if task.lane is lane
        ]
        if tasks:
            rows.append(
                LanePieces(
                    lane=lane,
                    pieces=tuple(_merge(group) for group in _groups(tasks, finest)),
                    waits=tuple(_visible([wait for wait in waits if wait.lane is lane], finest)),
                )
            )
    return tuple(rows)


def _groups(tasks: Sequence[tuple[Task, Span]], finest: float) -> Iterable[list[tuple[Task, Span]]]:
    """Group neighbours that together are shorter than ``finest``; what is longer is a group of its own."""
    group: list[tuple[Task, Span]] = []
    for task, span in tasks:
        if group and span.end - group[0][1].start > finest:
            yield group
            group = []
        group.append((task, span))
    yield group


def _merge(group: Sequence[tuple[Task, Span]]) -> Piece:
    seconds: defaultdict[Op, float] = defaultdict(float)
    for task, span in group:
        seconds[task.op] += span.end - span.start
    first, _ = group[0]
    return Piece(
        start=group[0][1].start,
        end=max(span.end for _, span in group),
        op=max(seconds, key=seconds.__getitem__),
        tasks=len(group),
        first=first,
    )


def _visible(waits: Sequence[Wait], finest: float) -> Iterable[Wait]:
    """Draw waits that follow each other as one, of the cause that most of it had, until it can be seen."""
    group: list[Wait] = []
    for wait in waits:
        if group and (wait.start > group[-1].end or group[-1].end - group[0].start >= finest):
            yield from _as_one(group, finest)
            group = []
        group.append(wait)
    yield from _as_one(group, finest)


def _as_one(group: Sequence[Wait], finest: float) -> Iterable[Wait]:
    if not group or group[-1].end - group[0].start < finest:
        return
    seconds: defaultdict[Lane | None, float] = defaultdict(float)
    for wait in group:
        seconds[wait.cause] += wait.end - wait.start
    yield Wait(group[0].lane, group[0].start, group[-1].end, max(seconds, key=seconds.__getitem__))
