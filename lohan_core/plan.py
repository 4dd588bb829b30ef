"""A plan: where each state and each candidate lives, and when updates run. Decisions as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen
from attrs.validators import ge, gt, in_, instance_of, optional

from lohan_core.layout import BLOCK_ALIGNMENT

__all__ = [
    "VERSIONS_TO_SPECULATE",
    "BlockPlan",
    "Budget",
    "Plan",
    "Tier",
    "Update",
    "Workload",
]

VERSIONS_TO_SPECULATE = 3
"""Of states on the drives: what is durable, what the next step begins from, and what may be taken back."""


class Tier(StrEnum):
    """Where bytes wait, nearest first."""

    GPU = "gpu"
    HOST = "host"
    SSD = "ssd"


class Update(StrEnum):
    """When and how chunks are updated (Ratel section IV-C). All of them give the same weights.

    ``serial`` updates after backward. The others update a block as soon as its gradients are in host memory, while
    backward runs on: ``naive`` reads, updates and writes one chunk after another; ``optimized`` issues the write of a
    chunk after the read of the next, so that reading, updating and writing overlap; ``deferred`` is ``optimized``, but
    a plan may defer blocks' updates into the next step's forward (:attr:`BlockPlan.deferred`). ``speculative`` is
    ``deferred``, but where gradients are clipped a plan may have blocks updated beside backward all the same, as if
    the norm, which nobody knows yet, would turn out to be no reason to clip (:attr:`BlockPlan.speculative`).
    """

    SERIAL = "serial"
    NAIVE = "naive"
    OPTIMIZED = "optimized"
    DEFERRED = "deferred"
    SPECULATIVE = "speculative"


@frozen(kw_only=True)
class Budget:
    """Bytes that a plan may use on each tier."""

    gpu_bytes: int = field(validator=ge(0))
    host_bytes: int = field(validator=ge(0))
    ssd_bytes: int = field(validator=ge(0))

    @property
    def by_tier(self) -> dict[Tier, int]:
        """The same, by tier."""
        return {Tier.GPU: self.gpu_bytes, Tier.HOST: self.host_bytes, Tier.SSD: self.ssd_bytes}


@frozen(kw_only=True)
class Workload:
    """What one step does.

    ``clips``: whether the update waits for the global gradient norm. ``versions``: how many copies of each state the
    store keeps (2 when a step becomes durable atomically, 1 without, 3 if updates of what is on the drives may be taken
    back besides). ``layer_slots`` and ``gradient_slots``: for how
    many layers at once the GPU has room for weights, and for gradients. Three and two keep every lane moving: one layer
    in use, one on its way, one being given back; one layer's gradients leave while the next one's arrive. Fewer are for
    layers so large that there is no room, or where a layer's states take a slot's place. Sums of several micro-batches
    in fp32 have one slot, whatever ``gradient_slots``: they leave, rounded, from a slot for weights. ``host_extents``:
    whether states in host memory have their extents on the drives too, which is where they are saved to; without,
    nothing of the run can be.
    """

    micro_batches: int = field(validator=gt(0))
    update: Update
    clips: bool
    chunk_elements: int = field(validator=gt(0))
    versions: int = field(default=2, validator=in_((1, 2, 3)))
    layer_slots: int = field(default=3, validator=in_((1, 2, 3)))
    gradient_slots: int = field(default=2, validator=in_((1, 2)))
    host_extents: bool = True

    @property
    def all_updates_wait(self) -> bool:
        """Whether every block's update waits, deferred or not: for the norm to clip by, or because the user said so."""
        return self.clips or self.update is Update.SERIAL

    @property
    def may_defer(self) -> bool:
        """Whether a plan may defer updates."""
        return self.update in {Update.DEFERRED, Update.SPECULATIVE}

    @property
    def may_speculate(self) -> bool:
        """Whether a plan may have blocks updated before the norm is known."""
        return self.update is Update.SPECULATIVE and self.clips

    def __attrs_post_init__(self) -> None:
        if self.chunk_elements % BLOCK_ALIGNMENT:
            raise ValueError(f"chunk_elements {self.chunk_elements} is not a multiple of {BLOCK_ALIGNMENT}")


def _freeze(keep: Mapping[int, Tier]) -> Mapping[int, Tier]:
    return {index: Tier(keep[index]) for index in sorted(keep)}


@frozen(kw_only=True)
class BlockPlan:
    """Decisions for one block.

    ``states``: where P16, P32 and OS32 live; on the GPU only those of layers, which are then updated there and move
    nothing. ``inputs``: where the block's input waits for backward. ``keep``: candidate index to tier; a candidate that
    is not named is recomputed. ``gradients``: where G16 of a block on ssd waits when its update cannot run at once,
    host or ssd; that of other blocks takes no room but that of their P16, which nobody reads before the update has made
    it anew. ``deferred``: whether its update runs in the next step's forward, just ahead of the block's use, when the
    global norm is known and the CPU would otherwise be idle. Never stale: forward waits for it. ``speculative``:
    whether a deferred update is made in this step's backward already, in a copy of the states, with gradients as they
    are. The copy is what counts if they turn out not to be clipped; else it is as if nothing had been done, and the
    update runs where it was deferred to. Steps do so while the last ones were not clipped.
    """

    states: Tier = field(validator=instance_of(Tier))
    inputs: Tier = field(default=Tier.HOST, validator=instance_of(Tier))
    keep: Mapping[int, Tier] = field(factory=dict, converter=_freeze)
    gradients: Tier = field(default=Tier.HOST, validator=in_((Tier.HOST, Tier.SSD)))
    deferred: bool = False
    speculative: bool = False

    def __attrs_post_init__(self) -> None:
        if self.speculative and (self.states is Tier.GPU or not self.deferred):
            raise ValueError("only a deferred update of states on host or ssd can be speculative")
        if self.states is not Tier.SSD and self.gradients is Tier.SSD:
            raise ValueError(
                f"gradients of a block whose states live on {self.states} wait with them, not on the drives"
            )


@frozen(kw_only=True)
class Plan:
    """One decision per block, in the model's order, and who made it.

    ``note`` is what the planner has to say about it (how it was found, how long that took); plans are equal that decide
    the same, whatever their notes.
    """

    planner: str
    blocks: tuple[BlockPlan, ...]
    note: str | None = field(default=None, validator=optional(instance_of(str)), eq=False)
