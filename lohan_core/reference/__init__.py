"""Plain backends of every kind: the oracles for tests, and what runs where no hardware is.

They are offered as a stranger's would be. Their records import without torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.optimizer import OptimizerBackend
from lohan_core.interfaces.planner import PlannerBackend
from lohan_core.interfaces.profiler import ProfilerBackend
from lohan_core.interfaces.storage import StorageBackend
from lohan_core.reference.memory_storage import MEMORY
from lohan_core.reference.mixed_planner import MIXED
from lohan_core.reference.planners import KEEP_ALL, KEEP_NOTHING
from lohan_core.reference.profilers import FILE, MEASURED
from lohan_core.reference.torch_adamw import TORCH_ADAMW

__all__ = ["lohan_optimizer", "lohan_planner", "lohan_profiler", "lohan_storage"]


@hookimpl
def lohan_storage() -> Iterable[StorageBackend]:
    """Offer ``memory``."""
    yield MEMORY


@hookimpl
def lohan_optimizer() -> Iterable[OptimizerBackend]:
    """Offer ``torch_adamw``."""
    yield TORCH_ADAMW


@hookimpl
def lohan_planner() -> Iterable[PlannerBackend]:
    """Offer ``keep_nothing``, ``keep_all`` and ``mixed``."""
    yield KEEP_NOTHING
    yield KEEP_ALL
    yield MIXED


@hookimpl
def lohan_profiler() -> Iterable[ProfilerBackend]:
    """Offer ``measured`` and ``file``."""
    yield MEASURED
    yield FILE
