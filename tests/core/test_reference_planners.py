from __future__ import annotations

import pytest

from lohan_core.errors import PlanError
from lohan_core.plan import Budget, Tier
from lohan_core.reference.planners import KEEP_ALL, KEEP_NOTHING, KeepAllConfig, KeepNothingConfig
from lohan_core.testing.planner import PlannerSuite
from lohan_core.testing.planner_problems import PROBLEMS

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)


class TestKeepNothing(PlannerSuite):
    backend = KEEP_NOTHING


class TestKeepNothingOnHost(PlannerSuite):
    backend = KEEP_NOTHING

    @pytest.fixture
    def config(self):
        return KeepNothingConfig(states=Tier.HOST, inputs=Tier.GPU)


class TestKeepAll(PlannerSuite):
    backend = KEEP_ALL


class TestKeepAllOnSsd(PlannerSuite):
    backend = KEEP_ALL

    @pytest.fixture
    def config(self):
        return KeepAllConfig(candidates=Tier.SSD, inputs=Tier.SSD)


class TestKeepNothingOnTheGpu(PlannerSuite):
    backend = KEEP_NOTHING

    @pytest.fixture
    def config(self):
        return KeepNothingConfig(states=Tier.GPU, inputs=Tier.GPU)

    @pytest.fixture(params=[p for p in PROBLEMS if p.profile.machine.gpu_parameters_per_second], ids=lambda p: p.name)
    def problem(self, request):
        return request.param


def test_on_the_gpu_are_layers_only_and_none_without_updates_there():
    with_updates, without = (
        next(p for p in PROBLEMS if (p.profile.machine.gpu_parameters_per_second is None) is missing)
        for missing in (False, True)
    )
    planner = KEEP_ALL.open(KeepAllConfig(states=Tier.GPU))
    plan = planner.plan(with_updates.profile, PLENTY, with_updates.workload)
    layers = [Tier.GPU] * (len(plan.blocks) - 2)
    assert [block.states for block in plan.blocks] == [Tier.HOST, *layers, Tier.HOST]
    with pytest.raises(PlanError, match=r"this optimizer has no update; put planner\.states on host or ssd"):
        planner.plan(without.profile, PLENTY, without.workload)
