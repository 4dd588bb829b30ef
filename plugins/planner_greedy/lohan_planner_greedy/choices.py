"""The six numbers that name a plan of these planners: three cuts through a list of items, three counts of blocks.

Items (see :mod:`lohan_planner_greedy.items`) are kept up to a point and placed nearest first, so that three cuts
through one list say where everything waits::

    [0, gpu_cut) gpu   [gpu_cut, host_cut) host   [host_cut, kept) ssd   [kept, ...) recomputed

Neighbours in the list belong to different blocks, so that every block has its share of each tier and the lanes work
evenly. Three counts through a list of blocks say whose states, and whose waiting gradients, are in host memory, from
its start (gradients are where the states are, and may be where those are not), and whose updates are deferred, from its
end: where states live on the drives, that spares these a read.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

__all__ = ["BlockCounts", "Choice"]

Integers = NDArray[np.int64]


@frozen(kw_only=True)
class Choice:
    """One plan of the family: how many items are kept, where the list is cut, and the three counts of blocks."""

    kept: int
    gpu_cut: int
    host_cut: int
    host_states: int
    host_gradients: int
    deferred: int


@frozen
class BlockCounts:
    """Every way to put the states and the waiting gradients of so many blocks into host memory, and defer so many.

    Arrays of one length: the three counts, and all bytes on host and ssd but those of activations.
    """

    states: Integers
    gradients: Integers
    deferred: Integers
    host_bytes: Integers
    ssd_bytes: Integers

    @property
    def must_defer(self) -> int:
        """The least number of updates deferred."""
        return int(self.deferred.min())

    def deferring_at_most(self, blocks: int) -> BlockCounts:
        """Return those ways that defer no more updates."""
        rows = self.deferred <= blocks
        return BlockCounts(
            self.states[rows], self.gradients[rows], self.deferred[rows], self.host_bytes[rows], self.ssd_bytes[rows]
        )
