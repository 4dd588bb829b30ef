from __future__ import annotations

import json

import pytest
import torch
from attrs import asdict
from tiny_backends import TestBackends, make_registry
from transformers import AutoModelForCausalLM, LlamaConfig

from lohan_core.bench.plain import PlainProcess, PlainTrainer
from lohan_core.bench.step import StepBenchOptions, render, run
from lohan_core.bench.workloads import WORKLOADS, find_workload, make_batch, write_random_model
from lohan_core.errors import ConfigError, LohanError
from lohan_core.model.skeleton import build_skeleton

SMOKE = WORKLOADS["smoke"]
CPU = torch.device("cpu")
OPTIONS = {"workload": "smoke", "device": "cpu", "plain": False, "settings": {"profiler": {"backend": "quick"}}}


def bench(directory, **changes):
    options = StepBenchOptions(directory=directory, **{**OPTIONS, **changes})
    return run(options, make_registry(TestBackends()))


def test_the_workloads_have_the_sizes_that_they_are_named_for():
    for name in ("host-2b", "ssd-2b"):
        skeleton = build_skeleton(LlamaConfig(**WORKLOADS[name].model), torch.bfloat16)
        assert sum(parameter.numel() for parameter in skeleton.parameters()) == pytest.approx(2.21e9, rel=1e-3)
    assert all(size % w.micro_batch_size == 0 for w in WORKLOADS.values() for size in w.batch_sizes)


def test_an_unknown_workload_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="host-2b"):
        find_workload("host-2c")


def test_a_batch_is_a_function_of_the_step():
    one, again, other = make_batch(SMOKE, 4, 1), make_batch(SMOKE, 4, 1), make_batch(SMOKE, 4, 2)
    assert len(one.micro_batches) == 2
    assert one.tokens == 4 * SMOKE.sequence_length
    assert one.loss_tokens == (2 * (SMOKE.sequence_length - 1),) * 2
    for ours, same, different in zip(one.micro_batches, again.micro_batches, other.micro_batches, strict=True):
        assert torch.equal(ours["input_ids"], same["input_ids"])
        assert not torch.equal(ours["input_ids"], different["input_ids"])
    with pytest.raises(ConfigError, match="multiples of 2"):
        make_batch(SMOKE, 3, 0)


def test_a_random_model_loads_whole_from_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("lohan_core.bench.workloads._SHARD_BYTES", 100_000)
    parameters = write_random_model(tmp_path / "model", SMOKE, CPU)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert all(parameter.std() > 0.01 for parameter in model.parameters() if parameter.dim() > 1)
    assert torch.equal(model.model.norm.weight, torch.ones(64, dtype=torch.bfloat16))


def test_both_sides_train_the_same_model(tmp_path):
    batch_size, steps = 4, 3
    result = bench(tmp_path, batch_sizes=(batch_size,), steps=steps, warm_up=0)
    write_random_model(tmp_path / "model", SMOKE, CPU)
    plain = PlainTrainer(model=tmp_path / "model", device="cpu", lr=1e-5, max_grad_norm=1.0)
    losses = [plain.step(make_batch(SMOKE, batch_size, step)).loss for step in range(steps)]
    assert result.rows[0].losses[0] == pytest.approx(losses[0], rel=1e-6)
    assert result.rows[0].losses == pytest.approx(losses, rel=1e-4)
    assert losses[0] != losses[-1]


def test_every_batch_size_is_a_row_and_nothing_is_left_behind(tmp_path):
    result = bench(tmp_path, steps=2, warm_up=1)
    assert [row.batch_size for row in result.rows] == [2, 4]
    for row in result.rows:
        assert len(row.step_seconds) == 2
        assert len(row.losses) == 3
        assert min(row.step_seconds) <= row.seconds <= max(row.step_seconds)
        assert row.tokens_per_second == pytest.approx(row.batch_size * SMOKE.sequence_length / row.seconds)
        assert set(row.busy_seconds) == set(row.predicted_busy_seconds)
        assert 0 < row.busy_seconds["gpu"] <= row.seconds
        assert row.storage_write_bytes == 0, "states in host memory, nothing durable"
        assert row.peak_host_bytes > row.planned_host_bytes
        assert row.ratio_to_plain is None
    assert not list(tmp_path.iterdir())
    text = render(result)
    assert "smoke" in text
    assert str(round(result.rows[1].tokens_per_second)) in text
    assert json.loads(json.dumps(asdict(result)))["rows"][0]["planner"] == "keep_nothing"


def test_settings_add_to_the_workloads_own(tmp_path):
    settings = {"planner": {"states": "ssd"}, "profiler": {"backend": "quick"}, "memory": {"chunk": "16KiB"}}
    result = bench(tmp_path, batch_sizes=(2,), steps=1, warm_up=0, settings=settings)
    assert result.settings["planner"] == {"backend": "keep_nothing", "states": "ssd"}
    assert result.rows[0].storage_write_bytes > 14 * result.parameters


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        bench(tmp_path / "none")


def test_plain_pytorch_runs_apart_and_tells_why_it_fails(tmp_path):
    write_random_model(tmp_path / "model", SMOKE, CPU)
    arguments = {"device": "cpu", "lr": 1e-5, "max_grad_norm": 1.0}
    with PlainProcess(SMOKE, 2, model=tmp_path / "model", **arguments) as plain:
        assert plain.step(0).loss == pytest.approx(6.258, abs=0.1)
    with pytest.raises(LohanError, match="plain PyTorch failed: OSError"):
        PlainProcess(SMOKE, 2, model=tmp_path / "none", **arguments)
