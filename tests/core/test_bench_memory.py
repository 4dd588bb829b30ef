from __future__ import annotations

import pytest
from attrs import evolve

from lohan_core.bench.memory import MemoryBench, MemoryBenchOptions, MemoryBenchRow, render, run
from lohan_core.bench.peaks import peak_host_bytes
from lohan_core.errors import ConfigError, LohanError

MIB = 2**20


def test_a_peak_is_remembered():
    before = peak_host_bytes()
    block = bytearray(before + 32 * MIB)  # larger than all that is resident now: the peak must move
    block[::4096] = b"x" * len(block[::4096])
    del block
    after = peak_host_bytes()
    assert after > before + 31 * MIB, "the kernel counts in batches: a page more or less is no matter"


def test_each_depth_is_a_process_that_trains(tmp_path):
    options = MemoryBenchOptions(directory=tmp_path, layers=(1, 3), hidden_size=64, steps=1)
    result = run(options)
    one, three = result.rows
    assert (one.layers, three.layers) == (1, 3)
    assert three.state_bytes > one.state_bytes > 14 * 2 * 4096 * 64
    for row in result.rows:
        assert 100 * MIB < row.opened_peak_bytes <= row.trained_peak_bytes
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(LohanError, match=r"with 1 layers failed: .*nowhere"):
        run(MemoryBenchOptions(directory=tmp_path, layers=(1,), hidden_size=64, device="nowhere"))
    with pytest.raises(ConfigError, match="cannot be written"):
        run(MemoryBenchOptions(directory=tmp_path / "none", layers=(1,)))


def test_the_growth_is_told_beside_the_states():
    row = MemoryBenchRow(layers=4, state_bytes=200 * MIB, opened_peak_bytes=400 * MIB, trained_peak_bytes=500 * MIB)
    deep = evolve(row, layers=64, state_bytes=3200 * MIB, trained_peak_bytes=525 * MIB)
    text = render(MemoryBench(hidden_size=512, steps=2, rows=(row, deep), opened_spread=0.0, trained_spread=0.05))
    assert "peaks differ by 5.0%" in text
    assert "memory grew by 25" in text
