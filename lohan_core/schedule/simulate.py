"""``simulate``: a schedule carried out on a machine that is only known by its rates.

Each lane works through its own tasks in the list's order, one at a time; a task begins when its lane is free and what
it comes after is finished. Reading and writing drives share the bandwidth of the drives while both are active.
Where there is no GPU, the lanes that compute and copy share the processor; beside one, copies take from updates' share
of the memory's bandwidth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from attrs import define

from lohan_core.profile import Machine
from lohan_core.schedule.task import Lane, Schedule, Task
from lohan_core.schedule.timeline import Span, Timeline

__all__ = ["PROCESSOR_LANES", "simulate"]

PROCESSOR_LANES = (Lane.GPU, Lane.H2D, Lane.D2H, Lane.CPU)
"""What the processor does where it computes: each of these lanes could fill all of its cores."""

COPY_LANES = (Lane.H2D, Lane.D2H, Lane.SSD_READ, Lane.SSD_WRITE)
"""What goes into and out of host memory past the processor: its updates have the rest of the memory's bandwidth."""

LEAST_SHARE = 0.25
"""Of that bandwidth, what copies always leave to updates."""


@define
class _Queue:
    """A lane's tasks in order: one in progress, with what is left of its work, and those to come."""

    lane: Lane
    ahead: deque[Task]
    task: Task | None = None
    left: float = 0.0
    start: float = 0.0
    awaited: int = -1
    """A task that the next one comes after, and that was not finished when last looked for; -1: not looked for yet."""

    def begin(self, finished: Sequence[bool], now: float) -> None:
        """Begin with the next task if what it comes after is finished."""
        if not self.ahead or (self.awaited >= 0 and not finished[self.awaited]):
            return
        # The latest first, which usually finishes last: the norm comes after thousands of tasks.
        for index in reversed(self.ahead[0].after):
            if not finished[index]:
                self.awaited = index
                return
        self.awaited = -1
        self.task = self.ahead.popleft()
        self.left, self.start = self.task.work, now


def simulate(schedule: Schedule, machine: Machine) -> Timeline:
    """Predict when each task begins and ends.

    ``gpu`` tasks carry seconds; all other work is divided by the lane's rate in ``machine``.
    """
    queues = {lane: _Queue(lane, deque()) for lane in Lane}
    for task in schedule.tasks:
        queues[task.lane].ahead.append(task)
    finished = [False] * len(schedule.tasks)
    spans = [Span(0.0, 0.0)] * len(schedule.tasks)
    rates_of: dict[tuple[Lane, ...], dict[Lane, float]] = {}
    now = 0.0
    while True:
        for queue in queues.values():
            if queue.task is None:
                queue.begin(finished, now)
        active = [queue for queue in queues.values() if queue.task is not None]
        if not active:
            break
        lanes = tuple([queue.lane for queue in active])
        if lanes not in rates_of:
            rates_of[lanes] = _rates(lanes, machine)
        rates = rates_of[lanes]
        elapsed = min([queue.left / rates[queue.lane] for queue in active])
        now += elapsed
        for queue in active:
            queue.left -= elapsed * rates[queue.lane]
            done = queue.task
            if done is not None and queue.left <= 1e-9 * max(done.work, 1e-9):
                finished[done.index] = True
                spans[done.index] = Span(queue.start, now)
                queue.task = None
    if not all(finished):
        raise RuntimeError("the schedule cannot be carried out: tasks wait for each other")
    return Timeline(schedule=schedule, spans=tuple(spans))


def _rates(active: Collection[Lane], machine: Machine) -> dict[Lane, float]:
    """Rates of the active lanes, in their units a second."""
    read, write = machine.ssd_read_bytes_per_second, machine.ssd_write_bytes_per_second
    if Lane.SSD_READ in active and Lane.SSD_WRITE in active:
        share = machine.ssd_mixed_bytes_per_second / (read + write)
        read, write = read * share, write * share
    sharing = sum(lane in active for lane in PROCESSOR_LANES) if machine.cpu_computes else 1
    processor = 1 / max(1, sharing)
    rates = {
        Lane.GPU: processor,
        Lane.H2D: processor * machine.h2d_bytes_per_second,
        Lane.D2H: processor * machine.d2h_bytes_per_second,
        Lane.SSD_READ: read,
        Lane.SSD_WRITE: write,
    }
    copied = sum(rates[lane] for lane in COPY_LANES if lane in active)
    left = 1.0 if machine.memory_bytes_per_second is None else 1 - copied / machine.memory_bytes_per_second
    rates[Lane.CPU] = processor * max(LEAST_SHARE, left) * machine.cpu_parameters_per_second
    return rates
