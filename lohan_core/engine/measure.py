"""Measuring a machine's lanes, each on its own, through the backends that the run will use."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

import psutil
import torch
from attrs import evolve
from torch import Tensor

from lohan_core.engine.states import MASTER, WEIGHTS, StateFormat, wait_all
from lohan_core.engine.trace import trace_model
from lohan_core.errors import PlanError
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer
from lohan_core.interfaces.storage import Storage, Transfer
from lohan_core.memory import allocate_host
from lohan_core.profile import BlockProfile, Machine, Profile, Subject
from lohan_core.units import format_bytes

__all__ = ["free_device_bytes", "machine_name", "measure", "with_free_memory"]

COPY_BYTES = 32 << 20
IO_BYTES = 4 << 20
IO_PIECES = 8
UPDATE_ELEMENTS = 1 << 24  # about 200 MiB of states: more than any cache holds
SCRATCH = "scratch/profile"
PROFILING, PARTS = "profiling: blocks, copies, drives, update", 4


def measure(subject: Subject, *, seconds: float) -> Profile:
    """Profile the model's blocks and the machine's lanes.

    Args:
        subject: model, opened backends, one batch.
        seconds: time spent on each rate.
    """
    device = subject.model.device
    inputs = subject.batch.micro_batches[0]
    form = StateFormat(subject.optimizer, subject.model.dtype)
    rows, length = inputs["input_ids"].shape
    subject.report(PROFILING, 0, PARTS)
    blocks = trace_model(subject.model, inputs, device)
    subject.report(PROFILING, 1, PARTS)
    h2d, d2h = _copy_rates(device, seconds)
    subject.report(PROFILING, 2, PARTS)
    read, write, mixed = _io_rates(subject.storage, seconds)
    subject.report(PROFILING, 3, PARTS)
    update_rate = _update_rate(subject.optimizer, form, seconds)
    subject.report(PROFILING, PARTS, PARTS)
    gpu_bytes = free_device_bytes(device)
    machine = Machine(
        name=machine_name(device),
        gpu_flops_per_second=_flop_rate(blocks),
        h2d_bytes_per_second=h2d,
        d2h_bytes_per_second=d2h,
        ssd_read_bytes_per_second=read,
        ssd_write_bytes_per_second=write,
        ssd_mixed_bytes_per_second=mixed,
        cpu_parameters_per_second=update_rate,
        gpu_bytes=gpu_bytes,
        host_bytes=psutil.virtual_memory().available,
        ssd_bytes=subject.storage.capacity().free_bytes,
    )
    return Profile(
        machine=machine,
        micro_batch_size=rows,
        sequence_length=length,
        weight_bytes=subject.model.dtype.itemsize,
        states=form.states,
        blocks=blocks,
    )


def free_device_bytes(device: torch.device) -> int:
    """Bytes free for computing: the GPU's, or host memory where the CPU computes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later allocations is as good as free
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def with_free_memory(profile: Profile, subject: Subject) -> Profile:
    """Return a profile that was measured before, with what is free on each tier now."""
    machine = evolve(
        profile.machine,
        gpu_bytes=free_device_bytes(subject.model.device),
        host_bytes=psutil.virtual_memory().available,
        ssd_bytes=subject.storage.capacity().free_bytes,
    )
    return evolve(profile, machine=machine)


def machine_name(device: torch.device) -> str:
    """Return the name of what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _flop_rate(blocks: Sequence[BlockProfile]) -> float:
    """Rate of the operators that have FLOPs to count: the matrix products."""
    products = [c for block in blocks for c in block.candidates if c.flops > 0 and c.seconds > 0]
    busy = sum(c.seconds for c in products)
    return sum(c.flops for c in products) / busy if busy else 1.0


def _rate(amount: float, seconds: float, run: Callable[[], None]) -> float:
    """Run once to warm up, then for at least ``seconds``; return the amount done per second."""
    run()
    rounds = 0
    began = time.perf_counter()
    while rounds == 0 or time.perf_counter() - began < seconds:
        run()
        rounds += 1
    return rounds * amount / (time.perf_counter() - began)


def _copy_rates(device: torch.device, seconds: float) -> tuple[float, float]:
    host = allocate_host(COPY_BYTES, pin=device.type == "cuda")
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)

    def copy(target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    up = _rate(COPY_BYTES, seconds, lambda: copy(there, host))
    down = _rate(COPY_BYTES, seconds, lambda: copy(host, there))
    if device.type != "cuda":
        return up, down
    both = _rate(2 * COPY_BYTES, seconds, _Crossing(device, host, there).run)
    # Where the directions get in each other's way, each has its share of what passes when both are busy.
    share = min(1.0, both / (up + down))
    return share * up, share * down


class _Crossing:
    """Copies in both directions at once."""

    def __init__(self, device: torch.device, host: Tensor, there: Tensor) -> None:
        self._device = device
        self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device))
        self._pairs = ((there, host), (allocate_host(COPY_BYTES, pin=True), torch.empty_like(there)))

    def run(self) -> None:
        for stream, (target, source) in zip(self._streams, self._pairs, strict=True):
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(self._device)


def _io_rates(storage: Storage, seconds: float) -> tuple[float, float, float]:
    """Read, write and mixed rates over a scratch extent, which is given back. Raises PlanError if it does not fit."""
    size = IO_BYTES * IO_PIECES
    free_bytes = storage.capacity().free_bytes
    if size > free_bytes:
        raise PlanError(
            f"profiler: {format_bytes(size)} on ssd are needed to measure it, and {format_bytes(free_bytes)} are free "
            f"({storage.describe()}); free some, or give storage.directories on larger drives"
        )
    storage.allocate(SCRATCH, size)
    try:
        buffers = allocate_host(size, pin=False).split(IO_BYTES)

        def write(pieces: Sequence[int]) -> list[Transfer]:
            return [storage.write(SCRATCH, piece * IO_BYTES, buffers[piece]) for piece in pieces]

        def read(pieces: Sequence[int]) -> list[Transfer]:
            return [storage.read(SCRATCH, piece * IO_BYTES, buffers[piece]) for piece in pieces]

        everything = range(IO_PIECES)
        half = IO_PIECES // 2
        write_rate = _rate(size, seconds, lambda: wait_all(write(everything)))
        read_rate = _rate(size, seconds, lambda: wait_all(read(everything)))
        mixed = _rate(size, seconds, lambda: wait_all(write(everything[:half]) + read(everything[half:])))
    finally:
        storage.free(SCRATCH)
    return read_rate, write_rate, mixed


def _update_rate(optimizer: Optimizer, form: StateFormat, seconds: float) -> float:
    record = form.open_record(allocate_host(form.record_bytes(UPDATE_ELEMENTS), pin=False), UPDATE_ELEMENTS)
    gradient = torch.randn(UPDATE_ELEMENTS).to(form.dtypes[WEIGHTS])
    states = {field.name: record.values[field.name] for field in form.fields}
    parameters = Hyperparameters(step=1, lr=1e-4, weight_decay=0.0)
    return _rate(
        UPDATE_ELEMENTS,
        seconds,
        lambda: optimizer.update(record.values[MASTER], states, gradient, record.values[WEIGHTS], parameters),
    )
