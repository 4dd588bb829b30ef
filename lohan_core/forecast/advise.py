"""Which batch and micro-batch to take: the smallest that is about as fast as any."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeAlias

from attrs import evolve, frozen

from lohan_core.forecast.forecast import Forecast

__all__ = ["BatchAdvice", "End", "ForecastOf", "recommend_batch", "sizes_to_try"]

LARGEST_BATCH = 1024
TOKENS_AT_ONCE = 32 * 1024
"""So many tokens in a micro-batch, or a few rows, keep any GPU busy: larger ones are not tried."""
ROWS_AT_ONCE = 32
WORTH_DOUBLING = 1.05
"""A larger batch is advised as long as doubling it makes tokens come so many times faster."""

FASTER = 1.01
"""A larger micro-batch is advised if it is so many times faster: a smaller one leaves room for smaller batches."""
SLOWER = 1.25
"""Where a micro-batch is so many times slower than a larger one, no smaller ones are tried."""


class End(StrEnum):
    """Why no larger batch is advised."""

    SPEED = "speed"
    """Twice as many rows are hardly faster."""
    MEMORY = "memory"
    """They do not fit."""
    SEARCH = "search"
    """They were not tried."""


@frozen(kw_only=True)
class BatchAdvice:
    """A batch, the micro-batch to cut it into, and why it is no larger."""

    batch_size: int
    micro_batch_size: int
    tokens_per_second: float
    ends_at: End = End.SPEED
    tried: tuple[int, ...] = ()
    """Micro-batch sizes that it was chosen from."""


ForecastOf: TypeAlias = Callable[[int, int], Forecast | None]
"""Forecasts a step by its batch size and its micro-batch size; None if it does not fit."""


def sizes_to_try(sequence_length: int) -> tuple[int, ...]:
    """Return the micro-batch sizes that are worth trying: powers of two."""
    most = min(LARGEST_BATCH, max(ROWS_AT_ONCE, TOKENS_AT_ONCE // sequence_length))
    return tuple(1 << power for power in range(most.bit_length()))


def recommend_batch(forecast_of: ForecastOf, micro_batch_sizes: tuple[int, ...]) -> BatchAdvice | None:
    """Find the fastest micro-batch size of a large batch, then the smallest batch that is not worth doubling.

    Doubling is taken to bring less and less: from the large batch on, batches are tried in one direction only.

    Args:
        forecast_of: forecasts each step; is asked for some of them twice.
        micro_batch_sizes: what may be chosen from, ascending powers of two times the first.

    Returns:
        The advice; None if not even the smallest batch fits.
    """
    for batch_size in reversed(micro_batch_sizes):
        best = _fastest(forecast_of, [size for size in micro_batch_sizes if size <= batch_size], batch_size)
        if best is not None:
            smaller = _shrunk(forecast_of, best)
            advice = smaller if smaller != best else _grown(forecast_of, best)
            return evolve(advice, tried=micro_batch_sizes)
    return None


def _fastest(forecast_of: ForecastOf, micro_batch_sizes: list[int], batch_size: int) -> BatchAdvice | None:
    """Find the micro-batch size with which a batch is fastest; the smaller one among those that are about as fast."""
    found: list[BatchAdvice] = []
    fastest = 0.0
    for size in reversed(micro_batch_sizes):
        advice = _rated(forecast_of, batch_size, size)
        if advice is None:
            # A smaller micro-batch is not always the one that fits: only several of them need room for gradients' sums.
            continue
        if fastest > SLOWER * advice.tokens_per_second:
            break
        fastest = max(fastest, advice.tokens_per_second)
        found.append(advice)
    return next((advice for advice in reversed(found) if FASTER * advice.tokens_per_second >= fastest), None)


def _grown(forecast_of: ForecastOf, best: BatchAdvice) -> BatchAdvice:
    """Double the batch as long as that is worth it."""
    advice = best
    while 2 * advice.batch_size <= LARGEST_BATCH:
        larger = _rated(forecast_of, 2 * advice.batch_size, advice.micro_batch_size)
        if larger is None:
            return evolve(advice, ends_at=End.MEMORY)
        if not _worth(larger, advice):
            return advice
        advice = larger
    return evolve(advice, ends_at=End.SEARCH)


def _shrunk(forecast_of: ForecastOf, best: BatchAdvice) -> BatchAdvice:
    """Halve the batch, down to one micro-batch, as long as doubling it again would not be worth it."""
    advice = best
    while advice.batch_size > advice.micro_batch_size:
        smaller = _rated(forecast_of, advice.batch_size // 2, advice.micro_batch_size)
        if smaller is None or _worth(advice, smaller):
            break
        advice = smaller
    return advice


def _worth(larger: BatchAdvice, smaller: BatchAdvice) -> bool:
    return larger.tokens_per_second >= WORTH_DOUBLING * smaller.tokens_per_second


def _rated(forecast_of: ForecastOf, batch_size: int, micro_batch_size: int) -> BatchAdvice | None:
    """Tell how fast a batch is; None if it does not fit."""
    forecast = forecast_of(batch_size, micro_batch_size)
    if forecast is None:
        return None
    return BatchAdvice(
        batch_size=batch_size, micro_batch_size=micro_batch_size, tokens_per_second=forecast.tokens_per_second
    )
