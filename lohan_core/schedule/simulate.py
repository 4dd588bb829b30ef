"""``simulate``: a schedule carried out on a machine that is only known by its rates.

Each lane works through its own tasks in the list's order, one at a time; a task begins when its lane is free and what
it comes after is finished. Reading and writing drives share the bandwidth of the drives while both are active.
Where there is no GPU, the lanes that compute and copy share the processor; beside one, copies take from updates' share
of the memory's bandwidth.
"""

from __future__ import annotations

from collections import defaultdict, deque

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
class _Active:
    """A task in progress: what is left of its work, and when it began."""

    task: Task
    left: float
    start: float


def simulate(schedule: Schedule, machine: Machine) -> Timeline:
    """Predict when each task begins and ends.

    ``gpu`` tasks carry seconds; all other work is divided by the lane's rate in ``machine``.
    """
    waiting: dict[Lane, deque[Task]] = defaultdict(deque)
    for task in schedule.tasks:
        waiting[task.lane].append(task)
    finished = [False] * len(schedule.tasks)
    spans = [Span(0.0, 0.0)] * len(schedule.tasks)
    active: dict[Lane, _Active] = {}
    rates_of: dict[frozenset[Lane], dict[Lane, float]] = {}
    now = 0.0
    while True:
        for lane, queue in waiting.items():
            # The latest first, which usually finishes last: the norm comes after thousands of tasks.
            if lane not in active and queue and all(finished[index] for index in reversed(queue[0].after)):
                task = queue.popleft()
                active[lane] = _Active(task, task.work, now)
        if not active:
            break
        lanes = frozenset(active)
        if lanes not in rates_of:
            rates_of[lanes] = _rates(lanes, machine)
        rates = rates_of[lanes]
        elapsed = min(entry.left / rates[lane] for lane, entry in active.items())
        now += elapsed
        for lane, entry in list(active.items()):
            entry.left -= elapsed * rates[lane]
            if entry.left <= 1e-9 * max(entry.task.work, 1e-9):
                finished[entry.task.index] = True
                spans[entry.task.index] = Span(entry.start, now)
                del active[lane]
    if not all(finished):
        raise RuntimeError("the schedule cannot be carried out: tasks wait for each other")
    return Timeline(schedule=schedule, spans=tuple(spans))


def _rates(active: frozenset[Lane], machine: Machine) -> dict[Lane, float]:
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
