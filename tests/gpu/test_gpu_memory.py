"""GPU memory: the cap is enforced, a plan stays within what it reckoned, and one that cannot fit is refused at once."""

from __future__ import annotations

import gc

import pytest
import torch
from attrs import evolve
from tiny_lms import make_batch
from tiny_runs import open_run
from transformers import AutoConfig

from lohan_core.backend import Kind
from lohan_core.config.structure import structure_values
from lohan_core.data.batches import Batch
from lohan_core.errors import PlanError
from lohan_core.plan import Tier
from lohan_core.planning import plan_step
from lohan_core.registry import load_registry

pytestmark = pytest.mark.gpu

MIB = 2**20
HOST = {"backend": "keep_nothing", "states": "host"}


def test_the_cap_is_enforced_and_a_run_stays_below_it(tmp_path, models, cuda):
    cap_bytes = 256 * MIB
    batch = make_batch(1, micro_batches=2)
    sections = {"run": {"device": "cuda"}, "memory": {"gpu": cap_bytes}, "planner": HOST}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    with open_run(tmp_path, models["llama"], batch, **sections) as engine:
        engine.step(batch, lr=1e-3)
        assert torch.cuda.max_memory_reserved(cuda) <= cap_bytes
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(cap_bytes, dtype=torch.uint8, device=cuda)
        engine.step(batch, lr=1e-3)


@pytest.mark.parametrize(
    "planner",
    [HOST, *({"backend": "keep_all", "candidates": tier} for tier in ("gpu", "host"))],
    ids=lambda planner: planner.get("candidates", "nothing"),
)
def test_steps_take_no_more_than_the_plan_reckoned(tmp_path, models, cuda, planner):
    batch = make_batch(2, micro_batches=4, rows=8, length=48)
    before = torch.cuda.memory_allocated(cuda)
    with open_run(tmp_path, models["llama"], batch, run={"device": "cuda"}, planner=planner) as engine:
        engine.step(batch, lr=1e-3)  # cuBLAS takes its workspaces
        torch.cuda.reset_peak_memory_stats(cuda)
        workspaces = torch.cuda.memory_allocated(cuda) - before - device_pool_bytes(engine)
        for _ in range(3):
            engine.step(batch, lr=1e-3)
        taken = torch.cuda.max_memory_allocated(cuda) - before - workspaces
        assert taken <= engine.schedule.bytes_on(Tier.GPU)


def test_a_plan_that_fills_the_gpu_leaves_the_allocator_room_for_its_fragments(tmp_path, cuda):
    cap_bytes = 6 * 2**30
    model = AutoConfig.for_model(
        "llama",
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=32000,
    )
    model.save_pretrained(tmp_path / "model")
    tokens = torch.randint(32000, (8, 1024), generator=torch.Generator().manual_seed(0))
    batch = Batch.of([{"input_ids": tokens, "labels": tokens}], tokens=tokens.numel())
    sections = {
        "model": {"weights": "random"},
        "run": {"device": "cuda", "dtype": "bfloat16"},
        "memory": {"gpu": cap_bytes, "chunk": "16MiB"},
        "optimizer": {"backend": "cpuadam", "max_grad_norm": 1.0},
        "planner": {"backend": "greedy", "states": "host"},
        "profiler": {"backend": "measured", "cache": False},
    }
    with open_run(tmp_path / "profile", tmp_path / "model", batch, **{**sections, "planner": HOST}) as engine:
        chosen = filling_plan(engine)
    with open_run(tmp_path / "run", tmp_path / "model", batch, **chosen, **sections) as engine:
        kept = [candidate for block in engine.plan.blocks for candidate in block.keep]
        assert 0 < len(kept) < sum(len(block.candidates) for block in engine.profile.blocks)
        assert engine.schedule.bytes_on(Tier.GPU) > 0.95 * engine.budget.gpu_bytes
        engine.step(batch, lr=1e-5)
        before = allocator_state(cuda)
        for _ in range(3):
            engine.step(batch, lr=1e-5)
        assert allocator_state(cuda)["num_alloc_retries"] == before["num_alloc_retries"]


def filling_plan(engine):
    """As much kept on the GPU as fits: what greedy does where recomputing is slow, and no room is left elsewhere.

    Whether keeping pays on this machine depends on what else runs there.
    """
    blocks = []
    for block in engine.profile.blocks:
        candidates = tuple(evolve(each, seconds=each.bytes / 1e3) for each in block.candidates)
        blocks.append(evolve(block, candidates=candidates, recomputed_seconds=sum(each.seconds for each in candidates)))
    profile = evolve(engine.profile, blocks=tuple(blocks))
    taken = {tier: engine.schedule.bytes_on(tier) for tier in Tier}
    budget = evolve(engine.budget, host_bytes=taken[Tier.HOST], ssd_bytes=taken[Tier.SSD])
    backend = load_registry().find(Kind.PLANNER, "greedy")
    planner = backend.open(structure_values(backend.config, {"states": "host"}, "test"))
    plan, workload = plan_step(planner, profile, budget, engine.workload)
    return {"plan": plan, "workload": workload}


def test_a_closed_engine_leaves_nothing_on_the_gpu(tmp_path, models, cuda):
    left = []
    for number in range(3):
        with open_run(tmp_path / str(number), models["llama"], make_batch(3), run={"device": "cuda"}) as engine:
            engine.step(make_batch(3), lr=1e-3)
        del engine
        gc.collect()
        left.append(torch.cuda.memory_allocated(cuda))
    assert left[0] == left[1] == left[2]


def device_pool_bytes(engine):
    return sum(pool.bytes for pool in engine.schedule.pools.values() if pool.tier is Tier.GPU)


@pytest.mark.slow
@pytest.mark.parametrize("states", ["host", "gpu"])
def test_the_allocator_is_flat_over_five_hundred_steps(tmp_path, models, cuda, states):
    batch = make_batch(3, micro_batches=2)
    planner = {"backend": "keep_all", "candidates": "host", "states": states}
    with open_run(tmp_path, models["llama"], batch, run={"device": "cuda"}, planner=planner) as engine:
        for _ in range(3):
            engine.step(batch, lr=1e-3)
        gc.collect()  # what earlier tests have left
        before = allocator_state(cuda)
        for _ in range(500):
            engine.step(batch, lr=1e-3)
        assert allocator_state(cuda) == before


def allocator_state(cuda):
    """Return what torch's allocator holds, and how often it has asked the device for more or given some back."""
    stats = torch.cuda.memory_stats(cuda)
    kinds = ("allocated_bytes", "active_bytes", "reserved_bytes", "segment", "inactive_split_bytes")
    held = {kind: stats[f"{kind}.all.current"] for kind in kinds}
    return held | {name: stats[name] for name in ("num_alloc_retries", "num_ooms", "num_device_alloc")}


REFUSALS = {
    "one block": (4096, {"backend": "keep_nothing"}, "memory.gpu: too little for one block"),
    "the plan": (256 * MIB, {"backend": "keep_all", "candidates": "gpu"}, "more than the 240 MiB available"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_before_training(tmp_path, models, case):
    cap_bytes, planner, reason = REFUSALS[case]
    batch = make_batch(4, micro_batches=64, rows=8, length=48)
    run = {"device": "cuda"}
    with pytest.raises(PlanError, match=reason) as refusal:
        open_run(tmp_path, models["llama"], batch, run=run, memory={"gpu": cap_bytes}, planner=planner)
    assert "\n" not in str(refusal.value)
    torch.cuda.set_per_process_memory_fraction(1.0)
    with open_run(tmp_path, models["llama"], batch, run=run, planner=HOST) as engine:
        assert engine.finished_step == 0
        engine.step(batch, lr=1e-3)
