"""One run of zeros through a model, which finds out how it can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lohan_core.errors import ModelError
from lohan_core.model.layer_call import split_call

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Probe", "forwards_replaced"]


@contextmanager
def forwards_replaced(layers: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Give every layer ``partial(forward, position)`` for its forward; the layer's attributes and hooks stay."""
    for position, layer in enumerate(layers):
        layer.forward = partial(forward, position)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class Probe(TorchFunctionMode):
    """One run of zeros through the model: which parameters are used where, and what layers return."""

    def __init__(self, layers: Sequence[nn.Module], watched: Mapping[int, str]) -> None:
        super().__init__()
        self.before: set[str] = set()
        self.behind: set[str] = set()
        self.returns_tuple: dict[type, bool] = {}
        self._layers = layers
        self._watched = watched
        self._used = self.before
        self._expected: Tensor | None = None

    def run(self, model: PreTrainedModel, stand_ins: Mapping[str, Tensor]) -> None:
        """Run the whole model on eight tokens."""
        tokens = torch.zeros((1, 8), dtype=torch.long)
        with forwards_replaced(self._layers, self._pass), self:
            output = functional_call(
                model, dict(stand_ins), (), {"input_ids": tokens, "labels": tokens, "use_cache": False}
            )
        if self._expected is None or getattr(output, "loss", None) is None:
            raise ModelError(f"{type(model).__name__} gives no loss for labels: it cannot be trained as a causal LM")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note the watched parameters among a function's arguments."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self._watched:
                self._used.add(self._watched[id(value)])
        return func(*args, **(kwargs or {}))

    def _pass(self, position: int, *args: Any, **kwargs: Any) -> Any:
        """Stand in for one layer: check what it is given, learn from the first of each class what it returns."""
        layer = self._layers[position]
        hidden, call = split_call(args, kwargs)
        if self._expected is not None and hidden is not self._expected:
            raise ModelError(f"the model computes on the hidden state before layer {position}: it cannot be cut there")
        carrying = [
            t for t in tree_leaves((call.arguments, call.keywords)) if isinstance(t, Tensor) and t.requires_grad
        ]
        if carrying:
            raise ModelError(
                f"layer {position} ({type(layer).__name__}) takes trained values beside the hidden state: not supported"
            )
        if type(layer) not in self.returns_tuple:
            self.returns_tuple[type(layer)] = isinstance(self._call_once(layer, args, kwargs), tuple)
        self._used = self.behind if position == len(self._layers) - 1 else self._used
        self._expected = hidden
        return (hidden,) if self.returns_tuple[type(layer)] else hidden

    @staticmethod
    def _call_once(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one real layer on zeros: full-sized ones, since some kernels take no others."""
        stand_in = layer.__dict__.pop("forward")
        try:
            weights = {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in layer.named_parameters()}
            return functional_call(layer, weights, args, dict(kwargs))
        finally:
            layer.__dict__["forward"] = stand_in
