"""Both planners under the conformance suite, by the model that they minimize."""

from __future__ import annotations

from typing import ClassVar

import pytest

from lohan_core.evaluate import TimeModel
from lohan_core.testing.planner import PlannerSuite
from lohan_planner_ilp.config import CheckmateConfig, IlpConfig
from lohan_planner_ilp.plugin import lohan_planner

pytest.importorskip("highspy", reason="the extra 'ilp' is not installed")

BACKENDS = {backend.name: backend for backend in lohan_planner()}


class TestIlp(PlannerSuite):
    backend = BACKENDS["ilp"]
    model: ClassVar[TimeModel] = TimeModel.LANES
    claims_optimal: ClassVar[bool] = True

    @pytest.fixture
    def config(self):
        return IlpConfig(gap=0.0)


class TestCheckmate(PlannerSuite):
    backend = BACKENDS["checkmate"]
    model: ClassVar[TimeModel] = TimeModel.LANES

    @pytest.fixture
    def config(self):
        return CheckmateConfig(gap=0.0)


class TestCheckmateOnHost(PlannerSuite):
    backend = BACKENDS["checkmate"]
    model: ClassVar[TimeModel] = TimeModel.LANES

    @pytest.fixture
    def config(self):
        return CheckmateConfig(states="host", gap=0.0)
