from __future__ import annotations

import multiprocessing
from contextlib import closing

import pytest
import torch
from attrs import evolve
from transformers import LlamaConfig

from lohan_core.bench import plain_process
from lohan_core.bench.plain_memory import plain_bytes, why_plain_does_not_fit
from lohan_core.bench.plain_process import PlainContender, PlainOutOfMemoryError, PlainProcess
from lohan_core.bench.workloads import WORKLOADS, model_config, write_model_directory
from lohan_core.errors import LohanError
from lohan_core.model.choices import Attention
from lohan_core.reference.torch_adamw import AdamWConfig

SMOKE = WORKLOADS["smoke"]
ARGUMENTS = {
    "seed": 0,
    "device": "cpu",
    "dtype": torch.bfloat16,
    "attention": Attention.SDPA,
    "optimizer": AdamWConfig(lr=1e-5, max_grad_norm=1.0),
}
H200_BYTES = 139 * 2**30


def test_what_plain_takes_by_hand():
    config = LlamaConfig(hidden_size=8, num_hidden_layers=3, vocab_size=100, num_attention_heads=2)
    workload = evolve(SMOKE, micro_batch_size=2, sequence_length=5)
    inputs, logits = 3 * 10 * 8 * 2, 10 * 100 * 10
    assert plain_bytes(1000, config, workload, 2) == 18_000 + inputs + logits
    assert plain_bytes(1000, config, workload, 4) == 20_000 + inputs + logits
    inputs, logits = 3 * 10 * 8 * 4, 10 * 100 * 8  # in fp32, weights are masters, and there is nothing in bf16
    assert plain_bytes(1000, config, workload, 2, value_bytes=4) == 16_000 + inputs + logits
    assert plain_bytes(1000, config, workload, 4, value_bytes=4) == 16_000 + inputs + logits


@pytest.mark.parametrize(("name", "fits"), [("host-2b", True), ("host-4b", True), ("tier-8b", False)])
def test_which_workloads_plain_takes_part_in(name, fits):
    workload = WORKLOADS[name]
    parameters = {"host-2b": 2.21e9, "host-4b": 4.22e9, "tier-8b": 8.03e9}[name]
    needed = plain_bytes(int(parameters), model_config(workload), workload, workload.batch_sizes[-1])
    reason = why_plain_does_not_fit(needed, H200_BYTES - 24 * 2**30)
    assert (reason is None) == fits
    assert fits or reason == "does not fit: needs 161 GiB at the least, and 115 GiB are free"


def test_it_runs_apart_and_tells_why_it_fails(tmp_path):
    write_model_directory(tmp_path / "model", SMOKE)
    process = PlainProcess(SMOKE, 2, model=tmp_path / "model", **ARGUMENTS)
    assert process.step(0).loss == pytest.approx(6.24, abs=0.1)
    process.close()
    with pytest.raises(LohanError, match="plain PyTorch failed: ModelError"):
        PlainContender.start(SMOKE, 2, model=tmp_path / "none", **ARGUMENTS)


def test_one_that_is_killed_between_steps_is_told_of(tmp_path):
    write_model_directory(tmp_path / "model", SMOKE)
    process = PlainProcess(SMOKE, 2, model=tmp_path / "model", **ARGUMENTS)
    (child,) = multiprocessing.active_children()
    child.kill()
    child.join()
    with pytest.raises(LohanError, match="plain PyTorch's process ended with code -9"):
        process.step(0)


class Failing:
    """A process that runs out of memory in its second step."""

    closed = False

    def step(self, number):
        if number == 1:
            raise PlainOutOfMemoryError("ran out of memory: OutOfMemoryError: CUDA")
        return number

    def close(self):
        self.closed = True


def test_one_that_runs_out_of_memory_drops_out_and_says_so():
    process = Failing()
    with closing(PlainContender(process, None)) as contender:
        contender.step(0)
        assert contender.steps == [0]
        contender.step(1)
        contender.step(2)
    assert process.closed
    assert contender.steps == []
    assert contender.absence == "ran out of memory: OutOfMemoryError: CUDA"


def test_running_out_of_memory_is_told_from_other_failures(monkeypatch):
    sent = []

    class Connection:
        def send(self, answer):
            sent.append(answer)

    for error in (torch.OutOfMemoryError("CUDA\nmore"), RuntimeError("other\nmore")):

        def fail(error=error, **_):
            raise error

        monkeypatch.setattr(plain_process, "PlainTrainer", fail)
        plain_process._serve(Connection(), SMOKE, 2, {})
    assert [(answer.text, answer.out_of_memory) for answer in sent] == [
        ("OutOfMemoryError: CUDA", True),
        ("RuntimeError: other", False),
    ]


def test_it_ends_in_silence_when_nobody_asks_any_more(monkeypatch):
    class Connection:
        def send(self, _):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(plain_process, "PlainTrainer", lambda **_: None)
    plain_process._serve(Connection(), SMOKE, 1, {})
