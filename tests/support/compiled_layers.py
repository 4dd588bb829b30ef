"""Models that run an engine's compiled layers in place of their own."""

from __future__ import annotations

from transformers import PreTrainedModel

from lohan_core.engine.engine import Engine
from lohan_core.model.layer_call import LayerCall
from lohan_core.model.skeleton import find_layers

__all__ = ["with_layers_of"]


def with_layers_of(engine: Engine, model: PreTrainedModel) -> PreTrainedModel:
    """Replace the model's layers, which keep their parameters, and return it."""

    def compiled(position, layer):
        def forward(hidden_states, *arguments, **keywords):
            call = LayerCall(arguments, keywords, takes_keyword=False)
            output = engine.model.compiled.run(position, dict(layer.named_parameters()), hidden_states, call)
            assert output is not None, "it was compiled for other calls"
            return output

        return forward

    for position, layer in enumerate(find_layers(model)[1]):
        layer.forward = compiled(position, layer)
    return model
