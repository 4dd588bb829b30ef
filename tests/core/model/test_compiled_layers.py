"""Layers compiled once for all that compute the same, and apart where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lohan_core.errors import ConfigError
from lohan_core.model.compiled import CompiledLayers, fuse_tried
from lohan_core.model.layer_call import LayerCall

CALL = LayerCall((), {}, takes_keyword=False)


class Layer(nn.Module):
    def __init__(self, layer_idx, act, table=None):
        super().__init__()
        self.layer_idx, self.act, self.table = layer_idx, act, table
        self.linear = nn.Linear(6, 6, bias=False)

    def forward(self, hidden):
        inner = self.act(self.linear(hidden)) * (self.layer_idx + 1)
        return hidden + (inner if self.table is None else inner * self.table)


def prepared(layers):
    compiled = CompiledLayers(layers, fuse_tried)
    hidden = torch.randn(4, 6, requires_grad=True)
    for position, layer in enumerate(layers):
        compiled.prepare(position, lambda layer=layer: dict(layer.named_parameters()), hidden, CALL)
    return compiled, hidden


def test_layers_that_compute_the_same_share_what_was_compiled():
    compiled, _ = prepared([Layer(0, nn.Tanh()), Layer(0, nn.Tanh()), Layer(0, nn.Tanh())])
    assert len(compiled._made) == 1


def test_layers_that_do_not_are_told_apart_whatever_it_is_that_differs():
    layers = [
        Layer(0, nn.Tanh()),
        Layer(1, nn.Tanh()),
        Layer(0, nn.Sigmoid()),
        Layer(0, nn.Tanh(), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        Layer(0, nn.Tanh(), torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])),
    ]
    compiled, hidden = prepared(layers)
    for position, layer in enumerate(layers):
        found = compiled.run(position, dict(layer.named_parameters()), hidden, CALL)
        assert torch.allclose(found, layer(hidden), rtol=1e-5, atol=1e-6), position


def test_what_was_prepared_is_found_again_without_looking_at_weights(monkeypatch):
    """It is asked for before every forward of a layer."""
    compiled, hidden = prepared([Layer(0, nn.Tanh())])
    monkeypatch.setattr("lohan_core.model.compiled._without_memory", lambda *_: pytest.fail("memory is asked for"))
    compiled.prepare(0, lambda: pytest.fail("weights are drawn"), hidden, CALL)


def test_what_was_not_prepared_is_not_run():
    compiled, _ = prepared([Layer(0, nn.Tanh())])
    layer = compiled.layers[0]
    assert compiled.run(0, dict(layer.named_parameters()), torch.randn(5, 6), CALL) is None
    layer.eval()
    assert compiled.run(0, dict(layer.named_parameters()), torch.randn(4, 6), CALL) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_without_gradient_are_refused(dtype):
    """What a capture loses, and rounding alone would hide: the gradient is off by a few percent."""

    class Norm(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                scale = x.float().pow(2).mean(-1, keepdim=True).rsqrt()
            return (x * scale).to(x.dtype)

    layer = Layer(0, Norm()).to(dtype)
    hidden = torch.randn(64, 6, dtype=dtype, requires_grad=True)
    with pytest.raises(ConfigError, match=r"model.compile: Layer: captured, its output or gradients are off by"):
        CompiledLayers([layer], fuse_tried).prepare(0, lambda: dict(layer.named_parameters()), hidden, CALL)


def test_any_failure_ends_in_one_line():
    class Failing(nn.Module):
        def forward(self, x):
            del x
            raise OSError("no such\nthing")

    layer = Layer(0, Failing())
    with pytest.raises(ConfigError, match=r"model.compile: Layer: OSError: no such; set model.compile: false") as told:
        prepared([layer])
    assert "\n" not in str(told.value)
