"""The plans that these planners choose from, each named by a choice, and what each takes.

A choice (see :mod:`lohan_planner_greedy.choices`) cuts a list of items and counts through a list of blocks. How many
layers have their states on the GPU, from the start of the blocks, is the family's own: all its plans have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from attrs import define
from numpy.typing import NDArray

from lohan_core.lane_amounts import weight_loads
from lohan_core.plan import BlockPlan, Plan, Tier, Workload
from lohan_core.profile import Profile, Role
from lohan_core.schedule.build import SPILL_SLOTS, build_memory
from lohan_core.schedule.sizes import FRAGMENTS_SHARE, KEPT_IN_FLIGHT, with_fragments
from lohan_core.schedule.task import Schedule
from lohan_planner_greedy.choices import BlockCounts, Choice
from lohan_planner_greedy.items import Item

__all__ = ["Family"]

GOLDEN = (5**0.5 - 1) / 2

MOST_DEFERRALS = 16
"""How many numbers of deferred blocks are tried, beside none."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@define(slots=False)
class Family:
    """All plans over ``items`` for one model and workload, with the states of ``gpu_states`` layers on the GPU.

    ``edges_last``: whether prelude and postlude come after all layers in the order of blocks, the larger one last:
    for where it does not fit into host memory.
    """

    profile: Profile
    workload: Workload
    items: Sequence[Item]
    gpu_states: int = 0
    edges_last: bool = False

    @cached_property
    def block_order(self) -> list[int]:
        """Blocks by what host memory saves per byte of states: those whose weights are loaded most often first.

        Of equals, each next block lies farthest from those before it, as multiples of the golden ratio do: so many of
        the list are spread over the model, however many, and the drives work evenly.
        """
        forward, backward = weight_loads(self.profile, self.workload.layer_slots)
        return sorted(
            range(len(self.profile.blocks)),
            key=lambda index: (
                self.profile.blocks[index].elements
                if self.edges_last and self.profile.blocks[index].role is not Role.LAYER
                else 0,
                -forward[index] - backward[index],
                index * GOLDEN % 1.0,
            ),
        )

    @cached_property
    def on_gpu(self) -> frozenset[int]:
        """Layers whose states live on the GPU: those whose weights would else be loaded most often."""
        layers = [index for index in self.block_order if self.profile.blocks[index].role is Role.LAYER]
        return frozenset(layers[: self.gpu_states])

    @cached_property
    def item_bytes(self) -> Integers:
        """Bytes of each item, of one micro-batch."""
        return np.array([item.bytes for item in self.items], dtype=np.int64)

    @cached_property
    def item_blocks(self) -> Integers:
        """Block of each item."""
        return np.array([item.block for item in self.items], dtype=np.int64)

    @cached_property
    def moving_bytes(self) -> Integers:
        """Bytes of each item that the lanes move when it leaves the GPU: those of layers."""
        blocks = self.profile.blocks
        moves = np.array([blocks[item.block].role is Role.LAYER for item in self.items])
        return np.where(moves, self.item_bytes, 0)

    @cached_property
    def _block_bytes_before(self) -> Integers:
        """Bytes of each block, one row each, in the items before each cut."""
        return _before(_rows(self.item_bytes, self.item_blocks, len(self.profile.blocks)))

    @cached_property
    def recomputed_seconds(self) -> Floats:
        """Seconds of recomputation in a step that keeps the items before each cut."""
        return self._recomputed(
            [b.recomputed_seconds for b in self.profile.blocks], [item.seconds for item in self.items]
        )

    @cached_property
    def keeping_seconds(self) -> Floats:
        """Seconds that forward takes longer in a step that keeps the items before each cut."""
        longer: Floats = _before(np.array([item.keeping_seconds for item in self.items]))
        return self.workload.micro_batches * longer

    @cached_property
    def recomputed_flops(self) -> Floats:
        """FLOPs of recomputation in a step that keeps the items before each cut."""
        return self._recomputed([b.recomputed_flops for b in self.profile.blocks], [item.flops for item in self.items])

    def _recomputed(self, forward: Sequence[float], saved: Sequence[float]) -> Floats:
        table = _rows(np.array(saved), self.item_blocks, len(forward))
        left: Floats = np.maximum(0.0, np.array(forward)[:, None] - _before(table)).sum(axis=0)
        return self.workload.micro_batches * left

    @cached_property
    def fixed_gpu_bytes(self) -> int:
        """Device bytes that every plan takes."""
        inputs = sum(item.bytes for item in self.items if item.candidate is None)
        return self._memory(host_states=0).bytes_on(Tier.GPU) - with_fragments(self.workload.micro_batches * inputs)

    def gpu_bytes(self, kept: int) -> Integers:
        """Device bytes with 0, 1, ..., ``kept`` of the kept items on the GPU."""
        held: Integers = self.workload.micro_batches * _before(self.item_bytes[:kept])
        held += KEPT_IN_FLIGHT * self._largest_block(slice(0, kept))
        return self.fixed_gpu_bytes + held + held // FRAGMENTS_SHARE

    def host_activation_bytes(self, rest: slice) -> Integers:
        """Host bytes that activations take with the first 0, 1, ... of ``rest`` in host memory, the others on ssd."""
        held = self.workload.micro_batches * _before(self.item_bytes[rest])
        return held + SPILL_SLOTS * self._largest_block(rest)

    def _largest_block(self, items: slice) -> Integers:
        """The most bytes that one block has beyond each cut of ``items``."""
        before = self._block_bytes_before[:, items.start : items.stop + 1]
        largest: Integers = (before[:, -1:] - before).max(axis=0)
        return largest

    def block_counts(self, *, all_states: bool | None, balances: bool) -> BlockCounts:
        """List the ways to use host memory for states and gradients, and to defer updates.

        Those with most states in host memory come first; of those, with fewest updates deferred; of those, with most
        gradients in host memory.

        Args:
            all_states: whether all states are in host memory or none; None: any number of blocks.
            balances: whether updates that need not wait may be deferred, so that forward shares backward's work.
        """
        blocks = len(self.profile.blocks)
        states = range(blocks, -1, -1) if all_states is None else (blocks * all_states,)
        rows = [
            (h, d, g) for h in states for d in self._deferrals(balances=balances) for g in self._host_gradients(h, d)
        ]
        taken = {h: self._memory(host_states=h) for h in states}
        counted = {h: self._waiting_bytes(host_states=h, deferred=0, host_gradients=h)[Tier.SSD] for h in states}
        waiting = [self._waiting_bytes(host_states=h, deferred=d, host_gradients=g) for h, d, g in rows]
        host_bytes = [taken[h].bytes_on(Tier.HOST) for h, _, _ in rows]
        ssd_bytes = [taken[h].bytes_on(Tier.SSD) - counted[h] for h, _, _ in rows]
        return BlockCounts(
            states=np.array([h for h, _, _ in rows]),
            gradients=np.array([g for _, _, g in rows]),
            deferred=np.array([d for _, d, _ in rows]),
            host_bytes=np.array([size + wait[Tier.HOST] for size, wait in zip(host_bytes, waiting, strict=True)]),
            ssd_bytes=np.array([size + wait[Tier.SSD] for size, wait in zip(ssd_bytes, waiting, strict=True)]),
        )

    def _deferrals(self, *, balances: bool) -> Sequence[int]:
        """Numbers of blocks that may be deferred: all, where updates would else have to wait until backward is over."""
        blocks = len(self.profile.blocks)
        if not self.workload.may_defer:
            return (0,)
        if self.workload.all_updates_wait:
            return (blocks,)
        steps = min(MOST_DEFERRALS, blocks) if balances else 0
        return [0, *(blocks * step // steps for step in range(1, steps + 1))]

    def _host_gradients(self, host_states: int, deferred: int) -> Sequence[int]:
        """Numbers of blocks whose gradients may wait in host memory: at least those whose states are there.

        Where only so many are deferred it is all or no more than that: there are fewer deferred blocks, too, where host
        memory is short.
        """
        blocks = len(self.profile.blocks)
        if self.workload.all_updates_wait:
            return range(blocks, host_states - 1, -1)
        return (blocks, host_states) if deferred and host_states < blocks else (blocks,)

    def _waiting_bytes(self, *, host_states: int, deferred: int, host_gradients: int) -> dict[Tier, int]:
        """Bytes of waiting gradients; those of blocks in host memory take no room but that of their weights."""
        before = self._weight_bytes_before
        first = max(host_states, 0 if self.workload.all_updates_wait else len(before) - 1 - deferred)
        last_on_host = max(first, host_gradients)
        return {Tier.HOST: before[last_on_host] - before[first], Tier.SSD: before[-1] - before[last_on_host]}

    @cached_property
    def _weight_bytes_before(self) -> Sequence[int]:
        """Bytes of weights in the order of blocks before each cut; none of layers whose states are on the GPU."""
        weights = (
            self.profile.blocks[index].elements * self.profile.weight_bytes * (index not in self.on_gpu)
            for index in self.block_order
        )
        return list(accumulate(weights, initial=0))

    def _memory(self, *, host_states: int) -> Schedule:
        """Memory with no candidate kept, inputs on the GPU, no update deferred and gradients on the drives."""
        choice = Choice(kept=0, gpu_cut=0, host_cut=0, host_states=host_states, host_gradients=0, deferred=0)
        return build_memory(self.plan("", choice), self.profile, self.workload)

    def plan(self, planner: str, choice: Choice, note: str | None = None) -> Plan:
        """Write a choice down as a plan. An input that is not among the kept items is left on the GPU."""
        blocks = len(self.profile.blocks)
        inputs = [Tier.GPU] * blocks
        keep: list[dict[int, Tier]] = [{} for _ in range(blocks)]
        for position, item in enumerate(self.items[: choice.kept]):
            near, nearer = position < choice.host_cut, position < choice.gpu_cut
            tier = Tier.GPU if nearer else Tier.HOST if near else Tier.SSD
            if item.candidate is None:
                inputs[item.block] = tier
            else:
                keep[item.block][item.candidate] = tier
        states = set(self.block_order[: choice.host_states])
        gradients = set(self.block_order[: max(choice.host_states, choice.host_gradients)])
        deferred = set(self.block_order[blocks - choice.deferred :])
        return Plan(
            planner=planner,
            blocks=tuple(
                BlockPlan(
                    states=Tier.GPU if index in self.on_gpu else Tier.HOST if index in states else Tier.SSD,
                    inputs=inputs[index],
                    keep=keep[index],
                    gradients=Tier.HOST if index in gradients or index in self.on_gpu else Tier.SSD,
                    deferred=index in deferred,
                )
                for index in range(blocks)
            ),
            note=note,
        )


def _before(values: NDArray[Any]) -> NDArray[Any]:
    """Sum what lies before each cut of the last axis: one entry more than there are values, the first 0."""
    nothing = np.zeros((*values.shape[:-1], 1), dtype=values.dtype)
    return np.concatenate([nothing, np.cumsum(values, axis=-1)], axis=-1)


def _rows(values: NDArray[Any], rows: Integers, count: int) -> NDArray[Any]:
    """Make a table of ``count`` rows with one value in each column, in the row that ``rows`` names."""
    table = np.zeros((count, len(values)), dtype=values.dtype)
    table[rows, np.arange(len(values))] = values
    return table
