"""``open_engine``: from a config to an engine that is ready for its first step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from inspect import signature
from typing import TYPE_CHECKING

import psutil
from torch import Tensor

from lohan_core.backend import Kind
from lohan_core.budget import make_budget
from lohan_core.config.sections import Config
from lohan_core.engine.commits import Commits
from lohan_core.engine.compiling import compile_layers
from lohan_core.engine.device import resolve_device
from lohan_core.engine.device_memory import out_of_memory_told
from lohan_core.engine.engine import Engine
from lohan_core.engine.machinery import build_machinery
from lohan_core.engine.measure import free_device_bytes
from lohan_core.engine.parts import Parts, make_store, open_parts, store_identity, take_up_store
from lohan_core.engine.pending import Pending
from lohan_core.errors import ConfigError, PlanError
from lohan_core.interfaces.profiler import Subject
from lohan_core.interfaces.storage import Storage
from lohan_core.model.choices import Attention
from lohan_core.model.cut import CutModel
from lohan_core.model.isolation import isolates_documents
from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.planning import plan_step
from lohan_core.planning_inputs import limits_of, optimizer_settings, workload_of
from lohan_core.profile import Profile
from lohan_core.progress import Report, say_nothing
from lohan_core.registry import Registry, load_registry

if TYPE_CHECKING:
    from lohan_core.data.batches import Batch

__all__ = ["open_engine"]


def open_engine(
    config: Config,
    sample: Batch,
    *,
    registry: Registry | None = None,
    identity: Mapping[str, str] | None = None,
    plan: Plan | None = None,
    workload: Workload | None = None,
    report: Report = say_nothing,
    parts: Parts | None = None,
) -> Engine:
    """Open a run: cut the model, open the backends, make or verify the store, measure, plan, and reserve all memory.

    Args:
        config: the run's config.
        sample: a batch like those to come: blocks are profiled with its first micro-batch, and buffers sized by it.
        registry: where backends are found; by default all installed plugins.
        identity: what else the store must agree on to be taken up again, beside model, optimizer and dtype.
        plan: carry this plan out instead of asking the planner.
        workload: what ``plan`` was made for, if that is not what the config says: with fewer slots on the GPU, say.
        report: told how long steps go.
        parts: the config's parts, where they were opened before there was a sample; closed if this fails.

    Raises:
        LohanError: anything that the user can mend; the store is as it was.
    """
    registry = registry or load_registry()
    with out_of_memory_told(config.model.loss), ExitStack() as on_failure:
        parts = parts or open_parts(config, registry, resolve_device(config.run.device))
        on_failure.callback(parts.close)
        parts.directory.require_kept()
        whole = {**store_identity(config, parts), **(identity or {})}
        store = take_up_store(parts, whole, report) if parts.directory.holds_commit else None
        _require_isolation(parts.model, sample)
        compile_layers(parts.model, sample.micro_batches, report)
        subject = Subject(
            model=parts.model,
            storage=parts.storage,
            optimizer=parts.optimizer,
            batch=sample,
            chunk_elements=parts.chunk_elements,
            report=report,
        )
        profiler = registry.open_backend(Kind.PROFILER, config.profiler.name, config.profiler.settings)
        profile = profiler.profile(subject)
        workload = workload or workload_of(
            config,
            parts.form.vectors,
            micro_batches=len(sample.micro_batches),
            versions=None if store is None else store.versions,
        )
        budget = _budget(config, profile, parts.storage)
        if plan is None:
            planner = registry.open_backend(Kind.PLANNER, config.planner.name, config.planner.settings)
            plan, workload = plan_step(planner, profile, budget, workload, store_exists=store is not None)
        if store is not None and not workload.host_extents:
            raise PlanError(
                "memory.ssd: too little for the states that the run has saved; raise it, or start in another run.dir"
            )
        # A new store comes after the plan: what does not fit is refused before the model is read and copied.
        store = store or make_store(config, parts, whole, report, plan=plan, workload=workload)
        machinery = build_machinery(parts, store, optimizer_settings(config), profile, workload=workload, plan=plan)
        commits = Commits(store, workload.host_extents)
        engine = Engine(
            seed=config.run.seed,
            budget=budget,
            settings=optimizer_settings(config),
            parts=parts,
            store=store,
            commits=commits,
            machinery=machinery,
            pending=Pending(machinery.schedules),
            finished_step=commits.step,
        )
        on_failure.pop_all()
    return engine


def _require_isolation(model: CutModel, sample: Batch) -> None:
    """Packed documents must not see each other.

    Raises:
        ConfigError: this model takes no positions, or does not keep documents apart by them.
    """
    packed = next((batch for batch in sample.micro_batches if _holds_several_documents(batch)), None)
    if packed is None:
        return
    takes_positions = "position_ids" in signature(model.model.forward).parameters
    if not takes_positions or not isolates_documents(model, packed):
        # Torch's kernels are given a mask; flash-attn finds out about documents only if the model hands that on.
        remedy = "model.attention: sdpa, or " if takes_positions and model.attention is Attention.FLASH else ""
        raise ConfigError(
            f"data.packing: {type(model.model).__name__} does not keep packed samples apart: each would see those "
            f"before it in its row; set {remedy}data.packing: false"
        )


def _holds_several_documents(batch: Mapping[str, Tensor]) -> bool:
    return "position_ids" in batch and bool((batch["position_ids"][:, 1:] == 0).any())


def _budget(config: Config, profile: Profile, storage: Storage) -> Budget:
    """What the user allows, or what is free; the run's own extents count as free."""
    device = resolve_device(config.run.device)
    return make_budget(
        {
            Tier.GPU: min(profile.machine.gpu_bytes, free_device_bytes(device)),
            Tier.HOST: psutil.virtual_memory().available,
            Tier.SSD: storage.capacity().free_bytes + sum(storage.extents().values()),
        },
        limits_of(config),
        one_memory=device.type == "cpu",
    )
