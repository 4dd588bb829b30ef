from __future__ import annotations

import pytest
from tiny_backends import TestBackends, make_registry

from lohan_core.config.load import config_from_mapping
from lohan_core.errors import ConfigError
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


@pytest.mark.parametrize("name", ["keep_nothing", "keep_all"])
def test_states_do_not_live_on_the_gpu(tmp_path, name):
    values = {
        "model": {"path": str(tmp_path)},
        "data": {"train": str(tmp_path / "none")},
        "run": {"dir": str(tmp_path), "steps": 1},
        "planner": {"backend": name, "states": "gpu"},
    }
    with pytest.raises(ConfigError, match=r"planner\.states: got 'gpu'\. Choose one of: host, ssd"):
        config_from_mapping(values, make_registry(TestBackends()))
    values["planner"]["states"] = "host"
    assert config_from_mapping(values, make_registry(TestBackends())).planner.settings.states is Tier.HOST
