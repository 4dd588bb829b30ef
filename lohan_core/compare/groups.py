"""Which plans are carried out side by side: those that fit into the machine together. Pure arithmetic.

Steps that are taken in turn, one of each plan, meet the same machine: what slows it for a while slows all of them. But
every plan was made for the whole machine, and two of them may not fit at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lohan_core.plan import Budget, Tier

__all__ = ["group_by_memory"]


def group_by_memory(needs: Mapping[str, Mapping[Tier, int]], budget: Budget) -> tuple[tuple[str, ...], ...]:
    """Put each plan into the first group that has room for it on every tier, or into a new one.

    Args:
        needs: by planner, the bytes that its plan takes on each tier.
        budget: what there is.
    """
    groups: list[list[str]] = []
    for planner in needs:
        for group in groups:
            if _fit([needs[name] for name in (*group, planner)], budget.by_tier):
                group.append(planner)
                break
        else:
            groups.append([planner])
    return tuple(tuple(group) for group in groups)


def _fit(needs: Sequence[Mapping[Tier, int]], room: Mapping[Tier, int]) -> bool:
    taken = {tier: sum(need[tier] for need in needs) for tier in Tier}
    return all(taken[tier] <= room[tier] for tier in Tier)
