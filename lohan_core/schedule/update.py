"""Gradients out and states updated, chunk by chunk: active gradient offloading (Ratel section IV-C)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from attrs import frozen

from lohan_core.layout import Chunk
from lohan_core.plan import Tier, Update
from lohan_core.schedule.sizes import gradients_wait
from lohan_core.schedule.state import StepState
from lohan_core.schedule.task import Op, Slot
from lohan_core.states import chunk_record_bytes

__all__ = [
    "WHOLE",
    "LeavingGradients",
    "Updated",
    "begin_waiting_update",
    "emit_deferred_updates",
    "emit_update_on_gpu",
    "emit_waiting_updates",
    "emit_write",
]


WHOLE = -1
"""Stands for all chunks of a block."""


@frozen
class Updated:
    """A chunk's update, and the record that holds its states if they live on the drives and are still to be written."""

    block: int
    chunk: Chunk
    task: int
    record: Slot | None = None


class LeavingGradients:
    """A block's gradients on their way out, and the updates that follow them.

    Each micro-batch of the next block emits a share. All at once they would stand before that block's kept bytes on the
    way back from the drives, and nothing overtakes on a lane: backward would wait until the updates have read on.
    """

    def __init__(self, state: StepState, index: int, slot: Slot | None) -> None:
        """``slot`` is where a block's G16 is; None if it does not leave."""
        self._state = state
        self._slot = slot
        self._downloads = iter(()) if slot is None else _gradients_out(state, index, slot)
        self._share = -(-len(state.chunks(index)) // len(state.micro_batches))
        self._last = state.last_backward[index]
        self._finished = False

    def advance(self) -> None:
        """Emit one micro-batch's share."""
        for download in islice(self._downloads, self._share):
            self._last = download

    def finish(self) -> None:
        """Emit what is left; the device slot is free when the last chunk has left."""
        if self._finished:
            return
        self._finished = True
        for download in self._downloads:
            self._last = download
        if self._slot is not None:
            self._state.builder.rings[self._slot.pool].release(self._slot, [self._last])


def _gradients_out(state: StepState, index: int, gradients: Slot) -> Iterator[int]:
    """Emit the download of a block's G16 and, unless it must wait, the update of each chunk; chunk by chunk, as asked.

    A speculative update follows at once and its gradients wait all the same: they are needed again if it fails.

    Yields:
        Each chunk's download; after the last the device slot is free.
    """
    chunks, decisions = state.chunks(index), state.decisions(index)
    waits = gradients_wait(state.workload, decisions)
    in_place = decisions.states is Tier.HOST  # where the weights are: nobody reads those before they are updated
    updates = not waits or state.updates_on_speculation(index)
    for chunk in chunks:
        gives = (gradients,) if chunk is chunks[-1] else ()
        if in_place or (waits and decisions.gradients is Tier.HOST):
            download = _emit_download(state, index, chunk, touches=(gradients,), gives=gives)
            state.waiting[index, chunk.index] = (download,)
            if updates:
                emit_write(state, _begin_update(state, index, chunk, after=(download,), gradient=None))
            yield download
            continue
        ring = state.builder.rings["gradient_chunks"]
        slot, free = ring.acquire()
        download = _emit_download(state, index, chunk, free=free, touches=(gradients, slot), takes=(slot,), gives=gives)
        last = download
        if waits:
            last = state.builder.add(
                Op.SPILL_GRADIENT,
                block=index,
                chunk=chunk.index,
                work=chunk.elements * state.profile.weight_bytes,
                after=(download,),
                touches=(slot,),
                gives=() if updates else (slot,),
            )
            state.waiting[index, chunk.index] = (last,)
        if updates:
            updated = _begin_update(state, index, chunk, after=(last,), gradient=slot)
            emit_write(state, updated)
            last = updated.task
        ring.release(slot, [last])
        yield download


def emit_waiting_updates(state: StepState) -> None:
    """Emit the updates that run after backward, in backward's order: the norm is known, or the user asked so."""
    for index in (state.postlude, *reversed(state.layers), 0):
        if state.updates_after_backward(index):
            _emit_waiting_update(state, index, after=state.norm)


def emit_deferred_updates(state: StepState, blocks: Iterable[int]) -> None:
    """Emit deferred updates alone, without the forward that they are usually part of."""
    for index in blocks:
        _emit_waiting_update(state, index)


def _emit_waiting_update(state: StepState, index: int, *, after: tuple[int, ...] = ()) -> None:
    chunks = state.chunks(index)
    if chunks and state.decisions(index).states is Tier.GPU:
        emit_update_on_gpu(state, index, after=after)
        return
    for chunk in chunks:
        emit_write(state, begin_waiting_update(state, index, chunk, after=after))


def emit_update_on_gpu(state: StepState, index: int, *, after: tuple[int, ...] = ()) -> int:
    """Emit the update of a layer whose states live on the GPU, and return it."""
    rate = state.profile.machine.gpu_parameters_per_second
    if rate is None:
        raise ValueError(f"block {index}: states on the GPU, and the profile has no rate of updates there")
    return state.builder.add(
        Op.UPDATE_ON_GPU,
        block=index,
        work=state.block(index).elements / rate,
        after=(*state.waiting.get((index, WHOLE), ()), *after),
    )


def begin_waiting_update(state: StepState, index: int, chunk: Chunk, *, after: tuple[int, ...] = ()) -> Updated:
    """Emit the update of a chunk whose gradients have waited, up to the write of its states."""
    ready = state.waiting.get((index, chunk.index), ())
    if state.decisions(index).gradients is Tier.HOST:
        return _begin_update(state, index, chunk, after=(*ready, *after), gradient=None)
    ring = state.builder.rings["gradient_chunks"]
    slot, free = ring.acquire()
    fetch = state.builder.add(
        Op.FETCH_GRADIENT,
        block=index,
        chunk=chunk.index,
        work=chunk.elements * state.profile.weight_bytes,
        after=(*ready, *free),
        touches=(slot,),
        takes=(slot,),
    )
    updated = _begin_update(state, index, chunk, after=(fetch, *after), gradient=slot)
    ring.release(slot, [updated.task])
    return updated


def _begin_update(
    state: StepState, index: int, chunk: Chunk, *, after: tuple[int, ...], gradient: Slot | None
) -> Updated:
    """Emit one chunk's update, where its states live on the drives with the read before it."""
    where = {"block": index, "chunk": chunk.index}
    slots = () if gradient is None else (gradient,)
    if state.decisions(index).states is Tier.HOST:
        task = state.builder.add(Op.UPDATE, work=chunk.elements, after=after, touches=slots, gives=slots, **where)
        return Updated(index, chunk, task)
    record, free = state.builder.rings["records"].acquire()
    before = after if state.workload.update is Update.NAIVE else ()
    read = state.builder.add(
        Op.READ_STATES,
        work=chunk_record_bytes(state.profile.states, chunk.elements),
        after=(*free, *before),
        touches=(record,),
        takes=(record,),
        **where,
    )
    task = state.builder.add(
        Op.UPDATE, work=chunk.elements, after=(read, *after), touches=(record, *slots), gives=slots, **where
    )
    return Updated(index, chunk, task, record)


def emit_write(state: StepState, updated: Updated, *, also: tuple[int, ...] = ()) -> None:
    """Emit the write of an updated chunk, where its states live on the drives.

    Its record is free when it is written and the tasks ``also``, which read it too, are finished.
    """
    if updated.record is None:
        return
    index, chunk = updated.block, updated.chunk
    write = state.builder.add(
        Op.WRITE_STATES,
        block=index,
        chunk=chunk.index,
        work=chunk_record_bytes(state.profile.states, chunk.elements) + chunk.elements * state.profile.weight_bytes,
        after=(updated.task,),
        touches=(updated.record,),
        gives=(updated.record,),
    )
    state.builder.rings["records"].release(updated.record, [write, *also])
    state.written[index, chunk.index] = write


def _emit_download(
    state: StepState,
    index: int,
    chunk: Chunk,
    *,
    free: tuple[int, ...] = (),
    touches: tuple[Slot, ...] = (),
    takes: tuple[Slot, ...] = (),
    gives: tuple[Slot, ...] = (),
) -> int:
    return state.builder.add(
        Op.DOWNLOAD_GRADIENT,
        block=index,
        chunk=chunk.index,
        work=chunk.elements * state.profile.weight_bytes,
        after=(state.last_backward[index], *free),
        touches=touches,
        takes=takes,
        gives=gives,
    )
