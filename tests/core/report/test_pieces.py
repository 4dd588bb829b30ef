from __future__ import annotations

from hypothesis import given
from schedule_problems import problems
from schedules import timeline_of

from lohan_core.report.pieces import PIECES_PER_STEP, cut_into_pieces
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Lane, Op

FINEST = 1.0
"""Of a step of as many seconds as it has pieces."""


def pieces_of(*tasks):
    (row,) = cut_into_pieces(timeline_of(*tasks), PIECES_PER_STEP * FINEST)
    return [(piece.start, piece.end, piece.op, piece.tasks) for piece in row.pieces]


def test_what_can_be_seen_is_drawn_alone():
    assert pieces_of((Op.FORWARD, 0, 2), (Op.BACKWARD, 2, 4)) == [(0, 2, Op.FORWARD, 1), (2, 4, Op.BACKWARD, 1)]


def test_short_neighbours_are_drawn_as_what_takes_most_of_their_time():
    assert pieces_of((Op.UPDATE, 0, 0.2), (Op.NORM, 0.2, 0.6), (Op.UPDATE, 0.6, 0.9), (Op.UPDATE, 3, 3.1)) == [
        (0, 0.9, Op.UPDATE, 3),
        (3, 3.1, Op.UPDATE, 1),
    ]


def test_waits_too_short_to_be_seen_are_left_out():
    rows = cut_into_pieces(
        timeline_of((Op.UPLOAD, 0, 0.5), (Op.FORWARD, 0.5, 4, (0,)), (Op.DOWNLOAD_GRADIENT, 4, 5, (1,))),
        PIECES_PER_STEP * FINEST,
    )
    waits = {row.lane: [(wait.start, wait.end, wait.cause) for wait in row.waits] for row in rows}
    assert waits == {Lane.GPU: [(4, 5, None)], Lane.H2D: [(0.5, 5, None)], Lane.D2H: [(0, 4, Lane.GPU)]}


def test_short_waits_that_follow_each_other_are_drawn_as_what_takes_most_of_them():
    turns = [
        (Op.UPLOAD, 0, 0.6),
        (Op.FORWARD, 0.6, 0.9, (0,)),
        (Op.UPLOAD, 0.9, 1.5, (1,)),
        (Op.FORWARD, 1.5, 1.8, (2,)),
    ]
    rows = cut_into_pieces(timeline_of(*turns, (Op.OFFLOAD, 1.8, 4, (3,))), PIECES_PER_STEP * FINEST)
    (d2h,) = [row for row in rows if row.lane is Lane.D2H]
    assert [(wait.start, wait.end, wait.cause) for wait in d2h.waits] == [(0, 1.5, Lane.H2D)]


@given(problem=problems())
def test_every_task_is_drawn_in_few_pieces_that_do_not_overlap(problem):
    timeline = simulate(build_schedule(problem.plan, problem.profile, problem.workload), problem.profile.machine)
    rows = cut_into_pieces(timeline, timeline.seconds)
    assert sum(piece.tasks for row in rows for piece in row.pieces) == len(timeline.schedule.tasks)
    for row in rows:
        assert len(row.pieces) <= 2 * PIECES_PER_STEP + 1
        ends = [0.0, *(piece.end for piece in row.pieces)]
        assert all(piece.start >= end for piece, end in zip(row.pieces, ends, strict=False))
        assert all(piece.first.lane is row.lane for piece in row.pieces)
        assert sum(piece.end - piece.start for piece in row.pieces) >= 0.999 * timeline.busy_seconds()[row.lane]
