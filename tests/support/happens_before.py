"""Which tasks of a schedule are surely finished before which begin, whatever the lanes' speeds."""

from __future__ import annotations

from collections import defaultdict

from lohan_core.schedule.task import Lane, Op, Schedule, Slot, Task

WRITES = {
    "staging": {Op.FETCH_WEIGHTS},
    "weights": {Op.UPLOAD_WEIGHTS},
    "spill": {Op.OFFLOAD, Op.UNSPILL},
    "gradients": {Op.TURN, Op.BACKWARD},
    "sums": {Op.TURN, Op.BACKWARD},
    "gradient_chunks": {Op.DOWNLOAD_GRADIENT, Op.FETCH_GRADIENT},
    "records": {Op.READ_STATES, Op.UPDATE},
}
"""Pool (of layers or of the edges) to the tasks that change a slot which they touch; the others read it."""


def writes(task: Task, slot: Slot) -> bool:
    """Tell whether a task changes a slot that it touches."""
    return task.op in WRITES[slot.pool.removeprefix("edge_")]


class HappensBefore:
    """The order that dependencies and lanes enforce, as one set of bits per task."""

    def __init__(self, schedule: Schedule) -> None:
        self._before: list[int] = []
        last: dict[Lane, int] = {}
        for task in schedule.tasks:
            direct = {*task.after} | ({last[task.lane]} if task.lane in last else set())
            bits = 0
            for index in direct:
                bits |= self._before[index] | 1 << index
            self._before.append(bits)
            last[task.lane] = task.index

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
