"""The paper's equations, by hand."""

from __future__ import annotations

import pytest
from attrs import evolve

from lohan_core.equations import PaperTotals, paper_seconds, paper_totals
from lohan_core.evaluate import TimeModel, evaluate
from lohan_core.plan import BlockPlan, Budget, Plan, Tier
from lohan_core.testing.planner_problems import PROBLEMS

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)

MACHINE = evolve(
    PROBLEMS[0].profile.machine,
    gpu_flops_per_second=100.0,
    h2d_bytes_per_second=10.0,
    d2h_bytes_per_second=10.0,
    ssd_read_bytes_per_second=4.0,
    ssd_write_bytes_per_second=2.0,
)

# P = 10: 2P = 20 bytes, 12P = 120 bytes. Each row makes another term the longest.
HAND = [
    # FLOP_f 10000: T_f = 100, T_b = (20000 + 5000)/100
    ({"forward_flops": 10_000.0, "recomputed_flops": 5_000.0}, 100 + 250),
    # nothing to compute: T_f is 20/4, T_b is 140/4 + 140/2
    ({}, 5 + 105),
    # A = 60, all in host memory: T_f = 60/10 = 6; T_b = 105
    ({"activation_bytes": 60.0, "host_bytes": 60.0}, 6 + 105),
    # A = 2000 in host memory: T_f = 200; T_b = (20 + 2000)/10
    ({"activation_bytes": 2000.0, "host_bytes": 5000.0}, 200 + 202),
    # A = 60, of which 40 go on to the drives: T_f = 20/4 + 40/2 = 25; T_b = (140 + 40)/4 + 140/2 = 115
    ({"activation_bytes": 60.0, "host_bytes": 20.0}, 25 + 115),
]


@pytest.mark.parametrize(("totals", "seconds"), HAND)
def test_the_papers_equations_by_hand(totals, seconds):
    nothing = PaperTotals(
        weight_bytes=20.0,
        state_bytes=120.0,
        activation_bytes=0.0,
        host_bytes=0.0,
        forward_flops=0.0,
        recomputed_flops=0.0,
    )
    assert paper_seconds(evolve(nothing, **totals), MACHINE) == pytest.approx(seconds)


def test_a_plans_totals_are_the_papers_terms():
    problem = PROBLEMS[2]
    profile, workload = problem.profile, problem.workload
    layer = profile.blocks[1].candidates
    kept = {layer[0].index: Tier.HOST, layer[1].index: Tier.SSD, layer[2].index: Tier.GPU}
    blocks = [BlockPlan(states=Tier.SSD, inputs=Tier.GPU) for _ in profile.blocks]
    blocks[1] = evolve(blocks[1], keep=kept)
    totals = paper_totals(Plan(planner="hand", blocks=tuple(blocks)), profile, workload, 7)
    parameters = sum(block.elements for block in profile.blocks)
    micro = workload.micro_batches
    assert totals.weight_bytes == 2 * parameters
    assert totals.state_bytes == 12 * parameters
    assert totals.activation_bytes == micro * (layer[0].bytes + layer[1].bytes)  # whole sectors; the GPU's never leave
    assert totals.host_bytes == 7
    assert totals.forward_flops == pytest.approx(micro * sum(block.flops for block in profile.blocks))
    assert totals.forward_flops - totals.recomputed_flops == pytest.approx(micro * sum(c.flops for c in layer))


def test_evaluate_takes_the_model_that_is_asked_for():
    problem = PROBLEMS[3]
    plan = Plan(planner="hand", blocks=tuple(BlockPlan(states=Tier.SSD) for _ in problem.profile.blocks))
    budget = evolve(PLENTY, host_bytes=2**20)
    grades = {model: evaluate(plan, problem.profile, problem.workload, budget, model) for model in TimeModel}
    assert len({grade.seconds for grade in grades.values()}) == len(TimeModel)
    assert len({grade.shortfalls for grade in grades.values()}) == 1
    totals = paper_totals(plan, problem.profile, problem.workload, budget.host_bytes)
    assert grades[TimeModel.PAPER].seconds == paper_seconds(totals, problem.profile.machine)
