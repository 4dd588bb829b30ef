"""Which deferred updates are made beside backward already, on the speculation that gradients will not be clipped."""

from __future__ import annotations

from attrs import evolve

from lohan_core.evaluate import TimeModel, evaluate, simulate_step
from lohan_core.plan import VERSIONS_TO_SPECULATE, BlockPlan, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile

__all__ = ["with_speculation"]

SHARES = 8
"""So many numbers of speculative updates are tried."""


def with_speculation(plan: Plan, profile: Profile, workload: Workload, budget: Budget) -> Plan:
    """Mark those updates of a plan as speculative that make a step which is not clipped shortest.

    Backward comes to the last blocks first, and what is updated last may as well be deferred: it hides in forward. So
    it is the blocks from the last one on of whose states there can be a copy; how many, the simulation says. Where the
    planner has marked some itself, it is those.
    """
    if any(decided.speculative for decided in plan.blocks):
        return plan
    able = _able(plan, profile, workload, budget)
    best, least_seconds = plan, simulate_step(plan, profile, workload).seconds
    for share in range(1, SHARES + 1):
        chosen = set(able[: len(able) * share // SHARES])
        blocks = [evolve(decided, speculative=i in chosen) for i, decided in enumerate(plan.blocks)]
        tried = evolve(plan, blocks=tuple(blocks))
        seconds = simulate_step(tried, profile, workload).seconds
        if seconds < least_seconds:
            best, least_seconds = tried, seconds
    return best


def _able(plan: Plan, profile: Profile, workload: Workload, budget: Budget) -> list[int]:
    """Blocks whose updates can be taken back, in backward's order: as many in host memory as there is room for."""
    able: list[int] = []
    copied = plan
    for index in reversed(range(len(plan.blocks))):
        decided = plan.blocks[index]
        if decided.states is Tier.GPU or not decided.deferred or not profile.blocks[index].elements:
            continue
        if decided.states is Tier.SSD and workload.versions < VERSIONS_TO_SPECULATE:
            continue
        tried = _with(copied, index, evolve(decided, speculative=True))
        if evaluate(tried, profile, workload, budget, TimeModel.LANES).feasible:
            copied = tried
            able.append(index)
    return able


def _with(plan: Plan, index: int, decided: BlockPlan) -> Plan:
    return evolve(plan, blocks=(*plan.blocks[:index], decided, *plan.blocks[index + 1 :]))
