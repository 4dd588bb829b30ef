"""Layers of which all but products and attention is compiled: once for each kind of layer, and of call.

:mod:`lohan_core.model.fused` says how, and what stays exact. Here a layer becomes a function of tensors alone: hidden
state, weights, buffers, and the tensors among its other arguments; whatever else it is called with is part of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Self, TypeAlias

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.fx import GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lohan_core.errors import ConfigError
from lohan_core.model.fused import NotFusable, capture, compile_captured, disagreement
from lohan_core.model.layer_call import LayerCall
from lohan_core.model.rng import preserved

__all__ = ["CompiledLayers", "Make", "fuse_tried"]

_CAPTURED = {torch.float32: 1e-4, torch.bfloat16: 1e-3}
"""How far an output or a gradient of what was captured may be from the layer's own, in parts of its norm: the same
operators give the same bits, so more than this is a gradient that the layer defines otherwise."""
_COMPILED = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""And how far when it is compiled: what rounding makes of it stays below."""

_SMALL = 16
"""Constants of so few elements are told apart by their values, others by which they are."""

Make: TypeAlias = Callable[[Callable[..., Tensor], GraphModule, Sequence[Tensor]], Callable[..., Tensor]]
"""Makes something faster of a function, given what was captured of it and tensors that it takes; raises NotFusable."""


def fuse_tried(
    function: Callable[..., Tensor], captured: GraphModule, examples: Sequence[Tensor]
) -> Callable[..., Tensor]:
    """Compile what was captured of a function, and try if output and gradients are still its own.

    Raises:
        NotFusable: they are not, or it cannot be compiled.
    """
    dtype = examples[0].dtype
    off = disagreement(function, captured, examples)
    if not off <= _CAPTURED[dtype]:
        raise NotFusable(f"captured, its output or gradients are off by {off:.1%}")
    fused = compile_captured(captured, examples)
    off = disagreement(function, fused, examples)
    if not off <= _COMPILED[dtype]:
        raise NotFusable(f"compiled, its output or gradients are off by {off:.1%}")
    return fused


@frozen
class _Call:
    """A layer's call, taken apart: the tensors among its arguments, and the rest with None in place of each."""

    tensors: tuple[Tensor, ...]
    places: tuple[int, ...]
    others: tuple[Any, ...]
    spec: TreeSpec
    takes_keyword: bool

    @classmethod
    def of(cls, call: LayerCall) -> Self:
        leaves, spec = tree_flatten((call.arguments, dict(call.keywords)))
        places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        return cls(
            tensors=tuple(leaves[place] for place in places),
            places=places,
            others=tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves),
            spec=spec,
            takes_keyword=call.takes_keyword,
        )

    def with_tensors(self, tensors: Sequence[Tensor]) -> LayerCall:
        """Put a call together again, of other tensors."""
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        arguments, keywords = tree_unflatten(leaves, self.spec)
        return LayerCall(arguments, keywords, self.takes_keyword)

    def kind(self, hidden: Tensor) -> Hashable:
        """Return what calls have in common that one compilation serves."""
        others = tuple(leaf if isinstance(leaf, Hashable) else repr(leaf) for leaf in self.others)
        return tuple(map(_form_of, (hidden, *self.tensors))), str(self.spec), others


@define(eq=False)
class CompiledLayers:
    """A model's layers, compiled as far as :meth:`prepare` was asked to. Those that are captured alike share it."""

    layers: Sequence[nn.Module]
    _make: Make
    _found: dict[Hashable, Callable[..., Tensor]] = field(factory=dict)
    """By layer and kind of call."""
    _made: dict[Hashable, Callable[..., Tensor]] = field(factory=dict)
    """By what was captured."""
    _names: dict[int, tuple[str, ...]] = field(factory=dict)

    def run(self, position: int, weights: Mapping[str, Tensor], hidden: Tensor, call: LayerCall) -> Tensor | None:
        """Run a layer as compiled; None if it was not prepared for such a call.

        Args:
            position: which layer.
            weights: its parameters by their names within it.
            hidden: the hidden state.
            call: the other arguments.
        """
        apart = _Call.of(call)
        found = self._found.get(self._kind(position, hidden, apart))
        return None if found is None else found(hidden, *self._state(position, weights).values(), *apart.tensors)

    def prepare(
        self, position: int, weights: Callable[[], Mapping[str, Tensor]], hidden: Tensor, call: LayerCall
    ) -> None:
        """Compile a layer for calls like this one, if none like it has been: seconds, and the memory of a backward.

        The random state stays as it was.

        Args:
            position: which layer.
            weights: makes parameters for it that require grad, with any values.
            hidden: a hidden state that requires grad, with any values.
            call: the other arguments.

        Raises:
            ConfigError: it cannot be compiled, or computes something else then.
        """
        apart = _Call.of(call)
        kind = self._kind(position, hidden, apart)
        if kind in self._found:
            return
        layer = self.layers[position]
        state = self._state(position, _without_memory(layer, hidden))

        def function(*given: Tensor) -> Tensor:
            hidden, *others = given
            values = dict(zip(state, others, strict=False))
            args, kwargs = apart.with_tensors(others[len(state) :]).with_hidden(hidden)
            output = functional_call(layer, values, args, kwargs)
            result: Tensor = output[0] if isinstance(output, tuple) else output
            return result

        try:
            with preserved(hidden.device):
                examples = (hidden, *state.values(), *apart.tensors)
                captured = capture(function, examples)
                alike = _identity(captured, examples)
                if alike not in self._made:
                    examples = (hidden, *self._state(position, weights()).values(), *apart.tensors)
                    self._made[alike] = self._make(function, captured, examples)
                self._found[kind] = self._made[alike]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever torch says of code that it does not understand
            reason = str(error) if isinstance(error, NotFusable) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"model.compile: {type(layer).__name__}: {reason.splitlines()[0]}; set model.compile: false"
            ) from error

    def _state(self, position: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A layer's weights and buffers by name, in its own order: of a block they may come in another."""
        layer = self.layers[position]
        if position not in self._names:
            self._names[position] = tuple(name for name, _ in layer.named_parameters())
        return {**{name: weights[name] for name in self._names[position]}, **dict(layer.named_buffers())}

    def _kind(self, position: int, hidden: Tensor, call: _Call) -> Hashable:
        return position, self.layers[position].training, call.kind(hidden)


def _form_of(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype


def _without_memory(layer: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
    """Stand in for a layer's parameters where only their shapes matter."""
    with detect_fake_mode([hidden]) or FakeTensorMode(allow_non_fake_inputs=True):
        return {
            name: torch.empty(p.shape, dtype=p.dtype, device=hidden.device).requires_grad_()
            for name, p in layer.named_parameters()
        }


def _identity(captured: GraphModule, tensors: Sequence[Tensor]) -> Hashable:
    """Return what two layers have in common that compute the same: operators, numbers, shapes and constants."""
    parts = [captured, *(module for module in captured.children() if isinstance(module, GraphModule))]
    constants = tuple(_constant(module, node) for module in parts for node in module.graph.find_nodes(op="get_attr"))
    return tuple(str(part.graph) for part in parts), tuple(map(_form_of, tensors)), constants


def _constant(module: GraphModule, node: Node) -> Hashable:
    value = attrgetter(str(node.target))(module)
    small = not isinstance(value, FakeTensor) and value.numel() <= _SMALL
    return (str(value.dtype), *value.flatten().tolist()) if small else id(value)
