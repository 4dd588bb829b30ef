"""Machines known by a handful of published rates: the format, the shipped files, and what a profile makes of them."""

from lohan_core.hardware.load import find_hardware, load_hardware, shipped_names, with_overrides
from lohan_core.hardware.sections import DriveSection, GpuSection, Hardware, HostSection

__all__ = [
    "DriveSection",
    "GpuSection",
    "Hardware",
    "HostSection",
    "find_hardware",
    "load_hardware",
    "shipped_names",
    "with_overrides",
]
