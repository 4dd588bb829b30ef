"""What a hardware file says. Rates are bytes per second and may be written like sizes: ``read: 6.5GB``."""

from __future__ import annotations

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, optional

from lohan_core.units import Bytes, format_bytes

__all__ = ["DriveSection", "GpuSection", "Hardware", "HostSection"]


LEAST_RATE = Bytes(10**6)
LEAST_FLOPS = 1e9
"""Rates below these are mistakes: of a unit that was left out."""


def _is_a_rate(_instance: object, attribute: Attribute[Bytes], value: Bytes) -> None:
    if value < LEAST_RATE:
        raise ValueError(f"{attribute.name!r} must be {LEAST_RATE} B/s at least, got {value}: give its unit")


def _are_flops(_instance: object, attribute: Attribute[float], value: float) -> None:
    if value < LEAST_FLOPS:
        raise ValueError(f"{attribute.name!r} must be {LEAST_FLOPS:g} at least, got {value:g}")


def _says_something(_instance: object, attribute: Attribute[str], value: str) -> None:
    if not value.strip():
        raise ValueError(f"{attribute.name!r} must not be empty")


@frozen(kw_only=True)
class GpuSection:
    """The GPU and its link to the host.

    Attributes:
        flops_per_second: Rate of large matrix products in 16-bit types, without sparsity.
        fp32_flops_per_second: The same in fp32; needed for runs of that type only.
        memory_bandwidth: Bytes per second of the GPU's own memory: what bounds all operators but the products.
        memory: Memory of the GPU.
        reserved: What of it no run can have: the driver's context and the libraries' workspaces.
        h2d: Bytes per second from the host.
        d2h: Bytes per second to the host; both directions reach their rates at the same time.
    """

    flops_per_second: float = field(validator=_are_flops)
    fp32_flops_per_second: float | None = field(default=None, validator=optional(_are_flops))
    memory_bandwidth: Bytes = field(validator=_is_a_rate)
    memory: Bytes = field(validator=gt(Bytes(0)))
    reserved: Bytes = field(default=Bytes(2**30), validator=ge(Bytes(0)))
    h2d: Bytes = field(validator=_is_a_rate)
    d2h: Bytes = field(validator=_is_a_rate)

    def __attrs_post_init__(self) -> None:
        if self.reserved >= self.memory:
            raise ValueError(f"'memory' must be more than what is reserved of it ({format_bytes(self.reserved)})")


@frozen(kw_only=True)
class HostSection:
    """The processor and its memory.

    Attributes:
        memory: Main memory.
        reserved: What of it no run can have: the system and the program itself.
        memory_bandwidth: Bytes per second that one process reaches in its main memory, reads and writes together.
        flops_per_second: Rate of large matrix products on the processor; needed by a machine without a GPU only.
        update_rate: Parameters per second that the processor updates; `null`: what the memory's bandwidth allows.
    """

    memory: Bytes = field(validator=gt(Bytes(0)))
    reserved: Bytes = field(default=Bytes(4 * 2**30), validator=ge(Bytes(0)))
    memory_bandwidth: Bytes = field(validator=_is_a_rate)
    flops_per_second: float | None = field(default=None, validator=optional(_are_flops))
    update_rate: float | None = field(default=None, validator=optional(gt(0.0)))

    def __attrs_post_init__(self) -> None:
        if self.reserved >= self.memory:
            raise ValueError(f"'memory' must be more than what is reserved of it ({format_bytes(self.reserved)})")


@frozen(kw_only=True)
class DriveSection:
    """The drives, all alike.

    Attributes:
        count: Number of drives.
        read: Bytes per second that one drive reads.
        write: Bytes per second that one drive writes for as long as a run lasts: not into a cache that fills up.
        capacity: Bytes of one drive.
        array_limit: Bytes per second of all drives together, read plus write, where something that they share (a PCIe
            root, a switch) allows no more; `null`: the drives themselves are the limit.
        simplex: `true`: a drive that reads and writes does both by turns; `false`: each at its full rate.
        endurance: Bytes that may be written to one drive in its life (TBW); `null`: not known.
    """

    count: int = field(validator=ge(1))
    read: Bytes = field(validator=_is_a_rate)
    write: Bytes = field(validator=_is_a_rate)
    capacity: Bytes = field(validator=gt(Bytes(0)))
    array_limit: Bytes | None = field(default=None, validator=optional(_is_a_rate))
    simplex: bool = True
    endurance: Bytes | None = field(default=None, validator=optional(gt(Bytes(0))))


@frozen(kw_only=True)
class Hardware:
    """One machine.

    Attributes:
        name: What people call it.
        source: Where its figures come from.
        gpu: The GPU; `null`: the processor computes.
        host: The processor and main memory.
        drives: The drives.
    """

    name: str = field(validator=_says_something)
    source: str = field(validator=_says_something)
    gpu: GpuSection | None = None
    host: HostSection
    drives: DriveSection

    def __attrs_post_init__(self) -> None:
        if self.gpu is None and self.host.flops_per_second is None:
            raise ValueError("'host' must have flops_per_second where there is no gpu")
