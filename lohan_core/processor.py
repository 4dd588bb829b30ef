"""The processor, by its maker's name. Python's own ``platform.processor`` knows none on many Linux machines."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

__all__ = ["processor_name"]

CPU_FACTS = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the processor's name, or its architecture's where the kernel tells no name."""
    lines: list[str] = []
    with suppress(OSError):
        lines = CPU_FACTS.read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
