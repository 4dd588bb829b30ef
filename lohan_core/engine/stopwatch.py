"""Timing a piece of a model as it runs in a step: warm, in a row, with other things in the caches.

[Note: operators on a GPU] An operator that is launched and waited for takes the host's time to launch it and to notice
its end too: more than most kernels take, and as much for a small one as for a product. So a GPU is never waited for
between operators: a mark is put into its stream before and behind each, and read when all is done. Nor must the GPU
wait for the host, or its idling would lie between the marks: it is given a head start of work that comes to nothing, in
which the host runs ahead. (After an operator that makes the host wait, as experts have, the head start is lost.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from lohan_core.engine.backward import backward
from lohan_core.engine.cores import largest_cache_bytes
from lohan_core.model.keep import nothing_saved

__all__ = [
    "WARM_UP_SECONDS",
    "DeviceStopwatch",
    "HostStopwatch",
    "Stopwatch",
    "looks",
    "make_stopwatch",
    "saving_nothing",
    "sustain",
    "whole_seconds",
    "with_backward",
    "with_gradients",
    "without_gradients",
]

LEAST_LOOKS, MOST_LOOKS = 4, 40
LOOK_SECONDS = 0.15
"""A block is looked at for about so long: on a busy machine most looks are of something else."""

WARM_UP_SECONDS = 0.3
"""A GPU works on a block for about so long before it is timed, and while it is."""
HEATING = 5
"""And for so many times as long on a layer's backward before the layer is timed at all: only after a second or so of
full load does a GPU lower its clocks to what its power limit allows. (An H200 at 700 W: 4 % lower from then on.)"""

HEAD_START_SECONDS = 0.05
"""For about so long a GPU is kept from beginning with a block's operators: several times what launching them takes."""
HEAD_START_HERTZ = 2e9
"""The clock of a fast GPU: a slower one is kept back for longer."""


class Stopwatch(Protocol):
    """Times operators that run one after the other."""

    def start(self) -> None:
        """Call just before an operator."""

    def stop(self) -> None:
        """Call just after it."""

    def seconds(self) -> list[float]:
        """Return the time of each; the last of them may have to be waited for."""


class HostStopwatch:
    """Times what the processor itself computes."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._began = 0.0

    def start(self) -> None:
        """Look at the clock."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Look at it again."""
        self._seconds.append(time.perf_counter() - self._began)

    def seconds(self) -> list[float]:
        """Return what passed between the looks."""
        return self._seconds


class DeviceStopwatch:
    """Times a GPU's kernels by marks in its stream; see [Note: operators on a GPU]."""

    def __init__(self, device: torch.device) -> None:
        """Take the stream that is current on ``device``; all operators must be launched on it."""
        self._stream = torch.cuda.current_stream(device)
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Put a mark into the stream; before the first, the head start, and two marks with nothing between them."""
        if not self._marks:
            with torch.cuda.stream(self._stream):
                torch.cuda._sleep(int(HEAD_START_SECONDS * HEAD_START_HERTZ))  # noqa: SLF001 - torch has no public way
            self._begin()
            self.stop()
        self._begin()

    def stop(self) -> None:
        """Put the second mark into the stream."""
        self._marks[-1][1].record(self._stream)

    def seconds(self) -> list[float]:
        """Wait for the stream, then return what passed between the marks, beyond what passes with nothing there."""
        if not self._marks:
            return []
        self._stream.synchronize()
        empty, *others = (begun.elapsed_time(ended) / 1e3 for begun, ended in self._marks)
        return [max(0.0, seconds - empty) for seconds in others]

    def _begin(self) -> None:
        marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        marks[0].record(self._stream)
        self._marks.append(marks)


def make_stopwatch(device: torch.device) -> Stopwatch:
    """Return the one that times operators on ``device``."""
    return DeviceStopwatch(device) if device.type == "cuda" else HostStopwatch()


def whole_seconds(run: Callable[[], object], device: torch.device, warm_up_seconds: float) -> float:
    """Time something warm.

    On a GPU in the middle of sustained work, since its clocks fall as it warms up. On a CPU with other things in
    its caches, as the other blocks leave them in a step, and the median of several rounds.
    """
    run()
    if device.type == "cuda":
        _keep_busy(run, device, warm_up_seconds)
        return _keep_busy(run, device, warm_up_seconds)
    other = torch.ones(2 * largest_cache_bytes() // 4)
    rounds = []
    for _ in looks():
        other.add_(1.0)
        began = time.perf_counter()
        run()
        rounds.append(time.perf_counter() - began)
    return median(rounds)


def sustain(run: Callable[[], object], device: torch.device, warm_up_seconds: float) -> None:
    """Bring a GPU's clocks to where a long step has them, by several times ``warm_up_seconds`` of work."""
    if device.type == "cuda":
        _keep_busy(run, device, HEATING * warm_up_seconds)


def _keep_busy(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Keep a GPU at it for about so long; return the seconds of one run in that."""
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    runs = max(2, round(seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    for _ in range(runs):
        run()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / runs


def looks() -> Iterator[None]:
    """Yield for as long as something should be looked at."""
    began = time.perf_counter()
    for look in range(MOST_LOOKS):
        if look >= LEAST_LOOKS and time.perf_counter() - began > LOOK_SECONDS:
            return
        yield


def saving_nothing(run: Callable[[], Tensor]) -> Callable[[], None]:
    """Make it a forward that saves nothing for a backward, as a step's is."""

    def forward() -> None:
        with nothing_saved():
            run()

    return forward


def without_gradients(run: Callable[[], Tensor]) -> Callable[[], None]:
    """Make it a forward of which no gradient is wanted, as an evaluation's is."""

    def forward() -> None:
        with torch.no_grad():
            run()

    return forward


def with_backward(leaves: Mapping[str, Tensor], run: Callable[[], Tensor]) -> Callable[[], None]:
    """Make it forward and backward, with respect to ``leaves``."""

    def forward_and_backward() -> None:
        _differentiate(leaves, run, lambda *_: None)

    return forward_and_backward


def with_gradients(leaves: Mapping[str, Tensor], run: Callable[[], Tensor], *, sums: bool) -> Callable[[], None]:
    """As :func:`with_backward`, with what becomes of the gradients.

    One micro-batch's are gathered in a flat vector whose norm is taken. Those of several are summed in fp32 (``sums``);
    what then comes once in a step is left out.
    """
    flat = torch.zeros_like(
        torch.cat([leaf.detach().flatten() for leaf in leaves.values()]), dtype=torch.float32 if sums else None
    )
    sizes = [leaf.numel() for leaf in leaves.values()]
    parts = {name: part.view_as(leaves[name]) for name, part in zip(leaves, flat.split(sizes), strict=True)}

    def forward_backward_and_sum() -> None:
        _differentiate(leaves, run, lambda name, gradient: parts[name].add_(gradient))

    def forward_backward_and_norm() -> None:
        flat.zero_()
        _differentiate(leaves, run, lambda name, gradient: parts[name].copy_(gradient))
        torch.linalg.vector_norm(flat, dtype=torch.float32)

    return forward_backward_and_sum if sums else forward_backward_and_norm


def _differentiate(
    leaves: Mapping[str, Tensor], run: Callable[[], Tensor], take: Callable[[str, Tensor], object]
) -> None:
    output = run()
    backward(output, torch.ones_like(output), leaves, take)
