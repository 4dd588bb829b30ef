"""Planner: a pure function of (profile, budget, workload) to a plan. It never measures and never allocates.

A backend's ``open`` is called as ``open(config)`` and returns the planner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeAlias

from lohan_core.backend import Backend

if TYPE_CHECKING:
    from lohan_core.plan import Budget, Plan, Workload
    from lohan_core.profile import Profile

__all__ = ["Planner", "PlannerBackend"]


class Planner(ABC):
    """Decides where every state and every candidate lives, and whose updates are deferred if the workload lets them."""

    @abstractmethod
    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Decide. The same arguments always give the same plan.

        Raises:
            PlanError: nothing that this planner would choose fits; the message names tier and bytes missing.
        """


PlannerBackend: TypeAlias = Backend[Planner]
