"""Head and loss a slice at a time: the same as all at once, in the memory of a slice, or not at all."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from tiny_lms import COMMON, CONFIGS, make_batch, make_lm
from torch import nn
from transformers import AutoConfig, LlamaConfig

from lohan_core.engine import stopwatch
from lohan_core.engine.peak import peak_bytes
from lohan_core.engine.profile_blocks import profile_blocks
from lohan_core.errors import ConfigError
from lohan_core.model import chunked_loss
from lohan_core.model import loss as loss_module
from lohan_core.model.choices import Loss
from lohan_core.model.chunked_loss import SLICE_BYTES, chunked_cross_entropy, slice_rows
from lohan_core.model.cut import cut_model
from lohan_core.model.loss import loss_computer, require_loss_kernels, require_same_loss
from lohan_core.model.skeleton import build_skeleton

CPU = torch.device("cpu")
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""What rounding may make of a gradient, in parts of its norm."""

ARCHITECTURES = {
    "llama": CONFIGS["llama"],
    "qwen3": CONFIGS["qwen3"],
    "tied": CONFIGS["gpt2"],
    "tied, scaled embeddings": lambda: AutoConfig.for_model("gemma", **COMMON),
    "projected": CONFIGS["opt"],
    "soft-capped": lambda: AutoConfig.for_model("gemma2", **COMMON, final_logit_softcapping=2.0),
    "logits scaled": lambda: AutoConfig.for_model("cohere2", **COMMON),
    "logits divided": lambda: AutoConfig.for_model("granite", **COMMON, logits_scaling=8.0),
    "with a bias": lambda: AutoConfig.for_model("phi", **COMMON),
    "tanh of torch.nn": lambda: AutoConfig.for_model("recurrent_gemma", **COMMON, logits_soft_cap=2.0),
}


@pytest.fixture
def slices_of_seven(monkeypatch):
    """Slices of seven tokens: none of a batch's 48 is left out, and the last slice is a short one."""
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 7 * 96 * 4)


def postlude(config, loss, dtype=torch.float32, *, packed=False):
    """Return a cut model, and a postlude's weights, inputs and hidden state."""
    whole = make_lm(config).to(dtype).eval()
    cut = cut_model(build_skeleton(config, dtype), loss)
    cut.model.eval()
    block = cut.blocks[-1]
    parameters = dict(whole.named_parameters())
    names = [slot.name for slot in block.slots] + [entry.name for entry in block.borrowed]
    weights = {name: parameters[name].detach().clone().requires_grad_() for name in names}
    for weight in weights.values():
        if weight.shape[0] == 96:  # the head: logits far from 0 and from each other, as a trained model's are
            weight.data.mul_(20)
    (inputs,) = make_batch(3, packed=packed).micro_batches
    with torch.no_grad():
        like, _ = cut.prelude({}, inputs)
    hidden = torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    return cut, weights, inputs, hidden


def loss_and_gradients(cut, weights, inputs, hidden):
    loss = cut.postlude(weights, inputs, hidden)
    gradients = torch.autograd.grad(loss, [hidden, *weights.values()], torch.full_like(loss, 0.25))
    return loss.detach(), dict(zip(("hidden", *weights), gradients, strict=True))


def distance(one, other):
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("slices_of_seven")
def test_slice_by_slice_is_all_at_once_to_rounding(architecture, dtype, packed):
    cut, *case = postlude(ARCHITECTURES[architecture](), Loss.CHUNKED, dtype, packed=packed)
    loss, gradients = loss_and_gradients(cut, *case)
    whole_loss, whole_gradients = loss_and_gradients(evolve(cut, loss=Loss.WHOLE), *case)
    assert whole_loss > 1
    assert float(loss) == pytest.approx(float(whole_loss), rel=DTYPES[dtype])
    for name, gradient in whole_gradients.items():
        assert gradients[name].dtype == gradient.dtype
        assert distance(gradients[name], gradient) < DTYPES[dtype], name


@pytest.mark.usefixtures("slices_of_seven")
def test_many_slices_lose_nothing_to_bfloat16():
    """Summed in fp32 and rounded once, the head's gradient is as close to the true one as that of one product."""
    cut, weights, inputs, hidden = postlude(CONFIGS["llama"](), Loss.CHUNKED, torch.bfloat16)
    whole = evolve(cut, loss=Loss.WHOLE)
    exact = cut_model(build_skeleton(CONFIGS["llama"](), torch.float32))
    exact_weights = {name: weight.detach().float().requires_grad_() for name, weight in weights.items()}
    _, truth = loss_and_gradients(exact, exact_weights, inputs, hidden.detach().float().requires_grad_())
    off = {
        model.loss: distance(loss_and_gradients(model, weights, inputs, hidden)[1]["lm_head.weight"], truth[name])
        for model in (cut, whole)
        for name in ("lm_head.weight",)
    }
    assert off[Loss.CHUNKED] < 1.2 * off[Loss.WHOLE]


@pytest.mark.usefixtures("slices_of_seven")
def test_a_loss_alone_is_that_of_training():
    cut, weights, inputs, hidden = postlude(CONFIGS["qwen3"](), Loss.CHUNKED)
    with torch.no_grad():
        alone = cut.postlude(weights, inputs, hidden)
    assert torch.equal(alone, loss_and_gradients(cut, weights, inputs, hidden)[0])


@given(st.integers(1, 10**9))
def test_a_slice_is_as_large_as_it_may_be(width):
    rows = slice_rows(width)
    assert rows >= 1
    assert rows == 1 or rows * width * 4 <= SLICE_BYTES
    assert (rows + 128) * width * 4 > SLICE_BYTES
    assert rows <= 128 or rows % 128 == 0


def wide(loss):
    """A model that is nearly all vocabulary."""
    return postlude(LlamaConfig(**{**COMMON, "vocab_size": 96 * 64}), loss)


def peak(cut, weights, inputs, hidden):
    return peak_bytes(lambda: loss_and_gradients(cut, weights, inputs, hidden), CPU)


def test_memory_is_that_of_a_slice_and_of_the_gradients(monkeypatch):
    tokens, vocabulary, width = 48, 96 * 64, 48
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 4 * vocabulary * 4)  # four tokens
    logits_bytes = tokens * vocabulary * 4
    head_bytes = vocabulary * width * 4
    assert peak(*wide(Loss.WHOLE)) > 2 * logits_bytes + head_bytes
    # A slice's logits once, and as much for what its tokens add to the head's gradient.
    assert peak(*wide(Loss.CHUNKED)) < head_bytes + 2 * chunked_loss.SLICE_BYTES + 4 * tokens * width * 4
    slice_bytes = chunked_loss.SLICE_BYTES
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 2 * slice_bytes)
    eight_tokens = peak(*wide(Loss.CHUNKED))
    monkeypatch.setattr(chunked_loss, "SLICE_TOKENS", 4)
    assert eight_tokens - peak(*wide(Loss.CHUNKED)) >= slice_bytes


def test_a_measured_profile_shows_it(monkeypatch):
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 4 * 96 * 64 * 4)
    monkeypatch.setattr(stopwatch, "LEAST_LOOKS", 1)
    monkeypatch.setattr(stopwatch, "LOOK_SECONDS", 0.0)

    def measured(loss):
        cut, _, inputs, _ = wide(loss)
        return profile_blocks(cut, inputs, CPU)[-1]

    whole, chunked = measured(Loss.WHOLE), measured(Loss.CHUNKED)
    assert chunked.transient_bytes < whole.transient_bytes / 2
    assert chunked.flops == whole.flops


def llama_with(loss_function=None, head=None):
    model = build_skeleton(CONFIGS["llama"](), torch.float32)
    cut = cut_model(model, Loss.CHUNKED)
    if loss_function is not None:
        model.loss_function = loss_function
    if head is not None:
        model.lm_head = head
    return cut


def sharpened(logits, labels, **_):
    return nn.functional.cross_entropy(logits.softmax(-1).flatten(0, 1), labels.flatten())


def smoothed(logits, labels, **_):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)


def unreduced(logits, labels, **_):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").mean()


def across_the_vocabulary(logits, labels, **_):
    return nn.functional.cross_entropy(logits.view(-1, 48), labels.repeat(2, 1).flatten())


def other_than_cross_entropy(logits, labels, **_):
    return labels.float().mean() + logits.shape[-1]


def added(logits, labels, **_):
    return nn.functional.cross_entropy((labels.unsqueeze(-1) + logits).flatten(0, 1), labels.flatten())


class Scaled(nn.Linear):
    """No plain product."""


REFUSALS = {
    "softmax": ({"loss_function": sharpened}, "it computes 'softmax' of its logits"),
    "sum": ({"loss_function": added}, "it computes 'add' of its logits"),
    "smoothing": ({"loss_function": smoothed}, "its loss weighs tokens or smooths labels"),
    "reduction": ({"loss_function": unreduced}, "its loss is not reduced to one number but 'none'"),
    "shape": ({"loss_function": across_the_vocabulary}, r"it changes its logits' shape to \(32, 48\)"),
    "no cross-entropy": ({"loss_function": other_than_cross_entropy}, "its loss is not the cross-entropy of its head"),
    "head": ({"head": Scaled(48, 96, bias=False)}, "its head is Scaled, not a plain matrix"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_wait_is_refused(case):
    changes, reason = REFUSALS[case]
    with pytest.raises(ConfigError, match=rf"^model\.loss: LlamaForCausalLM cannot .*: {reason}.*; set model\.loss: w"):
        require_same_loss(llama_with(**changes))


def test_a_loss_that_comes_out_otherwise_is_refused(monkeypatch):
    cut = cut_model(build_skeleton(CONFIGS["llama"](), torch.float32), Loss.CHUNKED)
    require_same_loss(cut)
    without_scores = {
        "loss": (lambda head: 1.1 * chunked_cross_entropy(head)),
        "gradient of the hidden state": lambda head: chunked_cross_entropy(evolve(head, hidden=head.hidden.detach())),
    }
    for name, compute in without_scores.items():
        monkeypatch.setattr(loss_module, "chunked_cross_entropy", compute)
        with pytest.raises(ConfigError, match=rf"^model\.loss: chunked gives another {name} than LlamaForCausalLM"):
            require_same_loss(cut)


def test_the_trial_leaves_no_trace():
    cut = cut_model(build_skeleton(CONFIGS["gpt2"](), torch.float32), Loss.CHUNKED)
    state = torch.get_rng_state()
    require_same_loss(cut)
    assert torch.equal(torch.get_rng_state(), state)
    assert cut.model.training
    assert "forward" not in vars(cut.model.lm_head)


@pytest.fixture
def liger(monkeypatch):
    """A stand-in for the package, which computes as it says it does; returns the calls it got."""
    calls = []

    def liger_fused_linear_cross_entropy(hidden, weight, target, *, bias, ignore_index, reduction, accum_dtype):
        calls.append((hidden.requires_grad, accum_dtype))
        logits = nn.functional.linear(hidden, weight, bias).float()
        return nn.functional.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)

    functional = SimpleNamespace(liger_fused_linear_cross_entropy=liger_fused_linear_cross_entropy)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__=object()))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)
    return calls


@pytest.mark.parametrize("architecture", ["llama", "tied", "with a bias"])
def test_liger_is_given_head_and_labels(liger, architecture):
    cut, weights, inputs, hidden = postlude(ARCHITECTURES[architecture](), Loss.LIGER)
    loss, gradients = loss_and_gradients(cut, weights, inputs, hidden)
    whole_loss, whole_gradients = loss_and_gradients(evolve(cut, loss=Loss.WHOLE), weights, inputs, hidden)
    assert float(loss) == pytest.approx(float(whole_loss), rel=1e-6)
    assert all(distance(gradients[name], whole_gradients[name]) < 1e-5 for name in whole_gradients)
    with torch.no_grad():
        cut.postlude(weights, inputs, hidden)
    assert liger == [(True, torch.float32), (False, torch.float32)], "an evaluation wants no gradients"


def test_liger_refuses_what_its_kernels_do_not_compute(liger):
    cut = cut_model(build_skeleton(ARCHITECTURES["soft-capped"](), torch.float32), Loss.LIGER)
    with pytest.raises(ConfigError, match=r"^model\.loss: liger: the model computes 'div' of .* set model\.loss: chu"):
        require_same_loss(cut)
    assert not liger


def test_liger_needs_its_package_and_a_gpu(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"^model\.loss: liger: its kernels need a CUDA device, not cpu; set .*chunked"
    ):
        require_loss_kernels(Loss.LIGER, CPU)
    monkeypatch.setattr(loss_module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"^model\.loss: liger: .* not installed; pip install 'lohan\[liger\]', or "):
        require_loss_kernels(Loss.LIGER, torch.device("cuda"))
    monkeypatch.setattr(loss_module, "find_spec", lambda _: object())
    require_loss_kernels(Loss.LIGER, torch.device("cuda"))
    for loss in (Loss.WHOLE, Loss.CHUNKED):
        require_loss_kernels(loss, CPU)
    assert loss_computer(Loss.WHOLE) is None
