"""Which deferred updates are made beside backward already, on the speculation that gradients will not be clipped."""

from __future__ import annotations

from attrs import evolve

from lohan_core.evaluate import simulate_step
from lohan_core.plan import VERSIONS_TO_SPECULATE, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_core.schedule.build import build_memory
from lohan_core.schedule.sizes import states_bytes

__all__ = ["with_speculation"]

SHARES = 8
"""So many numbers of speculative updates are tried, at even distances."""


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
    for count in sorted({len(able) * share // SHARES for share in range(1, SHARES + 1)} - {0}):
        chosen = set(able[:count])
        blocks = [evolve(decided, speculative=i in chosen) for i, decided in enumerate(plan.blocks)]
        tried = evolve(plan, blocks=tuple(blocks))
        seconds = simulate_step(tried, profile, workload).seconds
        if seconds < least_seconds:
            best, least_seconds = tried, seconds
    return best


def _able(plan: Plan, profile: Profile, workload: Workload, budget: Budget) -> list[int]:
    """Blocks whose updates can be taken back, in backward's order: as many in host memory as there is room for."""
    able: list[int] = []
    room_bytes = budget.host_bytes - build_memory(plan, profile, workload).bytes_on(Tier.HOST)
    for index in reversed(range(len(plan.blocks))):
        decided, block = plan.blocks[index], profile.blocks[index]
        if decided.states is Tier.GPU or not decided.deferred or not block.elements:
            continue
        if decided.states is Tier.SSD and workload.versions < VERSIONS_TO_SPECULATE:
            continue
        copy_bytes = states_bytes(block, profile) if decided.states is Tier.HOST else 0
        if copy_bytes <= room_bytes:
            room_bytes -= copy_bytes
            able.append(index)
    return able
