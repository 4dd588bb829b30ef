"""Which batch and micro-batch to take: the smallest that is about as fast as any."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve, frozen

from lohan_core.errors import PlanError
from lohan_core.forecast.case import Case
from lohan_core.lane_model import step_lane_seconds
from lohan_core.profile import Profile

__all__ = ["BatchAdvice", "recommend_batch"]

LARGEST_BATCH = 1024
WORTH_DOUBLING = 1.05
"""A larger batch is advised as long as doubling it makes tokens come so many times faster."""


@frozen(kw_only=True)
class BatchAdvice:
    """A batch, and the micro-batch to cut it into; ``larger_fits``: whether twice the batch, cut so, would fit."""

    batch_size: int
    micro_batch_size: int
    tokens_per_second: float
    larger_fits: bool = True


def recommend_batch(
    case: Case, profile_of: Callable[[int], Profile], micro_batch_sizes: tuple[int, ...]
) -> BatchAdvice | None:
    """Find the fastest micro-batch size, then double the batch until that is no longer worth it.

    Steps are compared by their lanes, without simulating each.

    Args:
        case: planner, settings and limits.
        profile_of: gives the profile for a micro-batch size.
        micro_batch_sizes: what may be chosen from, ascending powers of two times the first.

    Returns:
        The advice; None if not even the smallest batch fits.
    """
    for batch_size in reversed(micro_batch_sizes):
        best = _fastest(case, profile_of, [size for size in micro_batch_sizes if size <= batch_size], batch_size)
        if best is not None:
            return _grown(case, profile_of(best.micro_batch_size), best)
    return None


def _fastest(
    case: Case, profile_of: Callable[[int], Profile], micro_batch_sizes: list[int], batch_size: int
) -> BatchAdvice | None:
    """Find the micro-batch size with which a batch is fastest; the smaller one among equals."""
    found: BatchAdvice | None = None
    for size in micro_batch_sizes:
        advice = _rated(case, profile_of(size), batch_size)
        # A smaller micro-batch is not always the one that fits: only several of them need room for gradients' sums.
        if advice is not None and (found is None or advice.tokens_per_second > found.tokens_per_second):
            found = advice
    return found


def _grown(case: Case, profile: Profile, best: BatchAdvice) -> BatchAdvice:
    """Double the batch from one micro-batch on, as long as that is worth it; ``best`` is known to fit."""
    advice = _rated(case, profile, profile.micro_batch_size) or best
    while 2 * advice.batch_size <= LARGEST_BATCH:
        larger = _rated(case, profile, 2 * advice.batch_size)
        if larger is None:
            return evolve(advice, larger_fits=False)
        if larger.tokens_per_second < WORTH_DOUBLING * advice.tokens_per_second:
            break
        advice = larger
    return advice


def _rated(case: Case, profile: Profile, batch_size: int) -> BatchAdvice | None:
    """Tell how fast a batch is; None if it does not fit."""
    try:
        plan, workload = case.plan(profile, batch_size // profile.micro_batch_size)
    except PlanError:
        return None
    seconds = step_lane_seconds(plan, profile, workload)
    return BatchAdvice(
        batch_size=batch_size,
        micro_batch_size=profile.micro_batch_size,
        tokens_per_second=batch_size * profile.sequence_length / seconds,
    )
