"""Algorithm 1 of the paper over a family of plans: keep item after item while the predicted step gets shorter.

The paper's step is convex in the bytes kept, and the algorithm stops at the first minimum. With the limits of real
tiers (buffers, candidates that cannot be divided, states that compete for host memory) it need not be, so every length
of the list is tried and the first shortest step wins; where the step is convex that is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lohan_core.plan import Budget, Tier
from lohan_planner_greedy.choices import BlockCounts, Choice
from lohan_planner_greedy.family import Family
from lohan_planner_greedy.objective import Objective

__all__ = ["SHORTER", "Graded", "Search", "first_shortest", "kept_lengths"]

Integers = NDArray[np.int64]

MOST_LENGTHS = 400
SHORTER = 1 - 1e-12
"""A step is shorter if it is by more than what rounding makes of equal sums."""


@frozen
class Graded:
    """A choice, and its step's predicted length."""

    seconds: float
    choice: Choice


@frozen(kw_only=True)
class Search:
    """What a strategy may do: how many items it may keep, and on which tiers."""

    lengths: Iterable[int]
    tiers: frozenset[Tier]

    def curve(self, family: Family, counts: BlockCounts, objective: Objective, budget: Budget) -> list[Graded]:
        """Grade the best choice of each length that fits ``budget``, in the order of lengths.

        Tiers are filled nearest first: a nearer tier never makes a step longer, so nothing else need be tried. Of equal
        ways to decide about blocks the first wins: the one with most states in host memory, which spares the drives,
        and then with fewest updates deferred.
        """
        curve = []
        for kept in self.lengths:
            gpu_cut = self._fill_gpu(family, kept, budget)
            if gpu_cut is None:
                continue
            rest = slice(gpu_cut, kept)
            on_host = self._fill_host(family, counts, rest, budget)
            moving = np.concatenate([[0], np.cumsum(family.moving_bytes[rest])]) * family.workload.micro_batches
            predicted = objective.seconds(kept, float(moving[-1]), (moving[-1] - moving[on_host]).astype(float))
            seconds = np.where(on_host >= 0, predicted, np.inf)
            least = float(seconds.min())
            if least == np.inf:
                continue
            row = int(np.argmax(seconds <= least / SHORTER))
            choice = Choice(
                kept=kept,
                gpu_cut=gpu_cut,
                host_cut=gpu_cut + int(on_host[row]),
                host_states=int(counts.states[row]),
                host_gradients=int(counts.gradients[row]),
                deferred=int(counts.deferred[row]),
            )
            curve.append(Graded(least, choice))
        return curve

    def _fill_gpu(self, family: Family, kept: int, budget: Budget) -> int | None:
        """Return how many of the kept items stay on the GPU; None if it has no room for the step."""
        fits = family.gpu_bytes(kept) <= budget.gpu_bytes
        if Tier.GPU not in self.tiers:
            fits[1:] = False
        if self.tiers == {Tier.GPU}:
            fits[:-1] = False
        return kept - int(np.argmax(fits[::-1])) if fits.any() else None

    def _fill_host(self, family: Family, counts: BlockCounts, rest: slice, budget: Budget) -> Integers:
        """Return how many of ``rest`` wait in host memory, for each row of ``counts``; -1 where nothing fits."""
        free = budget.host_bytes - counts.host_bytes
        needed = family.host_activation_bytes(rest)
        if Tier.SSD not in self.tiers:
            on_host = np.where(needed[-1] <= free, rest.stop - rest.start, -1)
        elif Tier.HOST not in self.tiers:
            on_host = np.where(needed[0] <= free, 0, -1)
        else:
            # More in host memory can take less of it, by smaller buffers on the way to the drives: look from the end.
            least = np.minimum.accumulate(needed[::-1])[::-1]
            on_host = np.searchsorted(least, free, side="right") - 1
        held = np.concatenate([[0], np.cumsum(family.item_bytes[rest])])
        spilled = family.workload.micro_batches * (held[-1] - held[on_host])
        return np.where(counts.ssd_bytes + spilled <= budget.ssd_bytes, on_host, -1)


def kept_lengths(family: Family) -> list[int]:
    """How many items to try to keep: any number from the inputs on, or, of a long list, a few hundred of them.

    In a long list each item is a small part of a percent, and candidates of identical blocks, which are worth the same,
    lie side by side: between two lengths that are tried the step changes evenly.
    """
    first = sum(item.candidate is None for item in family.items)
    steps = min(MOST_LENGTHS, len(family.items) - first)
    return sorted({first + (len(family.items) - first) * step // max(1, steps) for step in range(steps + 1)})


def first_shortest(curve: Sequence[Graded]) -> Graded:
    """Return where the step stops getting shorter: of equal steps, the one that keeps least."""
    least = min(graded.seconds for graded in curve)
    return next(graded for graded in curve if graded.seconds <= least / SHORTER)
