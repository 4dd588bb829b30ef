"""All memory of a run, sized by the schedule and allocated before the first step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lohan_core.memory import allocate_host
from lohan_core.plan import Tier
from lohan_core.schedule.task import Schedule

__all__ = ["Buffers", "carve"]


def carve(arena: Tensor, sizes_bytes: Iterable[int]) -> list[Tensor]:
    """Cut consecutive pieces off the front of a uint8 arena."""
    pieces = []
    cursor = 0
    for size in sizes_bytes:
        pieces.append(arena[cursor : cursor + size])
        cursor += size
    return pieces


class Buffers:
    """The slots of every pool, as uint8 tensors; host pools in one mapping."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        self._slots: dict[str, list[Tensor]] = {}
        host = [pool for pool in schedule.pools.values() if pool.tier is Tier.HOST]
        self.host_arena = allocate_host(sum(pool.bytes for pool in host), pin=device.type == "cuda")
        cursor = 0
        for pool in schedule.pools.values():
            if pool.tier is Tier.HOST:
                self._slots[pool.name] = carve(self.host_arena[cursor:], [pool.slot_bytes] * pool.slots)
                cursor += pool.bytes
            else:
                self._slots[pool.name] = [
                    torch.empty(pool.slot_bytes, dtype=torch.uint8, device=device) for _ in range(pool.slots)
                ]

    def slot(self, pool: str, index: int) -> Tensor:
        """One buffer, uint8."""
        return self._slots[pool][index]
