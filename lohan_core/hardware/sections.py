"""What a hardware file says. Rates are bytes per second and may be written like sizes: ``read: 6.5GB``."""

from __future__ import annotations

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, optional

from lohan_core.units import Bytes, format_bytes

__all__ = ["DriveSection", "GpuSection", "Hardware", "HostSection"]


def _says_something(_instance: object, attribute: Attribute[str], value: str) -> None:
    if not value.strip():
        raise ValueError(f"{attribute.name!r} must not be empty")


@frozen(kw_only=True)
class GpuSection:
    """The GPU and its link to the host.

    Attributes:
        flops_per_second: Rate of large matrix products in the type that a run computes in, without sparsity.
        memory_bandwidth: Bytes per second of the GPU's own memory: what bounds all operators but the products.
        memory: Memory of the GPU.
        reserved: What of it no run can have: the driver's context and the libraries' workspaces.
        h2d: Bytes per second from the host.
        d2h: Bytes per second to the host; both directions reach their rates at the same time.
    """

    flops_per_second: float = field(validator=gt(0.0))
    memory_bandwidth: Bytes = field(validator=gt(Bytes(0)))
    memory: Bytes = field(validator=gt(Bytes(0)))
    reserved: Bytes = field(default=Bytes(2**30), validator=ge(Bytes(0)))
    h2d: Bytes = field(validator=gt(Bytes(0)))
    d2h: Bytes = field(validator=gt(Bytes(0)))

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
    memory_bandwidth: Bytes = field(validator=gt(Bytes(0)))
    flops_per_second: float | None = field(default=None, validator=optional(gt(0.0)))
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
    read: Bytes = field(validator=gt(Bytes(0)))
    write: Bytes = field(validator=gt(Bytes(0)))
    capacity: Bytes = field(validator=gt(Bytes(0)))
    array_limit: Bytes | None = field(default=None, validator=optional(gt(Bytes(0))))
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
