"""Evaluation in the memory that is planned for training, whatever the length of its rows."""

from __future__ import annotations

from lohan_core.data import Dataset
from lohan_core.errors import ConfigError

__all__ = ["require_room", "rows_within"]


def rows_within(rows: int, *, planned: int, actual: int) -> int:
    """Return how many rows of ``actual`` tokens, at most ``rows``, fit where ``rows`` of ``planned`` tokens do."""
    return min(rows, rows * planned // actual)


def require_room(training: Dataset, evaluation: Dataset, micro_batch_size: int) -> None:
    """Memory is planned for micro-batches of training data.

    Raises:
        ConfigError: not even one row of the evaluation data fits in there.
    """
    if not rows_within(micro_batch_size, planned=training.row_length, actual=evaluation.row_length):
        raise ConfigError(
            f"data.eval: its rows have {evaluation.row_length:,} tokens, and memory is planned for micro-batches of "
            f"data.train, {micro_batch_size} x {training.row_length:,} tokens; lower data.sequence_length to "
            f"{micro_batch_size * training.row_length}, or raise run.micro_batch_size"
        )
