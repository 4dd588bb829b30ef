"""The model as a config asks for it: its attention chosen, cut into blocks, still without weights."""

from __future__ import annotations

import torch

from lohan_core.config.sections import Config
from lohan_core.model.attention import AttentionChoice, Obstacle, choose_attention, flash_attn_obstacle, use_flash_attn
from lohan_core.model.choices import Attention
from lohan_core.model.compiled import fuse_tried
from lohan_core.model.cut import CutModel, cut_model
from lohan_core.model.loss import require_loss_kernels, require_same_loss
from lohan_core.model.skeleton import build_skeleton, read_config

__all__ = ["build_model", "place_model"]


def build_model(config: Config, device: torch.device) -> tuple[CutModel, AttentionChoice]:
    """Build and cut the model of a config.

    Args:
        config: the run's config.
        device: where it will compute. Its buffers are not there yet: see :func:`place_model`.

    Raises:
        ModelError: no causal LM, or one that cannot be cut.
        ConfigError: attention or loss as the config wants them are not to be had.
    """
    dtype: torch.dtype = getattr(torch, config.run.dtype)
    trust = config.model.trust_remote_code
    require_loss_kernels(config.model.loss, device)
    model_config = read_config(config.model.path, trust_remote_code=trust)
    skeleton = build_skeleton(model_config, dtype, trust_remote_code=trust)
    wanted = config.model.attention
    obstacle = flash_attn_obstacle(device, dtype) if wanted in {Attention.AUTO, Attention.FLASH} else None
    if config.model.compile and config.data.packing:
        obstacle = obstacle or Obstacle(
            reason="model.compile: packed rows have as many boundaries as documents, each time another number",
            remedy="set data.packing: false or model.compile: false",
        )
    packed_rows = config.run.micro_batch_size if config.data.packing else 0
    choice = choose_attention(wanted, skeleton, obstacle, packed_rows=packed_rows)
    if choice.attention is Attention.EAGER:  # what the architecture supports is known only once there is a model of it
        skeleton = build_skeleton(model_config, dtype, eager_attention=True, trust_remote_code=trust)
    model = cut_model(skeleton, config.model.loss, compile_by=fuse_tried if config.model.compile else None)
    if choice.attention is Attention.FLASH:
        use_flash_attn(skeleton)  # now only: a model is cut on the CPU, where there is no flash-attn
    return model, choice


def place_model(model: CutModel, device: torch.device) -> None:
    """Move a model's buffers to where it computes, and try its loss there.

    Raises:
        ConfigError: the loss that the config wants is not the model's own; see
            :func:`lohan_core.model.loss.require_same_loss`.
    """
    model.to(device)
    require_same_loss(model)
