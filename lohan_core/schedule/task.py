"""Tasks, lanes, pools: the vocabulary of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen

from lohan_core.plan import Tier

__all__ = [
    "DRIVE_LANES",
    "GIVES_MEMORY",
    "GRADIENT_POOLS",
    "TRANSFERS_IN_FLIGHT",
    "WEIGHT_POOLS",
    "Lane",
    "Op",
    "Pool",
    "Schedule",
    "Slot",
    "Task",
]


class Lane(StrEnum):
    """One hardware resource that works in order. ``ssd_read`` and ``ssd_write`` share the drives' bandwidth."""

    GPU = "gpu"
    H2D = "h2d"
    D2H = "d2h"
    SSD_READ = "ssd_read"
    SSD_WRITE = "ssd_write"
    CPU = "cpu"


DRIVE_LANES = (Lane.SSD_READ, Lane.SSD_WRITE)
TRANSFERS_IN_FLIGHT = 2
"""On a lane of the drives a transfer may begin before the one before is finished, and as many are on their way at most.

They are finished in order all the same. What must not meet an unfinished one needs a dependency on it.
"""


class Op(StrEnum):
    """What a task does, and on which lane."""

    FETCH_WEIGHTS = "fetch_weights"
    """ssd_read: a chunk of P16 into a host slot."""
    UPLOAD_WEIGHTS = "upload_weights"
    """h2d: P16 from a host slot (one chunk) or from resident host memory (the whole block) into a device slot."""
    FORWARD = "forward"
    """gpu: one micro-batch through one block."""
    OFFLOAD = "offload"
    """d2h: a block's input and kept candidates, of one micro-batch, into host memory."""
    SPILL = "spill"
    """ssd_write: the ssd part of what was offloaded."""
    UNSPILL = "unspill"
    """ssd_read: the same, back into a host slot."""
    UPLOAD = "upload"
    """h2d: a block's input and kept candidates, back onto the GPU."""
    TURN = "turn"
    """gpu: the postlude, forward and backward of one micro-batch at once."""
    SCORE = "score"
    """gpu: the postlude forward only, for evaluation."""
    BACKWARD = "backward"
    """gpu: one micro-batch backward through one block; the last one also rounds the block's gradients to G16."""
    DOWNLOAD_GRADIENT = "download_gradient"
    """d2h: a chunk of G16 into host memory."""
    SPILL_GRADIENT = "spill_gradient"
    """ssd_write: a chunk of G16 that must wait for its update."""
    FETCH_GRADIENT = "fetch_gradient"
    """ssd_read: the same, back into a host slot."""
    NORM = "norm"
    """cpu: the global gradient norm, once every block's gradients are known."""
    READ_STATES = "read_states"
    """ssd_read: a chunk of P32 and OS32 into a host slot."""
    UPDATE = "update"
    """cpu: a chunk's gradients into its states; fresh P16 out."""
    UPDATE_ON_GPU = "update_on_gpu"
    """gpu: the same, of a whole layer whose states live there."""
    WRITE_STATES = "write_states"
    """ssd_write: a chunk of P32, OS32 and P16 back."""


LANE_OF: Mapping[Op, Lane] = {
    Op.FETCH_WEIGHTS: Lane.SSD_READ,
    Op.UPLOAD_WEIGHTS: Lane.H2D,
    Op.FORWARD: Lane.GPU,
    Op.OFFLOAD: Lane.D2H,
    Op.SPILL: Lane.SSD_WRITE,
    Op.UNSPILL: Lane.SSD_READ,
    Op.UPLOAD: Lane.H2D,
    Op.TURN: Lane.GPU,
    Op.SCORE: Lane.GPU,
    Op.BACKWARD: Lane.GPU,
    Op.DOWNLOAD_GRADIENT: Lane.D2H,
    Op.SPILL_GRADIENT: Lane.SSD_WRITE,
    Op.FETCH_GRADIENT: Lane.SSD_READ,
    Op.NORM: Lane.CPU,
    Op.READ_STATES: Lane.SSD_READ,
    Op.UPDATE: Lane.CPU,
    Op.UPDATE_ON_GPU: Lane.GPU,
    Op.WRITE_STATES: Lane.SSD_WRITE,
}


GIVES_MEMORY = frozenset({(Op.OFFLOAD, Op.FORWARD), (Op.OFFLOAD, Op.UPLOAD), (Op.BACKWARD, Op.UPLOAD)})
"""Pairs of which the second comes after the first for its memory: GPU memory that no pool holds, such as outputs on
their way out. Of that the plan has counted ``sizes.KEPT_IN_FLIGHT`` sets; whoever allocates when a task is issued
must wait for the first to be finished before that."""


WEIGHT_POOLS = frozenset({"weights", "edge_weights"})
"""Pools on the GPU in which blocks' weights are: of layers, and of prelude and postlude."""

GRADIENT_POOLS = frozenset({"gradients", "edge_gradients", "owner_gradients"})
"""Pools on the GPU in which gradients are made: likewise, and of a block from which another borrows."""


@frozen(order=True)
class Slot:
    """One buffer of a pool."""

    pool: str
    index: int


@frozen(kw_only=True)
class Pool:
    """Buffers of one size on one tier, sized before the first step. ``slots`` may be 0: nothing needs it."""

    name: str
    tier: Tier
    slot_bytes: int
    slots: int

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return self.slot_bytes * self.slots


@frozen(kw_only=True)
class Task:
    """One piece of work on one lane.

    ``work`` is bytes on the transfer lanes, parameters on ``cpu`` and seconds on ``gpu`` (FLOPs are not seconds).
    ``after`` are indices of earlier tasks of the list that must be finished first; tasks of one lane run in the list's
    order besides. ``touches`` are the slots read or written; ``takes`` those whose tenure begins here, ``gives`` those
    whose tenure ends here. ``source`` is the block whose weights are moved: ``block`` itself, or the owner of
    parameters that it borrows. -1 stands for "does not apply".
    """

    index: int
    op: Op
    block: int = -1
    micro_batch: int = -1
    chunk: int = -1
    source: int = -1
    work: float = 0.0
    after: tuple[int, ...] = ()
    touches: tuple[Slot, ...] = ()
    takes: tuple[Slot, ...] = ()
    gives: tuple[Slot, ...] = ()

    @property
    def lane(self) -> Lane:
        """The lane that this kind of task runs on."""
        return LANE_OF[self.op]

    def slot(self, pool: str) -> int:
        """Return the index of the slot of ``pool`` that this task touches."""
        return next(slot.index for slot in self.touches if slot.pool == pool)


@frozen(kw_only=True)
class Schedule:
    """The tasks of one step in an order that is itself a valid serial execution, and the pools that they use.

    ``resident_bytes`` is what is held beside the pools for the whole run, by tier: states that live in host memory,
    activations that wait there, extents on the drives, and on the GPU what compute needs besides its pools.
    """

    tasks: tuple[Task, ...]
    pools: Mapping[str, Pool]
    resident_bytes: Mapping[Tier, int] = field(factory=dict)

    def bytes_on(self, tier: Tier) -> int:
        """Peak bytes on a tier: pools and what is resident."""
        return self.resident_bytes.get(tier, 0) + sum(pool.bytes for pool in self.pools.values() if pool.tier is tier)
