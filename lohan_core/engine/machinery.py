"""What a plan determines: the schedule, all memory that it takes, and the actions of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from attrs import define

from lohan_core.engine.activations import Activations
from lohan_core.engine.buffers import Buffers
from lohan_core.engine.compute import Compute
from lohan_core.engine.device_memory import settle_device_memory
from lohan_core.engine.fill import fill_record
from lohan_core.engine.gradients import Gradients
from lohan_core.engine.lanes import Action, Lanes
from lohan_core.engine.packing import plan_packing
from lohan_core.engine.parts import Parts, free_scratch
from lohan_core.engine.schedules import Schedules
from lohan_core.engine.states import States
from lohan_core.engine.step import StepData
from lohan_core.engine.updates import Updates
from lohan_core.engine.weights import Weights
from lohan_core.errors import PlanError
from lohan_core.interfaces.optimizer import Optimizer, OptimizerConfig
from lohan_core.plan import Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_core.schedule.sizes import sums_apart
from lohan_core.schedule.task import Lane, Op
from lohan_core.store import Store
from lohan_core.units import format_bytes

__all__ = ["Machinery", "build_machinery"]


@define(kw_only=True)
class Machinery:
    """Carries one plan out. Built by :func:`build_machinery`."""

    plan: Plan
    profile: Profile
    workload: Workload
    schedules: Schedules
    states: States
    lanes: Lanes
    actions: Mapping[Op, Action]
    _compute: Compute
    _activations: Activations
    _updates: Updates

    def begin(self, data: StepData) -> None:
        """Give the actions the data of the step that comes."""
        self._compute.data = self._activations.data = self._updates.data = data

    def describe(self) -> str:
        """Say which plan it is, and what it takes on each tier."""
        taken = ", ".join(f"{format_bytes(self.schedules.usual.bytes_on(tier))} on {tier}" for tier in Tier)
        unsaved = "" if self.workload.host_extents else "; states in memory are not saved: no space on the drives"
        note = f" ({self.plan.note})" if self.plan.note else ""
        speculative = sum(decisions.speculative for decisions in self.plan.blocks)
        tried = f"; updates of {speculative} on speculation while steps are not clipped" if speculative else ""
        return f"plan: {self.plan.planner}{note}{tried}; {taken}{unsaved}"


def _gpu_optimizer(parts: Parts, device: torch.device) -> Optimizer:
    there = parts.optimizer.on_device(device)
    if there is None:
        raise PlanError(
            f"optimizer.backend: {parts.optimizer.describe()} has no update for {device} here, and the plan has states "
            "there; put planner.states on host, or plan by what there is now with profiler.cache: false"
        )
    return there


def build_machinery(
    parts: Parts, store: Store, settings: OptimizerConfig, profile: Profile, *, workload: Workload, plan: Plan
) -> Machinery:
    """Reserve all memory and wire the actions of every task.

    States that live in memory are read from the store; where it has no extents for them they begin anew.

    Args:
        parts: the run's open parts.
        store: the run's store.
        settings: weight decay and the norm to clip by.
        profile: what the plan was made with.
        workload: what one step does.
        plan: the decisions.

    Raises:
        LohanError: the memory is not to be had.
    """
    device, dtype, blocks = parts.model.device, parts.model.dtype, parts.model.blocks
    pin = device.type == "cuda"
    free_scratch(parts.storage)
    schedules = Schedules.of(plan, profile, workload)
    buffers = Buffers(schedules.usual, device)
    parts.storage.register([buffers.host_arena])
    states = States(blocks, plan, parts.form, store, workload.chunk_elements, device=device)
    for index in sorted(states.unstored):
        fill_record(states.resident[index], blocks[index], parts.form, parts.checkpoint)
    with ExitStack() as on_failure:
        lanes = Lanes(device)
        on_failure.callback(lanes.close)
        weights = Weights(blocks, states, buffers, dtype)
        gradients = Gradients(blocks, buffers, dtype, sums_apart=sums_apart(profile, workload), states=states)
        compute = Compute(parts.model, plan, profile, weights=weights, gradients=gradients, device=device)
        activations = Activations(
            [plan_packing(block, decisions) for block, decisions in zip(profile.blocks, plan.blocks, strict=True)],
            workload.micro_batches,
            buffers=buffers,
            storage=parts.storage,
            device=device,
            streams={lane: stream for lane in Lane if (stream := lanes.stream(lane)) is not None},
        )
        updates = Updates(
            blocks,
            plan,
            states=states,
            gradients=gradients,
            buffers=buffers,
            optimizer=parts.optimizer,
            gpu_optimizer=_gpu_optimizer(parts, device) if states.on_gpu else None,
            storage=parts.storage,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            workload=workload,
            pin=pin,
        )
        machinery = Machinery(
            plan=plan,
            profile=profile,
            workload=workload,
            schedules=schedules,
            states=states,
            lanes=lanes,
            actions={**weights.actions, **compute.actions, **activations.actions, **updates.actions},
            compute=compute,
            activations=activations,
            updates=updates,
        )
        settle_device_memory(lanes, device, dtype)
        on_failure.pop_all()
    return machinery
