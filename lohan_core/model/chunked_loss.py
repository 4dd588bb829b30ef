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
"""What a slice's logits take in fp32, at most. In a narrower dtype they exist beside that for a moment."""

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
        loss += _Softmax(_transformed(head, _logits(head, part)).float(), head, part, predicted).loss
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


def _transformed(head: HeadLoss, logits: Tensor) -> Tensor:
    for transform in head.transforms:
        logits = transform.apply(logits)
    return logits


class _Softmax:
    """The loss of one slice, and its gradient with respect to what the loss is of, in whose place they are computed."""

    def __init__(self, scores: Tensor, head: HeadLoss, part: slice, predicted: Tensor) -> None:
        """Compute the slice's share of the loss. ``scores`` are fp32, of shape (tokens, vocabulary), and used up."""
        labels = head.labels[part]
        counts = labels != head.ignore_index
        self._targets = labels.where(counts, 0).unsqueeze(1)
        scores -= scores.amax(1, keepdim=True)
        of_targets = scores.gather(1, self._targets)
        self._exponentials = scores.exp_()
        self._sums = scores.sum(1, keepdim=True)
        weight = 1 / predicted if head.reduction == "mean" else torch.ones_like(predicted)
        self._weights = torch.where(counts.unsqueeze(1), weight.float(), 0)
        losses = torch.where(counts.unsqueeze(1), self._sums.log() - of_targets, 0)
        self.loss = losses.sum() * weight

    def gradient(self) -> Tensor:
        """Return the gradient of the share. Once."""
        gradient = self._exponentials.mul_(self._weights / self._sums)
        return gradient.scatter_(1, self._targets, gradient.gather(1, self._targets) - self._weights)


def _logits_gradient(head: HeadLoss, part: slice, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Return one slice's share of the loss, and its gradient with respect to the logits."""
    logits = _logits(head, part)
    if all(transform.name in CASTS for transform in head.transforms):
        dtype, scores = logits.dtype, _transformed(head, logits).float()
        del logits
        softmax = _Softmax(scores, head, part, predicted)
        return softmax.loss, softmax.gradient().to(dtype)
    with torch.enable_grad():
        transformed = _transformed(head, logits.requires_grad_())
    softmax = _Softmax(transformed.detach().to(torch.float32, copy=True), head, part, predicted)
    (gradient,) = torch.autograd.grad(transformed, logits, softmax.gradient().to(transformed.dtype))
    return softmax.loss, gradient


def _add_slice(head: HeadLoss, part: slice, predicted: Tensor, gradients: _Gradients) -> Tensor:
    """Add one slice's gradients; return its share of the loss. Its logits are gone when this returns."""
    loss, gradient = _logits_gradient(head, part, predicted)
    torch.mm(gradient, head.weight, out=gradients.hidden[part])
    # In pieces, so that no second matrix of the head's size comes to be.
    vocabulary, width = head.weight.shape
    for rows in _slices(vocabulary, slice_rows(width)):
        gradients.weight[rows] += gradient[:, rows].T @ head.hidden[part]
    if gradients.bias is not None:
        gradients.bias.add_(gradient.sum(0, dtype=torch.float32))
    return loss
