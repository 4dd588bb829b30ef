"""Two plans without a choice: keep nothing, and keep everything. The oracles of the planners that choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Workload
from lohan_core.profile import Role

if TYPE_CHECKING:
    from lohan_core.profile import BlockProfile, Profile

__all__ = ["KEEP_ALL", "KEEP_NOTHING", "KeepAllConfig", "KeepNothingConfig"]


@frozen(kw_only=True)
class KeepNothingConfig:
    """Where things wait; the planner itself decides only what is kept. Updates that must wait are deferred if they may.

    Attributes:
        states: Where weights and optimizer states live: `ssd`, `host`, or `gpu` for those of layers, with the others in
            host memory.
        inputs: Where each block's input waits for backward: `gpu`, `host` or `ssd`.
    """

    states: Tier = Tier.SSD
    inputs: Tier = Tier.HOST


@frozen(kw_only=True)
class KeepAllConfig(KeepNothingConfig):
    """As `keep_nothing`, and where what is kept waits.

    Attributes:
        candidates: Where the operators' outputs wait: `gpu`, `host` or `ssd`.
    """

    candidates: Tier = Tier.GPU


class _ReferencePlanner(Planner):
    def __init__(self, config: KeepNothingConfig, name: str, candidates: Tier | None) -> None:
        """``candidates``: where they are kept; None if they are not."""
        self._config = config
        self._name = name
        self._candidates = candidates

    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Make the one plan there is, or raise PlanError if it does not fit."""
        from lohan_core.evaluate import require_feasible

        plan = Plan(planner=self._name, blocks=tuple(self._decide(block, workload) for block in profile.blocks))
        return require_feasible(plan, profile, workload, budget)

    def _decide(self, block: BlockProfile, workload: Workload) -> BlockPlan:
        config = self._config
        states = config.states
        if states is Tier.GPU and block.role is not Role.LAYER:
            states = Tier.HOST
        kept = {} if self._candidates is None else dict.fromkeys((c.index for c in block.candidates), self._candidates)
        return BlockPlan(
            states=states,
            inputs=config.inputs,
            keep=kept,
            gradients=Tier.SSD if states is Tier.SSD else Tier.HOST,
            deferred=workload.clips and workload.may_defer,
        )


def _open_keep_nothing(config: KeepNothingConfig) -> Planner:
    return _ReferencePlanner(config, "keep_nothing", None)


def _open_keep_all(config: KeepAllConfig) -> Planner:
    return _ReferencePlanner(config, "keep_all", config.candidates)


KEEP_NOTHING: PlannerBackend = PlannerBackend(
    name="keep_nothing",
    summary="keeps block inputs only and recomputes every operator",
    config=KeepNothingConfig,
    open=_open_keep_nothing,
)

KEEP_ALL: PlannerBackend = PlannerBackend(
    name="keep_all",
    summary="keeps every operator's output and recomputes nothing",
    config=KeepAllConfig,
    open=_open_keep_all,
)
