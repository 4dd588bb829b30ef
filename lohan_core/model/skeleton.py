"""A model without its weights: the modules and buffers of a Hugging Face causal LM, parameters on the meta device."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lohan_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["build_skeleton", "find_layers", "read_config"]


def read_config(path: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model directory's config.

    Raises:
        ModelError: the directory or its config.json is missing or unreadable, or needs code that is not trusted.
    """
    from transformers import AutoConfig

    if not path.is_dir():
        raise ModelError(f"model.path: no directory {path}; give the folder of a Hugging Face model")
    if not (path / "config.json").is_file():
        raise ModelError(f"model.path: {path} holds no config.json; give the folder of a Hugging Face model")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        own_code = not trust_remote_code and "valid JSON" not in reason
        remedy = " (a model with code of its own needs model.trust_remote_code: true)" if own_code else ""
        raise ModelError(f"model.path: {path}: {reason}{remedy}") from error


def build_skeleton(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    eager_attention: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build the causal LM of ``config``: parameters on the meta device in ``dtype``, buffers real, on the CPU.

    The model is in training mode and keeps no key-value cache. No memory is touched for parameters, whatever their
    number.

    Args:
        config: of the model; what it may say of attention does not count.
        dtype: of the parameters.
        eager_attention: whether attention is one operator after the other, also where the model supports fused ones.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ModelError: the config is not one of a causal LM, or its attention looks ahead.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    _without_cross_block_losses(config)
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation="eager" if eager_attention else None,  # None: sdpa, if the model supports it
                trust_remote_code=trust_remote_code,
            )
    except ValueError as error:
        name = getattr(config, "model_type", type(config).__name__)
        raise ModelError(
            f"model.path: a {name!r} model is not a causal LM: {str(error).splitlines()[0][:200]}"
        ) from error
    _refuse_looking_ahead(model)
    _refuse_encoder(model)
    model.tie_weights()
    _follow_dtypes(model, dtype)
    _compute_buffers_anew(model)
    model.config.use_cache = False
    return model.train()


def _refuse_looking_ahead(model: PreTrainedModel) -> None:
    """Refuse an encoder, which transformers gives a language model's head too: it sees what it is to predict."""
    _, layers = find_layers(model)
    signs = [getattr(module, name, None) for module in layers.modules() for name in ("is_causal", "is_decoder")]
    if False in signs and True not in signs:
        raise ModelError(
            f"model.path: a {model.config.model_type!r} model is not a causal LM: its tokens attend to those behind "
            "them; is_decoder: true in its config.json makes it one"
        )


def _refuse_encoder(model: PreTrainedModel) -> None:
    """Refuse a masked LM such as BERT, to which transformers gives a causal head: it sees what it is to predict."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = model.config
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False:
        raise ModelError(
            f"model.path: a {config.model_type!r} model is not a causal LM: every token sees those behind it; "
            "if it was trained as a decoder, say is_decoder: true in its config.json"
        )


def _follow_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make those buffers fp32 that ``from_pretrained`` keeps so; say it of parameters, which have one dtype here."""
    from transformers.core_model_loading import build_glob_alternation

    patterns = list(model._get_dtype_plan(dtype))  # noqa: SLF001 - transformers has no public name for it
    wide = build_glob_alternation(patterns)[0] if patterns else re.compile("(?!)")  # which nothing matches
    for path, module in model.named_modules():
        for key, buffer in module.named_buffers(prefix=path, recurse=False):
            name = key.rpartition(".")[2]
            if wide.search(key) and name not in module._non_persistent_buffers_set:  # noqa: SLF001 - nor has torch
                setattr(module, name, buffer.to(torch.float32))
    narrowed = [name for name, p in model.named_parameters() if p.dtype != dtype or wide.search(name)]
    if narrowed:
        warnings.warn(
            f"{len(narrowed)} parameters that this architecture keeps in float32 are computed with in "
            f"{str(dtype).removeprefix('torch.')}, {narrowed[0]} among them; run.dtype: float32 has all in float32",
            stacklevel=3,
        )


@torch.no_grad()
def _compute_buffers_anew(model: PreTrainedModel) -> None:
    """Fill the buffers that no checkpoint holds once more, as ``from_pretrained`` does at its end.

    While a model is made, its dtype is torch's default, and some architectures' position tables come out rounded to it.
    """
    for module in model.modules():
        if module._non_persistent_buffers_set:  # noqa: SLF001 - nn.Module has no public way
            model._init_weights(module)  # noqa: SLF001 - what from_pretrained calls; parameters on meta are not touched


def _without_cross_block_losses(config: PreTrainedConfig) -> None:
    """Turn off a router loss, which would tie every layer's router to the head; say so."""
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
        warnings.warn("the model's auxiliary router loss is left out: it spans all blocks", stacklevel=3)


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the decoder's list of layers: the ``ModuleList`` that holds the most parameters among those long enough.

    Returns:
        Its qualified name and the list itself.

    Raises:
        ModelError: there is none.
    """
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [entry for entry in lists if len(entry[1]) == depth] or [entry for entry in lists if len(entry[1]) > 1]
    if not fitting:
        raise ModelError(f"{type(model).__name__} has no list of decoder layers: it cannot be cut into blocks")
    return max(fitting, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
