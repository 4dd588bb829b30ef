"""Which kernels compute attention: what a config asks for, and what model and machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from lohan_core.errors import ConfigError
from lohan_core.model.choices import Attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "ATTENTION_DROPOUTS",
    "AttentionChoice",
    "Obstacle",
    "attention_of",
    "choose_attention",
    "flash_attn_obstacle",
    "flash_boundaries",
    "use_attention",
    "use_flash_attn",
]

_FLASH = "flash_attention_2"
_NAMES = {_FLASH: Attention.FLASH, "sdpa": Attention.SDPA, "eager": Attention.EAGER}
"""What transformers calls them."""

ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""What configs of models call the dropout of attention."""

_LEAST_CAPABILITY = (8, 0)
_LARGEST_HEAD = 256


@frozen(kw_only=True)
class AttentionChoice:
    """The kernels that were chosen, and why."""

    attention: Attention
    reason: str

    def describe(self) -> str:
        """Say it in a few words."""
        return f"{self.attention} ({self.reason})"


@frozen(kw_only=True)
class Obstacle:
    """Why something cannot be had, and what mends it."""

    reason: str
    remedy: str


def choose_attention(
    wanted: Attention, model: PreTrainedModel, obstacle: Obstacle | None, *, packed_rows: int = 0
) -> AttentionChoice:
    """Choose the kernels of a model's attention.

    Args:
        wanted: what the config says.
        model: a skeleton, with the attention that transformers gives it.
        obstacle: why this machine has no flash-attn for it; None: it has (:func:`flash_attn_obstacle`).
        packed_rows: in how many rows of a micro-batch samples are packed; 0: none are.

    Raises:
        ConfigError: what the config names is not to be had.
    """
    name = type(model).__name__
    fused = bool(getattr(model, "_supports_sdpa", False))
    if wanted in {Attention.AUTO, Attention.FLASH}:
        obstacle = obstacle or _obstacle_of_model(model)
    if wanted is Attention.AUTO:
        if fused and packed_rows > 1 and not _takes_boundaries(model):
            obstacle = obstacle or Obstacle(
                reason=f"flash-attn cannot be told by {name} where packed samples begin", remedy="take another model"
            )
        if obstacle is None:
            return AttentionChoice(attention=Attention.FLASH, reason="flash-attn is installed")
        if fused:
            return AttentionChoice(attention=Attention.SDPA, reason=obstacle.reason)
        return AttentionChoice(attention=Attention.EAGER, reason=f"{name} has no fused attention")
    if wanted is Attention.FLASH and obstacle is not None:
        raise ConfigError(f"model.attention: flash: {obstacle.reason}; {obstacle.remedy}, or set model.attention: auto")
    if wanted is Attention.SDPA and not fused:
        raise ConfigError(f"model.attention: sdpa: {name} does not support it; set model.attention: auto")
    return AttentionChoice(attention=wanted, reason="by the config")


def attention_of(model: PreTrainedModel) -> Attention:
    """Return the kernels that a model was built with."""
    # transformers has no public name for it; a model with code of its own may not know it at all.
    return _NAMES.get(getattr(model.config, "_attn_implementation", None) or "", Attention.EAGER)


def use_flash_attn(model: PreTrainedModel) -> None:
    """Have a model that :func:`choose_attention` chose flash-attn for take it from now on."""
    use_attention(model, Attention.FLASH)


def use_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Have a whole model compute attention by these kernels, which :func:`choose_attention` chose for it."""
    if attention is not attention_of(model):  # some models are not to be set, and have what they were built with
        model.set_attn_implementation(next(name for name, known in _NAMES.items() if known is attention))


def flash_attn_obstacle(device: torch.device, dtype: torch.dtype) -> Obstacle | None:
    """Say why flash-attn cannot be used on this device in this dtype; None if it can."""
    if device.type != "cuda":
        return Obstacle(reason="flash-attn needs a CUDA device", remedy="set run.device: cuda")
    missing = _obstacle_of_package()
    if missing is not None:
        return missing
    if dtype is not torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        return Obstacle(reason=f"flash-attn does not compute in {name}", remedy="set run.dtype: bfloat16")
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        has = f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        return Obstacle(reason=f"flash-attn needs compute capability 8.0, and {has}", remedy="take a newer GPU")
    return None


def _obstacle_of_package() -> Obstacle | None:
    try:
        import_module("flash_attn")
    except Exception as error:  # noqa: BLE001 - built for another torch, or for a driver that is not there: anything
        if isinstance(error, ModuleNotFoundError) and error.name == "flash_attn":
            return Obstacle(reason="flash-attn is not installed", remedy="pip install 'lohan[flash-attn]'")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Obstacle(reason=f"flash-attn cannot be imported: {reason}", remedy="build it for this torch")
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        return Obstacle(
            reason="transformers does not take this flash-attn", remedy="pip install --upgrade 'lohan[flash-attn]'"
        )
    return None


def _obstacle_of_model(model: PreTrainedModel) -> Obstacle | None:
    name = type(model).__name__
    settable = model._can_set_attn_implementation()  # noqa: SLF001 - transformers only warns where it is not
    # Some architectures take other packages of that name only: transformers would fetch one of them from its hub.
    listed = getattr(model, "_compatible_flash_implementations", None) or [_FLASH]
    if not (getattr(model, "_supports_flash_attn", False) and settable and _FLASH in listed):
        return Obstacle(reason=f"{name} does not support flash-attn", remedy="take another model")
    layers = _layer_configs(model)
    head = max(_largest_head(config) for config in layers)
    if head > _LARGEST_HEAD:
        return Obstacle(reason=f"flash-attn has no heads of {head} values", remedy="take another model")
    dropout = next((key for key in ATTENTION_DROPOUTS if any(getattr(config, key, 0.0) for config in layers)), None)
    if dropout is not None:
        # Its kernels do not say that they draw: what is kept of a forward would be replayed with other numbers.
        return Obstacle(
            reason="flash-attn's dropout cannot be replayed", remedy=f"set {dropout} to 0 in the model's config.json"
        )
    return None


def _layer_configs(model: PreTrainedModel) -> Sequence[PreTrainedConfig]:
    """Give each layer's config, where layers differ: transformers then refuses to answer for all of them at once."""
    config = model.config.get_text_config(decoder=True)
    return list(config.per_layer_config) if getattr(config, "is_heterogeneous", False) else [config]


def _largest_head(config: PreTrainedConfig) -> int:
    """Return the width of a layer's widest heads: in latent attention, keys have other ones than values."""
    named = [getattr(config, name, None) or 0 for name in ("head_dim", "qk_head_dim", "v_head_dim")]
    parts = [getattr(config, name, None) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    return max(*named, sum(parts)) or config.hidden_size // config.num_attention_heads


def _takes_boundaries(model: PreTrainedModel) -> bool:
    """Tell whether the model hands on to its layers what it does not know itself."""
    return Parameter.VAR_KEYWORD in {parameter.kind for parameter in signature(model.forward).parameters.values()}


def flash_boundaries(model: PreTrainedModel, position_ids: Tensor) -> dict[str, Tensor | int]:
    """Tell flash-attn where documents begin, in the words of transformers.

    By itself, transformers finds that out from positions only where a batch is a single row, and anew in each layer.
    For a model that hands nothing on to its layers there is nothing to tell.

    Args:
        model: the model; its attention is flash-attn's.
        position_ids: positions that begin again from 0 at each document, shape (rows, tokens).
    """
    if not _takes_boundaries(model):
        return {}
    starts = (position_ids.reshape(-1) == 0).nonzero().view(-1)
    boundaries = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).to(torch.int32)
    longest = position_ids.shape[-1]  # at most; to know better, the host would have to wait for the device
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }
