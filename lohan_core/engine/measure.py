"""Profiling a model on this machine: its blocks looked at, its lanes measured, what is free on each tier."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch
from attrs import evolve

from lohan_core.engine.device_memory import give_back_workspaces
from lohan_core.engine.profile_blocks import arguments_bytes, profile_blocks
from lohan_core.engine.rates import copy_rates, drive_rates, gpu_update_rate, update_rates
from lohan_core.engine.states import StateFormat
from lohan_core.interfaces.profiler import Subject
from lohan_core.processor import processor_name
from lohan_core.profile import BlockProfile, Machine, Profile
from lohan_core.schedule.sizes import sums_in_fp32

__all__ = ["free_device_bytes", "machine_name", "measure", "with_free_memory"]

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
    sums = sums_in_fp32(len(subject.batch.micro_batches), subject.model.dtype.itemsize)
    subject.report(PROFILING, 0, PARTS)
    blocks = profile_blocks(subject.model, inputs, device, sums=sums)
    give_back_workspaces(device)
    subject.report(PROFILING, 1, PARTS)
    h2d, d2h = copy_rates(device, seconds)
    subject.report(PROFILING, 2, PARTS)
    states = sum(form.record_bytes(block.elements) for block in subject.model.blocks)
    read, write, mixed = drive_rates(subject.storage, states, seconds)
    subject.report(PROFILING, 3, PARTS)
    update_rate, memory_rate = update_rates(
        subject.optimizer, form, device, seconds, chunk_elements=subject.chunk_elements
    )
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
        gpu_parameters_per_second=gpu_update_rate(subject.optimizer, form, device, seconds),
        gpu_bytes=gpu_bytes,
        host_bytes=psutil.virtual_memory().available,
        ssd_bytes=subject.storage.capacity().free_bytes,
        cpu_computes=device.type == "cpu",
        memory_bytes_per_second=memory_rate,
    )
    return Profile(
        machine=machine,
        micro_batch_size=rows,
        sequence_length=length,
        weight_bytes=subject.model.dtype.itemsize,
        states=form.states,
        blocks=blocks,
        arguments_bytes=arguments_bytes(subject.model, subject.batch.micro_batches, device),
    )


def free_device_bytes(device: torch.device) -> int:
    """Bytes free for computing: the GPU's, or host memory where the CPU computes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later allocations is as good as free
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def with_free_memory(profile: Profile, subject: Subject) -> Profile:
    """Return a profile that was measured before, with what is free on each tier now, and this batch's arguments.

    Whether those include a mask depends on where documents begin and end, which no profile is kept for.
    """
    machine = evolve(
        profile.machine,
        gpu_bytes=free_device_bytes(subject.model.device),
        host_bytes=psutil.virtual_memory().available,
        ssd_bytes=subject.storage.capacity().free_bytes,
    )
    arguments = arguments_bytes(subject.model, subject.batch.micro_batches, subject.model.device)
    return evolve(profile, machine=machine, arguments_bytes=arguments)


def machine_name(device: torch.device) -> str:
    """Return the name of what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def _flop_rate(blocks: Sequence[BlockProfile]) -> float:
    """Rate of the operators that have FLOPs to count: the matrix products."""
    products = [c for block in blocks for c in block.candidates if c.flops > 0 and c.seconds > 0]
    busy = sum(c.seconds for c in products)
    return sum(c.flops for c in products) / busy if busy else 1.0
