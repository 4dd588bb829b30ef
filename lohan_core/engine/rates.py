"""How fast a machine's lanes are: copies, drives and updates, through the backends that the run will use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import torch
from attrs import frozen
from torch import Tensor

from lohan_core.engine.cores import largest_cache_bytes
from lohan_core.engine.states import MASTER, WEIGHTS, Move, StateFormat, wait_all
from lohan_core.errors import PlanError
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer
from lohan_core.interfaces.storage import Storage, Transfer
from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.memory import allocate_host
from lohan_core.units import format_bytes

__all__ = ["copy_rates", "crossing_rates", "drive_rates", "gpu_update_rate", "mixed_rate", "update_rates"]

COPY_BYTES = 32 << 20
IO_BYTES = 4 << 20
IO_PIECES = 8
WINDOW_BYTES = IO_BYTES * IO_PIECES
MOST_IO_BYTES = 1 << 30
LEAST_UPDATE_BYTES = 256 << 20
GPU_UPDATE_ELEMENTS = 32 << 20
CACHES = 8
"""An update is measured on so many times what the last cache holds: in a step, hardly any of it is still there."""
COPY_CACHES = 2
"""Copies each way, likewise: out of a cache they would take nothing of the memory's bandwidth from an update."""
UNDISTURBED = 0.97
"""An update that keeps so much of its rate beside copies is not slowed down by them: less is within the noise."""
SCRATCH = "scratch/profile"


def _rate(amount: float, seconds: float, run: Callable[[], None], *, least_rounds: int = 1) -> float:
    """Run once to warm up, then for at least ``seconds`` and so many rounds; return the amount done per second."""
    run()
    rounds = 0
    began = time.perf_counter()
    while rounds < least_rounds or time.perf_counter() - began < seconds:
        run()
        rounds += 1
    return rounds * amount / (time.perf_counter() - began)


def copy_rates(device: torch.device, seconds: float) -> tuple[float, float]:
    """Bytes a second to the GPU and from it, each with its share of what passes when both ways are busy."""
    host = _host_windows(device)
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)

    def copy(target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    up = _rate(COPY_BYTES, seconds, lambda: copy(there, next(host)))
    down = _rate(COPY_BYTES, seconds, lambda: copy(next(host), there))
    if device.type != "cuda":
        return up, down
    both = _rate(2 * COPY_BYTES, seconds, _Crossing(device, host).run)
    return crossing_rates(up, down, both)


def _host_windows(device: torch.device) -> Iterator[Tensor]:
    """Yield places in host memory to copy from and to, in turn and without end: together more than caches hold."""
    windows = -(-max(COPY_BYTES, COPY_CACHES * largest_cache_bytes()) // COPY_BYTES)
    arena = allocate_host(windows * COPY_BYTES, pin=device.type == "cuda")
    return cycle(arena.split(COPY_BYTES))


def crossing_rates(up: float, down: float, both: float) -> tuple[float, float]:
    """Return each direction's rate while the other is busy too. Bytes a second; pure arithmetic.

    Where the directions get in each other's way, a crossing (as much up as down) takes longer than the slower of the
    two would alone: by so much are both taken to be slowed down. A slower direction by itself is no such thing: while
    it ends, the faster one has nothing to do.

    Args:
        up: to the GPU, alone.
        down: from it, alone.
        both: of one crossing after another, bytes up and bytes down together.
    """
    share = min(1.0, both / (2 * min(up, down)))
    return share * up, share * down


class _Crossing:
    """Copies in both directions at once."""

    def __init__(self, device: torch.device, host: Iterator[Tensor]) -> None:
        self._device = device
        self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device))
        self._there = torch.empty((2, COPY_BYTES), dtype=torch.uint8, device=device)
        self._up, self._down = host, _host_windows(device)
        torch.cuda.synchronize(device)  # the other streams may not use this memory before this one has been given it

    def run(self) -> None:
        pairs = (self._there[0], next(self._up)), (next(self._down), self._there[1])
        for stream, (target, source) in zip(self._streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(self._device)


def drive_rates(storage: Storage, state_bytes: int, seconds: float) -> tuple[float, float, float]:
    """Read, write and mixed rates over a scratch extent, which is given back. Raises PlanError if it does not fit.

    The extent is an eighth of the model's states, within limits, and all of it is used: a drive is faster on a few
    megabytes, which stay in its cache, than in a step.
    """
    free_bytes = storage.capacity().free_bytes
    wanted = min(MOST_IO_BYTES, state_bytes // 8, free_bytes // 4)
    windows = max(1, wanted // WINDOW_BYTES)
    if free_bytes < WINDOW_BYTES:
        raise PlanError(
            f"profiler: {format_bytes(WINDOW_BYTES)} on ssd are needed to measure it, and {format_bytes(free_bytes)} "
            f"are free ({storage.describe()}); free some, or give storage.directories on larger drives"
        )
    storage.allocate(SCRATCH, windows * WINDOW_BYTES)
    try:
        scratch = _Scratch(storage, windows)
        write, read, both = (
            _rate(WINDOW_BYTES, seconds, move, least_rounds=windows)
            for move in (scratch.write, scratch.read, scratch.mix)
        )
    finally:
        storage.free(SCRATCH)
    return read, write, mixed_rate(read, write, both)


def mixed_rate(read: float, write: float, both: float) -> float:
    """Return the total rate while reads and writes are in flight together. Bytes a second; pure arithmetic.

    As much read as written takes longer than the slower alone, by a share of what the faster takes alone: that share of
    its work is done in turns. While the slower ends, the faster has nothing to do, which is no part of the rate.

    Args:
        read: alone.
        write: alone.
        both: of as much read as written at once, over and over.
    """
    in_turns = max(0.0, 2 / both - 1 / min(read, write)) * max(read, write)
    return (read + write) / (1 + in_turns)


class _Scratch:
    """A scratch extent, of which one window after the other is written or read, over and over."""

    def __init__(self, storage: Storage, windows: int) -> None:
        self._storage = storage
        self._windows = cycle(range(windows))
        # Not zeros: some drives and file systems compress, or do not store them at all.
        self._buffers = allocate_host(WINDOW_BYTES, pin=False).random_(0, 256).split(IO_BYTES)
        for _ in range(windows - 1):  # what was never written takes drives and file systems longer
            self.write()

    def write(self) -> None:
        """Write the next window."""
        window = next(self._windows)
        wait_all([self._move(self._storage.write, window, piece) for piece in range(IO_PIECES)])

    def read(self) -> None:
        """Read the next window."""
        window = next(self._windows)
        wait_all([self._move(self._storage.read, window, piece) for piece in range(IO_PIECES)])

    def mix(self) -> None:
        """Write half of the next window while the other half is read."""
        window = next(self._windows)
        moves = (self._storage.write, self._storage.read)
        wait_all([self._move(moves[piece % 2], window, piece) for piece in range(IO_PIECES)])

    def _move(self, move: Move, window: int, piece: int) -> Transfer:
        return move(SCRATCH, window * WINDOW_BYTES + piece * IO_BYTES, self._buffers[piece])


def update_rates(
    optimizer: Optimizer, form: StateFormat, device: torch.device, seconds: float, *, chunk_elements: int
) -> tuple[float, float | None]:
    """Parameters a second, alone; and the bytes a second that updates share with copies, if these slow them down.

    What of its rate an update keeps beside copies both ways tells how much of the memory's bandwidth they take. It goes
    chunk by chunk, as in a step: each wakes all of the optimizer's threads, and ends with the last of them.
    """
    update = _make_update(optimizer, form, chunk_elements)
    alone = _rate(update.elements, seconds, update.run)
    if device.type != "cuda":
        return alone, None
    crossing = _Crossing(device, _host_windows(device))
    stop = threading.Event()
    with ThreadPoolExecutor(1) as other:
        copies = other.submit(_repeat, crossing.run, stop)
        try:
            beside = _rate(update.elements, seconds, update.run)
        finally:
            stop.set()
    alone = (alone + _rate(update.elements, seconds, update.run)) / 2  # before and after: rates drift
    copied = copies.result() * 2 * COPY_BYTES
    return alone, copied / (1 - beside / alone) if beside < alone * UNDISTURBED else None


def _repeat(run: Callable[[], None], stop: threading.Event) -> float:
    """Do something over and over until told to stop; return how often a second."""
    rounds = 0
    began = time.perf_counter()
    while rounds == 0 or not stop.is_set():
        run()
        rounds += 1
    return rounds / (time.perf_counter() - began)


def gpu_update_rate(optimizer: Optimizer, form: StateFormat, device: torch.device, seconds: float) -> float | None:
    """Parameters a second of updates on the GPU; None without one, or where the optimizer has none for it."""
    there = optimizer.on_device(device) if device.type == "cuda" else None
    if there is None:
        return None
    buffer = torch.zeros(form.record_bytes(GPU_UPDATE_ELEMENTS), dtype=torch.uint8, device=device)
    record = form.open_record(buffer, GPU_UPDATE_ELEMENTS)
    states = {field.name: record.values[field.name] for field in form.fields}
    parameters = Hyperparameters(step=1, lr=1e-4, weight_decay=0.0)

    def run() -> None:
        there.update(record.values[MASTER], states, record.values[WEIGHTS], record.values[WEIGHTS], parameters)
        torch.cuda.synchronize(device)

    return _rate(GPU_UPDATE_ELEMENTS, seconds, run)


@frozen
class _Update:
    """An update to be measured, and how many parameters it is of."""

    elements: int
    run: Callable[[], None]


def _make_update(optimizer: Optimizer, form: StateFormat, chunk_elements: int) -> _Update:
    size = max(LEAST_UPDATE_BYTES, CACHES * largest_cache_bytes())
    elements = size // form.record_bytes(BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT
    record = form.open_record(allocate_host(form.record_bytes(elements), pin=False), elements)
    record.values[WEIGHTS].fill_(1e-3)  # where states in host memory have their gradients
    parameters = Hyperparameters(step=1, lr=1e-4, weight_decay=0.0)

    def run() -> None:
        for start in range(0, elements, chunk_elements):
            stop = min(start + chunk_elements, elements)
            values = record.slice(start, stop)
            states = {field.name: values[field.name] for field in form.fields}
            optimizer.update(values[MASTER], states, values[WEIGHTS], values[WEIGHTS], parameters)

    return _Update(elements, run)
