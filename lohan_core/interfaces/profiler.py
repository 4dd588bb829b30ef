"""Profiler: produces a profile, by measuring this machine and model or by reading one measured elsewhere.

A backend's ``open`` is called as ``open(config)`` and returns the profiler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from lohan_core.backend import Backend
from lohan_core.progress import Report, say_nothing

if TYPE_CHECKING:
    from lohan_core.data.batches import Batch
    from lohan_core.interfaces.optimizer import Optimizer
    from lohan_core.interfaces.storage import Storage
    from lohan_core.model.cut import CutModel
    from lohan_core.profile import Profile

__all__ = ["Profiler", "ProfilerBackend", "Subject"]


@frozen(kw_only=True)
class Subject:
    """What a profiler is given to measure: the model as cut, the opened backends, and one batch of the run's data.

    ``chunk_elements`` is how many parameters a step updates at once. ``report`` is told how far the profiler is: what
    is being done, and how much of how much is done.
    """

    model: CutModel
    storage: Storage
    optimizer: Optimizer
    batch: Batch
    chunk_elements: int
    report: Report = say_nothing


class Profiler(ABC):
    """Finds out what a planner needs to know."""

    @abstractmethod
    def profile(self, subject: Subject) -> Profile:
        """Measure or read the facts about ``subject``: the model as cut, the opened storage and optimizer, one batch.

        Raises:
            ConfigError: a profile file is missing, malformed, or of another model.
        """


ProfilerBackend: TypeAlias = Backend[Profiler]
