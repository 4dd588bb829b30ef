"""Re-running a layer for its backward: what was kept is handed out, and what no gradient needs is not computed.

[Note: the end of a layer] Gradients need what autograd saves of a forward, and nothing else. The operators behind the
last tensor that it saves are run for nothing: a layer's last product, a third of a GPT's products, and the sum that it
goes into. How many tensors autograd saves is known from the forward of the same micro-batch, which saves none of them
but counts (:func:`lohan_core.model.keep.nothing_saved`). The re-run counts along, and when it has them all, products
and sums return memory that nobody wrote or will read; autograd notes how they are differentiated all the same. torch's
own checkpointing stops there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lohan_core.model.keep import Kept, Occurrence, OperatorCounter, map_tensors
from lohan_core.model.rng import set_random_state

__all__ = ["Replaying", "can_be_left_out", "replaying"]


class Replaying(OperatorCounter):
    """Re-runs a layer: hands out what was kept, leaves out what comes behind the last tensor saved, runs the rest."""

    def __init__(self, kept: Mapping[Occurrence, Kept], saves: int, device: torch.device) -> None:
        super().__init__()
        self._kept = kept
        self._unsaved = saves
        self._device = device

    def saw(self, tensor: Tensor) -> Tensor:
        """Note that autograd saves a tensor, and let it."""
        self._unsaved -= 1
        return tensor

    def run(self, occurrence: Occurrence, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Hand out a kept output, with the random state behind it, or memory if it is not needed, or run."""
        kept = self._kept.get(occurrence)
        if kept is not None:
            if kept.random_state is not None:
                set_random_state(self._device, kept.random_state)
            return map_tensors(Tensor.detach, kept.outputs)
        if self._unsaved <= 0 and can_be_left_out(func, args):
            return _LEFT_OUT[func](*args)
        return func(*args, **kwargs)


@contextmanager
def replaying(kept: Mapping[Occurrence, Kept], saves: int, device: torch.device) -> Iterator[None]:
    """Re-run a layer within, with grad enabled.

    Args:
        kept: what its forward kept.
        saves: how many tensors autograd would have saved of that forward.
        device: the device that computes.
    """
    mode = Replaying(kept, saves, device)
    with torch.autograd.graph.saved_tensors_hooks(mode.saw, _as_it_is), torch.enable_grad(), mode:
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def can_be_left_out(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Tell whether an operator need not run where nobody reads what it returns: it is one of those worth knowing."""
    return func in _LEFT_OUT and all(isinstance(value, Tensor) for value in args)


def _product(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty((*left.shape[:-1], right.shape[-1]))


def _sum(left: Tensor, right: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(left.shape, right.shape)
    return left.new_empty(shape, dtype=torch.result_type(left, right))


_LEFT_OUT: Mapping[OpOverload, Callable[..., Tensor]] = {
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.addmm.default: lambda _bias, left, right: _product(left, right),
    torch.ops.aten.add.Tensor: _sum,
}
"""From an operator's tensors to memory for its output."""
