"""``open_engine``: from a config to an engine that is ready for its first step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psutil
import torch
from attrs import frozen

from lohan_core.backend import Kind
from lohan_core.config.sections import Config, Durability
from lohan_core.engine.activations import Activations
from lohan_core.engine.buffers import Buffers
from lohan_core.engine.compute import Compute
from lohan_core.engine.engine import Engine
from lohan_core.engine.fill import fill_store
from lohan_core.engine.gradients import Gradients
from lohan_core.engine.lanes import Lanes
from lohan_core.engine.measure import free_device_bytes
from lohan_core.engine.packing import plan_packing
from lohan_core.engine.states import StateFormat, States
from lohan_core.engine.updates import Updates
from lohan_core.engine.weights import Weights
from lohan_core.errors import ConfigError
from lohan_core.evaluate import require_feasible
from lohan_core.interfaces.optimizer import Optimizer, OptimizerConfig
from lohan_core.interfaces.storage import Storage
from lohan_core.layout import round_up
from lohan_core.model.cut import CutModel, cut_model
from lohan_core.model.skeleton import build_skeleton, read_config
from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.profile import Profile, Subject
from lohan_core.registry import Registry, load_registry
from lohan_core.schedule.build import build_schedule, gradients_wait
from lohan_core.schedule.task import Lane
from lohan_core.states import chunk_alignment
from lohan_core.store import Store, StoreDirectory
from lohan_core.units import format_bytes
from lohan_core.weights import Checkpoint

if TYPE_CHECKING:
    from lohan_core.data.batches import Batch

__all__ = ["open_engine", "resolve_device"]

SCRATCH_PREFIX = "scratch/"

Report = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""


def open_engine(
    config: Config,
    sample: Batch,
    *,
    registry: Registry | None = None,
    identity: Mapping[str, str] | None = None,
    plan: Plan | None = None,
    report: Report = lambda *_: None,
) -> Engine:
    """Open a run: cut the model, open the backends, make or verify the store, measure, plan, and reserve all memory.

    Args:
        config: the run's config.
        sample: a batch like those to come: blocks are profiled with its first micro-batch, and buffers sized by it.
        registry: where backends are found; by default all installed plugins.
        identity: what else the store must agree on to be taken up again, beside model, optimizer and dtype.
        plan: carry this plan out instead of asking the planner.
        report: told how long steps go.

    Raises:
        LohanError: anything that the user can mend; the store is as it was.
    """
    registry = registry or load_registry()
    device = resolve_device(config.run.device)
    dtype: torch.dtype = getattr(torch, config.run.dtype)
    model_config = read_config(config.model.path, trust_remote_code=config.model.trust_remote_code)
    skeleton = build_skeleton(model_config, dtype, trust_remote_code=config.model.trust_remote_code)
    model = cut_model(skeleton)
    checkpoint = Checkpoint(config.model.path, skeleton)
    checkpoint.load_buffers()
    model.to(device)
    _cap_device_memory(config, device)
    optimizer = registry.open_backend(
        Kind.OPTIMIZER, config.optimizer.name, config.optimizer.settings, threads=os.cpu_count() or 1
    )
    form = StateFormat(optimizer, dtype)
    chunk_elements = round_up(config.memory.chunk // 4, chunk_alignment(form.vectors))
    with ExitStack() as on_failure:
        store, storage = _open_store(
            config, registry, model, form, checkpoint, chunk_elements, identity or {}, report, on_failure
        )
        subject = Subject(model=model, storage=storage, optimizer=optimizer, batch=sample)
        workload = _workload(config, sample, chunk_elements)
        profile = _profile(config, registry, subject)
        chosen = plan or _plan(config, registry, profile, workload, storage)
        engine = _assemble(
            config, _Parts(model, checkpoint, store, storage, optimizer, form), profile, workload, chosen
        )
        on_failure.pop_all()
    return engine


def resolve_device(name: str) -> torch.device:
    """Find the device that computes.

    Raises:
        ConfigError: it is a CUDA device that this machine has not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"run.device: {name}: torch sees no CUDA device here; set run.device: cpu")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device.index >= torch.cuda.device_count():
            raise ConfigError(f"run.device: {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


@frozen
class _Parts:
    """What is open when the plan is made."""

    model: CutModel
    checkpoint: Checkpoint
    store: Store
    storage: Storage
    optimizer: Optimizer
    form: StateFormat


def _cap_device_memory(config: Config, device: torch.device) -> None:
    if device.type == "cuda" and config.memory.gpu is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.memory.gpu / total), device)


def _open_store(
    config: Config,
    registry: Registry,
    model: CutModel,
    form: StateFormat,
    checkpoint: Checkpoint,
    chunk_elements: int,
    identity: Mapping[str, str],
    report: Report,
    on_failure: ExitStack,
) -> tuple[Store, Storage]:
    """Take the run's store up, or make it from the checkpoint."""
    directory = StoreDirectory.at(config.run.dir / "store")
    on_failure.callback(directory.close)
    storage = registry.open_backend(
        Kind.STORAGE,
        config.storage.name,
        config.storage.settings,
        namespace=directory.namespace,
        default_directory=config.run.dir / "store" / "extents",
    )
    on_failure.callback(storage.close)
    for name in [name for name in storage.extents() if name.startswith(SCRATCH_PREFIX)]:
        storage.free(name)  # of a process that was killed; its sizes may have been others
    whole = {**_identity(config, model, form), **identity}
    if directory.holds_commit:
        store = Store.open(
            directory, storage, whole, progress=lambda done, total: report("verifying the store", done, total)
        )
        on_failure.callback(store.close)
        return store, storage
    versions = 2 if config.run.durability is Durability.STEP else 1
    store = Store.create(
        directory, storage, form.extents(model.blocks), whole, versions=versions, checksums=config.run.checksums
    )
    on_failure.callback(store.close)
    fill_store(
        store,
        model.blocks,
        form,
        checkpoint,
        chunk_elements,
        lambda done, total: report("reading the model", done, total),
    )
    return store, storage


def _identity(config: Config, model: CutModel, form: StateFormat) -> dict[str, str]:
    """What a store's states depend on: another model, optimizer or dtype cannot go on with them."""
    layout = [[slot.name, slot.shape, slot.offset] for block in model.blocks for slot in block.slots]
    architecture = json.dumps([model.model.config.to_dict(), layout], sort_keys=True, default=str)
    fields = [f"{field.name}:{field.dtype}:{field.elements_per_value}" for field in form.fields]
    return {
        "model": hashlib.blake2b(architecture.encode(), digest_size=8).hexdigest(),
        "optimizer.backend": f"{config.optimizer.name} ({', '.join(fields)})",
        "run.dtype": str(config.run.dtype),
    }


def _workload(config: Config, sample: Batch, chunk_elements: int) -> Workload:
    settings = _optimizer_settings(config)
    return Workload(
        micro_batches=len(sample.micro_batches),
        update=config.run.update,
        clips=bool(settings.max_grad_norm),
        chunk_elements=chunk_elements,
        versions=2 if config.run.durability is Durability.STEP else 1,
    )


def _optimizer_settings(config: Config) -> OptimizerConfig:
    settings = config.optimizer.settings
    if not isinstance(settings, OptimizerConfig):
        raise ConfigError(
            f"optimizer.backend: {config.optimizer.name}: its config class {type(settings).__name__} does not derive from "
            "OptimizerConfig; tell its author"
        )
    return settings


def _profile(config: Config, registry: Registry, subject: Subject) -> Profile:
    profiler = registry.open_backend(Kind.PROFILER, config.profiler.name, config.profiler.settings)
    return profiler.profile(subject)


def _plan(config: Config, registry: Registry, profile: Profile, workload: Workload, storage: Storage) -> Plan:
    planner = registry.open_backend(Kind.PLANNER, config.planner.name, config.planner.settings)
    budget = _budget(config, profile, storage)
    return require_feasible(planner.plan(profile, budget, workload), profile, workload, budget)


def _budget(config: Config, profile: Profile, storage: Storage) -> Budget:
    """What the user allows, or what is free; the run's own extents count as free."""
    memory = config.memory
    free_host = psutil.virtual_memory().available
    device = resolve_device(config.run.device)
    own = sum(storage.extents().values())
    return Budget(
        gpu_bytes=min(memory.gpu or profile.machine.gpu_bytes, free_device_bytes(device)),
        host_bytes=min(memory.host or free_host, free_host),
        ssd_bytes=min(memory.ssd or 1 << 62, storage.capacity().free_bytes + own),
    )


def _assemble(config: Config, parts: _Parts, profile: Profile, workload: Workload, plan: Plan) -> Engine:
    """Reserve all memory and wire the actions of every task."""
    device, dtype, blocks = parts.model.device, parts.model.dtype, parts.model.blocks
    pin = device.type == "cuda"
    settings = _optimizer_settings(config)
    schedule = build_schedule(plan, profile, workload)
    buffers = Buffers(schedule, device)
    states = States(blocks, plan, parts.form, parts.store, workload.chunk_elements, pin=pin)
    lanes = Lanes(device)
    weights = Weights(blocks, states, buffers, dtype)
    gradients = Gradients(blocks, buffers, dtype)
    compute = Compute(parts.model, plan, weights, gradients, device)
    streams = {lane: stream for lane in Lane if (stream := lanes.stream(lane)) is not None}
    packings = [plan_packing(block, decisions) for block, decisions in zip(profile.blocks, plan.blocks, strict=True)]
    activations = Activations(packings, workload.micro_batches, buffers, parts.storage, device, streams)
    updates = Updates(
        blocks,
        plan,
        states,
        gradients,
        buffers,
        parts.optimizer,
        parts.storage,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        waits=gradients_wait(workload),
        pin=pin,
    )
    parts.storage.register([buffers.host_arena])
    return Engine(
        model=parts.model,
        plan=plan,
        profile=profile,
        workload=workload,
        schedule=schedule,
        description=(
            f"storage: {parts.storage.describe()}",
            f"optimizer: {parts.optimizer.describe()}",
            f"plan: {plan.planner}; " + ", ".join(f"{format_bytes(schedule.bytes_on(t))} on {t}" for t in Tier),
        ),
        seed=config.run.seed,
        checkpoint=parts.checkpoint,
        states=states,
        storage=parts.storage,
        lanes=lanes,
        compute=compute,
        activations=activations,
        updates=updates,
        actions={**weights.actions, **compute.actions, **activations.actions, **updates.actions},
        finished_step=parts.store.committed_step,
    )
