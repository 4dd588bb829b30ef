"""Which row comes when: a pure function of the seed and a counter, so that a position in the data is one number."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["permutation", "rows_of_step"]


@lru_cache(maxsize=2)  # a batch may reach over the end of one epoch into the next
def permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order in which an epoch visits ``rows`` rows; shape (rows,), read-only.

    Sorts raw 64-bit draws of a counter-based generator: NumPy promises that those never change between its versions,
    which it does not for ``Generator.permutation``, and a resumed run must see the same order.
    """
    draws = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(rows)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order


def rows_of_step(step: int, *, rows: int, batch_size: int, seed: int, shuffle: bool) -> NDArray[np.int64]:
    """Rows of the batch of ``step`` (from 0), shape (batch_size,).

    Batches are laid end to end over the epochs: a batch at the end of one epoch goes on with the beginning of the
    next, and in every epoch each row comes exactly once.
    """
    epochs, positions = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), rows)
    if not shuffle:
        return positions
    visited = [permutation(rows, seed, int(epoch))[positions[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(visited)
