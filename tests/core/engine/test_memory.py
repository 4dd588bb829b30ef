from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_backends import TestBackends
from tiny_lms import make_batch
from tiny_runs import open_run

from lohan_core.engine.buffers import Buffers, carve
from lohan_core.engine.states import StateFormat
from lohan_core.errors import PlanError
from lohan_core.memory import allocate_host, pinned_bytes
from lohan_core.plan import Tier
from lohan_core.reference.torch_adamw import AdamWConfig, TorchAdamW
from lohan_core.schedule.task import Pool, Schedule

PAGE = mmap.PAGESIZE


def mapped_pages():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])


@pytest.mark.parametrize("size_bytes", [3 * PAGE, 96 * 2**20 + PAGE, 96 * 2**20 + 1])
def test_host_memory_is_mapped_at_its_size_in_pages(size_bytes):
    gc.collect()
    before = mapped_pages()
    buffer = allocate_host(size_bytes, pin=False)
    # Python's own allocator may map an arena of 1 MiB in between.
    assert 0 <= mapped_pages() - before - -(-size_bytes // PAGE) <= 2**20 // PAGE
    assert (buffer.numel(), buffer.dtype) == (size_bytes, torch.uint8)
    assert buffer.data_ptr() % PAGE == 0
    assert not buffer[:: max(1, size_bytes // 1000)].any()


def test_pages_go_with_the_last_view():
    size_bytes = 256 * 2**20
    view = allocate_host(size_bytes, pin=False)[PAGE : 2 * PAGE]
    view.fill_(7)
    assert (view == 7).all()
    held = mapped_pages()
    del view
    gc.collect()
    assert held - mapped_pages() >= size_bytes // PAGE - 2**20 // PAGE


def test_nothing_is_mapped_for_nothing():
    assert allocate_host(0, pin=False).numel() == 0


def is_mapped(address):
    with Path("/proc/self/maps").open(encoding="ascii") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    return any(start <= address < stop for start, stop in ranges)


class Runtime:
    """A CUDA runtime's stand-in, which tells whether what it lets go of is still mapped."""

    def __init__(self, status=0):
        self.status = status
        self.let_go = []

    def cudaHostRegister(self, address, size_bytes, flags):  # noqa: N802
        del address, size_bytes, flags
        return self.status

    def cudaHostUnregister(self, address):  # noqa: N802
        self.let_go.append((address, is_mapped(address)))


def test_pinned_pages_are_let_go_of_before_they_are_unmapped(monkeypatch):
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    before = pinned_bytes()
    buffer = allocate_host(5 * PAGE, pin=True)
    address, view = buffer.data_ptr(), buffer[PAGE:]
    del buffer
    assert (pinned_bytes() - before, runtime.let_go) == (5 * PAGE, [])
    del view
    assert (pinned_bytes(), runtime.let_go) == (before, [(address, True)])


def test_memory_that_cannot_be_pinned_leaves_no_error_to_the_next_kernel(monkeypatch):
    launched = []

    def launch(*_, device):
        launched.append(device)
        raise RuntimeError("CUDA error: out of memory")

    runtime = Runtime(status=2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "ones", launch)
    before = pinned_bytes()
    with pytest.raises(PlanError, match=r"memory.host: the driver cannot pin 4096 bytes \(2\)"):
        allocate_host(4096, pin=True)
    assert (launched, runtime.let_go, pinned_bytes()) == (["cuda"], [], before)


@given(st.lists(st.integers(0, 50)))
def test_pieces_of_an_arena_are_consecutive(sizes):
    arena = torch.arange(sum(sizes) + 3) % 251
    pieces = carve(arena, sizes)
    assert [len(piece) for piece in pieces] == sizes
    assert torch.equal(torch.cat([*pieces, arena[sum(sizes) :]]), arena)


def test_slots_of_host_pools_are_aligned_and_lie_side_by_side_in_one_mapping():
    pools = [
        Pool(name="a", tier=Tier.HOST, slot_bytes=2 * PAGE, slots=3),
        Pool(name="device", tier=Tier.GPU, slot_bytes=100, slots=2),
        Pool(name="none", tier=Tier.HOST, slot_bytes=PAGE, slots=0),
        Pool(name="b", tier=Tier.HOST, slot_bytes=PAGE, slots=2),
    ]
    buffers = Buffers(Schedule(tasks=(), pools={pool.name: pool for pool in pools}), torch.device("cpu"))
    assert buffers.host_arena.numel() == 8 * PAGE
    starts = [buffers.slot("a", i).data_ptr() for i in range(3)] + [buffers.slot("b", i).data_ptr() for i in range(2)]
    first = buffers.host_arena.data_ptr()
    assert starts == [first + PAGE * pages for pages in (0, 2, 4, 6, 7)]
    assert [buffers.slot("device", i).numel() for i in range(2)] == [100, 100]


@pytest.mark.parametrize("planner", [{"backend": "keep_nothing"}, {"backend": "dice", "seed": 2}])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_engine_reserves_what_the_schedule_says_and_no_more(tmp_path, models, planner, clip, monkeypatch):
    """Every host buffer for the run comes from ``allocate_host``; their sum is the schedule's, but for whole pages."""
    asked = []

    def counting(size_bytes, *, pin):
        asked.append(size_bytes)
        return allocate_host(size_bytes, pin=pin)

    for module in ("buffers", "states", "activations", "updates"):
        monkeypatch.setattr(f"lohan_core.engine.{module}.allocate_host", counting)
    batch = make_batch(1, micro_batches=2)
    with open_run(
        tmp_path,
        models["gpt2"],
        batch,
        TestBackends(),
        planner=planner,
        optimizer={"backend": "cpuadam", "max_grad_norm": clip},
    ) as engine:
        assert sum(asked) == engine.schedule.bytes_on(Tier.HOST)


def test_a_record_holds_one_slice_of_every_vector():
    form = StateFormat(TorchAdamW(AdamWConfig()), torch.bfloat16)
    elements = 8192
    record = form.open_record(torch.zeros(form.record_bytes(elements), dtype=torch.uint8), elements)
    assert form.record_bytes(elements) == 14 * elements
    assert {name: (t.dtype, len(t)) for name, t in record.values.items()} == {
        "master": (torch.float32, elements),
        "exp_avg": (torch.float32, elements),
        "exp_avg_sq": (torch.float32, elements),
        "weights": (torch.bfloat16, elements),
    }
    for number, values in enumerate(record.values.values()):
        values.fill_(number + 1)
    assert {name: t.unique().item() for name, t in record.values.items()} == {
        "master": 1,
        "exp_avg": 2,
        "exp_avg_sq": 3,
        "weights": 4,
    }
