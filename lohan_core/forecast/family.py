"""A model's family: the same architecture in other sizes, and the largest of them that fits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lohan_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from lohan_core.engine.derive import Outline

__all__ = ["SHAPES", "Shape", "largest_that_fits", "scaled_config", "scaled_outline"]


@frozen
class Shape:
    """Depth and width of a model, and what it is called in its usual architecture."""

    name: str
    layers: int
    heads: int
    hidden: int


SHAPES: Sequence[Shape] = (
    Shape("0.35B", 24, 16, 1024),
    Shape("1.3B", 24, 32, 2048),
    Shape("2.7B", 32, 32, 2560),
    Shape("6B", 28, 32, 4096),
    Shape("13B", 40, 40, 5120),
    Shape("30B", 48, 56, 7168),
    Shape("70B", 80, 64, 8192),
    Shape("135B", 88, 88, 11264),
    Shape("175B", 96, 96, 12288),
    Shape("276B", 112, 112, 14336),
    Shape("412B", 128, 128, 16384),
)
"""From 6B on, those of the Ratel paper (arXiv 2403.06504); smaller ones those of OPT (arXiv 2205.01068)."""


_FEED_FORWARD_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
)
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
_LAYER_NUMBERS = ("moe_layers", "mlp_only_layers")
"""Lists of the layers that are of some kind. Other lists that are as long as the model say of each layer what it is."""


def scaled_config(config: PreTrainedConfig, shape: Shape) -> PreTrainedConfig:
    """Return a config of the same architecture with another depth and width.

    The ratios of the feed-forward width to the hidden width, and of key-value heads to heads, stay. What is said layer
    by layer is repeated.

    Raises:
        AttributeError: the architecture's config names no depth or width.
    """
    scaled = copy.deepcopy(config)
    text = scaled.get_text_config(decoder=True)
    layers, hidden, heads = text.num_hidden_layers, text.hidden_size, text.num_attention_heads
    text.num_hidden_layers, text.hidden_size, text.num_attention_heads = shape.layers, shape.hidden, shape.heads
    for name, values in list(vars(text).items()):
        if not isinstance(values, list | tuple):
            continue
        if name in _LAYER_NUMBERS:
            setattr(text, name, [number for number in range(shape.layers) if number % layers in values])
        elif len(values) == layers:
            setattr(text, name, [values[number % layers] for number in range(shape.layers)])
    for name in _FEED_FORWARD_WIDTHS:
        if getattr(text, name, None):
            setattr(text, name, round(getattr(text, name) * shape.hidden / hidden))
    for name in _KEY_VALUE_HEADS:
        if getattr(text, name, None):
            groups = max(1, heads // getattr(text, name))
            divisors = (d for d in range(1, shape.heads + 1) if shape.heads % d == 0 and d * groups <= shape.heads)
            setattr(text, name, max(divisors))
    if getattr(text, "head_dim", None) and not isinstance(getattr(type(text), "head_dim", None), property):
        text.head_dim = shape.hidden // shape.heads
    return scaled


def scaled_outline(outline: Outline, shape: Shape) -> Outline:
    """Outline a model of the same architecture with another depth and width.

    Raises:
        ModelError: its config cannot be scaled so.
    """
    config = outline.model_config
    try:
        return evolve(outline, model_config=scaled_config(config, shape))
    except Exception as error:  # an architecture may want of its config what is not known here
        raise ModelError(
            f"--largest: a {config.model_type!r} model cannot be scaled to {shape.layers} layers of {shape.hidden}: "
            f"{error}; leave --largest out, and plan with a config.json of that size instead"
        ) from error


def largest_that_fits(fits: Callable[[Shape], bool], shapes: Sequence[Shape] = SHAPES) -> Shape | None:
    """Find the largest shape that fits by halving the ascending list; None if not even the smallest does."""
    low, high = 0, len(shapes)
    while low < high:
        middle = (low + high) // 2
        if fits(shapes[middle]):
            low = middle + 1
        else:
            high = middle
    return shapes[low - 1] if low else None
