"""A step as a list: no task waits for a later one, no two fight for a buffer, and every chunk is updated once."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from attrs import evolve
from happens_before import HappensBefore, tenures, writes
from hypothesis import given
from schedule_problems import Problem, problems

from lohan_core.plan import Tier
from lohan_core.profile import Role
from lohan_core.schedule.build import build_evaluation, build_schedule, gradients_wait
from lohan_core.schedule.sizes import chunks_of, kept_bytes
from lohan_core.schedule.task import Op

BUILDERS = {"step": build_schedule, "evaluation": build_evaluation}


def build(problem: Problem, kind="step"):
    return BUILDERS[kind](problem.plan, problem.profile, problem.workload)


def tasks_of(schedule, *ops):
    return [task for task in schedule.tasks if task.op in ops]


@pytest.mark.parametrize("kind", BUILDERS)
@given(problem=problems())
def test_every_dependency_points_backwards(kind, problem):
    for index, task in enumerate(build(problem, kind).tasks):
        assert task.index == index
        assert list(task.after) == sorted(set(task.after))
        assert all(0 <= before < index for before in task.after)


@pytest.mark.parametrize("kind", BUILDERS)
@given(problem=problems())
def test_slots_change_hands_in_order(kind, problem):
    """Whoever touches a slot is through before its next tenant begins; within it, writers are ordered."""
    schedule = build(problem, kind)
    before = HappensBefore(schedule)
    for slot, periods in tenures(schedule).items():
        for tenants, successors in pairwise(periods):
            assert all(before(a, b) for a in tenants for b in successors), slot
        for tenants in periods:
            for position, first in enumerate(tenants):
                for second in tenants[position + 1 :]:
                    assert before(first, second) or not (writes(first, slot) or writes(second, slot)), slot


@pytest.mark.parametrize("kind", BUILDERS)
@given(problem=problems())
def test_slots_exist_and_are_large_enough(kind, problem):
    schedule = build(problem, kind)
    for slot, periods in tenures(schedule).items():
        pool = schedule.pools[slot.pool]
        assert 0 <= slot.index < pool.slots
        for tenants in periods:
            filled = sum(task.work for task in tenants if task.op is Op.UPLOAD_WEIGHTS)
            if pool.tier is Tier.HOST:
                moved = [t.work for t in tenants if t.op not in {Op.UPDATE, Op.OFFLOAD, Op.UPLOAD}]
                filled = max(moved)
            assert filled <= pool.slot_bytes, pool


@pytest.mark.parametrize("kind", BUILDERS)
@given(problem=problems())
def test_a_block_computes_with_all_its_weights(kind, problem):
    """Its own and those that it borrows are uploaded in the tenure in which it computes."""
    schedule = build(problem, kind)
    blocks, size = problem.profile.blocks, problem.profile.weight_bytes
    computing = (Op.FORWARD, Op.TURN, Op.SCORE, Op.BACKWARD)
    seen = 0
    for slot, periods in tenures(schedule).items():
        if not slot.pool.endswith("weights"):
            continue
        for tenants in periods:
            (index,) = {task.block for task in tenants}
            uploaded = Counter()
            for task in tenants:
                if task.op is Op.UPLOAD_WEIGHTS:
                    uploaded[task.source] += task.work
            needed = {i: blocks[i].elements * size for i in (index, *blocks[index].borrows)}
            assert uploaded == {i: n for i, n in needed.items() if n}
            seen += sum(task.op in computing for task in tenants)
    assert seen == len(tasks_of(schedule, *computing))


@given(problem=problems())
def test_each_micro_batch_goes_up_and_comes_down(problem):
    schedule = build(problem)
    before = HappensBefore(schedule)
    last = len(problem.profile.blocks) - 1
    micro_batches = range(problem.workload.micro_batches)
    up = {(t.block, t.micro_batch): t for t in tasks_of(schedule, Op.FORWARD, Op.TURN)}
    down = {(t.block, t.micro_batch): t for t in tasks_of(schedule, Op.BACKWARD, Op.TURN)}
    assert up.keys() == down.keys() == {(b, k) for b in range(last + 1) for k in micro_batches}
    assert len(tasks_of(schedule, Op.FORWARD, Op.TURN, Op.BACKWARD)) == (2 * last + 1) * len(micro_batches)
    for block in range(last):
        for k in micro_batches:
            assert before(up[block, k], up[block + 1, k])
            assert before(down[block + 1, k], down[block, k])
    for block in range(last + 1):
        order = [t.micro_batch for t in tasks_of(schedule, Op.BACKWARD, Op.TURN) if t.block == block]
        assert order == list(micro_batches), "gradients are always summed in one order"


@given(problem=problems())
def test_what_leaves_the_gpu_comes_back_before_it_is_used(problem):
    schedule = build(problem)
    before = HappensBefore(schedule)
    steps = defaultdict(dict)
    for task in tasks_of(schedule, Op.FORWARD, Op.OFFLOAD, Op.SPILL, Op.UNSPILL, Op.UPLOAD, Op.BACKWARD):
        assert task.op not in steps[task.block, task.micro_batch]
        steps[task.block, task.micro_batch][task.op] = task
    for (index, _), found in steps.items():
        block = problem.profile.blocks[index]
        held = kept_bytes(block, problem.plan.blocks[index])
        moves = block.role is Role.LAYER and held.moved > 0
        way = [Op.FORWARD, *([Op.OFFLOAD] if moves else [])]
        way += [Op.SPILL, Op.UNSPILL] if moves and held.ssd else []
        way += [*([Op.UPLOAD] if moves else []), Op.BACKWARD]
        assert set(found) == set(way)
        for first, second in pairwise(way):
            assert before(found[first], found[second])
        if moves:
            assert found[Op.OFFLOAD].work == found[Op.UPLOAD].work == held.moved
        if moves and held.ssd:
            assert found[Op.SPILL].work == found[Op.UNSPILL].work == held.ssd


@given(problem=problems())
def test_every_chunk_is_updated_once_with_all_of_its_gradient(problem):
    schedule = build(problem)
    before = HappensBefore(schedule)
    chunks = {
        (index, chunk.index): chunk.elements
        for index, block in enumerate(problem.profile.blocks)
        for chunk in chunks_of(block, problem.workload.chunk_elements)
    }
    updates = {(t.block, t.chunk): t for t in tasks_of(schedule, Op.UPDATE)}
    assert {key: task.work for key, task in updates.items()} == chunks
    assert len(tasks_of(schedule, Op.UPDATE)) == len(chunks)
    downloads = {(t.block, t.chunk): t for t in tasks_of(schedule, Op.DOWNLOAD_GRADIENT)}
    (norm,) = tasks_of(schedule, Op.NORM)
    computed = tasks_of(schedule, Op.BACKWARD, Op.TURN)
    for key, update in updates.items():
        contributors = [t for t in computed if t.block == key[0]]
        if key[0] == 0 and problem.profile.blocks[-1].borrows:
            contributors += [t for t in computed if t.op is Op.TURN]
        assert all(before(task, downloads[key]) for task in contributors)
        assert before(downloads[key], update)
        if problem.workload.clips:
            assert before(norm, update)
    assert all(before(task, norm) for task in computed)


@given(problem=problems())
def test_states_are_read_before_an_update_and_written_after_it_and_never_stale(problem):
    """And no weight of this step's passes is fetched or uploaded once an update may have changed it."""
    schedule = build(problem)
    before = HappensBefore(schedule)
    moved = {op: {(t.block, t.chunk): t for t in tasks_of(schedule, op)} for op in (Op.READ_STATES, Op.WRITE_STATES)}
    for update in tasks_of(schedule, Op.UPDATE):
        key = update.block, update.chunk
        changes = update
        if problem.plan.blocks[update.block].states is Tier.SSD:
            assert before(moved[Op.READ_STATES][key], update)
            assert before(update, moved[Op.WRITE_STATES][key])
            changes = moved[Op.WRITE_STATES][key]
        else:
            assert key not in moved[Op.READ_STATES]
            assert key not in moved[Op.WRITE_STATES]
        for task in tasks_of(schedule, Op.FETCH_WEIGHTS, Op.UPLOAD_WEIGHTS):
            if task.source == update.block and (task.op is Op.FETCH_WEIGHTS or task.chunk < 0):
                assert before(task, changes)


@given(problem=problems())
def test_gradients_that_wait_are_put_aside_and_fetched(problem):
    schedule = build(problem)
    before = HappensBefore(schedule)
    spilled = {(t.block, t.chunk): t for t in tasks_of(schedule, Op.SPILL_GRADIENT)}
    fetched = {(t.block, t.chunk): t for t in tasks_of(schedule, Op.FETCH_GRADIENT)}
    waits = gradients_wait(problem.workload)
    for update in tasks_of(schedule, Op.UPDATE):
        key = update.block, update.chunk
        expected = waits and problem.plan.blocks[update.block].gradients is Tier.SSD
        assert (key in spilled) == (key in fetched) == expected
        if expected:
            assert before(spilled[key], fetched[key])
            assert before(fetched[key], update)
    if waits:
        last = max(t.index for t in tasks_of(schedule, Op.BACKWARD))
        assert all(update.index > last for update in tasks_of(schedule, Op.UPDATE))


@given(problem=problems())
def test_evaluation_only_moves_weights_and_computes(problem):
    schedule = build(problem, "evaluation")
    assert {t.op for t in schedule.tasks} <= {Op.FETCH_WEIGHTS, Op.UPLOAD_WEIGHTS, Op.FORWARD, Op.SCORE}
    before = HappensBefore(schedule)
    last = len(problem.profile.blocks) - 1
    done = {(t.block, t.micro_batch): t for t in tasks_of(schedule, Op.FORWARD, Op.SCORE)}
    assert done.keys() == {(b, k) for b in range(last + 1) for k in range(problem.workload.micro_batches)}
    for (block, k), task in done.items():
        assert block == 0 or before(done[block - 1, k], task)
        assert (task.op is Op.SCORE) == (block == last)


@given(problem=problems())
def test_training_pools_serve_evaluation_too(problem):
    training = build(problem).pools
    assert build(problem, "evaluation").pools == training
    more = evolve(problem.workload, micro_batches=problem.workload.micro_batches + 1)
    for name, pool in build(evolve(problem, workload=more), "evaluation").pools.items():
        assert name.endswith("sums") or pool == training[name]
