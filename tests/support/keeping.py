"""Problems in which keeping an output costs forward time."""

from __future__ import annotations

from attrs import evolve

from lohan_core.testing.planner_problems import Problem


def that_keeps_dearly(problem: Problem) -> Problem:
    """Let every candidate cost forward a twentieth of what recomputing it costs backward."""
    blocks = tuple(
        evolve(block, candidates=tuple(evolve(c, keeping_seconds=c.seconds / 20) for c in block.candidates))
        for block in problem.profile.blocks
    )
    return evolve(problem, profile=evolve(problem.profile, blocks=blocks))
