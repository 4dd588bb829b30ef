"""Between two steps: the updates that the last one has left, and whether the next one makes its own on speculation."""

from __future__ import annotations

from attrs import define

from lohan_core.engine.schedules import Schedules
from lohan_core.engine.step import UpdateTerms
from lohan_core.schedule.task import Schedule

__all__ = ["STEPS_TO_TRUST", "Pending"]

STEPS_TO_TRUST = 4
"""So many steps in a row that were not clipped, and the next one is expected not to be either."""


@define
class Pending:
    """Keeps account of deferred updates.

    Attributes:
        terms: of the last step, if it has left any; None when all updates are done.
    """

    _schedules: Schedules
    terms: UpdateTerms | None = None
    _held: bool = False
    _unclipped: int = 0

    @property
    def speculates(self) -> bool:
        """Whether the next step makes the plan's speculative updates. It should if the last ones were not clipped.

        A step that is clipped in spite of that has made them for nothing, and the next ones make none.
        """
        return self._schedules.speculates and self._unclipped >= STEPS_TO_TRUST

    @property
    def stands_in_the_way(self) -> bool:
        """Whether updates are left of blocks whose next ones are to be made in backward already."""
        return self.speculates and not self._held and self.terms is not None

    @property
    def is_all(self) -> bool:
        """Whether all updates of the last step are left: the end of the next one then finds it whole."""
        return self.terms is not None and not self._held and self._schedules.defers_all

    def step_schedule(self) -> Schedule:
        """The next step, with what is left of the last."""
        return self._schedules.step(pending=self.terms is not None, speculates=self.speculates)

    def updates_schedule(self) -> Schedule:
        """What is left, alone."""
        return self._schedules.updates(speculated=self._held)

    def note(self, terms: UpdateTerms, *, clipped: bool, speculated: bool) -> None:
        """Take note of a step that is through: its terms, and whether its speculative updates were made."""
        self._unclipped = 0 if clipped else self._unclipped + 1
        self._held = speculated and not clipped
        self.terms = terms if self.updates_schedule().tasks else None
