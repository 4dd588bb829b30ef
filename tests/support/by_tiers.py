"""Memory of tiers, as tests limit it."""

from __future__ import annotations

from lohan_core.budget import plannable_gpu_bytes


def least_gpu_bytes(plan_bytes: int) -> int:
    """Return the least GPU memory in which a plan of so many bytes fits."""
    gpu_bytes = plan_bytes
    while plannable_gpu_bytes(gpu_bytes) < plan_bytes:
        gpu_bytes += plan_bytes - plannable_gpu_bytes(gpu_bytes)
    return gpu_bytes
