"""The most memory that this process has taken: of the host, and of a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["GpuPeak", "host_bytes", "peak_host_bytes"]


def peak_host_bytes() -> int:
    """Peak resident set of this program: VmHWM of proc(5).

    ``getrusage``'s ``ru_maxrss`` will not do: a process begins with its parent's, even after ``exec``.
    """
    return _status_bytes("VmHWM")


def host_bytes() -> int:
    """Resident set of this program now: VmRSS of proc(5)."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status holds no {name}")
    return int(match[1]) * 1024


class GpuPeak:
    """What torch's allocator takes from a device, from now on; 0 where the CPU computes."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._cuda = torch.cuda if device.type == "cuda" else None
        self._reserved_bytes = self._retries = 0
        if self._cuda is not None:
            self._cuda.empty_cache()
            self._cuda.reset_peak_memory_stats(device)

    def begin_steps(self) -> None:
        """Count allocations anew: what comes next is training."""
        if self._cuda is not None:
            self._reserved_bytes = self._cuda.max_memory_reserved(self._device)
            self._cuda.reset_peak_memory_stats(self._device)
            self._retries = self._count_retries()

    def retries(self) -> int:
        """How often the allocator ran out and gave all free pages back before it went on, since steps began."""
        return self._count_retries() - self._retries

    def _count_retries(self) -> int:
        return 0 if self._cuda is None else int(self._cuda.memory_stats(self._device)["num_alloc_retries"])

    def allocated_bytes(self) -> int:
        """Most that was allocated at a time, since steps began."""
        return 0 if self._cuda is None else self._cuda.max_memory_allocated(self._device)

    def reserved_bytes(self) -> int:
        """Most that was taken from the device at a time, since the start."""
        return 0 if self._cuda is None else max(self._reserved_bytes, self._cuda.max_memory_reserved(self._device))
