"""The engine: one call per training step, with the model's states wherever the plan put them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import define, evolve

from lohan_core.engine.commits import Commits
from lohan_core.engine.device_memory import in_short, smaller_block
from lohan_core.engine.machinery import Machinery, build_machinery
from lohan_core.engine.parts import Parts
from lohan_core.engine.pending import Pending
from lohan_core.engine.step import StepData, StepResult, UpdateTerms, prepare_step
from lohan_core.engine.updates import NonFiniteGradientError
from lohan_core.errors import PlanError, StoreError
from lohan_core.interfaces.optimizer import OptimizerConfig
from lohan_core.model.cut import CutModel
from lohan_core.model.rng import preserved
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.profile import Profile
from lohan_core.schedule.build import build_evaluation
from lohan_core.schedule.task import Schedule
from lohan_core.schedule.timeline import Timeline
from lohan_core.store import Store
from lohan_core.weights import write_model

if TYPE_CHECKING:
    from lohan_core.data.batches import Batch

__all__ = ["Engine"]


@define(kw_only=True)
class Engine:
    """Fine-tunes one model. Made by :func:`lohan_core.engine.open_engine`; to be closed, or used as a context.

    Not thread-safe: one call at a time.
    """

    seed: int
    budget: Budget
    """What plans may use."""
    _settings: OptimizerConfig
    _parts: Parts
    _store: Store
    _commits: Commits
    _machinery: Machinery
    _finished_step: int
    _pending: Pending
    _between_steps: bool = False
    _closed: bool = False

    @property
    def model(self) -> CutModel:
        """The model as cut into blocks."""
        return self._parts.model

    @property
    def plan(self) -> Plan:
        """The decisions that are carried out."""
        return self._machinery.plan

    @property
    def profile(self) -> Profile:
        """The facts that the plan was made with."""
        return self._machinery.profile

    @property
    def workload(self) -> Workload:
        """What one step does."""
        return self._machinery.workload

    @property
    def schedule(self) -> Schedule:
        """The tasks of one step; of one that is not clipped, where there are speculative updates."""
        return self._machinery.schedules.usual

    @property
    def description(self) -> tuple[str, ...]:
        """What carries this run out, a line each: attention (and compiled layers), storage, optimizer, plan."""
        return (*self._parts.describe(), self._machinery.describe())

    @property
    def finished_step(self) -> int:
        """Number of steps done since the model came in, those of earlier processes included."""
        return self._finished_step

    @property
    def can_save(self) -> bool:
        """Whether states can be made durable: not where some live in host memory and have no space on the drives."""
        return self._commits.can_save

    @property
    def durable_step(self) -> int:
        """The step that a crash now would fall back to; 0 where nothing can be saved."""
        return self._commits.step

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the caller stored beside the last durable step."""
        return self._commits.progress

    def step(self, batch: Batch, *, lr: float) -> StepResult:
        """Train on one batch. The result is what the next step begins from; :meth:`save` makes it durable.

        Where the plan defers updates, they are done in the course of the next step, or when something else needs them.

        Args:
            batch: as many micro-batches as the workload has, of the shape that was profiled.
            lr: this step's learning rate.

        Raises:
            StorageError: a drive failed; the last durable step is intact.
            PlanError: the device ran out of memory; likewise intact.
            NonFiniteGradientError: likewise; says from which step the run can go on.
            StoreError: an earlier step failed, or the engine is closed; open the run again to go on.
            ValueError: ``batch`` is not of the plan's size, or predicts no token.
        """
        self._require_usable()
        began = time.perf_counter()
        if len(batch.micro_batches) != self.workload.micro_batches:
            raise ValueError(
                f"{len(batch.micro_batches)} micro-batches given, the plan is for {self.workload.micro_batches}"
            )
        step, pending = self._finished_step + 1, self._pending
        read_before, written_before = self._parts.storage.bytes_moved()
        if pending.stands_in_the_way:
            self.finish_updates()
        data = self._begin(batch, UpdateTerms(step, lr))
        if not self.can_save:
            self._store.never_commit()
        self._between_steps = True
        try:
            timeline = self._execute(pending.step_schedule())
        except NonFiniteGradientError as error:
            # The step before is whole all the same, unless this one has begun to update too.
            if pending.is_all:
                self._commits.commit_awaited(self._machinery.states)
            way_on = self._commits.way_on(self._finished_step, not_finite=True)
            raise NonFiniteGradientError(f"{error}; {way_on}") from error
        loss, clipped = data.loss, data.terms.gradient_factor != 1.0
        if data.speculates:
            self._machinery.states.end_speculation(holds=not clipped)
        self._store.finish_step()
        pending.note(data.terms, clipped=clipped, speculated=data.speculates)
        self._commits.commit_awaited(self._machinery.states)
        self._between_steps = False
        self._finished_step = step
        read, written = self._parts.storage.bytes_moved()
        return StepResult(
            step=step,
            loss=loss,
            gradient_norm=data.gradient_norm,
            lr=lr,
            seconds=time.perf_counter() - began,
            storage_read_bytes=read - read_before,
            storage_write_bytes=written - written_before,
            timeline=timeline,
            clipped=clipped,
            speculated=data.speculates,
        )

    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Return the mean loss over all predicted tokens of ``batches``, without dropout and without training."""
        self.finish_updates()
        total = tokens = 0.0
        self.model.model.eval()
        try:
            for batch in batches:
                workload = evolve(self.workload, micro_batches=len(batch.micro_batches))
                data = self._begin(batch, UpdateTerms(self._finished_step, 0.0), trains=False)
                self._execute(build_evaluation(self.plan, self.profile, workload))
                total += data.loss * sum(batch.loss_tokens)
                tokens += sum(batch.loss_tokens)
        finally:
            self.model.model.train()
        return total / tokens

    def finish_updates(self) -> None:
        """Do the deferred updates of the last finished step, if there are any. Whatever reads states does so itself."""
        self._require_usable()
        terms = self._pending.terms
        if terms is None:
            return
        self._machinery.begin(StepData(terms=terms, deferred=terms))
        self._between_steps = True
        self._execute(self._pending.updates_schedule())
        self._store.finish_step()
        self._pending.terms = None
        self._commits.commit_awaited(self._machinery.states)
        self._between_steps = False

    def save(self, progress: Mapping[str, Any]) -> None:
        """Make the last finished step durable, with ``progress``, JSON values for resuming, beside it.

        Where :attr:`can_save` is False this only finishes updates.
        """
        self._commits.awaited = None
        self.finish_updates()
        self._commits.commit(self._finished_step, progress, self._machinery.states)

    def save_soon(self, progress: Mapping[str, Any]) -> None:
        """As :meth:`save`, but without stopping for deferred updates: durable when the next step has done them.

        Where a plan defers some updates and not others, no moment of a step finds another one whole: then it is saved
        at once.
        """
        self._require_usable()
        if not self.can_save:
            return
        if self._pending.is_all:
            self._commits.awaited = self._finished_step, progress
        else:
            self.save(progress)

    def export(self, out: Path, dtype: torch.dtype) -> None:
        """Write the model as a directory that ``AutoModelForCausalLM.from_pretrained`` loads.

        Raises:
            ModelError: ``out`` is not empty, or its drive has too little space.
        """
        self.finish_updates()
        write_model(out, self._machinery.states.parameters(dtype), self._parts.checkpoint, dtype)

    def adopt(self, plan: Plan, profile: Profile, workload: Workload, progress: Mapping[str, Any]) -> None:
        """Go on by another plan. The last finished step is saved first, with ``progress``; results do not change.

        Args:
            plan: one that fits ``workload``, for as many micro-batches as now.
            profile: what it was made with.
            workload: what one step does.
            progress: as for :meth:`save`.

        Raises:
            StoreError: states cannot be saved, which is how they come from one plan to the other.
            LohanError: the memory is not to be had; the engine is then closed.
        """
        self._require_usable()
        if not self.can_save:
            raise StoreError("states in host memory have no space on the drives, so the plan cannot be changed")
        self.save(progress)
        try:
            self._machinery.lanes.close()
            self._parts.storage.unregister()
            del self._machinery  # its memory is what the next one is built in
            self._machinery = build_machinery(
                self._parts, self._store, self._settings, profile, workload=workload, plan=plan
            )
            self._commits = Commits(self._store, workload.host_extents)
            self._pending = Pending(self._machinery.schedules)
        except BaseException:
            self._closed = True
            self._store.close()
            raise

    def close(self) -> None:
        """Stop the lanes and let go of store and storage. What was not saved is lost. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._machinery.lanes.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(self, schedule: Schedule) -> Timeline:
        try:
            with preserved(self.model.device):
                return self._machinery.lanes.execute(schedule, self._machinery.actions)
        except torch.OutOfMemoryError as error:
            raise PlanError(
                f"memory.gpu: step {self._finished_step + 1} needs more device memory than the plan foresaw "
                f"({in_short(error)}); {smaller_block(self.model.loss)}, or keep less on the GPU"
            ) from error

    def _require_usable(self) -> None:
        """Refuse to go on when closed, or from states of which a failed step has updated some and not others."""
        if self._closed:
            raise StoreError("the engine is closed; open the run again to go on")
        if self._between_steps:
            way_on = self._commits.way_on(self._finished_step)
            raise StoreError(f"step {self._finished_step + 1} failed part of the way; {way_on}")

    def _begin(self, batch: Batch, terms: UpdateTerms, *, trains: bool = True) -> StepData:
        data = prepare_step(
            batch, terms, seed=self.seed, device=self.model.device, trains=trains, deferred=self._pending.terms
        )
        data.speculates = trains and self._pending.speculates
        self._machinery.begin(data)
        return data
