"""``train``: a run from its config to the model at its end, or on from where it stopped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lohan_core.backend import Kind
from lohan_core.config import Config, dump_config
from lohan_core.data import Batch, Batches, Dataset, evaluation_batches
from lohan_core.data.run import open_run_dataset
from lohan_core.durable_files import make_directory_durably, replace_durably
from lohan_core.engine import Engine, StepResult, open_engine
from lohan_core.engine.device import resolve_device
from lohan_core.engine.parts import open_parts, store_path
from lohan_core.errors import ConfigError, StoreError
from lohan_core.interfaces.planner import Planner
from lohan_core.registry import Registry
from lohan_core.report.run_file import StepRecorder
from lohan_core.saving import saving_seconds, steps_between_saves
from lohan_core.schedule.simulate import simulate
from lohan_core.store.directory import MANIFEST, StoreDirectory
from lohan_core.train.learning_rate import learning_rate_of
from lohan_core.train.metrics import METRICS, Metrics, read_metrics, require_tensorboard
from lohan_core.train.progress import RunProgress
from lohan_core.train.replan import STEADY, replan, unlike_prediction
from lohan_core.train.room import require_room, rows_within
from lohan_core.train.stopping import StopRequest

__all__ = ["train"]


def train(config: Config, registry: Registry, console: Console) -> bool:
    """Carry a run out, or on from its last durable step.

    Args:
        config: the run.
        registry: where backends are found.
        console: where progress is shown.

    Returns:
        True when the run is complete and its model written; False when a signal stopped it, with its state saved.

    Raises:
        LohanError: anything that the user can mend; the last durable step is intact.
    """
    if config.run.tensorboard:
        require_tensorboard()
    with ExitStack() as stack:
        # Mistakes in these, and in the parts below, are not to be found after hours of tokenising.
        device = resolve_device(config.run.device)
        planner = registry.open_backend(Kind.PLANNER, config.planner.name, config.planner.settings)
        registry.open_backend(Kind.PROFILER, config.profiler.name, config.profiler.settings)
        _prepare_directory(config)
        _require_manifest(config)
        progress = stack.enter_context(RunProgress(console))
        stop = stack.enter_context(StopRequest(console))
        parts = open_parts(config, registry, device)
        stack.callback(parts.close)
        training = open_run_dataset(config, config.data.train)
        progress.say(f"{config.data.train.name}: {training.report}")
        evaluation = None
        if config.data.eval is not None:
            evaluation = open_run_dataset(config, config.data.eval)
            progress.say(f"{config.data.eval.name}: {evaluation.report}")
            require_room(training, evaluation, config.run.micro_batch_size)
        batches = Batches(
            dataset=training,
            batch_size=config.run.batch_size,
            micro_batch_size=config.run.micro_batch_size,
            seed=config.run.seed,
            shuffle=config.data.shuffle,
        )
        engine = stack.enter_context(
            open_engine(
                config,
                batches.sample(),
                registry=registry,
                identity=_data_identity(config, training),
                report=progress.show,
                parts=parts,
            )
        )
        for line in engine.description:
            progress.say(line)
        replace_durably(config.run.dir / "config.yaml", dump_config(config).encode())
        run = _Run(config, engine, planner, batches, evaluation=evaluation, progress=progress)
        stack.callback(run.metrics.close)
        complete = run.to_the_end(stop)
        if complete:
            run.write_model()
        elif engine.can_save:
            progress.say(
                f"{stop.signal_name}: step {engine.finished_step} is saved; run the same command again to go on from it"
            )
        else:
            progress.say(
                f"{stop.signal_name}: stopped after step {engine.finished_step}; nothing is saved, for lack of space "
                "on the drives: start again in another run.dir"
            )
        return complete


class _Run:
    """The loop's parts."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        planner: Planner,
        batches: Batches,
        *,
        evaluation: Dataset | None,
        progress: RunProgress,
    ) -> None:
        self._config = config
        self._engine = engine
        self._planner = planner
        self._batches = batches
        self._evaluation = evaluation
        self._progress = progress
        self.metrics = Metrics(
            config.run.dir / METRICS,
            step=engine.finished_step,
            last=engine.progress.get("metrics"),
            tensorboard=config.run.dir / "tensorboard" if config.run.tensorboard else None,
        )
        self._steps_here = 0
        self._recorder = StepRecorder(config.run.dir, engine.profile.machine)
        if engine.finished_step:
            progress.say(f"resumed from step {engine.finished_step}")
            if engine.finished_step >= config.run.steps:
                progress.say(f"nothing is left to do of run.steps: {config.run.steps}")
        self._plan_saving()

    def _plan_saving(self) -> None:
        """Decide after how many steps to save, and say so where saving takes time."""
        engine, every = self._engine, self._config.run.checkpoint_every
        seconds = saving_seconds(engine.plan, engine.profile, engine.workload)
        step = simulate(engine.schedule, engine.profile.machine).seconds
        self._checkpoint_every = every or steps_between_saves(seconds, step)
        if seconds and engine.finished_step < self._config.run.steps:
            when = "every step" if self._checkpoint_every == 1 else f"every {self._checkpoint_every} steps"
            self._progress.say(f"saving: {when}, which then takes about {seconds:.2g} s more (run.checkpoint_every)")

    def to_the_end(self, stop: StopRequest) -> bool:
        """Train until the last step or a stop; what is done by then is durable either way."""
        run, engine = self._config.run, self._engine
        last_entry: Mapping[str, Any] = engine.progress
        while True:
            self._evaluate_if_due(stop)
            if stop or engine.finished_step >= run.steps:
                if engine.durable_step < engine.finished_step:
                    engine.save(last_entry)
                self._recorder.write()
                return not stop
            last_entry = self._step()

    def _step(self) -> Mapping[str, Any]:
        run, engine = self._config.run, self._engine
        began = time.perf_counter()
        batch = self._batches[engine.finished_step]
        result = engine.step(batch, lr=learning_rate_of(self._config, engine.finished_step + 1))
        progress = {"metrics": _entry(result, batch.tokens, time.perf_counter() - began)}
        if result.step == run.steps:
            engine.save(progress)
        elif result.step % self._checkpoint_every == 0:
            engine.save_soon(progress)
        entry = _entry(result, batch.tokens, time.perf_counter() - began)
        self.metrics.add(entry)
        self._recorder.add(result.step, result.timeline)
        self._steps_here += 1
        if self._steps_here == run.replan_after:
            self._progress.say(replan(engine, self._planner, result.timeline, progress))
            self._recorder = StepRecorder(run.dir, engine.profile.machine)
            self._plan_saving()
        elif self._steps_here == STEADY and (notice := unlike_prediction(engine, result.timeline)):
            self._progress.say(notice)
        self._progress.step(
            result.step, run.steps, f"loss {result.loss:.4f}  {entry['tokens_per_second']:,.0f} tokens/s"
        )
        return progress

    def _evaluate_if_due(self, stop: StopRequest) -> None:
        step, every = self._engine.finished_step, self._config.run.eval_every
        due = step == self._config.run.steps or (every is not None and step % every == 0)
        if self._evaluation is None or not due or step in self.metrics.evaluated or stop:
            return
        fewer = partial(rows_within, planned=self._batches.dataset.row_length, actual=self._evaluation.row_length)
        batches = evaluation_batches(
            self._evaluation,
            batch_size=fewer(self._config.run.batch_size),
            micro_batch_size=fewer(self._config.run.micro_batch_size),
        )
        began = time.perf_counter()
        loss = self._engine.evaluate(_until(stop, batches))
        if stop:
            return  # the loss may be of some batches only; whoever goes on evaluates anew
        self.metrics.add({"step": step, "eval_loss": loss, "eval_seconds": time.perf_counter() - began})
        self._progress.say(f"step {step}: evaluation loss {loss:.4f}")

    def write_model(self) -> None:
        """Write ``model/`` unless an earlier process did, at this very step: a run may be told to take more steps."""
        engine, out = self._engine, self._config.run.dir / "model"
        for abandoned in out.parent.glob(f".{out.name}.*.partial"):  # by a process that was killed: we hold the lock
            shutil.rmtree(abandoned)
        if engine.progress.get("model") != engine.finished_step or not out.is_dir():
            if out.is_dir():
                shutil.rmtree(out)
            engine.export(out, getattr(torch, self._config.run.dtype))
            engine.save({**engine.progress, "model": engine.finished_step})
        self._progress.say(f"the model is in {out}")


def _until(stop: StopRequest, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass batches on, at least one, until a stop is asked for."""
    for batch in batches:
        yield batch
        if stop:
            return


def _entry(result: StepResult, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "step": result.step,
        "loss": result.loss,
        "lr": result.lr,
        "grad_norm": result.gradient_norm,
        "clipped": result.clipped,
        "speculated": result.speculated,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "storage_read_bytes": result.storage_read_bytes,
        "storage_write_bytes": result.storage_write_bytes,
    }


def _prepare_directory(config: Config) -> None:
    """Make the run directory, or find it writable.

    Raises:
        ConfigError: it cannot be made or written.
    """
    directory: Path = config.run.dir
    try:
        make_directory_durably(directory)
    except OSError as error:
        raise ConfigError(f"run.dir: cannot make {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise ConfigError(f"run.dir: {directory} cannot be written; choose another or change its permissions")


def _require_manifest(config: Config) -> None:
    """Refuse to start over where a run has been: its states may be on the drives, under a name only the manifest tells.

    Raises:
        StoreError: steps have been taken, and there is no store.
    """
    metrics = config.run.dir / METRICS
    if not StoreDirectory.is_at(store_path(config)) and any("loss" in entry for entry in read_metrics(metrics)):
        raise StoreError(
            f"{store_path(config) / MANIFEST}: missing, and {metrics} has steps of its run; restore it from a copy, or "
            "start over in another run.dir"
        )


def _data_identity(config: Config, training: Dataset) -> dict[str, str]:
    """What the order of the data depends on: resuming with other values would not go on with the same run."""
    return {
        "data.train": training.digest,
        "data.sequence_length": str(config.data.sequence_length),
        "data.packing": str(config.data.packing),
        "data.shuffle": str(config.data.shuffle),
        "run.batch_size": str(config.run.batch_size),
        "run.seed": str(config.run.seed),
    }
