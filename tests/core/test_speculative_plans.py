"""Which updates are marked to be made on speculation: those that make a step shorter and can be taken back."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from schedule_problems import problems

from lohan_core.evaluate import evaluate, simulate_step
from lohan_core.plan import VERSIONS_TO_SPECULATE, BlockPlan, Budget, Plan, Tier, Update
from lohan_core.speculation import with_speculation
from lohan_core.testing.planner_problems import PROBLEMS

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)
PROBLEM = next(problem for problem in PROBLEMS if problem.workload.may_defer and problem.workload.clips)
WORKLOAD = evolve(PROBLEM.workload, update=Update.SPECULATIVE, versions=VERSIONS_TO_SPECULATE)


def deferring(states):
    blocks = tuple(BlockPlan(states=states, deferred=True) for _ in PROBLEM.profile.blocks)
    return Plan(planner="hand", blocks=blocks)


@given(problem=problems())
def test_a_step_that_is_not_clipped_is_no_longer_for_it_and_one_that_is_the_same(problem):
    if not problem.workload.may_speculate:
        return
    plain = evolve(problem.plan, blocks=tuple(evolve(block, speculative=False) for block in problem.plan.blocks))
    decided = problem.profile, problem.workload
    found = with_speculation(plain, *decided, PLENTY)
    assert evaluate(found, *decided, PLENTY).feasible
    assert simulate_step(found, *decided).seconds <= simulate_step(plain, *decided).seconds
    assert simulate_step(found, *decided, speculates=False).spans == simulate_step(plain, *decided).spans
    assert evolve(found, blocks=tuple(evolve(block, speculative=False) for block in found.blocks)) == plain


def test_states_in_host_memory_are_copied_as_far_as_there_is_room():
    plan = deferring(Tier.HOST)
    needed = evaluate(plan, PROBLEM.profile, WORKLOAD, PLENTY).peak_bytes[Tier.HOST]
    full = evolve(PLENTY, host_bytes=needed)
    assert with_speculation(plan, PROBLEM.profile, WORKLOAD, full) == plan
    all_of_them = with_speculation(plan, PROBLEM.profile, WORKLOAD, PLENTY)
    copies = evaluate(all_of_them, PROBLEM.profile, WORKLOAD, PLENTY).peak_bytes[Tier.HOST] - needed
    room = evolve(PLENTY, host_bytes=needed + copies // 2)
    some = with_speculation(plan, PROBLEM.profile, WORKLOAD, room)
    counts = [sum(block.speculative for block in each.blocks) for each in (some, all_of_them)]
    assert 0 < counts[0] < counts[1]
    assert some.blocks[-1].speculative, "backward comes to the last block first"


def test_states_on_drives_need_a_version_to_go_back_to():
    plan = deferring(Tier.SSD)
    assert with_speculation(plan, PROBLEM.profile, WORKLOAD, PLENTY) != plan
    assert with_speculation(plan, PROBLEM.profile, evolve(WORKLOAD, versions=2), PLENTY) == plan


def test_what_a_planner_has_marked_itself_stays():
    plan = deferring(Tier.HOST)
    marked = evolve(plan, blocks=(evolve(plan.blocks[0], speculative=True), *plan.blocks[1:]))
    assert with_speculation(marked, PROBLEM.profile, WORKLOAD, PLENTY) is marked
