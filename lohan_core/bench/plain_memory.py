"""What plain PyTorch takes with everything on one device: whether it can be measured at all. Pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lohan_core.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from lohan_core.bench.workloads import StepWorkload

__all__ = ["plain_bytes", "why_plain_does_not_fit"]

STATE_BYTES = 2 + 4 + 8
"""Per parameter: bf16 weight, fp32 master, two moments."""

GRADIENT_BYTES = 4
"""Per parameter: the fp32 sum. bf16 gradients become it one by one where there is one micro-batch."""

NEXT_GRADIENT_BYTES = 2
"""Per parameter: bf16 gradients of a further micro-batch, beside the sum of those before."""

LOGIT_BYTES = 2 + 4 + 4
"""Per logit: bf16, fp32, and the gradient of that."""


def plain_bytes(parameters: int, config: PreTrainedConfig, workload: StepWorkload, batch_size: int) -> int:
    """Return what a step takes at the least: states, gradients, every layer's input, and the logits.

    Args:
        parameters: of the model.
        config: the model's.
        workload: rows, and tokens a row.
        batch_size: rows a step.
    """
    text = config.get_text_config()
    rows = workload.rows_at_once(batch_size)
    tokens = rows * workload.sequence_length
    per_parameter = STATE_BYTES + GRADIENT_BYTES
    if batch_size > rows:
        per_parameter += NEXT_GRADIENT_BYTES
    inputs: int = text.num_hidden_layers * tokens * text.hidden_size * 2
    logits: int = tokens * text.vocab_size * LOGIT_BYTES
    return parameters * per_parameter + inputs + logits


def why_plain_does_not_fit(needed_bytes: int, free_bytes: int) -> str | None:
    """Return the reason in one line, or None if it fits."""
    if needed_bytes <= free_bytes:
        return None
    return f"does not fit: needs {format_bytes(needed_bytes)} at the least, and {format_bytes(free_bytes)} are free"
