"""Gradients on the GPU: summed over micro-batches in fp32, rounded once to G16.

Those of a layer whose states live there end in the place of its weights, which have been used by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lohan_core.engine.buffers import Buffers
from lohan_core.engine.states import WEIGHTS, States
from lohan_core.engine.step import StepData
from lohan_core.layout import BlockLayout, ParameterSlot
from lohan_core.schedule.task import Slot, Task

__all__ = ["Gradients"]


class Gradients:
    """Writes a micro-batch's gradients into the slots that its task holds."""

    def __init__(
        self, blocks: Sequence[BlockLayout], buffers: Buffers, dtype: torch.dtype, states: States | None = None
    ) -> None:
        self._blocks = blocks
        self._at_home = {} if states is None else {i: record.values[WEIGHTS] for i, record in states.on_gpu.items()}
        self._buffers = buffers
        self._dtype = dtype

    def begin(self, task: Task) -> None:
        """Zero the slots whose tenure begins: padding, and parameters that receive no gradient."""
        for slot in task.takes:
            self._buffers.slot(slot.pool, slot.index).zero_()

    def add(self, task: Task, data: StepData, gradients: dict[str, Tensor | None]) -> None:
        """Add one micro-batch's gradients, by parameter name; None counts as zero.

        The first is written, not added to zero, which would lose the sign of a negative zero. A tied parameter's
        gradient goes to the slot of the block that owns it.
        """
        block = self._blocks[task.block]
        own = self._sum_slot(task, position=0)
        for entry in block.slots:
            self._add_one(own, entry, data, gradients[entry.name])
        if block.borrowed:
            owners = self._sum_slot(task, position=1)
            for borrowed in block.borrowed:
                self._add_one(owners, borrowed.slot, data, gradients[borrowed.name])

    def finish(self, task: Task, data: StepData) -> None:
        """Round the block's sums to G16 and note their norm."""
        elements = self._blocks[task.block].elements
        computed = self._sum_slot(task, position=0)[:elements]
        target = self._at_home.get(task.block)
        if target is None:
            target = self._flat(self._slots(task, "gradients")[0], self._dtype)[:elements]
        if target.data_ptr() != computed.data_ptr():
            target.copy_(computed)
        data.norms[task.block] = torch.linalg.vector_norm(target, dtype=torch.float32)

    def chunk(self, slot: Slot, start: int, stop: int) -> Tensor:
        """View elements ``start:stop`` of the G16 in a device slot."""
        return self._flat(slot, self._dtype)[start:stop]

    def _add_one(self, flat: Tensor, entry: ParameterSlot, data: StepData, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        target = flat[entry.offset : entry.stop].view(entry.shape)
        if entry.name in data.written:
            target.add_(gradient)
        else:
            target.copy_(gradient)
            data.written.add(entry.name)

    def _slots(self, task: Task, kind: str) -> list[Slot]:
        """The task's gradient slots of one kind: the block's own, then the owner's of what it borrows."""
        return [slot for slot in task.touches if slot.pool.endswith(kind)]

    def _sum_slot(self, task: Task, position: int) -> Tensor:
        sums = self._slots(task, "sums")
        if sums:
            return self._flat(sums[position], torch.float32)
        return self._flat(self._slots(task, "gradients")[position], self._dtype)

    def _flat(self, slot: Slot, dtype: torch.dtype) -> Tensor:
        return self._buffers.slot(slot.pool, slot.index).view(dtype)
