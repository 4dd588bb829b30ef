"""Fused layers: the eager layer's anchors in its order, its values within rounding, the same bits for every plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from tensor_layers import CPU, MORE, NAMED, Listing, assert_same, fuse, gradients_of, make_layer, named
from tiny_lms import CONFIGS
from torch import nn
from torch._dynamo.utils import counters

from lohan_core.model import fused as fused_module
from lohan_core.model.fused import NotFusable, capture, disagreement
from lohan_core.model.keep import nothing_saved
from lohan_core.model.rng import get_random_state, set_random_state


@cache
def layer_of(architecture, dtype):
    return make_layer(architecture, dtype)


@cache
def fused_of(architecture, dtype):
    layer = layer_of(architecture, dtype)
    return layer, fuse(layer, layer.examples)


COMPILED = [
    ("llama", torch.bfloat16),
    ("gpt2", torch.bfloat16),  # with dropout
    ("phi3", torch.float32),  # whose attention is not strided as torch foretells
]
compiled = pytest.mark.parametrize(("architecture", "dtype"), COMPILED)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        (architecture, dtype)
        for architecture in [*CONFIGS, *MORE]
        for dtype in [torch.float32, torch.bfloat16]
        # torch's products of experts have no stand-in for fp32
        if (architecture, dtype) != ("mixtral", torch.float32)
        # which has a formula of its own for a gradient
        if architecture != "bloom"
    ],
)
def test_anchors_and_segments_are_the_layer_bit_for_bit_until_segments_are_compiled(architecture, dtype):
    layer = layer_of(architecture, dtype)
    code = capture(layer, layer.examples)
    segments = len(code.graph.find_nodes(op="call_module"))
    assert 4 <= segments <= 12
    state = get_random_state(CPU)
    assert_same(gradients_of(code, layer.examples, state=state), gradients_of(layer, layer.examples, state=state))
    assert named(code, layer.examples) == named(layer, layer.examples)


def test_a_gradient_by_a_formula_of_the_layer_s_own_is_that_of_its_forward():
    layer = layer_of("bloom", torch.float32)
    code = capture(layer, layer.examples)
    assert named(code, layer.examples) == named(layer, layer.examples)
    assert disagreement(layer, code, layer.examples) < 1e-5


@compiled
def test_a_fused_layer_agrees_with_the_eager_layer(architecture, dtype):
    layer, fused = fused_of(architecture, dtype)
    assert disagreement(layer, fused, layer.examples) < (0.05 if dtype == torch.bfloat16 else 1e-5)


@compiled
def test_products_attention_and_draws_are_those_of_the_eager_layer(architecture, dtype):
    layer, fused = fused_of(architecture, dtype)
    with Listing() as listing:
        fused(*layer.examples)
    assert named(fused, layer.examples) == named(layer, layer.examples)
    views = {"view", "_unsafe_view", "t", "transpose", "expand", "split", "empty_like"}
    assert {name for name, _ in listing.occurrences} <= NAMED | views


def test_what_runs_around_compiled_code_is_not_counted():
    with Listing() as listing:
        fused_module._Compiled(lambda x: (x.clone(),))(X)
    assert listing.occurrences == []


@compiled
def test_bits_do_not_depend_on_what_is_kept(architecture, dtype):
    layer, fused = fused_of(architecture, dtype)
    state = get_random_state(CPU)
    plain = gradients_of(fused, layer.examples, state=state)
    everything = named(fused, layer.examples)
    keepable = [occurrence for occurrence in everything if occurrence[0] != "bernoulli_"]
    for wanted in [[], keepable, *([one] for one in keepable)]:
        assert_same(gradients_of(fused, layer.examples, wanted=frozenset(wanted), state=state), plain)


@compiled
def test_without_grad_the_bits_are_those_of_training(architecture, dtype):
    layer, fused = fused_of(architecture, dtype)
    state = get_random_state(CPU)
    expected = fused(*layer.examples).detach()
    set_random_state(CPU, state)
    with torch.no_grad():
        assert torch.equal(fused(*layer.examples), expected)
    set_random_state(CPU, state)
    with nothing_saved():
        assert torch.equal(fused(*layer.examples), expected)


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_weights_may_lie_anywhere_in_a_flat_buffer(offset):
    """Addresses of 2 or 16 bytes' alignment, other than those that it was compiled with; and other values."""
    layer, fused = fused_of("llama", torch.bfloat16)
    flat = torch.zeros(offset + sum(t.numel() for t in layer.examples if t.requires_grad), dtype=torch.bfloat16)
    moved, fresh, begin = [], [], offset
    for example in layer.examples:
        if example.requires_grad:
            view = flat[begin : begin + example.numel()].view(example.shape)
            view.copy_(example.detach() * 1.5)
            moved.append(view.requires_grad_())
            fresh.append(view.detach().clone().requires_grad_())
            begin += example.numel()
        else:
            moved.append(example)
            fresh.append(example)
    before = flat.clone()
    anchors = frozenset(named(fused, fresh))
    assert_same(gradients_of(fused, moved, wanted=anchors), gradients_of(fused, fresh))
    assert torch.equal(flat, before), "nothing is written into weights"


def compilations():
    return {name: dict(counters[name]) for name in ("inductor", "aot_autograd", "stats", "frames")}


@compiled
def test_nothing_is_compiled_after_fusing_whatever_the_modes_and_the_thread(architecture, dtype):
    layer, fused = fused_of(architecture, dtype)
    state = get_random_state(CPU)
    expected = gradients_of(fused, layer.examples, state=state)
    before = compilations()

    def run():
        torch.set_num_threads(1)  # as the thread that fused: threads of another one's making have their own
        anchors = frozenset(one for one in named(fused, layer.examples) if one[0] != "bernoulli_")
        with torch.no_grad():
            fused(*layer.examples)
        return gradients_of(fused, layer.examples, wanted=anchors, state=state)

    with ThreadPoolExecutor(1) as other:
        assert_same(other.submit(run).result(), expected)
    assert compilations() == before


def test_backward_may_run_twice():
    """Memory that backward was allowed to use again would not survive the first time."""
    layer, fused = fused_of("llama", torch.bfloat16)
    output = fused(*layer.examples)
    leaves = [t for t in layer.examples if t.requires_grad]
    with torch._functorch.config.patch(donated_buffer=False):  # or torch suspects that it may use some again
        once = torch.autograd.grad(output, leaves, torch.ones_like(output), retain_graph=True)
    again = torch.autograd.grad(output, leaves, torch.ones_like(output))
    assert all(map(torch.equal, once, again))


def test_llama_has_five_segments():
    layer = layer_of("llama", torch.bfloat16)
    assert len(capture(layer, layer.examples).graph.find_nodes(op="call_module")) == 5


def small(x, w):
    return nn.functional.gelu(x @ w).softmax(-1) * x


DICE = torch.Generator().manual_seed(5)
X, W = (torch.randn(shape, generator=DICE).requires_grad_() for shape in [(4, 6, 8), (8, 8)])


def test_fusing_draws_nothing_and_reads_no_values():
    state, before = get_random_state(CPU), compilations()
    fused = fuse(small, [torch.full((4, 6, 8), torch.nan, requires_grad=True), W])
    assert torch.equal(get_random_state(CPU), state)
    assert compilations() != before, "or else the test above sees nothing"
    assert torch.allclose(fused(torch.zeros(4, 6, 8), W), torch.zeros(4, 6, 8))


def test_what_writes_in_place_into_values_of_its_own_is_fused():
    def function(x, w):
        shares = x * 2
        shares /= shares.sum(-1, keepdim=True) + 100
        return shares @ w

    assert disagreement(function, fuse(function, [X, W]), [X, W]) < 1e-5


def test_what_is_detached_stays_so():
    def function(x, w):
        y = x.exp()
        return (y.detach() * 2 + y) @ w + (x @ w).detach()

    assert disagreement(function, fuse(function, [X, W]), [X, W]) < 1e-5


def test_values_made_of_nothing_and_operators_that_are_not_fused_run_between():
    def function(x, w):
        chosen = (x @ w).topk(2).indices
        return x @ w * torch.zeros(4, 6, 8).scatter(-1, chosen, 1.0)

    fused = fuse(function, [X, W])
    assert torch.allclose(fused(X, W), function(X, W), atol=1e-5)
    assert disagreement(function, fused, [X, W]) < 1e-5


def test_an_expanded_input_is_fine():
    mask = torch.zeros(1, 6, 1).expand(4, 6, 8)

    def function(x, w, mask):
        return (x + mask) @ w

    assert disagreement(function, fuse(function, [X, W, mask]), [X, W, mask]) < 1e-5


def test_buffers_are_read_where_they_are():
    buffer = torch.ones(8)

    def function(x, w):
        return (x * buffer) @ w + buffer

    fused = fuse(function, [X, W])
    buffer.mul_(3)
    assert torch.allclose(fused(X, W), function(X, W), atol=1e-5)


def view_written(x, w):
    y = x @ w
    y[0] = 0
    return y * 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, w: x @ w if x.sum() > 0 else x, "it cannot be captured: .*"),
        (lambda x, w: x[x > 0].sum() * (x @ w), "it cannot be captured: .*"),
        (lambda x, w: x.detach().mul_(2) @ w, "aten.mul_.Tensor writes into a value that may be read elsewhere"),
        (view_written, ".* writes into a value that may be read elsewhere"),
        (
            lambda x, _: nn.functional.instance_norm(x, *torch.ones(2, 6), use_input_stats=True) * 2,
            ".* writes .*",
        ),
        (lambda x, _: (x * 2).bernoulli_(0.5), "aten.bernoulli_.float draws into memory that holds a value"),
        (lambda x, w: (x @ w, x), "it does not return one tensor"),
        (lambda x, w: torch.stack([(x @ w).exp() @ w for _ in range(25)]).sum(0), "it falls into 26 segments: .*"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_a_reason(function, reason):
    with pytest.raises(NotFusable, match=f"^{reason}$"):
        fuse(function, [X, W])


def test_a_layer_that_cannot_be_captured_prints_nothing(capfd):
    layer = layer_of("mixtral", torch.float32)
    with pytest.raises(NotFusable, match="it cannot be captured: Expected inputs of BF16 type"):
        fuse(layer, layer.examples)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_compiled_is_refused_with_a_reason(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(torch._inductor, "compile", refuse)
    with pytest.raises(NotFusable, match=r"^it cannot be compiled: no compiler"):
        fuse(small, [X, W])


def test_a_torch_whose_kernels_are_chosen_by_time_is_refused(monkeypatch):
    monkeypatch.setattr(fused_module, "hasattr", lambda *_: False, raising=False)
    with pytest.raises(NotFusable, match="lets measured times decide on the last bits"):
        fuse(small, [X, W])


class StraightThrough(torch.autograd.Function):
    """Rounds, and lets gradients pass."""

    @staticmethod
    def forward(_, x):
        return x.round()

    @staticmethod
    def backward(_, gradient):
        return gradient


def partly_without_grad(x, w):
    with torch.no_grad():
        scale = x.abs().amax(-1, keepdim=True)
    return (x / scale) @ w


@pytest.mark.parametrize("function", [lambda x, w: StraightThrough.apply(x) @ w, partly_without_grad])
def test_gradients_that_a_capture_loses_are_seen(function):
    assert disagreement(function, function, [X, W]) == 0.0
    assert disagreement(function, fuse(function, [X, W]), [X, W]) > 0.1


def test_a_gradient_that_is_only_rounding_is_left_out():
    """That of a shift in front of a softmax, as of a key's bias: it is none, and computed otherwise it is another."""

    def function(x, w, shift):
        return (x @ w + shift).softmax(-1)

    def otherwise(x, w, shift):
        return (x @ w + shift).double().softmax(-1).float()

    assert disagreement(function, otherwise, [X, W, torch.zeros(1, requires_grad=True)]) < 1e-5


@pytest.mark.parametrize("otherwise", [lambda x, w: small(x, w.detach()), lambda x, w: small(x, w) / 0])
def test_a_gradient_that_is_missing_or_no_number_is_seen(otherwise):
    assert disagreement(small, otherwise, [X, W]) == float("inf")
    assert disagreement(otherwise, small, [X, W]) == float("inf")


def test_a_function_that_gives_no_numbers_is_no_reference():
    assert disagreement(lambda x, w: small(x, w) / 0, lambda x, w: small(x, w) / 0, [X, W]) == float("inf")
