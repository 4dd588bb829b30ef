"""Layers as they would be compiled, of tensors without memory: a segment counts as the one operator that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lohan_core.engine.operators import Operators
from lohan_core.model.keep import nothing_saved

__all__ = ["fake_compiled"]


def fake_compiled(
    function: Callable[..., Tensor], captured: GraphModule, examples: Sequence[Tensor]
) -> Callable[..., Tensor]:
    """Stand in for a layer that is compiled, and compile nothing.

    Args:
        function: the layer, which is not run.
        captured: what :func:`lohan_core.model.fused.capture` made of it.
        examples: fake tensors.

    Returns:
        What makes fake tensors of the right shapes, and tells the :class:`Operators` that look on what a segment moves.
    """
    del function
    for name, segment in list(captured.named_children()):
        setattr(captured, name, _Segment(segment))
    with nothing_saved():
        captured(*examples)  # unseen: segments run
    return captured


class _Segment(nn.Module):
    """A segment of which nothing runs, but the first time: then it is seen what autograd needs of it."""

    def __init__(self, segment: nn.Module) -> None:
        super().__init__()
        self._segment = segment
        self._made: tuple[Tensor, ...] = ()
        self._saves = False

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self._made:
            with nothing_saved() as saves:
                self._made = tuple(self._segment(*inputs))
            self._saves = saves.count > 0
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, Operators):
                mode.note_moved([*inputs, *self._made])
        made: tuple[Tensor, ...] = CompiledFunction.apply(self._made, self._saves, *inputs)  # type: ignore[no-untyped-call]
        return made


class CompiledFunction(torch.autograd.Function):
    """Makes tensors like those that a segment makes, and gradients like its inputs.

    Called as torch calls what it compiles, which it stands for: backward's re-run knows it by that.
    """

    @staticmethod
    def forward(ctx: Any, like: tuple[Tensor, ...], saves: bool, *inputs: Tensor) -> tuple[Tensor, ...]:  # noqa: FBT001 - torch gives no names
        made = tuple(torch.empty_like(tensor) for tensor in like)
        ctx.mark_non_differentiable(*(new for new, old in zip(made, like, strict=True) if not old.requires_grad))
        ctx.forms = [(tensor.shape, tensor.dtype, tensor.device) for tensor in inputs]
        if saves:
            ctx.save_for_backward(*inputs)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        del gradients
        wanted = zip(ctx.needs_input_grad[2:], ctx.forms, strict=True)
        found = [
            torch.empty(shape, dtype=dtype, device=device) if wants else None
            for wants, (shape, dtype, device) in wanted
        ]
        return None, None, *found
