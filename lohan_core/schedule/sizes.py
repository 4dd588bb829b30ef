"""What a plan's decisions weigh: bytes to move and to hold. Pure arithmetic over plan and profile."""

from __future__ import annotations

from attrs import frozen

from lohan_core.layout import round_up
from lohan_core.plan import BlockPlan, Plan, Tier, Workload
from lohan_core.profile import BlockProfile, Profile, Role
from lohan_core.states import SECTOR_BYTES, StateVector, chunk_record_bytes, saving_elements

__all__ = [
    "FRAGMENTS_SHARE",
    "KEPT_IN_FLIGHT",
    "KeptBytes",
    "gradients_wait",
    "keeping_seconds",
    "kept_bytes",
    "recomputing_seconds",
    "resident_bytes",
    "saving_bytes",
    "states_bytes",
    "sums_apart",
    "sums_in_fp32",
    "with_fragments",
]

KEPT_IN_FLIGHT = 2
"""Of so many micro-batches the GPU has at once what a block keeps and moves: one is computed with, the others are on
their way out or back. Forward and backward wait for the one before those; plans count the memory of so many."""

SUM_BYTES = 4
"""Of an element of a sum in fp32."""

FRAGMENTS_SHARE = 16
"""One byte in so many that come and go on the GPU is lost between them."""

TRANSIENT_SHARE = 12
"""And one in so many of the largest transient: of its pieces some are a third of it, and go into no smaller gap."""


@frozen(kw_only=True)
class KeptBytes:
    """Bytes of one micro-batch that one block keeps for its backward, by tier. Host and ssd parts are whole sectors."""

    gpu: int
    host: int
    ssd: int

    @property
    def moved(self) -> int:
        """Bytes that leave the GPU."""
        return self.host + self.ssd


def kept_bytes(block: BlockProfile, decisions: BlockPlan) -> KeptBytes:
    """Add up a block's input and kept candidates by tier. The prelude has no input and keeps nothing."""
    held = dict.fromkeys(Tier, 0)
    if block.role is not Role.PRELUDE:
        held[decisions.inputs] += round_up(block.input_bytes, SECTOR_BYTES)
    if decisions.keep:  # a search asks for thousands of plans that keep nothing
        sizes = {candidate.index: candidate.bytes for candidate in block.candidates}
        for index, tier in decisions.keep.items():
            held[tier] += round_up(sizes[index], SECTOR_BYTES)
    return KeptBytes(gpu=held[Tier.GPU], host=held[Tier.HOST], ssd=held[Tier.SSD])


def keeping_seconds(block: BlockProfile, decisions: BlockPlan) -> float:
    """Add up what one forward takes longer for what it keeps. Only layers keep anything."""
    if block.role is not Role.LAYER:
        return 0.0
    return sum(c.keeping_seconds for c in block.candidates if c.index in decisions.keep)


def recomputing_seconds(block: BlockProfile, decisions: BlockPlan) -> float:
    """Return what one micro-batch's backward computes again: less by what is kept, and no less than nothing."""
    kept_seconds = sum(c.seconds for c in block.candidates if c.index in decisions.keep)
    return max(0.0, block.recomputed_seconds - kept_seconds)


def gradients_wait(workload: Workload, decisions: BlockPlan) -> bool:
    """Whether a block's update cannot follow its gradients at once.

    It waits for the global norm to clip by, or for the next step's forward, or because the user asked for ``serial``.
    """
    return workload.all_updates_wait or decisions.deferred


def sums_apart(profile: Profile, workload: Workload) -> bool:
    """Whether gradients are summed in fp32 apart from G16: several micro-batches in a narrower type."""
    return sums_in_fp32(workload.micro_batches, profile.weight_bytes)


def sums_in_fp32(micro_batches: int, weight_bytes: int) -> bool:
    """Whether the gradients of so many micro-batches are summed apart, where a weight has so many bytes."""
    return micro_batches > 1 and weight_bytes < SUM_BYTES


def with_fragments(device_bytes: int) -> int:
    """Return what torch's allocator takes for bytes that come and go, on the GPU: a sixteenth more.

    A plan that left its fragments no room would have it run out in every step, stop all streams and give all its free
    pages back, or find no room for good. (Allocations of two steps with 20 GiB of them, one of a micro-batch and one of
    eight: with a sixteenth more it runs out in the first two steps at most, with a twenty-fifth in every step or for
    good. Of a step with 5 GiB of them and a piece of 1 GiB, in every step: see TRANSIENT_SHARE.)
    """
    return device_bytes + device_bytes // FRAGMENTS_SHARE


def states_bytes(block: BlockProfile, profile: Profile) -> int:
    """Bytes of all that is kept of a block's parameters: P16, P32 and OS32."""
    return block.elements * profile.weight_bytes + chunk_record_bytes(profile.states, block.elements)


def saving_bytes(profile: Profile) -> int:
    """Host bytes of the record by which states in memory are saved and read."""
    vectors = (*profile.states, StateVector(name="weights", value_bytes=profile.weight_bytes))
    longest = max(block.elements for block in profile.blocks)
    return chunk_record_bytes(vectors, saving_elements(vectors, longest))


def resident_bytes(plan: Plan, profile: Profile, workload: Workload) -> dict[Tier, int]:
    """Bytes held for the whole run beside the schedule's pools, by tier.

    Host: states that live there (twice where updates are speculative) and what states in memory are saved by, gradients
    (of blocks whose states live on the drives) and activations that wait there. Ssd: every version of every state
    (those in memory too, if they are to be saved), gradients and activations that wait there. GPU: states; and what
    comes and goes, with the allocator's fragments: candidates kept there, every micro-batch's tokens and layer
    arguments, activations and gradients at block boundaries, what is on its way in or out, and the largest transient.
    """
    total = dict.fromkeys(Tier, 0)
    largest_input = max(block.input_bytes for block in profile.blocks)
    kept = [kept_bytes(block, decisions) for block, decisions in zip(profile.blocks, plan.blocks, strict=True)]
    for block, decisions, held in zip(profile.blocks, plan.blocks, kept, strict=True):
        weights = block.elements * profile.weight_bytes
        states = states_bytes(block, profile)
        if decisions.states is Tier.SSD or workload.host_extents:
            total[Tier.SSD] += workload.versions * states
        if decisions.states is not Tier.SSD:
            total[decisions.states] += states
        if decisions.states is Tier.HOST and decisions.speculative:
            total[Tier.HOST] += states
        if decisions.states is Tier.SSD and gradients_wait(workload, decisions):
            total[decisions.gradients] += weights
        total[Tier.HOST] += workload.micro_batches * held.host
        total[Tier.SSD] += workload.micro_batches * held.ssd
    if workload.host_extents and any(
        decisions.states is not Tier.SSD and block.elements
        for block, decisions in zip(profile.blocks, plan.blocks, strict=True)
    ):
        total[Tier.HOST] += saving_bytes(profile)
    transient = max(block.transient_bytes for block in profile.blocks)
    comes_and_goes = (
        workload.micro_batches * (sum(held.gpu for held in kept) + profile.arguments_bytes)
        + (workload.micro_batches + 2) * largest_input
        + KEPT_IN_FLIGHT * max(held.moved for held in kept)
        + transient
        + transient // TRANSIENT_SHARE
    )
    # Whole sectors, as what is kept is: so each byte kept counts the same, wherever planners count it.
    total[Tier.GPU] += with_fragments(round_up(comes_and_goes, SECTOR_BYTES))
    return total
