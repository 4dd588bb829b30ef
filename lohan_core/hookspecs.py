"""The four hooks. Each takes nothing and yields records; a plugin may implement any of them, any number of times."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from lohan_core.interfaces.optimizer import OptimizerBackend
from lohan_core.interfaces.planner import PlannerBackend
from lohan_core.interfaces.profiler import ProfilerBackend
from lohan_core.interfaces.storage import StorageBackend

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "lohan"
"""pluggy's project name, and the entry-point group in which plugins register."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lohan_storage() -> Iterable[StorageBackend]:  # type: ignore[empty-body]
    """Offer storage backends."""


@hookspec
def lohan_optimizer() -> Iterable[OptimizerBackend]:  # type: ignore[empty-body]
    """Offer optimizer backends."""


@hookspec
def lohan_planner() -> Iterable[PlannerBackend]:  # type: ignore[empty-body]
    """Offer planner backends."""


@hookspec
def lohan_profiler() -> Iterable[ProfilerBackend]:  # type: ignore[empty-body]
    """Offer profiler backends."""
