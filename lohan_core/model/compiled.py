"""Layers of which all but products and attention is compiled: once for each kind of layer, and of call.

:mod:`lohan_core.model.fused` says how, and what stays exact. Here a layer becomes a function of tensors alone: hidden
state, weights, buffers, and the tensors among its other arguments; whatever else it is called with is part of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lohan_core.errors import ConfigError
from lohan_core.model.fused import NotFusable, disagreement, fuse
from lohan_core.model.layer_call import LayerCall, layer_settings

__all__ = ["CompiledLayers", "Make", "fuse_tried"]

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""How far an output or a gradient may be from the layer's own, in parts of its norm: rounding alone stays below."""


Make: TypeAlias = Callable[[Callable[..., Tensor], Sequence[Tensor]], Callable[..., Tensor]]
"""Makes something faster of a function, given tensors of the kinds that it takes; raises NotFusable."""


def fuse_tried(function: Callable[..., Tensor], examples: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Fuse a function, and try if output and gradients are still its own.

    Raises:
        NotFusable: they are not, or it cannot be fused.
    """
    fused = fuse(function, examples)
    off = disagreement(function, fused, examples)
    if not off <= _TOLERANCE[examples[0].dtype]:
        raise NotFusable(f"compiled, its output or gradients are off by {off:.1%}")
    return fused


@frozen
class _Form:
    """How a layer is called, taken apart: names of weights and buffers, and arguments of which tensors are left out."""

    names: tuple[str, ...]
    spec: TreeSpec
    leaves: tuple[Any, ...]
    """The other arguments; None in place of each tensor."""
    places: tuple[int, ...]
    """Where these were."""
    takes_keyword: bool

    def call(self, layer: nn.Module, tensors: Sequence[Tensor]) -> Tensor:
        """Call the layer with tensors in order."""
        hidden, *others = tensors
        values = dict(zip(self.names, others, strict=False))
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, others[len(self.names) :], strict=True):
            leaves[place] = tensor
        arguments, keywords = tree_unflatten(leaves, self.spec)
        args, kwargs = LayerCall(arguments, keywords, self.takes_keyword).with_hidden(hidden)
        output = functional_call(layer, values, args, kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@define(eq=False)
class CompiledLayers:
    """A model's layers, compiled as far as :meth:`prepare` was asked to."""

    layers: Sequence[nn.Module]
    _make: Make
    _made: dict[Hashable, Callable[..., Tensor]] = field(factory=dict)
    _names: dict[int, tuple[str, ...]] = field(factory=dict)
    _settings: dict[tuple[int, bool], Hashable] = field(factory=dict)

    def run(self, position: int, weights: Mapping[str, Tensor], hidden: Tensor, call: LayerCall) -> Tensor | None:
        """Run a layer as compiled; None if it was not prepared for such a call.

        Args:
            position: which layer.
            weights: its parameters by their names within it.
            hidden: the hidden state.
            call: the other arguments.
        """
        tensors, form = self._taken_apart(position, weights, hidden, call)
        made = self._made.get(self._kind(position, tensors, form))
        return None if made is None else made(*tensors)

    def prepare(
        self, position: int, weights: Callable[[], Mapping[str, Tensor]], hidden: Tensor, call: LayerCall
    ) -> None:
        """Compile a layer for calls like this one, if none like it has been: seconds, and the memory of a backward.

        Args:
            position: which layer.
            weights: makes parameters for it that require grad, with any values.
            hidden: a hidden state that requires grad, with any values.
            call: the other arguments.

        Raises:
            ConfigError: it cannot be compiled, or computes something else then.
        """
        layer = self.layers[position]
        names = dict(layer.named_parameters())
        tensors, form = self._taken_apart(position, names, hidden, call)
        kind = self._kind(position, tensors, form)
        if kind in self._made:
            return
        tensors, form = self._taken_apart(position, weights(), hidden, call)

        def function(*given: Tensor) -> Tensor:
            return form.call(layer, given)

        try:
            self._made[kind] = self._make(function, tensors)
        except NotFusable as error:
            reason = f"model.compile: {type(layer).__name__}: {error}; set model.compile: false"
            raise ConfigError(reason) from error

    def _taken_apart(
        self, position: int, weights: Mapping[str, Tensor], hidden: Tensor, call: LayerCall
    ) -> tuple[list[Tensor], _Form]:
        layer = self.layers[position]
        if position not in self._names:
            self._names[position] = tuple(name for name, _ in layer.named_parameters())
        # In the layer's own order: of a block they may come in another.
        named = {**{name: weights[name] for name in self._names[position]}, **dict(layer.named_buffers())}
        leaves, spec = tree_flatten((call.arguments, dict(call.keywords)))
        places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        others = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        form = _Form(tuple(named), spec, others, places, call.takes_keyword)
        return [hidden, *named.values(), *(leaves[place] for place in places)], form

    def _kind(self, position: int, tensors: Sequence[Tensor], form: _Form) -> Hashable:
        layer = self.layers[position]
        state = position, layer.training
        if state not in self._settings:
            self._settings[state] = layer_settings(layer)
        given = [tensors[0], *tensors[1 + len(form.names) :]]
        shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in given)
        others = tuple(leaf if isinstance(leaf, Hashable) else repr(leaf) for leaf in form.leaves)
        return self._settings[state], form.names, shapes, str(form.spec), others
