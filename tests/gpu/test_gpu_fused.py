"""Fused layers on the GPU: what their tests on a processor say holds for Triton's kernels too."""

from __future__ import annotations

import pytest
import torch
from tensor_layers import assert_same, fuse, gradients_of, make_layer, named
from torch._dynamo.utils import counters

from lohan_core.model.fused import disagreement
from lohan_core.model.rng import get_random_state

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_a_fused_layer_has_the_eager_layers_anchors_and_the_same_bits_for_every_plan(cuda, architecture, dtype):
    layer = make_layer(architecture, dtype, cuda)
    fused = fuse(layer, layer.examples)
    assert disagreement(layer, fused, layer.examples) < (0.05 if dtype == torch.bfloat16 else 1e-4)
    anchors = named(layer, layer.examples)
    assert named(fused, layer.examples) == anchors
    state, compiled = get_random_state(cuda), dict(counters["inductor"])
    plain = gradients_of(fused, layer.examples, state=state)
    for wanted in [[], anchors, *([one] for one in anchors)]:
        assert_same(gradients_of(fused, layer.examples, wanted=frozenset(wanted), state=state), plain)
    assert dict(counters["inductor"]) == compiled


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_addresses_make_no_difference(cuda, offset):
    """Triton's kernels load 16 bytes at once where they may: at others they must not be given the address."""
    layer = make_layer("llama", torch.bfloat16, cuda)
    fused = fuse(layer, layer.examples)
    moved = []
    for example in layer.examples:
        memory = torch.zeros(offset + example.numel(), dtype=example.dtype, device=cuda)
        view = memory[offset:].view(example.shape).copy_(example.detach())
        moved.append(view.requires_grad_(example.requires_grad))
    anchors = frozenset(named(fused, moved))
    assert_same(gradients_of(fused, moved, wanted=anchors), gradients_of(fused, layer.examples))
