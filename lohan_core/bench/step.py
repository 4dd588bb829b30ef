"""``lohan bench step``: a named workload's training step, beside the same model trained by plain PyTorch.

[Note: how it is made fair]
Both sides train the same random weights on the same tokens on the same device, and take turns, step by step, each in a
process of its own that idles while the other works. The first steps of each are not counted. The cap on GPU memory,
which the allocator enforces, is LoHan's alone; plain PyTorch may take what the card has. Losses are reported side by
side: two sides that train the same model do not drift apart.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import ge

from lohan_core.bench.peaks import GpuPeak, peak_host_bytes
from lohan_core.bench.plain import PlainProcess, PlainStep
from lohan_core.bench.workloads import StepWorkload, find_workload, make_batch, write_random_model
from lohan_core.errors import ConfigError
from lohan_core.registry import Registry, load_registry
from lohan_core.units import format_bytes

if TYPE_CHECKING:
    import torch

    from lohan_core.config.sections import Config
    from lohan_core.engine.engine import Engine, StepResult

__all__ = ["StepBench", "StepBenchOptions", "StepBenchRow", "render", "run"]

_OPTIMIZER = {"lr": 1e-5, "max_grad_norm": 1.0}
_NEVER = 1_000_000_000


@frozen(kw_only=True)
class StepBenchOptions:
    """What to measure.

    Attributes:
        workload: one of :data:`lohan_core.bench.workloads.WORKLOADS`.
        directory: on the drive to use; the model and the store are kept in a temporary directory in it, and removed.
        batch_sizes: rows a step; by default the workload's.
        steps: steps counted.
        warm_up: steps before them.
        device: as in a run's config.
        plain: whether to measure plain PyTorch too, which needs the whole training state in the device's memory.
        settings: sections of a run's config that add to the workload's, or replace them.
    """

    workload: str
    directory: Path
    batch_sizes: tuple[int, ...] = ()
    steps: int = field(default=5, validator=ge(1))
    warm_up: int = field(default=2, validator=ge(0))
    device: str = "auto"
    plain: bool = True
    settings: Mapping[str, Mapping[str, Any]] = field(factory=dict)


@frozen(kw_only=True)
class StepBenchRow:
    """One batch size. Single figures are medians over the steps; those of plain PyTorch are None where it is left out.

    ``busy_seconds`` is each lane's, by name; ``predicted_*`` are the simulation's of the same schedule.
    ``planned_*_bytes`` are what the plan reckons with, ``step_gpu_bytes`` what was allocated on the GPU at most during
    the steps. ``peak_gpu_bytes`` is what torch's allocator took from the device at most, profiling included, and
    ``peak_host_bytes`` the process's resident memory at most so far, pinned pages and start-up included.
    """

    batch_size: int
    planner: str
    step_seconds: tuple[float, ...]
    seconds: float
    tokens_per_second: float
    busy_seconds: Mapping[str, float]
    predicted_seconds: float
    predicted_busy_seconds: Mapping[str, float]
    losses: tuple[float, ...]
    storage_read_bytes: int
    storage_write_bytes: int
    planned_gpu_bytes: int
    step_gpu_bytes: int
    peak_gpu_bytes: int
    planned_host_bytes: int
    peak_host_bytes: int
    plain_step_seconds: tuple[float, ...]
    plain_tokens_per_second: float | None
    plain_losses: tuple[float, ...]
    plain_peak_gpu_bytes: int | None
    ratio_to_plain: float | None


@frozen(kw_only=True)
class StepBench:
    """What was measured, and on what."""

    workload: str
    parameters: int
    sequence_length: int
    settings: Mapping[str, Any]
    device: str
    cores: int
    torch: str
    rows: tuple[StepBenchRow, ...]


def run(options: StepBenchOptions, registry: Registry | None = None) -> StepBench:
    """Measure a workload with the backends that ``registry`` (default: what is installed) offers.

    Raises:
        LohanError: an unknown workload, a setting that cannot be, a plan that does not fit, a drive that failed, or
            plain PyTorch out of memory.
    """
    import torch

    from lohan_core.engine.assemble import resolve_device

    workload = find_workload(options.workload)
    device = resolve_device(options.device)
    sections = _sections(workload, options)
    try:
        place = tempfile.TemporaryDirectory(prefix="lohan-bench-", dir=options.directory)
    except OSError as error:
        raise ConfigError(f"{options.directory}: cannot be written: {error.strerror}") from error
    with place as temporary:
        bench = _Bench(workload, options, sections, device, Path(temporary), registry or load_registry())
        parameters = write_random_model(bench.model, workload, device)
        rows = tuple(bench.measure(batch_size) for batch_size in options.batch_sizes or workload.batch_sizes)
    return StepBench(
        workload=workload.name,
        parameters=parameters,
        sequence_length=workload.sequence_length,
        settings=sections,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
        rows=rows,
    )


def _sections(workload: StepWorkload, options: StepBenchOptions) -> dict[str, dict[str, Any]]:
    """Lay the sections of the run's config over each other: every workload's, this one's, the caller's."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"durability": "none", "checksums": False, "checkpoint_every": _NEVER, "steps": _NEVER},
        "optimizer": _OPTIMIZER,
    }
    for layer in (workload.settings, options.settings):
        for name, section in layer.items():
            sections[name] = {**sections.get(name, {}), **section}
    return sections


@frozen
class _Bench:
    """One workload being measured."""

    workload: StepWorkload
    options: StepBenchOptions
    sections: Mapping[str, Mapping[str, Any]]
    device: torch.device
    place: Path
    registry: Registry

    @property
    def model(self) -> Path:
        """The model directory."""
        return self.place / "model"

    def measure(self, batch_size: int) -> StepBenchRow:
        """Let the two sides take turns. The store goes when they are done: the next batch size begins anew."""
        from lohan_core.engine.assemble import open_engine

        config = self._config(batch_size)
        ours: list[StepResult] = []
        theirs: list[PlainStep] = []
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, config.run.dir, ignore_errors=True)
            memory = GpuPeak(self.device)
            sample = make_batch(self.workload, batch_size, 0)
            engine = stack.enter_context(open_engine(config, sample, registry=self.registry))
            plain = stack.enter_context(self._start_plain(batch_size)) if self.options.plain else None
            memory.begin_steps()
            for number in range(self.options.warm_up + self.options.steps):
                ours.append(engine.step(make_batch(self.workload, batch_size, number), lr=_OPTIMIZER["lr"]))
                if plain is not None:
                    theirs.append(plain.step(number))
            return self._summarise(engine, batch_size, ours, theirs, memory)

    def _start_plain(self, batch_size: int) -> PlainProcess:
        return PlainProcess(self.workload, batch_size, model=self.model, device=str(self.device), **_OPTIMIZER)

    def _config(self, batch_size: int) -> Config:
        from lohan_core.config.load import config_from_mapping

        values = {
            **self.sections,
            "model": {"path": str(self.model)},
            # The tokens are made here: no file of them is read.
            "data": {"train": str(self.place / "none"), "sequence_length": self.workload.sequence_length},
            "run": {
                **self.sections["run"],
                "dir": str(self.place / "run"),
                "device": self.options.device,
                "batch_size": batch_size,
                "micro_batch_size": self.workload.micro_batch_size,
            },
        }
        return config_from_mapping(values, self.registry)

    def _summarise(
        self,
        engine: Engine,
        batch_size: int,
        ours: Sequence[StepResult],
        theirs: Sequence[PlainStep],
        memory: GpuPeak,
    ) -> StepBenchRow:
        from lohan_core.plan import Tier
        from lohan_core.schedule.simulate import simulate
        from lohan_core.schedule.task import Lane

        counted, plain = ours[self.options.warm_up :], theirs[self.options.warm_up :]
        busy = [result.timeline.busy_seconds() for result in counted]
        predicted = simulate(engine.schedule, engine.profile.machine)
        tokens = batch_size * self.workload.sequence_length
        seconds = median(result.seconds for result in counted)
        plain_seconds = median(step.seconds for step in plain) if plain else None
        return StepBenchRow(
            batch_size=batch_size,
            planner=engine.plan.planner,
            step_seconds=tuple(result.seconds for result in counted),
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            busy_seconds={lane.value: median(each[lane] for each in busy) for lane in Lane},
            predicted_seconds=predicted.seconds,
            predicted_busy_seconds={lane.value: busy for lane, busy in predicted.busy_seconds().items()},
            losses=tuple(result.loss for result in ours),
            storage_read_bytes=counted[-1].storage_read_bytes,
            storage_write_bytes=counted[-1].storage_write_bytes,
            planned_gpu_bytes=engine.schedule.bytes_on(Tier.GPU),
            step_gpu_bytes=memory.allocated_bytes(),
            peak_gpu_bytes=memory.reserved_bytes(),
            planned_host_bytes=engine.schedule.bytes_on(Tier.HOST),
            peak_host_bytes=peak_host_bytes(),
            plain_step_seconds=tuple(step.seconds for step in plain),
            plain_tokens_per_second=tokens / plain_seconds if plain_seconds else None,
            plain_losses=tuple(step.loss for step in theirs),
            plain_peak_gpu_bytes=plain[-1].peak_gpu_bytes if plain else None,
            ratio_to_plain=median(b.seconds / a.seconds for a, b in zip(counted, plain, strict=True))
            if plain
            else None,
        )


def render(result: StepBench) -> str:
    """Lay the result out for people."""
    head = f"{result.workload}: {result.parameters / 1e9:.3g} B parameters, {result.sequence_length} tokens a row"
    columns = ("batch", "tokens/s", "plain", "ratio", "seconds", "predicted", "GPU", "plain GPU", "host")
    lines = [
        f"{head}; {result.device}, {result.cores} cores, torch {result.torch}",
        "".join(f"{name:>11}" for name in columns),
    ]
    for row in result.rows:
        cells = (
            str(row.batch_size),
            f"{row.tokens_per_second:.0f}",
            _figure(row.plain_tokens_per_second, 0),
            _figure(row.ratio_to_plain, 3),
            f"{row.seconds:.3f}",
            f"{row.predicted_seconds:.3f}",
            format_bytes(row.peak_gpu_bytes),
            "-" if row.plain_peak_gpu_bytes is None else format_bytes(row.plain_peak_gpu_bytes),
            format_bytes(row.peak_host_bytes),
        )
        lines.append("".join(f"{cell:>11}" for cell in cells))
        lanes = ", ".join(
            f"{lane} {seconds:.3f} ({row.predicted_busy_seconds[lane]:.3f})"
            for lane, seconds in row.busy_seconds.items()
        )
        lines.append(f"{'':11}{row.planner}; seconds busy (predicted): {lanes}")
        plain = f", plain {row.plain_losses[-1]:.6f}" if row.plain_losses else ""
        lines.append(f"{'':11}loss of step {len(row.losses)}: {row.losses[-1]:.6f}{plain}")
    return "\n".join(lines)


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
