"""A drive that fails in mid-run: one line with file and errno, exit code 1; the next start goes on where it was."""

from __future__ import annotations

import pytest

FAULT = "LOHAN_AIO_FAULT"  # see lohan_storage_aio.faults
IN_HOST_MEMORY = {"run": {"checkpoint_every": 3}, "planner": {"states": "host"}}
SERIAL = {"run": {"update": "serial"}, "optimizer": {"max_grad_norm": None}}


@pytest.mark.parametrize(
    ("fault", "instants", "changes"),
    [
        # How many transfers pass before one fails: the first 96 of each kind are the profiler's; 60 writes import the
        # model, and as many reads verify it; a step takes some eighty of each. States in memory are saved by a few
        # dozen, and a second start needs no profile.
        (("write", "EIO"), (130, 250, 250), {}),
        (("write", "ENOSPC"), (110, 300), {}),
        (("read", "EIO"), (150, 300, 300), {}),
        (("read", "EIO"), (300,), SERIAL),
        (("write", "EIO"), (130, 85), IN_HOST_MEMORY),
    ],
    ids=["write", "no space", "read", "read, serial", "write, states in host memory"],
)
def test_a_failing_drive_leaves_the_last_step(make_run, undisturbed, fault, instants, changes):
    run = make_run(**changes)
    kind, name = fault
    steps = []
    for after in instants:
        ended = run.train(environment={FAULT: f"{kind}:{name}:after={after}"})
        *warnings, error = ended.err.splitlines()
        assert (ended.code, error[:7]) == (1, "error: "), ended
        assert all("an earlier start was cut short before its first commit" in line for line in warnings)
        assert f": {kind} at byte " in error
        assert f"({name})" in error
        assert str(run.directory / "store" / "extents") in error
        steps.append(run.steps())
    assert 0 < steps[-1] < 9, "no drive failed in mid-run"
    ended = run.train()
    assert (ended.code, ended.err) == (0, "")
    assert run.outcome() == undisturbed(**changes)


def test_short_transfers_are_made_up_for(make_run, undisturbed):
    run = make_run()
    ended = run.train(environment={FAULT: "write:short=4096:after=100:times=500,read:short=8192:after=90:times=500"})
    assert (ended.code, ended.err) == (0, "")
    assert run.outcome() == undisturbed()
