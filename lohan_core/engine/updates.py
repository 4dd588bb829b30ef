"""Gradients to host memory and states updated: the tasks of active gradient offloading."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lohan_core.engine.buffers import Buffers
from lohan_core.engine.gradients import Gradients
from lohan_core.engine.lanes import Action
from lohan_core.engine.states import MASTER, WEIGHTS, Record, States, wait_all
from lohan_core.engine.step import StepData
from lohan_core.errors import LohanError
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer
from lohan_core.interfaces.storage import Storage
from lohan_core.layout import BlockLayout, Chunk
from lohan_core.memory import allocate_host
from lohan_core.plan import Plan, Tier, Workload
from lohan_core.schedule.sizes import gradients_wait
from lohan_core.schedule.task import GRADIENT_POOLS, WEIGHT_POOLS, Op, Slot, Task
from lohan_core.states import StateVector

__all__ = ["NonFiniteGradientError", "Updates", "clip_factor", "extent_for_gradients"]


class NonFiniteGradientError(LohanError):
    """The global gradient norm is not a finite number; nothing of the step was committed."""

    exit_code = 1


def extent_for_gradients(block: int) -> str:
    """Name of the extent where a block's G16 waits for the global norm. Scratch: worth nothing after the step."""
    return f"scratch/gradients.{block}"


def clip_factor(norm: float, max_norm: float | None) -> float:
    """Return what to multiply gradients by: as ``torch.nn.utils.clip_grad_norm_``, 1 when there is nothing to clip."""
    if not max_norm:
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))


class Updates:
    """Moves gradients and states, and updates."""

    data: StepData

    def __init__(
        self,
        blocks: Sequence[BlockLayout],
        plan: Plan,
        *,
        states: States,
        gradients: Gradients,
        buffers: Buffers,
        optimizer: Optimizer,
        gpu_optimizer: Optimizer | None,
        storage: Storage,
        weight_decay: float,
        max_grad_norm: float | None,
        workload: Workload,
        pin: bool,
    ) -> None:
        self._blocks = blocks
        self._states = states
        self._gradients = gradients
        self._buffers = buffers
        self._optimizer = optimizer
        self._gpu_optimizer = gpu_optimizer
        self._storage = storage
        self._weight_decay = weight_decay
        self._max_grad_norm = max_grad_norm
        self._dtype = states.form.dtypes[WEIGHTS]
        self._deferred = frozenset(block.index for block in blocks if plan.blocks[block.index].deferred)
        self._speculative = frozenset(block.index for block in blocks if plan.blocks[block.index].speculative)
        self._waiting: dict[int, Tensor] = {}
        for block, decisions in zip(blocks, plan.blocks, strict=True):
            size = states.form.weights.extent_bytes(block.elements)
            if not size or decisions.states is not Tier.SSD or not gradients_wait(workload, decisions):
                continue
            if decisions.gradients is Tier.HOST:
                self._waiting[block.index] = allocate_host(size, pin=pin).view(self._dtype)
            else:
                storage.allocate(extent_for_gradients(block.index), size)

    @property
    def actions(self) -> dict[Op, Action]:
        """What each kind of task does. Not an attribute: it would tie this object to itself and outlive the engine."""
        return {
            Op.DOWNLOAD_GRADIENT: self.download,
            Op.SPILL_GRADIENT: self.spill,
            Op.FETCH_GRADIENT: self.fetch,
            Op.NORM: self.norm,
            Op.READ_STATES: self.read,
            Op.UPDATE: self.update,
            Op.UPDATE_ON_GPU: self.update_on_gpu,
            Op.WRITE_STATES: self.write,
        }

    def download(self, task: Task) -> None:
        """d2h: a chunk of G16 into its host slot, or to where it waits."""
        chunk = self._chunk(task)
        slot = next(slot for slot in task.touches if slot.pool in GRADIENT_POOLS | WEIGHT_POOLS)
        source = self._gradients.chunk(slot, chunk.start, chunk.stop)
        self._host_gradient(task, chunk).copy_(source, non_blocking=True)

    def spill(self, task: Task) -> Callable[[], None]:
        """ssd_write: start a chunk of G16 on its way to where it waits on the drives; returns what waits for it."""
        offset, buffer = self._gradient_bytes(task)
        return self._storage.write(extent_for_gradients(task.block), offset, buffer).wait

    def fetch(self, task: Task) -> Callable[[], None]:
        """ssd_read: the same, back."""
        offset, buffer = self._gradient_bytes(task)
        return self._storage.read(extent_for_gradients(task.block), offset, buffer).wait

    def norm(self, task: Task) -> None:
        """cpu: the global norm of all gradients, and the factor that clips it."""
        del task
        data = self.data
        norms = torch.stack([data.norms[block] for block in sorted(data.norms)]).tolist()  # one wait for the GPU
        data.gradient_norm = math.sqrt(sum(norm**2 for norm in norms))
        if not math.isfinite(data.gradient_norm):
            raise NonFiniteGradientError(
                f"step {data.terms.step}: the gradient norm is {data.gradient_norm}; lower optimizer.lr, or look at "
                "the data of this step"
            )
        data.terms.gradient_factor = clip_factor(data.gradient_norm, self._max_grad_norm)

    def read(self, task: Task) -> Callable[[], None]:
        """ssd_read: start a chunk's P32 and OS32 on their way; returns what waits for them."""
        chunk = self._chunk(task)
        names = [vector.name for vector in self._states.form.states]
        return partial(wait_all, self._states.read(task.block, chunk, self._record(task, chunk), names))

    def update(self, task: Task) -> None:
        """cpu: one chunk."""
        chunk = self._chunk(task)
        into = self._states.copies.get(task.block) if self._speculates(task.block) else None
        resident = self._states.resident.get(task.block)
        if resident is not None:
            self._update(self._optimizer, task.block, chunk, record=resident, base=0, into=into)
            return
        record, gradient = self._record(task, chunk), self._host_gradient(task, chunk)
        self._update(self._optimizer, task.block, chunk, record=record, base=chunk.start, gradient=gradient, into=into)

    def update_on_gpu(self, task: Task) -> None:
        """gpu: a whole layer, whose gradients are in the place of its weights."""
        assert self._gpu_optimizer is not None  # noqa: S101 - no plan has states there otherwise
        record = self._states.on_gpu[task.block]
        whole = Chunk(index=0, start=0, stop=self._blocks[task.block].elements)
        self._update(self._gpu_optimizer, task.block, whole, record=record, base=0)

    def _speculates(self, block: int) -> bool:
        return self.data.speculates and block in self._speculative

    def _update(
        self,
        optimizer: Optimizer,
        block: int,
        chunk: Chunk,
        *,
        record: Record,
        base: int,
        gradient: Tensor | None = None,
        into: Record | None = None,
    ) -> None:
        """Update a chunk in spans of equal hyperparameters, in place, or leaving ``record`` as it is, in another one.

        Records begin at element ``base`` of the block. Without ``gradient``, G16 is in the place of the record's P16.
        """
        form = self._states.form
        terms = self.data.deferred if block in self._deferred and not self._speculates(block) else self.data.terms
        assert terms is not None  # noqa: S101 - the engine gives them with a schedule that has deferred updates
        for start, stop, decays in self._blocks[block].spans(chunk):
            hyperparameters = Hyperparameters(
                step=terms.step,
                lr=terms.lr,
                weight_decay=self._weight_decay if decays else 0.0,
                gradient_factor=terms.gradient_factor,
            )
            old = record.slice(start - base, stop - base)
            states = {field.name: old[field.name] for field in form.fields}
            g16 = old[WEIGHTS] if gradient is None else gradient[start - chunk.start : stop - chunk.start]
            if into is None:
                optimizer.update(old[MASTER], states, g16, old[WEIGHTS], hyperparameters)
                continue
            new = into.slice(start - base, stop - base)
            optimizer.update_into(
                old[MASTER],
                states,
                g16,
                new[WEIGHTS],
                hyperparameters,
                new_master=new[MASTER],
                new_states={field.name: new[field.name] for field in form.fields},
            )

    def write(self, task: Task) -> Callable[[], None]:
        """ssd_write: start a chunk's P32, OS32 and fresh P16 on their way; returns what waits for them."""
        chunk = self._chunk(task)
        names = [vector.name for vector in self._states.form.vectors]
        return partial(wait_all, self._states.write(task.block, chunk, self._record(task, chunk), names))

    def _chunk(self, task: Task) -> Chunk:
        return self._states.chunks(task.block)[task.chunk]

    def _record(self, task: Task, chunk: Chunk) -> Record:
        return self._states.form.open_record(self._buffers.slot("records", task.slot("records")), chunk.elements)

    def _host_gradient(self, task: Task, chunk: Chunk) -> Tensor:
        """View a chunk's G16 in host memory: in the slot that the task touches, or where the block's gradients wait.

        That is the place of the block's P16, if its states live in host memory: P16 has been used by then, and the
        update, which makes it anew, reads each gradient before it writes there.
        """
        slot = self._chunk_slot(task)
        if slot is not None:
            return self._buffers.slot(slot.pool, slot.index).view(self._dtype)[: chunk.elements]
        resident = self._states.resident.get(task.block)
        place = self._waiting[task.block] if resident is None else resident.values[WEIGHTS]
        return place[chunk.start : chunk.stop]

    def _gradient_bytes(self, task: Task) -> tuple[int, Tensor]:
        vector: StateVector = self._states.form.weights
        offset, length = vector.chunk_range(self._chunk(task))
        return offset, self._buffers.slot("gradient_chunks", task.slot("gradient_chunks"))[:length]

    @staticmethod
    def _chunk_slot(task: Task) -> Slot | None:
        return next((slot for slot in task.touches if slot.pool == "gradient_chunks"), None)
