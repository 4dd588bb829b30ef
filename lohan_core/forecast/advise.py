"""Which batch and micro-batch to take: the smallest that is about as fast as any."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

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
    """A batch, and the micro-batch to cut it into."""

    batch_size: int
    micro_batch_size: int
    tokens_per_second: float


def recommend_batch(
    case: Case, profile_of: Callable[[int], Profile], micro_batch_sizes: tuple[int, ...]
) -> BatchAdvice | None:
    """Double the batch until that is no longer worth it; the search is by lanes, without simulating each step.

    Args:
        case: planner, settings and limits.
        profile_of: gives the profile for a micro-batch size.
        micro_batch_sizes: what may be chosen from, ascending powers of two times the first.

    Returns:
        The advice; None if not even the smallest batch fits.
    """
    batch_size = micro_batch_sizes[0]
    best = _fastest(case, profile_of, micro_batch_sizes, batch_size)
    while best is not None and 2 * batch_size <= LARGEST_BATCH:
        batch_size *= 2
        larger = _fastest(case, profile_of, micro_batch_sizes, batch_size)
        if larger is None or larger.tokens_per_second < WORTH_DOUBLING * best.tokens_per_second:
            break
        best = larger
    return best


def _fastest(
    case: Case, profile_of: Callable[[int], Profile], micro_batch_sizes: tuple[int, ...], batch_size: int
) -> BatchAdvice | None:
    """Find the micro-batch size with which a batch is fastest; the smaller one among equals."""
    found: BatchAdvice | None = None
    for size in micro_batch_sizes:
        if size > batch_size:
            break
        profile = profile_of(size)
        try:
            plan, workload = case.plan(profile, batch_size // size)
        except PlanError:
            break  # a larger micro-batch takes more of the GPU
        seconds = step_lane_seconds(plan, profile, workload)
        rate = batch_size * profile.sequence_length / seconds
        if found is None or rate > found.tokens_per_second:
            found = BatchAdvice(batch_size=batch_size, micro_batch_size=size, tokens_per_second=rate)
    return found
