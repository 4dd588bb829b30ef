from __future__ import annotations

import pytest
from schedules import timeline_of
from tiny_backends import MACHINE

from lohan_core.cli.trace import trace
from lohan_core.errors import ConfigError, DataError, StorageError
from lohan_core.report import run_file
from lohan_core.report.run_file import StepRecorder, read_record
from lohan_core.report.table import render_record
from lohan_core.schedule.record import StepRecord
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Op

TASKS = (Op.UPLOAD_WEIGHTS, 0, 2), (Op.FORWARD, 2, 3, (0,))


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(run_file.time, "monotonic", lambda: now[0])
    return now


def test_the_first_step_is_written_then_one_every_ten_seconds_and_the_last(tmp_path, clock):
    recorder = StepRecorder(tmp_path, MACHINE)
    timeline = timeline_of(*TASKS)
    written = []
    for step in range(1, 8):
        recorder.add(step, timeline)
        written.append(read_record(tmp_path).step)
        clock[0] += 4
    assert written == [1, 1, 1, 4, 4, 4, 7]
    recorder.add(8, timeline)
    recorder.write()
    assert read_record(tmp_path).step == 8
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.json"]


def test_each_step_is_predicted_by_its_own_schedule(tmp_path, clock):
    recorder = StepRecorder(tmp_path, MACHINE)
    for step, timeline in enumerate((timeline_of(*TASKS), timeline_of(*TASKS, (Op.OFFLOAD, 3, 4, (1,)))), start=1):
        recorder.add(step, timeline)
        record = read_record(tmp_path)
        assert record.measured == timeline
        assert record.predicted.seconds == pytest.approx(simulate(timeline.schedule, MACHINE).seconds, abs=2e-9)
        clock[0] += 100


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    recorder = StepRecorder(tmp_path / "gone", MACHINE)
    with pytest.raises(StorageError, match=r"gone/timeline\.json: cannot be written: No such file or directory"):
        recorder.add(1, timeline_of(*TASKS))


def test_a_directory_without_a_file_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="give the directory of a run that has finished a step"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("option", "argument"), [("--report", "page"), ("--perfetto", "perfetto")], ids=["report", "perfetto"]
)
@pytest.mark.parametrize("place", ["none/file", "folder", "timeline.json/file"])
def test_where_a_file_cannot_go_nothing_is_shown_or_written(tmp_path, capsys, option, argument, place):
    StepRecorder(tmp_path, MACHINE).add(1, timeline_of(*TASKS))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"^{option}: .*{place} cannot be written; give a file in a directory that"):
        trace(tmp_path, **{"page": None, "perfetto": None, argument: tmp_path / place})
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "timeline.json"]


def test_a_record_as_text_says_what_was_waited_for():
    measured, predicted = timeline_of(*TASKS), timeline_of((Op.UPLOAD_WEIGHTS, 0, 1), (Op.FORWARD, 1, 2, (0,)))
    assert render_record(StepRecord(step=5, predicted=predicted, measured=measured)).splitlines() == [
        "step 5: predicted 2.00 s, measured 3.00 s, 2 tasks",
        "",
        "lane  predicted  measured",
        "gpu      1.00 s    1.00 s",
        "h2d      1.00 s    2.00 s",
        "",
        "gpu waited for h2d 2.00 s",
    ]
