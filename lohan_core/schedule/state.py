"""What the emitters of a step share: which weights are where, and which task made what."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from lohan_core.layout import Chunk, cut_into_chunks
from lohan_core.plan import BlockPlan, Plan, Workload
from lohan_core.profile import BlockProfile, Profile
from lohan_core.schedule.builder import Builder
from lohan_core.schedule.sizes import KeptBytes, gradients_wait, recomputing_seconds, sums_apart
from lohan_core.schedule.task import Slot

__all__ = ["Loaded", "StepState"]


@define
class Loaded:
    """A block's weights on the GPU: their slot, and the tasks that must finish before they are used.

    No slot where they live on the GPU; the task is then the update that made them, if any.
    """

    slots: tuple[Slot, ...]
    uploads: tuple[int, ...]


@define(kw_only=True)
class StepState:
    """The step as emitted so far."""

    builder: Builder
    plan: Plan
    profile: Profile
    workload: Workload
    kept: Sequence[KeptBytes]
    """What each block keeps of one micro-batch."""
    speculates: bool = False
    """Whether this step makes the plan's speculative updates beside backward."""
    loaded: dict[int, Loaded] = field(factory=dict)
    """Blocks whose weights are on the GPU now."""
    made: dict[tuple[int, int], int] = field(factory=dict)
    """(block, micro-batch) to the task that made the activation or gradient which the next block in order takes."""
    saved: dict[tuple[int, int], tuple[int, ...]] = field(factory=dict)
    """(block, micro-batch) to the tasks after which its kept bytes are safe off the GPU."""
    offloads: list[int] = field(factory=list)
    """The offloads of forward, in order."""
    last_backward: dict[int, int] = field(factory=dict)
    """Block to its last backward task: its gradients are complete."""
    held: set[Slot] = field(factory=set)
    """Gradient slots whose tenure has begun."""
    waiting: dict[tuple[int, int], tuple[int, ...]] = field(factory=dict)
    """(block, chunk) to the task that put its G16 where it waits for the update; none if an earlier step did.

    Chunk -1 is the whole of a block whose states live on the GPU.
    """
    pending: set[int] = field(factory=set)
    """Blocks with a deferred update of the step before that is still to be emitted."""
    written: dict[tuple[int, int], int] = field(factory=dict)
    """(block, chunk) to the task that wrote its fresh states to the drives."""
    norm: tuple[int, ...] = ()
    """The task that works out the global norm; none before backward is emitted."""
    _backward_seconds: dict[int, float] = field(factory=dict, init=False)

    @property
    def micro_batches(self) -> range:
        """Their indices, in the order of every block: gradients are always summed in this order."""
        return range(self.workload.micro_batches)

    @property
    def sums_apart(self) -> bool:
        """Whether gradients are summed in fp32, and rounded to G16 in the place of the block's weights."""
        return sums_apart(self.profile, self.workload)

    @property
    def layers(self) -> range:
        """Indices of the decoder layers."""
        return range(1, len(self.profile.blocks) - 1)

    @property
    def postlude(self) -> int:
        """Index of the postlude."""
        return len(self.profile.blocks) - 1

    def block(self, index: int) -> BlockProfile:
        """The facts about one block."""
        return self.profile.blocks[index]

    def decisions(self, index: int) -> BlockPlan:
        """The plan for one block."""
        return self.plan.blocks[index]

    def backward_seconds(self, index: int) -> float:
        """What one micro-batch's backward through a block takes, with what it computes again."""
        if index not in self._backward_seconds:
            block = self.block(index)
            recomputing = recomputing_seconds(block, self.decisions(index))
            self._backward_seconds[index] = block.backward_seconds + recomputing
        return self._backward_seconds[index]

    def chunks(self, index: int) -> Sequence[Chunk]:
        """The chunks of one block."""
        return cut_into_chunks(self.block(index).elements, self.workload.chunk_elements)

    def updates_on_speculation(self, index: int) -> bool:
        """Whether a block is updated as soon as its gradients have arrived, though they must wait there, too."""
        return self.speculates and self.decisions(index).speculative

    def updates_after_backward(self, index: int) -> bool:
        """Whether a block's update runs once backward is through: not beside it, and not in the next forward."""
        decisions = self.decisions(index)
        return gradients_wait(self.workload, decisions) and not decisions.deferred
