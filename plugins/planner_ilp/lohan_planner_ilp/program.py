"""A mixed-integer linear program as data: variables, constraints and an objective. Knows no solver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

__all__ = ["Column", "Linear", "Program", "Row", "total"]

INFINITY = float("inf")


@frozen
class Linear:
    """A linear expression: coefficients by variable, and a constant."""

    terms: Mapping[int, float] = field(factory=dict)
    constant: float = 0.0

    def __add__(self, other: Linear) -> Linear:
        return total((self, other))

    def __sub__(self, other: Linear) -> Linear:
        return total((self, -1.0 * other))

    def __rmul__(self, factor: float) -> Linear:
        terms = {variable: factor * coefficient for variable, coefficient in self.terms.items()}
        return Linear(terms, factor * self.constant)

    def value(self, values: Mapping[int, float] | list[float]) -> float:
        """Evaluate for values of the variables."""
        return self.constant + sum(coefficient * values[variable] for variable, coefficient in self.terms.items())


def total(parts: Iterable[Linear]) -> Linear:
    """Add expressions up."""
    terms: dict[int, float] = {}
    constant = 0.0
    for part in parts:
        constant += part.constant
        for variable, coefficient in part.terms.items():
            terms[variable] = terms.get(variable, 0.0) + coefficient
    return Linear({variable: coefficient for variable, coefficient in terms.items() if coefficient}, constant)


@frozen
class Column:
    """A variable's bounds, and whether only whole numbers will do."""

    lower: float
    upper: float
    whole: bool


@frozen
class Row:
    """A constraint: the sum of coefficients times variables is at most ``upper``."""

    terms: Mapping[int, float]
    upper: float


@define
class Program:
    """Columns and rows as they are added, and what is minimized."""

    columns: list[Column] = field(factory=list)
    rows: list[Row] = field(factory=list)
    objective: Linear = field(factory=Linear)

    def variable(self, upper: float = INFINITY, *, whole: bool = False) -> Linear:
        """Add a variable from 0 to ``upper``."""
        self.columns.append(Column(0.0, upper, whole))
        return Linear({len(self.columns) - 1: 1.0})

    def at_most(self, left: Linear, right: Linear | float) -> None:
        """Demand that ``left`` is not greater than ``right``."""
        difference = left - (right if isinstance(right, Linear) else Linear(constant=right))
        self.rows.append(Row(difference.terms, -difference.constant))

    def equal(self, left: Linear, right: float) -> None:
        """Demand that ``left`` is ``right``."""
        self.at_most(left, right)
        self.at_most(-1.0 * left, -right)
