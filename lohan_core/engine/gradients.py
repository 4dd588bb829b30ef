"""Gradients on the GPU: summed over micro-batches in fp32, rounded once to G16.

Sums end in the place of the block's weights, which have been used by then; so do the gradients of a layer whose states
live on the GPU, even of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lohan_core.engine.buffers import Buffers
from lohan_core.engine.states import WEIGHTS, States
from lohan_core.engine.step import StepData
from lohan_core.layout import BlockLayout, ParameterSlot
from lohan_core.schedule.task import GRADIENT_POOLS, WEIGHT_POOLS, Slot, Task

__all__ = ["Gradients", "norm_of"]

NORM_ELEMENTS = 1 << 20
"""On the CPU norms are of so many elements at a time: torch turns them into fp64 first."""


class Gradients:
    """Writes a micro-batch's gradients into the slots that its task holds."""

    def __init__(
        self,
        blocks: Sequence[BlockLayout],
        buffers: Buffers,
        dtype: torch.dtype,
        *,
        sums_apart: bool,
        states: States | None = None,
    ) -> None:
        self._blocks = blocks
        self._at_home = {} if states is None else {i: record.values[WEIGHTS] for i, record in states.on_gpu.items()}
        self._places = [_places(block) for block in blocks]
        self._buffers = buffers
        self._dtype = dtype
        self._sums_apart = sums_apart
        self._made_in = torch.float32 if sums_apart else dtype

    def begin(self, task: Task) -> None:
        """Zero the slots whose tenure begins: padding, and parameters that receive no gradient."""
        for slot in task.takes:
            self._buffers.slot(slot.pool, slot.index).zero_()

    def add(self, task: Task, data: StepData, name: str, gradient: Tensor) -> None:
        """Add one micro-batch's gradient of one parameter. What is never added stays zero.

        The first is written, not added to zero, which would lose the sign of a negative zero. A tied parameter's
        gradient goes to the slot of the block that owns it.
        """
        position, entry = self._places[task.block][name]
        target = self._made(task)[position][entry.offset : entry.stop].view(entry.shape)
        if entry.name in data.written:
            target.add_(gradient)
        else:
            target.copy_(gradient)
            data.written.add(entry.name)

    def finish(self, task: Task, data: StepData) -> None:
        """Bring the block's gradients to where they leave from or are used, rounded to G16, and note their norm."""
        elements = self._blocks[task.block].elements
        gradients = self._made(task)[0][:elements]
        place = self._at_home.get(task.block)
        if place is None and self._sums_apart:
            weights = next(slot for slot in task.touches if slot.pool in WEIGHT_POOLS)
            place = self._flat(weights, self._dtype)[:elements]
        if place is not None:
            gradients = place.copy_(gradients)
        data.norms[task.block] = norm_of(gradients)

    def chunk(self, slot: Slot, start: int, stop: int) -> Tensor:
        """View elements ``start:stop`` of the G16 in a device slot."""
        return self._flat(slot, self._dtype)[start:stop]

    def _made(self, task: Task) -> list[Tensor]:
        """The vectors in which the task makes gradients: the block's own, then the owner's of what it borrows."""
        return [self._flat(slot, self._made_in) for slot in task.touches if slot.pool in GRADIENT_POOLS]

    def _flat(self, slot: Slot, dtype: torch.dtype) -> Tensor:
        return self._buffers.slot(slot.pool, slot.index).view(dtype)


def norm_of(gradients: Tensor) -> Tensor:
    """Return the norm of a flat vector. A GPU adds up in a tree, the CPU one by one, for which fp32 is too coarse."""
    pieces, dtype = [gradients], torch.float32
    if gradients.device.type == "cpu":
        pieces, dtype = list(gradients.split(NORM_ELEMENTS)), torch.float64
    norms = [torch.linalg.vector_norm(piece, dtype=dtype) for piece in pieces]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _places(block: BlockLayout) -> dict[str, tuple[int, ParameterSlot]]:
    """Say for each parameter that a block uses in which vector its gradient is made: its own is 0, its owner's 1."""
    own = {entry.name: (0, entry) for entry in block.slots}
    return own | {borrowed.name: (1, borrowed.slot) for borrowed in block.borrowed}
