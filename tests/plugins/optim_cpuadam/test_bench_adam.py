from __future__ import annotations

import json

import attrs
import pytest

from lohan_core.bench.adam import AdamBenchOptions, render, run, summarise
from lohan_core.errors import ConfigError
from lohan_core.registry import Provider, Registry
from lohan_optim_cpuadam import plugin


@pytest.fixture
def registry():
    registry = Registry()
    registry.add(Provider(plugin="optim_cpuadam", distribution="lohan", version="0"), lambda: plugin)
    return registry


def test_every_contender_is_measured_with_every_number_of_threads(registry):
    options = AdamBenchOptions(parameters=1001, rounds=2, simd=("auto", "scalar"), threads=(1, 2))
    result = run(options, registry)
    ours = [f"cpuadam {simd}{where}" for where in ("", " overlaid", " elsewhere") for simd in ("auto", "scalar")]
    contenders = [*ours, "torch fused", "copy", "in place"]
    assert [(row.what, row.threads) for row in result.rows] == [(what, t) for t in (1, 2) for what in contenders]
    assert all(len(row.seconds) == 2 and row.parameters_per_second > 0 for row in result.rows)
    assert json.loads(json.dumps(attrs.asdict(result)))["parameters"] == 1001
    text = render(result)
    assert all(what in text for what in contenders)


def test_rates_are_medians_and_ratios_go_round_by_round():
    seconds = {
        "cpuadam auto": [1.0, 2.0, 4.0],
        "torch fused": [2.0, 2.0, 12.0],
        "copy": [1.0, 1.0, 1.0],
        "in place": [0.5, 1.5, 3.0],
    }
    ours, torch, *_ = summarise(seconds, threads=2, parameters=100)
    assert ours.parameters_per_second == 50
    assert ours.bytes_per_second == 50 * 28
    assert ours.ratio_to_torch == 2.0
    assert ours.fraction_of_copy == 0.5
    assert ours.fraction_of_in_place == 0.75
    assert torch.ratio_to_torch == 1.0


def test_unknown_path_is_refused(registry):
    with pytest.raises(ConfigError, match=r"simd: got 'sse'\..*Choose one of: auto, avx2, avx512, scalar$"):
        run(AdamBenchOptions(parameters=1, rounds=1, simd=("sse",), threads=(1,)), registry)
