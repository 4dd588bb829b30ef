"""Registers ``greedy`` and the strategies it is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_planner_greedy.config import GreedyConfig, StrategyConfig

_STRATEGIES = {
    "zero": "ZeRO-Infinity's: block inputs to host memory, the rest recomputed",
    "capuchin": "Capuchin's: keep, recompute or swap to host memory, by measured cost",
    "g10": "G10's: keep everything on the GPU or the drives, recompute nothing",
    "recompute_all": "activation checkpointing: block inputs on the GPU, the rest recomputed",
}


def _open(name: str, config: GreedyConfig | StrategyConfig) -> Planner:
    from lohan_planner_greedy import planner

    opened: Planner = getattr(planner, name)(config)
    return opened


@hookimpl
def lohan_planner() -> Iterable[PlannerBackend]:
    """Offer ``greedy``, ``zero``, ``capuchin``, ``g10`` and ``recompute_all``."""
    yield PlannerBackend(
        name="greedy",
        summary="LoHan's: keeps what saves most recomputation per byte while that shortens the step",
        config=GreedyConfig,
        open=partial(_open, "greedy"),
    )
    for name, summary in _STRATEGIES.items():
        yield PlannerBackend(name=name, summary=summary, config=StrategyConfig, open=partial(_open, name))
