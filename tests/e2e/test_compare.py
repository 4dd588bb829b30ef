"""``lohan compare`` and ``lohan trace``: plans carried out side by side, and what is left of it."""

from __future__ import annotations

import json

import command_line
import pytest
from by_tiers import least_gpu_bytes
from command_line import Death

PLANNERS = "keep_nothing,keep_all,greedy"


def compare(run, *arguments, planners=PLANNERS, **options):
    return command_line.run(["compare", run.config, "--planners", planners, *arguments], run.folder, **options)


def compared(run, *arguments, **options):
    ended = compare(run, "--json", *arguments, **options)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def files_under(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_plans_are_run_on_the_same_data_and_come_to_the_losses_of_a_run(make_run, undisturbed):
    run = make_run()
    found = compared(run, "--steps", "3")
    assert found["losses_identical"] is True
    assert found["groups"] == [["keep_nothing", "keep_all", "greedy"]]
    metrics, _ = undisturbed()
    trained = [entry["loss"] for entry in metrics if "loss" in entry]
    for row in found["planners"]:
        assert row["measured"]["losses"] == trained[:4]
        assert len(row["measured"]["step_seconds"]) == 3
        assert row["predicted"]["seconds"] > 0
    nothing, everything, _ = found["planners"]
    assert nothing["measured"]["read_bytes"] == nothing["predicted"]["read_bytes"] > 0
    assert nothing["predicted"]["peak_bytes"]["gpu"] < everything["predicted"]["peak_bytes"]["gpu"]
    assert {path.name for path in run.directory.iterdir()} == {"data"}, "tokens, for the run to find"


def test_the_text_says_what_was_found(make_run):
    ended = compare(make_run(), "--steps", "1", planners="keep_nothing,keep_all")
    assert ended.code == 0, ended.err
    assert "Losses are identical, bit for bit, in 2 steps of 2 planners." in ended.out
    assert "In turn, step by step: keep_nothing, keep_all." in ended.out


def test_a_run_that_was_begun_is_left_alone(make_run):
    run = make_run()
    assert run.train("run.steps=2").code == 0
    before = run.files()
    compared(run, "--steps", "1")
    assert run.files() == before


def test_plans_that_do_not_fit_together_run_one_after_another_and_others_say_why(make_run):
    run = make_run()
    free = compared(run, "--steps", "1", planners="keep_nothing,keep_all")
    nothing, everything = (row["predicted"]["peak_bytes"] for row in free["planners"])
    alone = compared(
        run,
        "--steps",
        "1",
        "--set",
        f"memory.gpu={least_gpu_bytes(everything['gpu'])}B",
        planners="keep_nothing,keep_all",
    )
    assert alone["groups"] == [["keep_nothing"], ["keep_all"]]
    assert alone["losses_identical"] is True
    tight = compared(
        run, "--steps", "1", "--set", f"memory.gpu={least_gpu_bytes(nothing['gpu'])}B", planners="keep_nothing,keep_all"
    )
    _, row = tight["planners"]
    assert row["measured"] is row["predicted"] is None
    assert row["reason"].startswith("the plan needs ")
    assert "\n" not in row["reason"]
    assert tight["losses_identical"] is None
    none = compare(run, "--set", "memory.gpu=1KiB", planners="keep_nothing,keep_all")
    assert none.code == 2
    assert "keep_all has no plan: the plan needs " in none.out


def test_what_a_killed_comparison_left_on_other_drives_is_given_back(make_run, tmp_path):
    drive = tmp_path / "drive"
    drive.mkdir()
    run = make_run(storage={"directories": [str(drive)]})
    in_the_second_store = Death(event="os.rename", path=r"compare/1/store/manifest\.json\.new$", nth=2)
    ended = compare(run, "--steps", "1", dies=in_the_second_store)
    assert ended.code < 0
    assert [name for name in files_under(drive) if name.endswith(".extent")]
    compared(run, "--steps", "1")
    assert not files_under(drive)
    assert not (run.directory / "compare").exists()


def test_another_machine_is_only_predicted(make_run):
    run = make_run()
    page = run.folder / "page.html"
    found = compared(run, "--hardware", "rtx-4090", "--drives", "1", "--host", "64GiB", "--report", page)
    assert found["machine"] == "RTX 4090, 12 drives (here with 1 drive and 64.0 GiB of main memory)"
    assert all(row["predicted"] and row["measured"] is None for row in found["planners"])
    assert not run.directory.exists()
    assert "<title>LoHan: Planners compared</title>" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--planners", "greedi"], "no planner backend is called 'greedi'. Did you mean 'greedy'?"),
        (["--planners", ","], "--planners: name one at least"),
        (["--planners", "greedy,keep_all,greedy"], "--planners: greedy is named twice"),
        (["--planners", "mixed"], "--planners mixed: activations: is missing, and has no default"),
        (["--planners", "zero:states"], "--planners zero:states: write NAME:KEY=VALUE"),
        (["--planners", "zero:states=gpu"], "--planners zero:states=gpu: states: got 'gpu'. Choose one of"),
        (["--planners", "zero:stages=3"], "--planners zero:stages=3: stages: unknown key. Did you mean 'states'?"),
        (["--planners", "greedy", "--hardware", "rtx-9999"], "no machine is called 'rtx-9999'"),
        (["--planners", "greedy", "--hardware", "rtx-4090", "--steps", "2"], "--steps: nothing is run with --hardware"),
        (["--planners", "greedy", "--drives", "2"], "--drives and --host are about the machine of --hardware"),
        (["--planners", "greedy", "--report", "no/page.html"], "--report: no/page.html cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_line(make_run, arguments, says):
    run = make_run()
    ended = command_line.run(["compare", run.config, *arguments], run.folder)
    assert ended.code == 2
    assert says in ended.err
    assert all(line.startswith("error: ") for line in ended.err.splitlines())
    assert not run.directory.exists()


def test_gradients_that_are_not_finite_end_a_comparison(make_run):
    ended = compare(make_run(), "--set", "optimizer.lr=1e30", planners="keep_nothing,keep_all")
    assert ended.code == 1
    assert "keep_nothing: step 2: the gradient norm is " in ended.err
    assert "open the run again" not in ended.err, "there is none"


def test_a_planner_of_the_config_has_its_settings(make_run):
    run = make_run(planner={"backend": "keep_all"})
    moved = {}
    for tier in ("host", "gpu"):
        arguments = ("--hardware", "rtx-4090", "--set", f"planner.candidates={tier}")
        (row,) = compared(run, *arguments, planners="keep_all")["planners"]
        moved[tier] = row["predicted"]["activation_bytes"]
    assert moved["host"] > moved["gpu"]


def test_one_planner_is_compared_with_itself(make_run):
    """Its settings are part of its name, in what is run too."""
    named = ["keep_nothing", "keep_nothing:states=host", "mixed:activations=keep_all:states=keep_nothing"]
    found = compared(make_run(), "--steps", "1", planners=",".join(named))
    assert [row["planner"] for row in found["planners"]] == named
    assert found["losses_identical"] is True
    on_drives, in_memory, mixed = (row["measured"]["read_bytes"] for row in found["planners"])
    assert on_drives > in_memory == 0
    assert mixed == on_drives


def test_a_run_can_be_traced(make_run):
    run = make_run()
    assert run.train("run.steps=3").code == 0
    ended = command_line.run(["trace", run.directory, "--perfetto", run.folder / "trace.json"], run.folder)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("step 3: predicted ")
    assert "<h1>Step 3 of run</h1>" in (run.directory / "timeline.html").read_text()
    events = json.loads((run.folder / "trace.json").read_text())["traceEvents"]
    record = json.loads((run.directory / "timeline.json").read_text())
    for process in (1, 2):
        tasks = [event for event in events if event.get("cat") == "task" and event["pid"] == process]
        assert [event["name"] for event in tasks] == record["schedule"]["op"]
    took = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X" and event["pid"] == 2)
    assert 0 < took / 1e6 <= next(entry["seconds"] for entry in run.metrics() if entry["step"] == 3)


def test_a_directory_without_a_step_cannot_be_traced(make_run):
    run = make_run()
    ended = command_line.run(["trace", run.folder], run.folder)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {run.folder}/timeline.json: No such file or directory; give the directory of a run")
