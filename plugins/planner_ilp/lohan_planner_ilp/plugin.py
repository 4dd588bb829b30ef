"""Registers ``ilp`` and ``checkmate``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from lohan_core.hookspecs import hookimpl
from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_planner_ilp.config import CheckmateConfig, IlpConfig


def _open_ilp(config: IlpConfig) -> Planner:
    from lohan_planner_ilp.planner import ilp

    return ilp(config)


def _open_checkmate(config: CheckmateConfig) -> Planner:
    from lohan_planner_ilp.planner import checkmate

    return checkmate(config)


def _probe() -> str | None:
    if find_spec("highspy") is None:
        return "highspy, the solver HiGHS, is not installed; pip install 'lohan[ilp]'"
    return None


@hookimpl
def lohan_planner() -> Iterable[PlannerBackend]:
    """Offer ``ilp`` and ``checkmate``."""
    yield PlannerBackend(
        name="ilp",
        summary="integer linear program over every choice: optimal by the lane model",
        config=IlpConfig,
        open=_open_ilp,
        probe=_probe,
    )
    yield PlannerBackend(
        name="checkmate",
        summary="Checkmate's: integer linear program of recomputing or swapping to host memory",
        config=CheckmateConfig,
        open=_open_checkmate,
        probe=_probe,
    )
