"""From a config, and perhaps a hardware file, to a plan report."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import torch
from attrs import evolve

from lohan_core.backend import Kind
from lohan_core.config.sections import Config, RunConfig
from lohan_core.engine.derive import Outline
from lohan_core.engine.states import StateFormat
from lohan_core.engine.subject import open_subject
from lohan_core.errors import PlanError
from lohan_core.forecast.advise import BatchAdvice, ForecastOf, recommend_batch, sizes_to_try
from lohan_core.forecast.case import Case
from lohan_core.forecast.family import Shape, largest_that_fits, scaled_outline
from lohan_core.forecast.forecast import Forecast, forecast_plan
from lohan_core.forecast.report import LargestModel, PlannedStep, PlanReport
from lohan_core.forecast.upgrades import speedups
from lohan_core.hardware import Hardware
from lohan_core.profile import Profile
from lohan_core.progress import Report
from lohan_core.registry import Registry
from lohan_core.states import StateVector

__all__ = ["plan_here", "plan_on"]


def plan_on(config: Config, registry: Registry, hardware: Hardware, *, largest: bool, report: Report) -> PlanReport:
    """Answer for a machine that is known by its rates, from the model's config alone.

    Raises:
        LohanError: config, model or backends are not usable.
    """
    dtype: torch.dtype = getattr(torch, config.run.dtype)
    optimizer = registry.open_backend(
        Kind.OPTIMIZER, config.optimizer.name, config.optimizer.settings, threads=os.cpu_count() or 1
    )
    states = StateFormat(optimizer, dtype).states
    case = _case(config, registry, states, dtype)
    asker = _Asker(
        hardware, states, config.data.sequence_length, dtype, report, gpu_updates="cuda" in optimizer.gpu_types
    )
    outline = Outline.of(config)
    profile_of = asker.profiles(outline)
    found = _answer(
        case,
        profile_of,
        sizes_to_try(config.data.sequence_length),
        config.run,
        report,
        parameters=outline.parameters,
    )
    return evolve(found, largest=asker.largest(case, outline), searched_largest=True) if largest else found


def plan_here(config: Config, registry: Registry, device: torch.device, *, report: Report) -> PlanReport:
    """Answer for this machine, by the config's own profiler: the micro-batch is the config's.

    Raises:
        LohanError: as for :func:`plan_on`, or measuring failed.
    """
    with open_subject(config, registry, device, report) as subject:
        profiler = registry.open_backend(Kind.PROFILER, config.profiler.name, config.profiler.settings)
        profile = profiler.profile(subject)
        parameters = sum(block.parameters for block in subject.model.blocks)
        case = _case(config, registry, profile.states, subject.model.dtype)
    return _answer(case, lambda _: profile, (profile.micro_batch_size,), config.run, report, parameters=parameters)


def _case(config: Config, registry: Registry, states: tuple[StateVector, ...], dtype: torch.dtype) -> Case:
    planner = registry.open_backend(Kind.PLANNER, config.planner.name, config.planner.settings)
    return Case.of(config, planner, states, dtype.itemsize)


def _answer(
    case: Case,
    profile_of: Callable[[int], Profile],
    micro_batch_sizes: tuple[int, ...],
    run: RunConfig,
    report: Report,
    *,
    parameters: int,
) -> PlanReport:
    """Forecast the run's own step, and recommend a batch; no step is planned or simulated twice."""

    @cache
    def planned(batch_size: int, micro_batch_size: int) -> PlannedStep | PlanError:
        what = f"planning {batch_size} rows, {micro_batch_size} at once"
        report(what, 0, 1)
        profile = profile_of(micro_batch_size)
        try:
            plan, workload = case.plan(profile, batch_size // micro_batch_size)
        except PlanError as error:
            return error
        finally:
            report(what, 1, 1)
        return PlannedStep(plan=plan, profile=profile, workload=workload, budget=case.budget(profile.machine))

    @cache
    def forecast(batch_size: int, micro_batch_size: int) -> Forecast | None:
        step = planned(batch_size, micro_batch_size)
        if isinstance(step, PlanError):
            return None
        return forecast_plan(
            step.plan,
            step.profile,
            step.workload,
            step.budget,
            parameters=parameters,
            save_every=run.checkpoint_every,
        )

    own = planned(run.batch_size, run.micro_batch_size)
    return PlanReport(
        forecast=forecast(run.batch_size, run.micro_batch_size),
        planned=None if isinstance(own, PlanError) else own,
        refusal=str(own) if isinstance(own, PlanError) else None,
        speedups={} if isinstance(own, PlanError) else speedups(case, own, report),
        advice=_advise(forecast, micro_batch_sizes, run),
        largest=None,
        searched_largest=False,
    )


def _advise(forecast_of: ForecastOf, micro_batch_sizes: tuple[int, ...], run: RunConfig) -> BatchAdvice | None:
    """Recommend a batch; where the run's own step is faster, of the run's own micro-batches if these are."""
    advice, own = recommend_batch(forecast_of, micro_batch_sizes), forecast_of(run.batch_size, run.micro_batch_size)
    if own is None or (advice is not None and advice.tokens_per_second >= own.tokens_per_second):
        return advice
    mine = recommend_batch(forecast_of, (run.micro_batch_size,))
    best = max(filter(None, (advice, mine)), key=lambda found: found.tokens_per_second, default=None)
    return best and evolve(best, tried=tuple(sorted({*micro_batch_sizes, run.micro_batch_size})))


class _Asker:
    """Derives profiles of one machine."""

    def __init__(
        self,
        hardware: Hardware,
        states: tuple[StateVector, ...],
        sequence_length: int,
        dtype: torch.dtype,
        report: Report,
        *,
        gpu_updates: bool,
    ) -> None:
        self._gpu_updates = gpu_updates
        self._hardware = hardware
        self._states = states
        self._sequence_length = sequence_length
        self._dtype = dtype
        self._report = report

    def profiles(self, outline: Outline) -> Callable[[int], Profile]:
        """Return a function from micro-batch size to profile; each is derived once."""

        @cache
        def derive(micro_batch_size: int) -> Profile:
            return outline.profile(
                self._hardware,
                micro_batch_size=micro_batch_size,
                sequence_length=self._sequence_length,
                states=self._states,
                gpu_updates=self._gpu_updates,
            )

        return derive

    def largest(self, case: Case, outline: Outline) -> LargestModel | None:
        """Find the largest model of the outline's family that fits with a batch of one row.

        Raises:
            ModelError: the outline's config cannot be scaled.
        """
        sizes: dict[Shape, int] = {}

        def fits(shape: Shape) -> bool:
            self._report(f"trying {shape.name}", 0, 1)
            scaled = scaled_outline(outline, shape)
            sizes[shape] = scaled.parameters
            try:
                case.plan(self.profiles(scaled)(1), 1)
            except PlanError:
                return False
            finally:
                self._report(f"trying {shape.name}", 1, 1)
            return True

        shape = largest_that_fits(fits)
        if shape is None:
            return None
        return LargestModel(layers=shape.layers, heads=shape.heads, hidden=shape.hidden, parameters=sizes[shape])
