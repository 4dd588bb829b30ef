from __future__ import annotations

import errno
import json

import pytest
import torch
from attrs import asdict, evolve
from tiny_backends import MACHINE, TestBackends, make_registry

from lohan_core.backend import Kind
from lohan_core.bench.plain_trainer import PlainTrainer
from lohan_core.bench.step import StepBenchOptions, render, run
from lohan_core.bench.step_rows import busiest_resource, busy_by_resource, chain_seconds
from lohan_core.bench.step_sections import lay_sections
from lohan_core.bench.workloads import WORKLOADS, make_batch, write_model_directory
from lohan_core.errors import ConfigError, StorageError
from lohan_core.model.choices import Attention
from lohan_core.reference.torch_adamw import AdamWConfig
from lohan_core.report.run_file import read_record
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
    plain = PlainTrainer(
        model=tmp_path / "model",
        seed=0,
        device="cpu",
        dtype=torch.bfloat16,
        attention=Attention.SDPA,
        optimizer=AdamWConfig(lr=1e-5, max_grad_norm=1.0),
    )
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
        assert 0 < row.chain_seconds < row.seconds
        bound = max(row.busy_seconds[row.busiest], row.chain_seconds)
        assert row.step_per_bound == pytest.approx(row.seconds / bound)
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


def test_a_step_of_every_row_can_be_drawn(tmp_path):
    (tmp_path / "work").mkdir()
    result = bench(tmp_path / "work", timelines=tmp_path / "lines", steps=3, warm_up=1)
    for row in result.rows:
        record = read_record(tmp_path / "lines" / f"smoke-{row.batch_size}")
        assert record.step > 1
        assert 0 < record.measured.seconds <= row.seconds
        assert record.predicted.seconds == pytest.approx(row.predicted_seconds, rel=1e-3)


def test_compiled_layers_are_measured_beside_compiled_layers(tmp_path):
    settings = {**QUICK, "model": {"compile": True}}
    result = bench(tmp_path, batch_sizes=(2,), steps=1, warm_up=0, plain=True, settings=settings)
    (row,) = result.rows
    assert result.settings["model"]["compile"] is True
    assert row.losses == pytest.approx(row.plain.losses, rel=1e-3)


def test_where_timelines_cannot_be_written_nothing_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/lines: cannot be written: Not a directory"):
        bench(tmp_path, timelines=tmp_path / "file" / "lines")


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


def test_states_on_both_tiers_of_which_nothing_is_saved(tmp_path, monkeypatch):
    """As ``tier-12b``, in small: with buffers and gradients, they are more than either tier holds."""
    monkeypatch.setattr("tiny_backends.MACHINE", evolve(MACHINE, gpu_parameters_per_second=None))  # nor on the GPU
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
    settings = {**QUICK, "planner": {"backend": "keep_nothing", "inputs": "host"}, "memory": {"chunk": "16KiB"}}
    result = bench(tmp_path, batch_sizes=(2,), steps=1, warm_up=0, settings=settings)
    assert result.rows[0].plan.startswith("plan: keep_nothing")


@pytest.mark.parametrize(
    ("chosen", "laid"),
    [
        ({"finalists": 1}, {"backend": "greedy", "states": "host", "finalists": 1}),
        ({"backend": "greedy"}, {"backend": "greedy", "states": "host"}),
        ({"backend": "ilp", "gap": 0.1}, {"backend": "ilp", "gap": 0.1}),
    ],
)
def test_keys_of_the_workload_s_backend_are_none_of_another_s(chosen, laid):
    assert lay_sections(SMOKE.settings, {"planner": chosen})["planner"] == laid


@pytest.mark.parametrize(
    "key",
    [
        *("model.path", "model.trust_remote_code", "data.train", "run.batch_size", "run.seed", "run.replan_after"),
        *("run.eval_every", "run.tensorboard", "run.checkpoint_every", "optimizer.schedule", "optimizer.warmup_steps"),
    ],
)
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


def test_both_sides_take_the_same_settings(tmp_path):
    """Few at a time, since each of them alone changes the losses of whoever takes it."""
    usual = bench(tmp_path, batch_sizes=(4,), steps=3, warm_up=0).rows[0].losses
    changes = [
        {"optimizer": {"lr": 3e-3, "max_grad_norm": None, "eps": 0.1}},
        {"optimizer": {"lr": 3e-3, "max_grad_norm": 1e-3, "eps": 1e-3, "weight_decay": 10.0, "betas": [0.5, 0.5]}},
        {"model": {"attention": "eager", "loss": "chunked"}, "run": {"dtype": "float32"}, "optimizer": {"lr": 3e-3}},
    ]
    for change in changes:
        row = bench(tmp_path, batch_sizes=(4,), steps=3, warm_up=0, plain=True, settings={**QUICK, **change}).rows[0]
        assert row.losses != usual, change
        assert row.plain.losses == pytest.approx(row.losses, rel=1e-6 if "run" in change else 2e-4), change
    assert (row.attention, row.plain.attention) == ("eager", "eager")
    assert (row.loss_computed, row.plain.loss_computed) == ("chunked", "whole")


def test_plain_trains_by_adamw_only(tmp_path):
    settings = {**QUICK, "optimizer": {"backend": "recorder"}}
    row = bench(tmp_path, batch_sizes=(2,), steps=1, warm_up=0, plain=True, settings=settings).rows[0]
    assert row.without_plain == "trains by AdamW, which recorder is not"


def test_what_a_killed_one_left_is_not_in_the_way(tmp_path):
    """Its extents are of another chunk, on a drive that outlives its temporary folder."""
    other = tmp_path / "other"
    other.mkdir()
    settings = {**QUICK, "storage": {"directories": [str(other)]}}
    registry = make_registry(TestBackends())
    left = registry.open_backend(
        Kind.STORAGE,
        "aio",
        registry.find(Kind.STORAGE, "aio").config(directories=(other,)),
        namespace="bench",
        default_directory=other,
    )
    left.allocate("bench/read", 4096)
    left.close()
    row = bench(tmp_path, workload="smoke-ssd", steps=1, warm_up=0, settings=settings).rows[0]
    assert row.drives is not None


def test_drives_that_fail_alone_do_not_cost_the_row(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise StorageError(errno.ENOSPC, "other: no space left")

    monkeypatch.setattr("lohan_core.bench.drives._Mix", fail)
    result = bench(tmp_path, workload="smoke-ssd", steps=2, warm_up=0)
    assert result.rows[0].drives is None
    assert len(result.rows[0].step_seconds) == 2
    assert result.rows[0].without_drives == "other: no space left"
    assert "drives: not measured alone: other: no space left" in render(result)


def timeline(*spans):
    tasks = tuple(Task(index=index, op=op) for index, (op, _, _) in enumerate(spans))
    schedule = Schedule(tasks=tasks, pools={})
    return Timeline(schedule=schedule, spans=tuple(Span(start, end) for _, start, end in spans))


def test_head_backward_and_updates_cannot_overlap_where_a_norm_is_waited_for():
    steps = timeline(
        (Op.UPDATE, 0.0, 2.0), (Op.FORWARD, 1.0, 3.0), (Op.TURN, 3.0, 3.5), (Op.BACKWARD, 3.5, 6.0), (Op.NORM, 6.0, 7.0)
    )
    assert chain_seconds(steps) == 5.0


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
