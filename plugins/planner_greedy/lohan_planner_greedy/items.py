"""What a plan may keep, as a list in the order in which it is worth keeping. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from lohan_core.layout import round_up
from lohan_core.profile import Candidate, Machine, Profile, Role
from lohan_core.states import SECTOR_BYTES
from lohan_planner_greedy.config import Ranking

__all__ = ["Item", "offloading_benefit", "rank_items"]


@frozen
class Item:
    """One thing that may wait for backward: a block's input (``candidate`` is None) or an operator's output."""

    block: int
    candidate: int | None
    bytes: int
    seconds: float
    flops: float
    keeping_seconds: float = 0.0


def offloading_benefit(candidate: Candidate, ranking: Ranking, machine: Machine) -> float:
    """OB of the paper: what recomputation costs per byte that need not be recomputed, less what keeping it costs.

    A candidate whose time is not known is worth what its FLOPs take at the machine's rate.
    """
    seconds = candidate.seconds - candidate.keeping_seconds
    if ranking is Ranking.FLOPS or candidate.seconds == 0.0:
        seconds = candidate.flops / machine.gpu_flops_per_second
    return seconds / candidate.bytes


def rank_items(profile: Profile, ranking: Ranking) -> Sequence[Item]:
    """List inputs, which every plan keeps, then candidates by offloading benefit.

    Of equals, the later block comes first: its backward begins earlier, so what is nearest should be nearest. Of the
    inputs the postlude's comes last: it is used at once, and no lane moves it.
    """
    *layers, postlude = [(index, block) for index, block in enumerate(profile.blocks) if block.role is not Role.PRELUDE]
    inputs = [
        Item(index, None, round_up(block.input_bytes, SECTOR_BYTES), 0.0, 0.0)
        for index, block in (*reversed(layers), postlude)
    ]
    ranked = sorted(
        ((index, candidate) for index, block in enumerate(profile.blocks) for candidate in block.candidates),
        key=lambda entry: (-offloading_benefit(entry[1], ranking, profile.machine), entry[1].index, -entry[0]),
    )
    candidates = [
        Item(index, c.index, round_up(c.bytes, SECTOR_BYTES), c.seconds, c.flops, keeping)
        for index, c in ranked
        for keeping in (c.keeping_seconds if profile.blocks[index].role is Role.LAYER else 0.0,)
    ]
    return [*inputs, *candidates]
