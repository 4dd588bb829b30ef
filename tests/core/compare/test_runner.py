"""Plans are carried out in turn; one that runs out of memory drops out, and the others go on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from attrs import define, field
from comparisons import comparison

from lohan_core.compare import runner
from lohan_core.compare.kernels import deterministic_kernels
from lohan_core.errors import ModelError, PlanError, StorageError
from lohan_core.interfaces.optimizer import OptimizerConfig

TIMELINE = comparison().contenders[0].prediction.timeline
CONFIG = SimpleNamespace(
    run=SimpleNamespace(device="cpu", steps=3),
    optimizer=SimpleNamespace(name="any", settings=OptimizerConfig(lr=1.0, warmup_steps=2, schedule="linear")),
)


def no_room():
    return PlanError("no room")


@define(eq=False)
class FakeEngine:
    """Writes down what is done to it, and fails in the step that it is told to."""

    name: str
    log: list
    fails_in: int | None
    error: Callable[[], Exception]
    model: SimpleNamespace = field(factory=lambda: SimpleNamespace(device=torch.device("cpu")))

    def step(self, batch, *, lr):
        self.log.append((self.name, batch, lr))
        if batch == self.fails_in:
            raise self.error()
        return SimpleNamespace(
            loss=float(batch), seconds=1.0, storage_read_bytes=2, storage_write_bytes=3, timeline=TIMELINE
        )

    def close(self):
        self.log.append((self.name, "closed"))


class FakeBatches:
    """A batch is the number of its step."""

    def __getitem__(self, step):
        return step

    def sample(self):
        return 0


@pytest.fixture
def carry_out(monkeypatch):
    """Carry plans out that are the names of fake engines; returns what came of it and the log."""

    def carry_out(*plans, fails=None, error=no_room, steps=2):
        log = []

        def open_engine(config, _sample, *, plan, workload, **_):
            assert config is CONFIG
            assert workload == f"what {plan} is for"
            if (fails or {}).get(plan) == "open":
                raise error()
            return FakeEngine(plan, log, (fails or {}).get(plan), error)

        monkeypatch.setattr(runner, "open_engine", open_engine)
        runs = {plan: (CONFIG, SimpleNamespace(plan=plan, workload=f"what {plan} is for")) for plan in plans}
        return runner.carry_out(runs, FakeBatches(), None, lambda *_: None, steps=steps), log

    return carry_out


def test_every_run_takes_a_step_before_any_takes_the_next(carry_out):
    outcomes, log = carry_out("a", "b")
    rates = [0.5, 1.0, 1.0]
    assert log[:6] == [(name, step, rates[step]) for step in range(3) for name in ("a", "b")]
    assert sorted(log[6:]) == [("a", "closed"), ("b", "closed")]
    assert not outcomes.failed
    for measurement in outcomes.measured.values():
        assert measurement.losses == (0.0, 1.0, 2.0), "of the step that does not count too"
        assert len(measurement.steps) == 2


def test_a_comparison_may_take_more_steps_than_the_run(carry_out):
    _, log = carry_out("a", steps=4)
    assert [rate for _, _, rate in log[:-1]] == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_who_runs_out_of_memory_drops_out_and_is_closed_at_once(carry_out):
    outcomes, log = carry_out("a", "b", "c", fails={"a": "open", "b": 1})
    assert outcomes.failed == {"a": "no room", "b": "no room"}
    assert list(outcomes.measured) == ["c"]
    assert outcomes.measured["c"].losses == (0.0, 1.0, 2.0)
    failed = log.index(("b", 1, 1.0))
    assert log[failed + 1] == ("b", "closed")
    assert [name for name, *_ in log[failed + 2 :]][:2] == ["c", "c"]


def test_who_drops_out_leaves_its_memory_to_the_others(carry_out, monkeypatch):
    engines = weakref.WeakSet()
    seen = []
    step = FakeEngine.step

    def watched(engine, batch, *, lr):
        engines.add(engine)
        seen.append((engine.name, batch, sorted(other.name for other in engines)))
        return step(engine, batch, lr=lr)

    monkeypatch.setattr(FakeEngine, "step", watched)
    carry_out("a", "b", fails={"a": 1})
    assert seen[2:] == [("a", 1, ["a", "b"]), ("b", 1, ["b"]), ("b", 2, ["b"])]


def test_a_drive_that_fails_ends_the_comparison_and_closes_everything(carry_out, monkeypatch):
    closed = []
    monkeypatch.setattr(FakeEngine, "close", lambda engine: closed.append(engine.name))
    with pytest.raises(StorageError):
        carry_out("a", "b", fails={"b": 1}, error=lambda: StorageError(5, "the drive is gone"))
    assert sorted(closed) == ["a", "b"]


def test_kernels_are_chosen_for_as_long_as_a_comparison_lasts():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_kernels(torch.device("cuda", 0)):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
    with deterministic_kernels(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled() == before


def test_an_operator_without_such_a_kernel_is_told_in_one_line():
    def compute(message):
        with deterministic_kernels(torch.device("cuda", 0)):
            raise RuntimeError(message)

    with pytest.raises(ModelError, match=r"on cuda:0: kthvalue does not have a deterministic implementation; use run"):
        compute("kthvalue does not have a deterministic implementation\nand more")
    with pytest.raises(RuntimeError, match="something else"):
        compute("something else")
    assert not torch.are_deterministic_algorithms_enabled()
