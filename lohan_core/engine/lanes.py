"""``execute``: a schedule carried out for real, one worker thread per lane.

[Note: two kinds of finished] A task of a host lane is finished when its action returns, or when what that returned
does. A task of a GPU lane (``gpu``, ``h2d``, ``d2h``, each a CUDA stream) is *issued* when its action returns and
*finished* when the event recorded behind it has passed. Between GPU lanes an event is waited for on the stream, so that
the host does not wait; a host lane waits for the event itself. So does a GPU lane where the task before gives memory
back (``GIVES_MEMORY``): an action takes memory when it is issued, and a host that ran ahead through a whole forward
would take it for all layers at once. On a machine without a GPU every lane is a host lane.

[Note: two transfers in flight] An action of a drives' lane only starts its transfer, and a thread of its own waits for
the end: the lane begins with the next task meanwhile, if that has nothing else to wait for. Else the drives would have
nothing to do between the end of one transfer and the start of the next. They are finished in the lane's order, and a
timeline shows the next from where the one before ended.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from attrs import define, field

from lohan_core.engine.device_memory import give_back_workspaces
from lohan_core.schedule.task import DRIVE_LANES, GIVES_MEMORY, TRANSFERS_IN_FLIGHT, Lane, Op, Schedule, Task
from lohan_core.schedule.timeline import Span, Timeline

__all__ = ["Action", "Lanes"]

Action = Callable[[Task], Callable[[], None] | None]
"""Carries a task out. Where it only starts it, it returns what waits for the end, and raises if it failed."""

GPU_LANES = (Lane.GPU, Lane.H2D, Lane.D2H)


class _AbandonedError(Exception):
    """Another lane failed, or the run was interrupted: nothing more will be finished."""


@define
class _Progress:
    """One task's way through: ``issued`` first, then the event, if it has one."""

    issued: threading.Event = field(factory=threading.Event)
    begun: float = 0.0
    ended: float = 0.0
    start_event: torch.cuda.Event | None = None
    end_event: torch.cuda.Event | None = None


@define
class _Run:
    """One schedule being carried out."""

    schedule: Schedule
    actions: Mapping[Op, Action]
    began: float
    progress: Sequence[_Progress]
    failures: list[BaseException] = field(factory=list)
    failed: bool = False

    def fail(self, error: BaseException) -> None:
        """Remember the first error, and abandon the run."""
        if not self.failed:
            self.failures.append(error)
        self.abandon()

    def abandon(self) -> None:
        """Wake everyone who waits: nothing more will be finished."""
        self.failed = True
        for progress in self.progress:
            progress.issued.set()


class _Finisher:
    """Waits for the transfers of one lane, in their order, on a thread of its own."""

    def __init__(self, lane: Lane) -> None:
        self._room = threading.Semaphore(TRANSFERS_IN_FLIGHT)
        self._started: queue.SimpleQueue[tuple[_Run, _Progress, Callable[[], None]] | threading.Event | None] = (
            queue.SimpleQueue()
        )
        self.thread = threading.Thread(target=self._serve, name=f"lohan-{lane}-end", daemon=True)
        self.thread.start()

    def wait_for_room(self) -> None:
        """Block while as many transfers are in flight as may be."""
        self._room.acquire()
        self._room.release()

    def take(self, run: _Run, progress: _Progress, wait: Callable[[], None]) -> None:
        """Take a transfer that has been started; there must be room."""
        self._room.acquire()
        self._started.put((run, progress, wait))

    def drain(self) -> None:
        """Block until no transfer is in flight."""
        nothing_left = threading.Event()
        self._started.put(nothing_left)
        nothing_left.wait()

    def close(self) -> None:
        """End the thread."""
        self._started.put(None)
        self.thread.join()

    def _serve(self) -> None:
        last_ended = 0.0
        while (order := self._started.get()) is not None:
            if isinstance(order, threading.Event):
                order.set()
                continue
            run, progress, wait = order
            try:
                wait()
                progress.begun = max(progress.begun, last_ended)
                progress.ended = last_ended = time.perf_counter()
            except BaseException as error:  # noqa: BLE001 - handed to the thread that called execute
                run.fail(error)
            finally:
                progress.issued.set()
                self._room.release()
                # No reference to the last step may survive here: it would keep its tensors alive.
                del order, run, progress, wait


class Lanes:
    """Worker threads and CUDA streams, one per lane, alive for as long as the engine is."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._closed = False
        self._streams: dict[Lane, torch.cuda.Stream] = {}
        if device.type == "cuda":
            # Separate streams let both copy directions run beside compute and beside each other.
            self._streams = {lane: torch.cuda.Stream(device) for lane in GPU_LANES}
        self._inboxes: dict[Lane, queue.SimpleQueue[tuple[_Run, list[Task], threading.Event] | None]] = {
            lane: queue.SimpleQueue() for lane in Lane
        }
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"lohan-{lane}", daemon=True) for lane in Lane
        ]
        self._finishers = {lane: _Finisher(lane) for lane in DRIVE_LANES}
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(self, lane: Lane) -> torch.cuda.Stream | None:
        """The lane's CUDA stream, or None on a machine without a GPU."""
        return self._streams.get(lane)

    def execute(self, schedule: Schedule, actions: Mapping[Op, Action]) -> Timeline:
        """Carry a schedule out and return when each task began and ended.

        Args:
            schedule: the tasks.
            actions: what each kind of task does; called on the lane's thread, in the lane's stream. Only those of the
                drives' lanes may return before the end.

        Raises:
            BaseException: the first that an action raised, once every lane has stopped.
            ValueError: the lanes are closed.
        """
        if self._closed:
            raise ValueError("the lanes are closed")
        run = _Run(schedule, actions, time.perf_counter(), [_Progress() for _ in schedule.tasks])
        base = None
        if self._streams:
            base = torch.cuda.Event(enable_timing=True)
            base.record(torch.cuda.current_stream(self._device))
            for stream in self._streams.values():
                stream.wait_event(base)
        stopped = {lane: threading.Event() for lane in Lane}
        try:
            for lane in Lane:
                self._inboxes[lane].put((run, [task for task in schedule.tasks if task.lane is lane], stopped[lane]))
            for event in stopped.values():
                event.wait()
        except BaseException:  # Ctrl-C, maybe when some lanes have been told and now wait for those that were not
            run.abandon()
            raise
        for stream in self._streams.values():
            stream.synchronize()
        if run.failed:
            # Not through ``run``: what a traceback holds would hold the traceback, and all the step's tensors with it.
            failure = run.failures.pop()
            try:
                raise failure
            finally:
                del failure
        return Timeline(schedule=schedule, spans=tuple(_span(progress, base, run.began) for progress in run.progress))

    def close(self) -> None:
        """End the threads, and give back what cuBLAS keeps for the streams. A second close does nothing."""
        if self._closed:
            return
        self._closed = True
        for inbox in self._inboxes.values():
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        for finisher in self._finishers.values():
            finisher.close()
        give_back_workspaces(self._device)

    def _serve(self, lane: Lane) -> None:
        while (order := self._inboxes[lane].get()) is not None:
            run, tasks, stopped = order
            try:
                with torch.cuda.stream(self._streams.get(lane)):
                    for task in tasks:
                        self._run_task(run, task)
            except _AbandonedError:
                pass
            except BaseException as error:  # noqa: BLE001 - handed to the thread that called execute
                run.fail(error)
            finally:
                if lane in self._finishers:
                    self._finishers[lane].drain()
                # No reference to the last step may survive here: it would keep its tensors alive.
                del run, tasks, order
                stopped.set()

    def _run_task(self, run: _Run, task: Task) -> None:
        if run.failed:  # a task that waits for none would not hear of it
            raise _AbandonedError
        stream = self._streams.get(task.lane)
        for index in task.after:
            gives_memory = (run.schedule.tasks[index].op, task.op) in GIVES_MEMORY
            self._wait_for(run, run.progress[index], None if gives_memory else stream)
        progress = run.progress[task.index]
        finisher = self._finishers.get(task.lane)
        if finisher is not None:
            finisher.wait_for_room()
            if run.failed:  # maybe by a transfer of this very lane
                raise _AbandonedError
        if stream is None:
            progress.begun = time.perf_counter()
            wait = run.actions[task.op](task)
            if finisher is not None and wait is not None:
                finisher.take(run, progress, wait)
                return
            progress.ended = time.perf_counter()
        else:
            progress.start_event = torch.cuda.Event(enable_timing=True)
            progress.start_event.record(stream)
            run.actions[task.op](task)
            end = torch.cuda.Event(enable_timing=True)
            end.record(stream)
            progress.end_event = end
        progress.issued.set()

    @staticmethod
    def _wait_for(run: _Run, progress: _Progress, stream: torch.cuda.Stream | None) -> None:
        progress.issued.wait()
        if run.failed:
            raise _AbandonedError
        if progress.end_event is None:
            return
        if stream is None:
            progress.end_event.synchronize()
        else:
            stream.wait_event(progress.end_event)


def _span(progress: _Progress, base: torch.cuda.Event | None, began: float) -> Span:
    if base is None or progress.start_event is None or progress.end_event is None:
        return Span(progress.begun - began, progress.ended - began)
    return Span(base.elapsed_time(progress.start_event) / 1e3, base.elapsed_time(progress.end_event) / 1e3)
