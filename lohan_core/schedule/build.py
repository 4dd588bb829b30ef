"""``build_schedule``: the tasks of one training step, of one evaluation, or of updates alone, that carry a plan out.

The order of the list is the order of need: a lane that runs through its own tasks in this order always works on what is
wanted next, and runs ahead as far as the rings let it. Every dependency points backwards, so the list itself is a valid
serial execution and no lane can wait for another in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lohan_core.plan import Plan, Tier, Update, Workload
from lohan_core.profile import BlockProfile, Profile, Role
from lohan_core.schedule.backward import emit_backward
from lohan_core.schedule.builder import Builder
from lohan_core.schedule.forward import emit_forward
from lohan_core.schedule.sizes import SUM_BYTES, KeptBytes, kept_bytes, resident_bytes, sums_apart
from lohan_core.schedule.state import StepState
from lohan_core.schedule.task import Schedule
from lohan_core.schedule.update import emit_deferred_updates, emit_waiting_updates
from lohan_core.states import chunk_record_bytes

__all__ = ["build_evaluation", "build_memory", "build_schedule", "build_updates"]

STAGING_SLOTS = 4
SPILL_SLOTS = 3
RECORD_SLOTS = dict.fromkeys(Update, 3) | {Update.NAIVE: 1}  # one is read, one updated, one written


def build_schedule(
    plan: Plan, profile: Profile, workload: Workload, *, pending: bool = True, speculates: bool = True
) -> Schedule:
    """Build one training step.

    Args:
        plan: the decisions.
        profile: the model and the machine.
        workload: what the step does.
        pending: whether a step came before whose deferred updates are still to be done: in all steps but the first.
        speculates: whether this step makes the plan's speculative updates, and the one before did, with success.

    Returns:
        The schedule; its pools and resident bytes are all the memory that carrying it out takes.
    """
    state = _begin(plan, profile, workload)
    state.speculates = speculates
    if pending:
        state.pending.update(_deferred(plan, profile, speculated=speculates))
    emit_forward(state)
    emit_backward(state)
    emit_waiting_updates(state)
    return Schedule(
        tasks=tuple(state.builder.tasks),
        pools=state.builder.pools(),
        resident_bytes=resident_bytes(plan, profile, workload),
    )


def build_memory(plan: Plan, profile: Profile, workload: Workload) -> Schedule:
    """Build the pools and resident bytes of a training step without its tasks: what it takes, not what it does."""
    state = _begin(plan, profile, workload)
    return Schedule(tasks=(), pools=state.builder.pools(), resident_bytes=resident_bytes(plan, profile, workload))


def build_evaluation(plan: Plan, profile: Profile, workload: Workload) -> Schedule:
    """Build one forward pass that only scores: the same pools, nothing kept, nothing updated."""
    state = _begin(plan, profile, workload)
    emit_forward(state, scores_only=True)
    return Schedule(tasks=tuple(state.builder.tasks), pools=state.builder.pools())


def build_updates(plan: Plan, profile: Profile, workload: Workload, *, speculated: bool = True) -> Schedule:
    """Build the deferred updates of a step that no other follows: the same pools, and no forward to hide them in.

    ``speculated``: whether the speculative ones have been made in that step, and count.
    """
    state = _begin(plan, profile, workload)
    emit_deferred_updates(state, _deferred(plan, profile, speculated=speculated))
    return Schedule(tasks=tuple(state.builder.tasks), pools=state.builder.pools())


def _begin(plan: Plan, profile: Profile, workload: Workload) -> StepState:
    builder = Builder()
    kept = [kept_bytes(block, decisions) for block, decisions in zip(profile.blocks, plan.blocks, strict=True)]
    _declare_device_pools(builder, profile, workload)
    _declare_host_pools(builder, plan, profile, workload, kept)
    return StepState(builder=builder, plan=plan, profile=profile, workload=workload, kept=kept)


def _deferred(plan: Plan, profile: Profile, *, speculated: bool) -> list[int]:
    """Blocks that have something to update, and do it in the next step's forward; in forward's order."""
    return [
        index
        for index, (block, decisions) in enumerate(zip(profile.blocks, plan.blocks, strict=True))
        if decisions.deferred and block.elements and not (speculated and decisions.speculative)
    ]


def _fetched_elements(block: BlockProfile, profile: Profile) -> int:
    return block.elements + sum(profile.blocks[owner].elements for owner in block.borrows)


def _declare_device_pools(builder: Builder, profile: Profile, workload: Workload) -> None:
    layers = [block for block in profile.blocks if block.role is Role.LAYER]
    edges = [block for block in profile.blocks if block.role is not Role.LAYER]
    owners = [profile.blocks[index] for index in sorted({owner for block in edges for owner in block.borrows})]
    longest = max(block.elements for block in layers)
    fetched = max(_fetched_elements(block, profile) for block in edges)
    size = profile.weight_bytes
    builder.add_pool("weights", Tier.GPU, longest * size, min(workload.layer_slots, len(layers)))
    builder.add_pool("edge_weights", Tier.GPU, fetched * size, 1)
    slots = min(workload.gradient_slots, len(layers))
    if sums_apart(profile, workload):
        size, slots = SUM_BYTES, 1  # free as soon as its sum is rounded
    builder.add_pool("gradients", Tier.GPU, longest * size, slots)
    # A tied embedding's gradient is there from the postlude's turn on; else the postlude's has left when it begins.
    builder.add_pool("edge_gradients", Tier.GPU, _longest([b for b in edges if b not in owners]) * size, 1)
    builder.add_pool("owner_gradients", Tier.GPU, _longest(owners) * size, len(owners))


def _longest(blocks: Iterable[BlockProfile]) -> int:
    return max((block.elements for block in blocks), default=0)


def _declare_host_pools(
    builder: Builder, plan: Plan, profile: Profile, workload: Workload, kept: Sequence[KeptBytes]
) -> None:
    longest = max(block.elements for block in profile.blocks)
    chunk = min(workload.chunk_elements, longest)
    weights = chunk * profile.weight_bytes
    on_ssd = any(decisions.states is Tier.SSD for decisions in plan.blocks)
    spilled = max(held.ssd for held in kept)
    builder.add_pool("staging", Tier.HOST, weights, STAGING_SLOTS if on_ssd else 0)
    builder.add_pool("gradient_chunks", Tier.HOST, weights, STAGING_SLOTS if on_ssd else 0)
    record = weights + chunk_record_bytes(profile.states, chunk)
    builder.add_pool("records", Tier.HOST, record, RECORD_SLOTS[workload.update] if on_ssd else 0)
    builder.add_pool("spill", Tier.HOST, spilled, SPILL_SLOTS if spilled else 0)
