"""From a hardware file's figures to the rates of a profile's lanes. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from lohan_core.errors import ConfigError
from lohan_core.hardware.sections import DriveSection, Hardware
from lohan_core.profile import Machine
from lohan_core.states import StateVector

__all__ = ["compute_bandwidth", "compute_rate", "make_machine", "update_bytes"]

FP32_BYTES = 4


def compute_rate(hardware: Hardware, weight_bytes: int) -> float:
    """FLOPs per second of matrix products on what computes.

    Raises:
        ConfigError: they are in fp32, of which the file says nothing.
    """
    gpu, host = hardware.gpu, hardware.host
    in_fp32 = weight_bytes == FP32_BYTES
    rate = (gpu.fp32_flops_per_second if in_fp32 else gpu.flops_per_second) if gpu else host.flops_per_second
    if rate is None:
        raise ConfigError(
            f"{hardware.name}: its rate in fp32 is not known; give gpu.fp32_flops_per_second, or run.dtype: bfloat16"
        )
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
        gpu_flops_per_second=compute_rate(hardware, weight_bytes),
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
        ssd_endurance_bytes=hardware.drives.count * hardware.drives.endurance if hardware.drives.endurance else None,
    )


def _drive_rates(drives: DriveSection) -> tuple[float, float, float]:
    """Rates of the array: reading, writing, and both at once."""
    limit = float("inf") if drives.array_limit is None else float(drives.array_limit)
    read, write = float(drives.count * drives.read), float(drives.count * drives.write)
    # Drives that take turns read and write for half of the time each. They do so one by one: others fill the limit.
    mixed = (read + write) / 2 if drives.simplex else read + write
    return min(read, limit), min(write, limit), min(mixed, limit)
