"""Choosing by simulation: which plans are worth one, and where to look closer.

The lane model takes a phase to last as long as its busiest lane works. Where two lanes are nearly as busy, the real
schedule lets each wait for the other, and the shortest step keeps less, or more, than the lane model's best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

from attrs import define, field

from lohan_core.plan import Plan
from lohan_planner_greedy.choices import Choice
from lohan_planner_greedy.family import Family
from lohan_planner_greedy.search import Graded, first_shortest

__all__ = ["Course", "between", "finalists", "shortest"]

CLOSER = 1.01
"""A step that is longer than what a course promises by more than this is worth a closer look."""

ROUNDS = 3
"""How often the distance to the nearest plans that were simulated is halved."""


@define(eq=False)
class Course:
    """A family's best choice for each length of the list, and those of them, or others, that are simulated first."""

    family: Family
    curve: Sequence[Graded]
    choices: Sequence[Choice]
    seconds: dict[Choice, float] = field(factory=dict, init=False)
    """What was simulated."""

    @property
    def promised_seconds(self) -> float:
        """The shortest step there may be: if the lane model missed no more anywhere than where it missed least."""
        missed = [self.seconds[g.choice] - g.seconds for g in self.curve if g.choice in self.seconds]
        return first_shortest(self.curve).seconds + min(missed, default=inf)


def shortest(
    courses: Sequence[Course], plan: Callable[[Course, Choice], Plan], simulate: Callable[[Plan], float]
) -> Plan:
    """Return the plan whose simulated step is shortest, of equals the first.

    Every course's choices are simulated. Then, as long as a course's best promises by the lane model a step shorter
    than that, so are those halfway between the best that was simulated on it and its neighbours.
    """
    best: tuple[float, Plan] | None = None

    def look(course: Course, choice: Choice) -> None:
        nonlocal best
        found = plan(course, choice)
        course.seconds[choice] = seconds = simulate(found)
        if best is None or seconds < best[0]:
            best = seconds, found

    for course in courses:
        for choice in course.choices:
            look(course, choice)
    assert best is not None  # noqa: S101 - every course has choices
    for course in courses:
        for _ in range(ROUNDS):
            closer = between(course.curve, course.seconds) if best[0] > CLOSER * course.promised_seconds else []
            for choice in closer:
                look(course, choice)
    return best[1]


def between(curve: Sequence[Graded], seconds: Mapping[Choice, float]) -> list[Choice]:
    """Return what lies halfway from the best simulated choice of a curve to its neighbours, or to an end.

    Args:
        curve: choices in the order of their lengths.
        seconds: what was simulated, choices that are not of this curve among them.
    """
    looked = [index for index, graded in enumerate(curve) if graded.choice in seconds]
    if not looked:
        return []
    here = min(looked, key=lambda index: seconds[curve[index].choice])
    below = max((index for index in looked if index < here), default=-1)
    above = min((index for index in looked if index > here), default=len(curve))
    halfway = {(below + here) // 2, (here + above + 1) // 2} - {below, here, above}
    return [curve[index].choice for index in sorted(halfway)]


def finalists(curves: Sequence[Sequence[Graded]], count: int) -> list[Choice]:
    """Return up to ``count`` choices that are worth a closer look, without repetition.

    The first shortest step of every curve, in their order, and then others evenly from the least kept to the most, on
    the last of them.
    """
    curves = [curve for curve in curves if curve]
    *_, last = curves
    chosen = [first_shortest(curve).choice for curve in curves][:count]
    further = count - len(chosen)
    chosen += [last[round(step * (len(last) - 1) / max(1, further - 1))].choice for step in range(further)]
    return list(dict.fromkeys(chosen))
