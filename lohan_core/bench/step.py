"""``lohan bench step``: a named workload's training step, beside the same model trained by plain PyTorch.

[Note: how it is made fair]
Both sides train the same random weights on the same tokens on the same device, in the same dtype, by the same AdamW and
with the same kernels of attention, and take turns, step by step, each in a process of its own that idles while the
other works. The first steps of each are not counted. The cap on GPU memory, which the allocator enforces, is LoHan's
alone; plain PyTorch may take what the card has, and computes the whole loss at once where LoHan may slice it. Losses
are reported side by side: two sides that train the same model do not drift apart.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen
from attrs.validators import ge, gt

from lohan_core.backend import Kind
from lohan_core.bench.drives import DrivesAlone
from lohan_core.bench.peaks import GpuPeak, host_bytes, peak_host_bytes
from lohan_core.bench.plain_memory import plain_bytes, why_plain_does_not_fit
from lohan_core.bench.plain_process import PlainContender
from lohan_core.bench.step_rows import StepBench, StepBenchRow, render
from lohan_core.bench.step_sections import SEED, lay_sections
from lohan_core.bench.step_summary import summarise
from lohan_core.bench.workloads import StepWorkload, find_workload, make_batch, model_config, write_model_directory
from lohan_core.compare.scratch import scratch_folder
from lohan_core.config.sections import is_device
from lohan_core.errors import ConfigError
from lohan_core.reference.torch_adamw import AdamWConfig
from lohan_core.registry import Registry, load_registry
from lohan_core.report.run_file import StepRecorder

if TYPE_CHECKING:
    import torch

    from lohan_core.config.sections import Config
    from lohan_core.engine.engine import Engine
    from lohan_core.engine.step import StepResult
    from lohan_core.interfaces.storage import Storage

__all__ = ["StepBench", "StepBenchOptions", "StepBenchRow", "render", "run"]

_LEFT_OUT = "left out"


@frozen(kw_only=True)
class StepBenchOptions:
    """What to measure.

    Attributes:
        workload: one of :data:`lohan_core.bench.workloads.WORKLOADS`.
        directory: on the drive to use; the store is kept in a temporary directory in it, and removed.
        batch_sizes: rows a step; by default the workload's.
        steps: steps counted.
        warm_up: steps before them.
        device: as in a run's config.
        plain: whether to measure plain PyTorch too, where the device has memory for the whole training state.
        drives_seconds: for how long the drives are measured alone, after each counted step that uses them.
        timelines: a directory for a step's record of each row, in a directory of its own that ``lohan trace`` draws.
        settings: sections of a run's config that add to the workload's, or replace them.
    """

    workload: str
    directory: Path
    batch_sizes: tuple[int, ...] = ()
    steps: int = field(default=5, validator=ge(1))
    warm_up: int = field(default=2, validator=ge(0))
    device: str = field(default="auto", validator=is_device)
    plain: bool = True
    drives_seconds: float = field(default=4.0, validator=gt(0.0))
    timelines: Path | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(factory=dict)


def run(options: StepBenchOptions, registry: Registry | None = None) -> StepBench:
    """Measure a workload with the backends that ``registry`` (default: what is installed) offers.

    Raises:
        LohanError: an unknown workload, a setting that cannot be, a plan that does not fit, or a drive that failed.
    """
    import torch

    from lohan_core.engine.device import resolve_device
    from lohan_core.engine.measure import machine_name

    workload = find_workload(options.workload)
    device = resolve_device(options.device)
    sections = lay_sections(workload.settings, options.settings)
    _make_timelines_directory(options.timelines)
    try:
        place = tempfile.TemporaryDirectory(prefix="lohan-bench-", dir=options.directory)
    except OSError as error:
        raise ConfigError(f"{options.directory}: cannot be written: {error.strerror}") from error
    with place as temporary:
        parameters = write_model_directory(Path(temporary) / "model", workload)
        bench = _Bench(workload, parameters, options, sections, device, Path(temporary), registry or load_registry())
        rows = tuple(bench.measure(batch_size) for batch_size in options.batch_sizes or workload.batch_sizes)
    return StepBench(
        workload=workload.name,
        parameters=parameters,
        sequence_length=workload.sequence_length,
        settings=sections,
        device=machine_name(device),
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
        rows=rows,
    )


def _make_timelines_directory(directory: Path | None) -> None:
    """Make it before anything is measured: afterwards its lack would cost the results."""
    if directory is None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from error


@frozen
class _Bench:
    """One workload being measured."""

    workload: StepWorkload
    parameters: int
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
        """Let LoHan, plain PyTorch and the drives alone take turns. The store goes: the next batch size begins anew."""
        config = self._config(batch_size)
        with scratch_folder(config, self.registry) as folder:
            return self._race(evolve(config, run=evolve(config.run, dir=folder / "run")))

    def _race(self, config: Config) -> StepBenchRow:
        from lohan_core.engine.assemble import open_engine
        from lohan_core.engine.measure import free_device_bytes
        from lohan_core.planning_inputs import optimizer_settings

        batch_size = config.run.batch_size
        lr = optimizer_settings(config).lr
        start_host_bytes, free_bytes, most_host_bytes = host_bytes(), free_device_bytes(self.device), 0
        ours: list[StepResult] = []
        with ExitStack() as stack:
            memory = GpuPeak(self.device)
            sample = make_batch(self.workload, batch_size, 0)
            engine = stack.enter_context(open_engine(config, sample, registry=self.registry))
            plain = stack.enter_context(closing(self._open_plain(engine, config, free_bytes)))
            drives = stack.enter_context(closing(self._drives_alone(config)))
            memory.begin_steps()
            for number in range(self.options.warm_up + self.options.steps):
                ours.append(engine.step(make_batch(self.workload, batch_size, number), lr=lr))
                plain.step(number)
                if number == self.options.warm_up:
                    most_host_bytes = peak_host_bytes()  # without the buffers that the drives alone have
                if number >= self.options.warm_up:
                    drives.turn(ours[-1].storage_read_bytes, ours[-1].storage_write_bytes)
            row = summarise(
                engine,
                ours,
                plain,
                memory,
                drives,
                parameters=self.parameters,
                sequence_length=self.workload.sequence_length,
                warm_up=self.options.warm_up,
                start_host_bytes=start_host_bytes,
                peak_host_bytes=most_host_bytes,
            )
            self._write_timeline(engine, batch_size, ours[self.options.warm_up :])
        return row

    def _write_timeline(self, engine: Engine, batch_size: int, counted: Sequence[StepResult]) -> None:
        """Write the step of median length, if that is wanted. Raises StorageError."""
        if self.options.timelines is None:
            return
        middle = sorted(counted, key=lambda result: result.seconds)[len(counted) // 2]
        place = self.options.timelines / f"{self.workload.name}-{batch_size}"
        place.mkdir(exist_ok=True)
        StepRecorder(place, engine.profile.machine).add(middle.step, middle.timeline)

    def _open_plain(self, engine: Engine, config: Config, free_bytes: int) -> PlainContender:
        """Start plain PyTorch if ``free_bytes``, of the device before the engine was opened, are enough for both."""
        from lohan_core.plan import Tier

        if not self.options.plain:
            return PlainContender.absent(_LEFT_OUT)
        optimizer = config.optimizer.settings
        if not isinstance(optimizer, AdamWConfig):
            return PlainContender.absent(f"trains by AdamW, which {config.optimizer.name} is not")
        batch_size, dtype = config.run.batch_size, engine.model.dtype
        tiers = (Tier.GPU,) if self.device.type == "cuda" else (Tier.GPU, Tier.HOST)
        left_bytes = free_bytes - sum(engine.schedule.bytes_on(tier) for tier in tiers)
        needed_bytes = plain_bytes(
            self.parameters, model_config(self.workload), self.workload, batch_size, value_bytes=dtype.itemsize
        )
        reason = why_plain_does_not_fit(needed_bytes, left_bytes)
        if reason is not None:
            return PlainContender.absent(reason)
        return PlainContender.start(
            self.workload,
            batch_size,
            model=self.model,
            seed=SEED,
            device=str(self.device),
            dtype=dtype,
            attention=engine.model.attention,
            optimizer=optimizer,
            compiles=config.model.compile,
        )

    def _drives_alone(self, config: Config) -> DrivesAlone:
        """Get ready to give the drives a step's mix of reads and writes, through a storage of the same settings.

        Its namespace is this process's own, as the temporary folder is: extents that a killed one left elsewhere, on
        the directories that the config names, are not in the way.
        """

        def open_storage() -> Storage:
            storage: Storage = self.registry.open_backend(
                Kind.STORAGE,
                config.storage.name,
                config.storage.settings,
                namespace=self.place.name,
                default_directory=self.place / "drives",
            )
            return storage

        return DrivesAlone(open_storage, request_bytes=config.memory.chunk, seconds=self.options.drives_seconds)

    def _config(self, batch_size: int) -> Config:
        from lohan_core.config.load import config_from_mapping

        values = {
            **self.sections,
            "model": {**self.sections["model"], "path": str(self.model)},
            # The tokens are made here: no file of them is read.
            "data": {"train": str(self.place / "none"), "sequence_length": self.workload.sequence_length},
            "run": {
                **self.sections["run"],
                "dir": str(self.place),
                "device": self.options.device,
                "batch_size": batch_size,
                "micro_batch_size": self.workload.rows_at_once(batch_size),
            },
        }
        return config_from_mapping(values, self.registry)
