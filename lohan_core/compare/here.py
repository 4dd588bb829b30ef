"""``compare_here``: every planner's plan carried out on this machine, on the same data, from the same states."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from lohan_core.backend import Kind
from lohan_core.compare.groups import group_by_memory
from lohan_core.compare.kernels import deterministic_kernels
from lohan_core.compare.planners import open_planners
from lohan_core.compare.predict import predict_all
from lohan_core.compare.records import Comparison, Measurement
from lohan_core.compare.runner import carry_out
from lohan_core.compare.scratch import scratch_config, scratch_folder
from lohan_core.config.sections import Config
from lohan_core.data import Batch, Batches
from lohan_core.data.run import open_run_dataset
from lohan_core.engine.device import resolve_device
from lohan_core.engine.subject import open_subject
from lohan_core.plan import Update
from lohan_core.profile import Profile
from lohan_core.progress import Report
from lohan_core.registry import Registry

__all__ = ["compare_here"]


def compare_here(
    config: Config, planners: Sequence[str], registry: Registry, report: Report, *, steps: int
) -> Comparison:
    """Measure machine and model once, let every planner plan, and carry the plans out.

    Plans that fit into the machine together are carried out in turn, one step of each; others one run after another.

    Args:
        config: a run's; the steps are its first ones, which make no updates on speculation. The run itself, if it was
            begun, is left alone.
        planners: as :func:`lohan_core.compare.planners.open_planners` takes them.
        registry: where backends are found.
        report: told how long steps go.
        steps: how many steps of each plan count; one more is taken before them.

    Raises:
        LohanError: anything that the user can mend.
    """
    if config.run.update is Update.SPECULATIVE:
        config = evolve(config, run=evolve(config.run, update=Update.DEFERRED))
    opened = open_planners(planners, config, registry)
    batches = Batches(
        dataset=open_run_dataset(config, config.data.train),
        batch_size=config.run.batch_size,
        micro_batch_size=config.run.micro_batch_size,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )
    with deterministic_kernels(resolve_device(config.run.device)):
        profile = _measure(config, batches.sample(), registry, report)
        foreseen = predict_all(opened, profile, config, report)
        return _run_all(foreseen, config, batches, registry, report, steps=steps)


def _measure(config: Config, sample: Batch, registry: Registry, report: Report) -> Profile:
    """Profile machine and model by the config's profiler, with storage where the runs will have theirs."""
    profiler = registry.open_backend(Kind.PROFILER, config.profiler.name, config.profiler.settings)
    with scratch_folder(config, registry) as folder:
        scratch = evolve(config, run=evolve(config.run, dir=folder / "measure"))
        with open_subject(scratch, registry, resolve_device(config.run.device), report) as subject:
            return profiler.profile(evolve(subject, batch=sample))


def _run_all(
    foreseen: Comparison, config: Config, batches: Batches, registry: Registry, report: Report, *, steps: int
) -> Comparison:
    """Add to what was predicted what comes of it."""
    predictions = {c.planner: c.prediction for c in foreseen.contenders if c.prediction}
    groups = group_by_memory(
        {name: prediction.peak_bytes for name, prediction in predictions.items()},
        foreseen.budget,
    )
    measured: dict[str, Measurement] = {}
    failed: dict[str, str] = {}
    for group in groups:
        with scratch_folder(config, registry) as folder:
            runs = {
                name: (scratch_config(folder / str(number), config, foreseen.profile), predictions[name])
                for number, name in enumerate(group)
            }
            outcomes = carry_out(runs, batches, registry, report, steps=steps)
        measured |= outcomes.measured
        failed |= outcomes.failed
    contenders = tuple(
        evolve(c, measurement=measured.get(c.planner), reason=failed.get(c.planner, c.reason))
        for c in foreseen.contenders
    )
    return evolve(foreseen, contenders=contenders, groups=groups)
