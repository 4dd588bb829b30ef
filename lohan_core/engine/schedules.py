"""The schedules by which one plan is carried out."""

from __future__ import annotations

from attrs import frozen

from lohan_core.plan import Plan, Workload
from lohan_core.profile import Profile
from lohan_core.schedule.build import build_schedule, build_updates
from lohan_core.schedule.task import Op, Schedule

__all__ = ["Schedules"]


@frozen
class Schedules:
    """All that a step can be: with or without deferred updates of the one before, and with or without speculation.

    Made by :meth:`of`, ahead of the first step.
    """

    speculates: bool
    """Whether the plan has speculative updates."""
    _steps: dict[tuple[bool, bool], Schedule]
    _updates: dict[bool, Schedule]

    @classmethod
    def of(cls, plan: Plan, profile: Profile, workload: Workload) -> Schedules:
        """Build them."""
        speculates = any(decisions.speculative for decisions in plan.blocks)
        ways = (False, True) if speculates else (False,)
        return cls(
            speculates,
            {
                (pending, way): build_schedule(plan, profile, workload, pending=pending, speculates=way)
                for pending in (False, True)
                for way in ways
            },
            {way: build_updates(plan, profile, workload, speculated=way) for way in ways},
        )

    @property
    def usual(self) -> Schedule:
        """A step that another came before, with the plan's speculative updates if it has any."""
        return self._steps[True, self.speculates]

    def step(self, *, pending: bool, speculates: bool) -> Schedule:
        """A step.

        Args:
            pending: whether there are deferred updates of the step before: where this one speculates, of blocks whose
                updates are not speculative.
            speculates: whether it makes the plan's speculative updates.
        """
        return self._steps[pending, speculates]

    def updates(self, *, speculated: bool) -> Schedule:
        """The deferred updates of a step that no other follows: without those that it made on speculation, if any."""
        return self._updates[speculated]

    @property
    def defers_all(self) -> bool:
        """Whether a step without speculation leaves all its updates to the next one, whose end then finds it whole."""
        return not any(task.op in {Op.UPDATE, Op.UPDATE_ON_GPU} for task in self._steps[False, False].tasks)
