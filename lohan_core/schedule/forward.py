"""Forward, blocks up: weights ahead of need; each micro-batch computed; what the plan keeps sent to its tier."""

from __future__ import annotations

from lohan_core.plan import Tier
from lohan_core.schedule.sizes import KEPT_IN_FLIGHT, keeping_seconds
from lohan_core.schedule.state import StepState
from lohan_core.schedule.task import Op
from lohan_core.schedule.weights import load_weights, unload_weights

__all__ = ["emit_forward"]


def emit_forward(state: StepState, *, scores_only: bool = False) -> None:
    """Emit the prelude and all layers; with ``scores_only`` the postlude's loss too, and nothing is kept.

    The weights of the last layers stay on the GPU when the layers are through: backward begins with them. Those of the
    postlude are on their way by then.
    """
    _emit_updates_on_gpu(state)
    _emit_prelude(state)
    for index in state.layers:
        for ahead in range(index, index + state.builder.rings["weights"].pool.slots):
            if ahead in state.layers:
                load_weights(state, ahead)
        if index == state.layers[-1]:
            load_weights(state, state.postlude)
        _emit_layer(state, index, keeps=not scores_only)
        behind = state.postlude - state.builder.rings["weights"].pool.slots
        if scores_only or index < behind:
            unload_weights(state, index, state.made[index, state.micro_batches[-1]])
    if scores_only:
        _emit_scores(state)


def _emit_updates_on_gpu(state: StepState) -> None:
    """Emit the deferred updates of layers whose states are on the GPU: it has nothing else to do at first.

    The prelude's weights come from an update on the CPU, or from the drives.
    """
    for index in state.layers:
        if index in state.pending and state.decisions(index).states is Tier.GPU:
            load_weights(state, index)


def _emit_prelude(state: StepState) -> None:
    load_weights(state, 0)
    for micro_batch in state.micro_batches:
        state.made[0, micro_batch] = state.builder.add(
            Op.FORWARD,
            block=0,
            micro_batch=micro_batch,
            work=state.block(0).seconds,
            after=state.loaded[0].uploads,
            touches=state.loaded[0].slots,
            gives=state.loaded[0].slots if micro_batch == state.micro_batches[-1] else (),
        )
    unload_weights(state, 0, state.made[0, state.micro_batches[-1]])


def _emit_layer(state: StepState, index: int, *, keeps: bool) -> None:
    loaded, block = state.loaded[index], state.block(index)
    seconds = block.seconds + (keeping_seconds(block, state.decisions(index)) if keeps else 0.0)
    leaves = not keeps or index < state.postlude - state.builder.rings["weights"].pool.slots
    for micro_batch in state.micro_batches:
        moved = (state.offloads[-KEPT_IN_FLIGHT],) if len(state.offloads) >= KEPT_IN_FLIGHT else ()
        made = state.builder.add(
            Op.FORWARD,
            block=index,
            micro_batch=micro_batch,
            work=seconds,
            after=(*loaded.uploads, state.made[index - 1, micro_batch], *moved),
            touches=loaded.slots,
            gives=loaded.slots if leaves and micro_batch == state.micro_batches[-1] else (),
        )
        state.made[index, micro_batch] = made
        if keeps:
            _emit_offload(state, index, micro_batch, made)


def _emit_offload(state: StepState, index: int, micro_batch: int, made: int) -> None:
    """Emit the way out of what a block keeps of one micro-batch: to host memory, and on to the drives."""
    held = state.kept[index]
    if not held.moved:
        return
    where = {"block": index, "micro_batch": micro_batch}
    if not held.ssd:
        offload = state.builder.add(Op.OFFLOAD, work=held.moved, after=(made,), **where)
        state.saved[index, micro_batch] = (offload,)
    else:
        ring = state.builder.rings["spill"]
        slot, free = ring.acquire()
        offload = state.builder.add(
            Op.OFFLOAD, work=held.moved, after=(made, *free), touches=(slot,), takes=(slot,), **where
        )
        spill = state.builder.add(Op.SPILL, work=held.ssd, after=(offload,), touches=(slot,), gives=(slot,), **where)
        ring.release(slot, [spill])
        state.saved[index, micro_batch] = (offload, spill)
    state.offloads.append(offload)


def _emit_scores(state: StepState) -> None:
    index = state.postlude
    loaded = state.loaded[index]
    for micro_batch in state.micro_batches:
        state.made[index, micro_batch] = state.builder.add(
            Op.SCORE,
            block=index,
            micro_batch=micro_batch,
            work=state.block(index).seconds,
            after=(*loaded.uploads, state.made[index - 1, micro_batch]),
            touches=loaded.slots,
            gives=loaded.slots if micro_batch == state.micro_batches[-1] else (),
        )
    unload_weights(state, index, state.made[index, state.micro_batches[-1]])
