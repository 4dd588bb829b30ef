from __future__ import annotations

import json

import pytest
from attrs import asdict
from tiny_backends import TestBackends, make_registry

from lohan_core.bench.plain import PlainTrainer
from lohan_core.bench.step import StepBenchOptions, render, run
from lohan_core.bench.step_rows import busiest_resource, busy_by_resource
from lohan_core.bench.workloads import WORKLOADS, make_batch, write_model_directory
from lohan_core.errors import ConfigError
from lohan_core.schedule.task import Lane, Op, Schedule, Task
from lohan_core.schedule.timeline import Span, Timeline

SMOKE = WORKLOADS["smoke"]
QUICK = {"profiler": {"backend": "quick"}}
OPTIONS = {"workload": "smoke", "device": "cpu", "plain": False, "settings": QUICK, "drives_seconds": 0.05}


@pytest.fixture(autouse=True)
def small_extents(monkeypatch):
    """What the drives are measured on need not be larger than any cache."""
    monkeypatch.setattr("lohan_core.bench.drives.EXTENT_BYTES", 1 << 20)


def bench(directory, **changes):
    options = StepBenchOptions(directory=directory, **{**OPTIONS, **changes})
    return run(options, make_registry(TestBackends()))


def test_both_sides_train_the_same_model(tmp_path):
    batch_size, steps = 4, 3
    result = bench(tmp_path, batch_sizes=(batch_size,), steps=steps, warm_up=0)
    write_model_directory(tmp_path / "model", SMOKE)
    plain = PlainTrainer(model=tmp_path / "model", seed=0, device="cpu", lr=1e-5, max_grad_norm=1.0)
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
        assert set(row.busy_seconds) == set(row.predicted_busy_seconds) == {*Lane, "ssd"}
        assert 0 < row.busy_seconds["gpu"] <= row.seconds
        assert row.step_per_busiest == pytest.approx(row.seconds / row.busy_seconds[row.busiest])
        assert row.departure == pytest.approx(row.seconds / row.predicted_seconds - 1)
        assert row.drives is None, "states in host memory, nothing durable"
        assert 0 < row.start_host_bytes <= row.peak_host_bytes
        assert (row.plain, row.without_plain) == (None, "left out")
    assert not list(tmp_path.iterdir())
    text = render(result)
    assert "smoke" in text
    assert str(round(result.rows[1].tokens_per_second)) in text
    assert "plain: left out" in text
    assert json.loads(json.dumps(asdict(result)))["rows"][0]["plan"].startswith("plan: greedy")


def test_drives_are_measured_by_themselves_with_the_steps_mix(tmp_path):
    settings = {**QUICK, "memory": {"chunk": "16KiB"}}
    result = bench(tmp_path, workload="smoke-ssd", steps=1, warm_up=1, settings=settings)
    row, drives = result.rows[0], result.rows[0].drives
    assert drives.write_bytes > 14 * result.parameters
    assert drives.read_bytes > 12 * result.parameters  # the weights that forward takes come from their updates
    assert drives.bytes_per_parameter == (drives.read_bytes + drives.write_bytes) / result.parameters
    assert drives.bytes_per_second == pytest.approx((drives.read_bytes + drives.write_bytes) / row.seconds)
    assert drives.ratio == pytest.approx(drives.bytes_per_second / drives.own_bytes_per_second)
    assert f"{drives.bytes_per_parameter:.1f} bytes per parameter" in render(result)
    assert not list(tmp_path.iterdir())


def test_stores_on_other_drives_are_given_back(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    settings = {**QUICK, "storage": {"directories": [str(other)]}}
    bench(tmp_path, workload="smoke-ssd", steps=1, warm_up=0, settings=settings)
    assert [path for path in other.rglob("*") if path.is_file()] == []


def test_states_on_both_tiers_of_which_nothing_is_saved(tmp_path):
    """As ``tier-12b``, in small: with buffers and gradients, they are more than either tier holds."""
    memory = {"host": "2500KiB", "ssd": "1MiB", "chunk": "16KiB"}
    settings = {**QUICK, "memory": memory, "planner": {"states": "auto"}}
    result = bench(tmp_path, batch_sizes=(4,), steps=2, warm_up=1, settings=settings)
    row, state_bytes = result.rows[0], 14 * result.parameters
    assert row.planned_ssd_bytes <= 1 << 20
    assert 0 < row.planned_host_bytes <= 2500 << 10
    assert row.plan.endswith("states in memory are not saved: no space on the drives")
    assert 0 < row.drives.write_bytes < state_bytes
    elsewhere = bench(tmp_path, batch_sizes=(4,), steps=2, warm_up=1)
    assert row.losses == elsewhere.rows[0].losses


def test_settings_add_to_the_workloads_own(tmp_path):
    settings = {**QUICK, "planner": {"backend": "keep_nothing"}, "memory": {"chunk": "16KiB"}}
    result = bench(tmp_path, batch_sizes=(2,), steps=1, warm_up=0, settings=settings)
    assert result.settings["planner"] == {"backend": "keep_nothing", "states": "host"}
    assert result.rows[0].plan.startswith("plan: keep_nothing")


@pytest.mark.parametrize("key", ["model.path", "data.train", "run.batch_size", "run.seed"])
def test_what_the_command_decides_is_not_to_be_set(tmp_path, key):
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=rf"--set {section}\.{name}: is decided"):
        bench(tmp_path, settings={section: {name: 1}})


def test_a_section_is_not_set_as_a_whole(tmp_path):
    with pytest.raises(ConfigError, match=r"--set planner\.key=value"):
        bench(tmp_path, settings={"planner": "greedy"})


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        bench(tmp_path / "none")


def test_plain_is_absent_where_the_device_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("lohan_core.engine.measure.free_device_bytes", lambda _: 2**20)
    result = bench(tmp_path, batch_sizes=(2,), steps=1, warm_up=0, plain=True)
    assert result.rows[0].plain is None
    assert result.rows[0].without_plain.startswith("does not fit: needs ")
    assert f"plain: {result.rows[0].without_plain}" in render(result)


def test_plain_is_measured_step_by_step(tmp_path):
    row = bench(tmp_path, batch_sizes=(2,), steps=2, warm_up=1, plain=True).rows[0]
    assert row.without_plain is None
    assert len(row.plain.step_seconds) == 2
    assert row.plain.losses == pytest.approx(row.losses, rel=1e-4)
    pairs = [plain / ours for ours, plain in zip(row.step_seconds, row.plain.step_seconds, strict=True)]
    assert min(pairs) <= row.plain.ratio <= max(pairs)


def timeline(*spans):
    tasks = tuple(Task(index=index, op=op) for index, (op, _, _) in enumerate(spans))
    schedule = Schedule(tasks=tasks, pools={})
    return Timeline(schedule=schedule, spans=tuple(Span(start, end) for _, start, end in spans))


def test_the_drives_are_busy_while_either_lane_is():
    busy = busy_by_resource(
        timeline(
            (Op.READ_STATES, 0.0, 2.0),
            (Op.WRITE_STATES, 1.0, 4.0),
            (Op.READ_STATES, 2.0, 3.0),
            (Op.FORWARD, 0.0, 3.5),
            (Op.READ_STATES, 6.0, 7.0),
        )
    )
    assert (busy[Lane.SSD_READ], busy[Lane.SSD_WRITE], busy["ssd"]) == (4.0, 3.0, 5.0)
    assert busiest_resource(busy) == "ssd"
    assert busiest_resource({**busy, "gpu": 5.5, Lane.SSD_READ: 9.0}) == "gpu"
