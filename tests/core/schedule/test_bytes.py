"""What a step moves and holds, against formulas worked out by hand (Ratel section IV-D: 30 bytes per parameter)."""

from __future__ import annotations

from collections import Counter

import pytest
from attrs import evolve
from hypothesis import given
from schedule_problems import ADAM, problems
from tiny_backends import MACHINE

from lohan_core.layout import BLOCK_ALIGNMENT, round_up
from lohan_core.plan import BlockPlan, Plan, Tier, Update, Workload
from lohan_core.profile import BlockProfile, Candidate, Profile, Role
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.sizes import gradients_wait, kept_bytes
from lohan_core.schedule.task import Lane, Op

LAYERS = 20
LAYER = 10 * BLOCK_ALIGNMENT
EDGE = 25 * BLOCK_ALIGNMENT
P = LAYERS * LAYER + 2 * EDGE


def bf16_adam(*, tied=False, micro_batches=1, clips=False, update=Update.OPTIMIZED, versions=1, **decisions):
    """Build the step of a model of P parameters, all blocks decided alike."""
    blocks = (
        BlockProfile(
            name="prelude", role=Role.PRELUDE, elements=EDGE, input_bytes=0, flops=1, seconds=1, transient_bytes=0
        ),
        *(
            BlockProfile(
                name=f"layers.{number}",
                role=Role.LAYER,
                elements=LAYER,
                input_bytes=5000,
                flops=1,
                seconds=1,
                transient_bytes=10**6,
                candidates=tuple(
                    Candidate(index=index, operator="mm", occurrence=index, bytes=size, flops=1, seconds=0.25)
                    for index, size in enumerate((4096, 4097, 100))
                ),
            )
            for number in range(LAYERS)
        ),
        BlockProfile(
            name="postlude",
            role=Role.POSTLUDE,
            elements=EDGE,
            input_bytes=5000,
            flops=1,
            seconds=1,
            transient_bytes=0,
            borrows=(0,) if tied else (),
        ),
    )
    profile = Profile(
        machine=MACHINE,
        micro_batch_size=1,
        sequence_length=1,
        weight_bytes=2,
        states=ADAM,
        blocks=blocks,
        arguments_bytes=300,
    )
    chosen = {"states": Tier.SSD, "inputs": Tier.GPU, **decisions}
    keep = chosen.pop("keep", {})
    plan = Plan(
        planner="test",
        blocks=tuple(BlockPlan(**chosen, keep=keep if block.role is Role.LAYER else {}) for block in blocks),
    )
    workload = Workload(
        micro_batches=micro_batches, update=update, clips=clips, chunk_elements=4 * BLOCK_ALIGNMENT, versions=versions
    )
    return build_schedule(plan, profile, workload)


def moved(schedule):
    """Bytes per lane, and parameters for the processor."""
    total = Counter()
    for task in schedule.tasks:
        total[task.lane] += task.work
    return total


RESIDENT_AT_THE_TURN = 3 * LAYER + EDGE
"""Parameters whose weights are fetched once instead of twice: the last layers stay, the postlude turns at once."""


@pytest.mark.parametrize("micro_batches", [1, 7])
@pytest.mark.parametrize("update", list(Update))
def test_thirty_bytes_per_parameter_pass_the_drives(update, micro_batches):
    """Reads 2 + 2 + 12, writes 14, however many micro-batches there are; serially, gradients wait in host memory."""
    total = moved(bf16_adam(update=update, micro_batches=micro_batches))
    assert total[Lane.SSD_READ] == 16 * P - 2 * RESIDENT_AT_THE_TURN
    assert total[Lane.SSD_WRITE] == 14 * P
    assert total[Lane.H2D] == 4 * P - 2 * RESIDENT_AT_THE_TURN
    assert total[Lane.D2H] == 2 * P
    assert total[Lane.CPU] == P


def test_deferred_updates_spare_the_drives_one_read_of_the_weights():
    total = moved(bf16_adam(clips=True, deferred=True))
    assert total[Lane.SSD_READ] == 14 * P - 2 * RESIDENT_AT_THE_TURN
    assert total[Lane.SSD_WRITE] == 14 * P


def test_gradients_that_wait_on_the_drives_add_four_bytes():
    total = moved(bf16_adam(clips=True, gradients=Tier.SSD))
    assert total[Lane.SSD_READ] + total[Lane.SSD_WRITE] == 34 * P - 2 * RESIDENT_AT_THE_TURN
    assert total[Lane.SSD_WRITE] == 16 * P


def test_states_in_host_memory_leave_the_drives_alone():
    total = moved(bf16_adam(states=Tier.HOST, clips=True))
    assert total[Lane.SSD_READ] == total[Lane.SSD_WRITE] == 0
    assert total[Lane.H2D] == 4 * P - 2 * RESIDENT_AT_THE_TURN


def test_a_tied_head_fetches_the_embedding_once_more():
    total, plain = moved(bf16_adam(tied=True)), moved(bf16_adam())
    assert total[Lane.SSD_READ] - plain[Lane.SSD_READ] == 2 * EDGE
    assert total[Lane.SSD_WRITE] == plain[Lane.SSD_WRITE]


def test_activations_move_once_each_way_in_whole_sectors():
    keep = {0: Tier.HOST, 1: Tier.SSD, 2: Tier.GPU}
    total = moved(bf16_adam(states=Tier.HOST, inputs=Tier.SSD, keep=keep, micro_batches=3))
    on_ssd = 3 * LAYERS * (8192 + 8192)
    assert total[Lane.SSD_WRITE] == total[Lane.SSD_READ] == on_ssd
    assert total[Lane.D2H] == 2 * P + on_ssd + 3 * LAYERS * 4096


def test_recomputation_costs_what_was_not_kept():
    def backward_seconds(keep):
        return sum(task.work for task in bf16_adam(keep=keep).tasks if task.op is Op.BACKWARD and task.block)

    assert backward_seconds({}) == 3 * LAYERS
    assert backward_seconds({0: Tier.GPU, 1: Tier.HOST}) == 2.5 * LAYERS


def test_host_memory_does_not_grow_with_depth_when_all_is_on_the_drives():
    schedule = bf16_adam(clips=True, gradients=Tier.SSD)
    chunk = 4 * BLOCK_ALIGNMENT
    staging, gradients, records = 4 * 2, 4 * 2, 3 * (12 + 2)
    assert schedule.bytes_on(Tier.HOST) == chunk * (staging + gradients + records)


def test_what_is_held_for_the_whole_run():
    schedule = bf16_adam(
        states=Tier.HOST, inputs=Tier.HOST, keep={0: Tier.SSD, 1: Tier.GPU}, clips=True, micro_batches=2, versions=2
    )
    held = schedule.resident_bytes
    saving = 14 * EDGE
    # Gradients wait in the weights' place.
    assert held[Tier.HOST] == 14 * P + saving + 2 * (LAYERS + 1) * 8192
    assert held[Tier.SSD] == 2 * 14 * P + 2 * LAYERS * 4096
    activations = 2 * LAYERS * 8192 + 2 * 300 + (2 + 2) * 5000 + 2 * (8192 + 4096)
    # With the allocator's fragments.
    assert held[Tier.GPU] == round_up(activations + 10**6 + 10**6 // 12, 4096) * 17 // 16


@given(problem=problems())
def test_the_lanes_move_what_the_plan_implies(problem):
    blocks, plans, workload = problem.profile.blocks, problem.plan.blocks, problem.workload
    size, micro_batches = problem.profile.weight_bytes, workload.micro_batches
    states = sum(vector.value_bytes for vector in problem.profile.states)
    last = len(blocks) - 1
    expected = Counter()
    for index, (block, decisions) in enumerate(zip(blocks, plans, strict=True)):
        n, on_ssd = block.elements, decisions.states is Tier.SSD
        if decisions.states is Tier.GPU:
            held = kept_bytes(block, decisions)
            expected += Counter({Lane.H2D: held.moved * micro_batches, Lane.D2H: held.moved * micro_batches})
            expected += Counter({Lane.SSD_READ: held.ssd * micro_batches, Lane.SSD_WRITE: held.ssd * micro_batches})
            continue
        stays = index == last or last - min(workload.layer_slots, last - 1) <= index
        times = (1 if stays else 2) + (index in blocks[last].borrows)
        expected[Lane.H2D] += times * n * size
        expected[Lane.D2H] += n * size
        expected[Lane.CPU] += n
        if on_ssd:
            # A deferred update hands its fresh weights on: forward need not fetch them.
            expected[Lane.SSD_READ] += ((times - decisions.deferred) * size + states) * n
            expected[Lane.SSD_WRITE] += (states + size) * n
        if gradients_wait(workload, decisions) and decisions.gradients is Tier.SSD:
            expected[Lane.SSD_READ] += size * n
            expected[Lane.SSD_WRITE] += size * n
        if block.role is Role.LAYER:
            held = kept_bytes(block, decisions)
            expected += Counter({Lane.H2D: held.moved * micro_batches, Lane.D2H: held.moved * micro_batches})
            expected += Counter({Lane.SSD_READ: held.ssd * micro_batches, Lane.SSD_WRITE: held.ssd * micro_batches})
    total = moved(build_schedule(problem.plan, problem.profile, workload))
    for lane in set(Lane) - {Lane.GPU}:
        assert total[lane] == expected[lane], lane


@given(problem=problems())
def test_kept_bytes_are_whole_sectors_of_each_output(problem):
    for block, decisions in zip(problem.profile.blocks, problem.plan.blocks, strict=True):
        sizes = {candidate.index: candidate.bytes for candidate in block.candidates}
        parts = [(decisions.inputs, block.input_bytes)] if block.role is not Role.PRELUDE else []
        parts += [(tier, sizes[index]) for index, tier in decisions.keep.items()]
        held = kept_bytes(block, decisions)
        for tier in Tier:
            assert getattr(held, tier) == sum(round_up(size, 4096) for where, size in parts if where is tier)


@given(problem=problems())
def test_more_micro_batches_never_move_more_states(problem):
    more = evolve(problem.workload, micro_batches=problem.workload.micro_batches + 3)
    before, after = (
        Counter(t.op for t in build_schedule(problem.plan, problem.profile, workload).tasks)
        for workload in (problem.workload, more)
    )
    for op in (Op.FETCH_WEIGHTS, Op.UPLOAD_WEIGHTS, Op.READ_STATES, Op.UPDATE, Op.WRITE_STATES, Op.DOWNLOAD_GRADIENT):
        assert before[op] == after[op]
