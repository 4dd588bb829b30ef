"""Identical blocks as one: a program over kinds of blocks is as small for 96 layers as for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from attrs import evolve, frozen

from lohan_core.lane_amounts import weight_loads
from lohan_core.plan import Workload
from lohan_core.profile import Profile

__all__ = ["Group", "group_blocks", "spread_evenly"]

T = TypeVar("T", bound=Hashable)

SMALL = 48
"""Things to place, inputs and candidates of all blocks, up to which every block is decided about on its own."""


@frozen
class Group:
    """Blocks that differ in nothing but their name, by index; decided about by how many of them."""

    blocks: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of blocks."""
        return len(self.blocks)


def group_blocks(profile: Profile, workload: Workload, small: int = SMALL) -> list[Group]:
    """Put identical blocks together, unless the model is so ``small`` that each can be decided about on its own.

    Blocks whose weights are brought to the GPU more or less often than others' are of another kind.
    """
    if sum(1 + len(block.candidates) for block in profile.blocks) <= small:
        return [Group((index,)) for index in range(len(profile.blocks))]
    kinds: defaultdict[Hashable, list[int]] = defaultdict(list)
    loads = zip(*weight_loads(profile, workload.layer_slots), strict=True)
    for index, (block, loaded) in enumerate(zip(profile.blocks, loads, strict=True)):
        kinds[evolve(block, name=""), loaded].append(index)
    return [Group(tuple(blocks)) for blocks in kinds.values()]


def spread_evenly(counts: Mapping[T, int]) -> Sequence[T]:
    """Arrange so many of each so that each is spread as evenly as can be over the whole."""
    places = sorted(
        ((place + 0.5) / count, order) for order, count in enumerate(counts.values()) for place in range(count)
    )
    kinds = list(counts)
    return [kinds[order] for _, order in places]
