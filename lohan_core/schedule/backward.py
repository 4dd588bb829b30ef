"""Backward, blocks down: weights and kept bytes back ahead of need, gradients out, updates as soon as they may run.

[Note: the place of G16] One micro-batch's gradients are G16, and leave from the slot in which they are made. Those of
several, in a type narrower than fp32, are summed in fp32; the last micro-batch rounds the sum to G16 in the place of
the block's weights, which have been used by then, and it leaves from there. A slot of sums is free at once.
"""

from __future__ import annotations

from lohan_core.plan import Tier
from lohan_core.profile import Role
from lohan_core.schedule.sizes import KEPT_IN_FLIGHT, gradients_wait
from lohan_core.schedule.state import StepState
from lohan_core.schedule.task import Op, Slot
from lohan_core.schedule.update import WHOLE, LeavingGradients, emit_update_on_gpu
from lohan_core.schedule.weights import load_weights

__all__ = ["emit_backward"]

Taken = tuple[Slot, tuple[int, ...]]
"""A slot of a ring, and the tasks that must be finished before it is touched."""


def emit_backward(state: StepState) -> None:
    """Emit the postlude's turn, all layers and the prelude, then the global norm.

    Each chunk's update follows its gradients at once, unless it must wait: then they are put aside for later.
    """
    way_back = _WayBack(state)
    owners, leaving = _emit_turn(state)
    for index in reversed(state.layers):
        if not _has_room(state, index):
            leaving.finish()  # this block needs the slot
        load_weights(state, index)
        gradients = _take_gradients(state, index)
        for micro_batch in state.micro_batches:
            way_back.emit_ahead(index, micro_batch)
            _emit_block(
                state,
                Op.BACKWARD,
                index,
                micro_batch,
                gradients=gradients,
                uploads=way_back.uploads.pop((index, micro_batch), ()),
            )
            leaving.advance()
        leaving.finish()
        # Behind this block's kept bytes, not before them: on h2d these weights wait for the drives, which may be behind
        # with the states of earlier blocks, and whatever is queued after them would wait too.
        _load_ahead(state, index)
        leaving = _finish_block(state, index, gradients[0])
    gradients = owners or _take_gradients(state, 0)
    for micro_batch in state.micro_batches:
        _emit_block(state, Op.BACKWARD, 0, micro_batch, gradients=gradients)
        leaving.advance()
    leaving.finish()
    _finish_block(state, 0, gradients[0]).finish()
    # After what was written, too: where the norm is not finite, the states of the step before are whole.
    state.norm = (state.builder.add(Op.NORM, after=(*state.last_backward.values(), *state.written.values())),)


def _has_room(state: StepState, index: int) -> bool:
    """Whether there are slots for a layer's weights and gradients while those of the block before are leaving."""
    rings = state.builder.rings
    return bool(rings["gradients"].free and (index in state.loaded or rings["weights"].free))


def _load_ahead(state: StepState, index: int) -> None:
    """Bring the weights of the blocks that backward comes to next, as far as there are slots."""
    for ahead in range(index - 1, index - state.builder.rings["weights"].pool.slots, -1):
        if ahead in state.layers:
            load_weights(state, ahead)
    if index == 1:
        load_weights(state, 0)


class _WayBack:
    """Emits the return of kept bytes ahead of their use, across block boundaries."""

    def __init__(self, state: StepState) -> None:
        self.uploads: dict[tuple[int, int], tuple[int, ...]] = {}
        self._state = state
        self._order = [(index, k) for index in reversed(state.layers) for k in state.micro_batches]
        self._next = 0

    def emit_ahead(self, index: int, micro_batch: int) -> None:
        """Emit all that may be on the GPU with those of (index, micro_batch)."""
        wanted = self._order.index((index, micro_batch), max(0, self._next - KEPT_IN_FLIGHT)) + KEPT_IN_FLIGHT
        while self._next < min(wanted, len(self._order)):
            self._emit(self._next)
            self._next += 1

    def _emit(self, position: int) -> None:
        state = self._state
        index, micro_batch = self._order[position]
        held = state.kept[index]
        if not held.moved:
            return
        free = self._room(position)
        saved = state.saved[index, micro_batch]
        where = {"block": index, "micro_batch": micro_batch}
        if not held.ssd:
            upload = state.builder.add(Op.UPLOAD, work=held.moved, after=(*saved, *free), **where)
        else:
            ring = state.builder.rings["spill"]
            slot, slot_free = ring.acquire()
            unspill = state.builder.add(
                Op.UNSPILL, work=held.ssd, after=(*saved, *slot_free), touches=(slot,), takes=(slot,), **where
            )
            upload = state.builder.add(
                Op.UPLOAD, work=held.moved, after=(unspill, *free), touches=(slot,), gives=(slot,), **where
            )
            ring.release(slot, [upload])
        self.uploads[index, micro_batch] = (upload,)

    def _room(self, position: int) -> tuple[int, ...]:
        """Return the tasks after which what comes and goes leaves room for the kept bytes at ``position``."""
        state = self._state
        leaving = KEPT_IN_FLIGHT - 1 - len(self.uploads)  # so many sets may still be on their way out
        gone = state.offloads[-1 - leaving : len(state.offloads) - leaving]
        used = (state.made[self._order[position - KEPT_IN_FLIGHT]],) if position >= KEPT_IN_FLIGHT else ()
        return (*gone, *used)


def _take_gradients(state: StepState, index: int) -> Taken:
    """Take the slot in which a block's gradients are made."""
    if state.block(index).role is Role.LAYER:
        name = "gradients"
    else:
        name = "owner_gradients" if index in state.block(state.postlude).borrows else "edge_gradients"
    return state.builder.rings[name].acquire()


def _emit_turn(state: StepState) -> tuple[Taken | None, LeavingGradients]:
    """Emit the postlude. A tied embedding's gradient begins here: the prelude's slot is then taken, and returned."""
    index = state.postlude
    gradients = _take_gradients(state, index)
    owners = _take_gradients(state, 0) if state.block(index).borrows else None
    for micro_batch in state.micro_batches:
        _emit_block(state, Op.TURN, index, micro_batch, gradients=gradients, owners=owners)
    return owners and (owners[0], ()), _finish_block(state, index, gradients[0])


def _emit_block(
    state: StepState,
    op: Op,
    index: int,
    micro_batch: int,
    *,
    gradients: Taken,
    uploads: tuple[int, ...] = (),
    owners: Taken | None = None,
) -> None:
    loaded = state.loaded[index]
    source = index - 1 if op is Op.TURN else index + 1
    first, last = micro_batch == state.micro_batches[0], micro_batch == state.micro_batches[-1]
    taken = [gradients] if owners is None else [gradients, owners]
    slots = tuple(slot for slot, _ in taken)
    leaves_from = _leaves_from(state, index, gradients[0])
    made = state.builder.add(
        op,
        block=index,
        micro_batch=micro_batch,
        work=state.backward_seconds(index),
        after=(
            *loaded.uploads,
            *uploads,
            state.made[source, micro_batch],
            *(task for _, free in taken for task in free if first),
        ),
        touches=(*loaded.slots, *slots),
        takes=tuple(slot for slot in slots if slot not in state.held) if first else (),
        gives=tuple(slot for slot in (*loaded.slots, gradients[0]) if last and slot != leaves_from),
    )
    if first:
        state.held.update(slots)
    state.made[index, micro_batch] = made
    if last:
        state.last_backward[index] = made


def _leaves_from(state: StepState, index: int, gradients: Slot) -> Slot | None:
    """Tell which slot a block's G16 leaves from; its last download gives that back.

    None leaves where the block owns nothing, or where its states live on the GPU, in the place of whose weights it is.
    """
    if not state.block(index).elements or state.decisions(index).states is Tier.GPU:
        return None
    return state.loaded[index].slots[0] if state.sums_apart else gradients


def _finish_block(state: StepState, index: int, gradients: Slot) -> LeavingGradients:
    """Give back what backward is through with; return G16 as it is about to leave."""
    last = state.last_backward[index]
    leaves_from = _leaves_from(state, index, gradients)
    for slot in (*state.loaded.pop(index).slots, gradients):
        if slot != leaves_from:
            state.builder.rings[slot.pool].release(slot, [last])
    state.held.discard(gradients)
    if state.decisions(index).states is Tier.GPU:
        state.waiting[index, WHOLE] = (last,)
        if state.block(index).elements and not gradients_wait(state.workload, state.decisions(index)):
            emit_update_on_gpu(state, index)
    return LeavingGradients(state, index, leaves_from)
