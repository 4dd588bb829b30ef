"""What is given up, and in which order, when a plan does not fit."""

from __future__ import annotations

import gc

import pytest
from attrs import evolve, field, frozen

from lohan_core.errors import PlanError
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Update
from lohan_core.planning import plan_step
from lohan_core.schedule.build import build_memory
from lohan_core.testing.planner_problems import PROBLEMS

PROBLEM = PROBLEMS[2]
PROFILE = PROBLEM.profile
NONE_DURABLE = evolve(PROBLEM.workload, versions=1)
PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)
IN_HOST_MEMORY = Plan(planner="one", blocks=tuple(BlockPlan(states=Tier.HOST) for _ in PROFILE.blocks))


@frozen
class OnePlan(Planner):
    """Always makes the same plan, and remembers for which workloads."""

    made: Plan = IN_HOST_MEMORY
    asked: list = field(factory=list)
    collecting: list = field(factory=list)

    def plan(self, profile, budget, workload):
        del profile, budget
        self.collecting.append(gc.isenabled())
        self.asked.append((workload.layer_slots, workload.gradient_slots, workload.host_extents))
        return self.made


def taken(workload, tier):
    return build_memory(IN_HOST_MEMORY, PROFILE, workload).bytes_on(tier)


def test_states_in_host_memory_lose_their_extents_last_of_all():
    planner = OnePlan()
    plan, workload = plan_step(planner, PROFILE, evolve(PLENTY, ssd_bytes=0), NONE_DURABLE)
    assert plan == IN_HOST_MEMORY
    assert workload == evolve(NONE_DURABLE, host_extents=False)
    assert planner.asked == [(3, 2, True), (2, 1, True), (1, 1, True), (3, 2, False)]
    assert taken(workload, Tier.SSD) == 0
    assert taken(NONE_DURABLE, Tier.SSD) > 0


def test_they_keep_them_where_there_is_space():
    budget = evolve(PLENTY, ssd_bytes=taken(NONE_DURABLE, Tier.SSD))
    assert plan_step(OnePlan(), PROFILE, budget, NONE_DURABLE)[1] == NONE_DURABLE


def test_what_must_survive_a_crash_keeps_them():
    durable = evolve(NONE_DURABLE, versions=2)
    with pytest.raises(PlanError, match="on ssd"):
        plan_step(OnePlan(), PROFILE, evolve(PLENTY, ssd_bytes=0), durable)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_pauses_while_a_planner_plans(enabled):
    planner = OnePlan()
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(PlanError):
            plan_step(planner, PROFILE, evolve(PLENTY, gpu_bytes=0), NONE_DURABLE)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert set(planner.collecting) == {False}


def test_both_may_be_given_up():
    least = evolve(NONE_DURABLE, layer_slots=1, gradient_slots=1, host_extents=False)
    budget = evolve(PLENTY, gpu_bytes=taken(least, Tier.GPU), ssd_bytes=0)
    assert plan_step(OnePlan(), PROFILE, budget, NONE_DURABLE)[1] == least


def test_where_nothing_fits_what_could_be_given_up_is_not_asked_for():
    budget = evolve(PLENTY, host_bytes=0, ssd_bytes=0)
    with pytest.raises(PlanError, match="on host") as refusal:
        plan_step(OnePlan(), PROFILE, budget, NONE_DURABLE)
    assert str(refusal.value).count("the plan needs") == 1, "it needs nothing on ssd"


@frozen
class MoreForASlot(Planner):
    """Puts one layer's states on the GPU, and with fewer slots for weights as many more as it is told to."""

    more: int

    def plan(self, profile, budget, workload):
        del budget
        if self.more < 0 and workload.layer_slots < 3:
            raise PlanError("not with so few")
        on_gpu = 1 + (self.more if workload.layer_slots < 3 else 0)
        tiers = [Tier.GPU if 1 <= index <= on_gpu else Tier.HOST for index in range(len(profile.blocks))]
        return Plan(planner="slots", blocks=tuple(BlockPlan(states=tier) for tier in tiers))


def with_updates(*, gpu, cpu):
    """A profile with so many parameters a second updated on each."""
    machine = evolve(PROFILE.machine, gpu_parameters_per_second=gpu, cpu_parameters_per_second=cpu)
    return evolve(PROFILE, machine=machine)


def slots_of(profile, *, more):
    plan, workload = plan_step(MoreForASlot(more), profile, PLENTY, NONE_DURABLE)
    return workload.layer_slots, sum(decisions.states is Tier.GPU for decisions in plan.blocks)


def test_a_slot_that_only_keeps_weights_moving_makes_room_for_states_where_the_step_is_shorter():
    assert slots_of(with_updates(gpu=1e12, cpu=1e6), more=1) == (2, 2)
    assert slots_of(with_updates(gpu=1e3, cpu=1e12), more=1) == (3, 1)


def test_it_stays_where_nothing_comes_of_it():
    profile = with_updates(gpu=1e12, cpu=1e6)
    assert slots_of(profile, more=0) == (3, 1)
    assert slots_of(profile, more=-1) == (3, 1), "the planner has no plan for fewer"
    assert plan_step(OnePlan(), profile, PLENTY, NONE_DURABLE)[1] == NONE_DURABLE


def test_a_third_version_is_there_only_if_speculative_updates_on_the_drives_make_the_step_shorter():
    speculative = evolve(PROBLEM.workload, update=Update.SPECULATIVE, clips=True, versions=3)
    in_memory = plan_step(OnePlan(), PROFILE, PLENTY, speculative)
    assert in_memory[1] == evolve(speculative, versions=2)

    on_drives = OnePlan(
        made=Plan(planner="one", blocks=tuple(BlockPlan(states=Tier.SSD, deferred=True) for _ in PROFILE.blocks))
    )
    plan, workload = plan_step(on_drives, PROFILE, PLENTY, speculative)
    assert workload == speculative
    assert any(block.speculative for block in plan.blocks)
    two = build_memory(on_drives.made, PROFILE, evolve(speculative, versions=2)).bytes_on(Tier.SSD)
    plan, workload = plan_step(on_drives, PROFILE, evolve(PLENTY, ssd_bytes=two), speculative)
    assert (plan, workload) == (on_drives.made, evolve(speculative, versions=2))


@pytest.mark.parametrize("update", [Update.DEFERRED, Update.SPECULATIVE])
def test_a_store_that_is_there_has_the_versions_that_it_has(update):
    """What a third version takes on the drives is not to be had for gradients or activations."""
    workload = evolve(PROBLEM.workload, update=update, clips=True, versions=3)
    on_drives = OnePlan(
        made=Plan(planner="one", blocks=tuple(BlockPlan(states=Tier.SSD, deferred=True) for _ in PROFILE.blocks))
    )
    three = build_memory(on_drives.made, PROFILE, workload).bytes_on(Tier.SSD)
    budget = evolve(PLENTY, ssd_bytes=three)
    assert plan_step(on_drives, PROFILE, budget, workload, store_exists=True)[1] == workload
    with pytest.raises(PlanError, match="ssd"):
        plan_step(on_drives, PROFILE, evolve(budget, ssd_bytes=three - 1), workload, store_exists=True)
