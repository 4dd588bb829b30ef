from lohan_plugin_template.plugin import KEEP_COSTLY

from lohan_core.testing.planner import PlannerSuite


class TestKeepCostly(PlannerSuite):
    backend = KEEP_COSTLY
