"""The ways to compute head and loss together, and whether one computes what the model defines."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from attrs import evolve
from torch import Tensor

from lohan_core.errors import ConfigError
from lohan_core.model.choices import Loss
from lohan_core.model.chunked_loss import CASTS, HeadLoss, chunked_cross_entropy
from lohan_core.model.rng import seeded

if TYPE_CHECKING:
    from lohan_core.model.cut import CutModel
    from lohan_core.model.deferred_logits import ComputeLoss

__all__ = ["loss_computer", "require_loss_kernels", "require_same_loss"]

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far a gradient may be from the model's own, in parts of its norm: what rounding alone makes of it stays below."""


def loss_computer(loss: Loss) -> ComputeLoss | None:
    """Return what computes head and loss together; None where the model does that itself."""
    return {Loss.WHOLE: None, Loss.CHUNKED: chunked_cross_entropy, Loss.LIGER: _liger_cross_entropy}[loss]


def require_loss_kernels(loss: Loss, device: torch.device) -> None:
    """Refuse a loss whose kernels are not to be had on this machine.

    Raises:
        ConfigError: Liger's are asked for, and there is no package or no CUDA device.
    """
    if loss is not Loss.LIGER:
        return
    if device.type != "cuda":
        raise ConfigError(f"model.loss: liger: its kernels need a CUDA device, not {device}; set model.loss: chunked")
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "model.loss: liger: liger-kernel is not installed; pip install 'lohan[liger]', or set model.loss: chunked"
        )


def require_same_loss(model: CutModel) -> None:
    """Try head and loss on a few tokens: they must give what the model's own do, to rounding.

    Raises:
        ConfigError: they do not, or the model does with its logits what cannot be done a slice at a time.
    """
    if model.loss is Loss.WHOLE:
        return
    found = _try_loss(model)
    for name, expected in _try_loss(evolve(model, loss=Loss.WHOLE)).items():
        off, size = float(_norm(found.get(name, 0.0) - expected)), float(_norm(expected))
        if not off <= _TOLERANCE[model.dtype] * size:
            by = f"by {off / size:.1%}" if size else "which is zero"
            raise ConfigError(
                f"model.loss: {model.loss} gives another {name} than {type(model.model).__name__} does, {by}; "
                "set model.loss: whole"
            )


def _try_loss(model: CutModel) -> dict[str, Tensor]:
    """Return the loss and the gradients of a postlude with random weights, the same ones each time, by name."""
    vocabulary = model.model.config.get_text_config(decoder=True).vocab_size
    model.model.eval()  # dropout would draw, and differ
    try:
        with seeded(model.device, 0):
            tokens = torch.randint(vocabulary, (2, 8), device=model.device)
            inputs = {"input_ids": tokens, "labels": tokens.clone()}
            inputs["labels"][:, 2] = -100
            with torch.no_grad():
                like, _ = model.prelude({}, inputs)
            hidden = torch.randn_like(like).requires_grad_()
            weights = model.random_weights(len(model.blocks) - 1)
            for weight in weights.values():
                if weight.dim() == 1:  # of a norm: so small, all logits would be near 0, and every loss alike
                    weight.data.mul_(50)
            with torch.enable_grad():
                loss = model.postlude(weights, inputs, hidden)
    finally:
        model.model.train()
    leaves = {"gradient of the hidden state": hidden, **{f"gradient of {name}": w for name, w in weights.items()}}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {name: gradient for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}
    return {"loss": loss.detach().float(), **found}


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32)  # converts as it reads: no copy in fp32
    return norm


def _liger_cross_entropy(head: HeadLoss) -> Tensor:
    """Compute the loss by Liger's kernels, which go over slices of their own choice."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    other = next((transform.name for transform in head.transforms if transform.name not in CASTS), None)
    if other is not None:
        raise ConfigError(
            f"model.loss: liger: the model computes {other!r} of its logits, which Liger's kernels do not; "
            "set model.loss: chunked"
        )
    loss: Tensor = liger_fused_linear_cross_entropy(
        # They would compute gradients for whatever asks for some, in no_grad too.
        head.hidden if torch.is_grad_enabled() else head.hidden.detach(),
        head.weight,
        head.labels,
        bias=head.bias,
        ignore_index=head.ignore_index,
        reduction=head.reduction,
        accum_dtype=torch.float32,
    )
    return loss
