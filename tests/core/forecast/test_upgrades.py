from __future__ import annotations

import pytest
from attrs import evolve
from forecast_problems import LAYERS, P, case_with, profile_of

from lohan_core.errors import PlanError
from lohan_core.forecast.parts import Part
from lohan_core.forecast.report import PlannedStep
from lohan_core.forecast.upgrades import speedups
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Tier
from lohan_core.progress import say_nothing
from lohan_core.reference.planners import KEEP_NOTHING

SLOW_DRIVES = {f"ssd_{way}_bytes_per_second": 1e6 for way in ("read", "write", "mixed")}

ENOUGH = 14 * (LAYERS + 2) * P * 5 // 4
"""Bytes of host memory in which all states have room."""


def worth(case, profile):
    plan, workload = case.plan(profile, 1)
    step = PlannedStep(plan=plan, profile=profile, workload=workload, budget=case.budget(profile.machine))
    return speedups(case, step, say_nothing)


def test_twice_the_gpu_is_twice_as_fast_where_it_bounds_the_step():
    assert worth(case_with(), profile_of(4, gpu_seconds=1.0)) == pytest.approx(
        dict.fromkeys(Part, 1.0) | {Part.GPU: 2.0}, rel=0.01
    )


def test_twice_the_drives_are_twice_as_fast_where_they_bound_the_step():
    found = worth(case_with(), profile_of(gpu_seconds=1e-6, **SLOW_DRIVES))
    assert found == pytest.approx(dict.fromkeys(Part, 1.0) | {Part.DRIVES: 2.0}, rel=0.01)


def test_a_processor_comes_with_its_memorys_bandwidth_and_a_gpu_does_not():
    """Here copies and updates, which share it, take as long as the step."""
    found = worth(case_with(Tier.HOST), profile_of(gpu_seconds=1e-9, memory_bytes_per_second=1e9))
    assert found[Part.GPU] == pytest.approx(1, rel=0.01)
    assert found[Part.PROCESSOR] > 1.1


class NearestThatFits(Planner):
    """States in host memory if they fit, else on the drives."""

    def plan(self, profile, budget, workload):
        try:
            return KEEP_NOTHING.open(KEEP_NOTHING.config(states=Tier.HOST)).plan(profile, budget, workload)
        except PlanError:
            return KEEP_NOTHING.open(KEEP_NOTHING.config(states=Tier.SSD)).plan(profile, budget, workload)


@pytest.mark.parametrize("limited", ["by the machine", "by the user"])
def test_more_memory_is_planned_with(limited):
    case = evolve(case_with(), planner=NearestThatFits())
    if limited == "by the user":
        found = worth(evolve(case, limits={**case.limits, Tier.HOST: ENOUGH // 2}), profile_of(**SLOW_DRIVES))
    else:
        found = worth(case, profile_of(**SLOW_DRIVES, host_bytes=ENOUGH // 2))
    assert found[Part.MAIN_MEMORY] > 10
    assert found[Part.GPU_MEMORY] == pytest.approx(1)


def test_where_there_is_no_gpu_there_is_a_processor_and_one_memory():
    machine = {"cpu_computes": True, "gpu_bytes": 2**30, "host_bytes": 2**30}
    found = worth(case_with(), profile_of(4, gpu_seconds=1.0, **machine))
    assert set(found) == {Part.PROCESSOR, Part.MAIN_MEMORY, Part.DRIVES}
    assert found[Part.PROCESSOR] == pytest.approx(2, rel=0.01)

    machine = {"cpu_computes": True, "gpu_bytes": ENOUGH * 3 // 2, "host_bytes": ENOUGH * 3 // 2}
    found = worth(evolve(case_with(), planner=NearestThatFits()), profile_of(row_bytes=0, **SLOW_DRIVES, **machine))
    assert found[Part.MAIN_MEMORY] > 10


class WorseWithBetterDrives(Planner):
    """Moves more when the drives are faster."""

    def plan(self, profile, budget, workload):
        faster = profile.machine.ssd_read_bytes_per_second > 1e6
        states = Tier.SSD if faster else Tier.HOST
        return KEEP_NOTHING.open(KEEP_NOTHING.config(states=states)).plan(profile, budget, workload)


def test_nothing_is_ever_a_loss():
    found = worth(evolve(case_with(), planner=WorseWithBetterDrives()), profile_of(**SLOW_DRIVES))
    assert found[Part.DRIVES] == pytest.approx(1)
