"""Everything that ``lohan plan`` answers, as one plain object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, frozen

from lohan_core.forecast.advise import BatchAdvice
from lohan_core.forecast.forecast import Forecast
from lohan_core.forecast.parts import Part
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.profile import Profile

__all__ = ["LargestModel", "PlanReport", "PlannedStep"]


@frozen(kw_only=True)
class LargestModel:
    """The largest model of a family that fits with a micro-batch of one row and no larger batch."""

    layers: int
    heads: int
    hidden: int
    parameters: int


@frozen(kw_only=True)
class PlannedStep:
    """The plan that was forecast, and what it was made for."""

    plan: Plan
    profile: Profile
    workload: Workload
    budget: Budget


@frozen(kw_only=True)
class PlanReport:
    """The answer to one question.

    ``forecast`` is None when the planner finds nothing that fits: ``refusal`` then says why. ``speedups`` is how many
    times faster the step would be with twice of each part of the machine, planned anew. ``advice`` is None when no
    batch fits; ``largest`` when it was not asked for, or not even the smallest fits. ``planned`` is for whoever draws
    the step: it is no part of the answer in words.
    """

    forecast: Forecast | None
    refusal: str | None
    speedups: Mapping[Part, float]
    advice: BatchAdvice | None
    largest: LargestModel | None
    searched_largest: bool
    planned: PlannedStep | None = None

    @property
    def fits(self) -> bool:
        """Whether there is a plan that fits."""
        return self.forecast is not None and self.forecast.fits

    def plain(self) -> Mapping[str, Any]:
        """Return plain data, for JSON."""
        return {"fits": self.fits, **asdict(self, filter=lambda attribute, _: attribute.name != "planned")}
