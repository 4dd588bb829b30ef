"""What plain PyTorch takes with everything on one device: whether it can be measured at all. Pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lohan_core.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from lohan_core.bench.workloads import StepWorkload

__all__ = ["plain_bytes", "why_plain_does_not_fit"]

STATE_BYTES = 4 + 8
"""Per parameter: fp32 master, two moments. A bf16 weight beside them; an fp32 weight is the master itself."""

GRADIENT_BYTES = 4
"""Per parameter: the fp32 sum. bf16 gradients become it one by one where there is one micro-batch."""

LOGIT_BYTES = 4 + 4
"""Per logit: fp32, and the gradient of that; and before them the bf16 ones that they are made of."""


def plain_bytes(
    parameters: int, config: PreTrainedConfig, workload: StepWorkload, batch_size: int, *, value_bytes: int = 2
) -> int:
    """Return what a step takes at the least: states, gradients, every layer's input, and the logits.

    Args:
        parameters: of the model.
        config: the model's.
        workload: rows, and tokens a row.
        batch_size: rows a step.
        value_bytes: of a weight, activation or gradient: 2 in bf16, 4 in fp32.
    """
    text = config.get_text_config()
    rows = workload.rows_at_once(batch_size)
    tokens = rows * workload.sequence_length
    # What there is in bf16 beside the fp32 of it.
    rounded_bytes = value_bytes if value_bytes < GRADIENT_BYTES else 0
    per_parameter = STATE_BYTES + rounded_bytes + GRADIENT_BYTES
    if batch_size > rows:  # gradients of a further micro-batch, beside the sum of those before
        per_parameter += rounded_bytes
    inputs: int = text.num_hidden_layers * tokens * text.hidden_size * value_bytes
    logits: int = tokens * text.vocab_size * (rounded_bytes + LOGIT_BYTES)
    return parameters * per_parameter + inputs + logits


def why_plain_does_not_fit(needed_bytes: int, free_bytes: int) -> str | None:
    """Return the reason in one line, or None if it fits."""
    if needed_bytes <= free_bytes:
        return None
    return f"does not fit: needs {format_bytes(needed_bytes)} at the least, and {format_bytes(free_bytes)} are free"
