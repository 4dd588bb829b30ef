"""Weights to the GPU: the tasks that fetch and upload P16, and the views that compute uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lohan_core.engine.buffers import Buffers
from lohan_core.engine.lanes import Action
from lohan_core.engine.states import WEIGHTS, States
from lohan_core.layout import BlockLayout, Chunk
from lohan_core.schedule.task import WEIGHT_POOLS, Op, Slot, Task

__all__ = ["Weights"]


class Weights:
    """Moves P16 and views it."""

    def __init__(self, blocks: Sequence[BlockLayout], states: States, buffers: Buffers, dtype: torch.dtype) -> None:
        self._blocks = blocks
        self._states = states
        self._buffers = buffers
        self._dtype = dtype
        self._views: dict[tuple[int, Slot | None], dict[str, Tensor]] = {}

    @property
    def actions(self) -> dict[Op, Action]:
        """What each kind of task does. Not an attribute: it would tie this object to itself and outlive the engine."""
        return {Op.FETCH_WEIGHTS: self.fetch, Op.UPLOAD_WEIGHTS: self.upload}

    def fetch(self, task: Task) -> Callable[[], None]:
        """ssd_read: start a chunk of P16 on its way into its host slot; returns what waits for it."""
        chunk = self._states.chunks(task.source)[task.chunk]
        return self._states.read_weights(task.source, chunk, self._buffers.slot("staging", task.slot("staging"))).wait

    def upload(self, task: Task) -> None:
        """h2d: a chunk, staged or just updated, or a resident block whole, into the device slot."""
        device_slot = next(slot for slot in task.touches if slot.pool in WEIGHT_POOLS)
        target = self._flat(device_slot)[self._offset(task.block, task.source) :]
        if task.chunk < 0:
            source = self._states.resident[task.source].values[WEIGHTS]
            target[: source.numel()].copy_(source, non_blocking=True)
            return
        chunk = self._states.chunks(task.source)[task.chunk]
        target[chunk.start : chunk.stop].copy_(self._host_chunk(task, chunk), non_blocking=True)

    def views(self, task: Task) -> Mapping[str, Tensor]:
        """Return the block's parameters by name, as leaves that require grad.

        They are in the slot that the task touches, or, where the block's states live on the GPU, among those.
        """
        slot = next((slot for slot in task.touches if slot.pool in WEIGHT_POOLS), None)
        key = task.block, slot
        if key not in self._views:
            block = self._blocks[task.block]
            flat = self._states.on_gpu[task.block].values[WEIGHTS] if slot is None else self._flat(slot)
            parameters = [(entry.name, 0, entry) for entry in block.slots]
            parameters += [(entry.name, self._offset(task.block, entry.owner), entry.slot) for entry in block.borrowed]
            self._views[key] = {
                name: flat[base + entry.offset : base + entry.stop].view(entry.shape).requires_grad_()
                for name, base, entry in parameters
            }
        return self._views[key]

    def _host_chunk(self, task: Task, chunk: Chunk) -> Tensor:
        """View the chunk where it lives, in the staging slot it was fetched into, or the record it was updated in."""
        resident = self._states.resident.get(task.source)
        if resident is not None:
            return resident.values[WEIGHTS][chunk.start : chunk.stop]
        (slot,) = (slot for slot in task.touches if slot.pool not in WEIGHT_POOLS)
        buffer = self._buffers.slot(slot.pool, slot.index)
        if slot.pool == "records":
            return self._states.form.open_record(buffer, chunk.elements).values[WEIGHTS]
        return buffer.view(self._dtype)[: chunk.elements]

    def _flat(self, slot: Slot) -> Tensor:
        return self._buffers.slot(slot.pool, slot.index).view(self._dtype)

    def _offset(self, block: int, source: int) -> int:
        """Where the weights of ``source`` begin in the slot of ``block``: its own first, then those it borrows."""
        offset = 0
        for index in (block, *sorted({entry.owner for entry in self._blocks[block].borrowed})):
            if index == source:
                return offset
            offset += self._blocks[index].elements
        raise ValueError(f"block {block} does not use the weights of block {source}")
