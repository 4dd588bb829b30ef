"""What the emitters of a step share: which weights are where, and which task made what."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from lohan_core.layout import Chunk
from lohan_core.plan import BlockPlan, Plan, Tier, Workload
from lohan_core.profile import BlockProfile, Profile, Role
from lohan_core.schedule.builder import Builder
from lohan_core.schedule.sizes import chunks_of
from lohan_core.schedule.task import Op, Slot

__all__ = ["Loaded", "StepState"]


@define
class Loaded:
    """A block's weights on the GPU: their slot, and the uploads that must finish before they are used."""

    slot: Slot
    uploads: tuple[int, ...]


@define(kw_only=True)
class StepState:
    """The step as emitted so far."""

    builder: Builder
    plan: Plan
    profile: Profile
    workload: Workload
    loaded: dict[int, Loaded] = field(factory=dict)
    """Blocks whose weights are on the GPU now."""
    made: dict[tuple[int, int], int] = field(factory=dict)
    """(block, micro-batch) to the task that made the activation or gradient which the next block in order takes."""
    saved: dict[tuple[int, int], tuple[int, ...]] = field(factory=dict)
    """(block, micro-batch) to the tasks after which its kept bytes are safe off the GPU."""
    last_backward: dict[int, int] = field(factory=dict)
    """Block to its last backward task: its gradients are complete."""
    held: set[Slot] = field(factory=set)
    """Gradient slots whose tenure has begun."""
    waiting: dict[tuple[int, int], int] = field(factory=dict)
    """(block, chunk) to the task that put its G16 where it waits for the update."""

    @property
    def micro_batches(self) -> range:
        """Their indices, in the order of every block: gradients are always summed in this order."""
        return range(self.workload.micro_batches)

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

    def chunks(self, index: int) -> Sequence[Chunk]:
        """The chunks of one block."""
        return chunks_of(self.block(index), self.workload.chunk_elements)

    def load_weights(self, index: int) -> None:
        """Emit the fetch and upload of a block's weights, borrowed ones too, unless they are on the GPU already."""
        if index in self.loaded:
            return
        pool = "weights" if self.block(index).role is Role.LAYER else "edge_weights"
        slot, free = self.builder.rings[pool].acquire()
        uploads: list[int] = []
        for source in (index, *self.block(index).borrows):
            if not self.block(source).elements:
                continue
            if self.decisions(source).states is Tier.HOST:
                uploads.append(self._upload_resident(index, source, slot, free, takes=not uploads))
            else:
                uploads.extend(self._upload_staged(index, source, slot, free, takes=not uploads))
        self.loaded[index] = Loaded(slot, tuple(uploads))

    def unload_weights(self, index: int, after: int) -> None:
        """Give a block's device slot back once the task ``after`` is finished."""
        loaded = self.loaded.pop(index)
        self.builder.rings[loaded.slot.pool].release(loaded.slot, [after])

    def _upload_resident(self, index: int, source: int, slot: Slot, free: tuple[int, ...], *, takes: bool) -> int:
        return self.builder.add(
            Op.UPLOAD_WEIGHTS,
            block=index,
            source=source,
            work=self.block(source).elements * self.profile.weight_bytes,
            after=free,
            touches=(slot,),
            takes=(slot,) if takes else (),
        )

    def _upload_staged(self, index: int, source: int, slot: Slot, free: tuple[int, ...], *, takes: bool) -> list[int]:
        staging = self.builder.rings["staging"]
        uploads: list[int] = []
        for chunk in self.chunks(source):
            staged, staged_free = staging.acquire()
            work = chunk.elements * self.profile.weight_bytes
            where = {"block": index, "source": source, "chunk": chunk.index, "work": work}
            fetch = self.builder.add(Op.FETCH_WEIGHTS, after=staged_free, touches=(staged,), takes=(staged,), **where)
            upload = self.builder.add(
                Op.UPLOAD_WEIGHTS,
                after=(fetch, *free),
                touches=(slot, staged),
                takes=(slot,) if takes and not uploads else (),
                gives=(staged,),
                **where,
            )
            staging.release(staged, [upload])
            uploads.append(upload)
        return uploads
