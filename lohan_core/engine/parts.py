"""The parts of a run that exist before a plan does: model, checkpoint, storage, optimizer, store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from attrs import define

from lohan_core.backend import Kind
from lohan_core.config.sections import Config, FirstWeights
from lohan_core.engine.cores import update_threads
from lohan_core.engine.device_memory import cap_device_memory, out_of_memory_told
from lohan_core.engine.fill import fill_store
from lohan_core.engine.model import build_model, place_model
from lohan_core.engine.states import StateFormat
from lohan_core.interfaces.optimizer import Optimizer
from lohan_core.interfaces.storage import Storage
from lohan_core.model.attention import AttentionChoice
from lohan_core.model.cut import CutModel
from lohan_core.plan import Plan, Tier, Workload
from lohan_core.planning_inputs import chunk_elements
from lohan_core.progress import Report
from lohan_core.registry import Registry
from lohan_core.store import Store, StoreDirectory
from lohan_core.weights import Checkpoint, RandomWeights, WeightSource

__all__ = [
    "Parts",
    "free_scratch",
    "make_store",
    "open_optimizer",
    "open_parts",
    "open_storage",
    "store_identity",
    "store_path",
    "take_up_store",
]

SCRATCH_PREFIX = "scratch/"
"""Extents so named are worth nothing when the process ends."""


@define(kw_only=True)
class Parts:
    """What is open when the plan is made. ``chunk_elements`` is the config's chunk, rounded up to what states allow."""

    model: CutModel
    attention: AttentionChoice
    checkpoint: WeightSource
    directory: StoreDirectory
    storage: Storage
    optimizer: Optimizer
    form: StateFormat
    chunk_elements: int

    def describe(self) -> tuple[str, ...]:
        """Say what attention (and whether layers are compiled), storage and optimizer are; a line each."""
        compiled = "" if self.model.compiled is None else "; layers are compiled"
        return (
            f"attention: {self.attention.describe()}{compiled}",
            f"storage: {self.storage.describe()}",
            f"optimizer: {self.optimizer.describe()}",
        )

    def close(self) -> None:
        """Close the storage and let go of the store's lock. A second call does nothing."""
        try:
            self.storage.close()
        finally:
            self.directory.close()


def open_parts(config: Config, registry: Registry, device: torch.device, *, existing: bool = False) -> Parts:
    """Open a run's parts, and lock its store.

    Args:
        config: the run's config.
        registry: where backends are found.
        device: where buffers of the model go.
        existing: refuse a run that has no store.

    Raises:
        LohanError: anything that the user can mend. Nothing is left open then.
    """
    cap_device_memory(config, device)
    with out_of_memory_told(config.model.loss):
        model, checkpoint, attention = _open_model(config, device)
    optimizer = open_optimizer(config, registry, device)
    form = StateFormat(optimizer, model.dtype)
    path = store_path(config)
    directory = StoreDirectory.existing(path) if existing else StoreDirectory.at(path)
    with ExitStack() as on_failure:
        on_failure.callback(directory.close)
        storage = open_storage(config, registry, directory)
        on_failure.pop_all()
    return Parts(
        model=model,
        attention=attention,
        checkpoint=checkpoint,
        directory=directory,
        storage=storage,
        optimizer=optimizer,
        form=form,
        chunk_elements=chunk_elements(config, form.vectors),
    )


def take_up_store(parts: Parts, identity: Mapping[str, str], report: Report) -> Store:
    """Open the store that was committed, and verify it.

    Raises:
        StoreError: of another identity, or damaged.
    """
    return Store.open(
        parts.directory,
        parts.storage,
        identity,
        progress=lambda done, total: report("verifying the store", done, total),
    )


def make_store(
    config: Config, parts: Parts, identity: Mapping[str, str], report: Report, *, plan: Plan, workload: Workload
) -> Store:
    """Make the store from the checkpoint, with extents for those blocks' states that the plan leaves or saves there.

    Raises:
        LohanError: too little space, a drive that failed, or a checkpoint that cannot be read.
    """
    stored = [
        block
        for block, decisions in zip(parts.model.blocks, plan.blocks, strict=True)
        if decisions.states is Tier.SSD or workload.host_extents
    ]
    store = Store.create(
        parts.directory,
        parts.storage,
        parts.form.extents(stored),
        identity,
        versions=workload.versions,
        checksums=config.run.checksums,
    )
    fill_store(
        store, parts.model.blocks, parts.form, parts.checkpoint, chunk_elements=parts.chunk_elements, report=report
    )
    if workload.host_extents:
        store.commit(0, {})
    return store


def store_path(config: Config) -> Path:
    """Directory of the run's manifest and lock."""
    return config.run.dir / "store"


def store_identity(config: Config, parts: Parts) -> dict[str, str]:
    """What a store's states depend on: another model, optimizer or dtype cannot go on with them.

    Where the model lies does not matter, and neither does the version of transformers that reads it.
    """
    layout = [[slot.name, slot.shape, slot.offset] for block in parts.model.blocks for slot in block.slots]
    architecture = json.dumps([_lasting(parts.model.model.config.to_dict()), layout], sort_keys=True, default=str)
    fields = [f"{field.name}:{field.dtype}:{field.elements_per_value}" for field in parts.form.fields]
    return {
        "model (config)": hashlib.blake2b(architecture.encode(), digest_size=8).hexdigest(),
        "model (weights)": parts.checkpoint.fingerprint(),
        "optimizer.backend": f"{config.optimizer.name} ({', '.join(fields)})",
        "run.dtype": str(config.run.dtype),
        "run.durability": str(config.run.durability),
        "run.checksums": str(config.run.checksums),
    }


def _lasting(config: Any) -> Any:
    """Leave out of a model's config what changes when the model is moved or transformers is updated."""
    if not isinstance(config, dict):
        return config
    passing = {"_name_or_path", "transformers_version"}
    return {key: _lasting(value) for key, value in config.items() if key not in passing}


def _open_model(config: Config, device: torch.device) -> tuple[CutModel, WeightSource, AttentionChoice]:
    model, attention = build_model(config, device)
    checkpoint: WeightSource
    if config.model.weights is FirstWeights.RANDOM:
        checkpoint = RandomWeights(config.model.path, model.model, seed=config.run.seed, device=device)
    else:
        checkpoint = Checkpoint(config.model.path, model.model)
    checkpoint.load_buffers()
    place_model(model, device)
    return model, checkpoint, attention


def open_optimizer(config: Config, registry: Registry, device: torch.device) -> Optimizer:
    """Open the optimizer of a run that computes on ``device``."""
    optimizer: Optimizer = registry.open_backend(
        Kind.OPTIMIZER, config.optimizer.name, config.optimizer.settings, threads=update_threads(device)
    )
    return optimizer


def open_storage(config: Config, registry: Registry, directory: StoreDirectory) -> Storage:
    """Open the storage of a run whose directory is held, and free what is scratch of a process that was killed."""
    storage: Storage = registry.open_backend(
        Kind.STORAGE,
        config.storage.name,
        config.storage.settings,
        namespace=directory.namespace,
        default_directory=directory.path / "extents",
    )
    with ExitStack() as on_failure:
        on_failure.callback(storage.close)
        free_scratch(storage)
        on_failure.pop_all()
    return storage


def free_scratch(storage: Storage) -> None:
    """Free what is worth nothing any more: of a process that was killed, or of another plan."""
    for name in [name for name in storage.extents() if name.startswith(SCRATCH_PREFIX)]:
        storage.free(name)
