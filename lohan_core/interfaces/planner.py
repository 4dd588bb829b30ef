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
    """Decides where every state and every candidate lives, and whose updates are deferred if the workload lets them.

    It is asked several times for one run: for other micro-batches (a search for the best batch), with fewer slots where
    else nothing fits, and, for updates on speculation, with two versions of the states on the drives and with three.
    """

    @abstractmethod
    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Decide. The same arguments always give the same plan; a larger budget never one that it takes to be slower.

        Args:
            profile: what is known of machine and model.
            budget: bytes that the plan may take on each tier. Those that a plan takes are enough for it.
            workload: what one step does, and with how many slots and versions.

        Returns:
            A plan whose ``planner`` is the backend's name.

        Raises:
            PlanError: nothing that this planner would choose fits; the message names tier and bytes missing.
        """


PlannerBackend: TypeAlias = Backend[Planner]
