"""The lanes' amounts against the tasks of the schedule that they summarise."""

from __future__ import annotations

from collections import defaultdict

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from lohan_core.evaluate import TimeModel, evaluate
from lohan_core.lane_amounts import Phase, Resource, plan_amounts
from lohan_core.lane_model import LANE_OF_RESOURCE, lane_limits, step_lane_seconds
from lohan_core.plan import VERSIONS_TO_SPECULATE, BlockPlan, Budget, Plan, Tier, Update, Workload
from lohan_core.profile import Role
from lohan_core.schedule.build import build_memory, build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.task import Op
from lohan_core.testing.planner_problems import PROBLEMS, example_profile

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)


def work_by_lane(schedule):
    work = defaultdict(float)
    for task in schedule.tasks:
        work[task.lane] += task.work
    return work


def problems(data):
    """One of the suite's problems, with any number of slots for layers and gradients on the GPU."""
    problem = data.draw(st.sampled_from(PROBLEMS))
    slots = {"layer_slots": data.draw(st.integers(1, 3)), "gradient_slots": data.draw(st.integers(1, 2))}
    workload = evolve(problem.workload, **slots)
    if workload.may_defer and data.draw(st.booleans()):
        workload = evolve(workload, update=Update.SPECULATIVE, versions=VERSIONS_TO_SPECULATE)
    return evolve(problem, workload=workload)


def plans(profile, workload):
    tiers = st.sampled_from(Tier)

    def block(role, candidates):
        places = [(Tier.HOST, Tier.HOST), (Tier.SSD, Tier.HOST), (Tier.SSD, Tier.SSD)]
        if role is Role.LAYER and profile.machine.gpu_parameters_per_second is not None:
            places += [(Tier.GPU, Tier.HOST)]
        keep = st.dictionaries(st.sampled_from([c.index for c in candidates]), tiers) if candidates else st.just({})
        return st.builds(
            lambda place, when, **others: BlockPlan(
                states=place[0],
                gradients=place[1],
                deferred=when > 0,
                speculative=when > 1 and place[0] is not Tier.GPU,
                **others,
            ),
            st.sampled_from(places),
            st.integers(0, workload.may_defer + workload.may_speculate),
            inputs=tiers,
            keep=keep,
        )

    blocks = st.tuples(*(block(entry.role, entry.candidates) for entry in profile.blocks))
    return st.builds(lambda chosen: Plan(planner="random", blocks=chosen), blocks)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_amounts_are_the_work_of_the_schedules_tasks(data):
    problem = problems(data)
    plan = data.draw(plans(problem.profile, problem.workload))
    schedule = build_schedule(plan, problem.profile, problem.workload)
    amounts = defaultdict(float)
    for (_, resource), amount in plan_amounts(plan, problem.profile, problem.workload).items():
        amounts[LANE_OF_RESOURCE[resource]] += amount
    for lane, work in work_by_lane(schedule).items():
        assert amounts[lane] == pytest.approx(work), lane


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_phase_holds_the_tasks_of_its_part_of_the_schedule(data):
    problem = problems(data)
    profile = problem.profile
    plan = data.draw(plans(profile, problem.workload))
    tasks = build_schedule(plan, profile, problem.workload).tasks
    last_forward = max(task.index for task in tasks if task.op in {Op.FORWARD, Op.OFFLOAD, Op.SPILL})
    norm = next(task.index for task in tasks if task.op is Op.NORM)
    work = defaultdict(float)
    for task in tasks:
        phase = Phase.FORWARD if task.index <= last_forward else Phase.BACKWARD if task.index <= norm else Phase.UPDATE
        work[phase, task.lane] += task.work
    amounts = defaultdict(float)
    for (phase, resource), amount in plan_amounts(plan, profile, problem.workload).items():
        amounts[phase, LANE_OF_RESOURCE[resource]] += amount
    for key in work.keys() | amounts.keys():
        assert amounts[key] == pytest.approx(work[key]), key


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_memory_alone_is_the_schedules_memory(data):
    problem = problems(data)
    plan = data.draw(plans(problem.profile, problem.workload))
    schedule = build_schedule(plan, problem.profile, problem.workload)
    memory = build_memory(plan, problem.profile, problem.workload)
    assert memory.tasks == ()
    assert {tier: memory.bytes_on(tier) for tier in Tier} == {tier: schedule.bytes_on(tier) for tier in Tier}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_lane_of_the_simulation_is_busy_for_longer_than_the_lanes_say(data):
    problem = problems(data)
    plan = data.draw(plans(problem.profile, problem.workload))
    lanes = evaluate(plan, problem.profile, problem.workload, PLENTY, TimeModel.LANES)
    simulated = evaluate(plan, problem.profile, problem.workload, PLENTY)
    assert lanes.peak_bytes == simulated.peak_bytes
    assert max(lanes.busy_seconds.values()) <= simulated.seconds * (1 + 1e-9)


def test_lanes_are_a_step_without_waiting():
    """Where one lane works and the others idle, the simulation and the lanes agree."""
    profile = example_profile(layers=4, width=512, tokens=2**15, seed=0)
    fast = dict.fromkeys(("h2d", "d2h", "ssd_read", "ssd_write", "ssd_mixed"), 1e15)
    machine = evolve(
        profile.machine,
        cpu_parameters_per_second=1e15,
        **{f"{name}_bytes_per_second": rate for name, rate in fast.items()},
    )
    profile = evolve(profile, machine=machine)
    workload = Workload(micro_batches=2, update=Update.OPTIMIZED, clips=False, chunk_elements=2**20)
    plan = Plan(planner="hand", blocks=tuple(BlockPlan(states=Tier.SSD) for _ in profile.blocks))
    simulated = simulate(build_schedule(plan, profile, workload), machine).seconds
    assert step_lane_seconds(plan, profile, workload) == pytest.approx(simulated, rel=1e-3)


@pytest.mark.parametrize(
    ("mixed", "together"),
    [
        (30.0, 2.0),  # neither slows the other: 20/10 beside 20/20
        (15.0, 3.0),  # half of both rates: they take turns, 20/10 + 20/20
        (20.0, 2.5),  # a third is lost while both are active: 2 + 1 * 0.5
        (5.0, 3.0),  # worse than taking turns is not assumed
    ],
)
def test_reads_and_writes_share_the_drives(mixed, together):
    machine = evolve(
        PROBLEMS[0].profile.machine,
        ssd_read_bytes_per_second=20.0,
        ssd_write_bytes_per_second=10.0,
        ssd_mixed_bytes_per_second=mixed,
    )
    busy = [
        sum(limit.get(resource, 0.0) * 20.0 for resource in (Resource.READ, Resource.WRITE))
        for limit in lane_limits(machine, Update.OPTIMIZED)
    ]
    assert max(busy) == pytest.approx(together)
