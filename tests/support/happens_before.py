"""Which tasks of a schedule are surely finished before which begin, whatever the lanes' speeds."""

from __future__ import annotations

from collections import defaultdict

from lohan_core.schedule.task import DRIVE_LANES, TRANSFERS_IN_FLIGHT, Lane, Op, Schedule, Slot, Task

WRITES = {
    "staging": {Op.FETCH_WEIGHTS},
    "weights": {Op.UPLOAD_WEIGHTS, Op.TURN, Op.BACKWARD},  # by the last of several micro-batches, with their G16
    "spill": {Op.OFFLOAD, Op.UNSPILL},
    "gradients": {Op.TURN, Op.BACKWARD},
    "gradient_chunks": {Op.DOWNLOAD_GRADIENT, Op.FETCH_GRADIENT},
    "records": {Op.READ_STATES, Op.UPDATE},
}
"""Pool (of layers or of the edges) to the tasks that change a slot which they touch; the others read it."""


def writes(task: Task, slot: Slot) -> bool:
    """Tell whether a task changes a slot that it touches."""
    return task.op in WRITES[slot.pool.removeprefix("edge_").removeprefix("owner_")]


class HappensBefore:
    """The order that dependencies and lanes enforce, as one set of bits per task.

    A lane finishes its tasks in order. It begins with one when the task before is finished, or, for transfers of the
    drives, the last but one.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._before: list[int] = []
        finished: list[int] = []
        lanes: dict[Lane, list[int]] = {lane: [] for lane in Lane}
        for task in schedule.tasks:
            earlier = lanes[task.lane]
            in_flight = TRANSFERS_IN_FLIGHT if task.lane in DRIVE_LANES else 1
            waits_for = list(task.after)
            if len(earlier) >= in_flight:
                waits_for.append(earlier[-in_flight])
            before = 0
            for index in waits_for:
                before |= finished[index]
            self._before.append(before)
            finished.append(before | 1 << task.index | (finished[earlier[-1]] if earlier else 0))
            earlier.append(task.index)

    def __call__(self, first: Task, second: Task) -> bool:
        """Tell whether ``first`` is finished before ``second`` begins."""
        return bool(self._before[second.index] >> first.index & 1)


def tenures(schedule: Schedule) -> dict[Slot, list[list[Task]]]:
    """Part each slot's tasks into tenures: from the task that takes it to the one that gives it back.

    Fails where a slot is touched by nobody's leave, taken twice, or never given back.
    """
    found: dict[Slot, list[list[Task]]] = defaultdict(list)
    held: set[Slot] = set()
    for task in schedule.tasks:
        for slot in task.takes:
            assert slot not in held, f"{task} takes a slot that is held"
            held.add(slot)
            found[slot].append([])
        for slot in task.touches:
            assert slot in held, f"{task} touches {slot}, which is free"
            found[slot][-1].append(task)
        assert {*task.takes, *task.gives} <= {*task.touches}
        for slot in task.gives:
            held.remove(slot)
    assert not held, f"never given back: {held}"
    return dict(found)
