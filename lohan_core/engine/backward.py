"""Autograd's backward of one block, which gives each parameter's gradient away as soon as it is complete.

``torch.autograd.grad`` alone returns all of them at its end: a second copy of the block's gradients on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

__all__ = ["backward"]


def backward(
    output: Tensor,
    gradient: Tensor,
    parameters: Mapping[str, Tensor],
    take: Callable[[str, Tensor], object],
    *,
    hidden: Tensor | None = None,
) -> Tensor | None:
    """Differentiate, and let go of each parameter's gradient once it has been taken.

    Args:
        output: what the block made.
        gradient: the gradient of that, of the same shape.
        parameters: the block's, leaves that require grad, by name.
        take: is given a name and that parameter's gradient, complete, to copy it; not called for a parameter that the
            output does not depend on. It runs on autograd's thread, on a GPU in the stream of the block's forward.
        hidden: the block's input, a leaf as well.

    Returns:
        The gradient of ``hidden``.
    """
    handles = [parameter.register_hook(partial(_hand_over, take, name)) for name, parameter in parameters.items()]
    leaves = list(parameters.values()) if hidden is None else [hidden, *parameters.values()]
    try:
        gradients = torch.autograd.grad(output, leaves, gradient, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return None if hidden is None else gradients[0]


def _hand_over(take: Callable[[str, Tensor], object], name: str, gradient: Tensor | None) -> Tensor | None:
    """Stand for the gradient, until autograd's end, with one element that is expanded to its shape."""
    if gradient is None:
        return None
    take(name, gradient)
    return gradient.new_empty(()).expand_as(gradient)
