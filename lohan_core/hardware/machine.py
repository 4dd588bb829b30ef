"""From a hardware file's figures to the rates of a profile's lanes. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from lohan_core.hardware.sections import DriveSection, Hardware
from lohan_core.profile import Machine
from lohan_core.states import StateVector

__all__ = ["compute_bandwidth", "compute_rate", "make_machine", "update_bytes"]


def compute_rate(hardware: Hardware) -> float:
    """FLOPs per second of matrix products on what computes."""
    rate = hardware.gpu.flops_per_second if hardware.gpu else hardware.host.flops_per_second
    assert rate is not None  # noqa: S101  # Hardware asks for one of the two
    return rate


def compute_bandwidth(hardware: Hardware) -> float:
    """Bytes per second of the memory that what computes works in."""
    return float(hardware.gpu.memory_bandwidth if hardware.gpu else hardware.host.memory_bandwidth)


def update_bytes(states: Sequence[StateVector], weight_bytes: int) -> float:
    """Bytes that a fused update moves per parameter: states in and out, G16 in, P16 out. Adam in 16 bit: 28."""
    return 2 * sum(state.value_bytes / state.elements_per_value for state in states) + 2 * weight_bytes


def make_machine(
    hardware: Hardware, states: Sequence[StateVector], weight_bytes: int, *, gpu_updates: bool = False
) -> Machine:
    """Turn published figures into lanes; ``gpu_updates``: whether the optimizer can update on the GPU too.

    Updates have of the main memory's bandwidth what copies to and from a GPU and the drives leave them, as where that
    is measured. Without a GPU a copy to or from "the GPU" is one within main memory, which is read and written for each
    byte; and both tiers are that one memory, as where a profile is measured.
    """
    host, gpu = hardware.host, hardware.gpu
    read, write, mixed = _drive_rates(hardware.drives)
    moved = update_bytes(states, weight_bytes)
    update_rate = host.update_rate or host.memory_bandwidth / moved
    host_bytes = host.memory - host.reserved
    return Machine(
        name=hardware.name,
        gpu_flops_per_second=compute_rate(hardware),
        h2d_bytes_per_second=gpu.h2d if gpu else host.memory_bandwidth / 2,
        d2h_bytes_per_second=gpu.d2h if gpu else host.memory_bandwidth / 2,
        ssd_read_bytes_per_second=read,
        ssd_write_bytes_per_second=write,
        ssd_mixed_bytes_per_second=mixed,
        cpu_parameters_per_second=update_rate,
        gpu_parameters_per_second=gpu.memory_bandwidth / moved if gpu and gpu_updates else None,
        gpu_bytes=gpu.memory - gpu.reserved if gpu else host_bytes,
        host_bytes=host_bytes,
        ssd_bytes=hardware.drives.count * hardware.drives.capacity,
        cpu_computes=gpu is None,
        memory_bytes_per_second=float(host.memory_bandwidth) if gpu else None,
    )


def _drive_rates(drives: DriveSection) -> tuple[float, float, float]:
    """Rates of the array: reading, writing, and both at once."""
    limit = float("inf") if drives.array_limit is None else float(drives.array_limit)
    read, write = float(drives.count * drives.read), float(drives.count * drives.write)
    # Drives that take turns read and write for half of the time each. They do so one by one: others fill the limit.
    mixed = (read + write) / 2 if drives.simplex else read + write
    return min(read, limit), min(write, limit), min(mixed, limit)
