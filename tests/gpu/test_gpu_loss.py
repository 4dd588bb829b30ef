"""Head and loss over slices of tokens on a CUDA device, and attention by flash-attn where it is installed."""

from __future__ import annotations

import pytest
import torch
from tiny_lms import load_lm, make_batch
from tiny_runs import open_run, plain_step, recorded_gradients
from transformers import LlamaConfig

from lohan_core.engine.peak import peak_bytes
from lohan_core.model import chunked_loss
from lohan_core.model.choices import Loss
from lohan_core.model.cut import cut_model
from lohan_core.model.skeleton import build_skeleton

pytestmark = pytest.mark.gpu

GIB = 2**30
ROUNDING = {"float32": 1e-4, "bfloat16": 4e-2}


def check_gradients(tmp_path, model, backends, batch, *, dtype, choices):
    sections = {"model": choices, "run": {"dtype": dtype, "device": "cuda"}}
    with open_run(tmp_path, model, batch, backends, **sections) as engine:
        description = engine.description[0]
        result = engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
    loss, theirs = plain_step(load_lm(model, getattr(torch, dtype)), batch, step=1)
    assert result.loss == pytest.approx(loss, rel=ROUNDING[dtype])
    for name, gradient in theirs.items():
        assert (ours[name].float() - gradient.float()).norm() <= ROUNDING[dtype] * gradient.float().norm(), name
    return description


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loss", ["chunked", "liger"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_gradients_are_those_of_the_cpu_to_rounding(
    *, tmp_path, models, backends, monkeypatch, dtype, architecture, loss, packed
):
    if loss == "liger":
        pytest.importorskip("liger_kernel")
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 7 * 96 * 4)  # seven tokens
    batch = make_batch(2, micro_batches=2, packed=packed)
    check_gradients(tmp_path, models[architecture], backends, batch, dtype=dtype, choices={"loss": loss})


@pytest.mark.parametrize("loss", [Loss.CHUNKED, Loss.LIGER])
def test_32k_tokens_of_a_128k_vocabulary_fit(cuda, loss):
    """All their logits would take 15.7 GiB in float32, and several times that in backward."""
    if loss is Loss.LIGER:
        pytest.importorskip("liger_kernel")
    config = LlamaConfig(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=8, vocab_size=128256, max_position_embeddings=32768
    )
    model = cut_model(build_skeleton(config, torch.bfloat16), loss)
    model.to(cuda)
    tokens = torch.randint(128256, (1, 32768), device=cuda)
    weights = model.random_weights(len(model.blocks) - 1)
    hidden = torch.randn((1, 32768, 1024), dtype=torch.bfloat16, device=cuda).requires_grad_()

    def work():
        found = model.postlude(weights, {"input_ids": tokens, "labels": tokens}, hidden)
        assert torch.autograd.grad(found, [hidden, *weights.values()])[0].isfinite().all()

    assert peak_bytes(work, cuda) < 6 * GIB


@pytest.mark.parametrize("packed", [False, True])
def test_flash_attn_computes_what_the_cpu_does(tmp_path, models, backends, packed):
    pytest.importorskip("flash_attn")
    batch = make_batch(2, micro_batches=2, packed=packed)
    said = check_gradients(tmp_path, models["llama"], backends, batch, dtype="bfloat16", choices={"attention": "flash"})
    assert said == "attention: flash (by the config)"
