"""Re-running a layer for its backward: what was kept is handed out, and what no gradient needs is not computed.

[Note: the end of a layer] Gradients need what autograd saves of a forward. The operators behind the last tensor that it
saves are run for nothing: a layer's last product, a third of a GPT's products, and the sum that it goes into. How many
tensors autograd saves is known from the forward of the same micro-batch, which saves none of them but counts
(:func:`lohan_core.model.keep.nothing_saved`). The re-run counts along, and when it has them all, products and sums
return memory that is not their value; autograd notes how they are differentiated all the same. PyTorch's own
checkpointing stops there too.

[Note: who else may read] A function of a layer's own may keep a tensor without asking autograd to, or look at values.
So behind what was left out only pointwise operators and views may run, and no such function: otherwise the layer is run
again with nothing left out, now and whenever it comes. What is left out is filled with NaN: whoever finds a way around
this gets a gradient that is refused, not one that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lohan_core.model.keep import Kept, Occurrence, OperatorCounter, map_tensors
from lohan_core.model.rng import set_random_state

__all__ = ["Replayer", "Replaying", "can_be_left_out"]

_SEGMENT = "CompiledFunction"
"""What a compiled segment is called in autograd's graph."""

_ALL = 2**62
"""More tensors than autograd saves: nothing is left out."""


class Replayer:
    """Re-runs layers, and remembers those of which nothing may be left out."""

    def __init__(self, device: torch.device) -> None:
        """``device`` computes."""
        self._device = device
        self._needs_all: set[Hashable] = set()

    def run(
        self,
        layer: Hashable,
        function: Callable[[], Tensor],
        kept: Mapping[Occurrence, Kept],
        saves: int,
        random_state: Tensor,
    ) -> Tensor:
        """Re-run a layer, with grad enabled.

        Args:
            layer: which.
            function: runs it, as its forward did.
            kept: what that kept.
            saves: how many tensors autograd would have saved of it.
            random_state: as it was before it.

        Returns:
            The output; its values may be NaN, but what its gradient needs is there.
        """
        if layer not in self._needs_all:
            set_random_state(self._device, random_state)
            mode = Replaying(kept, saves, self._device)
            try:
                with _counting(mode):
                    output = function()
                if not mode.may_be_wrong(output):
                    return output
                del output
            except _ReadError:
                pass
            self._needs_all.add(layer)
        set_random_state(self._device, random_state)
        with _counting(Replaying(kept, _ALL, self._device)):
            return function()


class _ReadError(BaseException):
    """Something reads what may have been left out. Not an Exception, which a layer's own code might catch."""


class Replaying(OperatorCounter):
    """Hands out what was kept, leaves out what comes behind the last tensor saved, runs the rest."""

    def __init__(self, kept: Mapping[Occurrence, Kept], saves: int, device: torch.device) -> None:
        super().__init__()
        self._kept = kept
        self._unsaved = saves
        self._device = device
        self._first_behind: int | None = None
        """Autograd's number of the next node when something was first left out."""

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
            if self._first_behind is None:
                self._first_behind = torch._C._autograd._get_sequence_nr()  # noqa: SLF001 - has no public name
            return _LEFT_OUT[func](*args).fill_(torch.nan)
        if self._first_behind is not None and not _only_passes_on(func):
            raise _ReadError
        return func(*args, **kwargs)

    def may_be_wrong(self, output: Tensor) -> bool:
        """Tell whether more was saved than was known of, or somebody else's function ran behind what is missing."""
        if self._first_behind is None:
            return False
        return self._unsaved != 0 or any(map(_is_foreign, _nodes_since(output, self._first_behind)))


def _is_foreign(node: Any) -> bool:
    """Tell whether a node is a function's that somebody else has written."""
    foreign = isinstance(node, torch.autograd.function.BackwardCFunction)
    return foreign and not type(node).__name__.startswith(_SEGMENT)


def _nodes_since(output: Tensor, first: int) -> Iterator[Any]:
    """Yield the nodes of autograd's graph that were made since."""
    ahead, seen = [output.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen or node._sequence_nr() < first:  # noqa: SLF001 - likewise
            continue
        seen.add(node)
        yield node
        ahead.extend(following for following, _ in node.next_functions)


@contextmanager
def _counting(mode: Replaying) -> Iterator[None]:
    with torch.autograd.graph.saved_tensors_hooks(mode.saw, _as_it_is), torch.enable_grad(), mode:
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _only_passes_on(func: OpOverload) -> bool:
    """Tell whether an operator makes values out of values, one by one, and looks at none."""
    schema = func._schema  # noqa: SLF001 - torch offers no public way to a schema
    is_view = any(result.alias_info is not None for result in schema.returns) and not schema.is_mutable
    return is_view or torch.Tag.pointwise in func.tags or func.overloadpacket in _PASSING


_PASSING = {torch.ops.aten._unsafe_view, torch.ops.aten._to_copy, torch.ops.aten.clone, torch.ops.aten.empty_like}  # noqa: SLF001 - public operators


def can_be_left_out(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Tell whether an operator need not run where nobody reads what it returns: it is one of those worth knowing."""
    if func not in _LEFT_OUT or not all(isinstance(value, Tensor) for value in args):
        return False
    return all(t.is_floating_point() and t.device == args[0].device for t in args) and (
        func is not torch.ops.aten.add.Tensor or all(t.is_contiguous() for t in args)
    )


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
