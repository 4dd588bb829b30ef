"""Which plans are simulated, and how closer looks find a shorter step than the lane model's best."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.evaluate import evaluate
from lohan_core.plan import Budget, Plan, Tier
from lohan_core.testing.planner_problems import PROBLEMS
from lohan_planner_greedy import choose_by_simulation
from lohan_planner_greedy.choices import Choice
from lohan_planner_greedy.choose_by_simulation import Course, between, finalists, shortest
from lohan_planner_greedy.config import GreedyConfig, StrategyConfig
from lohan_planner_greedy.planner import greedy, recompute_all
from lohan_planner_greedy.search import Graded

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)


def choice(kept):
    return Choice(kept=kept, gpu_cut=0, host_cut=0, host_states=0, host_gradients=0, deferred=0)


def curve_of(seconds):
    return [Graded(each, choice(kept)) for kept, each in enumerate(seconds)]


def test_finalists_are_the_best_of_every_curve_and_others_from_end_to_end():
    first, second = curve_of([3.0, 1.0, 2.0]), curve_of([3.0, 2.5, 2.6, 2.7, 2.8])
    assert [c.kept for c in finalists([first], 1)] == [1]
    assert [c.kept for c in finalists([first, second], 1)] == [1]
    assert [c.kept for c in finalists([first, second], 5)] == [1, 0, 2, 4]
    assert [c.kept for c in finalists([first, []], 3)] == [1, 0, 2]


@pytest.mark.parametrize(
    ("looked", "halfway"),
    [
        ({}, []),
        ({4: 1.0}, [1, 7]),
        ({0: 1.0}, [5]),
        ({0: 2.0, 4: 1.0, 8: 3.0}, [2, 6]),
        ({3: 1.0, 4: 2.0}, [1]),
        ({3: 2.0, 4: 1.0, 5: 2.0, 20: 0.0}, []),
    ],
)
def test_closer_looks_go_halfway_to_the_neighbours_of_the_best(looked, halfway):
    curve = curve_of([1.0] * 9)
    found = between(curve, {choice(kept): seconds for kept, seconds in looked.items()})
    assert [each.kept for each in found] == halfway


def run(lane_seconds, simulated, first):
    """Choose among plans whose names are how much they keep; return which one, and all that were simulated."""
    looked = []

    def simulate(plan):
        looked.append(int(plan.planner))
        return simulated(looked[-1])

    course = Course(None, curve_of(lane_seconds), [choice(kept) for kept in first])
    found = shortest([course], lambda _, each: Plan(planner=str(each.kept), blocks=()), simulate)
    return int(found.planner), looked


@given(least=st.integers(1, 62))
def test_a_shorter_step_between_is_found_to_an_eighth_of_the_way(least):
    """With two lanes about as busy: from some length on, what more is kept costs more than the lane model knows."""
    lanes = [10 - kept / 64 for kept in range(65)]
    found, looked = run(lanes, lambda kept: lanes[kept] + 0.2 + 3 * max(0, kept - least) / 64, [64, 0])
    assert abs(found - least) <= 8
    assert len(looked) <= 2 + 2 * choose_by_simulation.ROUNDS


def test_where_the_lane_model_misses_the_same_everywhere_its_best_is_taken_at_once():
    lanes = [10 - kept / 64 for kept in range(65)]
    assert run(lanes, lambda kept: lanes[kept] + 1.0, [64, 0]) == (64, [64, 0])


@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_closer_looks_never_make_a_step_longer(number, monkeypatch):
    problem = PROBLEMS[number]
    least = recompute_all(StrategyConfig()).plan(problem.profile, PLENTY, problem.workload)
    needed = evaluate(least, problem.profile, problem.workload, PLENTY).peak_bytes[Tier.GPU]
    budget = evolve(PLENTY, gpu_bytes=needed * 5 // 4)

    def seconds():
        plan = greedy(GreedyConfig()).plan(problem.profile, budget, problem.workload)
        return evaluate(plan, problem.profile, problem.workload, budget).seconds

    closer = seconds()
    monkeypatch.setattr(choose_by_simulation, "ROUNDS", 0)
    assert closer <= seconds()
