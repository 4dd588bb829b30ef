"""The parts of a machine that one could buy more of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from lohan_core.profile import Machine
from lohan_core.schedule.simulate import PROCESSOR_LANES
from lohan_core.schedule.task import DRIVE_LANES, Lane

__all__ = ["Part", "lanes_of_parts"]


class Part(StrEnum):
    """A part of the machine. Two of them are only memory: no lane of theirs is ever busy."""

    GPU = "gpu"
    GPU_MEMORY = "gpu_memory"
    PCIE = "pcie"
    PROCESSOR = "processor"
    MAIN_MEMORY = "main_memory"
    DRIVES = "drives"


def lanes_of_parts(machine: Machine) -> Mapping[Part, tuple[Lane, ...]]:
    """Return which lanes each part works on: without a GPU, the processor does what it and PCIe do elsewhere."""
    if machine.cpu_computes:
        return {Part.PROCESSOR: PROCESSOR_LANES, Part.DRIVES: DRIVE_LANES}
    return {
        Part.GPU: (Lane.GPU,),
        Part.PCIE: (Lane.H2D, Lane.D2H),
        Part.PROCESSOR: (Lane.CPU,),
        Part.DRIVES: DRIVE_LANES,
    }
