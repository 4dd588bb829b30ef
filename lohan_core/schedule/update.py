"""Gradients out and states updated, chunk by chunk: active gradient offloading (Ratel section IV-C)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from lohan_core.layout import Chunk
from lohan_core.plan import Tier, Update
from lohan_core.schedule.state import StepState
from lohan_core.schedule.task import Op, Slot
from lohan_core.states import chunk_record_bytes

__all__ = ["LeavingGradients", "emit_waiting_updates"]


class LeavingGradients:
    """A block's gradients on their way out, and the updates that follow them.

    Each micro-batch of the next block emits a share. All at once they would stand before that block's kept bytes on the
    way back from the drives, and nothing overtakes on a lane: backward would wait until the updates have read on.
    """

    def __init__(self, state: StepState, index: int, slot: Slot, *, waits: bool) -> None:
        self._state = state
        self._slot = slot
        self._downloads = _gradients_out(state, index, slot, waits=waits)
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
        self._state.builder.rings[self._slot.pool].release(self._slot, [self._last])


def _gradients_out(state: StepState, index: int, gradients: Slot, *, waits: bool) -> Iterator[int]:
    """Emit the download of a block's G16 and, unless it must wait, the update of each chunk; chunk by chunk, as asked.

    Yields:
        Each chunk's download; after the last the device slot is free.
    """
    chunks = state.chunks(index)
    for chunk in chunks:
        gives = (gradients,) if chunk is chunks[-1] else ()
        if waits and state.decisions(index).gradients is Tier.HOST:
            download = _emit_download(state, index, chunk, touches=(gradients,), gives=gives)
            state.waiting[index, chunk.index] = download
            yield download
            continue
        ring = state.builder.rings["gradient_chunks"]
        slot, free = ring.acquire()
        download = _emit_download(state, index, chunk, free=free, touches=(gradients, slot), takes=(slot,), gives=gives)
        if waits:
            spill = state.builder.add(
                Op.SPILL_GRADIENT,
                block=index,
                chunk=chunk.index,
                work=chunk.elements * state.profile.weight_bytes,
                after=(download,),
                touches=(slot,),
                gives=(slot,),
            )
            state.waiting[index, chunk.index] = spill
            ring.release(slot, [spill])
        else:
            ring.release(slot, [_emit_update(state, index, chunk, after=(download,), gradient=slot)])
        yield download


def emit_waiting_updates(state: StepState) -> None:
    """Emit the updates of all blocks after backward, in backward's order: the norm is known, or the user asked so."""
    norm = len(state.builder.tasks) - 1
    for index in (state.postlude, *reversed(state.layers), 0):
        for chunk in state.chunks(index):
            ready = state.waiting[index, chunk.index]
            if state.decisions(index).gradients is Tier.HOST:
                _emit_update(state, index, chunk, after=(ready, norm), gradient=None)
                continue
            ring = state.builder.rings["gradient_chunks"]
            slot, free = ring.acquire()
            fetch = state.builder.add(
                Op.FETCH_GRADIENT,
                block=index,
                chunk=chunk.index,
                work=chunk.elements * state.profile.weight_bytes,
                after=(ready, *free),
                touches=(slot,),
                takes=(slot,),
            )
            ring.release(slot, [_emit_update(state, index, chunk, after=(fetch, norm), gradient=slot)])


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


def _emit_update(state: StepState, index: int, chunk: Chunk, *, after: tuple[int, ...], gradient: Slot | None) -> int:
    """Emit one chunk's update; where its states live on the drives, with the read before and the write after."""
    where = {"block": index, "chunk": chunk.index}
    slots = () if gradient is None else (gradient,)
    if state.decisions(index).states is Tier.HOST:
        return state.builder.add(Op.UPDATE, work=chunk.elements, after=after, touches=slots, gives=slots, **where)
    ring = state.builder.rings["records"]
    record, free = ring.acquire()
    state_bytes = chunk_record_bytes(state.profile.states, chunk.elements)
    before = after if state.workload.update is Update.NAIVE else ()
    read = state.builder.add(
        Op.READ_STATES, work=state_bytes, after=(*free, *before), touches=(record,), takes=(record,), **where
    )
    update = state.builder.add(
        Op.UPDATE, work=chunk.elements, after=(read, *after), touches=(record, *slots), gives=slots, **where
    )
    write = state.builder.add(
        Op.WRITE_STATES,
        work=state_bytes + chunk.elements * state.profile.weight_bytes,
        after=(update,),
        touches=(record,),
        gives=(record,),
        **where,
    )
    ring.release(record, [write])
    return update
