"""What a plan may use of each tier: what there is, within what the user allows."""

from __future__ import annotations

from collections.abc import Mapping

from lohan_core.plan import Budget, Tier

__all__ = ["MOST_FOR_LIBRARIES", "make_budget", "plannable_gpu_bytes", "plannable_host_bytes"]

LIBRARIES_SHARE, MOST_FOR_LIBRARIES = 16, 3 * 2**27
SYSTEM_SHARE, MOST_FOR_SYSTEM = 16, 8 * 2**30


def make_budget(free: Mapping[Tier, int], limits: Mapping[Tier, int | None], *, one_memory: bool) -> Budget:
    """Apply the user's limits, and leave something to what no plan counts.

    Args:
        free: bytes that are free on each tier.
        limits: the user's; None: all that there is.
        one_memory: whether gpu and host are one memory, as where the CPU computes. Each gets half of it then, and what
            a limit leaves of one half goes to the other.
    """
    host_limit = limits[Tier.HOST]
    room = {
        Tier.GPU: _least(free[Tier.GPU], limits[Tier.GPU]),
        Tier.HOST: plannable_host_bytes(free[Tier.HOST]) if host_limit is None else min(free[Tier.HOST], host_limit),
        Tier.SSD: _least(free[Tier.SSD], limits[Tier.SSD]),
    }
    if one_memory:
        memory = min(free[Tier.GPU], free[Tier.HOST])
        room[Tier.GPU] = min(room[Tier.GPU], memory - min(room[Tier.HOST], memory // 2))
        room[Tier.HOST] = min(room[Tier.HOST], memory - room[Tier.GPU])
    return Budget(gpu_bytes=plannable_gpu_bytes(room[Tier.GPU]), host_bytes=room[Tier.HOST], ssd_bytes=room[Tier.SSD])


def plannable_gpu_bytes(gpu_bytes: int) -> int:
    """Return what of a GPU's memory a plan may use.

    A sixteenth, at most 384 MiB, is left to what no plan counts: the workspaces of libraries, kernels that are loaded
    when they are first used, and what the allocator rounds up. (Its fragments are counted:
    :func:`lohan_core.schedule.sizes.with_fragments`.)
    """
    return gpu_bytes - min(gpu_bytes // LIBRARIES_SHARE, MOST_FOR_LIBRARIES)


def plannable_host_bytes(host_bytes: int) -> int:
    """Return what of the host memory that is free a plan may use, where the user has set no limit.

    A sixteenth, at most 8 GiB, is left to what no plan counts: Python and torch, a tensor on its way from or to a
    checkpoint, the kernel's own needs. (With 120 of 125 GiB pinned a step once stood still for 0.3 s.)
    """
    return host_bytes - min(host_bytes // SYSTEM_SHARE, MOST_FOR_SYSTEM)


def _least(free: int, limit: int | None) -> int:
    return free if limit is None else min(free, limit)
