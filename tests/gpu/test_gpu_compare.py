"""Planners compared on a CUDA device: the losses of every plan to the bit, and the device memory that each took."""

from __future__ import annotations

import json

import pytest
import yaml
from tiny_runs import make_registry

from lohan_core.compare.here import compare_here
from lohan_core.config import load_config

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_plan_has_the_same_losses_and_its_own_memory(*, tmp_path, models, backends, dtype, architecture):
    samples = [{"input_ids": [3 + (17 * row + 5 * column) % 90 for column in range(40)]} for row in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, samples)))
    sections = {
        "model": {"path": str(models[architecture])},
        "data": {"train": "train.jsonl", "sequence_length": 40, "packing": False},
        "run": {"dir": "run", "steps": 3, "batch_size": 4, "micro_batch_size": 2, "device": "cuda", "dtype": dtype},
        "memory": {"chunk": "32KiB"},
        "storage": {"backend": "memory"},
        "profiler": {"seconds": 1e-9, "cache": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    registry = make_registry(backends)
    config = load_config(tmp_path / "config.yaml", [], registry)
    found = compare_here(config, ["keep_nothing", "keep_all"], registry, lambda *_: None, steps=2)
    assert found.losses_identical, [contender.measurement.losses for contender in found.contenders]
    assert found.groups == (("keep_nothing", "keep_all"),)
    nothing, everything = (contender.measurement.typical.gpu_peak_bytes for contender in found.contenders)
    assert 0 < nothing < everything
    for contender in found.contenders:
        lanes = contender.measurement.typical.timeline.busy_seconds()
        assert all(lanes[lane] > 0 for lane in ("gpu", "h2d", "d2h"))
