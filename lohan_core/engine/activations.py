"""Activations on their way: off the GPU after forward, to host memory or on to the drives, and back for backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lohan_core.engine.buffers import Buffers, carve
from lohan_core.engine.lanes import Action
from lohan_core.engine.packing import INPUT, Packed, PackedOutput, Packing, pack
from lohan_core.engine.step import Saved, StepData
from lohan_core.interfaces.storage import Storage
from lohan_core.memory import allocate_host
from lohan_core.model.keep import Kept, Occurrence
from lohan_core.schedule.task import Lane, Op, Task

__all__ = ["Activations", "extent_for_activations"]


def extent_for_activations(block: int) -> str:
    """Name of the extent where a block's activations wait. Scratch: worth nothing after the step."""
    return f"scratch/activations.{block}"


class Activations:
    """Moves what blocks keep. Host memory and extents for all of it are reserved at the start."""

    data: StepData

    def __init__(
        self,
        packings: Sequence[Packing],
        micro_batches: int,
        *,
        buffers: Buffers,
        storage: Storage,
        device: torch.device,
        streams: dict[Lane, torch.cuda.Stream],
    ) -> None:
        self._packings = packings
        self._buffers = buffers
        self._storage = storage
        self._device = device
        self._streams = streams
        self.arena = allocate_host(micro_batches * sum(p.host_bytes for p in packings), pin=device.type == "cuda")
        pieces = iter(carve(self.arena, [p.host_bytes for p in packings for _ in range(micro_batches)]))
        self._host = {(block, k): next(pieces) for block in range(len(packings)) for k in range(micro_batches)}
        for block, packing in enumerate(packings):
            if packing.ssd_bytes:
                storage.allocate(extent_for_activations(block), micro_batches * packing.ssd_bytes)

    @property
    def actions(self) -> dict[Op, Action]:
        """What each kind of task does. Not an attribute: it would tie this object to itself and outlive the engine."""
        return {Op.OFFLOAD: self.offload, Op.SPILL: self.spill, Op.UNSPILL: self.unspill, Op.UPLOAD: self.upload}

    def offload(self, task: Task) -> None:
        """d2h: the block's input and kept outputs into their places in host memory."""
        packing = self._packings[task.block]
        saved = self.data.saved[task.block, task.micro_batch]
        host: dict[Occurrence, PackedOutput] = {}
        ssd: dict[Occurrence, PackedOutput] = {}
        for occurrence in sorted(packing.leaves):
            kept = self._take(saved, occurrence)
            if kept is None:
                continue
            on_host = occurrence in packing.host
            region = self._host_region(task) if on_host else self._spill_slot(task)
            place = packing.host[occurrence] if on_host else packing.ssd[occurrence]
            packed = pack(kept, place, region, self._device)
            if packed is not None:
                (host if on_host else ssd)[occurrence] = packed
            elif occurrence == INPUT:
                raise ValueError(f"block {task.block}: its input is larger than the plan's; use batches of one shape")
        saved.packed = Packed(host, ssd)

    def spill(self, task: Task) -> Callable[[], None]:
        """ssd_write: start the drives' part on its way from its host slot; returns what waits for it."""
        size = self._packings[task.block].ssd_bytes
        offset = task.micro_batch * size
        return self._storage.write(extent_for_activations(task.block), offset, self._spill_slot(task)[:size]).wait

    def unspill(self, task: Task) -> Callable[[], None]:
        """ssd_read: the drives' part, back into a host slot."""
        size = self._packings[task.block].ssd_bytes
        offset = task.micro_batch * size
        return self._storage.read(extent_for_activations(task.block), offset, self._spill_slot(task)[:size]).wait

    def upload(self, task: Task) -> None:
        """h2d: all of it back onto the GPU, one copy for each region."""
        packing = self._packings[task.block]
        saved = self.data.saved[task.block, task.micro_batch]
        if saved.packed is None:
            raise RuntimeError(f"block {task.block}: nothing was offloaded for micro-batch {task.micro_batch}")
        back: dict[Occurrence, Kept] = {}
        if packing.host_bytes:
            region = self._to_device(self._host_region(task))
            back.update({occurrence: output.restore(region) for occurrence, output in saved.packed.host.items()})
        if packing.ssd_bytes:
            region = self._to_device(self._spill_slot(task)[: packing.ssd_bytes])
            back.update({occurrence: output.restore(region) for occurrence, output in saved.packed.ssd.items()})
        if INPUT in back:
            (saved.hidden,) = back.pop(INPUT).tensors()
        saved.kept = {**saved.kept, **back}
        saved.packed = None

    def _take(self, saved: Saved, occurrence: Occurrence) -> Kept | None:
        """Remove an output from what stays on the GPU; the copy's stream keeps its memory until it is through."""
        if occurrence == INPUT:
            leaves, _ = tree_flatten(saved.hidden)
            kept: Kept | None = Kept(outputs=leaves)
            saved.hidden = None
        else:
            kept = saved.kept.pop(occurrence, None)
        if kept is not None and Lane.D2H in self._streams:
            for tensor in kept.tensors():
                if tensor.device == self._device:
                    tensor.record_stream(self._streams[Lane.D2H])
        return kept

    def _to_device(self, source: Tensor) -> Tensor:
        region = torch.empty(source.numel(), dtype=torch.uint8, device=self._device)
        region.copy_(source, non_blocking=True)
        if Lane.GPU in self._streams:
            region.record_stream(self._streams[Lane.GPU])
        return region

    def _host_region(self, task: Task) -> Tensor:
        return self._host[task.block, task.micro_batch]

    def _spill_slot(self, task: Task) -> Tensor:
        return self._buffers.slot("spill", task.slot("spill"))
