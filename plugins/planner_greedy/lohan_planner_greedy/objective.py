"""What a search minimizes: the step's length as a strategy sees it, for many choices at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from attrs import define, evolve
from numpy.typing import NDArray

from lohan_core.equations import PaperTotals, paper_seconds, paper_totals
from lohan_core.lane_model import (
    Amounts,
    Phase,
    Resource,
    add_amounts,
    fixed_amounts,
    gradient_amounts,
    lane_seconds,
    state_amounts,
)
from lohan_core.plan import Budget
from lohan_planner_greedy.family import Choice, Family, HostCounts

__all__ = ["LaneObjective", "Objective", "PaperObjective"]

Floats = NDArray[np.float64]


class Objective(Protocol):
    """Predicts steps that keep the first ``kept`` items, of which ``moved`` bytes leave the GPU."""

    def seconds(self, kept: int, moved: float, spilled: Floats) -> Floats:
        """Return the step's length for each way to use host memory; ``spilled`` bytes go on to the drives in it."""


@define
class LaneObjective:
    """The core's lane model: every lane of the machine."""

    family: Family
    _fixed: Amounts
    _resources: frozenset[Resource]

    @classmethod
    def over(
        cls, family: Family, counts: HostCounts, resources: frozenset[Resource] = frozenset(Resource)
    ) -> LaneObjective:
        """Add up what the choices about states and gradients use; of what they use, only ``resources`` are seen."""
        profile, workload = family.profile, family.workload
        parts = [fixed_amounts(profile, workload)]
        for place, index in enumerate(family.block_order):
            on_ssd = (counts.states <= place).astype(float)
            parts.append({key: amount * on_ssd for key, amount in state_amounts(profile, workload, index).items()})
            waits = (counts.gradients <= place).astype(float)
            parts.append({key: amount * waits for key, amount in gradient_amounts(profile, workload, index).items()})
        return cls(family, add_amounts(parts), resources)

    def seconds(self, kept: int, moved: float, spilled: Floats) -> Floats:
        """Return the step's length for each way to use host memory."""
        decided = {
            (Phase.BACKWARD, Resource.GPU): self.family.recomputed_seconds[kept],
            (Phase.FORWARD, Resource.D2H): moved,
            (Phase.BACKWARD, Resource.H2D): moved,
            (Phase.FORWARD, Resource.WRITE): spilled,
            (Phase.BACKWARD, Resource.READ): spilled,
        }
        amounts = add_amounts([self._fixed, decided])
        seen = {key: amount for key, amount in amounts.items() if key[1] in self._resources}
        seconds = lane_seconds(seen, self.family.profile.machine, self.family.workload.update)
        return np.broadcast_to(seconds, spilled.shape)


@define
class PaperObjective:
    """The paper's equations: all states on the drives, and M is the whole host budget."""

    family: Family
    _totals: PaperTotals

    @classmethod
    def over(cls, family: Family, budget: Budget) -> PaperObjective:
        """Take the totals of the plan that keeps nothing outside the GPU."""
        nothing = family.plan("", Choice(kept=0, gpu_cut=0, host_cut=0, host_states=0, host_gradients=0))
        return cls(family, paper_totals(nothing, family.profile, family.workload, budget.host_bytes))

    def seconds(self, kept: int, moved: float, spilled: Floats) -> Floats:
        """Return the same length for each way to use host memory: the equations do not see what they differ in."""
        recomputed = float(self.family.recomputed_flops[kept])
        totals = evolve(self._totals, activation_bytes=moved, recomputed_flops=recomputed)
        return np.full(spilled.shape, paper_seconds(totals, self.family.profile.machine))
