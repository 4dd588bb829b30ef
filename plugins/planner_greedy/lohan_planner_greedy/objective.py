"""What a search minimizes: the step's length as a strategy sees it, for many choices at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from attrs import define, evolve
from numpy.typing import NDArray

from lohan_core.equations import PaperTotals, paper_seconds, paper_totals
from lohan_core.lane_amounts import (
    Amounts,
    Phase,
    Resource,
    add_amounts,
    fixed_amounts,
    gpu_state_amounts,
    gradient_amounts,
    state_amounts,
    update_amounts,
)
from lohan_core.lane_model import lane_seconds
from lohan_core.plan import Budget
from lohan_planner_greedy.choices import BlockCounts, Choice
from lohan_planner_greedy.family import Family

__all__ = ["LaneObjective", "Objective", "PaperObjective"]

Floats = NDArray[np.float64]


class Objective(Protocol):
    """Predicts steps that keep the first ``kept`` items, of which ``moved`` bytes leave the GPU."""

    def seconds(self, kept: int, moved: float, spilled: Floats) -> Floats:
        """Return the step's length for each way to decide about blocks; ``spilled`` bytes go on to the drives in it."""


@define
class LaneObjective:
    """The core's lane model: every lane of the machine."""

    family: Family
    _fixed: Amounts
    _resources: frozenset[Resource]

    @classmethod
    def over(
        cls, family: Family, counts: BlockCounts, resources: frozenset[Resource] = frozenset(Resource)
    ) -> LaneObjective:
        """Add up what the choices about blocks use; of what they use, only ``resources`` are seen."""
        profile, workload = family.profile, family.workload
        parts = [fixed_amounts(profile, workload)]
        for place, index in enumerate(family.block_order):
            deferred_here = counts.deferred >= len(profile.blocks) - place
            for deferred, so in ((False, ~deferred_here), (True, deferred_here)):
                parts.append(_where(so, update_amounts(profile, workload, index, deferred=deferred)))
                if index in family.on_gpu:
                    parts.append(_where(so, gpu_state_amounts(profile, workload, index, deferred=deferred)))
                    continue
                on_ssd = so & (counts.states <= place)
                parts.append(_where(on_ssd, state_amounts(profile, workload, index, deferred=deferred)))
                wait_on_ssd = so & (counts.gradients <= place)
                parts.append(_where(wait_on_ssd, gradient_amounts(profile, workload, index, deferred=deferred)))
        return cls(family, add_amounts(parts), resources)

    def seconds(self, kept: int, moved: float, spilled: Floats) -> Floats:
        """Return the step's length for each way to decide about blocks."""
        decided = {
            (Phase.FORWARD, Resource.GPU): self.family.keeping_seconds[kept],
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
        choice = Choice(kept=0, gpu_cut=0, host_cut=0, host_states=0, host_gradients=0, deferred=0)
        nothing = family.plan("", choice)
        return cls(family, paper_totals(nothing, family.profile, family.workload, budget.host_bytes))

    def seconds(self, kept: int, moved: float, spilled: Floats) -> Floats:
        """Return the same length for each way to decide about blocks: the equations do not see what they differ in."""
        recomputed = float(self.family.recomputed_flops[kept])
        totals = evolve(self._totals, activation_bytes=moved, recomputed_flops=recomputed)
        return np.full(spilled.shape, paper_seconds(totals, self.family.profile.machine))


def _where(mask: NDArray[np.bool_], amounts: Amounts) -> Amounts:
    """Use the amounts in the choices that the mask names, and nothing in the others."""
    chosen = mask.astype(np.float64)
    return {key: amount * chosen for key, amount in amounts.items()}
