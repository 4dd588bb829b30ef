"""``lohan bench step`` on a GPU: both sides train alike, and memory is what the plan said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_backends import TestBackends, make_registry

from lohan_core.bench.step import StepBenchOptions, run
from lohan_core.errors import PlanError
from lohan_core.memory import allocate_host, pinned_bytes

pytestmark = pytest.mark.gpu


def test_pinned_memory_is_counted_until_it_is_given_back():
    before = pinned_bytes()
    buffer = allocate_host(5000, pin=True)
    assert pinned_bytes() == before + 5000
    del buffer
    assert pinned_bytes() == before


def test_memory_that_cannot_be_pinned_leaves_no_error_to_the_next_kernel(monkeypatch):
    register, no_flag = torch.cuda.cudart().cudaHostRegister, 1 << 20
    runtime = SimpleNamespace(cudaHostRegister=lambda address, size_bytes, _: register(address, size_bytes, no_flag))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    with pytest.raises(PlanError, match=r"memory\.host: the driver cannot pin"):
        allocate_host(5000, pin=True)
    assert (torch.zeros(3, device="cuda") + 1).sum() == 3


@pytest.mark.parametrize("workload", ["smoke", "smoke-ssd"])
def test_a_small_workload_beside_plain_pytorch(tmp_path, workload):
    options = StepBenchOptions(
        workload=workload, directory=tmp_path, batch_sizes=(2,), steps=2, warm_up=1, device="cuda", drives_seconds=0.1
    )
    before = pinned_bytes()
    row = run(options, make_registry(TestBackends())).rows[0]
    assert row.without_plain is None
    assert row.plain.losses == pytest.approx(row.losses, rel=1e-3)
    assert row.plain.peak_gpu_bytes > 0
    assert 0 < row.pinned_bytes - before <= row.planned_host_bytes
    assert 0 < row.step_gpu_bytes <= row.peak_gpu_bytes
    assert row.gpu_retries == 0
    assert (row.drives is None) == (workload == "smoke")
    assert pinned_bytes() == before
