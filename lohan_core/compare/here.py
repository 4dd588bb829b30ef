"""``compare_here``: every planner's plan carried out on this machine, on the same data, from the same states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Self

import torch
from attrs import define, evolve, field

from lohan_core.backend import Kind
from lohan_core.compare.groups import group_by_memory
from lohan_core.compare.kernels import deterministic_kernels
from lohan_core.compare.predict import open_planners, predict_all
from lohan_core.compare.records import Comparison, MeasuredStep, Measurement
from lohan_core.compare.scratch import scratch_config, scratch_folder
from lohan_core.config.sections import Config
from lohan_core.data import Batch, Batches
from lohan_core.data.run import open_run_dataset
from lohan_core.engine import Engine, open_engine
from lohan_core.engine.assemble import resolve_device
from lohan_core.engine.parts import Report, optimizer_settings
from lohan_core.engine.subject import open_subject
from lohan_core.plan import Plan
from lohan_core.profile import Profile
from lohan_core.registry import Registry
from lohan_core.train.learning_rate import learning_rate

__all__ = ["compare_here"]

UNCOUNTED_STEPS = 1
"""A run's first step touches all of its memory for the first time."""


@define
class _Runner:
    """One planner's run: an engine, the device memory that it holds between steps, and what its steps came to."""

    engine: Engine
    held_bytes: int
    losses: list[float] = field(factory=list)
    steps: list[MeasuredStep] = field(factory=list)

    @classmethod
    def open(cls, config: Config, plan: Plan, sample: Batch, registry: Registry, report: Report) -> Self:
        """Open the engine, and see how much device memory that takes: others may be open beside it."""
        device = resolve_device(config.run.device)
        before = _allocated_bytes(device)
        engine = open_engine(config, sample, registry=registry, plan=plan, report=report)
        return cls(engine, _allocated_bytes(device) - before)

    def step(self, batch: Batch, lr: float) -> None:
        """Take a step."""
        device = self.engine.model.device
        before = _allocated_bytes(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        result = self.engine.step(batch, lr=lr)
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


def compare_here(
    config: Config, planners: Sequence[str], registry: Registry, report: Report, *, steps: int
) -> Comparison:
    """Measure machine and model once, let every planner plan, and carry the plans out.

    Plans that fit into the machine together are carried out in turn, one step of each; others one run after another.

    Args:
        config: a run's; the steps are its first ones. The run itself, if it was begun, is left alone.
        planners: by name.
        registry: where backends are found.
        report: told how long steps go.
        steps: how many steps of each plan count; one more is taken before them.

    Raises:
        LohanError: anything that the user can mend.
    """
    opened = open_planners(planners, config, registry)
    batches = Batches(
        dataset=open_run_dataset(config, config.data.train),
        batch_size=config.run.batch_size,
        micro_batch_size=config.run.micro_batch_size,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )
    device = resolve_device(config.run.device)
    with deterministic_kernels(device):
        profile = _measure(config, batches[0], registry, report)
        foreseen = predict_all(opened, profile, config, report)
        plans = {c.planner: c.prediction for c in foreseen.contenders if c.prediction}
        groups = group_by_memory(
            {name: prediction.peak_bytes for name, prediction in plans.items()},
            foreseen.budget,
            one_memory=device.type == "cpu",
        )
        measured: dict[str, Measurement] = {}
        for group in groups:
            with scratch_folder(config, registry) as folder:
                runs = {name: (scratch_config(folder, config, name, profile), plans[name].plan) for name in group}
                measured |= _carry_out(runs, batches, registry, report, steps=UNCOUNTED_STEPS + steps)
    contenders = tuple(evolve(c, measurement=measured.get(c.planner)) for c in foreseen.contenders)
    return evolve(foreseen, contenders=contenders, groups=groups)


def _measure(config: Config, sample: Batch, registry: Registry, report: Report) -> Profile:
    """Profile machine and model by the config's profiler, with storage where the runs will have theirs."""
    profiler = registry.open_backend(Kind.PROFILER, config.profiler.name, config.profiler.settings)
    with scratch_folder(config, registry) as folder:
        scratch = evolve(config, run=evolve(config.run, dir=folder / "measure"))
        with open_subject(scratch, registry, resolve_device(config.run.device), report) as subject:
            return profiler.profile(evolve(subject, batch=sample))


def _carry_out(
    runs: Mapping[str, tuple[Config, Plan]], batches: Batches, registry: Registry, report: Report, *, steps: int
) -> dict[str, Measurement]:
    """Take the steps of several runs in turn."""
    with ExitStack() as stack:
        runners: dict[str, _Runner] = {}
        for name, (config, plan) in runs.items():
            runners[name] = _Runner.open(config, plan, batches[0], registry, report)
            stack.callback(runners[name].engine.close)
        what = f"running {', '.join(runs)}"
        for step in range(steps):
            for number, (name, runner) in enumerate(runners.items()):
                report(what, step * len(runs) + number, steps * len(runs))
                config, _ = runs[name]
                runner.step(batches[step], _learning_rate(config, step + 1))
        report(what, steps * len(runs), steps * len(runs))
        return {name: runner.measurement() for name, runner in runners.items()}


def _learning_rate(config: Config, step: int) -> float:
    """Return the run's own; a comparison may take more steps than the run."""
    settings = optimizer_settings(config)
    return learning_rate(
        min(step, config.run.steps),
        steps=config.run.steps,
        peak=settings.lr,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
    )


def _allocated_bytes(device: torch.device) -> int:
    """Device memory in this process's tensors; 0 where the CPU computes."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
