"""A step as a list: no task waits for a later one, no two fight for a buffer, and every chunk is updated once."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from itertools import pairwise

import pytest
from attrs import evolve
from happens_before import HappensBefore, tenures, writes
from hypothesis import given
from schedule_problems import Problem, problems

from lohan_core.layout import cut_into_chunks
from lohan_core.plan import Tier
from lohan_core.profile import Role
from lohan_core.schedule.build import build_evaluation, build_schedule, build_updates
from lohan_core.schedule.sizes import gradients_wait, kept_bytes
from lohan_core.schedule.task import GRADIENT_POOLS, WEIGHT_POOLS, Op

BUILDERS = {
    "step": build_schedule,
    "first step": partial(build_schedule, pending=False),
    "step without speculation": partial(build_schedule, speculates=False),
    "updates": build_updates,
    "evaluation": build_evaluation,
}


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
                moved = [t.work for t in tenants if t.op not in {Op.UPDATE, Op.OFFLOAD, Op.UPLOAD, Op.UPLOAD_WEIGHTS}]
                filled = max(moved)
            assert filled <= pool.slot_bytes, pool


@pytest.mark.parametrize("kind", BUILDERS)
@given(problem=problems())
def test_a_block_computes_with_all_its_weights(kind, problem):
    """Its own and those that it borrows are uploaded in the tenure in which it computes, or live there."""
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
    at_home = [i for i, decisions in enumerate(problem.plan.blocks) if decisions.states is Tier.GPU]
    seen += sum(task.block in at_home for task in tasks_of(schedule, *computing))
    assert seen == len(tasks_of(schedule, *computing))


@given(problem=problems())
def test_gradients_leave_from_where_they_are_rounded(problem):
    """Sums of several micro-batches become G16 in the place of the weights; their own slots are free by then."""
    schedule = build(problem)
    apart = problem.workload.micro_batches > 1 and problem.profile.weight_bytes < 4
    assert all(pool.slots <= 1 for pool in schedule.pools.values() if apart and pool.name.endswith("gradients"))
    periods = tenures(schedule)
    downloads = tasks_of(schedule, Op.DOWNLOAD_GRADIENT)
    for task in downloads:
        (slot,) = (slot for slot in task.touches if slot.pool.endswith("weights" if apart else "gradients"))
        (tenants,) = (tenants for tenants in periods[slot] if task in tenants)
        assert {tenant.block for tenant in tenants if tenant.op is not Op.TURN} <= {task.block}
    away = [i for i, d in enumerate(problem.plan.blocks) if d.states is not Tier.GPU]
    assert sum(task.work for task in downloads) == sum(
        problem.profile.blocks[index].elements * problem.profile.weight_bytes for index in away
    )


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


def chunks_by_key(problem):
    """Chunks that are updated by the processor."""
    return {
        (index, chunk.index): chunk.elements
        for index, block in enumerate(problem.profile.blocks)
        if problem.plan.blocks[index].states is not Tier.GPU
        for chunk in cut_into_chunks(block.elements, problem.workload.chunk_elements)
    }


def late(problem, index):
    """Whether a block is updated in the next step's forward, if all speculation goes well."""
    decisions = problem.plan.blocks[index]
    return decisions.deferred and not decisions.speculative


def on_gpu(problem):
    """Blocks that are updated on the GPU."""
    return {
        index
        for index, (block, decisions) in enumerate(zip(problem.profile.blocks, problem.plan.blocks, strict=True))
        if decisions.states is Tier.GPU and block.elements
    }


def by_chunk(schedule, op):
    found = {(t.block, t.chunk): t for t in tasks_of(schedule, op)}
    assert len(found) == len(tasks_of(schedule, op))
    return found


@given(problem=problems())
def test_every_chunk_is_updated_once_with_all_of_its_gradient(problem):
    """With this step's, or, where the update is deferred, with that of the step before, which is then overwritten."""
    schedule = build(problem)
    before = HappensBefore(schedule)
    updates = by_chunk(schedule, Op.UPDATE)
    assert {key: task.work for key, task in updates.items()} == chunks_by_key(problem)
    downloads = by_chunk(schedule, Op.DOWNLOAD_GRADIENT)
    (norm,) = tasks_of(schedule, Op.NORM)
    computed = tasks_of(schedule, Op.BACKWARD, Op.TURN)
    for key, update in updates.items():
        contributors = [t for t in computed if t.block == key[0]]
        if key[0] == 0 and problem.profile.blocks[-1].borrows:
            contributors += [t for t in computed if t.op is Op.TURN]
        assert all(before(task, downloads[key]) for task in contributors)
        if late(problem, key[0]):
            assert before(update, downloads[key])
            continue
        assert before(downloads[key], update)
        if problem.plan.blocks[key[0]].speculative:
            assert before(update, norm), "whose outcome says whether it counts"
        elif problem.workload.clips:
            assert before(norm, update)
    assert all(before(task, norm) for task in computed)


@given(problem=problems())
def test_states_on_the_gpu_are_updated_there_and_move_nothing(problem):
    schedule = build(problem)
    before = HappensBefore(schedule)
    there = on_gpu(problem)
    updates = {task.block: task for task in tasks_of(schedule, Op.UPDATE_ON_GPU)}
    assert updates.keys() == there
    assert len(updates) == len(tasks_of(schedule, Op.UPDATE_ON_GPU))
    (norm,) = tasks_of(schedule, Op.NORM)
    moves = tasks_of(schedule, Op.UPLOAD_WEIGHTS, Op.DOWNLOAD_GRADIENT, Op.FETCH_WEIGHTS, Op.READ_STATES)
    assert not there & {task.source if task.source >= 0 else task.block for task in moves}
    for index, update in updates.items():
        deferred = problem.plan.blocks[index].deferred
        for task in tasks_of(schedule, Op.FORWARD, Op.BACKWARD):
            if task.block == index:
                assert before(update, task) if deferred else before(task, update)
        assert deferred or not problem.workload.clips or before(norm, update)
        seconds = problem.profile.blocks[index].elements / problem.profile.machine.gpu_parameters_per_second
        assert update.work == seconds
        first_forward = tasks_of(schedule, Op.FORWARD)[0]
        assert not deferred or update.index < first_forward.index, "while the GPU waits for the prelude"


@given(problem=problems())
def test_updated_edges_in_host_memory_come_chunk_by_chunk_and_layers_whole(problem):
    schedule = build(problem)
    last = len(problem.plan.blocks) - 1
    for index, decisions in enumerate(problem.plan.blocks):
        if decisions.states is not Tier.HOST or not late(problem, index):
            continue
        first = next(t for t in tasks_of(schedule, Op.UPLOAD_WEIGHTS) if index in {t.source, t.block})
        updates = {t.chunk: t.index for t in tasks_of(schedule, Op.UPDATE) if t.block == index}
        if index in {0, last} and updates:
            assert first.chunk == 0
            assert updates[0] in first.after
        elif updates:
            assert first.chunk == -1
            assert set(updates.values()) <= set(first.after)


@given(problem=problems())
def test_gradients_take_the_weights_place_when_nobody_needs_those_any_more(problem):
    """Those of a block in host memory wait there."""
    schedule = build(problem)
    before = HappensBefore(schedule)
    for download in tasks_of(schedule, Op.DOWNLOAD_GRADIENT):
        if problem.plan.blocks[download.block].states is Tier.HOST:
            uploads = [t for t in tasks_of(schedule, Op.UPLOAD_WEIGHTS) if t.source == download.block]
            assert all(before(upload, download) for upload in uploads)


@given(problem=problems())
def test_memory_of_two_sets_is_enough_for_what_is_on_its_way(problem):
    """A third begins to leave when the first has left, and to come back when there is one at most on either way."""
    schedule = build(problem)
    forward = {(t.block, t.micro_batch): t for t in tasks_of(schedule, Op.FORWARD)}
    backward = {(t.block, t.micro_batch): t for t in tasks_of(schedule, Op.BACKWARD)}
    offloads, uploads = tasks_of(schedule, Op.OFFLOAD), tasks_of(schedule, Op.UPLOAD)
    for offload, later in zip(offloads, [forward[t.block, t.micro_batch] for t in offloads[2:]], strict=False):
        assert offload.index in later.after
    before = HappensBefore(schedule)
    for number, upload in enumerate(uploads):
        on_the_way_out = [task for task in offloads if not before(task, upload)]
        on_the_way_in = [t for t in uploads[:number] if not before(backward[t.block, t.micro_batch], upload)]
        assert len(on_the_way_out) + len(on_the_way_in) < 2


@given(problem=problems())
def test_only_deferred_updates_are_missing_in_the_first_step_and_left_for_the_last(problem):
    deferred = {key for key in chunks_by_key(problem) if late(problem, key[0])}
    updated = {kind: by_chunk(build(problem, kind), Op.UPDATE).keys() for kind in ("step", "first step", "updates")}
    assert updated["updates"] == deferred
    assert updated["first step"] == updated["step"] - deferred
    first, step = (Counter(t.op for t in build(problem, kind).tasks) for kind in ("first step", "step"))
    for op in (Op.FORWARD, Op.TURN, Op.BACKWARD, Op.DOWNLOAD_GRADIENT, Op.SPILL_GRADIENT, Op.NORM):
        assert first[op] == step[op]


@given(problem=problems())
def test_without_speculation_a_step_is_that_of_a_plan_that_has_none(problem):
    """Pools and memory alone are there for both."""
    cautious = evolve(
        problem, plan=evolve(problem.plan, blocks=tuple(evolve(b, speculative=False) for b in problem.plan.blocks))
    )
    assert build(problem, "step without speculation").tasks == build(cautious).tasks
    updates = build_updates(problem.plan, problem.profile, problem.workload, speculated=False)
    assert updates.tasks == build(cautious, "updates").tasks


@given(problem=problems())
def test_states_are_read_before_an_update_and_written_after_it_and_never_stale(problem):
    """And no weight of this step's passes is fetched or uploaded while an update may be changing it."""
    schedule = build(problem)
    before = HappensBefore(schedule)
    moved = {op: by_chunk(schedule, op) for op in (Op.READ_STATES, Op.WRITE_STATES)}
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
        deferred = late(problem, update.block)
        for task in tasks_of(schedule, Op.FETCH_WEIGHTS, Op.UPLOAD_WEIGHTS):
            reads = task.chunk == update.chunk if task.op is Op.FETCH_WEIGHTS else task.chunk < 0
            if task.source == update.block and reads:
                assert before(changes, task) if deferred else before(task, changes)
        if deferred:
            users = {update.block} | {i for i, b in enumerate(problem.profile.blocks) if update.block in b.borrows}
            for task in tasks_of(schedule, Op.FORWARD, Op.TURN, Op.BACKWARD):
                assert task.block not in users or before(update, task)


@given(problem=problems())
def test_gradients_that_wait_are_put_aside_and_fetched(problem):
    schedule = build(problem)
    before = HappensBefore(schedule)
    spilled, fetched = by_chunk(schedule, Op.SPILL_GRADIENT), by_chunk(schedule, Op.FETCH_GRADIENT)
    last = max(t.index for t in tasks_of(schedule, Op.BACKWARD))
    for update in tasks_of(schedule, Op.UPDATE):
        key, decisions = (update.block, update.chunk), problem.plan.blocks[update.block]
        waits = gradients_wait(problem.workload, decisions)
        expected = waits and decisions.gradients is Tier.SSD
        assert (key in spilled) == expected
        assert (key in fetched) == (expected and not decisions.speculative)
        if key in fetched:
            first, second = (fetched, spilled) if decisions.deferred else (spilled, fetched)
            assert before(first[key], second[key])
            assert before(fetched[key], update)
        assert not waits or decisions.deferred or update.index > last


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
def test_training_pools_serve_every_schedule(problem):
    training = build(problem).pools
    assert {pool.name for pool in training.values() if pool.tier is Tier.GPU} == WEIGHT_POOLS | GRADIENT_POOLS
    assert all(build(problem, kind).pools == training for kind in BUILDERS)
    more = evolve(problem.workload, micro_batches=problem.workload.micro_batches + 1)
    for name, pool in build(evolve(problem, workload=more), "evaluation").pools.items():
        assert name.endswith("gradients") or pool == training[name]
