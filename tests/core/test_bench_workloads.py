from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_backends import TestBackends, make_registry

from lohan_core.bench.workloads import (
    WORKLOADS,
    find_workload,
    make_batch,
    model_config,
    write_model_directory,
)
from lohan_core.config.load import config_from_mapping
from lohan_core.errors import ConfigError, StorageError
from lohan_core.model.skeleton import build_skeleton

SMOKE = WORKLOADS["smoke"]
PARAMETERS = {"2b": 2.21e9, "4b": 4.22e9, "8b": 8.03e9, "12b": 11.6e9}
BATCHES = {
    "smoke": (2, 4),
    "smoke-ssd": (2,),
    "host-2b": (8, 32, 128),
    "ssd-2b": (8, 32),
    "host-4b": (16, 64),
    "tier-8b": (16, 64),
    "tier-12b": (32,),
    "long-8b": (1,),
}


@pytest.mark.parametrize("name", [name for name in WORKLOADS if "smoke" not in name])
def test_a_workload_has_the_size_that_it_is_named_for(tmp_path, name):
    parameters = write_model_directory(tmp_path / "model", WORKLOADS[name])
    assert parameters == pytest.approx(PARAMETERS[name.split("-")[1]], rel=0.01)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_a_directory_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/model: cannot be written: Not a directory"):
        write_model_directory(tmp_path / "file" / "model", SMOKE)


def test_the_table_is_whole():
    assert {name: workload.batch_sizes for name, workload in WORKLOADS.items()} == BATCHES
    for name, workload in WORKLOADS.items():
        assert all(size % workload.rows_at_once(size) == 0 for size in workload.batch_sizes), name
        if "smoke" not in name:
            assert workload.settings["memory"]["gpu"] == "24GiB", name
    assert WORKLOADS["long-8b"].sequence_length == 32768
    for name in ("host-2b", "host-4b", "long-8b"):  # or a whole store would be filled before the first step
        assert WORKLOADS[name].settings["memory"]["ssd"] == "1GiB", name
        assert "planner" not in WORKLOADS[name].settings, name  # which decides about the GPU's memory, states included
    assert WORKLOADS["ssd-2b"].settings["memory"]["host"] == "16GiB"
    assert WORKLOADS["tier-12b"].settings["memory"]["ssd"] == "60GB"


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_settings_are_those_of_a_run(workload, tmp_path):
    values = {
        **workload.settings,
        "model": {**workload.settings.get("model", {}), "path": str(tmp_path), "weights": "random"},
        "data": {"train": str(tmp_path / "none")},
        "run": {"dir": str(tmp_path), "steps": 1},
    }
    config = config_from_mapping(values, make_registry(TestBackends()))
    assert config.planner.name == "greedy"


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_rows_fit_the_models_positions(workload):
    config = model_config(workload)
    assert workload.sequence_length <= config.max_position_embeddings
    assert config.model_type == workload.architecture


def test_models_have_no_dropout():
    model = build_skeleton(model_config(WORKLOADS["tier-12b"]), torch.bfloat16)
    drops = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert drops
    assert all(module.p == 0.0 for module in drops)


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


def test_the_page_names_every_workload():
    page = (Path(__file__).parents[2] / "docs" / "bench-step.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in WORKLOADS)
