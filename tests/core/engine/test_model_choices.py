"""Runs with attention and loss as the config chooses them: the same training, to rounding."""

from __future__ import annotations

import pytest
import torch
from tiny_lms import load_lm, make_batch
from tiny_runs import open_run, plain_step, recorded_gradients

from lohan_core.errors import ConfigError
from lohan_core.model import chunked_loss
from lohan_core.model.choices import Loss
from lohan_core.model.keep import ATTENTION

ROUNDING = {"float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def slices_of_seven(monkeypatch):
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 7 * 96 * 4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_gradients_are_those_of_plain_backward_to_rounding(*, tmp_path, models, backends, dtype, architecture, packed):
    rounding = ROUNDING[dtype]
    batch = make_batch(2, micro_batches=2, packed=packed)
    sections = {"model": {"loss": "chunked"}, "run": {"dtype": dtype}}
    with open_run(tmp_path, models[architecture], batch, backends, **sections) as engine:
        assert engine.model.loss is Loss.CHUNKED
        result = engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
        assert engine.evaluate([batch]) > 0
    loss, theirs = plain_step(load_lm(models[architecture], getattr(torch, dtype)), batch, step=1)
    assert result.loss == pytest.approx(loss, rel=rounding)
    for name, gradient in theirs.items():
        assert (ours[name].float() - gradient.float()).norm() <= rounding * gradient.float().norm(), name


def test_two_steps_train_as_with_all_logits(tmp_path, models):
    seen = {}
    for loss in ("whole", "chunked"):
        batches = [make_batch(seed, micro_batches=2) for seed in (1, 2)]
        sections = {"model": {"loss": loss}, "optimizer": {"backend": "torch_adamw"}}
        with open_run(tmp_path / loss, models["llama"], batches[0], **sections) as engine:
            losses = [engine.step(batch, lr=1e-3).loss for batch in batches]
            seen[loss] = [*losses, engine.evaluate(batches)]
    assert seen["chunked"] == pytest.approx(seen["whole"], rel=1e-5)
    first, second, after = seen["whole"]
    assert after < (first + second) / 2, "it learned"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("auto", "sdpa (flash-attn needs a CUDA device)"),
        ("sdpa", "sdpa (by the config)"),
        ("eager", "eager (by the config)"),
    ],
)
def test_a_run_says_which_attention_it_has(tmp_path, models, wanted, said):
    with open_run(tmp_path, models["llama"], make_batch(1), model={"attention": wanted}) as engine:
        assert engine.description[0] == f"attention: {said}"
        operators = {candidate.operator for candidate in engine.profile.blocks[1].candidates}
        assert (ATTENTION in operators) is (wanted != "eager")
        assert engine.step(make_batch(1), lr=0.0).loss > 0


def test_attention_that_is_not_to_be_had_is_refused(tmp_path, models):
    with pytest.raises(ConfigError, match=r"^model\.attention: flash: flash-attn needs a CUDA device; set run\.device"):
        open_run(tmp_path / "run", models["llama"], make_batch(1), model={"attention": "flash"})
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_to_be_had_is_refused_before_anything_is_made(tmp_path, models):
    with pytest.raises(ConfigError, match=r"^model\.loss: liger: its kernels need a CUDA device"):
        open_run(tmp_path / "run", models["llama"], make_batch(1), model={"loss": "liger"})
    assert not (tmp_path / "run").exists()
