"""``export_run``: a stopped run's last durable model as a Hugging Face directory, without an engine."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import evolve

from lohan_core.config.sections import Config
from lohan_core.engine.parts import open_parts, store_identity, take_up_store
from lohan_core.engine.states import parameters_in_store
from lohan_core.model.choices import Attention, Loss
from lohan_core.progress import Report
from lohan_core.registry import Registry
from lohan_core.weights import write_model

__all__ = ["export_run"]


def export_run(config: Config, out: Path, dtype: torch.dtype, *, registry: Registry, report: Report) -> int:
    """Write the model of a run's last durable step.

    Args:
        config: the run's config, as its directory holds it.
        out: a directory that does not exist, or is empty.
        dtype: of the parameters written.
        registry: where backends are found.
        report: told how long steps go.

    Returns:
        The step.

    Raises:
        LohanError: there is no such run, it is in use, its model is another by now, or ``out`` cannot be written.
    """
    # How the model attends and finds its loss does not matter here, and may need a GPU.
    config = evolve(config, model=evolve(config.model, attention=Attention.AUTO, loss=Loss.WHOLE))
    parts = open_parts(config, registry, torch.device("cpu"), existing=True)
    try:
        # The data that the run was given are not looked at; the model is: its config and buffers are written too.
        identity = {**parts.directory.manifest.identity, **store_identity(config, parts)}
        store = take_up_store(parts, identity, report)
        blocks = parameters_in_store(store, parts.model.blocks, parts.form, parts.chunk_elements, dtype)
        write_model(out, blocks, parts.checkpoint, dtype)
        return store.committed_step
    finally:
        parts.close()
