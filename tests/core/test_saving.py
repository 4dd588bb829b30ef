from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from schedule_problems import problems
from tiny_backends import MACHINE

from lohan_core.plan import Tier, Update
from lohan_core.saving import SAVING_SHARE, saving_seconds, steps_between_saves
from lohan_core.schedule.build import build_updates
from lohan_core.schedule.simulate import simulate


def with_states(problem, tier, **decided):
    decided = {"gradients": Tier.HOST, "speculative": False, **decided}
    blocks = tuple(evolve(block, states=tier, **decided) for block in problem.plan.blocks)
    return evolve(problem.plan, blocks=blocks)


@given(problem=problems())
def test_states_on_the_drives_are_saved_by_the_way(problem):
    for deferred in (False, True):
        plan = with_states(problem, Tier.SSD, deferred=deferred)
        assert saving_seconds(plan, problem.profile, problem.workload) == 0.0


@given(problem=problems())
def test_states_in_memory_are_written_unless_there_is_no_room_for_them(problem):
    profile = evolve(problem.profile, machine=evolve(MACHINE, ssd_write_bytes_per_second=1e3))
    plan = with_states(problem, Tier.HOST, deferred=True)
    fields = sum(vector.value_bytes / vector.elements_per_value for vector in profile.states)
    least = sum(block.elements for block in profile.blocks) * (fields + profile.weight_bytes)
    stored = evolve(problem.workload, host_extents=True)
    assert saving_seconds(plan, profile, stored) * 1e3 >= least * (1 - 1e-12)
    assert saving_seconds(plan, profile, evolve(stored, host_extents=False)) == 0.0


@pytest.mark.parametrize("done", [{"deferred": False}, {"speculative": True}])
@given(problem=problems())
def test_where_only_some_updates_are_deferred_they_are_done_alone_first(problem, done):
    workload = evolve(problem.workload, update=Update.DEFERRED, host_extents=True)
    plan = with_states(problem, Tier.SSD, deferred=True)
    first, *rest = plan.blocks
    mixed = evolve(plan, blocks=(evolve(first, **done), *rest))
    alone = simulate(build_updates(mixed, problem.profile, workload), problem.profile.machine).seconds
    some_are_not = problem.profile.blocks[0].elements > 0
    assert saving_seconds(mixed, problem.profile, workload) == (alone if some_are_not else 0.0)


@given(saving=st.floats(0, 1e5), step=st.floats(1e-3, 1e4))
def test_saving_takes_no_more_than_its_share_of_a_run(saving, step):
    every = steps_between_saves(saving, step)
    assert saving <= SAVING_SHARE * every * step * (1 + 1e-12)
    assert every == 1 or saving > SAVING_SHARE * (every - 1) * step * (1 - 1e-12)


@pytest.mark.parametrize(("saving", "every"), [(0.0, 1), (0.04, 1), (0.051, 2), (5.0, 100)])
def test_by_hand(saving, every):
    assert steps_between_saves(saving, 1.0) == every
