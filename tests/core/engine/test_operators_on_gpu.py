"""How operators on a GPU are timed, told by a GPU that is none: its clock goes on as marks and kernels reach it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from lohan_core.engine.operators import Operators
from lohan_core.engine.stopwatch import DeviceStopwatch

DEVICE = torch.device("cuda", 0)
MARK_SECONDS = 2e-6


class Stream:
    """Notes what it is asked for, in order."""

    def __init__(self):
        self.clock_seconds = 0.0
        self.log = []

    def synchronize(self):
        self.log.append("wait")

    def kernel(self, seconds):
        self.clock_seconds += seconds
        self.log.append("kernel")


class Event:
    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self, stream):
        stream.clock_seconds += MARK_SECONDS
        stream.log.append("mark")
        self.at = stream.clock_seconds

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def stream(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: stream.log.append("head start"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: stream.log.append("wait"))
    return stream


def test_each_has_its_kernels_time_and_marks_have_none(stream):
    stopwatch = DeviceStopwatch(DEVICE)
    kernels = [3e-3, 0.0, 5e-6]
    for seconds in kernels:
        stopwatch.start()
        stream.kernel(seconds)
        stopwatch.stop()
    assert stopwatch.seconds() == pytest.approx(kernels, abs=1e-12)
    assert stream.log == ["head start", "mark", "mark", *(["mark", "kernel", "mark"] * 3), "wait"]


def test_nothing_timed_is_nothing_waited_for(stream):
    assert DeviceStopwatch(DEVICE).seconds() == []
    assert stream.log == []


def test_a_gpu_is_not_waited_for_between_operators(stream):
    operators = Operators(DEVICE)
    with operators:
        torch.ones(4, 4).mm(torch.ones(4, 4)).add(1.0)
    assert "wait" not in stream.log
    assert stream.log.count("mark") == 2 + 2 * len(operators.times)
    assert stream.log[-1] == "wait"
    assert len(operators.times) == 4
