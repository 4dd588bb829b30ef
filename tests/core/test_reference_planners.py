from __future__ import annotations

import pytest

from lohan_core.plan import Tier
from lohan_core.reference.planners import KEEP_ALL, KEEP_NOTHING, ReferencePlannerConfig
from lohan_core.testing.planner import PlannerSuite


class TestKeepNothing(PlannerSuite):
    backend = KEEP_NOTHING


class TestKeepNothingOnHost(PlannerSuite):
    backend = KEEP_NOTHING

    @pytest.fixture
    def config(self):
        return ReferencePlannerConfig(states=Tier.HOST, inputs=Tier.GPU)


class TestKeepAll(PlannerSuite):
    backend = KEEP_ALL


class TestKeepAllOnSsd(PlannerSuite):
    backend = KEEP_ALL

    @pytest.fixture
    def config(self):
        return ReferencePlannerConfig(candidates=Tier.SSD, inputs=Tier.SSD)
