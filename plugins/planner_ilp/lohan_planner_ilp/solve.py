"""HiGHS, and nothing else: a program in, values out."""

from __future__ import annotations

import highspy
import numpy as np
from attrs import frozen

from lohan_planner_ilp.program import Program

__all__ = ["Solution", "solve"]

TOLERANCE = 1e-9
"""How far a constraint, or a whole number, may be off. Ours are scaled so that what matters is far larger."""


@frozen(kw_only=True)
class Solution:
    """Values of the variables, whole where they must be; how far from the optimum they may be; how long it took.

    ``gap`` is a part of the objective. ``optimal``: whether the search came to its end.
    """

    values: list[float]
    objective: float
    gap: float
    seconds: float
    optimal: bool


def solve(program: Program, *, gap: float, time_limit: float) -> Solution | None:
    """Minimize. The same program gives the same values, on one thread and from one seed.

    Returns:
        The best solution; None if there is none.

    Raises:
        RuntimeError: HiGHS ended for another reason than optimality, infeasibility or the time limit.
    """
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # its own __init__ is not annotated
    for option, value in {
        "output_flag": False,
        "threads": 1,
        "random_seed": 0,
        "mip_rel_gap": gap,
        "mip_abs_gap": 0.0,
        "time_limit": time_limit,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": TOLERANCE,
    }.items():
        solver.setOptionValue(option, value)
    solver.passModel(_highs_model(program))
    solver.run()
    status = solver.getModelStatus()
    info = solver.getInfo()
    ended = {highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit}
    if status == highspy.HighsModelStatus.kInfeasible:
        return None
    if status not in ended:
        raise RuntimeError(f"HiGHS ended with {solver.modelStatusToString(status)}")
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    values = [
        # HiGHS returns 0.9999999 for 1.
        float(round(value)) if column.whole else value
        for value, column in zip(solver.getSolution().col_value, program.columns, strict=True)
    ]
    return Solution(
        values=values,
        objective=info.objective_function_value,
        gap=info.mip_gap,
        seconds=solver.getRunTime(),
        optimal=status == highspy.HighsModelStatus.kOptimal,
    )


def _highs_model(program: Program) -> highspy.HighsLp:
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(program.columns), len(program.rows)
    costs = np.zeros(len(program.columns))
    for variable, coefficient in program.objective.terms.items():
        costs[variable] = coefficient
    model.col_cost_ = costs
    model.offset_ = program.objective.constant
    model.col_lower_ = np.array([column.lower for column in program.columns])
    model.col_upper_ = np.array([column.upper for column in program.columns])
    kinds = {True: highspy.HighsVarType.kInteger, False: highspy.HighsVarType.kContinuous}
    model.integrality_ = [kinds[column.whole] for column in program.columns]
    model.row_lower_ = np.full(len(program.rows), -highspy.kHighsInf)
    model.row_upper_ = np.array([row.upper for row in program.rows])
    entries = [entry for row in program.rows for entry in row.terms.items()]
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.cumsum([0, *(len(row.terms) for row in program.rows)])
    model.a_matrix_.index_ = np.array([variable for variable, _ in entries])
    model.a_matrix_.value_ = np.array([coefficient for _, coefficient in entries])
    return model
