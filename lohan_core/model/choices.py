"""What a config may choose about how the model computes."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Attention", "Loss"]


class Attention(StrEnum):
    """Which kernels compute attention."""

    AUTO = "auto"
    """The first of the others that the model and the machine can do."""
    FLASH = "flash"
    """The package flash-attn."""
    SDPA = "sdpa"
    """torch's own fused kernels."""
    EAGER = "eager"
    """One operator after the other: every score is held in memory."""


class Loss(StrEnum):
    """How the head and the loss are computed."""

    WHOLE = "whole"
    """As the model defines them, all logits at once."""
    CHUNKED = "chunked"
    """Some tokens' logits at a time, by torch's operators."""
    LIGER = "liger"
    """Some tokens' logits at a time, by the kernels of the package liger-kernel."""
