from __future__ import annotations

import threading
import time
import weakref
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from lohan_core.engine.lanes import GPU_LANES, Lanes, _Progress, _Run
from lohan_core.schedule.task import DRIVE_LANES, LANE_OF, TRANSFERS_IN_FLIGHT, Lane, Op, Schedule, Task

CPU = torch.device("cpu")
A_TASK_OF = {lane: next(op for op in Op if LANE_OF[op] is lane) for lane in Lane}


def make_schedule(*tasks):
    """A schedule of (lane, indices of the tasks before) each; ``block`` is the task's index."""
    return Schedule(
        tasks=tuple(
            Task(index=i, op=A_TASK_OF[lane], block=i, after=tuple(after)) for i, (lane, after) in enumerate(tasks)
        ),
        pools={},
    )


def all_ops(action):
    return dict.fromkeys(Op, action)


@pytest.fixture
def lanes():
    with Lanes(CPU) as lanes:
        yield lanes


def test_each_lane_works_in_the_order_of_the_list_on_a_thread_of_its_own(lanes):
    schedule = make_schedule(*[(lane, ()) for _ in range(5) for lane in Lane])
    done = {lane: [] for lane in Lane}
    lanes.execute(schedule, all_ops(lambda task: done[task.lane].append((task.index, threading.get_ident()))))
    for lane in Lane:
        assert [index for index, _ in done[lane]] == [t.index for t in schedule.tasks if t.lane is lane]
    threads = [{thread for _, thread in done[lane]} for lane in Lane]
    assert all(len(group) == 1 for group in threads)
    assert len(set.union(*threads)) == len(Lane)


def test_after_a_failure_nothing_more_is_begun_though_it_waits_for_nothing(lanes):
    failed, begun = threading.Event(), []

    def act(task):
        if task.lane is Lane.SSD_READ:
            failed.set()
            raise OSError("no such drive")
        begun.append(task.index)
        assert failed.wait(10)
        time.sleep(0.02)

    with pytest.raises(OSError, match="no such drive"):
        lanes.execute(make_schedule((Lane.SSD_READ, ()), *[(Lane.CPU, ())] * 200), all_ops(act))
    assert len(begun) < 100


def test_a_task_begins_when_what_it_comes_after_is_finished(lanes):
    schedule = make_schedule(
        (Lane.SSD_READ, ()),
        (Lane.H2D, (0,)),
        (Lane.GPU, (1,)),
        (Lane.D2H, (2,)),
        (Lane.CPU, (0, 3)),
        (Lane.SSD_WRITE, (4,)),
    )
    finished = set()

    def act(task):
        assert set(task.after) <= finished
        time.sleep(0.002)
        finished.add(task.index)

    timeline = lanes.execute(schedule, all_ops(act))
    assert finished == set(range(6))
    for task, span in zip(schedule.tasks, timeline.spans, strict=True):
        assert 0 <= span.start < span.end
        assert all(timeline.spans[before].end <= span.start for before in task.after)


def test_lanes_run_beside_each_other(lanes):
    """All six tasks meet at a barrier, which one after another never would."""
    barrier = threading.Barrier(len(Lane), timeout=20)

    def meet(_):
        barrier.wait()

    lanes.execute(make_schedule(*[(lane, ()) for lane in Lane]), all_ops(meet))


@pytest.mark.parametrize("failing", list(Lane))
def test_the_first_error_stops_every_lane_and_surfaces(lanes, failing):
    chain = [(failing, ())] + [(lane, (0,)) for _ in range(3) for lane in Lane]
    began = []

    def act(task):
        began.append(task.index)
        if task.index == 0:
            raise OSError(5, "the drive is gone")

    with pytest.raises(OSError, match="the drive is gone"):
        lanes.execute(make_schedule(*chain), all_ops(act))
    assert began == [0]


def test_a_lane_that_is_busy_finishes_its_task_before_execute_returns(lanes):
    busy, failed, finished = threading.Event(), threading.Event(), []

    def act(task):
        if task.lane is Lane.GPU:
            busy.wait(20)
            failed.set()
            raise ValueError("first")
        busy.set()
        failed.wait(20)
        time.sleep(0.02)
        finished.append(task.index)
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        lanes.execute(make_schedule((Lane.CPU, ()), (Lane.GPU, ()), (Lane.CPU, ())), all_ops(act))
    assert finished == [0]


def test_lanes_serve_again_after_a_failure(lanes):
    def fail(_):
        raise RuntimeError("once")

    schedule = make_schedule(*[(lane, ()) for lane in Lane])
    for _ in range(3):
        with pytest.raises(RuntimeError, match="once"):
            lanes.execute(schedule, all_ops(fail))
        done = []
        timeline = lanes.execute(schedule, all_ops(lambda task, done=done: done.append(task.index)))
        assert sorted(done) == list(range(len(Lane)))
        assert timeline.schedule is schedule


def test_lanes_hold_on_to_nothing_of_a_step_that_is_over(lanes):
    class Action:
        def __call__(self, _):
            pass

    action = Action()
    gone = threading.Event()
    weakref.finalize(action, gone.set)
    lanes.execute(make_schedule(*[(lane, ()) for lane in Lane]), all_ops(action))
    del action
    assert gone.wait(20)


@pytest.mark.parametrize("lane", DRIVE_LANES)
def test_a_drives_lane_keeps_some_transfers_in_flight_and_finishes_them_in_order(lanes, lane):
    count = 4
    started, ended, in_flight = [], [], []
    ends = [threading.Event() for _ in range(count)]
    another = threading.Semaphore(0)

    def start(task):
        started.append(task.index)
        in_flight.append(len(started) - len(ended))
        another.release()

        def wait():
            assert ends[task.index].wait(20)
            ended.append(task.index)

        return wait

    def drive():
        for _ in range(TRANSFERS_IN_FLIGHT):
            assert another.acquire(timeout=20)
        time.sleep(0.02)  # for one too many to be started
        for end in ends:
            end.set()

    driver = threading.Thread(target=drive)
    driver.start()
    timeline = lanes.execute(make_schedule(*[(lane, ())] * count), all_ops(start))
    driver.join()
    assert ended == list(range(count))
    assert started == list(range(count))
    assert max(in_flight) == TRANSFERS_IN_FLIGHT
    spans = timeline.spans
    assert all(before.end <= after.start <= after.end for before, after in pairwise(spans))


def test_what_a_transfer_is_waited_for_by_begins_at_its_end(lanes):
    landed = threading.Event()

    def act(task):
        if task.lane is Lane.SSD_READ:
            threading.Timer(0.02, landed.set).start()
            return lambda: landed.wait(20)
        assert landed.is_set()
        return None

    lanes.execute(make_schedule((Lane.SSD_READ, ()), (Lane.CPU, (0,))), all_ops(act))


def test_a_transfer_that_fails_stops_every_lane_when_the_others_have_landed(lanes):
    landed, began = [], []

    def act(task):
        began.append(task.index)

        def wait():
            time.sleep(0.01)
            landed.append(task.index)
            if task.index == 0:
                raise OSError(5, "the drive is gone")

        return wait if task.lane in DRIVE_LANES else None

    schedule = make_schedule((Lane.SSD_WRITE, ()), (Lane.SSD_WRITE, ()), (Lane.SSD_READ, ()), (Lane.CPU, (0,)))
    with pytest.raises(OSError, match="the drive is gone"):
        lanes.execute(schedule, all_ops(act))
    assert 3 not in began
    assert sorted(landed) == sorted(began)


@pytest.mark.parametrize("lane", DRIVE_LANES)
def test_behind_a_transfer_that_failed_a_lane_starts_no_other(lanes, lane):
    began = []

    def start(task):
        began.append(task.index)

        def wait():
            if task.index == 0:
                raise OSError(5, "the drive is gone")

        return wait

    with pytest.raises(OSError, match="the drive is gone"):
        lanes.execute(make_schedule(*[(lane, ())] * 6), all_ops(start))
    assert set(began) <= set(range(TRANSFERS_IN_FLIGHT))


@pytest.mark.parametrize("told", [0, 1, len(Lane) - 1])
def test_an_interrupt_while_lanes_are_being_told_leaves_none_waiting_for_another(lanes, monkeypatch, told):
    """A task of every lane comes after all of the lanes', so that those that were told wait for those that were not."""
    schedule = make_schedule(*[(lane, ()) for lane in Lane], *[(lane, range(len(Lane))) for lane in Lane])

    class Interrupted:
        def put(self, _):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(lanes._inboxes, list(Lane)[told], Interrupted())
        with pytest.raises(KeyboardInterrupt):
            lanes.execute(schedule, all_ops(lambda _: None))
    done = []
    lanes.execute(schedule, all_ops(done.append))
    assert sorted(task.index for task in done) == list(range(2 * len(Lane)))


def test_closing_ends_the_threads_and_may_be_done_twice():
    before = threading.active_count()
    lanes = Lanes(CPU)
    assert threading.active_count() == before + len(Lane) + len(DRIVE_LANES)
    lanes.close()
    lanes.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="the lanes are closed"):
        lanes.execute(make_schedule((Lane.CPU, ())), all_ops(lambda _: None))


class Event:
    """A CUDA event's stand-in: tells who waited for it, and where."""

    def __init__(self, waits):
        self._waits = waits

    def synchronize(self):
        self._waits.append("host")


class Stream:
    def __init__(self, waits):
        self._waits = waits

    def wait_event(self, event):
        assert isinstance(event, Event)
        self._waits.append("stream")


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        (Op.OFFLOAD, Op.FORWARD, "host"),
        (Op.BACKWARD, Op.UPLOAD, "host"),
        (Op.FORWARD, Op.OFFLOAD, "stream"),
        (Op.UPLOAD, Op.BACKWARD, "stream"),
        (Op.UPLOAD_WEIGHTS, Op.FORWARD, "stream"),
        (Op.BACKWARD, Op.UPLOAD_WEIGHTS, "stream"),
    ],
)
def test_the_host_waits_for_a_gpu_task_only_where_memory_comes_back(monkeypatch, first, second, where):
    schedule = Schedule(tasks=(Task(index=0, op=first), Task(index=1, op=second, after=(0,))), pools={})
    waits = []
    progress = [_Progress() for _ in schedule.tasks]
    progress[0].end_event = Event(waits)
    progress[0].issued.set()
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: SimpleNamespace(record=lambda _: None))
    with Lanes(CPU) as lanes:
        monkeypatch.setattr(lanes, "_streams", dict.fromkeys(GPU_LANES, Stream(waits)))
        run = _Run(schedule, all_ops(lambda _: None), 0.0, progress)
        lanes._run_task(run, schedule.tasks[1])
        monkeypatch.undo()
    assert waits == [where]
