"""What became of the samples: counted, so that nothing is lost without a word."""

from __future__ import annotations

from attrs import frozen

__all__ = ["DatasetReport"]


@frozen(kw_only=True)
class DatasetReport:
    """Counts of one data set, after truncation, splitting and packing."""

    samples: int
    rows: int
    tokens: int
    """Tokens in all rows, padding not counted."""
    loss_tokens: int
    """Those of them that are learned in an epoch."""
    row_length: int
    """Tokens in a row, padding counted."""
    truncated: int
    """Samples whose end was cut off."""
    split: int
    """Samples divided over several rows."""
    dropped: int
    """Samples with no token left to learn."""

    def __str__(self) -> str:
        filled = self.tokens / (self.rows * self.row_length)
        parts = [
            f"{self.samples:,} samples in {self.rows:,} rows of {self.row_length:,} tokens ({filled:.0%} filled)",
            f"{self.tokens:,} tokens, {self.loss_tokens:,} of them learned",
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} longer than a row and cut off")
        if self.split:
            parts.append(f"{self.split:,} longer than a row and divided")
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped, nothing to learn in them")
        return "; ".join(parts)
