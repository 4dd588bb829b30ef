"""How a block's kept tensors lie in host memory: the plan's layout, and what was really put there.

The layout is fixed by plan and profile before the run: one region for the host tier, one for the drives, each kept
output at its own offset. What an operator really returns may differ where control flow depends on the data (experts):
an output that is larger than its place is not sent, and backward recomputes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lohan_core.layout import round_up
from lohan_core.model.keep import Kept, Occurrence
from lohan_core.plan import BlockPlan, Tier
from lohan_core.profile import BlockProfile, Role
from lohan_core.states import SECTOR_BYTES

__all__ = [
    "INPUT",
    "TENSOR_ALIGNMENT",
    "Packed",
    "PackedTensor",
    "Packing",
    "Place",
    "plan_packing",
    "raw_bytes",
    "stored_bytes",
]

INPUT: Occurrence = ("", 0)
"""Stands for the block's input among operators."""

TENSOR_ALIGNMENT = 256


@frozen
class Place:
    """Where one kept output goes: offset and room in bytes, within its tier's region."""

    offset: int
    room: int


@frozen
class Packing:
    """One block's layout: places by operator (``INPUT`` for the block's input), and each region's bytes."""

    host: dict[Occurrence, Place]
    ssd: dict[Occurrence, Place]
    host_bytes: int
    ssd_bytes: int

    @property
    def leaves(self) -> frozenset[Occurrence]:
        """What leaves the GPU."""
        return frozenset(self.host) | frozenset(self.ssd)


@frozen
class PackedTensor:
    """One tensor among the bytes: where, and how to read them back with the same shape and strides."""

    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def restore(self, region: Tensor) -> Tensor:
        """View the tensor in a uint8 region."""
        length = self.shape.numel() * self.dtype.itemsize
        return region[self.offset : self.offset + length].view(self.dtype).as_strided(self.shape, self.stride, None)


@frozen(kw_only=True)
class PackedOutput:
    """One operator's outputs: tensors among the bytes, other values as they are."""

    leaves: tuple[Any, ...]
    spec: TreeSpec
    random_state: Tensor | None = field(default=None, eq=False)

    def restore(self, region: Tensor) -> Kept:
        """Rebuild the outputs from a uint8 region."""
        leaves = [leaf.restore(region) if isinstance(leaf, PackedTensor) else leaf for leaf in self.leaves]
        return Kept(outputs=tree_unflatten(leaves, self.spec), random_state=self.random_state)


@frozen
class Packed:
    """What was put into each region, by operator."""

    host: dict[Occurrence, PackedOutput]
    ssd: dict[Occurrence, PackedOutput]


def plan_packing(block: BlockProfile, decisions: BlockPlan) -> Packing:
    """Give every output that leaves the GPU its place. Places are whole sectors, as in the schedule's arithmetic."""
    kept = [(c.occurs_as, c.bytes, decisions.keep[c.index]) for c in block.candidates if c.index in decisions.keep]
    if block.role is not Role.PRELUDE:
        kept.insert(0, (INPUT, block.input_bytes, decisions.inputs))
    host, host_bytes = _place((occurrence, size) for occurrence, size, tier in kept if tier is Tier.HOST)
    ssd, ssd_bytes = _place((occurrence, size) for occurrence, size, tier in kept if tier is Tier.SSD)
    return Packing(host, ssd, host_bytes, ssd_bytes)


def _place(sizes: Iterable[tuple[Occurrence, int]]) -> tuple[dict[Occurrence, Place], int]:
    places = {}
    cursor = 0
    for occurrence, size in sizes:
        room = round_up(size, SECTOR_BYTES)
        places[occurrence] = Place(cursor, room)
        cursor += room
    return places, cursor


def stored_bytes(kept: Kept) -> int:
    """Bytes that an operator's outputs take when packed."""
    return sum(round_up(tensor.numel() * tensor.element_size(), TENSOR_ALIGNMENT) for tensor in kept.tensors())


def raw_bytes(tensor: Tensor) -> Tensor:
    """View a dense tensor's bytes in memory order, whatever its strides."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def pack(kept: Kept, place: Place, region: Tensor, device: torch.device) -> PackedOutput | None:
    """Copy an operator's outputs from the computing ``device`` to their place; on a GPU the copy is only issued.

    Tensors elsewhere (attention on a GPU returns its seed on the CPU) are values like numbers: they stay as they are.

    Returns:
        How to read them back, or None if they do not fit: nothing was copied then.
    """
    if stored_bytes(kept) > place.room:
        return None
    leaves, spec = tree_flatten(kept.outputs)
    cursor = place.offset
    packed: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.device != device:
            packed.append(leaf)
            continue
        source = raw_bytes(leaf)
        region[cursor : cursor + source.numel()].copy_(source, non_blocking=device.type == "cuda")
        packed.append(PackedTensor(cursor, leaf.shape, leaf.stride(), leaf.dtype))
        cursor += round_up(source.numel(), TENSOR_ALIGNMENT)
    return PackedOutput(leaves=tuple(packed), spec=spec, random_state=kept.random_state)
