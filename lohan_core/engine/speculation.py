"""When speculative updates are worth their while: once steps have turned out not to be clipped."""

from __future__ import annotations

from attrs import define

__all__ = ["STEPS_TO_TRUST", "Speculation"]

STEPS_TO_TRUST = 4
"""So many steps in a row that were not clipped, and the next one is expected not to be either."""


@define
class Speculation:
    """Expects of the next step what the last ones were.

    A step that is clipped in spite of that has made its speculative updates for nothing, and the next ones make none.

    Attributes:
        possible: whether the plan has any.
        held: whether the last step made them, and they count: of its deferred updates only the others are left.
    """

    possible: bool
    held: bool = False
    _unclipped: int = 0

    @property
    def expected(self) -> bool:
        """Whether the next step should make them."""
        return self.possible and self._unclipped >= STEPS_TO_TRUST

    def note(self, *, clipped: bool, speculated: bool) -> None:
        """Take note of a step."""
        self._unclipped = 0 if clipped else self._unclipped + 1
        self.held = speculated and not clipped
