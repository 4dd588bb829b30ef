"""``compare_on``: planners on a machine that is known by its rates. Nothing is measured, and nothing is run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from lohan_core.backend import Kind
from lohan_core.compare.planners import open_planners
from lohan_core.compare.predict import predict_all
from lohan_core.compare.records import Comparison
from lohan_core.config.sections import Config
from lohan_core.engine.derive import Outline
from lohan_core.engine.states import StateFormat
from lohan_core.hardware import Hardware
from lohan_core.progress import Report
from lohan_core.registry import Registry

__all__ = ["compare_on"]


def compare_on(
    hardware: Hardware, config: Config, planners: Sequence[str], registry: Registry, report: Report
) -> Comparison:
    """Predict each planner's step on a machine that is known by its rates, from the model's config alone.

    Raises:
        LohanError: config, model or a planner is not usable.
    """
    opened = open_planners(planners, config, registry)
    optimizer = registry.open_backend(
        Kind.OPTIMIZER, config.optimizer.name, config.optimizer.settings, threads=os.cpu_count() or 1
    )
    dtype: torch.dtype = getattr(torch, config.run.dtype)
    outline = Outline.of(config)
    profile = outline.profile(
        hardware,
        micro_batch_size=config.run.micro_batch_size,
        sequence_length=config.data.sequence_length,
        states=StateFormat(optimizer, dtype).states,
        gpu_updates="cuda" in optimizer.gpu_types,
    )
    return predict_all(opened, profile, config, report)
