"""Profiler: produces a profile, by measuring this machine and model or by reading one measured elsewhere.

A backend's ``open`` is called as ``open(config)`` and returns the profiler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeAlias

from lohan_core.backend import Backend

if TYPE_CHECKING:
    from lohan_core.profile import Profile, Subject

__all__ = ["Profiler", "ProfilerBackend"]


class Profiler(ABC):
    """Finds out what a planner needs to know."""

    @abstractmethod
    def profile(self, subject: Subject) -> Profile:
        """Measure or read the facts about ``subject``: the model as cut, the opened storage and optimizer, one batch.

        Raises:
            ConfigError: a profile file is missing, malformed, or of another model.
        """


ProfilerBackend: TypeAlias = Backend[Profiler]
