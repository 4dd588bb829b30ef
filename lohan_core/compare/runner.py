"""Carrying plans out in turn, one step of each."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import product
from typing import Self

import torch
from attrs import define, field, frozen

from lohan_core.compare.records import MeasuredStep, Measurement, Prediction
from lohan_core.config.sections import Config
from lohan_core.data import Batch, Batches
from lohan_core.engine import Engine, open_engine
from lohan_core.engine.device import resolve_device
from lohan_core.engine.updates import NonFiniteGradientError
from lohan_core.errors import PlanError
from lohan_core.progress import Report
from lohan_core.registry import Registry
from lohan_core.train.learning_rate import learning_rate_of

__all__ = ["Outcomes", "carry_out"]

UNCOUNTED_STEPS = 1
"""A run's first step touches all of its memory for the first time."""


@frozen(kw_only=True)
class Outcomes:
    """What runs came to, by planner: a measurement, or why there is none."""

    measured: Mapping[str, Measurement]
    failed: Mapping[str, str]


def carry_out(
    runs: Mapping[str, tuple[Config, Prediction]], batches: Batches, registry: Registry, report: Report, *, steps: int
) -> Outcomes:
    """Take the first steps of several runs in turn: one that does not count, then ``steps``.

    A run that has not the memory that its plan foresaw drops out, and the others go on.

    Raises:
        LohanError: anything else that the user can mend.
    """
    _collect_memory()
    runners: dict[str, _Runner] = {}
    failed: dict[str, str] = {}
    try:
        for name, (config, prediction) in runs.items():
            try:
                runners[name] = _Runner.open(config, prediction, batches.sample(), registry, report)
            except PlanError as error:
                failed[name] = str(error)
        _take_turns(runners, failed, batches, UNCOUNTED_STEPS + steps, report)
    finally:
        with ExitStack() as closing:
            for runner in runners.values():
                closing.callback(runner.engine.close)
    return Outcomes(measured={name: runner.measurement() for name, runner in runners.items()}, failed=failed)


def _take_turns(
    runners: dict[str, _Runner], failed: dict[str, str], batches: Batches, steps: int, report: Report
) -> None:
    """Let every run take its first step, then every one its second; one that fails goes from one table to the other."""
    what = f"running {', '.join(runners)}"
    total = steps * len(runners)
    for turn, (step, name) in enumerate(product(range(steps), list(runners))):
        report(what, turn, total)
        if name in failed:
            continue
        try:
            runners[name].step(batches[step], step)
        except PlanError as error:
            failed[name] = str(error)
        except NonFiniteGradientError as error:
            # Without what else it says: there is no run here to be opened again. Other plans would come to the same.
            raise NonFiniteGradientError(f"{name}: {error.__cause__}") from error
        if name in failed:  # not above: an error that is being handled holds on to the engine
            runners.pop(name).engine.close()
            _collect_memory()
    report(what, total, total)


@define
class _Runner:
    """One planner's run: an engine, the device memory that it holds between steps, and what its steps came to."""

    engine: Engine
    config: Config
    held_bytes: int
    losses: list[float] = field(factory=list)
    steps: list[MeasuredStep] = field(factory=list)

    @classmethod
    def open(cls, config: Config, prediction: Prediction, sample: Batch, registry: Registry, report: Report) -> Self:
        """Open the engine, and see how much device memory that takes: others may be open beside it."""
        device = resolve_device(config.run.device)
        before = _allocated_bytes(device)
        engine = open_engine(
            config, sample, registry=registry, plan=prediction.plan, workload=prediction.workload, report=report
        )
        return cls(engine, config, _allocated_bytes(device) - before)

    def step(self, batch: Batch, number: int) -> None:
        """Take a step, with the learning rate that the run would have; the first is number 0."""
        device = self.engine.model.device
        before = _allocated_bytes(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        result = self.engine.step(batch, lr=learning_rate_of(self.config, number + 1))
        peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
        self.losses.append(result.loss)
        self.steps.append(
            MeasuredStep(
                seconds=result.seconds,
                storage_read_bytes=result.storage_read_bytes,
                storage_write_bytes=result.storage_write_bytes,
                gpu_peak_bytes=None if peak is None else self.held_bytes + peak,
                timeline=result.timeline,
            )
        )

    def measurement(self) -> Measurement:
        """Keep the losses of all steps, and the rest of those that count."""
        return Measurement(losses=tuple(self.losses), steps=tuple(self.steps[UNCOUNTED_STEPS:]))


def _allocated_bytes(device: torch.device) -> int:
    """Device memory in this process's tensors; 0 where the CPU computes."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _collect_memory() -> None:
    """Make room: what a failed run leaves in reference cycles, and in torch's cache, where it would be fragments."""
    gc.collect()
    torch.cuda.empty_cache()
