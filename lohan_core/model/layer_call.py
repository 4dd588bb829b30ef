"""What a model passes to a layer, and what tells a layer from others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor, nn

__all__ = ["LayerCall", "layer_settings", "split_call"]


@frozen
class LayerCall:
    """What the model passes to one layer beside the hidden state, which is to be put in again at its place."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    takes_keyword: bool

    def with_hidden(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the layer's call with ``hidden`` in place."""
        if self.takes_keyword:
            return self.arguments, {**self.keywords, "hidden_states": hidden}
        return (hidden, *self.arguments), dict(self.keywords)


def split_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, LayerCall]:
    """Part a layer's arguments into the hidden state and the rest."""
    if args:
        return args[0], LayerCall(args[1:], kwargs, takes_keyword=False)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), LayerCall((), rest, takes_keyword=True)


def layer_settings(layer: nn.Module) -> Hashable:
    """Return what tells a layer from one that computes otherwise: classes, settings, and shapes of parameters."""
    settings = tuple(
        (name, key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and key not in {"layer_idx", "layer_id"}
    )
    return type(layer), settings, tuple((name, p.shape) for name, p in layer.named_parameters())
