"""Weights onto the GPU: from host memory, through staging from the drives, or straight from a deferred update.

Those that live there are there already, and are only updated.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define

from lohan_core.plan import Tier
from lohan_core.profile import Role
from lohan_core.schedule.state import Loaded, StepState
from lohan_core.schedule.task import Op, Slot
from lohan_core.schedule.update import begin_waiting_update, emit_update_on_gpu, emit_write

__all__ = ["load_weights", "unload_weights"]


def load_weights(state: StepState, index: int) -> None:
    """Emit the upload of a block's weights, borrowed ones too, unless they are on the GPU already.

    What they wait for comes before it in the list: the fetch from the drives, or a deferred update.
    """
    if index in state.loaded:
        return
    if state.decisions(index).states is Tier.GPU:
        updates = [emit_update_on_gpu(state, index)] if index in state.pending else []
        state.pending.discard(index)
        state.loaded[index] = Loaded((), tuple(updates))
        return
    pool = "weights" if state.block(index).role is Role.LAYER else "edge_weights"
    slot, free = state.builder.rings[pool].acquire()
    uploads: list[int] = []
    for source in (index, *state.block(index).borrows):
        if state.block(source).elements:
            uploads.extend(_Way(state, index, source, slot, free, takes=not uploads).emit())
    state.loaded[index] = Loaded((slot,), tuple(uploads))


def unload_weights(state: StepState, index: int, after: int) -> None:
    """Give a block's device slot back once the task ``after`` is finished."""
    for slot in state.loaded.pop(index).slots:
        state.builder.rings[slot.pool].release(slot, [after])


@define
class _Way:
    """The way of the weights of ``source`` into the device slot of the block that computes with them."""

    state: StepState
    index: int
    source: int
    slot: Slot
    free: tuple[int, ...]
    takes: bool

    def emit(self) -> Iterator[int]:
        """Emit what brings the weights; yield the uploads."""
        pending = self.source in self.state.pending
        self.state.pending.discard(self.source)
        if self.state.decisions(self.source).states is Tier.HOST:
            yield from self._from_host(pending=pending)
        elif pending:
            yield from self._from_records()
        else:
            yield from self._from_drives()

    def _from_host(self, *, pending: bool) -> Iterator[int]:
        """From where it lives, when it is updated.

        A layer's whole block at once: while it is on its way, the next one is updated. The edges' chunk by chunk: the
        GPU waits for the prelude before anything else, and for the postlude, whose update is the last.
        """
        state, source = self.state, self.source
        updates = [begin_waiting_update(state, source, chunk).task for chunk in state.chunks(source) if pending]
        if not pending or state.block(source).role is Role.LAYER:
            yield self._upload(state.block(source).elements, after=updates)
            return
        for chunk, update in zip(state.chunks(source), updates, strict=True):
            yield self._upload(chunk.elements, chunk=chunk.index, after=[update])

    def _from_records(self) -> Iterator[int]:
        """Each chunk from the record in which it was updated: it need not be read back."""
        state, source = self.state, self.source
        for chunk in state.chunks(source):
            updated = begin_waiting_update(state, source, chunk)
            touches = () if updated.record is None else (updated.record,)
            upload = self._upload(chunk.elements, chunk=chunk.index, after=[updated.task], touches=touches)
            emit_write(state, updated, also=(upload,))
            yield upload

    def _from_drives(self) -> Iterator[int]:
        """Each chunk through a host slot."""
        state, source = self.state, self.source
        staging = state.builder.rings["staging"]
        for chunk in state.chunks(source):
            staged, staged_free = staging.acquire()
            written = state.written.get((source, chunk.index))
            fetch = state.builder.add(
                Op.FETCH_WEIGHTS,
                block=self.index,
                source=source,
                chunk=chunk.index,
                work=chunk.elements * state.profile.weight_bytes,
                after=staged_free if written is None else (*staged_free, written),
                touches=(staged,),
                takes=(staged,),
            )
            upload = self._upload(chunk.elements, chunk=chunk.index, after=[fetch], touches=(staged,), gives=(staged,))
            staging.release(staged, [upload])
            yield upload

    def _upload(
        self,
        elements: int,
        *,
        after: list[int],
        chunk: int = -1,
        touches: tuple[Slot, ...] = (),
        gives: tuple[Slot, ...] = (),
    ) -> int:
        takes, self.takes = self.takes, False
        return self.state.builder.add(
            Op.UPLOAD_WEIGHTS,
            block=self.index,
            source=self.source,
            chunk=chunk,
            work=elements * self.state.profile.weight_bytes,
            after=(*after, *self.free),
            touches=(self.slot, *touches),
            takes=(self.slot,) if takes else (),
            gives=gives,
        )
