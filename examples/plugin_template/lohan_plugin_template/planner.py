"""Planner ``keep_costly``: keeps in host memory the operators' outputs that cost most time per byte."""

from __future__ import annotations

from attrs import evolve

from lohan_core.evaluate import evaluate, require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile


class KeepCostly(Planner):
    """Tries to keep the costliest output, then the two costliest, and so on; takes the shortest step that fits.

    A larger budget lets more of these plans fit and none fewer, so that its step is never longer.
    """

    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Decide; raise PlanError if not even keeping nothing fits."""
        # Updates that must wait for the norm had better run in the next forward than after backward, if they may.
        deferred = workload.clips and workload.may_defer
        blocks = tuple(BlockPlan(states=Tier.SSD, deferred=deferred) for _ in profile.blocks)
        best = require_feasible(Plan(planner="keep_costly", blocks=blocks), profile, workload, budget)
        shortest = evaluate(best, profile, workload, budget).seconds
        candidates = [(number, c) for number, block in enumerate(profile.blocks) for c in block.candidates]
        keep: list[dict[int, Tier]] = [{} for _ in profile.blocks]
        for number, candidate in sorted(candidates, key=lambda pair: pair[1].seconds / pair[1].bytes, reverse=True):
            keep[number][candidate.index] = Tier.HOST
            plan = evolve(best, blocks=tuple(evolve(b, keep=k) for b, k in zip(blocks, keep, strict=True)))
            grade = evaluate(plan, profile, workload, budget)
            if grade.feasible and grade.seconds < shortest:
                best, shortest = plan, grade.seconds
        return best
