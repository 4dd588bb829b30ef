"""Head and cross-entropy over slices of tokens, so that all logits never exist at once.

[Note: gradients in forward] Each slice's gradients are computed as soon as its logits are there, in the forward. To
compute the logits anew in a backward would cost a fourth product with the head beside the three that there must be, and
save nothing: the postlude's backward follows its forward at once, and what waits between the two are the gradients of
the hidden states and of the head, which the backward is to give out anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["CASTS", "SLICE_BYTES", "HeadLoss", "Transform", "chunked_cross_entropy", "slice_rows"]

SLICE_BYTES = 512 * 2**20
"""What a slice's logits take in fp32, at most. Three and a half times that exists at the worst moment, in backward."""

SLICE_TOKENS = 2048
"""Tokens of a slice, at most.

Fewer would do, but each slice reads and writes the sum of the head's gradient once: with 512 tokens at a time, that
takes half as long as their products do, whatever the vocabulary. More would save less than what the memory is good for.
"""

_TILE = 128
"""Slices are multiples of so many rows where they can: matrix units work in tiles."""

CASTS = frozenset({"contiguous", "float", "to"})
"""Transforms that leave values as they are but for rounding."""


@frozen
class Transform:
    """One thing that a model does with its logits before the loss, each value by itself."""

    name: str
    """Of torch's function."""
    apply: Callable[[Tensor], Tensor]


@frozen(kw_only=True)
class HeadLoss:
    """The loss of some hidden states, yet to be computed.

    Attributes:
        hidden: what enters the head, shape (tokens, width).
        weight: the head's, shape (vocabulary, width).
        bias: the head's, shape (vocabulary,).
        labels: of the tokens, shape (tokens,), int64.
        transforms: what the model does with logits before the loss, in order.
        ignore_index: the label of tokens that are not to be predicted.
        reduction: mean over the tokens that are to be predicted, or their sum.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    transforms: tuple[Transform, ...] = ()
    ignore_index: int = -100
    reduction: Literal["mean", "sum"] = "mean"

    @property
    def predicted(self) -> Tensor:
        """Number of tokens that are to be predicted, a scalar on the computing device."""
        return (self.labels != self.ignore_index).sum()


def slice_rows(width: int) -> int:
    """Return how many rows of ``width`` fp32 values a slice has room for."""
    rows = max(1, SLICE_BYTES // (4 * width))
    return rows - rows % _TILE if rows > _TILE else rows


def chunked_cross_entropy(head: HeadLoss) -> Tensor:
    """Compute the loss, a scalar in fp32; where grad is enabled, it leads back to hidden states, weight and bias.

    The head's gradient is summed over the slices in fp32 and rounded to the weight's dtype once.
    """
    if torch.is_grad_enabled():
        apply: Callable[..., Tensor] = _ChunkedCrossEntropy.apply
        return apply(head.hidden, head.weight, head.bias, head)
    predicted = head.predicted
    loss = head.hidden.new_zeros((), dtype=torch.float32)
    for part in _token_slices(head):
        loss += _slice_loss(head, _logits(head, part), part, predicted)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """See [Note: gradients in forward]. Its inputs: what gradients lead to, and once more all there is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadLoss) -> Tensor:
        predicted = head.predicted
        loss = hidden.new_zeros((), dtype=torch.float32)
        gradients = _Gradients(
            hidden=torch.empty_like(hidden),
            weight=torch.zeros_like(weight, dtype=torch.float32),
            bias=None if bias is None else torch.zeros_like(bias, dtype=torch.float32),
        )
        for part in _token_slices(head):
            loss += _add_slice(head, part, predicted, gradients)
        ctx.gradients, ctx.dtype = gradients, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, share: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, which is for once
        bias = gradients.bias
        return (
            gradients.hidden.mul_(share),
            gradients.weight.mul_(share).to(ctx.dtype),
            None if bias is None else bias.mul_(share).to(ctx.dtype),
            None,
        )


@frozen(kw_only=True)
class _Gradients:
    """Being summed: those of the hidden states in their dtype, the head's in fp32."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def _token_slices(head: HeadLoss) -> Iterator[slice]:
    return _slices(len(head.labels), min(slice_rows(len(head.weight)), SLICE_TOKENS))


def _slices(rows: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, rows, step))


def _logits(head: HeadLoss, part: slice) -> Tensor:
    return functional.linear(head.hidden[part], head.weight, head.bias)


def _slice_loss(head: HeadLoss, logits: Tensor, part: slice, predicted: Tensor) -> Tensor:
    """Return one slice's share of the loss."""
    for transform in head.transforms:
        logits = transform.apply(logits)
    losses = functional.cross_entropy(logits, head.labels[part], ignore_index=head.ignore_index, reduction="none")
    total = losses.float().sum()
    return total / predicted if head.reduction == "mean" else total


def _add_slice(head: HeadLoss, part: slice, predicted: Tensor, gradients: _Gradients) -> Tensor:
    """Add one slice's gradients; return its share of the loss. Its logits are gone when this returns."""
    logits = _logits(head, part)
    with torch.enable_grad():
        loss = _slice_loss(head, logits.requires_grad_(), part, predicted)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.mm(gradient, head.weight, out=gradients.hidden[part])
    # In pieces, so that no second matrix of the head's size comes to be.
    vocabulary, width = head.weight.shape
    for rows in _slices(vocabulary, slice_rows(width)):
        gradients.weight[rows] += gradient[:, rows].T @ head.hidden[part]
    if gradients.bias is not None:
        gradients.bias.add_(gradient.sum(0, dtype=torch.float32))
    return loss.detach()
