"""A run that was stopped, or killed at any instant, ends as one that never was: metrics and model, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
from command_line import Death

STOPPED = 3
IN_HOST_MEMORY = {"run": {"checkpoint_every": 3}, "planner": {"states": "host"}}
OVERWRITING = {"run": {"durability": "none"}}
UNSAVED = {"run": {"durability": "none"}, "planner": {"states": "host"}, "memory": {"ssd": "4KiB"}}
COMPILED = {"model": {"compile": True}}
BFLOAT16 = {"run": {"dtype": "bfloat16", "checksums": False}}


def finish(ours, undisturbed, **changes):
    """Carry the run out to its end and compare."""
    ended = ours.train()
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err
    metrics, model = ours.outcome()
    expected_metrics, expected_model = undisturbed(**changes)
    assert metrics == expected_metrics
    assert model.keys() == expected_model.keys()
    assert [name for name in model if model[name] != expected_model[name]] == []


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (signal.SIGINT, {}),
        (signal.SIGTERM, BFLOAT16),
        (signal.SIGINT, IN_HOST_MEMORY),
        (signal.SIGTERM, OVERWRITING),
        (signal.SIGINT, COMPILED),
    ],
    ids=["ssd", "bfloat16", "host", "overwriting", "compiled"],
)
def test_a_signal_stops_in_good_order(make_run, undisturbed, number, changes):
    run = make_run(**changes)
    ended = run.start().stop_when(lambda: run.steps() >= 2, number)
    steps = run.steps()
    assert (ended.code, ended.err) == (STOPPED, "")
    assert f"{number.name}: step {steps} is saved" in ended.out.splitlines()[-1]
    assert 2 <= steps < 9
    assert run.manifest()["commit"]["step"] == steps
    assert not (run.directory / "model").exists()
    finish(run, undisturbed, **changes)


def test_a_signal_before_the_first_step(make_run, undisturbed):
    run = make_run()
    ended = run.start().stop_when(run.extents, signal.SIGTERM)
    assert (ended.code, ended.err) == (STOPPED, "")
    assert run.metrics() == []
    assert run.manifest()["commit"]["step"] == 0
    finish(run, undisturbed)


@pytest.fixture(scope="module")
def long_evaluation(materials):
    """One evaluation, at the end, that takes longer than it takes to look."""
    return {"data": {"eval": str(materials / "long_eval.jsonl")}, "run": {"eval_every": None}}


def test_a_signal_does_not_wait_for_an_evaluation_nor_for_the_model(make_run, undisturbed, long_evaluation):
    run = make_run(**long_evaluation)
    ended = run.start().stop_when(lambda: run.steps() == 9, signal.SIGINT)
    assert (ended.code, ended.err) == (STOPPED, "")
    assert "loss" in run.metrics()[-1]
    assert not (run.directory / "model").exists()
    finish(run, undisturbed, **long_evaluation)


def test_a_second_signal_does_not_wait(make_run, undisturbed):
    run = make_run()
    running = run.start()
    running.freeze_when(lambda: run.steps() >= 2)
    running.signal(signal.SIGTERM)
    running.signal(signal.SIGINT)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    assert (ended.code, ended.err) == (-signal.SIGTERM, "")  # of two that wait, the one with the lower number is first
    finish(run, undisturbed)


def test_killed_before_the_first_step(make_run, undisturbed):
    run = make_run()
    for death in (
        Death(event="os.rename", path=r"data/\w+\.partial$", nth=2),  # the evaluation data are tokenised
        Death(event="open", path=r"exp_avg%2E2%2E1.*\.extent$", nth=1),  # half of the extents are reserved
        Death(event="os.rename", path=r"manifest\.json\.new$", nth=1),  # all is written, but not yet committed
        Death(event="os.rename", path=r"metrics\.jsonl$", nth=1),
    ):
        ended = run.train(dies=death)
        assert ended.code == -signal.SIGKILL, (death, ended)
    assert run.manifest()["commit"]["step"] == 0
    finish(run, undisturbed)


def test_killed_while_a_step_becomes_durable(make_run, undisturbed):
    """Its updates are deferred, so that is in the course of the next step, when the metrics tell of it already."""
    run = make_run(run={"tensorboard": True})
    before_rename = Death(event="os.rename", path=r"manifest\.json\.new$", nth=4)
    after_rename = Death(event="open", path=r"/store$", nth=2)
    assert run.train(dies=before_rename).code == -signal.SIGKILL
    assert (run.manifest()["commit"]["step"], run.steps()) == (1, 2)
    assert run.train(dies=after_rename).code == -signal.SIGKILL
    assert (run.manifest()["commit"]["step"], run.steps()) == (3, 3)
    finish(run, undisturbed)
    assert run.events("loss") == [(e["step"], pytest.approx(e["loss"])) for e in run.metrics() if "loss" in e]


def test_killed_while_a_whole_step_becomes_durable(make_run, undisturbed):
    """Without deferred updates a step is committed before the metrics tell of it."""
    run = make_run(run={"tensorboard": True, "update": "optimized"})
    after_rename = Death(event="open", path=r"/store$", nth=5)
    assert run.train(dies=after_rename).code == -signal.SIGKILL
    assert (run.manifest()["commit"]["step"], run.steps()) == (2, 1)  # of the second step only the store knows
    finish(run, undisturbed)
    assert run.events("loss") == [(e["step"], pytest.approx(e["loss"])) for e in run.metrics() if "loss" in e]


def test_killed_while_it_evaluates(make_run, undisturbed, long_evaluation):
    run = make_run(**long_evaluation)
    ended = run.start().stop_when(lambda: run.steps() == 9, signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    assert "loss" in run.metrics()[-1]
    finish(run, undisturbed, **long_evaluation)


def test_killed_while_the_model_is_written(make_run, undisturbed):
    run = make_run()
    ended = run.train(dies=Death(event="os.rename", path="run/model$", nth=1))
    assert ended.code == -signal.SIGKILL
    assert not (run.directory / "model").exists()
    finish(run, undisturbed)
    assert not list(run.directory.glob(".*")), "what the killed process had written of the model is still there"


@pytest.mark.parametrize("changes", [{}, IN_HOST_MEMORY], ids=["ssd", "host"])
def test_killed_at_random_instants(make_run, undisturbed, changes):
    dice = random.Random(20261120)
    run = make_run(**changes)
    durable = 0
    for steps in (1, 3, 5, 7):
        running = run.start()
        running.freeze_when(lambda steps=steps: run.steps() >= steps)
        running.signal(signal.SIGCONT)
        time.sleep(dice.uniform(0.0, 0.15))
        running.process.kill()
        assert running.wait().code in {-signal.SIGKILL, 0}  # some machines are fast
        assert run.manifest()["commit"]["step"] >= durable
        durable = run.manifest()["commit"]["step"]
    finish(run, undisturbed, **changes)


def test_killed_at_random_system_calls(make_run, undisturbed):
    dice = random.Random(20261120)
    run = make_run()
    for _ in range(6):  # a run in one go makes some four hundred on files in its directory
        ended = run.train(dies=Death(event=r"open|os\..*", path=str(run.directory), nth=dice.randrange(1, 240)))
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended
    finish(run, undisturbed)


def test_without_durability_a_killed_run_is_refused_for_good(make_run):
    run = make_run(**OVERWRITING)
    # The manifest is replaced when the store is made, when it is filled, and twice in every step.
    in_the_third_step = Death(event="os.rename", path=r"manifest\.json\.new$", nth=8)
    ended = run.train(dies=in_the_third_step)
    assert ended.code == -signal.SIGKILL
    before = run.manifest()
    for _ in range(2):
        ended = run.train()
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert len(ended.err.splitlines()) == 1
        assert "run.durability: none was interrupted after step 2" in ended.err
        assert run.manifest() == before


def test_a_run_that_cannot_be_saved_ends_with_its_model(make_run, undisturbed):
    run = make_run(**UNSAVED)
    ended = run.train()
    assert ended.code == 0, ended
    assert "states in memory are not saved" in ended.out
    _, model = run.outcome()
    assert model == undisturbed(**IN_HOST_MEMORY)[1]
    before = run.files()
    for ended in (run.train(), run.export("out")):
        assert ended.code == 2
        assert len(ended.err.splitlines()) == 1
        assert "no space on the drives, so it cannot go on; start again in another run.dir" in ended.err
    assert run.files() == before


def test_a_run_that_cannot_be_saved_says_so_when_it_is_stopped(make_run):
    run = make_run(**UNSAVED)
    ended = run.start().stop_when(lambda: run.steps() >= 2, signal.SIGTERM)
    assert (ended.code, ended.err) == (STOPPED, "")
    assert f"SIGTERM: stopped after step {run.steps()}; nothing is saved" in " ".join(ended.out.split())
    assert run.train().code == 2


def test_a_run_may_go_on_by_another_plan(make_run, undisturbed):
    run = make_run()
    for other in (
        ["planner.states=host", "planner.backend=keep_all", "memory.chunk=16KiB", "run.checkpoint_every=2"],
        ["planner.inputs=ssd", "run.update=serial", "memory.chunk=64KiB", "storage.engine=threads"],
        ["planner.backend=keep_all", "planner.candidates=ssd", "run.update=naive", "storage.direct=false"],
    ):
        begun = run.steps()
        ended = run.start(*other).stop_when(lambda begun=begun: run.steps() >= begun + 2, signal.SIGTERM)
        assert (ended.code, ended.err) == (STOPPED, "")
    ended = run.train()
    assert (ended.code, ended.err) == (0, "")
    assert run.outcome() == undisturbed()


@pytest.mark.parametrize("states", ["ssd", "host"])
def test_updates_on_speculation_change_no_result_and_survive_a_crash(make_run, undisturbed, states):
    """By the profile of a machine on which they pay: here the processor computes and updates in turn anyway."""
    unclipped = {"optimizer": {"max_grad_norm": 1e9}}
    run = make_run(run={"update": "speculative", "checkpoint_every": 2}, planner={"states": states}, **unclipped)
    profile = run.profile()
    profile["machine"] |= {"cpu_computes": False, "cpu_parameters_per_second": 1e4}
    profile["machine"] |= {f"ssd_{what}_bytes_per_second": 1e5 for what in ("read", "write", "mixed")}
    for block in profile["blocks"]:
        block |= {"seconds": 1.0, "backward_seconds": 2.0}
    (run.folder / "elsewhere.json").write_text(json.dumps(profile))
    elsewhere = f"profiler={{backend: file, path: {run.folder / 'elsewhere.json'}}}"
    ended = run.start(elsewhere).stop_when(lambda: run.steps() >= 6, signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    assert "on speculation while steps are not clipped" in " ".join(ended.out.split())
    assert [entry["speculated"] for entry in run.metrics() if "loss" in entry][:6] == [False] * 4 + [True] * 2
    ended = run.train(elsewhere)
    assert (ended.code, ended.err) == (0, "")
    assert run.outcome() == undisturbed(**unclipped)


def test_planning_anew_changes_no_result(make_run, undisturbed):
    run = make_run()
    ended = run.train("planner.backend=greedy", "run.replan_after=2")
    assert (ended.code, ended.err) == (0, "")
    assert "step 2 took " in ended.out
    assert run.outcome() == undisturbed()


def test_drives_keep_their_order(make_run, tmp_path, undisturbed):
    drives = [tmp_path / name for name in ("first", "second")]
    for drive in drives:
        drive.mkdir()
    striped = {"storage": {"directories": [str(drive) for drive in drives], "stripe_bytes": "16KiB"}}
    run = make_run(**striped)
    assert run.start().stop_when(lambda: run.steps() >= 2, signal.SIGTERM).code == STOPPED
    for wrong in (f"[{drives[1]}, {drives[0]}]", f"[{drives[0]}]", "[]"):
        ended = run.train(f"storage.directories={wrong}")
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended
        assert "storage" in ended.err
    finish(run, undisturbed)


def test_a_run_directory_may_be_moved_and_its_model_too(make_run, undisturbed, materials):
    run = make_run()
    assert run.start().stop_when(lambda: run.steps() >= 3, signal.SIGTERM).code == STOPPED
    (materials / "gpt2").rename(materials / "elsewhere")
    try:
        moved = make_run("móved, with späces", model={"path": str(materials / "elsewhere")})
        run.directory.rename(moved.directory)
        finish(moved, undisturbed)
    finally:
        (materials / "elsewhere").rename(materials / "gpt2")
