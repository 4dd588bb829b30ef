"""Every planner of the plugin under the conformance suite."""

from __future__ import annotations

from typing import ClassVar

import pytest

from lohan_core.evaluate import TimeModel
from lohan_core.reference.mixed_planner import MIXED, MixedPlannerConfig
from lohan_core.testing.planner import PlannerSuite
from lohan_planner_greedy.config import GreedyConfig, GreedyModel, Ranking, StrategyConfig
from lohan_planner_greedy.plugin import lohan_planner

BACKENDS = {backend.name: backend for backend in lohan_planner()}


class TestGreedy(PlannerSuite):
    backend = BACKENDS["greedy"]
    deviations: ClassVar[dict[str, str]] = {
        "test_a_larger_budget_is_no_worse": "it simulates some of the plans that the lane model finds best, and others "
        "of them with another budget; by the lane model alone it holds",
    }


class TestGreedyAsInThePaper(PlannerSuite):
    backend = BACKENDS["greedy"]
    model: ClassVar[TimeModel] = TimeModel.PAPER

    @pytest.fixture
    def config(self):
        return GreedyConfig(ranking=Ranking.FLOPS, model=GreedyModel.PAPER, finalists=1)


class TestGreedySearchAlone(PlannerSuite):
    backend = BACKENDS["greedy"]
    model: ClassVar[TimeModel] = TimeModel.LANES

    @pytest.fixture
    def config(self):
        return GreedyConfig(finalists=1)


class TestZero(PlannerSuite):
    backend = BACKENDS["zero"]


class TestZeroOffload(PlannerSuite):
    backend = BACKENDS["zero"]

    @pytest.fixture
    def config(self):
        return StrategyConfig(states="host")


class TestCapuchin(PlannerSuite):
    backend = BACKENDS["capuchin"]
    deviations: ClassVar[dict[str, str]] = {
        "test_a_larger_budget_is_no_worse": "it weighs GPU and PCIe time alone, and not in which order they are used",
    }


class TestG10(PlannerSuite):
    backend = BACKENDS["g10"]


class TestRecomputeAll(PlannerSuite):
    backend = BACKENDS["recompute_all"]


class TestCapuchinsActivationsWithGreedysStates(PlannerSuite):
    """Both take host memory as if it were all theirs: what remains fits, and nothing more is promised."""

    backend = MIXED
    deviations: ClassVar[dict[str, str]] = {
        "test_a_larger_budget_is_no_worse": "each decides without knowing what the other takes",
    }

    @pytest.fixture
    def config(self):
        return MixedPlannerConfig(activations="capuchin", states="greedy")
